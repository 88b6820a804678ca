"""The toy of section 3.1 in pictures: the contour map (Figure 1), descents with their neighbourhoods (Figures 2 and 3),
and which share of the starts reaches the flat minimum.

Arrays and frames in, figures out: what is drawn was computed in `trainables.landscape2d`. The colours are the paper's
as far as a colour-blind reader can tell them apart: a blue star for the flat minimum, a pink dot for the sharp one, a
green diamond for the start, yellow neighbourhoods, light blue probes, red-orange steps. Shapes say the same again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from numpy.typing import NDArray

from analysis.figures.style import INK, LINES, MUTED, PALETTE, new_axes, quiet

Array = NDArray[np.float64]

BLUE, RED, GREEN, PINK, SKY, YELLOW, _ = PALETTE
#: One name a method, as the paper prints it.
NAMES = {"sgd": "SGD", "sam": "SAM", "asam_eq5": "ASAM (eq 5)", "fsam": "Fisher SAM"}


@dataclass(frozen=True)
class Surface:
    """A loss on a grid and its minima.

    Attributes:
        mu, sigma: the grid's axes, [m] and [n].
        loss: [n, m].
        flat, sharp: (mu, sigma, loss, Hessian trace) of the two minima.
    """

    mu: Array
    sigma: Array
    loss: Array
    flat: tuple[float, float, float, float]
    sharp: tuple[float, float, float, float]


@dataclass(frozen=True)
class Descent:
    """One panel of Figures 2 and 3.

    Attributes:
        title: what descends, with its gamma and where it ends.
        theta: iterates, [steps + 1, 2].
        eps, semi_axes: probe and half axes of the neighbourhood at each iterate but the last, [steps, 2].
        step: theta[t + 1] - theta[t], [steps, 2]; its direction is drawn.
        tail: plain gradient descent from the last iterate, [n, 2], dashed: where it ends once the probe is turned off.
        enlarged: factor on neighbourhoods and probes, said under the panel where it is not 1.
    """

    title: str
    theta: Array
    eps: Array
    semi_axes: Array
    step: Array
    tail: Array
    enlarged: float = 1.0


def contour_map(surface: Surface, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Figure 1: the loss's contours over (mu, sigma), both minima with their loss and Hessian trace."""
    if ax is None:
        ax = new_axes(7.2, 4.6)
    lines = _contours(ax, surface)
    ax.clabel(lines, lines.levels[2::3], fontsize=7, colors=MUTED, fmt="%.2f")
    for name, spot, offset in (("flat", surface.flat, (12, 12)), ("sharp", surface.sharp, (-12, -30))):
        mu, sigma, loss, trace = spot
        words = f"{name} ({mu:.2f}, {sigma:.2f})\nl = {loss:.2f}, tr H = {trace:.3f}"
        ax.annotate(
            words,
            (mu, sigma),
            xytext=offset,
            textcoords="offset points",
            ha="left" if offset[0] > 0 else "right",
            fontsize=9,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
        )
    _minima(ax, surface)
    if title:
        ax.set_title(title, loc="left", fontsize=11)
    return ax


