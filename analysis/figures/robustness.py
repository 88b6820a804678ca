"""Test accuracy against the length of a parameter perturbation (Figure 4 of the paper)."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.style import (
    INK,
    MARKERS,
    MUTED,
    arm_colours,
    banded,
    legend_below,
    panels,
    possible,
    quiet,
    seeds_of,
)

_DASH: dict[str, Any] = {"adversarial": "-", "random": "--"}


def robustness(
    curves: pd.DataFrame,
    titles: dict[str, str] | None = None,
    arms: list[Any] | None = None,
    chance: float | None = None,
) -> Figure:
    """A line an arm and direction, adversarial solid and random dashed, with its 95 % interval as a band.

    Args:
        curves: what `robustness.curves_of` returns, one cell an arm and panel, one kind of BatchNorm statistics.
        titles: panel title by cell id, panels in the order of their first cell; None: all in one panel.
        arms: every arm of the study, for the colours; None: those of `curves`.
        chance: accuracy of guessing, in [0, 1], drawn as a thin line.
    """
    titles = titles if titles is not None else {str(c): "" for c in curves["cell"]}
    arms = arms if arms is not None else list(dict.fromkeys(curves["arm"]))
    colours = arm_colours(arms)
    names = list(dict.fromkeys(titles.values()))
    figure, axes = panels(len(names)) if len(names) > 1 else panels(1, width=6.6, height=4.2)
    for ax, name in zip(axes, names, strict=True):
        for (cell, direction), rows in curves.groupby(["cell", "direction"], sort=False):
            if titles.get(str(cell)) != name:
                continue
            rows = rows.sort_values("alpha")
            look = _look(rows["arm"].iloc[0], str(direction), arms, colours)
            banded(ax, rows["alpha"], rows, 100.0, gid=f"{cell}:{direction}", **look)
        if chance is not None:
            ax.axhline(100 * chance, color=MUTED, linewidth=0.8, linestyle=":", gid="chance")
        ax.set(xlabel="alpha, length of the perturbation", ylabel="test accuracy (%)")
        ax.set_title(name, loc="left", fontsize=10)
        possible(ax)
        quiet(ax)
    legend_below(figure, _legend(curves, arms, colours, chance))
    return figure


def _look(arm: Any, direction: str, arms: list[Any], colours: dict[Any, str]) -> dict[str, Any]:
    return {
        "color": colours[arm],
        "linestyle": _DASH.get(direction, ":"),
        "marker": MARKERS[arms.index(arm) % len(MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.6 if direction == "adversarial" else 1.1,
    }


def _legend(curves: pd.DataFrame, arms: list[Any], colours: dict[Any, str], chance: float | None) -> list[Line2D]:
    handles = []
    for arm in [a for a in arms if (curves["arm"] == a).any()]:
        look = _look(arm, "adversarial", arms, colours)
        n = seeds_of(curves.loc[curves["arm"] == arm, "n"])
        handles.append(Line2D([], [], label=f"{arm} ({n})", **look))
    for direction in dict.fromkeys(curves["direction"]):
        word = {"adversarial": "along the gradient", "random": "in random directions"}.get(direction, direction)
        handles.append(Line2D([], [], color=INK, linestyle=_DASH.get(direction, ":"), label=word))
    if chance is not None:
        handles.append(
            Line2D([], [], color=MUTED, linewidth=0.8, linestyle=":", label=f"guessing ({100 * chance:g} %)")
        )
    return handles
