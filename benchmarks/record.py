"""A benchmark's result: a table for the terminal and a JSON record that says where its numbers are from."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import Summary
from study.provenance import provenance

#: Where committed records lie.
RECORDS = Path(__file__).parent / "records"


@dataclass(frozen=True)
class Result:
    """What a benchmark found.

    Attributes:
        settings: what was measured, in plain values.
        ratios: the statement, by name; `a / b` below 1 means that a costs less.
        samples: the measurements behind it, by name.
        counts: what is counted and not timed.
        notes: what a reader has to know to believe the ratios.
    """

    settings: dict[str, Any]
    ratios: dict[str, Summary]
    samples: dict[str, Summary]
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def document(name: str, result: Result, *, quick: bool, load: float | None = None) -> dict[str, Any]:
    """The record of a result: what `provenance` says of code, versions and machine, and everything in the result.

    Neither a host's name nor a folder of the machine is in it.

    Args:
        name: the benchmark's.
        result: what it found.
        quick: whether it ran with the short settings.
        load: the machine's load average when the benchmark began, which tells a quiet machine from a busy one.
    """
    about = provenance()
    command = ["python", "-m", "benchmarks", *(["--quick"] if quick else []), name]
    return {
        "benchmark": name,
        "quick": quick,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **about,
        "command": command,
        "machine": {**about["machine"], "usable_cpus": usable_cpus(), "load_average_before": load},
        **asdict(result),
    }


def save(record: dict[str, Any], folder: Path = RECORDS) -> Path:
    """Write `<date>-<name>.json`, whole or not at all; a record of the same day and name is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['date'][:10]}-{record['benchmark']}.json"
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    scratch.replace(path)
    return path


def table(result: Result) -> list[str]:
    """Aligned lines: ratios first, then samples, then counts, then notes."""
    rows: list[tuple[str, ...]] = [("", "median", "min", "max", "n", "")]
    rows += [_row(name, summary) for name, summary in (*result.ratios.items(), *result.samples.items())]
    rows += [(name, f"{count:,}", "", "", "", "") for name, count in result.counts.items()]
    notes = [textwrap.wrap(note, 110, initial_indent="- ", subsequent_indent="  ") for note in result.notes]
    return [*_aligned(rows), *(line for note in notes for line in note)]


def load_average() -> float | None:
    """Of the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _row(name: str, summary: Summary) -> tuple[str, ...]:
    unit = "" if summary.unit == "ratio" else summary.unit
    values = [summary.median, summary.min, summary.max]
    if unit == "s" and summary.max < 1:
        unit, values = "ms", [1000 * value for value in values]
    return (name, *(f"{value:.3f}" for value in values), str(summary.n), unit)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
