"""The difference map: Fisher SAM minus SAM of the same gamma, one pixel a pair of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.lines import Line2D

from analysis.figures.grid import Grid, corners, pixel_points
from analysis.figures.style import INK, ink_on, new_axes
from analysis.intervals import LEVEL
from analysis.words import is_fraction, metric_title

#: Diverging in hue about a neutral grey and monotone in lightness: blue and dark is worse, yellow and light is better,
#: so that a grey printer keeps the order that the sign makes.
DIVERGING = LinearSegmentedColormap.from_list(
    "difference", [(0.0, "#08205e"), (0.27, "#3d62a8"), (0.5, "#9f9f9f"), (0.73, "#dfb64a"), (1.0, "#ffe873")]
)
_SMALLEST_TEXT = 5.0  # points
_SMALLEST_MARK = 7.0  # points of a pixel's side
_DENSE = 1500  # pixels, beyond which they are drawn as an image


def difference_map(
    pairs: pd.DataFrame,
    *,
    x: str = "eta",
    y: str = "gamma",
    ax: Axes | None = None,
    title: str | None = None,
    limit: float | None = None,
) -> Axes:
    """One pixel a pair of cells, coloured by the mean paired difference in percentage points, with its sign, value and
    n in it. A ring says that the 95 % interval excludes 0, a disc that it does after Holm over the pairs of the map's
    arms; the legend counts both, and how many rings chance alone would make. Where pixels are too small for text and
    marks both are left out, the legend stays.

    Args:
        pairs: what `matched.matched_differences` returns (or `compare.difference`), one row a pixel.
        limit: the colours reach from minus to plus this, in the map's unit; None: as far as the differences do, a few
            outliers left out (their pixels have the end's colour, and the bar an arrow), but at least to half the
            median interval.

    Returns:
        The Axes; the array of its collection `difference` has the values, in points for accuracies.

    Raises:
        ValueError: two pairs fall on one pixel.
    """
    pairs = pairs.rename(columns={"cell_a": "cell"}).reset_index(drop=True)
    metric = str(pairs["metric"].iloc[0]) if len(pairs) and "metric" in pairs else "test_accuracy"
    scale = 100.0 if is_fraction(metric) else 1.0
    unit = "percentage points" if is_fraction(metric) else "its own unit"
    grid = Grid.of(pairs, x, y)
    boxes = grid.boxes(pairs)
    if ax is None:
        wide, high = float(np.clip(grid.width * 0.92, 2.6, 12)), float(np.clip(grid.height * 0.66, 1.3, 9))
        ax = new_axes(max(wide + 2.0, 5.4), max(high + 1.9, 3.6))
    values = pairs["difference"].to_numpy(dtype=float) * scale
    half = (pairs["high"] - pairs["low"]).to_numpy(dtype=float) / 2 * scale
    reach, beyond = _limit(values, limit, half)
    colours = ScalarMappable(Normalize(-reach, reach), DIVERGING)
    dense = len(pairs) > _DENSE
    pixels = PolyCollection(
        [corners(*box) for box in boxes], array=values, cmap=colours.cmap, norm=colours.norm, gid="difference"
    )
    pixels.set(edgecolor="white", linewidth=0.0 if dense else 1.0, rasterized=dense)
    ax.add_collection(pixels)
    grid.dress(ax)
    if title:
        ax.set_title(title, loc="left", fontsize=11)
    alone, after = _significant(pairs)
    _write(ax, pairs, boxes, values, colours)
    _mark(ax, boxes, alone, after, colours.to_rgba(values))
    figure = ax.get_figure()
    if figure is not None and len(pairs):
        bar = figure.colorbar(colours, ax=ax, extend=beyond, fraction=0.05, pad=0.02, aspect=22)
        bar.set_label(f"{metric_title(metric).removesuffix(' (%)')}, difference\nin {unit}", fontsize=9)
        bar.outline.set_visible(False)
        bar.ax.axhline(0, color=INK, linewidth=1.0)
        handles = _handles(pairs, alone, after)
        figure.legend(handles=handles, loc="outside lower left", ncols=1, frameon=False, fontsize=8.5, labelcolor=INK)
    return ax


def _limit(values: np.ndarray, limit: float | None, half: np.ndarray) -> tuple[float, str]:
    size = np.abs(values[np.isfinite(values)])
    if limit is None:
        limit = float(size.max(initial=0.0))
        # One row that collapsed must not turn the rest grey: beyond the far fence colours saturate.
        fence = float(np.quantile(size, 0.75) + 3 * np.subtract(*np.quantile(size, [0.75, 0.25]))) if len(size) else 0
        if 0 < fence < limit and (size <= fence).sum() > 2:
            limit = float(size[size <= fence].max())
        # Differences within their intervals are no bright colours: one image of a small test set is not a result.
        limit = max(limit, float(np.median(half[np.isfinite(half)])) if np.isfinite(half).any() else 0.0)
        limit = limit if limit > 1e-9 else 1.0
    over, under = bool((values > limit + 1e-12).any()), bool((values < -limit - 1e-12).any())
    return limit, {(True, True): "both", (True, False): "max", (False, True): "min"}.get((over, under), "neither")


def _significant(pairs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Which intervals exclude 0, and which do after Holm."""
    alone = ((pairs["low"] > 0) | (pairs["high"] < 0)).to_numpy(dtype=bool)
    return alone, (pairs["p_holm"] < 1 - LEVEL).to_numpy(dtype=bool)


def _write(ax: Axes, pairs: pd.DataFrame, boxes: np.ndarray, values: np.ndarray, colours: ScalarMappable) -> None:
    wide, high = pixel_points(ax)
    size = min(9.5, wide / 5.6, high / 2.7)
    if size < _SMALLEST_TEXT:
        return
    digits = 2 if np.nanmax(np.abs(values), initial=0.0) < 10 else 1
    inks = [ink_on(colour) for colour in colours.to_rgba(values)]
    for box, value, n, cell, ink in zip(boxes, values, pairs["n"], pairs["cell"], inks, strict=True):
        # No sign where there is no difference.
        text = f"{value:+.{digits}f}" if abs(value) > 1e-9 else "0"
        text += f"\nn={n:.0f}"
        look: dict[str, Any] = {"ha": "center", "va": "center", "color": ink, "fontsize": size, "gid": f"label:{cell}"}
        ax.text(box[0] + box[2] / 2, box[1] + box[3] / 2 - 0.03, text, **look)


def _mark(ax: Axes, boxes: np.ndarray, alone: np.ndarray, after: np.ndarray, colours: np.ndarray) -> None:
    small = min(pixel_points(ax))
    if small < _SMALLEST_MARK:
        return
    inks = np.array([ink_on(colour) for colour in colours], dtype=object)
    for name, chosen in (("interval", alone & ~after), ("holm", after)):
        if not chosen.any():
            continue
        at = boxes[chosen]
        look: dict[str, Any] = {"edgecolors": list(inks[chosen]), "linewidths": 1.1, "zorder": 4, "gid": name}
        look["facecolors"] = "none" if name == "interval" else list(inks[chosen])
        ax.scatter(at[:, 0] + at[:, 2] - 0.13, at[:, 1] + at[:, 3] - 0.16, s=min(20.0, (small / 4) ** 2), **look)


def _handles(pairs: pd.DataFrame, alone: np.ndarray, after: np.ndarray) -> list[Line2D]:
    tested = int(pairs["low"].notna().sum())
    seeds = sorted({int(n) for n in pairs["n"]})
    n = f"n={seeds[0]}" if len(seeds) == 1 else f"n={seeds[0]} to {seeds[-1]}"
    chance = f"{(1 - LEVEL) * tested:.1f}" if tested < 200 else f"{(1 - LEVEL) * tested:.0f}"
    ring: dict[str, Any] = {"marker": "o", "markersize": 4.5, "color": INK, "linestyle": "none"}
    text = f"95 % interval excludes 0: {int(alone.sum())} of {tested} that have one ({n}; by chance alone: {chance})"
    return [
        Line2D([], [], markerfacecolor="none", label=text, **ring),
        Line2D([], [], label=f"so after Holm over {len(pairs)} pairs: {int(after.sum())}", **ring),
    ]
