"""Outcomes against the rate of label noise (Table 4 of the paper as curves), and the gamma that each rate needs."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.figures.style import LINES, MARKERS, arm_colours, banded, legend_below, panels, possible, quiet, seeds_of
from analysis.words import metric_title, setting


def label_noise(
    outcomes: pd.DataFrame, arms: list[Any], *, alike: pd.DataFrame | None = None, title: str | None = None
) -> Figure:
    """A panel a quantity: test accuracy, wrong labels memorised, true class given all the same; a line an arm over the
    rate, its 95 % interval as a band.

    Args:
        outcomes: what `conditions.also` returns for these quantities: one row a cell and `metric`.
        arms: every arm of the study, for the colours.
        alike: for a last panel with the gamma at which each arm stands: what `conditions.alike` returns.
    """
    quantities = list(dict.fromkeys(outcomes["metric"]))
    count = len(quantities) + (alike is not None)
    figure, axes = panels(count, width=4.4 if count == 4 else 3.9, across=2 if count == 4 else 3)
    for ax, quantity in zip(axes, quantities, strict=False):
        for arm, rows in _lines(outcomes[outcomes["metric"] == quantity]):
            banded(ax, 100 * rows["label_noise"], rows, 100.0, gid=f"{quantity}:{arm}", **_look(arm, arms))
        ax.set(ylabel=metric_title(quantity))
        possible(ax)
        _rates(ax, outcomes)
    if alike is not None:
        _gammas(axes[-1], outcomes[outcomes["metric"] == quantities[0]], alike, arms)
        _rates(axes[-1], outcomes)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    n = {arm: seeds_of(rows["n"]) for arm, rows in outcomes.groupby("arm")}
    drawn = [a for a in arms if a in n]
    legend_below(figure, [Line2D([], [], label=f"{a} ({n[a]})", **_look(a, arms)) for a in drawn])
    return figure


def _lines(rows: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    return [(arm, own.sort_values("label_noise")) for arm, own in rows.groupby("arm", sort=False)]


def _look(arm: Any, arms: list[Any]) -> dict[str, Any]:
    i = arms.index(arm)
    look = {"linestyle": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4.5}
    return {"color": arm_colours(arms)[arm], **look}


def _gammas(ax: Axes, rows: pd.DataFrame, alike: pd.DataFrame, arms: list[Any]) -> None:
    known = rows[rows["gamma"].notna()]
    for place, (arm, own) in enumerate(_lines(known)):
        # Arms that choose one gamma would hide each other.
        shift = 0.8 * (place - (known["arm"].nunique() - 1) / 2)
        look = _look(arm, arms)
        ax.plot(100 * own["label_noise"] + shift, own["gamma"], gid=f"gamma:{arm}", **look)
        mine = alike[(alike["arm"] == arm) & alike["indistinguishable"]]
        open_: dict[str, Any] = {"facecolors": "none", "edgecolors": look["color"], "linewidths": 0.8, "s": 16}
        spots = 100 * mine["label_noise"] + shift
        ax.scatter(spots, mine["gamma"], marker=look["marker"], gid=f"alike:{arm}", **open_)
    values = sorted({*known["gamma"], *alike["gamma"].dropna()})
    if values and min(values) > 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(FixedLocator(values))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: setting(v)))
    ax.set(ylabel="gamma chosen by validation\n(open: not distinguishable)")


def _rates(ax: Axes, rows: pd.DataFrame) -> None:
    rates = sorted(100 * rows["label_noise"].unique())
    if len(rates) <= 8:
        ax.set_xticks(rates, [setting(r) for r in rates])
    # The same span in all panels, although nothing is memorised at rate 0.
    edge = 0.05 * max(rates[-1] - rates[0], 1)
    ax.set(xlabel="rate of label noise (%)", xlim=(rates[0] - edge, rates[-1] + edge))
    quiet(ax)
