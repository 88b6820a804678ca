"""Equal compute: what each method had reached when it had cost as much as the others.

A step of SAM, ASAM or Fisher SAM takes two minibatch gradients where SGD takes one, so that equal epochs are no equal
cost. Costs are a seed's own and cumulative, as its history has them: minibatch gradients, or seconds of training on its
device (evaluation left out). At a cost a seed stands where its last finished epoch left it: nothing is interpolated and
no maximum over epochs is taken. Only validation accuracy is known before the end.

Under a schedule that depends on the number of epochs (the cosine) a run in its middle is not yet where a run planned
for half the epochs would end: this view says what had been reached by then, not what that much compute can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.intervals import interval
from analysis.tables import RECIPE_FIELDS

COSTS = ("gradient_evaluations", "train_seconds")
_POINTS = 200  # at most, a cell


def at_equal_cost(
    history: pd.DataFrame,
    cells: pd.DataFrame,
    by: str = "gradient_evaluations",
    metric: str = "validation_accuracy",
    points: int = _POINTS,
) -> pd.DataFrame:
    """A metric against what it cost: mean over the seeds at common costs.

    Args:
        history: `reader.history()`; one row a seed and epoch, `by` cumulative.
        cells: the cells to follow, rows of `tables.cells`, for instance those that `conditions.chosen` gives.
        by: `gradient_evaluations` (minibatch gradients) or `train_seconds`.
        points: at most so many costs a cell. They are those of its epochs where the seeds agree on them (gradients),
            else evenly spaced and as many as the epochs.

    Returns:
        One row a cell and cost, in the order of `cells`: `cell`, `arm`, the Recipe's fields, `status`, `by`, `cost` (a
        seed's), `epoch` (mean over the seeds of the epoch that stands there), `mean`, `std`, `low`, `high` (95 % t),
        `n` (seeds with a finite value), `n_started`, `metric`. Costs range from where every seed has finished an epoch
        to the smallest total of the cell's seeds, so that the same seeds are behind every mean.

    Raises:
        ValueError: `by` or `metric` is not a column of the history.
    """
    rows = _costed(history, cells, by, metric)
    keep = ["cell", "arm", *(f for f in RECIPE_FIELDS if f in cells), "status"]
    named = cells[[c for c in keep if c in cells]]
    parts = []
    for cell, own in rows.groupby("cell", sort=False):
        seeds = [seed for _, seed in own.groupby("seed", sort=True)]
        first = max(seed["_cost"].iloc[0] for seed in seeds)
        last = min(seed["_cost"].iloc[-1] for seed in seeds)
        if first > last:
            continue
        costs = np.unique(own["_cost"])
        costs = costs[(costs >= first) & (costs <= last)]
        epochs = min(len(seed) for seed in seeds)
        if len(costs) > min(epochs, points):
            costs = np.linspace(first, last, min(epochs, points))
        part = _standing(seeds, costs)
        part.insert(0, "cell", cell)
        parts.append(part)
    columns = ["cell", "cost", "epoch", "mean", "std", "low", "high", "n", "n_started"]
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return named.merge(found, on="cell").assign(by=by, metric=metric)


def reached(
    history: pd.DataFrame,
    cells: pd.DataFrame,
    by: str = "gradient_evaluations",
    metric: str = "validation_accuracy",
    budget: float | None = None,
) -> pd.DataFrame:
    """What each of `cells` had reached at one cost, that of the cheapest of them.

    Args:
        cells: the complete ones among these rows of `tables.cells` are compared; a stopped cell's total is no budget.
        budget: the cost of a seed; None: the smallest total of a complete replicate, so that all have got there.

    Returns:
        One row a complete cell that has a history: `cell`, `arm`, the settings, `by`, `budget`, `epoch`, `mean`, `std`,
        `low`, `high`, `n` (of the metric there; n is 0 where a seed's first epoch cost more than the budget), and
        `total` (mean over the seeds) and `final_mean`, where the cell ended.

    Raises:
        ValueError: as `at_equal_cost`.
    """
    done = cells[cells["status"] == "complete"]
    rows = _costed(history, done, by, metric)
    keep = ["cell", "arm", *(f for f in RECIPE_FIELDS if f in cells)]
    columns = [*keep, "by", "metric", "budget", "epoch", "mean", "std", "low", "high", "n", "total", "final_mean"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    ends = rows.groupby(["cell", "seed"], sort=False).tail(1)
    if budget is None:
        budget = float(ends["_cost"].min())
    parts = []
    for cell, own in rows.groupby("cell", sort=False):
        part = _standing([seed for _, seed in own.groupby("seed", sort=True)], np.array([budget]))
        end = ends[ends["cell"] == cell]
        part["total"], part["final_mean"] = end["_cost"].mean(), end["_value"].mean()
        parts.append(part.assign(cell=cell))
    out = done[keep].merge(pd.concat(parts, ignore_index=True), on="cell")
    out = out.assign(by=by, budget=budget, metric=metric)
    return out[columns]


def equal_cost(history: pd.DataFrame, cells: pd.DataFrame, conditions: Sequence[str] = ()) -> pd.DataFrame:
    """`reached` under each condition, for each of `COSTS` that the history has, below each other.

    Args:
        cells: the cells to be compared: those that validation chose, or all of a study.
        conditions: settings; cells under different ones share no budget.
    """
    kinds = [kind for kind in COSTS if kind in history and pd.to_numeric(history[kind]).notna().any()]
    by = list(conditions)
    groups = [rows for _, rows in cells.groupby(by, dropna=False, sort=False)] if by else [cells]
    parts = [reached(history, rows, kind) for rows in groups for kind in kinds]
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _costed(history: pd.DataFrame, cells: pd.DataFrame, by: str, metric: str) -> pd.DataFrame:
    """The cells' history with `_cost` and `_value`, seeds in order of their cost."""
    for name in (by, metric):
        if name not in history:
            raise ValueError(f"{name!r} is not in the history (it has {', '.join(map(str, history.columns))})")
    rows = history[history["cell"].isin(cells["cell"])].drop_duplicates(["cell", "seed", "epoch"], keep="last")
    rows = rows.assign(
        _cost=pd.to_numeric(rows[by]).astype(float),
        _value=pd.to_numeric(rows[metric]).astype(float).replace([np.inf, -np.inf], np.nan),
    )
    return rows[rows["_cost"].notna()].sort_values(["cell", "seed", "epoch"], kind="stable")


def _standing(seeds: list[pd.DataFrame], costs: np.ndarray) -> pd.DataFrame:
    """Mean over the seeds of what each one's last epoch of at most that cost left; costs ascend."""
    values, epochs = np.full((2, len(seeds), len(costs)), np.nan)
    for i, seed in enumerate(seeds):
        at = np.searchsorted(seed["_cost"].to_numpy(dtype=float), costs * (1 + 1e-12), side="right") - 1
        begun = at >= 0
        values[i, begun] = seed["_value"].to_numpy(dtype=float)[at[begun]]
        epochs[i, begun] = seed["epoch"].to_numpy(dtype=float)[at[begun]]
    # The seeds that were quick to finish an epoch do not stand for the others.
    values[:, np.isnan(epochs).any(axis=0)] = np.nan
    known = np.isfinite(values)
    n = known.sum(axis=0)
    some, several = np.maximum(n, 1), np.maximum(n - 1, 1)
    mean = np.where(n > 0, np.where(known, values, 0.0).sum(axis=0) / some, np.nan)
    squares = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
    std = np.where(n > 1, np.sqrt(squares / several), np.nan)
    low, high = interval(mean, std, n)
    begun = np.isfinite(epochs)
    epoch = np.where(
        begun.any(axis=0), np.where(begun, epochs, 0.0).sum(axis=0) / np.maximum(begun.sum(axis=0), 1), np.nan
    )
    columns: dict[str, Any] = {"cost": costs, "epoch": epoch, "mean": mean, "std": std, "low": low, "high": high}
    return pd.DataFrame(columns | {"n": n, "n_started": len(seeds)})
