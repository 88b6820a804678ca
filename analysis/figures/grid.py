"""Where a cell stands on a map of two settings: one pixel a cell, references beside the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.words import absent, setting

_GAP = 0.35  # pixels between the grid and what stands beside it
_BAR = 0.7  # height in pixels of the bar of an arm that uses neither axis


@dataclass(frozen=True)
class Ticks:
    at: list[float]
    labels: list[str]


@dataclass(frozen=True)
class Grid:
    """The places of a map, in pixels: the values of both axes in order, and a column, row or bar for each arm that
    does not use one of them. Panels that share a grid can be compared place by place.
    """

    x: str
    y: str
    xs: dict[Any, float]
    ys: dict[Any, float]
    columns: dict[Any, float]
    rows: dict[Any, float]
    bars: dict[Any, float]
    xticks: Ticks
    yticks: Ticks

    @property
    def left(self) -> float:
        return min(self.columns.values(), default=0.0)

    @property
    def width(self) -> float:
        return len(self.xs) - self.left or 1.0

    @property
    def bottom(self) -> float:
        return min((*self.rows.values(), *self.bars.values()), default=0.0)

    @property
    def height(self) -> float:
        return len(self.ys) - self.bottom or 1.0

    @classmethod
    def of(cls, cells: pd.DataFrame, x: str, y: str) -> Grid:
        """The grid that has a place for each of `cells`.

        Raises:
            ValueError: `x` or `y` is not a column.
        """
        for name in (x, y):
            if name not in cells:
                raise ValueError(f"{name} is not a column of the cells")
        has_x, has_y = cells[x].notna(), cells[y].notna()
        arms = cells["arm"] if "arm" in cells else pd.Series("", index=cells.index)
        xs, ys = _levels(cells.loc[has_x, x]), _levels(cells.loc[has_y, y])
        columns = list(dict.fromkeys(arms[~has_x & has_y]))
        rows = list(dict.fromkeys(arms[has_x & ~has_y]))
        bars = list(dict.fromkeys(arms[~has_x & ~has_y]))

        gap = _GAP if xs else 0.0
        x_of = {v: float(i) for i, v in enumerate(xs)}
        column_of = {arm: i - len(columns) - gap for i, arm in enumerate(columns)}
        y_of = {v: float(i) for i, v in enumerate(ys)}
        below = -(_GAP if ys else 0.0)
        row_of = {arm: below - 1 - i for i, arm in enumerate(rows)}
        bar_of = {arm: below - len(rows) - _BAR * (i + 1) for i, arm in enumerate(bars)}

        optimisers = dict(zip(arms, cells["optimiser"], strict=True)) if "optimiser" in cells else {}
        xticks = Ticks(
            [*(v + 0.5 for v in column_of.values()), *(v + 0.5 for v in x_of.values())],
            [*(_column_label(arm, optimisers, x) for arm in column_of), *tick_labels(xs)],
        )
        yticks = Ticks(
            [*(v + 0.5 for v in y_of.values()), *(v + 0.5 for v in row_of.values())]
            + [v + _BAR / 2 for v in bar_of.values()],
            [*tick_labels(ys), *map(str, row_of), *map(str, bar_of)],
        )
        return cls(x, y, x_of, y_of, column_of, row_of, bar_of, xticks, yticks)

    def boxes(self, cells: pd.DataFrame) -> np.ndarray:
        """(left, bottom, width, height) in pixels of each of `cells`, shape [cells, 4].

        Raises:
            ValueError: two cells fall on one pixel; the message names a setting in which they differ.
        """
        has_x, has_y = cells[self.x].notna(), cells[self.y].notna()
        arms = cells["arm"] if "arm" in cells else pd.Series("", index=cells.index)
        boxes = np.empty((len(cells), 4))
        seen: dict[tuple[float, float], int] = {}
        for i, (arm, vx, vy, ok_x, ok_y) in enumerate(
            zip(arms, cells[self.x], cells[self.y], has_x, has_y, strict=True)
        ):
            if ok_x and ok_y:
                box = (self.xs[vx], self.ys[vy], 1.0, 1.0)
            elif ok_x:
                box = (self.xs[vx], self.rows[arm], 1.0, 1.0)
            elif ok_y:
                box = (self.columns[arm], self.ys[vy], 1.0, 1.0)
            else:
                box = (self.left, self.bars[arm], self.width, _BAR)
            other = seen.setdefault(box[:2], i)
            if other != i:
                raise ValueError(_collision(cells.iloc[other], cells.iloc[i], self.x, self.y))
            boxes[i] = box
        return boxes

    def dress(self, ax: Axes, fontsize: float = 10.0) -> None:
        """Limits, labels and as many ticks as there is room for in this size of text (points)."""
        right, top = self.left + self.width, self.bottom + self.height
        ax.set(xlim=(self.left - 0.06, right + 0.06), ylim=(self.bottom - 0.06, top + 0.06), xlabel=self.x)
        ax.set_ylabel(self.y)
        wide, high = pixel_points(ax)
        # A point takes half the room of a digit.
        longest = max(
            (len(part) - 0.5 * part.count(".") for label in self.xticks.labels for part in label.split("\n")), default=1
        )
        ax.set_xticks(*_thinned(self.xticks, (longest * 0.65 * fontsize + 4) / max(wide, 1e-9)))
        ax.set_yticks(*_thinned(self.yticks, 1.3 * fontsize / max(high, 1e-9)))
        ax.tick_params(length=0, labelsize=fontsize)
        ax.spines[:].set_visible(False)


def _levels(values: pd.Series) -> list[Any]:
    unique = list(values.unique())
    try:
        return sorted(unique)
    except TypeError:
        return sorted(unique, key=str)


def tick_labels(values: list[Any]) -> list[str]:
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
    differ = [c for c in ("arm", *a.index) if c in a.index and c not in ("cell", x, y) and not _same(a[c], b[c])]
    first = differ[0] if differ else "nothing"
    return (
        f"cells {a['cell']} and {b['cell']} share one pixel of {x} x {y} and differ in {first}; "
        "draw one panel for each of its values (layout.layout does)"
    )


def _same(a: Any, b: Any) -> bool:
    return (absent(a) and absent(b)) or (type(a) is type(b) and a == b)


def corners(left: float, bottom: float, width: float, height: float) -> list[tuple[float, float]]:
    right, top = left + width, bottom + height
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def _thinned(ticks: Ticks, room: float) -> tuple[list[float], list[str]]:
    """Every k-th tick of the grid, so that labels of `room` pixels do not touch. References keep theirs all."""
    beside = [i for i, at in enumerate(ticks.at) if at < 0]
    inside = [i for i, at in enumerate(ticks.at) if at >= 0]
    step = max(1, int(np.ceil(room)))
    # Thinned labels start half a step in, clear of the reference's label next to the grid.
    keep = [*beside, *inside[step // 2 if beside else 0 :: step]]
    return [ticks.at[i] for i in keep], [ticks.labels[i] for i in keep]


def pixel_points(ax: Axes) -> tuple[float, float]:
    """Width and height of a pixel in points."""
    figure = ax.get_figure()
    if figure is None:
        return 0.0, 0.0
    box = ax.get_window_extent()
    dpi = figure.get_dpi() if hasattr(figure, "get_dpi") else 100.0
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    # A fifth less: the layout engine has still to make room for ticks, bar and legend.
    return 0.8 * box.width / dpi * 72 / (x1 - x0), 0.8 * box.height / dpi * 72 / (y1 - y0)
