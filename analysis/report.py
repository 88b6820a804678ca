"""`study report`: the figures and tables of one study's folder, and one HTML page that holds them all.

The figures follow from what the study varies (`layout`): a map over two settings, lines over one, a table for none, a
row a condition for models, data sets and label noise, slices for a search, curves for what was perturbed. A study that
is empty or still running gets its report too, and the report says so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from analysis import page
from analysis.findings import read, summary
from analysis.sections import sections
from analysis.tables import StudyReader, whole, write_frames


@dataclass(frozen=True)
class Report:
    """Where a report's files are. `figures` by name without suffix: `heatmap`, `sensitivity`, `learning_curves`,
    `label_noise`, `robustness`, `slices`, `course`.
    """

    folder: Path
    html: Path
    figures: dict[str, list[Path]] = field(default_factory=dict)
    tables: dict[str, Path] = field(default_factory=dict)

    @property
    def heatmap(self) -> Path | None:
        """The first sensitivity map as PNG; None where the study varies fewer than two settings."""
        return next((p[0] for name, p in self.figures.items() if name.startswith("heatmap")), None)


def write_report(reader: StudyReader, folder: str | os.PathLike[str]) -> Report:
    """Write figures (PNG and SVG), tables (CSV and Parquet) and `report.html` into a local `folder`.

    Every file is written whole or not at all, the page last.

    Returns:
        The paths, for whoever has to name them.

    Raises:
        ValueError: `folder` is a URI; the study may be on object storage, its report is written to a disk.
    """
    if "://" in os.fspath(folder):
        raise ValueError(f"a report is written to a local folder, not to {os.fspath(folder)}")
    folder = Path(folder)
    found = read(reader)
    frames = {"replicates": found.replicates, "cells": found.cells, "history": found.history}
    frames |= {"decisions": found.decisions, "fsam_minus_sam": found.pairs}
    if found.layout.conditions:
        frames["by_condition"] = found.choice
    frames["differences"] = found.differences
    frames |= {"robustness" if name == "perturbation" else name: frame for name, frame in found.measures.items()}
    # A frame without columns has nothing to say and is no Parquet file.
    tables = write_frames({k: v for k, v in frames.items() if len(v.columns)}, folder / "tables")
    figures: dict[str, list[Path]] = {}
    parts = sections(found, folder, figures)
    head = ""
    if found.spec.get("question"):
        head = page.paragraph(str(found.spec["question"]), "question")
    html = folder / "report.html"
    text = page.page(found.name, head, parts)
    folder.mkdir(parents=True, exist_ok=True)
    whole(html, lambda path: path.write_text(text, encoding="utf-8"))
    return Report(folder, html, figures, tables)


def summary_lines(reader: StudyReader, report: Report | None = None) -> list[str]:
    """The result in a few plain lines for a terminal: counts, the best cell, Fisher SAM against SAM, the files."""
    lines = summary(read(reader, curves_too=False), sign="+-")
    if report is not None:
        if report.heatmap is not None:
            lines.append(f"heatmap: {report.heatmap}")
        lines.append(f"report:  {report.html}")
    return lines
