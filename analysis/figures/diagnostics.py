"""Diagnostics over epochs: a small panel each, a line an arm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import (
    LINES,
    MARKERS,
    MUTED,
    arm_colours,
    arm_handles,
    banded,
    legend_below,
    panels,
    quiet,
)

_TITLE = {
    "cosine_to_sam": "cosine of the probe to SAM's",
    "eps_norm": "norm of eps",
    "eta_vanished": "share of parameters whose eta f vanishes",
    "skipped_steps": "skipped steps an epoch",
    "lr": "learning rate",
}


def diagnostics(frame: pd.DataFrame, arms: list[Any] | None = None) -> Figure:
    """A panel a diagnostic: mean over the seeds by epoch with its 95 % interval, one cell an arm.

    Lines of different arms that fall together stay apart by their marks, which stand at different epochs.

    Args:
        frame: what `diagnostics.diagnostics` returns.
        arms: every arm of the study, for the colours; None: those of `frame`.
    """
    arms = arms if arms is not None else list(dict.fromkeys(frame["arm"]))
    colours = arm_colours(arms)
    metrics = list(dict.fromkeys(frame["metric"]))
    figure, axes = panels(max(1, len(metrics)), width=3.9, height=2.9, across=2 if len(metrics) in (2, 4) else 3)
    for ax, metric in zip(axes, metrics, strict=False):
        own = frame[frame["metric"] == metric]
        for cell, rows in own.groupby("cell", sort=False):
            rows = rows.sort_values("epoch")
            i = arms.index(rows["arm"].iloc[0])
            every = max(1, len(rows) // 5, min(len(arms), len(rows)))
            look: dict[str, Any] = {"color": colours[arms[i]], "linestyle": LINES[i % len(LINES)]}
            look |= {"marker": MARKERS[i % len(MARKERS)], "markersize": 4, "linewidth": 1.4}
            look["markevery"] = (i * every // len(arms), every)
            banded(ax, rows["epoch"], rows, gid=f"{metric}:{cell}", **look)
        if metric in ("eta_vanished", "cosine_to_sam"):
            _bounded(ax, own)
        # A steady value is drawn as one: rounding must not fill the panel.
        low, high = own["mean"].min(), own["mean"].max()
        if high - low < 1e-3 * max(abs(high), 1e-12) and metric not in ("eta_vanished", "cosine_to_sam"):
            middle = (low + high) / 2
            ax.set_ylim(middle - max(0.1 * abs(middle), 1e-6), middle + max(0.1 * abs(middle), 1e-6))
        ax.set_title(_TITLE.get(metric, metric.replace("_", " ")), loc="left", fontsize=9.5)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.tick_params(labelsize=8.5, labelcolor=MUTED)
        quiet(ax)
    handles = arm_handles(frame, arms, 4)
    legend_below(figure, handles)
    return figure


def _bounded(ax: Any, rows: pd.DataFrame) -> None:
    """Shares and cosines end at 1: an interval does not make them larger, and 0.9999 is not a drop."""
    values = rows["mean"].to_numpy(dtype=float)
    room = max(1e-3, 0.08 * float(np.ptp(values)) if len(values) else 0.0)
    ax.set_ylim(max(values.min(initial=1.0) - room, -room - 1.0), min(values.max(initial=0.0), 1.0) + 0.3 * room)
