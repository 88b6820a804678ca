"""Sharpness and curvature against what a cell reached on the test set: points and their rank correlation, no more.

A flat minimum need not generalise better: both may follow from a third cause, and sharpness is not invariant to a
rescaling of the parameters. What is computed here is an association among the cells of one study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.tables import RECIPE_FIELDS, cells
from analysis.words import setting

#: The quantities that are set against accuracy, by measure.
QUANTITIES = {"sharpness": ("sharpness",), "curvature": ("hessian_trace", "top_eigenvalue")}
#: Cells below which there is no rank correlation: a bootstrap of a handful of points only repeats them.
FEWEST = 8


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho of `n` points with the 95 % percentile bootstrap interval over points; NaN where n < 8 or one
    side does not vary.
    """

    rho: float
    low: float
    high: float
    n: int


def against_accuracy(
    measured: dict[str, pd.DataFrame], replicates: pd.DataFrame, table: pd.DataFrame, outcome: str = "test_accuracy"
) -> pd.DataFrame:
    """Each complete cell's measured quantities beside its outcome, both over seeds.

    Args:
        measured: what `geometry.over_seeds` returns by measure: "sharpness", "curvature" or both.
        replicates: `reader.replicates()`.
        table: what `tables.cells` returns for them.
        outcome: "test_accuracy", or "generalisation_gap": training less test accuracy of the same seed.

    Returns:
        One row a complete cell and quantity: `cell`, `arm`, the Recipe's fields, `quantity` (sharpness names its probe:
        `sharpness (sam, gamma 0.05)`), `x`, `x_low`, `x_high`, `x_n` (the quantity), `y`, `y_low`, `y_high`, `y_n` (the
        outcome, a fraction), means with 95 % t intervals, and `outcome`.

    Raises:
        ValueError: the outcome is neither a column nor the gap.
    """
    rows = replicates
    if outcome == "generalisation_gap":
        if "train_accuracy" not in replicates:
            raise ValueError("generalisation_gap needs train_accuracy, which is not in the table")
        gap = pd.to_numeric(replicates["train_accuracy"]) - pd.to_numeric(replicates["test_accuracy"])
        rows = replicates.assign(generalisation_gap=gap.astype(float))
    done = cells(rows, outcome)
    done = done[(done["status"] == "complete") & done["mean"].notna()]
    right = done[["cell", "mean", "low", "high", "n"]]
    right = right.rename(columns={"mean": "y", "low": "y_low", "high": "y_high", "n": "y_n"})
    parts = []
    for measure, names in QUANTITIES.items():
        frame = measured.get(measure)
        if frame is None or frame.empty:
            continue
        own = frame[frame["quantity"].isin(names) & frame["mean"].notna()]
        left = own[["cell", "mean", "low", "high", "n"]]
        left = left.rename(columns={"mean": "x", "low": "x_low", "high": "x_high", "n": "x_n"})
        left.insert(1, "quantity", [_name(row) for _, row in own.iterrows()])
        parts.append(left.merge(right, on="cell"))
    columns = ["cell", "arm", *(f for f in RECIPE_FIELDS if f in table)]
    if not parts:
        return pd.DataFrame(columns=[*columns, "quantity", "x", "y", "outcome"])
    return table[columns].merge(pd.concat(parts, ignore_index=True), on="cell").assign(outcome=outcome)


def _name(row: pd.Series) -> str:
    if row["quantity"] != "sharpness":
        return str(row["quantity"]).replace("_", " ")
    said = [str(row["probe_metric"])] if isinstance(row.get("probe_metric"), str) else []
    for field in ("probe_gamma", "probe_eta"):
        value = row.get(field)
        if value is not None and value == value:
            said.append(f"{field.removeprefix('probe_')} {setting(value)}")
    if isinstance(row.get("per_batch"), bool | np.bool_) and row["per_batch"]:
        said.append("per batch")
    return f"sharpness ({', '.join(said)})" if said else "sharpness"


def rank_correlation(
    x: Sequence[float] | pd.Series, y: Sequence[float] | pd.Series, *, resamples: int = 2000, seed: int = 0
) -> RankCorrelation:
    """Spearman's rank correlation of points, ties at their mean rank, with a percentile bootstrap over the points."""
    a, b = (np.asarray(v, dtype=float) for v in (x, y))
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    n = len(a)
    if n < FEWEST or not np.ptp(a) or not np.ptp(b):
        return RankCorrelation(float("nan"), float("nan"), float("nan"), n)
    rho = float(_spearman(a[None], b[None])[0])
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    again = _spearman(a[drawn], b[drawn])
    low, high = np.nanquantile(again, [0.025, 0.975])
    return RankCorrelation(rho, float(low), float(high), n)


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each row; NaN for a row in which one side does not vary."""
    from scipy.stats import rankdata

    a, b = rankdata(a, axis=1), rankdata(b, axis=1)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    size = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(size > 0, (a * b).sum(axis=1) / size, np.nan))
