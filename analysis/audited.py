"""What an audit of early stopping found, in words: for a terminal and a page alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.audit import TOP, Audit, Recorded, correlations
from analysis.replay import Setting
from analysis.words import counted

_ROUNDING = 1e-12


def table_of(recorded: Recorded, found: Audit) -> tuple[list[str], list[list[str]]]:
    """Column titles and a row of text a setting, for a terminal and a page alike; `explained` says what they are."""
    largest = _largest(recorded)
    summary = found.summary()
    first = [int(e) for e in summary["grace_period"].unique()]
    ranks = correlations(recorded, first)
    ranks = ranks[ranks["arm"] == largest].set_index("epoch")
    several = recorded.cells["arm"].nunique() > 1
    limited = bool(summary["max_t"].notna().any())
    columns = ["grace", "reduction", *(["max_t"] if limited else []), "rungs", "saved (%)", "regret (points)"]
    columns += [*(["worst arm's regret"] if several else []), f"lost of best {'/'.join(map(str, TOP))}"]
    columns += ["lost of the equals", *(["rank correlation"] if len(ranks) else [])]
    rows = []
    for row in (r for _, r in summary.iterrows()):
        setting = _setting(row)
        text = [
            str(setting.grace_period),
            str(setting.reduction_factor),
            *([str(setting.max_t or "–")] if limited else []),
        ]
        text += [" ".join(map(str, setting.rungs(max(recorded.max_t.values())))), _ranged(row, "saved", 0)]
        text += [_ranged(row, name, 2) for name in ("regret", *(["arm_regret"] if several else []))]
        few = ["/".join(f"{row[f'{name}_{k}']:.{digits}f}" for k in TOP) for name, digits in (("lost", 1), ("of", 0))]
        text += [" of ".join(few), f"{row['lost_same']:.1f} of {row['of_same']:.0f}"]
        if len(ranks):
            value = ranks["spearman"].get(setting.grace_period, math.nan)
            text.append("–" if math.isnan(value) else f"{value:.2f}")
        rows.append(text)
    return columns, rows


def _largest(recorded: Recorded) -> Any:
    """The arm with most cells."""
    return recorded.cells["arm"].value_counts().index[0]


def explained(recorded: Recorded, columns: Sequence[str]) -> str:
    """What the columns of `table_of` are."""
    text = (
        "Saved (of all epochs) and regret: median and range over the orders; regret is what the best cell has more "
        "than the one that is chosen of those left, in percentage points of validation accuracy"
    )
    if "worst arm's regret" in columns:
        text += ", also for the arm that loses most"
    text += (
        ". Lost: cells stopped, mean over the orders; the equals are the best cell and those that cannot be told from "
        "it on the test set."
    )
    if "rank correlation" in columns:
        cells = int((recorded.cells["arm"] == _largest(recorded)).sum())
        text += f" Rank correlation (Spearman): first rung against final values, {_largest(recorded)}, n={cells} cells."
    return text


def _ranged(row: Any, name: str, digits: int) -> str:
    """A median in per cent or points, with the range over the orders."""
    middle, low, high = (f"{row[f'{name}{end}'] * 100:.{digits}f}" for end in ("", "_low", "_high"))
    return f"{middle} ({low} to {high})" if low != high else middle


def _setting(row: Any) -> Setting:
    most = None if pd.isna(row["max_t"]) else int(row["max_t"])
    return Setting(int(row["grace_period"]), int(row["reduction_factor"]), most)


def advice(recorded: Recorded, found: Audit) -> list[str]:
    """What the audit means, in sentences; numbers carry their n. Nothing of a study that stopped cells itself: what is
    left of it says little of a setting that would have kept others.
    """
    if recorded.survivors_only:
        return []
    table = found.summary()
    total, orders = len(table), int(table["orders"].iloc[0])
    chance = recorded.chance
    tolerance = 0.0 if math.isnan(chance) else chance
    safe = table[(table["arm_regret_high"] <= tolerance + _ROUNDING) & (table["unanswered"] == 0)]
    several = recorded.cells["arm"].nunique() > 1
    best = "each arm's best cell" if several else "the best cell"
    if math.isnan(chance):
        yardstick = f"kept {best}"
        lost = "loses it"
    else:
        seeds = sorted(set(recorded.cells["n"]))
        n = f"n={seeds[0]}" if len(seeds) == 1 else f"n={seeds[0]} to {seeds[-1]}"
        yardstick = (
            f"kept {best} or one within {chance * 100:.2f} points of it (one standard error of a difference between "
            f"two cells, {n} seeds)"
        )
        lost = "loses more"
    every = f"all {orders} orders" if orders > 1 else "the one order"
    lines = []
    if safe.empty:
        lines.append(
            f"None of the {counted(total, 'setting')} {yardstick} in {every}: each {lost} in some. Train "
            "such a study in full."
        )
    else:
        row: Any = safe.sort_values(["saved", "grace_period"], ascending=[False, True], kind="stable").iloc[0]
        bests = found.lost[found.lost["place"] == 1]
        first = bests[[_setting(own) == _setting(row) for _, own in bests.iterrows()]]
        which = f"Of these, {_named(row)} saves most" if total > 1 else "It saves"
        lines.append(
            f"{len(safe)} of {counted(total, 'setting')} {yardstick} in {every}. {which}: {_ranged(row, 'saved', 0)} "
            f"% of the epochs, at a regret of {_ranged(row, 'regret', 2)} points; it stopped "
            f"{'a' if len(first) > 1 else 'the'} best cell in {int(first['stops'].max())} of "
            f"{counted(orders, 'order')}."
        )
        lines.append(
            f"The price is the map: {row['stopped']:.0f} of {row['n']:.0f} cells would have no final value, among them "
            f"{row['lost_same']:.1f} of the {row['of_same']:.0f} that are the best or cannot be told from it on the "
            "test set (mean over the orders)."
        )
    if table["unanswered"].max() > 0:
        worst: Any = table.sort_values("unanswered").iloc[-1]
        lines.append(
            f"ASHA compares all cells of an arm, whatever their condition: with {_named(worst)}, "
            f"{worst['unanswered']:.1f} of {len(recorded.cells[['arm', 'rivals']].drop_duplicates())} pairs of arm and "
            "condition (mean over the orders) kept no cell at all. Make such a study one for each condition, or train "
            "it in full."
        )
    return lines


def caveats(recorded: Recorded) -> list[str]:
    """What the audit cannot say: the cells that are left out, and why."""
    lines = []
    for why, rows in recorded.left_out.groupby("why", sort=False):
        lines.append(f"Left out, {counted(len(rows), 'cell')}: {why}")
    if recorded.survivors_only:
        lines.append(
            "This study stopped cells itself: only its survivors have full curves. The numbers say how these would "
            "have fared among themselves, not what another setting would have done to the study."
        )
    return lines


def _named(row: Any) -> str:
    """A setting in words: `grace 2, reduction 3`."""
    text = f"grace {row['grace_period']:.0f}, reduction {row['reduction_factor']:.0f}"
    return text if pd.isna(row["max_t"]) else f"{text}, max_t {row['max_t']:.0f}"
