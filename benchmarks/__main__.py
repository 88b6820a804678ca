"""`python -m benchmarks [--quick] [--record] [NAME ...]`, from the root of the checkout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.record import RECORDS, document, load_average, save, table

#: What can be run: a module of this package with `run(quick: bool) -> Result`, and a line for people.
BENCHMARKS = {
    "steps": "seconds and operations per optimiser step: ours beside davda54's loop (some ten minutes; quick: one)",
    "epoch": "a SAM epoch of ResNet-20 on one core: ours beside a davda54-style loop (some ten minutes; quick: one)",
    "augmentation": "images augmented per second: ours beside torchvision on PIL images (a minute; quick: seconds)",
    "control_plane": "a study's wall time beside the training in it (some ten minutes; quick: three)",
    "ninety": "90 replicates: a study beside its training, and beside plain Ray Tune (an hour; quick: two minutes)",
    "overhead": "what a trial costs that does nothing: ours beside plain Ray Tune (some thirty minutes; quick: two)",
    "bookkeeping": "ten thousand trials' records: results a second, plan, status, resume; beside plain Ray Tune",
    "resume": "a finished experiment of ten thousand trials asked again: ours beside Tuner.restore (some half an hour)",
    "replay": "decisions of ASHA a second: the audit's replay beside Ray's scheduler and study.asha (seconds)",
    "soak": "a thousand tiny trials while workers and drivers are killed: time, memory, epochs lost",
    "fault_matrix": "every fault in every phase of a study: what was lost (an hour; quick: minutes)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks, all of them by default; returns the exit code."""
    listed = "\n".join(f"  {name.ljust(max(map(len, BENCHMARKS)))}  {about}" for name, about in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="What things cost, beside what people use now.",
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller: to see that it works")
    parser.add_argument("--record", action="store_true", help="write a JSON record of each")
    parser.add_argument("--folder", type=Path, default=RECORDS, help="where to (default: benchmarks/records)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)} (known: {', '.join(BENCHMARKS)})")
    for name in options.names or BENCHMARKS:
        load = load_average()
        result = import_module(f"benchmarks.{name}").run(options.quick)
        record = document(name, result, quick=options.quick, load=load)
        machine = record["machine"]
        print(f"{name}: {machine['processor']}, {machine['usable_cpus']} CPUs, load {load} at the start")
        print("\n".join(table(result)), flush=True)
        if options.record:
            print(f"recorded in {save(record, options.folder).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
