"""Early stopping: what it did (`survival`), and what it would have done (`trade_off`, `rank_correlation`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import (
    INK,
    LINES,
    MARK,
    MARKERS,
    MUTED,
    PALETTE,
    STATUS_STYLE,
    arm_colours,
    legend_below,
    new_axes,
    panels,
    quiet,
)  # fmt: skip

_MOST_ARMS = 12


def survival(stages: pd.DataFrame) -> Figure:
    """A panel an arm: how many of its cells reached each rung, and how many were stopped there (hatched).

    Args:
        stages: what `audit.survival` returns. Of more than twelve arms the first twelve are drawn.
    """
    arms = list(dict.fromkeys(stages["arm"]))[:_MOST_ARMS]
    colours = arm_colours(list(dict.fromkeys(stages["arm"])))
    figure, axes = panels(len(arms), height=3.0)
    hatched = {k: STATUS_STYLE["stopped"][k] for k in ("facecolor", "hatch", "edgecolor")}
    for ax, arm in zip(axes, arms, strict=True):
        rows = stages[stages["arm"] == arm]
        cells = int(rows["cells"].iloc[0])
        spots = np.arange(len(rows))
        went, stopped = (rows[c].to_numpy(dtype=float) for c in ("went_on", "stopped"))
        ax.bar(spots, went, 0.72, color=colours[arm], gid="went_on")
        ax.bar(spots, stopped, 0.72, bottom=went, linewidth=0.6, gid="stopped", **hatched)
        for spot, on, off in zip(spots, went, stopped, strict=True):
            text = f"{on:.0f}" + (f"\n−{off:.0f}" if off else "")
            # Clear of the line that marks all cells.
            above: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "linespacing": 1.0}
            ax.annotate(text, (spot, on + off), ha="center", va="bottom", fontsize=8, color=INK, **above)
        ax.axhline(cells, color=MUTED, linewidth=0.8, linestyle=":", gid="cells")
        ax.set_xticks(spots, ["complete" if np.isnan(s) else f"{s:.0f}" for s in rows["stage"]])
        ax.set_title(f"{arm} ({cells} {'cell' if cells == 1 else 'cells'})", loc="left", fontsize=10)
        ax.set(xlabel="rung (epoch)", ylabel="cells", ylim=(0, cells * 1.3))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        quiet(ax)
    handles = [
        Patch(color=MUTED, label="went on"),
        Patch(linewidth=0.6, label="stopped there", **hatched),
        Line2D([], [], color=MUTED, linewidth=0.8, linestyle=":", label="cells of the arm"),
    ]
    legend_below(figure, handles)
    return figure


def trade_off(settings: pd.DataFrame, *, chance: float | None = None, ax: Axes | None = None) -> Axes:
    """Regret against the share of epochs saved: a point a setting (median over the launch orders), bars the range.

    Colour is the grace period, shape the reduction factor. The regret is the worst arm's, which a comparison of arms
    cannot do without; that of the study's best cell is never larger.

    Args:
        settings: what `audit.Audit.summary` returns.
        chance: `audit.Recorded.chance`; a regret below it is what seeds alone may do.
    """
    if ax is None:
        ax = new_axes(7.4, 4.2)
    graces = list(dict.fromkeys(settings["grace_period"].sort_values()))
    factors = list(dict.fromkeys(settings["reduction_factor"].sort_values()))
    for _, row in settings.iterrows():
        colour = PALETTE[graces.index(row["grace_period"]) % len(PALETTE)]
        marker = MARKERS[factors.index(row["reduction_factor"]) % len(MARKERS)]
        x, y = ([100 * row[f"{name}{end}"] for end in ("", "_low", "_high")] for name in ("saved", "arm_regret"))
        reach: dict[str, Any] = {
            "xerr": [[x[0] - x[1]], [x[2] - x[0]]],
            "yerr": [[y[0] - y[1]], [y[2] - y[0]]],
        }
        look: dict[str, Any] = {"elinewidth": 0.8, "capsize": 2.5, "markersize": 7, "markeredgecolor": "white"}
        gid = f"setting:{row['grace_period']:.0f}:{row['reduction_factor']:.0f}"
        container = ax.errorbar(x[0], y[0], color=colour, marker=marker, linestyle="none", **reach, **look)
        container.lines[0].set_gid(gid)
        container.lines[0].set_zorder(3)
        for bar in (*container.lines[1], *container.lines[2]):
            bar.set_alpha(0.55)
    if chance is not None and np.isfinite(chance):
        ax.axhline(100 * chance, color=MARK, linewidth=1.0, linestyle="--", gid="chance")
    ax.set(xlabel="epochs saved (%)", ylabel="regret (points of validation accuracy)")
    # A point of no regret stands on the axis.
    top = max(
        100 * float(settings["arm_regret_high"].max()), 100 * chance if chance and np.isfinite(chance) else 0.0, 0.1
    )
    ax.set_ylim(-0.06 * top, 1.1 * top)
    ax.set_xlim(left=min(0.0, ax.get_xlim()[0]))
    quiet(ax)
    handles = [
        *(Line2D([], [], color=PALETTE[i % len(PALETTE)], linewidth=4, label=f"grace period {g:.0f}")
          for i, g in enumerate(graces)),
        *(Line2D([], [], color=MUTED, marker=MARKERS[i % len(MARKERS)], linestyle="none",
                 label=f"reduction factor {r:.0f}") for i, r in enumerate(factors)),
    ]  # fmt: skip
    if chance is not None and np.isfinite(chance):
        handles.append(Line2D([], [], color=MARK, linestyle="--", linewidth=1.0, label="what seeds alone move"))
    ax.legend(
        handles=handles, frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0
    )
    return ax


def rank_correlation(ranks: pd.DataFrame, *, arms: list[Any] | None = None, ax: Axes | None = None) -> Axes:
    """Spearman's correlation of the values at an epoch with the final ones, a line an arm.

    Args:
        ranks: what `audit.correlations` returns.
        arms: every arm of the study, for the colours.
    """
    if ax is None:
        ax = new_axes(7.4, 3.6)
    arms = list(dict.fromkeys(ranks["arm"])) if arms is None else arms
    colours = arm_colours(arms)
    for arm, rows in ranks.groupby("arm", sort=False):
        rows = rows.sort_values("epoch")
        ax.plot(
            rows["epoch"],
            rows["spearman"],
            color=colours[arm],
            linestyle=LINES[arms.index(arm) % len(LINES)],
            marker=MARKERS[arms.index(arm) % len(MARKERS)],
            markersize=3.5,
            label=f"{arm} (n={rows['n'].iloc[0]} cells)",
            gid=f"ranks:{arm}",
        )
    ax.axhline(0, color=MUTED, linewidth=0.8)
    low = float(np.nanmin([0.0, ranks["spearman"].min()]))
    ax.set(xlabel="epoch", ylabel="rank correlation with the final values", ylim=(low - 0.05, 1.05))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    quiet(ax)
    if len(ranks):
        ax.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    return ax
