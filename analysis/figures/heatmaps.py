"""The sensitivity map (Figure 5 of the paper): one pixel a cell, references beside the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import ScaledTranslation

from analysis.figures.style import COLOURMAP, INK, MARK, MUTED, STATUS_STYLE, UNDER, ink_on, new_axes
from analysis.words import absent, figure_digits, is_fraction, metric_title, setting

_GAP = 0.35  # pixels between the grid and what stands beside it
_BAR = 0.7  # height in pixels of the bar of an arm that uses neither axis
_SMALLEST_TEXT = 5.0  # points; smaller labels are left out, the legend stays
_SMALLEST_DOT = 7.0  # points of a pixel's side; on smaller pixels a dot would hide the colour


@dataclass(frozen=True)
class _Ticks:
    at: list[float]
    labels: list[str]


def heatmap(
    cells: pd.DataFrame,
    *,
    x: str = "eta",
    y: str = "gamma",
    ax: Axes | None = None,
    value: str = "mean",
    title: str | None = None,
) -> Axes:
    """Draw one pixel a cell over two settings, each drawn as a grid of its values in order.

    A cell that does not use `x` (SAM has no eta) is a pixel of a column of its own, one column an arm, left of the
    grid at the same `y`; one that does not use `y` is in a row below; one that uses neither (SGD) is a bar across the
    figure below the grid. A coloured pixel says its mean and n. Pixels without a comparable mean (stopped, diverged,
    failed, running, missing) have no colour but a hatch and a label each. Where pixels are too small the labels are
    left out.

    Args:
        cells: what `tables.cells` or `compare.marked` returns; with the latter's columns `best` is outlined and
            `indistinguishable` dotted. Cells of one panel only: see `layout.layout`.
        value: the column that colours, in the unit of the column `metric`.

    Returns:
        The Axes. Its collections carry the status as gid; that of the coloured pixels, `measured`, has the values
        in its array, in per cent for accuracies.

    Raises:
        ValueError: two cells fall on one pixel; the message names a setting in which they differ.
    """
    cells = cells.reset_index(drop=True)
    metric = str(cells["metric"].iloc[0]) if len(cells) and "metric" in cells else "test_accuracy"
    boxes, xticks, yticks = _place(cells, x, y)
    left, bottom = boxes[:, 0].min(initial=0.0), boxes[:, 1].min(initial=0.0)
    right = (boxes[:, 0] + boxes[:, 2]).max(initial=1.0)
    top = (boxes[:, 1] + boxes[:, 3]).max(initial=1.0)
    if ax is None:
        across, up = right - left, top - bottom
        ax = new_axes(float(np.clip(across * 0.92, 2.6, 12)) + 2.0, float(np.clip(up * 0.66, 1.3, 9)) + 1.7)

    state = _states(cells, value)
    scale = 100.0 if is_fraction(metric) else 1.0
    values = pd.to_numeric(cells[value]).to_numpy(dtype=float) * scale
    measured = state == "measured"
    norm, extend = _norm(values[measured])
    colours = ScalarMappable(norm, colormaps[COLOURMAP].with_extremes(under=UNDER))
    dense = len(cells) > 1500
    for name in dict.fromkeys(["measured", *STATUS_STYLE]):
        chosen = state == name
        if not chosen.any():
            continue
        corners = [_corners(*box) for box in boxes[chosen]]
        if name == "measured":
            pixels = PolyCollection(corners, array=values[chosen], cmap=colours.cmap, norm=norm)
            pixels.set(edgecolor="white", linewidth=0.0 if dense else 1.0)
        else:
            style = STATUS_STYLE[name]
            pixels = PolyCollection(corners, **style, linewidth=0.0 if dense else 0.8)
            pixels.set_linestyle("--" if name == "missing" else "-")
        pixels.set(gid=name, rasterized=dense)
        ax.add_collection(pixels)

    ax.set(xlim=(left - 0.06, right + 0.06), ylim=(bottom - 0.06, top + 0.06), xlabel=x, ylabel=y)
    wide, high = _pixel_points(ax)
    longest = max((len(part) for label in xticks.labels for part in label.split("\n")), default=1)
    ax.set_xticks(*_thinned(xticks, (longest * 6.5 + 4) / max(wide, 1e-9)))
    ax.set_yticks(*_thinned(yticks, 13 / max(high, 1e-9)))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, loc="left", fontsize=11)
    _write_labels(ax, cells, boxes, state, colours, values, figure_digits(values[measured] / scale, metric))
    _draw_marks(ax, cells, boxes)
    figure = ax.get_figure()
    if figure is not None and measured.any():
        bar = figure.colorbar(colours, ax=ax, extend=extend, fraction=0.05, pad=0.02, aspect=22)
        bar.set_label(f"{metric_title(metric)}\nmean over n seeds")
        bar.outline.set_visible(False)
    _legend(ax, cells, state)
    return ax


def _place(cells: pd.DataFrame, x: str, y: str) -> tuple[np.ndarray, _Ticks, _Ticks]:
    """Boxes (left, bottom, width, height) in pixels, row by row of `cells`, and the ticks of both axes."""
    for name in (x, y):
        if name not in cells:
            raise ValueError(f"{name} is not a column of the cells")
    has_x, has_y = cells[x].notna(), cells[y].notna()
    xs, ys = _levels(cells.loc[has_x, x]), _levels(cells.loc[has_y, y])
    columns = list(dict.fromkeys(cells.loc[~has_x & has_y, "arm"]))
    rows = list(dict.fromkeys(cells.loc[has_x & ~has_y, "arm"]))
    bars = list(dict.fromkeys(cells.loc[~has_x & ~has_y, "arm"]))

    gap = _GAP if xs else 0.0
    x_of = {v: float(i) for i, v in enumerate(xs)}
    column_of = {arm: i - len(columns) - gap for i, arm in enumerate(columns)}
    y_of = {v: float(i) for i, v in enumerate(ys)}
    below = -(_GAP if ys else 0.0)
    row_of = {arm: below - 1 - i for i, arm in enumerate(rows)}
    row_of |= {arm: below - len(rows) - _BAR * (i + 1) for i, arm in enumerate(bars)}
    left = min(column_of.values(), default=0.0)
    width = max(len(xs), 0.0) - left or 1.0

    boxes = np.empty((len(cells), 4))
    seen: dict[tuple[float, float], int] = {}
    for i, (arm, vx, vy, ok_x, ok_y) in enumerate(zip(cells["arm"], cells[x], cells[y], has_x, has_y, strict=True)):
        bottom = y_of[vy] if ok_y else row_of[arm]
        if ok_x:
            box = (x_of[vx], bottom, 1.0, 1.0)
        elif ok_y:
            box = (column_of[arm], bottom, 1.0, 1.0)
        else:
            box = (left, bottom, width, _BAR)
        other = seen.setdefault((box[0], bottom), i)
        if other != i:
            raise ValueError(_collision(cells.iloc[other], cells.iloc[i], x, y))
        boxes[i] = box

    optimisers = dict(zip(cells["arm"], cells["optimiser"], strict=True)) if "optimiser" in cells else {}
    xticks = _Ticks(
        [*(v + 0.5 for v in column_of.values()), *(v + 0.5 for v in x_of.values())],
        [*(_column_label(arm, optimisers, x) for arm in column_of), *_tick_labels(xs)],
    )
    yticks = _Ticks(
        [*(v + 0.5 for v in y_of.values()), *(v + (_BAR if arm in bars else 1) / 2 for arm, v in row_of.items())],
        [*_tick_labels(ys), *map(str, row_of)],
    )
    return boxes, xticks, yticks


def _levels(values: pd.Series) -> list[Any]:
    unique = list(values.unique())
    try:
        return sorted(unique)
    except TypeError:
        return sorted(unique, key=str)


def _tick_labels(values: list[Any]) -> list[str]:
    """Three digits where they tell the values apart: a sampled gamma of 0.0657933 is 0.0658."""
    exact = [setting(v) for v in values]
    if max(map(len, exact), default=0) <= 6:
        return exact
    short = [v if isinstance(v, str) else setting(float(f"{v:.3g}")) for v in values]
    return short if len(set(short)) == len(short) else exact


def _column_label(arm: Any, optimisers: dict[Any, Any], x: str) -> str:
    """SAM is Fisher SAM at eta = 0 (section 5), so its column says where on the axis it stands."""
    is_sam = x == "eta" and optimisers.get(arm) == "sam"
    return f"0\n({arm})" if is_sam else str(arm)


def _collision(a: pd.Series, b: pd.Series, x: str, y: str) -> str:
    differ = [c for c in ("arm", *a.index) if c not in ("cell", x, y) and not _same(a[c], b[c])]
    first = differ[0] if differ else "nothing"
    return (
        f"cells {a['cell']} and {b['cell']} share one pixel of {x} x {y} and differ in {first}; "
        "draw one panel for each of its values (layout.layout does)"
    )


def _same(a: Any, b: Any) -> bool:
    return (absent(a) and absent(b)) or (type(a) is type(b) and a == b)


def _states(cells: pd.DataFrame, value: str) -> np.ndarray:
    status = cells["status"].astype(str).to_numpy(dtype=object)
    comparable = np.isin(status.astype(str), ["complete", "partial"])
    known = np.isfinite(pd.to_numeric(cells[value]).to_numpy(dtype=float))
    return np.where(comparable, np.where(known, "measured", "unmeasured"), status).astype(str)


def _norm(values: np.ndarray) -> tuple[Normalize, str]:
    """The colours' range. A few cells that learned nothing must not flatten the rest into one colour: those below
    the far fence (three interquartile ranges under the lower quartile) are black and the bar gets a black arrow.
    """
    if not len(values):
        return Normalize(0, 1), "neither"
    low, high = float(values.min()), float(values.max())
    first, third = np.quantile(values, [0.25, 0.75])
    inside = values >= first - 3 * (third - first)
    extend = "neither"
    if 0 < (~inside).sum() <= len(values) / 4 and inside.sum() > 2:
        low, extend = float(values[inside].min()), "min"
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    return Normalize(low, high), extend


def _corners(left: float, bottom: float, width: float, height: float) -> list[tuple[float, float]]:
    right, top = left + width, bottom + height
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def _thinned(ticks: _Ticks, room: float) -> tuple[list[float], list[str]]:
    """Every k-th tick of the grid, so that labels of `room` pixels do not touch. References keep theirs all."""
    beside = [i for i, at in enumerate(ticks.at) if at < 0]
    inside = [i for i, at in enumerate(ticks.at) if at >= 0]
    step = max(1, int(np.ceil(room)))
    # Thinned labels start half a step in, clear of the reference's label next to the grid.
    keep = [*beside, *inside[step // 2 if beside else 0 :: step]]
    return [ticks.at[i] for i in keep], [ticks.labels[i] for i in keep]


def _pixel_points(ax: Axes) -> tuple[float, float]:
    """Width and height of a pixel in points."""
    figure = ax.get_figure()
    if figure is None:
        return 0.0, 0.0
    box = ax.get_window_extent()
    dpi = figure.get_dpi() if hasattr(figure, "get_dpi") else 100.0
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    # A fifth less: the layout engine has still to make room for ticks, bar and legend.
    return 0.8 * box.width / dpi * 72 / (x1 - x0), 0.8 * box.height / dpi * 72 / (y1 - y0)


def _write_labels(
    ax: Axes,
    cells: pd.DataFrame,
    boxes: np.ndarray,
    state: np.ndarray,
    colours: ScalarMappable,
    values: np.ndarray,
    digits: int,
) -> None:
    wide, high = _pixel_points(ax)
    size = min(9.5, wide / 5.2, high / 2.7)
    if size < _SMALLEST_TEXT:
        return
    for i, (box, name) in enumerate(zip(boxes, state, strict=True)):
        row = cells.iloc[i]
        at = (box[0] + box[2] / 2, box[1] + box[3] / 2)
        if name == "measured":
            of = f" of {row['n_planned']:.0f}" if row["status"] == "partial" else ""
            joint = "  " if box[2] > 2 else "\n"
            text = f"{values[i]:.{digits}f}{joint}n={row['n']:.0f}{of}"
            ink = ink_on(colours.to_rgba(values[i : i + 1])[0])
            ax.text(*at, text, ha="center", va="center", color=ink, fontsize=size, gid=f"label:{row['cell']}")
        else:
            pad = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.9}
            text = _status_label(row, name, " " if box[2] > 2 else "\n")
            label = ax.text(*at, text, ha="center", va="center", color=INK, fontsize=size * 0.86, bbox=pad)
            label.set_gid(f"label:{row['cell']}")


def _status_label(row: pd.Series, name: str, joint: str) -> str:
    if name in ("stopped", "running"):
        return name if absent(row["epoch"]) else f"{name}{joint}e{row['epoch']:.0f}"
    if name in ("diverged", "failed") and 0 < row[f"n_{name}"] < row["n_planned"]:
        return f"{name}{joint}{row[f'n_{name}']:.0f} of {row['n_planned']:.0f}"
    return "n=0" if name == "unmeasured" else name


def _draw_marks(ax: Axes, cells: pd.DataFrame, boxes: np.ndarray) -> None:
    wide, high = _pixel_points(ax)
    small = min(wide, high)
    if _dotted(ax, cells):
        chosen = boxes[cells["indistinguishable"].to_numpy(dtype=bool)]
        ax.scatter(
            chosen[:, 0] + chosen[:, 2] - np.minimum(0.12, chosen[:, 2] / 2),
            chosen[:, 1] + chosen[:, 3] - 0.15,
            s=min(16.0, (small / 4) ** 2),
            facecolor="white",
            edgecolor="black",
            linewidth=0.7,
            zorder=4,
            gid="indistinguishable",
        )
    if "best" in cells and cells["best"].any():
        for box in boxes[cells["best"].to_numpy(dtype=bool)]:
            thick = float(np.clip(small / 10, 1.0, 2.6))
            outline = Rectangle((box[0], box[1]), box[2], box[3], fill=False, edgecolor=MARK, linewidth=thick, zorder=5)
            outline.set(gid="best", path_effects=[withStroke(linewidth=thick + 1.8, foreground="white")])
            ax.add_patch(outline)


def _dotted(ax: Axes, cells: pd.DataFrame) -> bool:
    some = "indistinguishable" in cells and bool(cells["indistinguishable"].any())
    return some and min(_pixel_points(ax)) >= _SMALLEST_DOT


def _legend(ax: Axes, cells: pd.DataFrame, state: np.ndarray) -> None:
    handles: list[Any] = []
    if "best" in cells and cells["best"].any():
        handles.append(Patch(fill=False, edgecolor=MARK, linewidth=2, label="best by validation"))
    if _dotted(ax, cells):
        dot = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 4.5}
        label = "not distinguishable from it (paired 95 % t)"
        handles.append(Line2D([], [], linestyle="none", label=label, **dot))  # type: ignore[arg-type]
    words = {
        "stopped": "stopped early (epoch)",
        "diverged": "diverged",
        "failed": "failed",
        "running": "running (epoch)",
        "missing": "missing",
        "unmeasured": "complete, no value",
    }
    for name, style in STATUS_STYLE.items():
        count = int((state == name).sum())
        if count:
            swatch = Patch(**style, linewidth=0.8, label=f"{words[name]}: {count}")
            swatch.set_linestyle("--" if name == "missing" else "-")
            handles.append(swatch)
    if not handles:
        return
    figure = ax.get_figure()
    # Below the axis label whatever the figure's height: in points, not in parts of the axes.
    drop = ScaledTranslation(0, -44 / 72, figure.dpi_scale_trans) if figure is not None else None
    where = ax.transAxes + drop if drop is not None else ax.transAxes
    across = ax.get_window_extent().width / (figure.get_dpi() if figure is not None else 100)
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=where,
        ncols=max(1, min(len(handles), int(across // 2.2))),
        frameon=False,
        fontsize=8.5,
        labelcolor=MUTED,
        handlelength=1.6,
        handleheight=1.1,
        borderaxespad=0,
    )
