"""Accuracy against what it cost: minibatch gradients and seconds side by side."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.style import (
    INK,
    LINES,
    MARKERS,
    arm_colours,
    arm_handles,
    band,
    legend_below,
    panels,
    possible,
    quiet,
)
from analysis.words import is_fraction, metric_title

_AXIS = {"gradient_evaluations": "minibatch gradients of a seed", "train_seconds": "seconds of training of a seed"}


def accuracy_against_cost(
    costs: pd.DataFrame,
    arms: list[Any] | None = None,
    *,
    titles: dict[str, str] | None = None,
    budgets: dict[tuple[str, str], float] | None = None,
) -> Figure:
    """A panel for each kind of cost, a row of panels for each condition: mean over the seeds as a step line (a value
    stands until the next epoch ends), 95 % interval as a band, a mark where the arm ended.

    Args:
        costs: what `cost.at_equal_cost` returns, for one kind of cost or several below each other; one cell an arm and
            title.
        arms: every arm of the study, for the colours; None: those of `costs`.
        titles: the condition by cell id; None: all cells are under one.
        budgets: by (title, kind of cost), the cost at which the arms are compared, drawn as a thin line.
    """
    metric = str(costs["metric"].iloc[0]) if len(costs) else "validation_accuracy"
    scale = 100.0 if is_fraction(metric) else 1.0
    arms = arms if arms is not None else list(dict.fromkeys(costs["arm"]))
    titles = titles if titles is not None else {str(c): "" for c in costs["cell"]}
    budgets = budgets or {}
    colours = arm_colours(arms)
    kinds, names = list(dict.fromkeys(costs["by"])), list(dict.fromkeys(titles.values())) or [""]
    width = 4.9 if len(kinds) > 1 else 7.0
    figure, axes = panels(max(1, len(kinds) * len(names)), width=width, height=3.4, across=max(1, len(kinds)))
    for i, name in enumerate(names):
        for j, kind in enumerate(kinds):
            ax = axes[i * len(kinds) + j]
            here = costs[(costs["by"] == kind) & costs["cell"].map(titles).eq(name)]
            for cell, rows in here.groupby("cell", sort=False):
                rows = rows.sort_values("cost")
                arm = rows["arm"].iloc[0]
                look: dict[str, Any] = {"color": colours[arm], "linestyle": LINES[arms.index(arm) % len(LINES)]}
                mean = rows["mean"].to_numpy(dtype=float) * scale
                ax.step(rows["cost"], mean, where="post", linewidth=1.6, gid=f"cost:{cell}", **look)
                band(ax, rows["cost"], rows, scale, color=colours[arm], stepped=True)
                end: dict[str, Any] = {"color": colours[arm], "marker": MARKERS[arms.index(arm) % len(MARKERS)]}
                ax.plot(rows["cost"].iloc[-1:], mean[-1:], markersize=5.5, gid=f"end:{cell}", **end)
            budget = budgets.get((name, kind))
            if budget is not None:
                ax.axvline(budget, color=INK, linewidth=0.8, linestyle=":", gid=f"budget:{kind}")
            ax.set(xlabel=_AXIS.get(kind, kind), ylabel=metric_title(metric))
            ax.set_xlim(left=0)
            if is_fraction(metric):
                possible(ax)
            ax.set_title(name, loc="left", fontsize=10)
            quiet(ax)
    handles = arm_handles(costs, arms, 5.5)
    if budgets:
        handles.append(
            Line2D([], [], color=INK, linewidth=0.8, linestyle=":", label="equal cost: where the first ends")
        )
    legend_below(figure, handles)
    return figure
