"""What every study's report shows: summary, sensitivity, arms, pairs, learning curves, all cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis import figures as draw
from analysis import page, tables
from analysis.conditions import also
from analysis.findings import Findings, arms_with, points_of, state_line, status_counts, summary
from analysis.sections import maps, stopping
from analysis.words import absent, duration, measured, probability, setting, settings, shown

_MOST_PANELS = 8
_MOST_PICTURES = 3  # of several maps each
_MOST_ROWS = 400


def overview(found: Findings) -> str:
    state = state_line(found)
    said = summary(found, sign="±", arms=False)
    lines = [line for line in said if line != state and not line.startswith("cells: ")]
    body = page.paragraph(state, "notice") if state else ""
    if status_counts(found):
        total = (str(len(found.cells)), "cells")
        body += page.tiles([total, *((str(n), name) for n, name in status_counts(found))])
    if lines:
        # The name of an arm stays as it is.
        body += page.bullets(s[0].upper() + s[1:] if s.startswith(("best cell", "not dist")) else s for s in lines)
    if "train_seconds" in found.cells:
        seconds, gradients = (found.cells[c].sum() for c in ("train_seconds", "gradient_evaluations"))
        cost = f"Cost: {duration(seconds)} of training and {gradients:,.0f} minibatch gradients over all replicates. "
        body += page.paragraph(
            f"{cost}Intervals are 95 % (Student t over seeds); ± is half of one. The best cell is chosen by "
            "validation accuracy; test accuracy chooses nothing.",
            "soft",
        )
    return body


def sensitivity(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    """The map or the lines over what the study varies; conditions alone and searches have sections of their own."""
    shape = found.layout
    if shape.kind == "search" or (shape.conditions and shape.conditions == shape.factors):
        return ""
    if shape.kind == "table":
        if len(found.arms) > 1:
            return ""  # the arms side by side
        return page.paragraph("The study varies no setting within an arm; the table below is its whole result.")
    return panels(found, folder, figures)


def panels(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    """The figures of the layout's panels; nothing where it is no map and no line."""
    shape = found.layout
    if shape.x is None:
        return ""
    if shape.kind == "heatmap" and len(shape.panels) > 1:
        return _maps(found, folder, figures)
    body = ""
    shown_panels = shape.panels[:_MOST_PANELS]
    for i, panel in enumerate(shown_panels):
        name = "heatmap" if shape.kind == "heatmap" else "sensitivity"
        name += f"_{i + 1}" if len(shape.panels) > 1 else ""
        if shape.kind == "heatmap":
            assert shape.y is not None  # a map has two axes
            axes = draw.heatmap(panel.cells, x=shape.x, y=shape.y, title=panel.title or None)
            caption = _map_caption(panel.cells, shape.x, shape.y)
            caption += _own_values(found, panel.cells, shape.x, shape.y)
            if shape.conditions:
                caption += f" Best and dots: among the cells of one {' and '.join(shape.conditions)}, over all arms."
        else:
            axis = panel.x or shape.x
            everywhere = axis not in shape.conditions
            axes = draw.sensitivity(panel.cells, axis, title=panel.title or None, everywhere=everywhere)
            caption = f"Test accuracy over {axis}: mean over the seeds, bars and bands are 95 % intervals."
        figures[name] = draw.save(axes, folder / name)
        heading = f"{panel.title}: " if panel.title else ""
        body += page.picture(figures[name][0], heading + _alternative(found, panel.cells), heading + caption)
    left = len(shape.panels) - len(shown_panels)
    if left:
        body += page.paragraph(f"{left} more panels are not drawn here; their numbers are in tables/cells.csv.")
    return body


