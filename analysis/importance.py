"""Which settings of a search mattered: functional ANOVA on its complete cells, with an interval.

fANOVA (Hutter, Hoos & Leyton-Brown, ICML 2014): a random forest predicts validation accuracy from the settings; the
importance of a setting is the share of the forest's variance over the search space that the setting explains by itself.
What only settings together explain is in none of them, so that the shares of an arm sum to less than 1. Optuna's
evaluator does it; a logarithmic axis is given to it as its logarithm, so that the space is weighted as it was sampled.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.words import setting

#: Complete cells of an arm below which a forest says nothing.
FEWEST = 10
#: Forests of many more cells take minutes: a sample of so many stands for them.
_MOST = 150


def importance(
    cells: pd.DataFrame, axes: Mapping[str, bool], *, resamples: int = 20, trees: int = 24, seed: int = 0
) -> pd.DataFrame:
    """Importance of each setting for the validation accuracy of each arm.

    Args:
        cells: what `tables.cells` returns. Complete cells only are used: a stopped one has no comparable accuracy. A
            search that stops bad cells early therefore tells about the better part of its space.
        axes: the search's axes and whether each is logarithmic (`search.search_axes`).
        resamples: bootstrap samples of the cells behind each interval.
        trees: of each forest.
        seed: of forests, bootstrap and sample.

    Returns:
        One row an arm and axis, in the order of `cells` and `axes`, of the arms that vary more than one of the axes
        (nothing is to be shared out otherwise): `arm`, `setting`, `importance` in [0, 1] (share of variance), `low`,
        `high` (range of the bootstrap samples over cells; of 20 it is about a 90 % interval)
        and `n` (complete cells; at most 150 of them, drawn at random,
        make the forest). Where an arm has fewer than `FEWEST` complete cells, or all of them the same accuracy, the
        numbers are NaN and n says why.
    """
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for arm, own in cells.groupby("arm", sort=False):
        done = own[(own["status"] == "complete") & own["validation_mean"].notna()]
        # An axis is used by all cells of an arm or by none; a cell without its value has no place in the space.
        used = [a for a in axes if a in own and own[a].notna().all() and own[a].map(setting).nunique() > 1]
        if len(used) < 2:
            continue
        accuracy = done["validation_mean"].to_numpy(dtype=float)
        known = len(done) >= FEWEST and np.ptp(accuracy) > 0
        values = _shares(done, accuracy, {a: axes[a] for a in used}, resamples, trees, random) if known else {}
        for axis in used:
            middle, low, high = values.get(axis, (np.nan, np.nan, np.nan))
            found = {"arm": arm, "setting": axis, "importance": middle, "low": low, "high": high, "n": len(done)}
            rows.append(found)
    return pd.DataFrame(rows, columns=["arm", "setting", "importance", "low", "high", "n"])


def _shares(
    done: pd.DataFrame,
    accuracy: np.ndarray,
    axes: dict[str, bool],
    resamples: int,
    trees: int,
    random: np.random.Generator,
) -> dict[str, tuple[float, float, float]]:
    """Importance with its interval by axis."""
    space, encoded = _space(done, axes)
    chosen = np.arange(len(done))
    if len(chosen) > _MOST:
        chosen = np.sort(random.choice(chosen, _MOST, replace=False))
    middle = _fanova(space, [encoded[i] for i in chosen], accuracy[chosen], trees, int(random.integers(2**31)))
    again = []
    for _ in range(resamples):
        drawn = random.choice(chosen, len(chosen))
        if np.ptp(accuracy[drawn]) > 0:
            again.append(
                _fanova(space, [encoded[i] for i in drawn], accuracy[drawn], trees, int(random.integers(2**31)))
            )
    if len(again) < 2:
        return {axis: (middle[axis], np.nan, np.nan) for axis in axes}
    ends = {axis: np.quantile([one[axis] for one in again], [0.0, 1.0]) for axis in axes}
    return {axis: (middle[axis], float(ends[axis][0]), float(ends[axis][1])) for axis in axes}


def _space(done: pd.DataFrame, axes: dict[str, bool]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Optuna's distribution of each axis over the values that occur, and each cell's place in them."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    space: dict[str, BaseDistribution] = {}
    columns: dict[str, list[Any]] = {}
    for axis, log in axes.items():
        values = done[axis]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            numbers = values.to_numpy(dtype=float)
            if log and (numbers > 0).all():
                numbers = np.log10(numbers)
            space[axis] = FloatDistribution(float(numbers.min()), float(numbers.max()))
            columns[axis] = numbers.tolist()
        else:
            names = values.map(setting)
            space[axis] = CategoricalDistribution(list(dict.fromkeys(names)))
            columns[axis] = names.tolist()
    return space, [{axis: columns[axis][i] for axis in axes} for i in range(len(done))]


def _fanova(
    space: dict[str, Any], places: list[dict[str, Any]], accuracy: np.ndarray, trees: int, seed: int
) -> dict[str, float]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(direction="maximize")
            study.add_trials(
                [
                    optuna.trial.create_trial(params=place, distributions=space, value=float(value))
                    for place, value in zip(places, accuracy, strict=True)
                ]
            )
            evaluator = FanovaImportanceEvaluator(n_trees=trees, seed=seed)
            try:
                found = evaluator.evaluate(study, params=list(space))
            except RuntimeError:  # no tree found a split: a resample of nearly one cell
                return dict.fromkeys(space, 0.0)
    finally:
        optuna.logging.set_verbosity(before)
    return {axis: float(found[axis]) for axis in space}
