"""Arms side by side under each condition: Tables 1, 3 and 4 of the paper, and label noise as curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis import figures as draw
from analysis import page
from analysis.conditions import alike, also
from analysis.findings import Findings, points_of
from analysis.sections import results
from analysis.words import absent, measured, setting, settings

_MOST_ROWS = 200
_MOST_FIGURES = 6
_OUTCOMES = ("test_accuracy", "memorised", "recovered")


def section(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    """The figure, where there is one for these conditions, then the tables."""
    if not found.layout.conditions:
        return ""
    if "label_noise" in found.layout.conditions:
        return noise(found, folder, figures) + table(found)
    untuned = found.layout.conditions == found.layout.factors
    return (results.panels(found, folder, figures) if untuned else "") + table(found)


def title(found: Findings) -> str:
    return f"By {' and '.join(f.replace('_', ' ') for f in found.layout.conditions)}"


def table(found: Findings) -> str:
    """A row a condition, a column an arm; then Fisher SAM's paired differences from the others in the same form."""
    conditions = list(found.layout.conditions)
    groups = list(found.by_condition())
    rows = []
    for values, here in groups[:_MOST_ROWS]:
        by_arm = {row["arm"]: row for _, row in here.iterrows()}
        said = [_short(found, by_arm[arm]) if arm in by_arm else "–" for arm in found.arms]
        rows.append([*(setting(values[f]) for f in conditions), *said])
    chosen = (
        "Of an arm's cells under a condition the complete one of highest validation accuracy stands here, with its "
        "setting; the test set chooses nothing. "
        if found.tuned
        else ""
    )
    body = page.paragraph(
        f"Test accuracy in per cent, mean over n seeds ± half a 95 % interval. {chosen}A cell that is not complete "
        "says so and is in no difference.",
        "soft",
    )
    if len(groups) > _MOST_ROWS:
        body += page.paragraph(f"The first {_MOST_ROWS} of {len(groups)}; all are in tables/by_condition.csv.")
    body += page.table([*conditions, *map(str, found.arms)], rows, tall=True)
    return body + _further(found, conditions) + _differences(found, conditions)


def _short(found: Findings, row: Any) -> str:
    """`outcome` for a column of a table: without the unit and in few words."""
    named = settings(row, found.tuned)
    mean = measured(*(row[k] for k in ("mean", "low", "high", "n"))).replace(" %", "")
    if row["status"] == "complete":
        return f"{mean}, {named}" if named else mean
    if row["cells_planned"] > 1:
        return f"none of {row['cells_planned']} complete"
    if row["status"] == "partial":
        return f"{mean}, {row['n_planned']} planned"
    return str(row["status"]) + ("" if absent(row["epoch"]) else f", epoch {row['epoch']:.0f}")


def _further(found: Findings, conditions: list[str]) -> str:
    """Other results of the same cells that were recorded: top 5, and what became of the wrong labels."""
    body = ""
    extra = also(found.replicates, found.choice, ["test_top5_accuracy", "memorised", "recovered"])
    for metric, frame in extra.groupby("metric", sort=False):
        rows = []
        for values, here in found.by_condition():
            mine = frame[frame["cell"].isin(here["cell"])]
            if mine.empty:
                continue
            of = {row["arm"]: measured(*(row[k] for k in ("mean", "low", "high", "n"))) for _, row in mine.iterrows()}
            rows.append([*(setting(values[f]) for f in conditions), *(of.get(arm, "–") for arm in found.arms)])
        body += page.paragraph(_MEANING[str(metric)], "soft")
        body += page.table([*conditions, *map(str, found.arms)], rows[:_MOST_ROWS], tall=True)
    return body


_MEANING = {
    "test_top5_accuracy": "The same cells' test accuracy among the first five guesses:",
    "memorised": "Of the wrong training labels, the share that the same trained networks give back (memorised):",
    "recovered": "Of the images with wrong training labels, the share for which they give the true class all the same:",
}


