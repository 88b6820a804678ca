"""A finished experiment asked again: is anything left to do? Ours beside `Tuner.restore`."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import made_up
from benchmarks.measure import Summary, ratio
from benchmarks.processes import fresh, study
from benchmarks.record import Result, usable_cpus


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        trials: of the experiment.
        reports: of each.
        at_once: trials that go on at a time while ours is made.
        rounds: of asking.
    """

    trials: int
    reports: int
    at_once: int
    rounds: int


FULL = Scale(trials=10_000, reports=1, at_once=64, rounds=2)
QUICK = Scale(trials=12, reports=5, at_once=4, rounds=1)


def run(quick: bool) -> Result:
    """Make both in a temporary folder and ask each in a process of its own."""
    return measure(QUICK if quick else FULL)


def measure(scale: Scale) -> Result:
    """Measure at a scale.

    Raises:
        RuntimeError: something did not end as it has to.
    """
    template, _ = fresh("benchmarks.made_up", "template")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        return _asked_again(Path(scratch), scale, template)


def _asked_again(scratch: Path, scale: Scale, template: list[Any]) -> Result:
    file = made_up.study_file(scratch, "finished", scale.trials, scale.reports)
    storage, cpus = str(scratch / "finished"), usable_cpus()
    # The product's own records and checkpoints; only Ray is left out, which is not asked when nothing is missing.
    made = {"file": file, "storage": storage, "template": template, "at_once": scale.at_once, "leave": 0}
    fresh("benchmarks.without_ray", "drive", **made, checkpoints=True, called=time.time())
    given = {"trials": scale.trials, "epochs": scale.reports, "cpus": cpus, "loggers": True}
    fresh("benchmarks.plain_tune", "run", **given, storage=storage, name="peer", template=template)
    ours, restore, nothing, process = [], [], [], []
    for _ in range(scale.rounds):
        again = study("run", file, "--storage", storage, "--no-report")
        if "nothing is missing" not in again.printed:
            raise RuntimeError(f"a finished study was not found finished: {again.printed[-500:]}")
        ours.append(again.seconds)
        restored, ended = fresh(
            "benchmarks.plain_tune", "restore", storage=storage, name="peer", cpus=cpus, template=template
        )
        if restored["rows"] != scale.trials * scale.reports:
            raise RuntimeError(f"Tuner.restore found {restored['rows']} rows")
        restore.append(restored["restore"])
        nothing.append(restored["restore"] + restored["nothing"])
        process.append(ended.seconds)
    return Result(
        settings={**asdict(scale), "cores": cpus},
        ratios={
            "asked again, ours / Tuner.restore and fit": ratio(ours, nothing),
            "asked again, ours / Tune's whole process": ratio(ours, process),
        },
        samples={
            "asked again, ours (whole command)": Summary.of(ours),
            "Tuner.restore": Summary.of(restore),
            "Tuner.restore and fit": Summary.of(nothing),
            "asked again, Tune (whole process)": Summary.of(process),
        },
        counts={"trials": scale.trials, "rows": scale.trials * scale.reports},
        notes=(
            "Ours is the whole command `study run`; Tune's is Tuner.restore and fit in a process that has imported Ray "
            "and connected already; its whole process is given too.",
            "Ours was made by `study run` with made-up results in the place of Ray (`without_ray`), Tune's by a real "
            "run of trials that do nothing, with warm actors and its default loggers.",
        ),
    )
