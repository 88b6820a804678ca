"""The sensitivity map (Figure 5 of the paper): one pixel a cell, references beside the grid; panels over a third
factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import ScaledTranslation

from analysis.figures.grid import Grid, corners, pixel_points
from analysis.figures.style import (
    COLOURMAP,
    INK,
    MARK,
    MUTED,
    STATUS_STYLE,
    UNDER,
    ink_on,
    legend_below,
    new_axes,
    panels,
)
from analysis.tables import RECIPE_FIELDS
from analysis.words import absent, figure_digits, is_fraction, metric_title, setting, settings

_SMALLEST_TEXT = 5.0  # points; smaller labels are left out, the legend stays
_SMALLEST_DOT = 7.0  # points of a pixel's side; on smaller pixels a dot would hide the colour


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
    metric = _metric(cells)
    grid = Grid.of(cells, x, y)
    if ax is None:
        ax = new_axes(
            float(np.clip(grid.width * 0.92, 2.6, 12)) + 2.0, float(np.clip(grid.height * 0.66, 1.3, 9)) + 1.7
        )
    measured = _values(cells, value, metric)[_states(cells, value) == "measured"]
    norm, extend = _norm(measured)
    colours = _colours(norm)
    state = _draw(ax, cells, grid, value, colours, _digits(measured, metric))
    if title:
        ax.set_title(title, loc="left", fontsize=11)
    figure = ax.get_figure()
    if figure is not None and len(measured):
        bar = figure.colorbar(colours, ax=ax, extend=extend, fraction=0.05, pad=0.02, aspect=22)
        bar.set_label(f"{metric_title(metric)}\nmean over n seeds")
        bar.outline.set_visible(False)
    _legend(ax, _handles(cells, state, _dotted(ax, cells)))
    return ax


def heatmaps(
    cells: pd.DataFrame,
    over: str | Sequence[str],
    *,
    x: str = "eta",
    y: str = "gamma",
    value: str = "mean",
    shared: bool = True,
    across: int = 2,
) -> Figure:
    """Small multiples of `heatmap`: a panel for each value of `over`, all with the same places.

    Args:
        cells: as for `heatmap`, of all panels. A cell that does not use a setting of `over` (SGD where m varies)
            stands in every panel.
        over: the column or columns whose values make the panels, in their order (numbers ascend). A panel is called
            `label_noise 0.4`; by the value alone where the column is no setting (the title that a layout gave it).
        shared: one colour scale for all panels, so that they can be compared; else each has a scale of its own, for
            panels whose levels lie too far apart (rates of label noise).
        across: panels in a row.

    Returns:
        A Figure whose first axes are the panels in order, titled.

    Raises:
        ValueError: as `heatmap`, or a name of `over` is no column.
    """
    cells = cells.reset_index(drop=True)
    by = [over] if isinstance(over, str) else list(over)
    unknown = [f for f in by if f not in cells]
    if unknown:
        raise ValueError(f"over: {', '.join(unknown)} is not a column of the cells")
    metric, grid, parts = _metric(cells), Grid.of(cells, x, y), _panels(cells, by)
    wide, high = float(np.clip(grid.width * 0.76, 2.4, 8)) + 0.9, float(np.clip(grid.height * 0.5, 1.3, 6)) + 0.9
    figure, axes = panels(len(parts), width=wide + (0.0 if shared else 0.7), height=high, across=across)
    known = [_values(rows, value, metric)[_states(rows, value) == "measured"] for rows in parts.values()]
    all_of_them = np.concatenate(known) if known else np.empty(0)
    digits = _digits(all_of_them, metric)
    states, dotted = [], False
    for ax, (title, rows), own in zip(axes, parts.items(), known, strict=True):
        norm, extend = _norm(all_of_them if shared else own)
        colours = _colours(norm)
        states.append(_draw(ax, rows, grid, value, colours, digits, fontsize=8.5))
        dotted |= _dotted(ax, rows)
        ax.set_title(title, loc="left", fontsize=10)
        if not shared and len(own):
            _bar(figure, colours, ax, extend, metric_title(metric))
    if shared and len(all_of_them):
        _bar(figure, _colours(_norm(all_of_them)[0]), axes, _norm(all_of_them)[1], metric_title(metric))
    legend_below(figure, _handles(cells, np.concatenate(states) if states else np.empty(0), dotted), most=4)
    return figure


def one_scale(panels: Sequence[pd.DataFrame], value: str = "mean") -> bool:
    """Whether panels read well under one colour scale: together they span at most three times what the widest of them
    spans by itself, outliers below (see `_norm`) left out.
    """
    known = [_values(rows, value, _metric(rows))[_states(rows, value) == "measured"] for rows in panels]
    known = [own for own in known if len(own)]
    if len(known) < 2:
        return True
    whole = _norm(np.concatenate(known))[0]
    widest = max(float(norm.vmax or 0) - float(norm.vmin or 0) for norm in (_norm(own)[0] for own in known))
    return float(whole.vmax or 0) - float(whole.vmin or 0) <= 3 * widest


def _panels(cells: pd.DataFrame, by: list[str]) -> dict[str, pd.DataFrame]:
    """The cells of each panel by its title; a cell without a value of one of `by` is in all panels that agree else."""
    found: dict[str, pd.DataFrame] = {}
    whole = cells.dropna(subset=by)
    numbers = [f for f in by if pd.api.types.is_numeric_dtype(whole[f])]
    for values in (
        (whole.sort_values(numbers, kind="stable") if numbers else whole)[by]
        .drop_duplicates()
        .itertuples(index=False, name=None)
    ):
        keep = np.ones(len(cells), dtype=bool)
        for field, wanted in zip(by, values, strict=True):
            keep &= ((cells[field] == wanted) | cells[field].isna()).to_numpy(dtype=bool)
        named = [f for f in by if f in RECIPE_FIELDS]
        said = [setting(v) for f, v in zip(by, values, strict=True) if f not in named]
        row = dict(zip(by, values, strict=True))
        found[", ".join(filter(None, [*said, settings(row, named)]))] = cells[keep].reset_index(drop=True)
    return found or {"": cells}


def _bar(figure: Figure, colours: ScalarMappable, ax: Any, extend: str, label: str) -> None:
    bar = figure.colorbar(colours, ax=ax, extend=extend, fraction=0.05, pad=0.02, aspect=24)
    bar.set_label(f"{label}, mean over n seeds", fontsize=9)
    bar.outline.set_visible(False)


def _draw(
    ax: Axes, cells: pd.DataFrame, grid: Grid, value: str, colours: ScalarMappable, digits: int, fontsize: float = 10.0
) -> np.ndarray:
    """One panel without its title, bar and legend; returns the state of each cell."""
    boxes, state = grid.boxes(cells), _states(cells, value)
    values = _values(cells, value, _metric(cells))
    dense = len(cells) > 1500
    for name in dict.fromkeys(["measured", *STATUS_STYLE]):
        chosen = state == name
        if not chosen.any():
            continue
        places = [corners(*box) for box in boxes[chosen]]
        if name == "measured":
            pixels = PolyCollection(places, array=values[chosen], cmap=colours.cmap, norm=colours.norm)
            pixels.set(edgecolor="white", linewidth=0.0 if dense else 1.0)
        else:
            style = STATUS_STYLE[name]
            pixels = PolyCollection(places, **style, linewidth=0.0 if dense else 0.8)
            pixels.set_linestyle("--" if name == "missing" else "-")
        pixels.set(gid=name, rasterized=dense)
        ax.add_collection(pixels)
    grid.dress(ax, fontsize)
    _write_labels(ax, cells, boxes, state, colours, values, digits)
    _draw_marks(ax, cells, boxes)
    return state


def _metric(cells: pd.DataFrame) -> str:
    return str(cells["metric"].iloc[0]) if len(cells) and "metric" in cells else "test_accuracy"


def _values(cells: pd.DataFrame, value: str, metric: str) -> np.ndarray:
    """In per cent for accuracies."""
    return pd.to_numeric(cells[value]).to_numpy(dtype=float) * (100.0 if is_fraction(metric) else 1.0)


def _colours(norm: Normalize) -> ScalarMappable:
    return ScalarMappable(norm, colormaps[COLOURMAP].with_extremes(under=UNDER))


def _digits(values: np.ndarray, metric: str) -> int:
    return figure_digits(values / (100.0 if is_fraction(metric) else 1.0), metric)


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


def _write_labels(
    ax: Axes,
    cells: pd.DataFrame,
    boxes: np.ndarray,
    state: np.ndarray,
    colours: ScalarMappable,
    values: np.ndarray,
    digits: int,
) -> None:
    wide, high = pixel_points(ax)
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
    wide, high = pixel_points(ax)
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
    return some and min(pixel_points(ax)) >= _SMALLEST_DOT


def _handles(cells: pd.DataFrame, state: np.ndarray, dotted: bool) -> list[Any]:
    """The legend: marks, and how many cells have each status that is drawn."""
    handles: list[Any] = []
    if "best" in cells and cells["best"].any():
        handles.append(Patch(fill=False, edgecolor=MARK, linewidth=2, label="best by validation"))
    if dotted:
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
    return handles


def _legend(ax: Axes, handles: list[Any]) -> None:
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
