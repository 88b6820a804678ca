"""`python -m benchmarks.gpu [--minutes M] [--device D] [--data FOLDER] [--out FILE] [--card NAME]`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.gpu import correctness, speed, study
from benchmarks.gpu.suite import Suite
from benchmarks.record import RECORDS, usable_cpus
from study.provenance import provenance
from trainables.process import prepare

#: Of the time, up to where the checks may go, and then the rows; the rest is the study's.
CHECKS_UNTIL, ROWS_UNTIL = 0.35, 0.65


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; returns 1 if a check failed, 2 if checks were left out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="What a GPU has to show.")
    parser.add_argument("--minutes", type=float, default=8.0, help="that it may take (default: 8)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", default=os.environ.get("SHARPNESS_STUDY_DATA"), help="folder of real CIFAR-10")
    parser.add_argument("--card", help="the GPU in words, e.g. 'one NVIDIA H200'")
    parser.add_argument("--out", type=Path, help="the JSON (default: benchmarks/records/<date>-gpu.json on a GPU)")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    prepare()
    small = device.type != "cuda"
    data = None if small else options.data
    suite = Suite(device, small, 60 * options.minutes, data)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU: everything small"
    print(f"torch {torch.__version__}, {name}, {options.minutes:g} minutes", flush=True)

    suite.seconds = 60 * options.minutes * CHECKS_UNTIL
    correctness.run(suite)
    if small or data:
        suite.seconds = 60 * options.minutes * ROWS_UNTIL
        speed.run(suite)
        suite.seconds = 60 * options.minutes
        suite.attempt("study", 20, study.run)
    else:
        suite.skip("rows and study", "no folder of real CIFAR-10 is given: --data FOLDER")

    record = {
        "benchmark": "gpu",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **provenance(),
        "card": options.card or name,
        "usable_cpus": usable_cpus(),
        **suite.as_dict(),
    }
    record["command"] = ["python", "-m", "benchmarks.gpu", "--minutes", f"{options.minutes:g}"]
    out = options.out or (None if small else RECORDS / f"{record['date'][:10]}-gpu.json")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(_table(suite))
    if not all(check.holds for check in suite.checks):
        return 1
    return 2 if undone(suite) else 0


def undone(suite: Suite) -> int:
    """Sections of checks that were left out."""
    return sum(name.startswith("check") for name, _ in suite.skipped)


def _table(suite: Suite) -> str:
    """What a reader wants last: what failed, the figures that have a goal, what was left out."""
    failed = [check for check in suite.checks if not check.holds]
    lines = ["", f"{len(suite.checks) - len(failed)} of {len(suite.checks)} checks hold"]
    lines[1] += f"; {undone(suite)} sections of checks were left out" if undone(suite) else ""
    lines += [f"  FAILED {check.name}: {check.distance:.1e}, allowed {check.allowed:.0e}" for check in failed]
    shown = [row for row in suite.rows if row.goal]
    width = max((len(row.name) for row in shown), default=0)
    if suite.small:
        lines.append("  everything was small, on a CPU: figures say nothing of a GPU")
    lines += [f"  {row.name.ljust(width)}  {row.value:9.4g} {row.unit:6} goal {row.goal}" for row in shown]
    lines += [f"  skipped {name}: {reason}" for name, reason in suite.skipped]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
