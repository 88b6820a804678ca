"""Curvature and sharpness of trained networks, over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.intervals import interval

#: The measures that this module summarises: what each measures, and what tells its rows apart. Sharpness has a gamma
#: and an eta of its own, which are not the cell's.
VALUES = {"curvature": ("hessian_trace", "top_eigenvalue", "largest_magnitude"), "sharpness": ("sharpness", "loss")}
PROBES = {"curvature": (), "sharpness": ("probe_metric", "probe_gamma", "probe_eta", "per_batch")}


def over_seeds(measured: pd.DataFrame, cells: pd.DataFrame, name: str) -> pd.DataFrame:
    """A measure's numbers as means over the seeds of complete cells.

    Args:
        measured: `reader.measures(name)`.
        cells: what `tables.cells` returns.
        name: `curvature` or `sharpness`.

    Returns:
        In the order of `cells`, tidy: `cell`, `arm`, for sharpness the measure's own `probe_metric`, `probe_gamma`,
        `probe_eta` and `per_batch`, then `quantity` (a column of the measure), `mean`, `std`, `low`, `high` (95 % t
        over seeds), `n` (seeds with a finite value) and for curvature `converged` (seeds whose eigenvalue converged).
    """
    probes, values = list(PROBES[name]), [v for v in VALUES[name] if v in measured]
    columns = ["cell", "arm", *probes, "quantity", "mean", "std", "low", "high", "n"]
    done = list(cells.loc[cells["status"] == "complete", "cell"]) if len(cells) else []
    rows = measured[measured["cell"].isin(done)] if len(measured) else measured
    if rows.empty or not values:
        return pd.DataFrame(columns=columns)
    rows = rows.rename(columns={"metric": "probe_metric", "gamma": "probe_gamma", "eta": "probe_eta"})
    for probe in probes:
        if probe not in rows:
            rows[probe] = None
    out = _mean_over_seeds(rows, ["cell", "arm", *probes], values)
    if "converged" in rows:
        out["converged"] = out["cell"].map(rows["converged"].astype(bool).groupby(rows["cell"]).sum())
    place = {cell: i for i, cell in enumerate(cells["cell"])}
    return out.sort_values("cell", key=lambda s: s.map(place), kind="stable").reset_index(drop=True)


def _mean_over_seeds(rows: pd.DataFrame, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    tidy = rows.melt(id_vars=list(by), value_vars=list(values), var_name="quantity", value_name="value")
    tidy["value"] = pd.to_numeric(tidy["value"]).astype(float).replace([np.inf, -np.inf], np.nan)
    out = tidy.groupby([*by, "quantity"], dropna=False, sort=False)["value"].agg(["mean", "std", "count"])
    out = out.rename(columns={"count": "n"}).reset_index()
    out["low"], out["high"] = interval(out["mean"], out["std"], out["n"])
    return out
