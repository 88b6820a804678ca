"""`study report`: the figures and tables of a study's folder, and one HTML page that holds them all; or of several
studies, one page that compares them.

The figures follow from what the study varies (`layout`): a map over two settings, lines over one, a table for none, a
row a condition for models, data sets and label noise, slices for a search, curves for what was perturbed. A study that
is empty or still running gets its report too, and the report says so.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analysis import page
from analysis.cost import equal_cost
from analysis.findings import read, summary
from analysis.published import beside_study
from analysis.sections import compared, sections
from analysis.studies import Comparison, compare
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
    lines: tuple[str, ...] = ()  # the result for a terminal, of the same reading as the page

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
        FileExistsError: there is a report.html that was not made here.
        ValueError: `folder` is a URI; the study may be on object storage, its report is written to a disk.
    """
    folder = _local(folder)
    found = read(reader)
    frames = {"replicates": found.replicates, "cells": found.cells, "history": found.history}
    frames |= {"decisions": found.decisions, "fsam_minus_sam": found.pairs}
    if found.layout.conditions:
        frames["by_condition"] = found.choice
    frames["differences"] = found.differences
    frames["equal_cost"] = equal_cost(found.history, found.choice, found.layout.conditions)
    if len(paper := beside_study(found.replicates, found.cells)):
        frames["beside_the_paper"] = paper
    frames |= {"robustness" if name == "perturbation" else name: frame for name, frame in found.measures.items()}
    # A frame without columns has nothing to say and is no Parquet file.
    tables = write_frames({k: v for k, v in frames.items() if len(v.columns)}, folder / "tables")
    figures: dict[str, list[Path]] = {}
    parts = sections(found, folder, figures)
    head = ""
    if found.spec.get("question"):
        head = page.paragraph(str(found.spec["question"]), "question")
    html = _written(folder, page.page(found.name, head, parts))
    return Report(folder, html, figures, tables, tuple(summary(found, sign="+-")))


def write_comparison(
    readers: Mapping[str, StudyReader], folder: str | os.PathLike[str], left_out: Sequence[str] = ()
) -> Report:
    """Write one page that compares several studies, with its figures and tables, into a local `folder`.

    Args:
        readers: by what each study is called (`studies.labels`).
        left_out: studies that could not be read, a line each; the page says so.

    Raises:
        FileExistsError: there is a report.html that was not made here.
        ValueError: `folder` is a URI.
    """
    folder = _local(folder)
    found = {label: read(reader, curves_too=False) for label, reader in readers.items()}
    comparison = compare(found)
    frames = {name: getattr(comparison, name) for name in ("settings", "arms", "differences")}
    tables = write_frames({k: v for k, v in frames.items() if len(v.columns)}, folder / "tables")
    figures: dict[str, list[Path]] = {}
    parts = compared.sections(comparison, folder, figures, left_out)
    title = f"{len(found)} studies beside each other" if len(found) > 1 else "One study"
    head = page.paragraph(", ".join(found), "soft")
    html = _written(folder, page.page(title, head, parts))
    return Report(folder, html, figures, tables, tuple(_compared_lines(comparison)))


def _compared_lines(comparison: Comparison) -> list[str]:
    """Each study in a few lines for a terminal, then what speaks against comparing them."""
    lines = []
    for label, found in comparison.found.items():
        own = summary(found, sign="+-", arms=False)
        lines += [f"{label}:", *(f"  {line}" for line in own)]
    if comparison.warnings:
        lines.append("not comparable as they stand:")
        lines += [f"  {line}" for line in comparison.warnings]
    return lines


def _local(folder: str | os.PathLike[str]) -> Path:
    if "://" in os.fspath(folder):
        raise ValueError(f"a report is written to a local folder, not to {os.fspath(folder)}")
    html = Path(folder) / "report.html"
    if html.is_file() and not page.is_ours(html.read_text(encoding="utf-8", errors="replace")):
        raise FileExistsError(errno.EEXIST, f"{html.name} is there and is no report of a study")
    return Path(folder)


def _written(folder: Path, text: str) -> Path:
    html = folder / "report.html"
    folder.mkdir(parents=True, exist_ok=True)
    whole(html, lambda path: path.write_text(text, encoding="utf-8"))
    return html


def summary_lines(reader: StudyReader, report: Report | None = None) -> list[str]:
    """The result in a few plain lines for a terminal: counts, the best cell, Fisher SAM against SAM, the files."""
    lines = list(report.lines) if report is not None else summary(read(reader, curves_too=False), sign="+-")
    return lines + (file_lines(report) if report is not None else [])


def file_lines(report: Report) -> list[str]:
    """Where the report is."""
    lines = [f"report:  {report.html}"]
    return lines if report.heatmap is None else [f"heatmap: {report.heatmap}", *lines]
