"""Every Fisher SAM cell minus SAM's of the same gamma: the frame of the difference map."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.compare import difference, shared_conditions
from analysis.intervals import LEVEL, holm
from analysis.tables import RECIPE_FIELDS

_COMPARABLE = ("complete", "partial")


def matched_differences(
    replicates: pd.DataFrame, cells: pd.DataFrame, a: str = "fsam", b: str = "sam", metric: str = "test_accuracy"
) -> pd.DataFrame:
    """`compare.difference` between all cells of the arms of two optimisers at equal gamma and equal conditions, without
    a choice among them. Cells that diverged or were stopped are left out: the seeds that survived would flatter them.

    Args:
        replicates: `reader.replicates()`.
        cells: what `tables.cells` returns for them.
        a, b: optimisers.

    Returns:
        As `compare.difference`, one row a pair of cells, with the other settings of `cell_a`, `arm_a`, `arm_b`,
        `excludes_zero` (the 95 % interval does), `excludes_zero_holm` and `p_holm` over the rows of the pair of arms,
        which are one family. Empty where the study has not both optimisers, or no gamma that both have.
    """
    if "optimiser" not in cells or "gamma" not in cells:
        return pd.DataFrame()
    usable = cells.loc[cells["status"].isin(_COMPARABLE), "cell"]
    arms = {name: list(dict.fromkeys(rows["arm"])) for name, rows in cells.groupby("optimiser")}
    parts = []
    for arm_a in arms.get(a, ()):
        for arm_b in arms.get(b, ()):
            on = shared_conditions(cells, arm_a, arm_b, by="arm")
            if "gamma" not in on:
                continue
            rows = difference(replicates, arm_a, arm_b, on, metric=metric)
            rows = rows[rows["cell_a"].isin(usable) & rows["cell_b"].isin(usable)]
            if rows.empty:
                continue
            # SAM at one gamma in several cells (a setting that Fisher SAM does not have) is no single reference.
            if rows["cell_a"].duplicated().any():
                continue
            more = [f for f in RECIPE_FIELDS if f in cells and f not in rows]
            rows = rows.merge(cells[["cell", *more]].rename(columns={"cell": "cell_a"}), on="cell_a")
            rows = rows.assign(arm_a=arm_a, arm_b=arm_b, p_holm=holm(np.asarray(rows["p"], dtype=float)))
            parts.append(rows)
    if not parts:
        return pd.DataFrame()
    out = pd.concat(parts, ignore_index=True)
    out["excludes_zero"] = (out["low"] > 0) | (out["high"] < 0)
    out["excludes_zero_holm"] = out["p_holm"] < 1 - LEVEL
    return out
