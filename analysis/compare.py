"""Paired comparisons over shared seeds: same seed means same weights, data order and noise (invariant 1), so what
the seeds have in common cancels and a handful of them can tell settings apart.

Only complete replicates are compared. Every row says its n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from analysis.intervals import LEVEL, SPREAD, holm, interval, p_value
from analysis.tables import EXECUTION, best_cells, cells, varied

#: Settings that say which method probes, rather than the conditions under which methods are compared.
_METHOD = frozenset(
    {
        *("optimiser", "gamma", "eta", "asam_convention", "fisher", "m", "natural_gradient", "same_dropout"),
        *EXECUTION,
    }
)


def difference(
    replicates: pd.DataFrame,
    arm_a: str,
    arm_b: str,
    on: Sequence[str] = ("gamma",),
    *,
    metric: str = "test_accuracy",
    by: str = "arm",
) -> pd.DataFrame:
    """Each cell of `arm_a` minus the cells of `arm_b` with the same values of `on`, paired over shared seeds.

    Args:
        replicates: `reader.replicates()`.
        arm_a, arm_b: values of the column `by`, e.g. "fsam" and "sam".
        on: settings that must agree. A cell that does not use one of the method's (SGD has no gamma) has no partner; a
            condition that neither uses (the kind of label noise where there is none) agrees. Empty: every cell of
            `arm_a` against every cell of `arm_b`.
        metric: what is subtracted; in its own unit.
        by: the column that names the sides, `arm` or `optimiser`.

    Returns:
        One row a pair of cells that share a seed: `on`, the settings that vary within `arm_a`, `cell_a`, `cell_b`,
        `metric`, `n` (shared seeds), `mean_a`, `mean_b` (over these seeds), `difference`, `std` (of the paired
        differences, ddof 1), `low`, `high` (95 % t interval), `p` (two-sided), `p_holm` (over the rows of this table)
        and `effect` (difference / std, Cohen's d_z; NaN where std is 0). Intervals are not corrected.

    Raises:
        ValueError: a setting of `on` is not a column.
    """
    absent = [f for f in on if f not in replicates]
    if absent:
        raise ValueError(f"on: {', '.join(absent)} is not in the table")
    done = replicates[(replicates["status"] == "complete") & replicates[metric].notna()]
    done = done.dropna(subset=[f for f in on if f in _METHOD])
    sides = [done[done[by] == name] for name in (arm_a, arm_b)]
    extra = [f for f in varied(sides[0]) if f not in on and f != by]
    a = sides[0][["cell", "seed", metric, *on, *extra]]
    b = sides[1][["cell", "seed", metric, *on]]
    pairs = a.merge(b, on=["seed", *on], suffixes=("_a", "_b"))
    out = paired(pairs, metric)
    names = a[["cell", *on, *extra]].drop_duplicates("cell").rename(columns={"cell": "cell_a"})
    out = names.merge(out, on="cell_a")
    out["metric"] = metric
    out["effect"] = out["difference"] / out["std"].where(out["std"] > SPREAD)
    first = [*on, *extra, "cell_a", "cell_b", "metric"]
    return out[[*first, *(c for c in out if c not in first)]]


def paired(pairs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row a (`cell_a`, `cell_b`) of `pairs`, which has a row for each seed that both have, with the columns
    `<metric>_a` and `<metric>_b`; for the columns see `difference`.
    """
    a, b = (pd.to_numeric(pairs[f"{metric}_{side}"]).astype(float) for side in "ab")
    pairs = pairs.assign(_a=a, _b=b, _d=a - b)
    out = (
        pairs.groupby(["cell_a", "cell_b"], sort=False)
        .agg(
            n=("_d", "count"),
            mean_a=("_a", "mean"),
            mean_b=("_b", "mean"),
            difference=("_d", "mean"),
            std=("_d", "std"),
        )
        .reset_index()
    )
    out["low"], out["high"] = interval(out["difference"], out["std"], out["n"])
    out["p"] = p_value(out["difference"], out["std"], out["n"])
    out["p_holm"] = holm(out["p"])
    return out


def indistinguishable(
    replicates: pd.DataFrame,
    best: str | pd.Series,
    *,
    metric: str = "test_accuracy",
    correction: Literal["none", "holm"] = "none",
) -> pd.DataFrame:
    """Every other complete cell against the best one, paired over shared seeds.

    The best cell is chosen by validation accuracy and compared on the test set, so that the choice does not bias the
    comparison. `indistinguishable` means that the 95 % t interval of the paired difference contains 0, or that there is
    none, since every seed gives the same difference and nothing says how far that would vary. By default
    nothing corrects for the number of cells: of twenty cells as good as the best, one is expected to be told apart
    by chance. With `correction="holm"` a cell is told apart only where its Holm-adjusted p is below 0.05; with the
    two or three seeds of a small study that leaves hardly any.

    Args:
        replicates: `reader.replicates()`.
        best: a cell's id, or its row from `best_cell`.

    Returns:
        One row a complete cell that shares a seed with the best: `cell`, `n` (shared seeds), `difference` (the cell
        minus the best), `low`, `high`, `p`, `p_holm`, `indistinguishable`. With one shared seed nothing can be tested
        and `indistinguishable` is False.
    """
    best_id = best if isinstance(best, str) else str(best["cell"])
    return against(
        replicates, cells(replicates, metric), dict.fromkeys(replicates["cell"], best_id), metric, correction
    )


def against(
    replicates: pd.DataFrame,
    table: pd.DataFrame,
    best_of: Mapping[str, str],
    metric: str = "test_accuracy",
    correction: Literal["none", "holm"] = "none",
) -> pd.DataFrame:
    """`indistinguishable` for many best cells at once: every complete cell against the one that `best_of` names for it.

    Args:
        table: `cells` of these replicates. best_of: the best cell's id by cell; a cell that it does not name or that
            is its own best is left out.
    """
    complete = set(table.loc[table["status"] == "complete", "cell"])
    done = replicates.loc[replicates["cell"].isin(complete) & replicates[metric].notna(), ["cell", "seed", metric]]
    a = done.assign(best=done["cell"].map(best_of))
    a = a[a["best"].notna() & (a["best"] != a["cell"])]
    b = done.rename(columns={"cell": "best"})
    pairs = a.merge(b, on=["best", "seed"], suffixes=("_a", "_b")).rename(columns={"cell": "cell_a", "best": "cell_b"})
    out = paired(pairs, metric).rename(columns={"cell_a": "cell"})
    # Without a spread (see `intervals.interval`) nothing is told apart.
    inside = out["low"].isna() | ((out["low"] <= 0) & (out["high"] >= 0))
    if correction == "holm":
        inside = out["p_holm"].isna() | (out["p_holm"] >= 1 - LEVEL)
    out["indistinguishable"] = inside & (out["n"] >= 2)
    return out[["cell", "n", "difference", "low", "high", "p", "p_holm", "indistinguishable"]]


def marked(replicates: pd.DataFrame, metric: str = "test_accuracy", within: Sequence[str] = ()) -> pd.DataFrame:
    """`cells` with two more columns that figures read: `best` and `indistinguishable` (from the best), both bool.

    Args:
        within: conditions (label noise, model) of which each value has a best cell of its own; cells under different
            conditions are not rivals.
    """
    table = cells(replicates, metric)
    best = best_cells(table, within)
    table["best"] = table["cell"].isin(best["cell"])
    table["indistinguishable"] = False
    if best.empty:
        return table
    if within:
        group = table.groupby(list(within), dropna=False).ngroup()
        winner = dict(zip(group[best.index], best["cell"], strict=True))
        best_of = dict(zip(table["cell"], group.map(winner), strict=True))
    else:
        best_of = dict.fromkeys(table["cell"], best["cell"].iloc[0])
    same = against(replicates, table, best_of, metric)
    table["indistinguishable"] = table["cell"].isin(same.loc[same["indistinguishable"], "cell"])
    return table


def shared_conditions(table: pd.DataFrame, a: str, b: str, by: str = "optimiser") -> list[str]:
    """Settings on which cells of `a` and `b` have to agree to be compared: gamma where both use it, and every
    condition (label noise, model, learning rate, ...) that varies among them.
    """
    both = table[table[by].isin([a, b])]
    on = [f for f in varied(both) if f not in _METHOD]
    uses_gamma = "gamma" in both and both.groupby(by)["gamma"].count().reindex([a, b], fill_value=0).all()
    # A setting that only one of the two has is a part of the method; a missing value of one that both have (all
    # training images, no noise) is a condition like any other.
    on = [f for f in on if both.groupby(by)[f].count().reindex([a, b], fill_value=0).all()]
    return (["gamma"] if uses_gamma else []) + on


def paired_at_matched_gamma(
    replicates: pd.DataFrame, table: pd.DataFrame, a: str = "fsam", b: str = "sam"
) -> pd.DataFrame:
    """`difference` between the arms of two optimisers under equal conditions, one row a condition and pair of arms: of
    an arm's cells that share it (FSAM's etas), the one that validation accuracy would choose. Arms of one optimiser
    (two estimates of the Fisher information) are not pooled: `arm_a` and `arm_b` say whose cells a row compares.

    Choosing among several etas favours `a` a little on validation and not on the test set, where the difference is
    measured. Empty where the study has not both optimisers, or no arms of them at one gamma.
    """
    if "optimiser" not in table:
        return pd.DataFrame()
    arms = {name: list(dict.fromkeys(rows["arm"])) for name, rows in table.groupby("optimiser")}
    found = [
        rows
        for arm_a in arms.get(a, ())
        for arm_b in arms.get(b, ())
        if len(rows := _matched_arms(replicates, table, arm_a, arm_b))
    ]
    if not found:
        return pd.DataFrame()
    out = pd.concat(found, ignore_index=True)
    out["p_holm"] = holm(np.asarray(out["p"], dtype=float))
    return out


def _matched_arms(replicates: pd.DataFrame, table: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    on = shared_conditions(table, a, b, by="arm")
    rows = difference(replicates, a, b, on)
    done = table[table["status"] == "complete"]
    rows = rows[rows["cell_a"].isin(done["cell"]) & rows["cell_b"].isin(done["cell"])]
    for side in ("cell_a", "cell_b"):
        best = best_cells(done[done["cell"].isin(rows[side])], on)
        rows = rows[rows[side].isin(best["cell"])]
    # Numbers ascend; with names (models) among the conditions the study file's order stays.
    if on and all(is_numeric_dtype(rows[f]) for f in on):
        rows = rows.sort_values(on, kind="stable")
    return rows.reset_index(drop=True).assign(arm_a=a, arm_b=b)
