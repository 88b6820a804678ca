"""Figures of a search: validation accuracy along each axis, and the course of the best."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import INK, LINES, MARKERS, arm_colours, legend_below, new_axes, panels, quiet
from analysis.words import setting


def slices(cells: pd.DataFrame, axes: dict[str, bool], arms: list[Any] | None = None) -> Figure:
    """A panel an axis: mean validation accuracy of each complete cell at its value, one colour an arm.

    Cells that were stopped, diverged or failed have no comparable accuracy; short ticks on the lower edge say where
    they were sampled. Each arm's best cell is ringed.

    Args:
        cells: what `tables.cells` returns; with a column `leader`, the cells to be ringed.
        axes: the search's axes and whether each is logarithmic; axes that no cell uses are left out.
        arms: every arm of the study, for the colours; None: those of `cells`.
    """
    axes = {name: log for name, log in axes.items() if name in cells and cells[name].notna().any()}
    arms = arms or list(dict.fromkeys(cells["arm"]))
    colours = arm_colours(arms)
    figure, made = panels(max(1, len(axes)), width=4.0, across=2 if len(axes) in (2, 4) else 3)
    known = 100 * cells.loc[cells["status"] == "complete", "validation_mean"].dropna()
    low, high = (known.min(), known.max()) if len(known) else (0.0, 100.0)
    room = max(high - low, 0.5)
    for ax, (name, log) in zip(made, axes.items(), strict=False):
        used = cells[cells[name].notna()]
        place = _places(used[name])
        for i, arm in enumerate(arms):
            own = used[used["arm"] == arm]
            done = own[(own["status"] == "complete") & own["validation_mean"].notna()]
            look: dict[str, Any] = {"color": colours[arm], "marker": MARKERS[i % len(MARKERS)], "linewidths": 0}
            ax.scatter(place(done[name]), 100 * done["validation_mean"], s=24, alpha=0.75, gid=f"{name}:{arm}", **look)
            if "leader" in done:
                best = done[done["leader"]]
                ring: dict[str, Any] = {"facecolors": "none", "edgecolors": colours[arm], "linewidths": 1.4}
                ax.scatter(place(best[name]), 100 * best["validation_mean"], s=95, gid=f"best:{name}:{arm}", **ring)
            lost = own[own["status"].isin(["stopped", "diverged", "failed"])]
            foot: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "gid": f"stopped:{name}:{arm}"}
            foot_at = 0.005 + 0.03 * i
            ax.vlines(place(lost[name]), foot_at, foot_at + 0.025, color=colours[arm], linewidth=1.0, alpha=0.8, **foot)
        if log and pd.api.types.is_numeric_dtype(used[name]):
            ax.set_xscale("log")
        elif not pd.api.types.is_numeric_dtype(used[name]):
            levels = list(dict.fromkeys(used[name].map(setting)))
            ax.set_xticks(range(len(levels)), levels)
        ax.set_ylim(low - (0.08 + 0.045 * len(arms)) * room, high + 0.08 * room)
        ax.set(xlabel=name, ylabel="validation accuracy (%)")
        quiet(ax)
    handles = []
    for i, arm in enumerate(arms):
        own = cells[cells["arm"] == arm]
        label = f"{arm} ({int((own['status'] == 'complete').sum())} of {len(own)} complete)"
        look = {"color": colours[arm], "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
        handles.append(Line2D([], [], label=label, **look))
    if "leader" in cells:
        handles.append(_mark("o", "best of its arm", markerfacecolor="none", markersize=9))
    if cells["status"].isin(["stopped", "diverged", "failed"]).any():
        handles.append(_mark("|", "stopped, diverged or failed: where, no value"))
    legend_below(figure, handles, most=3)
    return figure


def _mark(marker: str, label: str, **look: Any) -> Line2D:
    return Line2D([], [], color=INK, marker=marker, linestyle="none", label=label, **look)


def _places(values: pd.Series) -> Any:
    """Where a value stands: itself where it is a number, else its place among the names that occur."""
    if pd.api.types.is_numeric_dtype(values):
        return lambda v: v.to_numpy(dtype=float)
    index = {name: i for i, name in enumerate(dict.fromkeys(values.map(setting)))}
    return lambda v: v.map(setting).map(index).to_numpy(dtype=float)


def search_course(course: pd.DataFrame, arms: list[Any] | None = None, ax: Axes | None = None) -> Axes:
    """The best validation accuracy so far against the number of cells that have ended, a step line an arm; dots are
    the complete cells.

    Args:
        course: what `search.course` returns.
        arms: every arm of the study, for the colours; None: those of `course`.
    """
    ax = ax or new_axes(8.8, 3.9)
    arms = arms or list(dict.fromkeys(course["arm"]))
    colours = arm_colours(arms)
    for i, arm in enumerate(arms):
        rows = course[course["arm"] == arm]
        if rows.empty:
            continue
        complete = rows[rows["complete"]]
        label = f"{arm} ({len(complete)} of {len(rows)} complete)"
        best = 100 * rows["best_so_far"].to_numpy(dtype=float)
        look: dict[str, Any] = {"color": colours[arm], "linestyle": LINES[i % len(LINES)]}
        ax.step(rows["ended"], best, where="post", label=label, gid=f"course:{arm}", **look)
        spot: dict[str, Any] = {"color": colours[arm], "s": 14, "alpha": 0.7, "linewidths": 0}
        ax.scatter(complete["ended"], 100 * complete["validation_mean"], marker=MARKERS[i % len(MARKERS)], **spot)
    ax.set(xlabel="cells that have ended", ylabel="validation accuracy (%)\nbest so far; dots: complete cells")
    values = 100 * course["validation_mean"].dropna()
    if len(values) and np.ptp(course["best_so_far"].dropna()) > 0:
        # What is far below every best is not what this figure is about.
        floor = 100 * course["best_so_far"].min()
        ax.set_ylim(bottom=max(ax.get_ylim()[0], floor - 0.5 * (values.max() - floor) - 1))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    quiet(ax)
    # Beside the axes: dots are everywhere.
    ax.legend(
        frameon=False, fontsize=8.5, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0
    )
    return ax