def descents(surface: Surface, panels: Sequence[Descent], *, shown: int = 4, title: str | None = None) -> Figure:
    """Figures 2 and 3: a panel a method, its path, and at some iterates the neighbourhood, the probe and the step.

    The iterates with a neighbourhood are the start and those at equal distances along the path. Steps are drawn as
    directions of one length, since they shrink with the gradient.

    Raises:
        ValueError: no panel, or one whose path has no step.
    """
    if not panels or any(len(panel.step) == 0 for panel in panels):
        raise ValueError("panels: need at least one, each with at least one step")
    figure = Figure(figsize=(4.4 * len(panels) + 0.2, 3.5), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        _contours(ax, surface)
        _draw_descent(ax, panel, shown)
        _minima(ax, surface)
        ax.set_title(panel.title, loc="left", fontsize=10)
        ax.label_outer()
        ax.set_aspect("equal")
        size = "true size" if panel.enlarged == 1 else f"drawn ×{panel.enlarged:g}"
        note: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 8, "color": MUTED}
        note["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
        ax.text(0.99, 0.015, f"neighbourhood, probe: {size}", transform=ax.transAxes, gid="size", **note)
    _legend(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def flat_shares(shares: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Share of the starts that arrive in the flat minimum, by gamma and by the probe's mean Euclidean length.

    On the left each metric's own gamma, which means another size for each; on the right the same shares at the mean
    length of the probes behind them. Filled marks arrived; hollow ones, where they differ, rest in the flat basin.

    Args:
        shares: a row an optimiser and gamma, columns as `trainables.landscape2d.Share`.
    """
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    sgd = float(shares["sgd_flat"].iloc[0])
    for ax, column in ((left, "gamma"), (right, "length")):
        ax.axhline(100 * sgd, color=MUTED, linewidth=1)
        ax.text(0.99, 100 * sgd - 1, "SGD", transform=ax.get_yaxis_transform(), ha="right", va="top", color=MUTED)
        for i, (optimiser, rows) in enumerate(shares.groupby("optimiser", sort=False)):
            colour, line = PALETTE[i % len(PALETTE)], LINES[i % len(LINES)]
            name = NAMES.get(str(optimiser), str(optimiser))
            x, arrived = rows[column].to_numpy(dtype=float), 100 * rows["arrived"].to_numpy(dtype=float)
            basin = 100 * rows["flat"].to_numpy(dtype=float)
            ax.plot(
                x,
                arrived,
                color=colour,
                linestyle=line,
                marker="os^D"[i % 4],
                markersize=5,
                gid=f"arrived:{optimiser}",
                label=name,
            )
            hollow: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": colour, "linewidth": 0.7}
            ax.plot(x, basin, color=colour, marker="os^D"[i % 4], markersize=5, gid=f"basin:{optimiser}", **hollow)
        quiet(ax)
        ax.set_ylim(-2, 104)
    left.set(xscale="log", xlabel="gamma, in the metric's own units", ylabel="starts in the flat minimum (%)")
    right.set(xlabel="mean Euclidean length of the probe")
    right.legend(frameon=False, fontsize=9, loc="lower left")
    words = f"{int(shares['starts'].iloc[0])} starts; filled: arrives at the flat minimum; hollow: in its basin"
    right.set_title(words, loc="right", fontsize=8, color=MUTED)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _contours(ax: Axes, surface: Surface) -> Any:
    low, high = float(surface.loss.min()), float(np.quantile(surface.loss, 0.98))
    # denser near the minima, where the surface is flat
    levels = low + (high - low) * np.linspace(0.05, 1, 16) ** 2
    ax.contourf(surface.mu, surface.sigma, surface.loss, [low - 1, *levels], cmap="Greys", alpha=0.28, extend="max")
    lines = ax.contour(surface.mu, surface.sigma, surface.loss, levels, colors="#9a9a9a", linewidths=0.6)
    ax.set(xlabel="mu", ylabel="sigma")
    ax.set_xlim(float(surface.mu[0]), float(surface.mu[-1]))
    ax.set_ylim(float(surface.sigma[0]), float(surface.sigma[-1]))
    return lines


def _minima(ax: Axes, surface: Surface) -> None:
    edge: dict[str, Any] = {"markeredgecolor": "white", "linestyle": "none", "zorder": 6}
    ax.plot(*surface.flat[:2], marker="*", markersize=15, color=BLUE, gid="flat", **edge)
    ax.plot(*surface.sharp[:2], marker="o", markersize=9, color=PINK, gid="sharp", **edge)


def _draw_descent(ax: Axes, panel: Descent, shown: int) -> None:
    ax.plot(*panel.theta.T, color=INK, linewidth=1.4, gid="path", zorder=4)
    ax.plot(*panel.tail.T, color=INK, linewidth=1.4, linestyle=(0, (2, 1.5)), gid="tail", zorder=4)
    ax.plot(*panel.theta[-1], marker="X", markersize=9, color=INK, markeredgecolor="white", gid="end", zorder=7)
    extent = np.ptp(ax.get_xlim())
    for t in _spread(panel.theta[:-1], shown):
        place = panel.theta[t]
        width, height = 2 * panel.enlarged * panel.semi_axes[t]
        rim = Ellipse(tuple(place), width, height, facecolor="none", edgecolor=YELLOW, linewidth=1.5, zorder=3)
        rim.set_gid("neighbourhood")
        ax.add_patch(rim)
        _arrow(ax, place, panel.enlarged * panel.eps[t], SKY, "probe")
        length = float(np.linalg.norm(panel.step[t]))
        if length > 0:
            _arrow(ax, place, panel.step[t] / length * 0.07 * extent, RED, "step")
    ax.plot(*panel.theta[0], marker="D", markersize=9, color=GREEN, markeredgecolor="white", gid="start", zorder=6)


def _arrow(ax: Axes, place: Array, by: Array, colour: str, gid: str) -> None:
    style: dict[str, Any] = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
    arrow = ax.annotate("", xy=tuple(place + by), xytext=tuple(place), arrowprops=style, zorder=5)
    arrow.set_gid(gid)


def _spread(theta: Array, count: int) -> list[int]:
    """Indices of the start and of the iterates at equal distances along the path, at most `count`, none of them from
    the end's circling about one place."""
    moving = np.linalg.norm(theta - theta[-1], axis=-1) > 1
    way = theta[: int(np.argmin(moving)) + 1]
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(way, axis=0), axis=-1))])
    return sorted({int(i) for i in np.searchsorted(along, np.linspace(0, along[-1], count))})


def _legend(figure: Figure) -> None:
    none: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "white"}
    handles = [
        Line2D([], [], marker="D", color=GREEN, markersize=8, label="start", **none),
        Line2D([], [], marker="X", color=INK, markersize=8, label="end", **none),
        Line2D([], [], color=INK, linewidth=1.4, linestyle=(0, (2, 1.5)), label="then without a probe"),
        Line2D([], [], marker="*", color=BLUE, markersize=12, label="flat minimum", **none),
        Line2D([], [], marker="o", color=PINK, markersize=8, label="sharp minimum", **none),
        Line2D([], [], marker="o", markerfacecolor="none", markeredgecolor=YELLOW, linestyle="none", markersize=10),
        Line2D([], [], color=SKY, linewidth=2, label="worst-case probe"),
        Line2D([], [], color=RED, linewidth=2, label="step (direction)"),
    ]
    handles[5].set_label("neighbourhood")
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles) if len(figure.axes) > 2 else 4,
        frameon=False,
        fontsize=8,
    )
