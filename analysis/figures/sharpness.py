"""Sharpness and curvature against test accuracy: a point a cell, a panel a quantity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from analysis.figures.style import MARKERS, MUTED, arm_colours, legend_below, panels, possible, quiet, seeds_of

_OUTCOME = {
    "test_accuracy": "test accuracy (%)",
    "generalisation_gap": "training less test accuracy (points)",
}


def sharpness_against_accuracy(
    points: pd.DataFrame, arms: list[Any] | None = None, *, notes: Mapping[str, str] | None = None
) -> Figure:
    """A scatter a quantity; a mark a cell, thin bars the 95 % intervals of both means, an arm a colour and shape.

    An axis that spans more than twentyfold is logarithmic.

    Args:
        points: what `sharpness.against_accuracy` returns.
        arms: every arm of the study, for the colours; None: those of `points`.
        notes: a line under the panel's title by quantity, for instance the rank correlation.
    """
    arms = arms if arms is not None else list(dict.fromkeys(points["arm"]))
    colours = arm_colours(arms)
    names = list(dict.fromkeys(points["quantity"]))
    outcome = str(points["outcome"].iloc[0]) if len(points) else "test_accuracy"
    figure, axes = panels(max(1, len(names)), width=4.2, height=3.5, across=2 if len(names) in (2, 4) else 3)
    for ax, name in zip(axes, names, strict=False):
        own = points[points["quantity"] == name]
        values = own["x"].to_numpy(dtype=float)
        if len(values) and values.min() > 0 and values.max() > 20 * values.min():
            ax.set_xscale("log")
            ax.xaxis.set_minor_formatter(NullFormatter())
        for i, arm in enumerate(arms):
            rows = own[own["arm"] == arm]
            if rows.empty:
                continue
            x, y = rows["x"].to_numpy(dtype=float), 100 * rows["y"].to_numpy(dtype=float)
            bars: dict[str, Any] = {"color": colours[arm], "linewidth": 0.7, "alpha": 0.45, "zorder": 1}
            ax.hlines(y, rows["x_low"], rows["x_high"], **bars)
            ax.vlines(x, 100 * rows["y_low"], 100 * rows["y_high"], **bars)
            look: dict[str, Any] = {"color": colours[arm], "marker": MARKERS[i % len(MARKERS)], "s": 26, "zorder": 2}
            ax.scatter(x, y, edgecolors="white", linewidths=0.5, gid=f"{name}:{arm}", **look)
        if len(own):
            _fit(ax, values, 100 * own["y"].to_numpy(dtype=float))
        if ax.get_xscale() == "linear":
            ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set(xlabel=name, ylabel=_OUTCOME.get(outcome, outcome))
        if notes and name in notes:
            ax.set_title(notes[name], loc="left", fontsize=8.5, color=MUTED)
        quiet(ax)
    handles = []
    for i, arm in enumerate(arms):
        own = points[points["arm"] == arm]
        if len(own):
            cells = own["cell"].nunique()
            label = f"{arm} ({cells} cell{'s' if cells > 1 else ''}, {seeds_of(own['y_n'])})"
            mark: dict[str, Any] = {"color": colours[arm], "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
            handles.append(Line2D([], [], label=label, **mark))
    legend_below(figure, handles, most=4)
    return figure


def _fit(ax: Any, x: np.ndarray, y: np.ndarray) -> None:
    """The points decide what is seen; an interval of two seeds may leave the picture."""
    across, up = max(np.ptp(x), 1e-9 + 0.02 * abs(x).max()), max(np.ptp(y), 0.5)
    ax.set_ylim(y.min() - 0.15 * up, y.max() + 0.15 * up)
    possible(ax)
    if ax.get_xscale() == "log":
        ax.set_xlim(x.min() / 1.5, x.max() * 1.5)
    else:
        ax.set_xlim(x.min() - 0.2 * across, x.max() + 0.2 * across)