def _differences(found: Findings, conditions: list[str]) -> str:
    frame = found.differences
    if frame.empty:
        return ""
    pairs = list(frame[["arm_a", "arm_b"]].drop_duplicates().itertuples(index=False, name=None))
    same_n = frame["n"].nunique() == 1
    once = f" (n={frame['n'].iloc[0]})" if same_n else ""
    rows = []
    for values, here in found.by_condition():
        mine = frame[frame["cell_a"].isin(here["cell"])]
        of = {(row["arm_a"], row["arm_b"]): points_of(row).removesuffix(once) for _, row in mine.iterrows()}
        if of:
            rows.append([*(setting(values[f]) for f in conditions), *(of.get(pair, "–") for pair in pairs)])
    note = page.paragraph(
        f"Differences of these test accuracies in percentage points, paired over the seeds that both have{once}, with "
        "95 % intervals that are not corrected for their number (tables/differences.csv has p, also after Holm). The "
        "arms stand at their own gammas; equal gammas are compared further down where the study has them.",
        "soft",
    )
    columns = [*conditions, *(f"{a} − {b}" for a, b in pairs)]
    return note + page.table(columns, rows[:_MOST_ROWS], numbers=columns[len(conditions) :], tall=True)


def noise(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    """Test accuracy, memorised and recovered labels against the rate; with a gamma axis, the gamma chosen."""
    conditions = list(found.layout.conditions)
    complete = found.choice[found.choice["status"] == "complete"]
    outcomes = also(found.replicates, complete, _OUTCOMES)
    if outcomes.empty:
        return ""
    rest = [f for f in conditions if f != "label_noise"]
    groups: list[tuple[str, pd.DataFrame]] = [("", outcomes)]
    if rest:
        groups = [(_named(rows, rest), rows) for _, rows in outcomes.groupby(rest, dropna=False, sort=False)]
    rivals = alike(found.replicates, found.cells, found.choice, conditions) if "gamma" in found.tuned else None
    body = ""
    for i, (name, rows) in enumerate(groups[:_MOST_FIGURES]):
        stem = "label_noise" + (f"_{i + 1}" if len(groups) > 1 else "")
        figures[stem] = draw.save(
            draw.label_noise(rows, found.arms, alike=_here(rivals, rows, rest), title=name or None), folder / stem
        )
        has = set(rows["metric"])
        caption = "Against the rate of wrong training labels: test accuracy"
        if "memorised" in has:
            caption += ", the share of the wrong labels that the trained network gives back"
        if "recovered" in has:
            caption += ", the share for which it gives the true class all the same"
        caption += ". Means over the seeds, bands are 95 % intervals"
        caption += ", each arm at the cell that validation chooses at that rate." if found.tuned else "."
        if rivals is not None:
            caption += (
                " The last panel has the gamma of that cell, and open marks for the gammas that the test set cannot "
            )
            caption += "tell from it (paired 95 % t over the seeds, uncorrected)."
        body += page.picture(figures[stem][0], _told(rows, name), (f"{name}: " if name else "") + caption)
    left = len(groups) - _MOST_FIGURES
    return body + (page.paragraph(f"{left} more conditions are in the table below only.") if left > 0 else "")


def _here(rivals: pd.DataFrame | None, rows: pd.DataFrame, rest: list[str]) -> pd.DataFrame | None:
    """Those of the rivals that stand under the same further conditions."""
    if rivals is None or not rest:
        return rivals
    return rivals.merge(rows[rest].drop_duplicates(), on=rest)


def _named(rows: pd.DataFrame, fields: list[str]) -> str:
    return settings(rows.iloc[0], fields)


def _told(rows: pd.DataFrame, name: str) -> str:
    """The picture in words, for who cannot see it."""
    accuracy = rows[rows["metric"] == "test_accuracy"]
    said = []
    for arm, own in accuracy.groupby("arm", sort=False):
        own = own.sort_values("label_noise")
        first, last = own.iloc[0], own.iloc[-1]
        said.append(f"{arm} from {_at(first)} to {_at(last)}")
    return f"Test accuracy by rate of label noise{', ' + name if name else ''}: {'; '.join(said)}."


def _at(row: Any) -> str:
    mean = "–" if absent(row["mean"]) else f"{100 * row['mean']:.1f} %"
    return f"{mean} at {100 * row['label_noise']:g} %"
