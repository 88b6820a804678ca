"""`study audit`: what early stopping would have saved and lost, by replaying a study's recorded curves."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING, Any

from study.cli.codes import OK
from study.cli.numbers import whole
from study.reader import StudyReader, open_study
from study.store import StoreError

if TYPE_CHECKING:
    from analysis.audit import Audit, Recorded
    from analysis.replay import Setting

_ORDERS, _AT_ONCE = 20, 4


def register(verbs: Any) -> None:
    """Add this verb to the command."""
    parser = verbs.add_parser("audit", help="say what early stopping (ASHA) would have saved and lost")
    parser.add_argument("folder", help="the study's folder or URI")
    parser.add_argument("--grace", type=whole(1), nargs="+", metavar="N", help="grace periods to try, in epochs")
    parser.add_argument("--reduction", type=whole(2), nargs="+", metavar="N", help="reduction factors to try")
    parser.add_argument("--max-t", type=whole(2), metavar="N", help="no rung at this epoch or later")
    parser.add_argument(
        "--orders", type=whole(1), default=_ORDERS, metavar="N", help=f"random launch orders (default: {_ORDERS})"
    )
    parser.add_argument(
        "--at-once",
        type=whole(1),
        default=_AT_ONCE,
        metavar="K",
        help=f"cells that train beside each other (default: {_AT_ONCE})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the orders (default: 0)")
    parser.add_argument(
        "--clock",
        choices=("epochs", "seconds"),
        default="epochs",
        help="whether an epoch takes one unit of time or the seconds that it took (default: epochs)",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(verb=audit)


def audit(options: argparse.Namespace) -> int:
    from analysis.audit import AuditError
    from analysis.audit import audit as replayed

    reader = open_study(options.folder)
    try:
        curves, settings = _curves(reader, options)
        found = replayed(
            curves,
            settings,
            orders=options.orders,
            at_once=options.at_once,
            seed=options.seed,
            clock=options.clock,
        )
    except AuditError as error:
        raise StoreError(f"{reader.folder.uri}: {error}") from None
    if options.json:
        print(json.dumps(_json(reader, curves, found, options), indent=1))
    else:
        print("\n".join(_lines(reader, curves, found, options)))
    return OK


def _curves(reader: StudyReader, options: argparse.Namespace) -> tuple[Recorded, list[Setting]]:
    from analysis.audit import own_setting, recorded_of, settings_to_try
    from analysis.findings import read
    from analysis.replay import Setting

    curves = recorded_of(read(reader))
    settings = settings_to_try(curves, own_setting(reader.spec))
    if options.grace or options.reduction or options.max_t:
        usual = settings_to_try(curves)
        grace = options.grace or dict.fromkeys(s.grace_period for s in usual)
        reduction = options.reduction or dict.fromkeys(s.reduction_factor for s in usual)
        settings = [Setting(g, r, options.max_t) for g in grace for r in reduction]
    return curves, settings


def _lines(reader: StudyReader, curves: Recorded, found: Audit, options: argparse.Namespace) -> list[str]:
    from analysis.audited import advice, caveats, explained, table_of

    columns, rows = table_of(curves, found)
    table = [
        *zip(*(_heads(column) for column in columns), strict=True),
        *([t.replace(" to ", "-") for t in row] for row in rows),
    ]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    total = len(curves.cells) + len(curves.left_out)
    how = "an epoch a step" if options.clock == "epochs" else "at the recorded seconds"
    lines = [
        f"{reader.spec['name']}: {len(curves.cells)} of {total} cells have full curves; ASHA replayed over them in "
        f"{options.orders} random launch {'order' if options.orders == 1 else 'orders'}, "
        f"{options.at_once} at once, {how}",
        *("  " + "  ".join(t.ljust(w) for t, w in zip(r, widths, strict=True)).rstrip() for r in table),
        explained(curves, columns),
        *advice(curves, found),
        *caveats(curves),
    ]
    return [part for line in lines for part in (_wrapped(line) if not line.startswith("  ") else [line])]


def _heads(column: str) -> tuple[str, str]:
    """A column's title in two lines, so that the table is no wider than a terminal."""
    if column in (cut := {"reduction": ("reduc-", "tion"), "rank correlation": ("rank", "corr.")}):
        return cut[column]
    first, _, last = column.rpartition(" ")
    if column.startswith("lost of the"):
        first, last = "lost of", column.removeprefix("lost of ")
    return first, last


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line.replace("–", "-"), 118, subsequent_indent="  ", break_long_words=False)


def _json(reader: StudyReader, curves: Recorded, found: Audit, options: argparse.Namespace) -> dict[str, Any]:
    from analysis.audit import correlations
    from analysis.audited import advice, caveats

    def rows(frame: Any) -> list[dict[str, Any]]:
        return [
            {k: None if v != v else v for k, v in row.items()}
            for row in json.loads(frame.to_json(orient="records", double_precision=12))
        ]

    return {
        "study": reader.spec["name"],
        "folder": reader.folder.uri,
        "cells": len(curves.cells),
        "orders": options.orders,
        "at_once": options.at_once,
        "seed": options.seed,
        "clock": options.clock,
        "standard_error": None if curves.chance != curves.chance else curves.chance,
        "settings": rows(found.summary()),
        "lost": rows(found.lost),
        "rank_correlations": rows(correlations(curves)),
        "left_out": rows(curves.left_out),
        "advice": advice(curves, found),
        "caveats": caveats(curves),
    }
