"""A study that was run for real as a record: `python -m benchmarks.studies FOLDER [--card NAME]`.

The record has the study as it was frozen, who ran it when on which machine and versions, and the report's tables of
results with n and intervals. Folders and addresses of the machine are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.report import summary_lines, write_report
from benchmarks.record import save
from study.reader import open_study

#: The report's tables that a record keeps, where the study has them.
TABLES = ("by_condition", "cells", "differences", "robustness", "curvature", "sharpness")

#: An absolute path, of which the last name is kept.
_PATH = re.compile(r"(?<![\w.:/])(?:/[\w.+-]+)+/([\w.+-]+)")

#: Keys of a frozen study that name places of a machine.
_PLACES = ("storage", "data", "small")


def document(folder: str, card: str | None = None) -> dict[str, Any]:
    """The record of one study's folder.

    Args:
        folder: the study's folder or URI.
        card: of the GPU, in words, where there was one.
    """
    reader = open_study(folder)
    runs = [{k: v for k, v in run.items() if k != "command"} for run in reader.runs()]
    with tempfile.TemporaryDirectory() as scratch:
        report = write_report(reader, scratch)
        tables = {
            name: json.loads(
                pd.read_parquet(report.tables[f"{name}.parquet"]).to_json(orient="records", double_precision=12)
            )
            for name in TABLES
            if f"{name}.parquet" in report.tables
        }
        lines = [line for line in summary_lines(reader) if scratch not in line]
    record = {
        "benchmark": f"study-{reader.spec['name'].replace('_', '-')}",
        "date": runs[-1]["started"],
        "card": card,
        "study": {k: v for k, v in reader.spec.items() if k not in _PLACES},
        "runs": runs,
        "summary": lines,
        **{name: [{k: v for k, v in row.items() if v is not None} for row in rows] for name, rows in tables.items()},
    }
    placeless: dict[str, Any] = json.loads(_PATH.sub(r"\1", json.dumps(record)))
    return placeless


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies", description="Record a study that was run.")
    parser.add_argument("folder", help="the study's folder or URI")
    parser.add_argument("--card", help="the GPU in words, e.g. 'one NVIDIA H100'")
    parser.add_argument("--out", type=Path, help="where to write it (default: benchmarks/records)")
    options = parser.parse_args()
    record = document(options.folder, options.card)
    print(save(record, options.out) if options.out else save(record))


if __name__ == "__main__":
    main()
