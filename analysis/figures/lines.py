"""Curves: a setting on the axis with intervals (`sensitivity`), and learning by epoch (`learning_curves`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import (
    INK,
    LINEMAP,
    LINES,
    MARK,
    MARKERS,
    MUTED,
    PALETTE,
    arm_colours,
    band,
    banded,
    legend_below,
    new_axes,
    panels,
    possible,
    quiet,
    seeds_of,
)  # fmt: skip
from analysis.words import absent, is_fraction, metric_title, setting, settings

_CROWD = 500  # cells, beyond which curves are drawn as collections
_MARKER = {"stopped": "s", "diverged": "x", "failed": "P", "running": ">"}


def sensitivity(
    cells: pd.DataFrame, x: str, *, ax: Axes | None = None, title: str | None = None, everywhere: bool = True
) -> Axes:
    """One setting on the axis, its values in order and equally spaced; a line an arm, bars the 95 % interval. Values
    that are names (models) have no order: their means are not joined.

    An arm that does not use `x`, or takes one value of it, is a horizontal line with its interval as a band. Cells
    without a comparable mean are named above the axes with their status.

    Args:
        cells: what `tables.cells` or `compare.marked` returns.
        everywhere: whether an arm with one value of `x` is a reference for all of them (a gamma of its own). False
            where `x` is a condition: the arm stands at its value only.
    """
    metric = str(cells["metric"].iloc[0]) if len(cells) else "test_accuracy"
    scale = 100.0 if is_fraction(metric) else 1.0
    spread = {arm: rows[x].nunique() for arm, rows in cells.groupby("arm", dropna=False)}
    lines = [arm for arm, values in spread.items() if values > 1 or (values == 1 and not everywhere)]
    levels = sorted(cells.loc[cells["arm"].isin(lines), x].dropna().unique(), key=_order)
    named = any(isinstance(v, str) for v in levels)
    if named:  # the study file's order
        levels = list(dict.fromkeys(cells.loc[cells["arm"].isin(lines), x].dropna()))
    at = {v: i for i, v in enumerate(levels)}
    if ax is None:
        room = 1.5 if named else 0.95
        ax = new_axes(float(np.clip(len(levels) * room, 4.5, 12)) + (2.6 if named else 1.2), 4.2)
    notes: dict[int, list[str]] = {i: [] for i in at.values()}
    for i, (arm, rows) in enumerate(cells.groupby("arm", dropna=False, sort=False)):
        colour, line = PALETTE[i % len(PALETTE)], LINES[i % len(LINES)]
        comparable = rows["status"].isin(["complete", "partial"]) & rows["mean"].notna()
        known = rows[comparable]
        if arm not in lines:
            for _, row in known.iterrows():
                ax.axhline(row["mean"] * scale, color=colour, linestyle=line, label=_label(arm, known))
                if not absent(row["low"]):
                    ax.axhspan(row["low"] * scale, row["high"] * scale, color=colour, alpha=0.12, linewidth=0)
            continue
        known = known.sort_values(x, key=lambda s: s.map(at))
        # Arms stand a little apart, so that equal means do not hide each other.
        apart = min(0.12, 0.7 / len(spread)) if named else 0.06
        spots = known[x].map(at).to_numpy(dtype=float) + apart * (i - (len(spread) - 1) / 2)
        mean = known["mean"].to_numpy(dtype=float) * scale
        half = (known["high"] - known["mean"]).fillna(0).to_numpy(dtype=float) * scale
        style: dict[str, Any] = {"color": colour, "linestyle": line, "marker": "o", "markersize": 5, "capsize": 3}
        if named:
            style["linestyle"] = "none"
            style["marker"] = MARKERS[i % len(MARKERS)]
        ax.errorbar(spots, mean, yerr=half, label=_label(arm, known), **style)
        for _, row in rows[~comparable].iterrows():
            epoch = "" if absent(row["epoch"]) else f" e{row['epoch']:.0f}"
            notes[at[row[x]]].append(f"{arm!s}: {row['status']}{epoch}")
        for _, row in known[known["best"]].iterrows() if "best" in known else ():
            spot: dict[str, Any] = {
                "markersize": 12,
                "markerfacecolor": "none",
                "markeredgecolor": MARK,
                "markeredgewidth": 1.8,
            }
            index = list(known["cell"]).index(row["cell"])
            ax.plot(spots[index], mean[index], "o", gid="best", label="best by validation", **spot)
    ax.set_xticks(range(len(levels)), [setting(v) for v in levels])
    if named and max(len(str(v)) for v in levels) > 9 and len(levels) > 5:
        ax.tick_params(axis="x", labelrotation=25)
    ax.set(xlabel=x, ylabel=metric_title(metric))
    if levels:
        ax.set_xlim(-0.5, len(levels) - 0.5)
    _possible(ax, metric)
    quiet(ax)
    for place, lines_above in notes.items():
        above: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "color": MUTED}
        ax.text(place, 1.01, "\n".join(lines_above), transform=ax.get_xaxis_transform(), **above)
    if title:
        ax.set_title(title, loc="left", fontsize=11, pad=6 + 11 * max(map(len, notes.values()), default=0))
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))  # each condition has a best cell of its own
    if once:
        # Bars at names fill the axes from edge to edge.
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0}
        where = beside if named else {"loc": "best"}
        ax.legend(once.values(), once.keys(), frameon=False, fontsize=9, **where)
    return ax


def _order(value: Any) -> tuple[bool, Any]:
    return (isinstance(value, str), value)


def _label(arm: Any, known: pd.DataFrame) -> str:
    return f"{arm} ({seeds_of(known['n'])})"


def learning_curves(
    curves: pd.DataFrame,
    *,
    colour: str = "gamma",
    factors: tuple[str, ...] = ("gamma", "eta"),
    ax: Axes | None = None,
    title: str | None = None,
    rungs: Sequence[int] = (),
) -> Axes:
    """Mean over the seeds by epoch, a thin line a cell coloured by one setting; each arm's best cell thick, banded
    with its 95 % interval and named.

    An arm's best cell is its `leader`. A line ends where its cell was stopped, diverged, failed or is
    now, with a mark for which. Where fewer seeds than the cell began with are behind the mean, the line is dotted.

    Args:
        curves: what `tables.curves` returns.
        colour: the setting that colours; a cell that does not use it is grey.
        factors: the settings that name a cell.
        rungs: epochs at which a scheduler decided, marked by vertical lines.
    """
    metric = str(curves["metric"].iloc[0]) if len(curves) else "validation_accuracy"
    scale = 100.0 if is_fraction(metric) else 1.0
    if ax is None:
        ax = new_axes(8.6, 4.4)
    levels = sorted(curves[colour].dropna().unique(), key=_order) if colour in curves else []
    shades = colormaps[LINEMAP](np.linspace(0.0, 0.88, max(len(levels), 1)))
    shade = dict(zip(levels, shades, strict=False))
    arms = list(dict.fromkeys(curves["arm"]))
    leaders = _leaders(curves)
    several = curves["cell"].nunique() > 1
    crowded = curves["cell"].nunique() > _CROWD
    ends: set[str] = set()
    one_by_one = curves
    if crowded:
        leads_ = curves["cell"].isin(leaders)
        ends |= _crowd(ax, curves[~leads_], colour, shade, arms, scale)
        one_by_one = curves[leads_]
    for cell, rows in one_by_one.groupby("cell", sort=False):
        rows = rows.sort_values("epoch")
        first = rows.iloc[0]
        tint = shade.get(first[colour], MUTED) if colour in rows else PALETTE[0]
        line = LINES[arms.index(first["arm"]) % len(LINES)]
        epoch = rows["epoch"].to_numpy(dtype=float)
        mean = rows["mean"].to_numpy(dtype=float) * scale
        leads = cell in leaders
        look: dict[str, Any] = {"color": tint, "linewidth": 2.0 if leads else 0.9}
        look |= {"alpha": 1.0 if leads or not several else 0.5, "zorder": 3 if leads else 2}
        whole = (rows["n"] == rows["n_started"]).to_numpy()
        if not whole.all():
            ax.plot(epoch, mean, linestyle=":", **look)
        ax.plot(epoch, np.where(whole, mean, np.nan), linestyle=line, gid=f"curve:{cell}", **look)
        if len(epoch) == 1:
            ax.plot(epoch, mean, marker="o", markersize=4, **look)
        if leads:
            band(ax, epoch, rows, scale, color=tint, alpha=0.18)
        if first["status"] in _MARKER:
            ends.add(first["status"])
            mark = {"marker": _MARKER[first["status"]], "markersize": 6, "linestyle": "none"}
            # The survivors of a cell of which one seed diverged go on; its story ends where that seed's does.
            last = int(np.flatnonzero(whole)[-1]) if whole.any() else -1
            ax.plot(epoch[last], mean[last], color=INK, alpha=0.8, zorder=4, gid=f"end:{cell}", **mark)  # type: ignore[arg-type]
    ax.set(xlabel="epoch", ylabel=f"{metric_title(metric)}, mean over seeds")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _fence(ax, curves, scale)
    _possible(ax, metric)
    quiet(ax)
    _rungs(ax, rungs)
    if title:
        ax.set_title(title, loc="left", fontsize=11, pad=16 if rungs else 6)
    _explain(ax, curves, colour, factors, shade, arms, leaders, ends)
    return ax


def _rungs(ax: Axes, rungs: Sequence[int]) -> None:
    """Thin vertical lines with their epoch above the axes."""
    # Matplotlib's own dotted line would pass for a curve of which seeds are missing.
    look: dict[str, Any] = {"color": MUTED, "linewidth": 0.7, "linestyle": (0, (6, 4)), "alpha": 0.8, "zorder": 1.5}
    above: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 7.5, "color": MUTED}
    for i, rung in enumerate(rungs):
        ax.axvline(rung, gid=f"rung:{rung}", **look)
        name = f"rung {rung}" if i == len(rungs) - 1 else str(rung)
        ax.text(rung, 1.01, name, transform=ax.get_xaxis_transform(), gid=f"rung label:{rung}", **above)


def _crowd(
    ax: Axes, curves: pd.DataFrame, colour: str, shade: dict[Any, Any], arms: list[Any], scale: float
) -> set[str]:
    """Thousands of thin lines as a few collections, in the look of `learning_curves`; an artist a line would take a
    minute and, as a vector, more room than its data. Returns the statuses at which lines end.
    """
    rows = curves.sort_values(["cell", "epoch"], kind="stable")
    first = rows.drop_duplicates("cell")
    starts = np.flatnonzero(~rows["cell"].duplicated().to_numpy())
    points = np.column_stack([rows["epoch"], rows["mean"] * scale]).astype(float)
    whole = (rows["n"] == rows["n_started"]).to_numpy()
    solid = np.where(whole[:, None], points, np.nan)
    tint = [shade.get(v, MUTED) if colour in rows else PALETTE[0] for v in first.get(colour, first["cell"])]
    tints = np.array([to_rgba(t, 0.5) for t in tint])
    style: dict[str, Any] = {"linewidths": 0.9, "zorder": 2, "rasterized": True}
    some = np.add.reduceat(~whole, starts) > 0 if len(starts) else np.array([], dtype=bool)
    if some.any():
        dotted = [part for part, keep in zip(np.split(points, starts[1:]), some, strict=True) if keep]
        ax.add_collection(LineCollection(dotted, colors=tints[some], linestyles=":", gid="crowd:fewer", **style))
    parts = np.split(solid, starts[1:])
    for i, arm in enumerate(arms):
        own = (first["arm"] == arm).to_numpy()
        if own.any():
            lines = [part for part, keep in zip(parts, own, strict=True) if keep]
            look = {"linestyles": LINES[i % len(LINES)], "gid": f"crowd:{arm}", **style}
            ax.add_collection(LineCollection(lines, colors=tints[own], **look))
    length = np.diff([*starts, len(rows)])
    if (length == 1).any():
        lone = points[starts[length == 1]]
        ax.scatter(lone[:, 0], lone[:, 1], s=16, color=tints[length == 1], zorder=2, rasterized=True)
    status = first["status"].to_numpy()
    # Where all seeds were still there for the last time; see `learning_curves`.
    last = np.maximum.reduceat(np.where(whole, np.arange(len(rows)), -1), starts) if len(starts) else starts
    last = np.where(last >= 0, last, starts + length - 1)
    found = {str(s) for s in status} & set(_MARKER)
    for name in found:
        at = points[last[status == name]]
        mark: dict[str, Any] = {"marker": _MARKER[name], "s": 18, "color": INK, "alpha": 0.8, "linewidths": 0.8}
        ax.scatter(at[:, 0], at[:, 1], zorder=4, rasterized=True, gid=f"ends:{name}", **mark)
    ax.autoscale_view()
    return found


def learning_panels(curves: pd.DataFrame, titles: dict[str, str], arms: list[Any]) -> Figure:
    """Small multiples of learning curves: a panel a condition, in it one cell an arm with its 95 % interval.

    Args:
        curves: what `tables.curves` returns, of the cells to be drawn only.
        titles: panel title by cell id; panels in the order of their first cell.
        arms: every arm of the study, for the colours.
    """
    metric = str(curves["metric"].iloc[0]) if len(curves) else "validation_accuracy"
    scale = 100.0 if is_fraction(metric) else 1.0
    colours = arm_colours(arms)
    names = list(dict.fromkeys(titles.values()))
    figure, axes = panels(len(names))
    shown: dict[Any, list[int]] = {}
    for ax, name in zip(axes, names, strict=True):
        for cell, rows in curves.groupby("cell", sort=False):
            if titles.get(str(cell)) != name:
                continue
            rows = rows.sort_values("epoch")
            arm = rows["arm"].iloc[0]
            shown.setdefault(arm, []).extend(rows["n"])
            style: dict[str, Any] = {"color": colours[arm], "linestyle": LINES[arms.index(arm) % len(LINES)]}
            style["marker"] = "o" if len(rows) == 1 else ""
            banded(ax, rows["epoch"], rows, scale, gid=f"curve:{cell}", markersize=4, **style)
        ax.set_title(name, loc="left", fontsize=10)
        ax.set(xlabel="epoch", ylabel=metric_title(metric))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _possible(ax, metric)
        quiet(ax)
    handles = [
        Line2D([], [], color=colours[a], linestyle=LINES[arms.index(a) % len(LINES)], label=f"{a} ({seeds_of(n)})")
        for a, n in shown.items()
    ]
    legend_below(figure, handles)
    return figure


def _possible(ax: Axes, metric: str) -> None:
    if is_fraction(metric):
        possible(ax)


def _leaders(curves: pd.DataFrame) -> list[str]:
    """The best complete cell of each arm, at most six, the best of them first."""
    ranked = curves[curves["leader"]].drop_duplicates("cell").sort_values("validation_mean", ascending=False)
    return list(ranked["cell"])[:6]


def _fence(ax: Axes, curves: pd.DataFrame, scale: float) -> None:
    """A loss that blew up must not press the other curves onto the axis: it leaves the picture at the top."""
    values = curves["mean"].dropna() * scale
    if is_fraction(str(curves["metric"].iloc[0]) if len(curves) else "") or values.empty:
        return
    first, third = values.quantile([0.25, 0.75])
    fence = third + 10 * (third - first)
    if values.max() > fence > third:
        ax.set_ylim(top=fence)


def _explain(
    ax: Axes,
    curves: pd.DataFrame,
    colour: str,
    factors: tuple[str, ...],
    shade: dict[Any, Any],
    arms: list[Any],
    leaders: list[str],
    ends: set[str],
) -> None:
    """The legend at the right: best cell of each arm, colours, line styles, ends."""
    handles = []
    rows = curves.drop_duplicates("cell")
    for cell in leaders:
        row = rows[rows["cell"] == cell].iloc[0]
        tint = shade.get(row[colour], MUTED) if colour in rows else PALETTE[0]
        style = LINES[arms.index(row["arm"]) % len(LINES)]
        name = settings(row, factors)
        label = f"best {row['arm']}" + (f" ({name})" if name else "")
        handles.append(Line2D([], [], color=tint, linewidth=2.0, linestyle=style, label=label))
    if len(shade) > 1:
        few = list(shade.items())
        few = few if len(few) <= 10 else [few[i] for i in np.linspace(0, len(few) - 1, 10).astype(int)]
        handles += [Line2D([], [], color=c, label=f"{colour} {setting(v)}") for v, c in few]
    if len(arms) > 1:
        handles += [
            Line2D([], [], color=MUTED, linewidth=0.9, linestyle=LINES[i % len(LINES)], label=str(arm))
            for i, arm in enumerate(arms[:8])
        ]
    for name in sorted(ends):
        handles.append(Line2D([], [], color=INK, marker=_MARKER[name], linestyle="none", label=name))
    if handles:
        ax.legend(
            handles=handles,
            frameon=False,
            fontsize=8.5,
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            borderaxespad=0,
            labelcolor=INK,
        )
