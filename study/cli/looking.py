"""The verbs that read a study's folder or need none: status, report, export, toy."""

from __future__ import annotations

import argparse
import json
from typing import Any

from study.cli.codes import OK
from study.reader import open_study
from study.store import StoreError


def register(verbs: Any) -> None:
    """Add these verbs to the command."""
    parser = verbs.add_parser("status", help="say how far a study's folder is, who runs it, and why a trial ended")
    parser.add_argument("folder", help="the study's folder or URI")
    parser.add_argument("--why", metavar="TRIAL", help="every decision on a trial or cell (id, or its beginning)")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(verb=status)

    parser = verbs.add_parser("report", help="draw the figures, tables and page of a study's folder")
    parser.add_argument("folder", help="the study's folder, e.g. results/digits_sensitivity, or a URI")
    parser.add_argument(
        "--out", help="where to write it (default: the folder's own report/; NAME-report here if that is remote)"
    )
    parser.set_defaults(verb=report)

    parser = verbs.add_parser("export", help="write a trained network's weights, for `pretrained:` of another study")
    parser.add_argument("folder", help="the study's folder or URI")
    parser.add_argument("--out", required=True, help="the file to write (safetensors)")
    parser.add_argument("--cell", help="id of a cell, or its beginning (default: the best by validation)")
    parser.add_argument("--seed", type=int, help="which replicate (default: the lowest seed)")
    parser.set_defaults(verb=export)

    parser = verbs.add_parser("toy", help="draw the paper's two-dimensional example (section 3.1, figures 1 to 3)")
    parser.add_argument("--out", default="results/toy", help="where to write figures and tables (default: results/toy)")
    parser.set_defaults(verb=toy)


def status(options: argparse.Namespace) -> int:
    from study.status import explain, lines
    from study.status import status as look

    reader = open_study(options.folder)
    if options.why is not None:
        found = explain(reader, options.why)
        print(json.dumps(found, indent=1) if options.json else "\n".join(found))
        return OK
    seen = look(reader)
    print(seen.to_json() if options.json else "\n".join(lines(seen)))
    return OK


def report(options: argparse.Namespace) -> int:
    print_report(options.folder, options.out)
    return OK


def export(options: argparse.Namespace) -> int:
    from analysis.tables import best_cell, cells
    from study.export import export as write

    reader, cell = open_study(options.folder), options.cell
    if cell is None:
        best = best_cell(cells(reader.replicates()))
        if best is None:
            raise StoreError(f"{reader.folder.uri}: no cell is complete yet")
        cell = str(best["cell"])
    print(write(reader, options.out, cell, options.seed))
    return OK


def toy(options: argparse.Namespace) -> int:
    from analysis.toy import toy as draw

    try:
        print("\n".join(draw(options.out)))
    except OSError as error:
        raise StoreError(f"cannot write to {options.out}: {error.strerror or error}") from None
    return OK


def print_report(uri: str, out: str | None) -> None:
    """Write a folder's report and say what it found."""
    from analysis.report import summary_lines, write_report

    reader = open_study(uri)
    if out is None:
        # Pictures of a study on object storage are for the person at this machine.
        out = f"{reader.folder.uri}/report" if reader.folder.is_local else f"{reader.spec['name']}-report"
    if "://" in out:
        raise StoreError(f"--out {out}: a report is written to a folder of this machine")
    try:
        report = write_report(reader, out)
    except OSError as error:
        raise StoreError(f"cannot write the report to {out}: {error.strerror or error}") from None
    for line in summary_lines(reader, report):
        print(line)
