"""The sections of a report's page, each a function from `Findings` to HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis import page
from analysis.findings import Findings, points_of, state_line, status_counts, summary
from analysis.tables import best_cell, curves
from analysis.words import absent, duration, measured, setting, settings, shown

_MOST_PANELS = 8
_MOST_ROWS = 400
_COMMIT = ("git_commit", "code.commit")


def sections(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> list[page.Section]:
    summary = page.Section("summary", "Summary", _summary_html(found))
    end = [
        page.Section("provenance", "Provenance", _provenance(found)),
        page.Section("reproduce", "How to reproduce", _reproduce(found)),
    ]
    if found.cells.empty:
        return [summary, *end]
    made = [
        page.Section("sensitivity", "Sensitivity", _sensitivity(found, folder, figures)),
        page.Section("references", "Arms side by side", _arms(found)),
        page.Section("paired", "Fisher SAM against SAM", _paired(found)),
        page.Section("curves", "Learning curves", _curves(found, folder, figures)),
        page.Section("cells", "All cells", _cells(found)),
        page.Section("stops", "Stopped early, and why", _stops(found)),
        page.Section("failures", "Failures and divergence", _failures(found)),
    ]
    return [summary, *(s for s in made if s.body), *end]


def _summary_html(found: Findings) -> str:
    state = state_line(found)
    lines = [line for line in summary(found, sign="±") if line != state and not line.startswith("cells: ")]
    body = page.paragraph(state, "notice") if state else ""
    if status_counts(found):
        total = (str(len(found.cells)), "cells")
        body += page.tiles([total, *((str(n), name) for n, name in status_counts(found))])
    if lines:
        body += page.bullets(line[0].upper() + line[1:] for line in lines)
    if "train_seconds" in found.cells:
        seconds, gradients = (found.cells[c].sum() for c in ("train_seconds", "gradient_evaluations"))
        cost = f"Cost: {duration(seconds)} of training and {gradients:,.0f} minibatch gradients over all replicates. "
        body += page.paragraph(
            f"{cost}Intervals are 95 % (Student t over seeds); ± is half of one. The best cell is chosen by "
            "validation accuracy; test accuracy chooses nothing.",
            "soft",
        )
    return body


def _sensitivity(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    from analysis.figures import heatmap, save, sensitivity

    shape = found.layout
    if shape.kind == "table" or shape.x is None:
        return page.paragraph("The study varies no setting within an arm; the table below is its whole result.")
    body = ""
    shown_panels = shape.panels[:_MOST_PANELS]
    for i, panel in enumerate(shown_panels):
        name = "heatmap" if shape.kind == "heatmap" else "sensitivity"
        name += f"_{i + 1}" if len(shape.panels) > 1 else ""
        if shape.kind == "heatmap":
            assert shape.y is not None  # a map has two axes
            axes = heatmap(panel.cells, x=shape.x, y=shape.y, title=panel.title or None)
            caption = _map_caption(panel.cells, shape.x, shape.y)
        else:
            axis = panel.x or shape.x
            axes = sensitivity(panel.cells, axis, title=panel.title or None)
            caption = f"Test accuracy over {axis}: mean over the seeds, bars and bands are 95 % intervals."
        figures[name] = save(axes, folder / name)
        heading = f"{panel.title}: " if panel.title else ""
        body += page.picture(figures[name][0], heading + _alternative(found, panel.cells), heading + caption)
    left = len(shape.panels) - len(shown_panels)
    if left:
        body += page.paragraph(f"{left} more panels are not drawn here; their numbers are in tables/cells.csv.")
    return body


def _map_caption(cells: pd.DataFrame, x: str, y: str) -> str:
    text = f"One pixel a cell: test accuracy over {x} and {y}, mean over the n seeds written in it. "
    beside = cells[cells[x].isna() & cells[y].notna()]
    below = cells[cells[y].isna()]
    if len(beside):
        names = ", ".join(dict.fromkeys(map(str, beside["arm"])))
        text += f"The column at the left has no {x}: {names}, at the same {y}. "
    if len(below):
        text += f"Below the grid: {', '.join(dict.fromkeys(map(str, below['arm'])))}. "
    if cells["status"].isin(["complete", "partial"]).all():
        return text.strip()
    return text + "Hatched pixels have no value to compare: the label says why, and at which epoch (e)."


def _alternative(found: Findings, cells: pd.DataFrame) -> str:
    """The picture in words, for who cannot see it."""
    counts = cells["status"].value_counts()
    known = cells[cells["status"].isin(["complete", "partial"]) & cells["mean"].notna()]
    text = f"Figure of {len(cells)} cells: " + ", ".join(f"{n} {s}" for s, n in counts.items()) + "."
    if known.empty:
        return text
    ranked = known.sort_values("mean", kind="stable")
    low, high = ranked.iloc[0], ranked.iloc[-1]
    text += (
        f" Mean test accuracy from {shown(low['mean'], 'test_accuracy')} % ({found.called(low)}) "
        f"to {shown(high['mean'], 'test_accuracy')} % ({found.called(high)})."
    )
    best = cells[cells["best"]]
    return text + (f" Outlined as best by validation: {found.called(best.iloc[0])}." if len(best) else "")


def _result_row(row: Any) -> list[str]:
    return [
        measured(*(row[f"validation_{k}"] for k in ("mean", "low", "high", "n"))),
        measured(*(row[k] for k in ("mean", "low", "high", "n"))),
    ]


def _arms(found: Findings) -> str:
    """Each arm's best cell, chosen by validation: references under their own best setting."""
    rows, strong = [], []
    for arm, cells in found.cells.groupby("arm", dropna=False, sort=False):
        best = best_cell(cells)
        complete = f"{int((cells['status'] == 'complete').sum())} of {len(cells)}"
        if best is None:
            rows.append([str(arm), complete, "no complete cell", "–", "–", "–"])
            continue
        if bool(best["best"]):
            strong.append(len(rows))
        chosen = settings(best, found.layout.factors) or "–"
        cost = f"{best['gradient_evaluations'] / best['n_planned']:,.0f}"
        rows.append([str(arm), complete, chosen, *_result_row(best), cost])
    columns = ["arm", "complete cells", "best setting", "validation accuracy", "test accuracy", "gradients a seed"]
    note = page.paragraph(
        "Each arm at the setting that validation accuracy chooses. An arm with more cells had more choices, and a "
        "step of SAM or Fisher SAM takes two gradients where SGD takes one.",
        "soft",
    )
    return note + page.table(columns, rows, numbers=["gradients a seed"], strong=strong)


