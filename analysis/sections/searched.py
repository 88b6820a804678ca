"""What a search found: best cells, slices along its axes, its course."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis import figures as draw
from analysis import page
from analysis.findings import Findings
from analysis.importance import FEWEST, importance
from analysis.search import best_of_each, course, search_axes
from analysis.words import measured, setting, shown

_MOST_OF_AN_ARM = 3


def search(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    """Best cells of each arm, then the figures; nothing of a study without a search."""
    axes = search_axes(found.spec)
    if not axes:
        return ""
    best = best_of_each(found.cells, _MOST_OF_AN_ARM)
    if best.empty:
        return page.paragraph("No cell is complete yet.")
    body = _best(found, best, [f for f in axes if f in found.cells])
    leaders = found.cells.assign(leader=found.cells["cell"].isin(found.choice["cell"]))
    figures["slices"] = draw.save(draw.slices(leaders, axes, found.arms), folder / "slices")
    lost = int(found.cells["status"].isin(["stopped", "diverged", "failed"]).sum())
    caption = (
        "Mean validation accuracy of every complete cell along each axis of the search. The search samples where it "
        "expects good cells, so the cloud is no effect of one axis by itself."
    )
    if lost:
        caption += (
            f" {lost} cells that were stopped, diverged or failed have no accuracy to compare; ticks on the lower edge "
            "say where they were."
        )
    body += page.picture(figures["slices"][0], _told(found), caption)
    body += _parallel(found, leaders, axes, folder, figures)
    steps = course(found.cells)
    figures["course"] = draw.save(draw.search_course(steps, found.arms), folder / "course")
    caption = (
        "Best mean validation accuracy so far by number of cells that have ended, in the order in which they were "
        "chosen. A maximum of many looks flatters: the test accuracies in the table are not chosen."
    )
    last = steps.drop_duplicates("arm", keep="last")
    ends = "; ".join(
        f"{r['arm']} {shown(r['best_so_far'], 'validation_accuracy')} % after {r['ended']} cells"
        for _, r in last.iterrows()
    )
    body += page.picture(figures["course"][0], f"Course of the best validation accuracy: {ends}.", caption)
    return body + _importance(found, axes, folder, figures)


def _parallel(
    found: Findings, cells: pd.DataFrame, axes: dict[str, bool], folder: Path, figures: dict[str, list[Path]]
) -> str:
    figures["parallel"] = draw.save(draw.parallel(cells, axes), folder / "parallel")
    done = int((cells["status"] == "complete").sum())
    caption = (
        "A line a cell across its settings to its mean validation accuracy, logarithmic where the search is. Cells "
        "that are not complete are grey, dashed, and end before it. Below: settings that a cell does not use. The "
        "best of each arm has a rim and marks."
    )
    best = "; ".join(found.called(row) for _, row in found.choice.iterrows() if row["status"] == "complete")
    return page.picture(figures["parallel"][0], f"{done} of {len(cells)} cells are complete. Best: {best}.", caption)


def _importance(found: Findings, axes: dict[str, bool], folder: Path, figures: dict[str, list[Path]]) -> str:
    """What each setting explains, and which arms have too few complete cells to say."""
    frame = importance(found.cells, axes)
    if frame.empty:
        return ""
    known, body = frame[frame["importance"].notna()], ""
    if len(known):
        figures["importance"] = draw.save(draw.importances(frame, found.arms), folder / "importance")
        said = "; ".join(
            f"{r['arm']} {r['setting']} {100 * r['importance']:.0f} [{100 * r['low']:.0f}, {100 * r['high']:.0f}] % "
            f"(n={r['n']})"
            for _, r in known.iterrows()
        )
        caption = (
            "Functional ANOVA with a random forest (Hutter, Hoos and Leyton-Brown 2014): the share of the variance of "
            "validation accuracy over the search space that a setting explains by itself; what settings explain "
            "together is in none. Bars: the range of 20 bootstrap samples over cells, about a 90 % interval. Complete "
            "cells only: where bad cells were "
            "stopped early, this is about the better part of the space, and a sampler that looks where it expects "
            "good cells has seen little of the rest."
        )
        body += page.picture(figures["importance"][0], f"Importance of the settings: {said}.", caption)
    few = frame[frame["importance"].isna()].drop_duplicates("arm")
    lines = [f"{r['arm']} has {r['n']}{' of one accuracy' if r['n'] >= FEWEST else ''}" for _, r in few.iterrows()]
    said = f"The importance of settings takes {FEWEST} complete cells of an arm that differ: {', '.join(lines)}."
    return body + (page.paragraph(said, "soft") if lines else "")


def _best(found: Findings, best: pd.DataFrame, axes: list[str]) -> str:
    rows: list[list[str]] = []
    strong: list[int] = []
    leaders = set(found.choice["cell"])
    for _, row in best.iterrows():
        if row["cell"] in leaders:
            strong.append(len(rows))
        results = [measured(*(row[k] for k in keys)) for keys in _KEYS]
        rows.append([str(row["arm"]), *(_short(row[f]) for f in axes), *results])
    note = page.paragraph(
        f"Up to {_MOST_OF_AN_ARM} complete cells of each arm by mean validation accuracy, the arm's best in bold. "
        "Their validation accuracy is the best of many and therefore too high; test accuracy chose nothing.",
        "soft",
    )
    columns = ["arm", *axes, "validation accuracy", "test accuracy"]
    return note + page.table(columns, rows, numbers=axes, strong=strong)


_KEYS = (
    ("validation_mean", "validation_low", "validation_high", "validation_n"),
    ("mean", "low", "high", "n"),
)


def _short(value: object) -> str:
    """A sampled number in four digits."""
    return setting(float(f"{value:.4g}")) if isinstance(value, float) and value == value else setting(value)


def _told(found: Findings) -> str:
    counts = found.cells.groupby("arm", sort=False)["status"].apply(lambda s: int((s == "complete").sum()))
    return (
        "Validation accuracy along the axes of the search: " + ", ".join(f"{n} of {a}" for a, n in counts.items()) + "."
    )