def _maps(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    """Several maps as small multiples, so many in a picture as can be read."""
    shape = found.layout
    assert shape.x is not None  # a map has two axes
    assert shape.y is not None
    body, most = "", maps.TOGETHER
    pictures = [shape.panels[i : i + most] for i in range(0, len(shape.panels), most)][:_MOST_PICTURES]
    for i, part in enumerate(pictures):
        name = "heatmap" + (f"_{i + 1}" if len(pictures) > 1 else "")
        axes, colours = maps.together(part, shape.x, shape.y)
        figures[name] = draw.save(axes, folder / name)
        first = part[0].cells
        caption = _map_caption(pd.concat([panel.cells for panel in part]), shape.x, shape.y) + colours
        caption += _own_values(found, first, shape.x, shape.y)
        if shape.conditions:
            caption += f" Best and dots: among the cells of one {' and '.join(shape.conditions)}, over all arms."
        told = " ".join(f"{panel.title}: {_alternative(found, panel.cells)}" for panel in part)
        body += page.picture(figures[name][0], told, caption)
    left = len(shape.panels) - sum(map(len, pictures))
    return body + (
        page.paragraph(f"{left} more panels are not drawn here; their numbers are in tables/cells.csv.") if left else ""
    )


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


def _own_values(found: Findings, cells: pd.DataFrame, x: str, y: str) -> str:
    """What a reference does not say by its place: see `layout`."""
    own = found.cells.set_index("cell")[[x, y]]
    said = []
    for arm, rows in cells.groupby("arm", sort=False):
        full = own.loc[rows["cell"]]
        moved = [axis for axis in (x, y) if (full[axis].notna().to_numpy() & rows[axis].isna().to_numpy()).all()]
        if moved:
            said.append(f" {arm} has {settings(full.iloc[0], moved)} of its own.")
    return "".join(said)


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
    names = "; ".join(found.called(row) for _, row in best.iterrows())
    return text + (f" Outlined as best by validation: {names}." if len(best) else "")


def _result_row(row: Any) -> list[str]:
    return [
        measured(*(row[f"validation_{k}"] for k in ("mean", "low", "high", "n"))),
        measured(*(row[k] for k in ("mean", "low", "high", "n"))),
    ]


def arms(found: Findings) -> str:
    """Each arm's best cell, chosen by validation: references under their own best setting. With conditions there is one
    for each of them, in a table of its own.
    """
    if found.layout.conditions:
        return ""
    rows, strong = [], []
    top5 = also(found.replicates, found.choice, ["test_top5_accuracy"]).set_index("cell")
    for _, row in found.choice.iterrows():
        complete = f"{row['cells_complete']} of {row['cells_planned']}"
        cost = row.get("gradient_evaluations")
        cost = "–" if absent(cost) or not row["n_planned"] else f"{cost / row['n_planned']:,.0f}"
        if row["status"] != "complete":
            rows.append([str(row["arm"]), complete, "no complete cell", "–", "–", *(["–"] if len(top5) else []), "–"])
            continue
        if bool(row["best"]):
            strong.append(len(rows))
        best = [settings(row, found.layout.factors) or "–", *_result_row(row)]
        if len(top5):
            known = row["cell"] in top5.index
            of: Any = top5.loc[str(row["cell"])] if known else row
            best.append(measured(*(of[k] for k in ("mean", "low", "high", "n"))) if known else "–")
        rows.append([str(row["arm"]), complete, *best, cost])
    columns = ["arm", "complete cells", "best setting", "validation accuracy", "test accuracy"]
    columns += [*(["test accuracy, top 5"] if len(top5) else []), "gradients a seed"]
    note = page.paragraph(
        "Each arm at the setting that validation accuracy chooses. An arm with more cells had more choices, and a "
        "step of SAM or Fisher SAM takes two gradients where SGD takes one.",
        "soft",
    )
    return note + page.table(columns, rows, numbers=["gradients a seed"], strong=strong) + _differences(found)


def _differences(found: Findings) -> str:
    """Fisher SAM's differences from the other arms, each at its chosen cell."""
    if found.differences.empty:
        return ""
    rows = []
    for _, row in found.differences.iterrows():
        p = "–" if absent(row["p"]) else f"{probability(row['p'])} ({probability(row['p_holm'])})"
        rows.append([f"{row['arm_a']} − {row['arm_b']}", points_of(row), p])
    columns = ["arms", "difference in test accuracy [95 %]", "p (Holm)"]
    note = (
        "In percentage points, paired over the seeds that both have; each arm as in the table above, at its own gamma."
    )
    return page.paragraph(note, "soft") + page.table(columns, rows, numbers=columns[1:])


def paired(found: Findings) -> str:
    pairs = found.pairs
    if pairs.empty:
        return ""
    fields = [f for f in dict.fromkeys((*found.layout.factors, "gamma")) if f in pairs]
    several = any(len(arms_with(found.cells, optimiser)) > 1 for optimiser in ("fsam", "sam"))
    rows = []
    for _, row in pairs.iterrows():
        means = [shown(row[f"mean_{side}"], "test_accuracy", 2) for side in "ab"]
        p = "–" if absent(row["p"]) else f"{probability(row['p'])} ({probability(row['p_holm'])})"
        arms = [f"{row['arm_a']} − {row['arm_b']}"] if several else []
        rows.append([*arms, *(setting(row[f]) for f in fields), *means, points_of(row), p])
    columns = [*fields, "Fisher SAM (%)", "SAM (%)", "difference [95 %]", "p (Holm)"]
    note = page.paragraph(
        "Test accuracy at equal gamma, paired over the seeds that both have: the same seed has the same weights, data "
        "order and noise. Of Fisher SAM's settings at a gamma the one that validation chooses stands here; SAM has "
        "only one. Differences in percentage points; intervals are not corrected for the number of rows, p is given "
        "also after Holm.",
        "soft",
    )
    return note + page.table([*(["arms"] if several else []), *columns], rows, numbers=columns)


def curves(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    if found.history.empty:
        return page.paragraph("No epoch has been recorded yet.")
    lines = tables.curves(found.history, found.cells)
    body = ""
    if found.layout.conditions:
        lines = lines[lines["cell"].isin(found.choice["cell"])]
        axes, caption = _panels_of_curves(found, lines)
    else:
        factors = found.layout.factors
        colour = next((f for f in ("gamma", *factors) if f in factors), "gamma")
        rungs = stopping.rungs(found)
        axes = draw.learning_curves(lines, colour=colour, factors=factors, rungs=rungs)
        caption = "Mean validation accuracy over the seeds by epoch; the best cell of each arm with its 95 % interval."
        if rungs:
            caption += " Vertical lines: the rungs at which cells were decided on."
    if lines.empty:
        return page.paragraph("No epoch has been recorded yet.")
    figures["learning_curves"] = draw.save(axes, folder / "learning_curves")
    alternative = (
        f"Validation accuracy by epoch of {lines['cell'].nunique()} cells up to epoch {lines['epoch'].max():.0f}; "
        f"the last means lie between {_last_means(lines)}."
    )
    return page.picture(figures["learning_curves"][0], alternative, caption) + body


def _panels_of_curves(found: Findings, lines: pd.DataFrame) -> tuple[Any, str]:
    """Cells under different conditions do not learn the same thing: a panel a condition."""
    titles: dict[str, str] = {}
    groups = list(found.by_condition())
    for values, rows in groups[:_MOST_PANELS]:
        titles |= dict.fromkeys(rows["cell"], settings(values, found.layout.conditions))
    caption = "Mean validation accuracy over the seeds by epoch with its 95 % interval, a panel a condition"
    caption += ", each arm at the cell that validation chooses there." if found.tuned else "."
    if (found.choice["status"] != "complete").any():
        caption += " A line that ends early is of a cell that is not complete."
    if len(groups) > _MOST_PANELS:
        caption += f" The first {_MOST_PANELS} of {len(groups)} conditions."
    return draw.learning_panels(lines, titles, found.arms), caption


def _last_means(lines: pd.DataFrame) -> str:
    last = lines.sort_values("epoch").drop_duplicates("cell", keep="last")["mean"].dropna()
    if last.empty:
        return "no finite values"
    return f"{shown(last.min(), 'validation_accuracy')} and {shown(last.max(), 'validation_accuracy')} %"


def cells(found: Findings) -> str:
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
        "others; those of diverged and failed cells are of the seeds that survived, which flatters them. 'Not "
        "distinguishable': from the best cell on the test set (paired 95 % t, uncorrected), or every seed gives the "
        "same difference, so that nothing says how far it would vary.",
        "soft",
    )
    if len(found.cells) > _MOST_ROWS:
        body += page.paragraph(f"The first {_MOST_ROWS} of {len(found.cells)} cells; all are in tables/cells.csv.")
    return body + page.table(columns, rows, numbers=[*fields, "trained"], strong=strong, tall=True)
