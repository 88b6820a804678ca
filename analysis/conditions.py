"""Methods side by side, condition by condition: a row a backbone, a data set or a rate of label noise, a column an arm.

Tables 1, 3 and 4 of the paper have this form. Where an arm has several cells under one condition (a gamma axis), the
one that validation accuracy chooses stands for it; test accuracy chooses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from analysis.compare import against, paired
from analysis.layout import CONDITIONS
from analysis.tables import best_cells, cells
from analysis.words import absent


def chosen(table: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The cell of each arm under each condition.

    Args:
        table: what `tables.cells` returns.
        conditions: settings; none of them gives one row an arm.

    Returns:
        In the order of `table`, one row of it a condition and arm that has cells: the best complete one by validation,
        or where none is complete the first, whose own `status` says so. Two more columns: `cells_complete` of
        `cells_planned` cells.
    """
    by = ["arm", *conditions]
    groups = table.groupby(by, dropna=False, sort=False)
    best = best_cells(table, by)
    complete = (table["status"] == "complete").groupby([table[f] for f in by], dropna=False, sort=False)
    counted = table.assign(cells_complete=complete.transform("sum"), cells_planned=groups["cell"].transform("size"))
    first = table.index.isin(groups.head(1).index)
    unknown = first & (counted["cells_complete"] == 0).to_numpy()
    return counted[table.index.isin(best.index) | unknown].reset_index(drop=True)


def by_condition(choice: pd.DataFrame, conditions: Sequence[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """The values of `conditions` and the rows of `choice` that have them, in order."""
    if not conditions:
        yield {}, choice
        return
    order = [f for f in conditions if pd.api.types.is_numeric_dtype(choice[f])]
    # Numbers ascend; names stay in the order of the study file.
    ordered = choice.sort_values(order, kind="stable") if len(order) == len(conditions) else choice
    for _, rows in ordered.groupby(list(conditions), dropna=False, sort=False):
        yield {f: rows[f].iloc[0] for f in conditions}, rows


def differences(
    replicates: pd.DataFrame, choice: pd.DataFrame, conditions: Sequence[str], metric: str = "test_accuracy"
) -> pd.DataFrame:
    """Each Fisher SAM arm minus every other arm under the same condition, each at its chosen cell, paired over seeds.

    Args:
        replicates: `reader.replicates()`.
        choice: what `chosen` returns. Incomplete cells are not compared.

    Returns:
        One row a condition and pair: the conditions, `arm_a`, `arm_b`, then as `compare.difference`; `p_holm` over all
        rows. Gammas may differ: each arm is at its own setting. Arms under other conditions (an arm with label noise
        of its own) are not compared.
    """
    done = choice[choice["status"] == "complete"]
    values = replicates.loc[replicates["status"] == "complete", ["cell", "seed", metric]].dropna()
    names = []
    for condition, here in by_condition(done, conditions):
        fisher = list(here.loc[here["optimiser"] == "fsam", "arm"]) if "optimiser" in here else []
        cell_of = dict(zip(here["arm"], here["cell"], strict=True))
        settings_of = {row["arm"]: [row[f] for f in CONDITIONS if f in here] for _, row in here.iterrows()}
        for i, a in enumerate(fisher):
            others = [arm for arm in cell_of if arm != a and arm not in fisher[:i]]
            rows = [(a, b, cell_of[a], cell_of[b]) for b in others if _alike(settings_of[a], settings_of[b])]
            names.append(pd.DataFrame(rows, columns=["arm_a", "arm_b", "cell_a", "cell_b"]).assign(**condition))
    if not names or values.empty:
        return pd.DataFrame()
    compared = pd.concat(names, ignore_index=True)
    left, right = (values.rename(columns={"cell": f"cell_{side}", metric: f"{metric}_{side}"}) for side in "ab")
    pairs = compared[["cell_a", "cell_b"]].merge(left, on="cell_a").merge(right, on=["cell_b", "seed"])
    out = compared.merge(paired(pairs, metric), on=["cell_a", "cell_b"]).assign(metric=metric)
    first = [*conditions, "arm_a", "arm_b", "cell_a", "cell_b", "metric"]
    return out[[*first, *(c for c in out if c not in first)]]


def _alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all((absent(a) and absent(b)) or a == b for a, b in zip(one, other, strict=True))


def also(replicates: pd.DataFrame, choice: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Further results of the chosen cells, summarised as `mean` is: tidy, one row a cell and metric that it has.

    Returns:
        The columns of `choice`, with `metric`, `mean`, `std`, `low`, `high`, `n` of each metric.
    """
    mine = replicates[replicates["cell"].isin(choice["cell"])]
    parts = []
    for metric in metrics:
        if metric not in mine or not mine[metric].notna().any():
            continue
        # Of cells that diverged or failed the seeds that survived would flatter them.
        own = cells(mine, metric)
        own = own[own["status"].isin(["complete", "partial"])]
        own = own.set_index("cell")[["metric", "mean", "std", "low", "high", "n"]]
        left = choice.drop(columns=list(own.columns))
        parts.append(left.merge(own[own["n"] > 0], left_on="cell", right_index=True))
    return pd.concat(parts, ignore_index=True) if parts else choice.iloc[:0]


def alike(
    replicates: pd.DataFrame, table: pd.DataFrame, choice: pd.DataFrame, conditions: Sequence[str]
) -> pd.DataFrame:
    """How firmly the choice stands: every complete cell of an arm and condition against the chosen one.

    Returns:
        Rows of `table`, those of `choice` left out, with `indistinguishable`: whether the paired 95 % t interval of the
        difference in test accuracy contains 0 (`compare.indistinguishable`).
    """
    by = ["arm", *conditions]
    done = table[table["status"] == "complete"].drop(columns=["indistinguishable"], errors="ignore")
    best = choice.loc[choice["status"] == "complete", ["cell", *by]]
    rivals = done[["cell", *by]].merge(best, on=by, suffixes=("", "_best"))
    compared = against(replicates, table, dict(zip(rivals["cell"], rivals["cell_best"], strict=True)))
    others = done[~done["cell"].isin(best["cell"])]
    same = others["cell"].isin(compared.loc[compared["indistinguishable"], "cell"])
    return others.assign(indistinguishable=same).reset_index(drop=True)
