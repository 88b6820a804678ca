"""One look for every figure: colours that a colour-blind reader and a grey printer tell apart, and files.

Figures are made without pyplot: no backend is chosen, nothing is kept alive, and a notebook still shows them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.tables import whole

#: Perceptually uniform, monotone in lightness: the order survives a grey printer.
COLOURMAP = "cividis"
#: Values below the map's range: darker than its lowest colour, so that they do not pass for it.
UNDER = "#000000"
#: Lines on white: viridis without its palest end. Cividis' middle is the grey that means "not used".
LINEMAP = "viridis"
INK = "#222222"
MUTED = "#6b6b6b"
#: Outline of the best cell: far in hue and lightness from both ends of the map.
MARK = "#d1381d"
#: Okabe and Ito's palette, whose members differ for every common colour blindness; line styles differ as well.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))

MARKERS = "osD^v<>"

#: Face, hatch and edge of a cell without a comparable value. Lightness alone tells "missing" from the rest.
STATUS_STYLE: dict[str, dict[str, Any]] = {
    "stopped": {"facecolor": "#e4e4e4", "hatch": "///", "edgecolor": "#8a8a8a"},
    "diverged": {"facecolor": "#ffffff", "hatch": "xxx", "edgecolor": "#4a4a4a"},
    "failed": {"facecolor": "#ffffff", "hatch": "++", "edgecolor": "#8a8a8a"},
    "running": {"facecolor": "#f4f4f4", "hatch": "..", "edgecolor": "#8a8a8a"},
    "missing": {"facecolor": "#ffffff", "hatch": None, "edgecolor": "#b0b0b0"},
    "unmeasured": {"facecolor": "#ffffff", "hatch": "--", "edgecolor": "#b0b0b0"},
}

_RC: Any = {"svg.fonttype": "none", "svg.hashsalt": "study", "hatch.linewidth": 0.6}


def new_axes(width: float, height: float) -> Axes:
    """Axes on a figure of its own, sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def ink_on(colour: Any) -> str:
    """Black or white, whichever the WCAG contrast ratio favours on `colour`."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour[:3]))
    luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"


def panels(count: int, *, width: float = 4.2, height: float = 3.4, across: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes of the given size in inches, at most `across` in a row."""
    columns = max(1, min(count, across))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def arm_colours(arms: Sequence[Any]) -> dict[Any, str]:
    """A colour an arm, by its place in the study, so that an arm has one colour in all figures of a report."""
    return {arm: PALETTE[i % len(PALETTE)] for i, arm in enumerate(dict.fromkeys(arms))}


def banded(ax: Axes, x: Any, rows: Any, scale: float = 1.0, **look: Any) -> None:
    """A line of `rows["mean"]` over `x` with the interval of each mean as a band where there is one."""
    ax.plot(x, rows["mean"].to_numpy(dtype=float) * scale, **look)
    band(ax, x, rows, scale, color=look.get("color"))


def band(
    ax: Axes,
    x: Any,
    rows: Any,
    scale: float = 1.0,
    *,
    color: Any,
    alpha: float = 0.11,
    stepped: bool = False,
) -> None:
    """The interval from `rows["low"]` to `rows["high"]`, filled; one of two seeds is left out, and that is said.

    With one degree of freedom it reaches thirteen times as far as the seeds themselves: the least certain interval
    would be the largest thing in the picture. The tables have it.
    """
    low, high = (rows[c].to_numpy(dtype=float) * scale for c in ("low", "high"))
    two = rows["n"].to_numpy() == 2 if "n" in rows else np.zeros(len(rows), dtype=bool)
    step: Any = "post" if stepped else None
    if not two.all():
        ax.fill_between(x, low, high, where=~two, color=color, alpha=alpha, linewidth=0, zorder=1, step=step)
    if (two & np.isfinite(low)).any() and not any(text.get_gid() == "two seeds" for text in ax.texts):
        place: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "bottom"}
        said = "intervals of two seeds are not drawn"
        ax.text(0.99, 0.01, said, fontsize=7.5, color=MUTED, gid="two seeds", **place)


def possible(ax: Axes) -> None:
    """With two seeds an interval can reach far beyond what an accuracy can be; an axis in per cent does not follow."""
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -1.0), min(high, 101.0))


def legend_below(figure: Figure, handles: Sequence[Any], most: int = 8) -> None:
    """One legend under all panels, in as many columns as the figure's width bears."""
    if handles:
        columns = max(1, min(len(handles), most, int(figure.get_figwidth() // 1.75)))
        columns = -(-len(handles) // -(-len(handles) // columns))  # rows of equal length
        figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)


def arm_handles(frame: pd.DataFrame, arms: Sequence[Any], size: float) -> list[Line2D]:
    """A legend's entry for each arm that `frame` has, by its place in the study; marks of `size` points, n of `n`."""
    colours, handles = arm_colours(arms), []
    for i, arm in enumerate(arms):
        own = frame[frame["arm"] == arm]
        if len(own):
            look: dict[str, Any] = {"linestyle": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)]}
            label = f"{arm} ({seeds_of(own['n'])})"
            handles.append(Line2D([], [], color=colours[arm], markersize=size, label=label, **look))
    return handles


def seeds_of(counts: Any) -> str:
    """`n=3`, or `n=2 to 3` where it differs."""
    n = sorted({int(c) for c in counts})
    return "n=0" if not n else f"n={n[0]}" if len(n) == 1 else f"n={n[0]} to {n[-1]}"


def quiet(ax: Axes) -> None:
    """Axes without a box: the two spines that carry ticks stay."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e0e0e0", linewidth=0.6)
    ax.set_axisbelow(True)


def save(
    ax: Axes | Figure, stem: str | os.PathLike[str], formats: Sequence[str] = ("png", "svg"), dpi: int = 160
) -> list[Path]:
    """Write a figure as `<stem>.<format>`, each file whole or not at all; PNG at `dpi`, the others as vectors.

    The same figure gives the same bytes, so that committed pictures only change with what they show.
    """
    figure = ax if isinstance(ax, Figure) else ax.get_figure()
    if not isinstance(figure, Figure):
        raise ValueError("the axes belong to no figure")
    base = Path(stem)
    base.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in formats:
        path = base.parent / f"{base.name}.{kind}"
        undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
        with mpl.rc_context(_RC):
            whole(path, lambda p, m=undated: figure.savefig(p, dpi=dpi, metadata=m, facecolor="white"))  # type: ignore[misc]
        written.append(path)
    return written
