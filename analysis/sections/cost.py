"""Equal compute: validation accuracy against minibatch gradients and seconds, and what stood at the smallest total."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis import figures as draw
from analysis import page
from analysis.cost import COSTS, at_equal_cost, reached
from analysis.findings import Findings
from analysis.words import absent, duration, measured, setting, settings, shown

_MOST_ROWS = 60
_MOST_DRAWN = 3  # conditions in the figure; the table has them all

_NOTE = (
    "A step of SAM, ASAM or Fisher SAM takes two minibatch gradients where SGD takes one, so that equal epochs are no "
    "equal cost. At the cost at which the first arm ends an arm that costs more stands in the middle of its schedule: "
    "this is what it had reached by then, not what it would reach if it were planned for that cost. Validation "
    "accuracy, since the test set is looked at once, at the end."
)


def section(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    """Nothing where fewer than two arms have a complete cell: there is nothing to compare."""
    history = found.history
    kinds = [c for c in COSTS if c in history and pd.to_numeric(history[c]).notna().any()]
    if not kinds or "validation_accuracy" not in history:
        return ""
    groups = []
    for values, rows in found.by_condition():
        done = rows[(rows["status"] == "complete") & rows["cell"].isin(history["cell"])]
        if done["arm"].nunique() > 1:
            groups.append((settings(values, found.layout.conditions), values, done))
    if not groups:
        return ""
    there = {(name, kind): reached(history, rows, kind) for name, _, rows in groups for kind in kinds}
    body = page.paragraph(_NOTE, "soft") + _picture(found, groups[:_MOST_DRAWN], kinds, there, folder, figures)
    if len(groups) > _MOST_DRAWN:
        body += page.paragraph(f"The first {_MOST_DRAWN} of {len(groups)} conditions are drawn.", "soft")
    return body + _table(found, groups, kinds, there)


def _picture(
    found: Findings,
    groups: list[tuple[str, dict[str, Any], pd.DataFrame]],
    kinds: list[str],
    there: dict[tuple[str, str], pd.DataFrame],
    folder: Path,
    figures: dict[str, list[Path]],
) -> str:
    rows = pd.concat([own for _, _, own in groups], ignore_index=True)
    titles = {str(cell): name for name, _, own in groups for cell in own["cell"]}
    lines = pd.concat([at_equal_cost(found.history, rows, kind) for kind in kinds], ignore_index=True)
    budgets = {key: float(own["budget"].iloc[0]) for key, own in there.items() if len(own)}
    figure = draw.accuracy_against_cost(lines, found.arms, titles=titles, budgets=budgets)
    figures["cost"] = draw.save(figure, folder / "cost")
    caption = (
        "Mean validation accuracy over the seeds against what a seed had cost until then, bands are 95 % intervals. A "
        "value stands until the next epoch ends."
    )
    if found.tuned:
        caption += " Each arm at the cell that validation chooses."
    if "train_seconds" in kinds:
        caption += f" {_seconds(found)}{_pace(found, rows)}"
    return page.picture(figures["cost"][0], _told(groups, kinds, there), caption)


def _seconds(found: Findings) -> str:
    """What seconds are worth: they depend on the machine and on what else it did."""
    text = "Seconds are of training alone, as the clock measured them on whatever else the machine was doing"
    devices = [str(d) for d in found.replicates.get("device", pd.Series(dtype=object)).dropna().unique()]
    if len(devices) > 1:
        return f"{text}, on different devices ({', '.join(devices)}): they are not comparable between these."
    return f"{text}{f' ({devices[0]})' if devices else ''}."


def _pace(found: Findings, rows: pd.DataFrame) -> str:
    """How long a gradient took: where arms differ more in it than their arithmetic, the machine did."""
    columns = ["gradient_evaluations", "train_seconds"]
    if any(c not in rows for c in columns):
        return ""
    pace = rows.groupby("arm", sort=False)[columns].sum()
    pace = pace[pace["gradient_evaluations"] > 0]
    ms = (1000 * pace["train_seconds"] / pace["gradient_evaluations"]).sort_values()
    if len(ms) < 2:
        return ""
    text = f" A gradient took {ms.iloc[0]:.3g} ms ({ms.index[0]}) to {ms.iloc[-1]:.3g} ms ({ms.index[-1]})"
    if ms.iloc[-1] > 1.3 * ms.iloc[0]:
        return text + ": as far as this is the machine and not the method, the panel of seconds shows the machine."
    return text + "."


def _told(
    groups: list[tuple[str, dict[str, Any], pd.DataFrame]],
    kinds: list[str],
    there: dict[tuple[str, str], pd.DataFrame],
) -> str:
    """The picture in words, for who cannot see it."""
    said = []
    for name, _, _ in groups:
        for kind in kinds:
            rows = there[(name, kind)]
            if rows.empty:
                continue
            means = ", ".join(f"{r['arm']} {shown(r['mean'], 'validation_accuracy')}" for _, r in rows.iterrows())
            where = f" ({name})" if name else ""
            said.append(f"at {_amount(rows['budget'].iloc[0], kind)}{where}: {means} %")
    return "Validation accuracy against cost; " + "; ".join(said) + "."


def _amount(cost: float, kind: str) -> str:
    return f"{cost:,.0f} gradients" if kind == "gradient_evaluations" else duration(cost)


def _table(
    found: Findings,
    groups: list[tuple[str, dict[str, Any], pd.DataFrame]],
    kinds: list[str],
    there: dict[tuple[str, str], pd.DataFrame],
) -> str:
    conditions = list(found.layout.conditions)
    rows = []
    for name, values, _ in groups:
        for kind in kinds:
            for _, row in there[(name, kind)].iterrows():
                at = "–" if absent(row["epoch"]) else f"{row['epoch']:.3g} of {row['epochs']:.0f}"
                mean = measured(*(row[k] for k in ("mean", "low", "high", "n")))
                rows.append(
                    [
                        *(setting(values[f]) for f in conditions),
                        _amount(row["budget"], kind),
                        str(row["arm"]),
                        mean,
                        at,
                        f"{shown(row['final_mean'], 'validation_accuracy')} %",
                        _amount(row["total"], kind),
                    ]
                )
    columns = [
        *conditions,
        "at equal cost",
        "arm",
        "validation accuracy there",
        "epoch there",
        "at its own end",
        "cost",
    ]
    note = page.paragraph(
        "At the smallest total of a seed of these arms: what each had reached, mean over n seeds ± half a 95 % "
        "interval; 'not measured' where a first epoch cost more.",
        "soft",
    )
    body = note + page.table(columns, rows[:_MOST_ROWS], numbers=["epoch there", "at its own end", "cost"], tall=True)
    if len(rows) > _MOST_ROWS:
        body += page.paragraph(f"The first {_MOST_ROWS} of {len(rows)} rows.")
    return body