def _paired(found: Findings) -> str:
    pairs = found.pairs
    if pairs.empty:
        return ""
    fields = [f for f in found.layout.factors if f in pairs]
    rows = []
    for _, row in pairs.iterrows():
        means = [shown(row[f"mean_{side}"], "test_accuracy", 2) for side in "ab"]
        p = "–" if absent(row["p"]) else f"{row['p']:.3f} ({row['p_holm']:.3f})"
        rows.append([*(setting(row[f]) for f in fields), *means, points_of(row), p])
    columns = [*fields, "Fisher SAM (%)", "SAM (%)", "difference [95 %]", "p (Holm)"]
    note = page.paragraph(
        "Test accuracy at equal gamma, paired over the seeds that both have: the same seed has the same weights, data "
        "order and noise. Of Fisher SAM's settings at a gamma the one that validation chooses stands here; SAM has "
        "only one. Differences in percentage points; intervals are not corrected for the number of rows, p is given "
        "also after Holm.",
        "soft",
    )
    return note + page.table(columns, rows, numbers=columns)


def _curves(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    from analysis.figures import learning_curves, save

    if found.history.empty:
        return page.paragraph("No epoch has been recorded yet.")
    lines = curves(found.history, found.cells)
    factors = found.layout.factors
    colour = next((f for f in ("gamma", *factors) if f in factors), "gamma")
    figures["learning_curves"] = save(
        learning_curves(lines, colour=colour, factors=factors), folder / "learning_curves"
    )
    alternative = (
        f"Validation accuracy by epoch of {lines['cell'].nunique()} cells up to epoch {lines['epoch'].max():.0f}; "
        f"the last means lie between {_last_means(lines)}."
    )
    caption = "Mean validation accuracy over the seeds by epoch; the best cell of each arm with its 95 % interval."
    return page.picture(figures["learning_curves"][0], alternative, caption)


def _last_means(lines: pd.DataFrame) -> str:
    last = lines.sort_values("epoch").drop_duplicates("cell", keep="last")["mean"].dropna()
    if last.empty:
        return "no finite values"
    return f"{shown(last.min(), 'validation_accuracy')} and {shown(last.max(), 'validation_accuracy')} %"


def _cells(found: Findings) -> str:
    fields = list(found.layout.factors)
    rows, strong = [], []
    for i, (_, row) in enumerate(found.cells.head(_MOST_ROWS).iterrows()):
        if row["best"]:
            strong.append(i)
        status = row["status"] if absent(row["epoch"]) else f"{row['status']}, epoch {row['epoch']:.0f}"
        same = "best" if row["best"] else "not distinguishable" if row["indistinguishable"] else ""
        seeds = f"{row['n_complete']} of {row['n_planned']}"
        cost = duration(row.get("train_seconds"))
        rows.append([str(row["arm"]), *(setting(row[f]) for f in fields), status, seeds, *_result_row(row), same, cost])
    columns = ["arm", *fields, "status", "complete seeds", "validation accuracy", "test accuracy", "mark", "trained"]
    body = page.paragraph(
        "Validation figures of stopped and running cells are those at the epoch shown and not comparable with the "
        "others. 'Not distinguishable': from the best cell on the test set (paired 95 % t, uncorrected).",
        "soft",
    )
    if len(found.cells) > _MOST_ROWS:
        body += page.paragraph(f"The first {_MOST_ROWS} of {len(found.cells)} cells; all are in tables/cells.csv.")
    return body + page.table(columns, rows, numbers=[*fields, "trained"], strong=strong, tall=True)


def _stops(found: Findings) -> str:
    stopped = found.replicates[found.replicates["status"] == "stopped"]
    decisions = found.decisions
    if stopped.empty and decisions.empty:
        return ""
    if decisions.empty:
        return page.paragraph(
            f"{stopped['cell'].nunique()} cells were stopped; no decision of a scheduler is recorded."
        )
    cell_of = found.cells.set_index("cell")
    stops = decisions[decisions["stop"].astype(bool)]
    rows = []
    for _, row in stops.head(_MOST_ROWS).iterrows():
        name = found.called(cell_of.loc[row["cell"]]) if row["cell"] in cell_of.index else str(row["cell"])
        value, cutoff = (shown(row[c], "validation_accuracy", 2) for c in ("value", "cutoff"))
        rank = "–" if absent(row["rank"]) else f"{row['rank']:.0f} of {row['n']:.0f}"
        rows.append([name, setting(row["rung"]), setting(row["epoch"]), value, cutoff, rank])
    body = page.paragraph(
        f"The scheduler took {len(decisions)} decisions and stopped {len(stops)} times: the cell's mean validation "
        "accuracy at a rung lay below the cutoff of those that had come so far. Every decision is in "
        "tables/decisions.csv.",
        "soft",
    )
    if not rows:
        return body
    columns = ["cell", "rung", "epoch", "validation (%)", "cutoff (%)", "rank then"]
    return body + page.table(columns, rows, numbers=columns[1:], tall=True)


def _failures(found: Findings) -> str:
    bad = found.replicates[found.replicates["status"].isin(["failed", "diverged"])]
    if bad.empty:
        return ""
    rows = []
    for _, row in bad.head(_MOST_ROWS).iterrows():
        reason = "not recorded" if absent(row.get("reason")) else str(row["reason"])
        rows.append([found.called(row), setting(row["seed"]), str(row["status"]), setting(row["epoch"]), reason])
    columns = ["cell", "seed", "status", "epoch", "reason"]
    note = page.paragraph(f"{len(bad)} replicates: none of their figures is in a mean.", "soft")
    return note + page.table(columns, rows, numbers=["seed", "epoch"], long=["reason"], tall=True)


def _provenance(found: Findings) -> str:
    if not found.runs:
        return page.paragraph("No run is recorded.")
    body = ""
    for run in found.runs[-10:]:
        flat = _flat(run)
        body += page.table(
            ["run", str(run.get("run", ""))], [[k, v] for k, v in flat if k != "run"], long=[str(run.get("run", ""))]
        )
    left = len(found.runs) - 10
    return (page.paragraph(f"The last 10 of {len(found.runs)} runs.") if left > 0 else "") + body


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    out = []
    for key, value in values.items():
        if isinstance(value, dict):
            out += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            out.append((prefix + str(key), (" " if key == "command" else ", ").join(map(setting, value)) or "none"))
        else:
            out.append((prefix + str(key), setting(value)))
    return out


def _reproduce(found: Findings) -> str:
    file = f"{found.name}.yaml"
    facts = [fact for run in found.runs for fact in _flat(run)]
    commits = [value for key, value in facts if key.endswith(_COMMIT) and value != "–"]
    at = f" at commit {commits[-1]}" if commits else ""
    spec = yaml.safe_dump(_yaml_values(found.spec), sort_keys=False, allow_unicode=True, width=100)
    return (
        page.paragraph(f"Save the study below as {file} and, with this project{at}, run:")
        + page.listing(f"study run {file}\nstudy report <the folder that it names>")
        + page.listing(spec)
    )


def _yaml_values(value: Any) -> Any:
    """The frozen spec as plain YAML values; whatever else it holds becomes text."""
    if isinstance(value, dict):
        return {str(k): _yaml_values(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_yaml_values(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
