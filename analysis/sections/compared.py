"""The page that compares studies: what each asked and found, what differs, their arms under equal conditions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import figures as draw
from analysis import page
from analysis.conditions import also
from analysis.figures.heatmaps import heatmaps
from analysis.findings import Findings, outcome, points_of, state_line, status_counts
from analysis.sections import record
from analysis.studies import Comparison, beside
from analysis.tables import CELL_STATUSES
from analysis.words import absent, measured, probability, setting

_MOST_ROWS = 200
_MOST_STUDIES = _MOST_PANELS = 6
_MOST_CONDITIONS = 3


def sections(
    comparison: Comparison, folder: Path, figures: dict[str, list[Path]], left_out: Sequence[str]
) -> list[page.Section]:
    """The page in its order; figures are written into `folder` and entered into `figures`."""
    made = [
        page.Section("arms", "Arms under equal conditions", _arms(comparison)),
        page.Section("differences", "Differences between the studies", _differences(comparison)),
        page.Section("figures", "Figures side by side", _figures(comparison, folder, figures)),
        page.Section("settings", "What differs between the studies", _settings(comparison)),
    ]
    return [
        page.Section("studies", "The studies", _overview(comparison, left_out)),
        *(s for s in made if s.body),
        page.Section("provenance", "Provenance", _provenance(comparison)),
        page.Section("reproduce", "How to reproduce", _reproduce(comparison)),
    ]


def _overview(comparison: Comparison, left_out: Sequence[str]) -> str:
    body = ""
    if left_out:
        body += page.notice(["Left out, because they cannot be read:", *left_out])
    if comparison.warnings:
        body += page.notice(["Numbers of these studies are not comparable as they stand:", *comparison.warnings])
    rows = [
        [label, str(f.spec.get("question") or "–"), _state(f), _counts(f), _best(f)]
        for label, f in comparison.found.items()
    ]
    columns = ["study", "question", "state", "cells", "best cell, by validation"]
    return body + page.table(columns, rows, long=columns[1:])


def _state(found: Findings) -> str:
    if found.replicates.empty:
        return "nothing is planned yet"
    counts = found.replicates["status"].value_counts()
    finished = "not finished" if state_line(found) else "finished"
    said = ", ".join(f"{counts[s]} {s}" for s in CELL_STATUSES if s in counts)
    return f"{finished}: of {len(found.replicates)} replicates {said}"


def _counts(found: Findings) -> str:
    return ", ".join(f"{n} {status}" for n, status in status_counts(found)) or "none"


def _best(found: Findings) -> str:
    if found.best is not None:
        best = found.best
        test = measured(*(best[k] for k in ("mean", "low", "high", "n")))
        return f"{found.called(best)}: test {test}"
    if found.layout.conditions:
        return f"one for each {' and '.join(found.layout.conditions)}, see below"
    return "no cell is complete"


def _arms(comparison: Comparison) -> str:
    if comparison.arms.empty:
        return ""
    labels = list(comparison.found)
    conditions = list(comparison.conditions)
    rows = []
    for (_, arm), here in comparison.arms.groupby(["row", "arm"], dropna=False, sort=False):
        by_study = {row["study"]: row for _, row in here.iterrows()}
        first = here.iloc[0]
        said = [
            outcome(comparison.found[label], by_study[label], "±") if label in by_study else "–" for label in labels
        ]
        rows.append([*_named(first, conditions), str(arm), *said])
    equal = (
        f" One row has one {', '.join(conditions)}: what was trained differently is never in one row."
        if conditions
        else ""
    )
    note = page.paragraph(
        "Test accuracy, mean over n seeds ± half a 95 % interval (Student t), each arm at the cell that validation "
        f"accuracy chooses within its study; the test set chooses nothing.{equal}",
        "soft",
    )
    if len(rows) > _MOST_ROWS:
        note += page.paragraph(f"The first {_MOST_ROWS} of {len(rows)} rows; all are in tables/arms.csv.")
    names = _columns(conditions)
    wrapped = [*labels, *(names if names != conditions else ())]
    return note + page.table([*names, "arm", *labels], rows[:_MOST_ROWS], long=wrapped, tall=True)


def _columns(conditions: list[str]) -> list[str]:
    """A column a condition; one for all where they would push the numbers out of sight."""
    return conditions if len(conditions) <= _MOST_CONDITIONS else ["conditions"]


def _named(row: Any, conditions: list[str]) -> list[str]:
    if len(conditions) <= _MOST_CONDITIONS:
        return [setting(row[c]) for c in conditions]
    return [", ".join(f"{c} {setting(row[c])}" for c in conditions)]


def _differences(comparison: Comparison) -> str:
    frame = comparison.differences
    if frame.empty:
        return ""
    rows, conditions = [], list(comparison.conditions)
    for _, row in frame.head(_MOST_ROWS).iterrows():
        p = "–" if absent(row["p"]) else f"{probability(row['p'])} ({probability(row['p_holm'])})"
        rows.append(
            [*_named(row, conditions), str(row["arm"]), f"{row['study_a']} − {row['study_b']}", points_of(row), p]
        )
    note = page.paragraph(
        "The same arm under equal conditions in two studies, each at its own chosen cell: difference in test accuracy "
        "in percentage points, paired over the seeds that both have, with 95 % intervals that are not corrected for "
        "their number; p also after Holm. A cell that two studies share is one training and stands in no row.",
        "soft",
    )
    columns = [*_columns(conditions), "arm", "studies", "difference [95 %]", "p (Holm)"]
    return note + page.table(columns, rows, numbers=columns[-2:], long=["studies"], tall=True)


def _figures(comparison: Comparison, folder: Path, figures: dict[str, list[Path]]) -> str:
    found = {label: f for label, f in comparison.found.items() if len(f.cells)}
    if len(found) < 2:
        return ""
    if not comparison.layouts_agree():
        said = "; ".join(f"{label}: {_shape(f)}" for label, f in found.items())
        return page.paragraph(
            f"The studies vary different things, so their figures do not stand side by side ({said}). `study report` "
            "of one folder draws its own."
        )
    shape = next(iter(found.values())).layout
    if shape.kind == "heatmap":
        return _maps(comparison, found, folder, figures)
    if shape.conditions == ("label_noise",):
        return _noise(found, folder, figures)
    if shape.kind == "line" and shape.x is not None:
        return _lines(comparison, found, folder, figures)
    return ""


def _shape(found: Findings) -> str:
    shape = found.layout
    over = [f for f in (shape.x, shape.y) if f] or list(shape.factors)
    return " and ".join(over) or "no setting"


def _maps(comparison: Comparison, found: dict[str, Findings], folder: Path, figures: dict[str, list[Path]]) -> str:
    """One map a study and further setting, all of one scale where their numbers are comparable."""
    shape = next(iter(found.values())).layout
    assert shape.x is not None  # a map has two axes
    assert shape.y is not None
    panels = [
        (": ".join(filter(None, [label, panel.title])), panel.cells)
        for label, f in found.items()
        for panel in f.layout.panels
    ]
    drawn = panels[:_MOST_PANELS]
    cells = pd.concat([cells.assign(study=title) for title, cells in drawn], ignore_index=True)
    shared = not comparison.warnings
    drawing = heatmaps(cells, "study", x=shape.x, y=shape.y, shared=shared)
    figures["heatmap"] = draw.save(drawing, folder / "heatmap")
    scale = (
        "One colour scale for all."
        if shared
        else "Each map has a scale of its own, because the studies are not comparable as they stand (see the top)."
    )
    caption = (
        f"Test accuracy over {shape.x} and {shape.y}, mean over the n seeds written in each cell, a map a study. "
        f"{scale} Best cell and dots are each study's own."
    )
    told = "; ".join(f"{title}, {len(own)} cells" for title, own in drawn)
    best = "; ".join(f"{label}: {_best(f)}" for label, f in found.items())
    body = page.picture(figures["heatmap"][0], f"Maps side by side of {told}. Best cells: {best}.", caption)
    left = len(panels) - len(drawn)
    return body + (page.paragraph(f"{left} more maps are in the studies' own reports.") if left > 0 else "")


def _noise(found: dict[str, Findings], folder: Path, figures: dict[str, list[Path]]) -> str:
    body = []
    for i, (label, f) in enumerate(list(found.items())[:_MOST_STUDIES]):
        complete = f.choice[f.choice["status"] == "complete"]
        rows = also(f.replicates, complete, ["test_accuracy", "memorised"])
        if rows.empty:
            continue
        stem = f"label_noise_{i + 1}"
        figures[stem] = draw.save(draw.label_noise(rows, f.arms, title=label), folder / stem)
        said = f"{label}: outcomes against the rate of wrong training labels, bands are 95 % intervals over seeds."
        body.append(page.picture(figures[stem][0], f"{said} Arms: {', '.join(map(str, f.arms))}.", said))
    return page.side_by_side(body)


def _lines(comparison: Comparison, found: dict[str, Findings], folder: Path, figures: dict[str, list[Path]]) -> str:
    axis: Any = next(iter(found.values())).layout.x
    table = beside(comparison)
    everywhere = axis not in next(iter(found.values())).layout.conditions
    figures["sensitivity"] = draw.save(draw.sensitivity(table, axis, everywhere=everywhere), folder / "sensitivity")
    said = f"Test accuracy over {axis}, a line a study and arm: mean over the seeds, bars and bands are 95 % intervals."
    if comparison.warnings:
        said += " The studies are not comparable as they stand, see the top."
    return page.picture(figures["sensitivity"][0], f"{said} Studies: {', '.join(found)}.", said)


def _settings(comparison: Comparison) -> str:
    if comparison.settings.empty:
        return (
            page.paragraph("No setting: all studies take the same values of each.") if len(comparison.found) > 1 else ""
        )
    note = page.paragraph(
        "The settings of which the studies take different values, over all their cells; whatever is not here is equal.",
        "soft",
    )
    columns = list(map(str, comparison.settings))
    rows = [list(map(str, row)) for row in comparison.settings.itertuples(index=False)]
    return note + page.table(columns, rows, long=columns[1:])


def _provenance(comparison: Comparison) -> str:
    rows = []
    for label, f in comparison.found.items():
        last = f.runs[-1] if f.runs else {}
        code = last.get("code") or {}
        commit = str(code.get("commit") or last.get("git_commit") or "–")
        changed = ", with uncommitted changes" if code.get("uncommitted_changes") else ""
        devices = ", ".join(map(str, last.get("devices") or ())) or "–"
        rows.append([label, str(len(f.runs)), str(last.get("started", "–")), commit + changed, devices])
    columns = ["study", "runs", "last begun", "commit", "devices"]
    return page.table(columns, rows, numbers=["runs"], long=["commit"])


def _reproduce(comparison: Comparison) -> str:
    return "".join(page.heading(label) + record.reproduce(f) for label, f in comparison.found.items())
