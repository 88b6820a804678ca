"""A search at one glance: a line a cell across its settings (`parallel`), and what each explains (`importances`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from analysis.figures.style import COLOURMAP, INK, MARK, MARKERS, MUTED, arm_colours, new_axes, quiet
from analysis.words import setting

_UNUSED = -0.13  # where a line passes an axis that its cell does not use
_CROWD = 400  # lines, beyond which they are drawn as an image
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++", "oo")


def parallel(cells: pd.DataFrame, axes: Mapping[str, bool], *, title: str | None = None) -> Axes:
    """Parallel coordinates: a vertical axis for the arm, for each setting and for validation accuracy; a line a cell.

    Complete cells are coloured by their mean validation accuracy, dark is low. The others have no comparable accuracy:
    they are grey, dashed and end before that axis. A line passes below an axis that its cell does not use. The best
    complete cell of each arm is outlined and has a mark at each axis.

    Args:
        cells: what `tables.cells` returns; with a column `leader`, the cells to be highlighted.
        axes: the settings and whether each is logarithmic (`search.search_axes`); those that no cell uses are left out.

    Returns:
        The Axes, from 0 to 1 on every vertical. Its collections `complete` and `unfinished` have a line a cell in the
        order of `cells`, the array of the former is the accuracy in per cent.
    """
    cells = cells.reset_index(drop=True)
    columns = _columns(cells, axes)
    done = ((cells["status"] == "complete") & cells["validation_mean"].notna()).to_numpy(dtype=bool)
    accuracy = 100 * cells["validation_mean"].to_numpy(dtype=float)
    low, high = (accuracy[done].min(), accuracy[done].max()) if done.any() else (0.0, 100.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    wide = float(np.clip(1.9 * (len(columns) + 1), 6.0, 13.0))
    ax = new_axes(wide, 4.6)
    at = np.column_stack([place for _, place, _, _ in columns])
    ends = np.where(done, (accuracy - low) / (high - low), np.nan)
    spots = np.arange(len(columns) + 1)
    lines = [np.column_stack([spots, [*row, end]]) for row, end in zip(at, ends, strict=True)]
    crowd = len(cells) > _CROWD
    norm = Normalize(low, high)
    if not done.all():
        lost = [line[:-1] for line, known in zip(lines, done, strict=True) if not known]
        dashed = LineCollection(lost, colors="#9a9a9a", linewidths=0.8, linestyles=(0, (4, 3)), zorder=1)
        dashed.set(gid="unfinished", alpha=0.25 if crowd else 0.8, rasterized=crowd)
        ax.add_collection(dashed)
    if done.any():
        # The best are drawn last, above the others.
        order = np.flatnonzero(done)[np.argsort(accuracy[done], kind="stable")]
        drawn = LineCollection([lines[i] for i in order], cmap=COLOURMAP, norm=norm, array=accuracy[order], zorder=2)
        drawn.set(gid="complete", linewidth=0.7 if crowd else 1.3, alpha=0.35 if crowd else 0.85, rasterized=crowd)
        ax.add_collection(drawn)
    handles = _highlight(ax, cells, lines, done, accuracy, norm)
    for i, (name, _, ticks, labels) in enumerate(columns):
        _vertical(ax, i, name, ticks, labels)
    steps = np.linspace(0, 1, 5)
    digits = 1 if high - low > 1 else 2
    _vertical(
        ax, len(columns), "validation\naccuracy (%)", steps, [f"{low + s * (high - low):.{digits}f}" for s in steps]
    )
    if (at == _UNUSED).any():
        ax.text(-0.12, _UNUSED, "not used", ha="right", va="center", fontsize=8, color=MUTED)
    ax.set(xlim=(-0.45, len(columns) + 0.25), ylim=(_UNUSED - 0.06, 1.06), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, loc="left", fontsize=11, pad=26)
    figure = ax.get_figure()
    if figure is not None and done.any():
        bar = figure.colorbar(ScalarMappable(norm, colormaps[COLOURMAP]), ax=ax, fraction=0.04, pad=0.02, aspect=24)
        bar.set_label("validation accuracy (%), mean over seeds", fontsize=9)
        bar.outline.set_visible(False)
    if not done.all():
        label = f"not complete: {int((~done).sum())} of {len(cells)} cells"
        handles.append(Line2D([], [], color="#9a9a9a", linewidth=0.9, linestyle=(0, (4, 3)), label=label))
    if figure is not None and handles:
        ncols = max(1, min(len(handles), 4, int(wide // 2.7)))
        figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize=8.5)
    return ax


def _columns(cells: pd.DataFrame, axes: Mapping[str, bool]) -> list[tuple[str, np.ndarray, np.ndarray, list[str]]]:
    """Name, place of each cell in [0, 1] (`_UNUSED` without a value), ticks and their labels of each vertical axis."""
    found = []
    named = {"arm": False} if cells["arm"].nunique() > 1 else {}
    for name, log in {**named, **axes}.items():
        if name not in cells or not cells[name].notna().any():
            continue
        values, used = cells[name], cells[name].notna().to_numpy(dtype=bool)
        place = np.full(len(cells), _UNUSED)
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            numbers = values[used].to_numpy(dtype=float)
            log = log and bool((numbers > 0).all())
            numbers = np.log10(numbers) if log else numbers
            low, high = numbers.min(), numbers.max()
            place[used] = (numbers - low) / (high - low) if high > low else 0.5
            ticks, labels = _ticks(low, high, log)
        else:
            levels = list(dict.fromkeys(values[used].map(setting)))
            spread = np.linspace(1, 0, len(levels)) if len(levels) > 1 else np.array([0.5])
            place[used] = values[used].map(setting).map(dict(zip(levels, spread, strict=True))).to_numpy(dtype=float)
            ticks, labels = spread, levels
        found.append((name, place, ticks, labels))
    return found


def _ticks(low: float, high: float, log: bool) -> tuple[np.ndarray, list[str]]:
    """Five values from end to end in three digits."""
    if high <= low:
        return np.array([0.5]), [setting(float(f"{10**low if log else low:.3g}"))]
    at = np.linspace(0, 1, 5)
    values = low + at * (high - low)
    return at, [setting(float(f"{10**v if log else v:.3g}")) for v in values]


def _vertical(ax: Axes, x: int, name: str, ticks: np.ndarray, labels: list[str]) -> None:
    ax.plot([x, x], [0, 1], color=INK, linewidth=1.0, zorder=3, gid=f"axis:{name}")
    ax.text(x, 1.07, name, ha="center", va="bottom", fontsize=9.5, color=INK)
    stroke = [withStroke(linewidth=2.4, foreground="white")]
    keep = np.linspace(0, len(ticks) - 1, min(len(ticks), 9)).astype(int)
    for i in keep:
        ax.plot([x - 0.02, x], [ticks[i]] * 2, color=INK, linewidth=1.0, zorder=3)
        place: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 8, "color": INK, "zorder": 5}
        ax.text(x - 0.04, ticks[i], labels[i], path_effects=stroke, gid=f"tick:{name}", **place)


def _highlight(
    ax: Axes, cells: pd.DataFrame, lines: list[np.ndarray], done: np.ndarray, accuracy: np.ndarray, norm: Normalize
) -> list[Line2D]:
    """The best complete cell of each arm: a thick line in its colour between two rims, marks of its arm."""
    handles = []
    leads = cells["leader"].to_numpy(dtype=bool) if "leader" in cells else np.zeros(len(cells), dtype=bool)
    for i, arm in enumerate(dict.fromkeys(cells["arm"])):
        own = np.flatnonzero(done & (cells["arm"] == arm).to_numpy(dtype=bool))
        if not len(own):
            continue
        best = next((j for j in own if leads[j]), own[int(np.argmax(accuracy[own]))])
        colour = colormaps[COLOURMAP](norm(accuracy[best]))
        look: dict[str, Any] = {"color": colour, "linewidth": 2.2, "marker": MARKERS[i % len(MARKERS)], "markersize": 7}
        look |= {"markeredgecolor": MARK, "markerfacecolor": "white", "markeredgewidth": 1.4}
        rim = [withStroke(linewidth=4.4, foreground=MARK)]
        ax.plot(*lines[best].T, zorder=4, gid=f"best:{arm}", path_effects=rim, **look)
        label = f"best of {arm} ({accuracy[best]:.1f} %, n={cells['validation_n'].iloc[best]:.0f})"
        handles.append(Line2D([], [], label=label, **look))
    return handles


def importances(frame: pd.DataFrame, arms: list[Any] | None = None) -> Axes:
    """A bar an arm and setting: the share of variance of validation accuracy that the setting explains by itself, with
    its bootstrap interval; arms differ in colour and hatch.

    Args:
        frame: what `importance.importance` returns; rows without a number are left out.
        arms: every arm of the study, for the colours; None: those of `frame`.
    """
    arms = arms if arms is not None else list(dict.fromkeys(frame["arm"]))
    known = frame[frame["importance"].notna()]
    # The setting that explains most in any arm first.
    names = list(known.groupby("setting", sort=False)["importance"].max().sort_values(ascending=False).index)
    drawn = [arm for arm in arms if (known["arm"] == arm).any()]
    colours = arm_colours(arms)
    thick = 0.8 / max(1, len(drawn))
    ax = new_axes(8.0, float(np.clip(0.27 * len(names) * max(1, len(drawn)) + 1.3, 2.2, 9.0)))
    for j, arm in enumerate(drawn):
        rows = known[known["arm"] == arm].drop_duplicates("setting").set_index("setting").reindex(names)
        at = np.arange(len(names)) + (j - (len(drawn) - 1) / 2) * thick
        share, low, high = (100 * rows[c].to_numpy(dtype=float) for c in ("importance", "low", "high"))
        hatch = _HATCHES[arms.index(arm) % len(_HATCHES)]
        label = f"{arm} (n={rows['n'].max():.0f} complete cells)"
        look: dict[str, Any] = {"color": colours[arm], "edgecolor": "white", "hatch": hatch, "label": label}
        bars = ax.barh(at, np.nan_to_num(share), height=0.9 * thick, **look)
        for bar in bars:
            bar.set_gid(f"importance:{arm}")
        # A bootstrap's interval need not hold the whole sample's value: its ends are drawn where they are.
        ax.hlines(at, low, high, color=INK, linewidth=1.2, gid=f"interval:{arm}")
        ax.scatter(low, at, marker="|", s=28, color=INK, linewidths=1.2)
        ax.scatter(high, at, marker="|", s=28, color=INK, linewidths=1.2)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlim=(0, 105), xlabel="share of the variance of validation accuracy (%), by this setting alone")
    quiet(ax)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color="#e0e0e0", linewidth=0.6)
    if drawn:
        ax.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return ax
