"""Diagnostics of training: the probe's direction and length, what eta leaves alone, skipped steps, learning rate."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis import figures as draw
from analysis import page
from analysis.diagnostics import SAME_DIRECTION, diagnostics, direction
from analysis.findings import Findings
from analysis.words import metric_title, setting, settings

_MOST_DRAWN = 3  # conditions
_WORDS = {"cosine_to_sam": "cosine to SAM's probe", "skipped_steps": "skipped steps"}
_PROBE = ("cosine_to_sam", "eps_norm", "eta_vanished")


def section(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    """Nothing where no probe was watched: the learning rate by itself is in the study's file."""
    if found.history.empty or not any(
        name in found.history and pd.to_numeric(found.history[name]).notna().any() for name in _PROBE
    ):
        return ""
    body = "".join(page.paragraph(line) for line in directions(found))
    groups = list(found.by_condition())
    for i, (values, rows) in enumerate(groups[:_MOST_DRAWN]):
        frame = diagnostics(found.history, rows)
        skipped = frame[frame["metric"] == "skipped_steps"]
        none_skipped = len(skipped) > 0 and float(skipped["mean"].max()) == 0.0
        if none_skipped:
            frame = frame[frame["metric"] != "skipped_steps"]
        if frame.empty or not frame["metric"].isin(_PROBE).any():
            continue
        name = "diagnostics" + (f"_{i + 1}" if len(groups) > 1 else "")
        figures[name] = draw.save(draw.diagnostics(frame, found.arms), folder / name)
        where = settings(values, found.layout.conditions)
        caption = (
            "Mean over the seeds by epoch, bands are 95 % intervals; a seed's value is its mean over the steps of the "
            "epoch that were watched. Marks only tell the arms apart."
        )
        if found.tuned:
            caption += " Each arm at the cell that validation chooses."
        if (rows["status"] != "complete").any():
            caption += " A line that ends early is of a cell that is not complete."
        if none_skipped:
            caption += " No step of these cells was skipped."
        body += page.picture(figures[name][0], _told(frame, where), (f"{where}: " if where else "") + caption)
    if len(groups) > _MOST_DRAWN:
        body += page.paragraph(f"The first {_MOST_DRAWN} of {len(groups)} conditions are drawn.", "soft")
    return body


def directions(found: Findings) -> list[str]:
    """Where Fisher SAM's probe points where SAM's does, a line an arm."""
    frame = direction(found.history, found.cells)
    lines = []
    for arm, rows in frame.groupby("arm", sort=False):
        same = rows[rows["same"]]
        counts = sorted(set(rows["n"]))
        seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        cells = f"{len(rows)} complete cell{'s' if len(rows) > 1 else ''}"
        text = (
            f"{arm}: in {len(same)} of {cells} the probe points where SAM's does (cosine above {SAME_DIRECTION} in "
            f"every recorded epoch of every seed, n={seeds} a cell)"
        )
        if len(same) < len(rows):
            least = rows.sort_values("least", kind="stable").iloc[0]
            text += f"; elsewhere it falls to {least['least']:.4g} at {settings(least, ['gamma', 'eta'])}"
            text += _by_eta(rows)
        elif len(same):
            text += ": a flat response to eta there is built in, not found"
        lines.append(text + ".")
    return lines


def _by_eta(rows: pd.DataFrame) -> str:
    """The etas at which every cell keeps SAM's direction, where that is the whole story."""
    if "eta" not in rows or rows["eta"].nunique() < 2:
        return ""
    whole = rows.groupby("eta")["same"].all()
    if not whole.any() or whole.all():
        return ""
    kept = ", ".join(setting(eta) for eta in whole.index[whole])
    return f". All cells at eta {kept} keep it"


def _told(frame: pd.DataFrame, where: str) -> str:
    """The picture in words, for who cannot see it."""
    said = []
    for (metric, arm), rows in frame[frame["metric"] != "lr"].groupby(["metric", "arm"], sort=False):
        rows = rows.sort_values("epoch")
        first, last = rows["mean"].iloc[0], rows["mean"].iloc[-1]
        said.append(f"{_WORDS.get(str(metric), metric_title(str(metric)))} of {arm} from {first:.4g} to {last:.4g}")
    return f"Diagnostics by epoch{', ' + where if where else ''}: " + "; ".join(said[:24]) + "."
