"""`study merge`: what other folders of a study have finished, taken into one."""

from __future__ import annotations

import argparse
from typing import Any

from study.cli.codes import OK
from study.store import StudyFolder


def register(verbs: Any) -> None:
    """Add this verb to the command."""
    parser = verbs.add_parser("merge", help="take into a study's folder what other folders of it have finished")
    parser.add_argument("folder", help="the folder that goes first: what it has stays")
    parser.add_argument("others", nargs="+", help="folders of the same study, read as they are")
    parser.add_argument("--out", help="make the merged folder here, and leave the others as they are")
    parser.set_defaults(verb=merge)


def merge(options: argparse.Namespace) -> int:
    from study.merge import lines
    from study.merge import merge as take

    out = StudyFolder(options.out) if options.out else None
    merged = take(StudyFolder(options.folder), [StudyFolder(other) for other in options.others], out)
    print("\n".join(lines(merged)))
    return OK
