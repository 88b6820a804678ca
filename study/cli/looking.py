"""The verbs that read a study's folder or need none: status, report, toy."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from study.cli.codes import BAD_INPUT, OK
from study.cli.named import meant, named
from study.reader import StudyReader, open_study
from study.store import StoreError


def register(verbs: Any) -> None:
    """Add these verbs to the command."""
    parser = verbs.add_parser("status", help="say how far a study's folder is, who runs it, and why a trial ended")
    named(parser)
    parser.add_argument("--why", metavar="TRIAL", help="every decision on a trial or cell (id, or its beginning)")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(verb=status)

    parser = verbs.add_parser(
        "report", help="draw the figures, tables and page of a study's folder, or compare several"
    )
    parser.add_argument(
        "folder", nargs="+", help="a study's folder, e.g. results/digits_sensitivity, or a URI; several are compared"
    )
    parser.add_argument(
        "--out",
        help="where to write it (default: the folder's own report/; NAME-report here if that is remote; "
        "studies-report here for several)",
    )
    parser.set_defaults(verb=report)

    parser = verbs.add_parser("toy", help="draw the paper's two-dimensional example (section 3.1, figures 1 to 3)")
    parser.add_argument("--out", default="results/toy", help="where to write figures and tables (default: results/toy)")
    parser.set_defaults(verb=toy)


def status(options: argparse.Namespace) -> int:
    from study.status import explain
    from study.status import status as look
    from study.status_lines import lines

    reader = StudyReader(meant(options))
    if options.why is not None:
        found = explain(reader, options.why)
        print(json.dumps(found, indent=1) if options.json else "\n".join(found))
        return OK
    seen = look(reader)
    print(seen.to_json() if options.json else "\n".join(lines(seen)))
    return OK


def report(options: argparse.Namespace) -> int:
    if len(options.folder) > 1:
        return compare(options.folder, options.out)
    print_report(options.folder[0], options.out)
    return OK


def compare(uris: Sequence[str], out: str | None) -> int:
    """Compare several studies; those that cannot be read are left out, and the exit code says so.

    Raises:
        StoreError: none can be read, or the page cannot be written.
    """
    from analysis.report import file_lines, write_comparison
    from analysis.studies import labels

    readers, problems = {}, []
    for uri in uris:
        try:
            reader = open_study(uri)
            reader.replicates()  # a damaged record is found out here and not in the middle of the page
        except StoreError as error:
            problems.append(str(error))
            continue
        readers[reader.folder.uri] = reader
    if not readers:
        raise StoreError("\n".join(problems))
    names = labels([str(reader.spec["name"]) for reader in readers.values()], list(readers))
    with _writing(out := out or "studies-report"):
        made = write_comparison(dict(zip(names, readers.values(), strict=True)), out, problems)
    print("\n".join([*made.lines, *file_lines(made)]))
    for problem in problems:
        print(f"study: left out: {problem}", file=sys.stderr)
    return BAD_INPUT if problems else OK


@contextmanager
def _writing(out: str) -> Iterator[None]:
    if "://" in out:
        raise StoreError(f"--out {out}: a report is written to a folder of this machine")
    if Path(out).exists() and not Path(out).is_dir():
        raise StoreError(f"--out {out}: is a file, and a report is written into a folder")
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write the report to {out}: {error.strerror or error}") from None


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
    with _writing(out):
        report = write_report(reader, out)
    for line in summary_lines(reader, report):
        print(line)
