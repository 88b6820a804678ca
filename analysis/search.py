"""What a search found: its axes, its course, its best cells. Sampled cells make no grid, so there is no map of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.tables import by_rank

#: Ends of a cell. A search's budget counts cells, whether or not they were trained to their last epoch.
_ENDED = ("complete", "stopped", "diverged", "failed")


def search_axes(spec: Mapping[str, Any]) -> dict[str, bool]:
    """The axes of a study's search and whether each is logarithmic; none for a study without a search."""
    space = (spec.get("search") or {}).get("space") or {}
    return {name: bool((axis or {}).get("log")) for name, axis in space.items()}


def course(cells: pd.DataFrame) -> pd.DataFrame:
    """The best validation accuracy so far of each arm, by how many of its cells have ended.

    Args:
        cells: what `tables.cells` returns, in the order in which they were chosen.

    Returns:
        One row an ended cell: `cell`, `arm`, `ended` (how many of the arm's have, this one included; by the order in
        which they were chosen, which is not exactly that of their ends), `complete` (whether it is), `validation_mean`
        (complete cells only) and `best_so_far` (over complete cells; NaN before the first).
    """
    rows = cells.loc[cells["status"].isin(_ENDED), ["cell", "arm", "status", "validation_mean"]].copy()
    rows["complete"] = rows["status"] == "complete"
    rows["validation_mean"] = pd.to_numeric(rows["validation_mean"]).astype(float).where(rows["complete"])
    rows["ended"] = rows.groupby("arm").cumcount() + 1
    rows["best_so_far"] = rows.groupby("arm")["validation_mean"].cummax()
    rows["best_so_far"] = rows.groupby("arm")["best_so_far"].ffill()
    return rows.drop(columns="status").reset_index(drop=True)


def best_of_each(cells: pd.DataFrame, most: int = 3) -> pd.DataFrame:
    """The `most` complete cells of each arm with the highest mean validation accuracy, best first, arms in order."""
    best = cells.loc[by_rank(cells)]
    place = {arm: i for i, arm in enumerate(dict.fromkeys(cells["arm"]))}
    best = best.sort_values("arm", key=lambda arms: arms.map(place), kind="stable")
    return best.groupby("arm", sort=False).head(most)
