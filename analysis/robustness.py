"""Test accuracy of trained networks whose parameters are perturbed (section 5.4, Figure 4), over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.intervals import interval

#: Classes of the data sets that have names; guessing gets one in so many right.
_CLASSES = {
    "digits": 10, "cifar10": 10, "cifar100": 100, "stanford_cars": 196, "flowers102": 102, "imagenet": 1000,
}  # fmt: skip


def curves_of(perturbation: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Accuracy against the length of the perturbation, for complete cells only.

    A seed's random directions are averaged first; seeds are what differs between trainings, so that `n` counts seeds
    and intervals are over seeds (95 % t).

    Args:
        perturbation: `reader.measures("perturbation")`.
        cells: what `tables.cells` or `compare.marked` returns.

    Returns:
        In the order of `cells`, one row a cell, `direction` (adversarial, random) and `alpha` (length of the
        perturbation, in the parameters' units): `cell`, `arm`, `direction`, `batch_norm`, `alpha`, `mean`, `low`,
        `high` (test accuracy), `n`, `draws` (directions a seed), and `lost`, `lost_low`, `lost_high` (accuracy at alpha
        = 0 minus that here, paired within each seed; NaN where alpha = 0 was not measured). Empty without rows.
    """
    columns = ["cell", "arm", "direction", "batch_norm", "alpha", "mean", "low", "high", "n", "draws"]
    columns += ["lost", "lost_low", "lost_high"]
    done = list(cells.loc[cells["status"] == "complete", "cell"]) if len(cells) else []
    if perturbation.empty or not perturbation["cell"].isin(done).any():
        return pd.DataFrame(columns=columns)
    rows = perturbation[perturbation["cell"].isin(done)].copy()
    if "batch_norm" not in rows:
        rows["batch_norm"] = "kept"
    rows["value"] = pd.to_numeric(rows["test_accuracy"]).replace([np.inf, -np.inf], np.nan)
    point = ["cell", "direction", "batch_norm", "alpha"]
    seeds = rows.groupby([*point, "seed"], sort=False).agg(value=("value", "mean"), draws=("draw", "nunique"))
    seeds = seeds.reset_index()
    start = seeds[seeds["alpha"] == 0].groupby(["cell", "batch_norm", "seed"])["value"].mean().rename("start")
    seeds = seeds.merge(start.reset_index(), on=["cell", "batch_norm", "seed"], how="left")
    seeds["lost_value"] = seeds["start"] - seeds["value"]
    out = seeds.groupby(point, sort=False).agg(
        mean=("value", "mean"), std=("value", "std"), n=("value", "count"), draws=("draws", "max"),
        lost=("lost_value", "mean"), lost_std=("lost_value", "std"), lost_n=("lost_value", "count"),
    ).reset_index()  # fmt: skip
    out["low"], out["high"] = interval(out["mean"], out["std"], out["n"])
    out["lost_low"], out["lost_high"] = interval(out["lost"], out["lost_std"], out["lost_n"])
    out["arm"] = out["cell"].map(cells.set_index("cell")["arm"])
    place = {cell: i for i, cell in enumerate(cells["cell"])}
    out = out.sort_values(
        ["cell", "direction", "batch_norm", "alpha"], key=lambda s: s.map(place) if s.name == "cell" else s
    )
    return out[columns].reset_index(drop=True)


def half_lost(curve: pd.DataFrame) -> float | None:
    """The first measured alpha at which less than half of the accuracy at alpha = 0 is left; None where it is not lost.

    Args:
        curve: the rows of `curves_of` of one cell and direction.
    """
    below = curve.loc[curve["mean"] < curve["lost"], "alpha"]
    return None if below.empty else float(below.min())


def chance(cells: pd.DataFrame) -> float | None:
    """The accuracy of guessing among equally frequent classes; None where the data set's number of them is not known or
    several data sets have different ones.
    """
    names = set(cells["dataset"].dropna()) if "dataset" in cells else set()
    classes = {_CLASSES.get(name) for name in names}
    known = classes.pop() if len(classes) == 1 else None
    return None if known is None else 1 / known
