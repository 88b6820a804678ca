"""Diagnostics of training by epoch: where Fisher SAM's probe points, how far it reaches, what was skipped."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.tables import curves

#: In the order of their panels: the columns of a history that say how training went rather than how well.
DIAGNOSTICS = ("cosine_to_sam", "eps_norm", "eta_vanished", "skipped_steps", "lr")
#: A cosine above this is SAM's direction for practical purposes: an angle below 2.6 degrees.
SAME_DIRECTION = 0.999


def diagnostics(history: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Mean of each diagnostic over the seeds by epoch.

    Args:
        history: `reader.history()`; a diagnostic's value is its mean over the watched steps of the epoch.
        cells: what `tables.cells` returns, or the rows of it that are to be followed.

    Returns:
        As `tables.curves`, below each other for each of `DIAGNOSTICS` that any of the cells has; `metric` is its name.
        Rows without a finite value (SGD has no probe) are left out.
    """
    mine = history[history["cell"].isin(cells["cell"])]
    parts = []
    for metric in DIAGNOSTICS:
        if metric in mine:
            found = curves(mine, cells, metric)
            parts.append(found[found["n"] > 0])
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["cell", "arm", "epoch", "metric"])


def direction(history: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """How far each Fisher SAM cell's probe leaves SAM's direction over the whole of its training.

    Returns:
        One row a complete Fisher SAM cell with a finite cosine: `cell`, `arm`, `gamma`, `eta`, `n` (seeds), `epochs`,
        `mean` (over seeds and epochs), `least` (of any seed and epoch) and `same`: whether `least` is above
        `SAME_DIRECTION`.
    """
    columns = ["cell", "arm", "gamma", "eta", "n", "epochs", "mean", "least", "same"]
    if "cosine_to_sam" not in history or "optimiser" not in cells:
        return pd.DataFrame(columns=columns)
    fisher = cells[(cells["optimiser"] == "fsam") & (cells["status"] == "complete")]
    rows = history[history["cell"].isin(fisher["cell"])]
    rows = rows.assign(cosine=pd.to_numeric(rows["cosine_to_sam"]).astype(float))
    rows = rows[np.isfinite(rows["cosine"])]
    found = rows.groupby("cell", sort=False).agg(
        n=("seed", "nunique"), epochs=("epoch", "nunique"), mean=("cosine", "mean"), least=("cosine", "min")
    )
    named = fisher[[c for c in ("cell", "arm", "gamma", "eta") if c in fisher]]
    out = named.merge(found.reset_index(), on="cell")
    out["same"] = out["least"] > SAME_DIRECTION
    return out
