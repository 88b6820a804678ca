"""The verb `study toy`: the paper's two-dimensional toy (section 3.1), its Figures 1 to 3 and what lies behind them.

The paper prints no start, gamma, learning rate or number of steps for Figures 2 and 3; the ones here were searched
for. What could be had: SAM and ASAM end in the sharp minimum, and Fisher SAM, from the same start, in the flat one's
basin. What could hardly: that Fisher SAM, with a constant gamma and small steps, arrives *at* the flat minimum. Of
343 starts in the sharp basin none does with a gamma from 0.1 to 1.3 (lr 20), 2 with 0.05 and 33 with 1.4, next to the
sqrt(2) at which its probe reaches sigma = 0. The others that leave the sharp basin rest about the saddle or, with a
large gamma, where the probe overshoots into the sharp minimum, whose gradient is zero. Gradient descent without a
probe goes the rest of the way, which is drawn dashed. With steps of lr 200 or 300 paths jump, and some arrive. For
Figure 3 the two gammas had to differ. And much is the choice: `toy_shares` counts a grid of starts over a range of
gammas, where SAM with probes as long, up to about 21, does at least as well.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from trainables.landscape2d import (
    ARRIVED,
    EQ15,
    PRINTED,
    Minimum,
    Share,
    Trajectory,
    basin,
    descend,
    minima,
    semi_axes,
)
from trainables.landscape2d import shares as count_shares

if TYPE_CHECKING:
    from analysis.figures.landscape import Descent, Surface

Start = tuple[float, float]

LR, STEPS = 20.0, 1500
#: Start and runs of Figure 2 (a large sigma) and of Figure 3 (a mu near 0). The third run of each is the rival with a
#: gamma of its own, which the paper does not show.
FIGURES: dict[str, tuple[Start, tuple[tuple[str, float], ...]]] = {
    "toy_sam_fsam": ((-40.0, 45.0), (("sam", 1.1), ("fsam", 1.1), ("sam", 20.0))),
    "toy_asam_fsam": ((-5.0, 14.0), (("asam_eq5", 0.6), ("fsam", 1.1), ("asam_eq5", 0.9))),
}
GAMMAS = {
    "sam": (1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0, 18.0, 21.0, 24.0),
    "asam_eq5": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "fsam": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.3),
}
NAMES = {"sam": "SAM", "asam_eq5": "ASAM", "fsam": "Fisher SAM"}
PLACES = ("flat", "sharp")


def toy(out: str) -> list[str]:
    """Write figures (PNG and SVG) and tables (CSV) of the toy into the folder `out`, made if missing; lines to print.

    toy_loss, toy_sam_fsam, toy_asam_fsam, toy_shares are the figures; toy_minima.csv, toy_trajectories.csv and
    toy_shares.csv the numbers behind them.

    Raises:
        OSError: `out` cannot be made or written.
    """
    from analysis.figures.landscape import contour_map, descents, flat_shares
    from analysis.figures.style import save
    from analysis.tables import whole

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    places = minima(PRINTED)
    surface = surface_of(places)
    save(contour_map(surface, title="Loss of the toy (section 3.1)"), folder / "toy_loss")

    lines = _minima_lines()
    paths: list[pd.DataFrame] = []
    for name, (start, runs) in FIGURES.items():
        lines += ["", f"{name}: from (mu, sigma) = ({start[0]:g}, {start[1]:g}), lr {LR:g}, {STEPS} steps"]
        panels = []
        for optimiser, gamma in runs:
            path = descend(PRINTED, start, optimiser=optimiser, gamma=gamma, lr=LR, steps=STEPS)
            words = f"{NAMES[optimiser]}, gamma {gamma:g}"
            panels.append(_panel(words, optimiser, gamma, path))
            paths.append(_path_table(name, optimiser, gamma, path))
            lines.append(f"  {words}: {_end(path, places)}")
        save(descents(surface, panels), folder / name)

    table = pd.DataFrame([asdict(row) for row in grid_shares()])
    title = "How many starts arrive in the flat minimum"
    save(flat_shares(table, title=title), folder / "toy_shares")
    frames = {
        "toy_minima": _minima_table(),
        "toy_trajectories": pd.concat(paths, ignore_index=True),
        "toy_shares": table,
    }
    for name, frame in frames.items():
        whole(folder / f"{name}.csv", lambda path, f=frame: f.to_csv(path, index=False))  # type: ignore[misc]
    lines += ["", *_share_lines(table), ""]
    lines.append(f"figures and tables: {folder}/toy_*")
    return lines


def surface_of(places: list[Minimum], points: int = 241) -> Surface:
    """The printed landscape on a grid for the figures."""
    from analysis.figures.landscape import Surface

    mu, sigma = np.linspace(-75, 65, points), np.linspace(2, 85, points)
    loss = PRINTED.loss(np.stack(np.meshgrid(mu, sigma), axis=-1))
    flat, sharp = ((float(p.theta[0]), float(p.theta[1]), p.loss, p.trace) for p in places)
    return Surface(mu, sigma, loss, flat, sharp)


def starts() -> np.ndarray:
    """The grid of starts: 21 mu from -60 to 60 by 13 sigma from 4 to 64, shape [273, 2]."""
    mu, sigma = np.meshgrid(np.linspace(-60, 60, 21), np.linspace(4, 64, 13))
    return np.stack([mu.ravel(), sigma.ravel()], axis=-1)


def grid_shares() -> list[Share]:
    """Which share of `starts` each method of `GAMMAS` brings to the flat minimum, by gamma."""
    return count_shares(PRINTED, starts(), GAMMAS, lr=LR, steps=STEPS)


def _end(path: Trajectory, places: list[Minimum]) -> str:
    """Where a descent rests and where gradient descent without a probe goes from there, in words."""
    last = path.theta[-1]
    index = int(basin(PRINTED, last, places))
    away = float(np.linalg.norm(last - places[index].theta))
    where = f"{PLACES[index]} minimum" if away < ARRIVED else f"rests at ({last[0]:.1f}, {last[1]:.1f})"
    return f"{where}, basin {PLACES[index]}; its probes were {np.linalg.norm(path.eps, axis=-1).mean():.1f} long"


def _panel(title: str, optimiser: str, gamma: float, path: Trajectory) -> Descent:
    from analysis.figures.landscape import Descent

    axes = semi_axes(optimiser, path.theta[:-1], gamma)
    # SAM's ball of radius 1.1 would not be seen on a map 140 wide; the others are drawn as they are.
    enlarged = 5.0 if axes.max() < 2 else 1.0
    tail = descend(PRINTED, path.theta[-1], optimiser="sgd", lr=LR, steps=STEPS).theta
    return Descent(title, path.theta, path.eps, axes, path.step, tail, enlarged)


def _path_table(figure: str, optimiser: str, gamma: float, path: Trajectory) -> pd.DataFrame:
    """A row a step: the iterate, its loss and gradient, the probe and the step taken."""
    at = path.theta[:-1]
    slope = PRINTED.gradient(at)
    columns = {"theta": at, "gradient": slope, "eps": path.eps, "step": path.step}
    parts = {f"{name}_{axis}": v[:, i] for name, v in columns.items() for i, axis in enumerate(("mu", "sigma"))}
    head = {
        "figure": figure,
        "optimiser": optimiser,
        "gamma": gamma,
        "lr": LR,
        "t": np.arange(len(at)),
        "loss": PRINTED.loss(at),
    }
    return pd.DataFrame({**head, **parts})


def _minima_table() -> pd.DataFrame:
    rows = [
        {
            "landscape": name,
            "minimum": place,
            "mu": found.theta[0],
            "sigma": found.theta[1],
            "loss": found.loss,
            "hessian_trace": found.trace,
            "hessian_smallest": found.eigenvalues[0],
            "hessian_largest": found.eigenvalues[1],
        }
        for name, landscape in (("printed", PRINTED), ("eq15", EQ15))
        for place, found in zip(PLACES, minima(landscape), strict=True)
    ]
    return pd.DataFrame(rows)


def _minima_lines() -> list[str]:
    def line(row: pd.Series) -> str:
        words = f"  {row['minimum']:<5} ({row['mu']:.2f}, {row['sigma']:.2f})"
        return f"{words}  loss {row['loss']:.2f}  Hessian trace {row['hessian_trace']:.3f}"

    table = _minima_table()
    return [
        "minima of eq 15 with E = KL + 1/2, the paper's printed ones to every digit:",
        *(line(row) for _, row in table[table["landscape"] == "printed"].iterrows()),
        "minima of eq 15 as it stands, E = KL: others, so the paper's figures were made without KL's constant -1/2:",
        *(line(row) for _, row in table[table["landscape"] == "eq15"].iterrows()),
    ]


def _share_lines(table: pd.DataFrame) -> list[str]:
    n, sgd = int(table["starts"].iloc[0]), float(table["sgd_flat"].iloc[0])
    lines = [f"of a grid of {n} starts, gradient descent takes {sgd:.0%} to the flat minimum; with constant gammas"]
    for optimiser, rows in table.groupby("optimiser", sort=False):
        arrives = rows.iloc[int(np.argmax(rows["arrived"]))]
        rests = rows.iloc[int(np.argmax(rows["flat"]))]
        lines.append(
            f"  {NAMES[str(optimiser)]}: at most {arrives['arrived']:.0%} arrive at it (gamma {arrives['gamma']:g}), "
            f"{rests['flat']:.0%} end in its basin (gamma {rests['gamma']:g}, probes {rests['length']:.1f} long)"
        )
    return lines
