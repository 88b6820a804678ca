"""A thousand tiny trials by the real command, whose workers and driver are killed again and again.

The same study runs twice, on a Ray of its own each time: calmly, and with SIGKILLs at random moments, seeded; a killed
driver is started again with the same command. Once a second the memory of the driver and its workers and the driver's
open files are read. In the end the two tables have to be equal, and equal to what a plain loop trains.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Summary, ratio
from benchmarks.processes import ROOT, descendants, memory, open_files, title
from benchmarks.record import Result, usable_cpus
from study.reader import StudyReader, open_study
from trainables.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd

MIB = 2**20

#: Puts `sitecustomize` into every process, which counts the epochs that are begun.
COUNTED = ROOT / "benchmarks" / "counted"

#: How Ray names a worker of ours: after its class, and the call that it is in.
WORKER = "ray::ResourceTrainable"

#: Columns that say when and where a row was made, and not what.
_PLACE = {"train_seconds", "run", "device", "trial"}

#: A process's memory is read from this share of its trials on: before, it imports, and its allocator fills up.
WARM = 0.2

#: And of each process from this share of its own life on, since one that was started later warms up later.
SETTLED = 1 / 3

#: Bytes that a process takes or gives back within a second in one step, which is no growth.
STEP = 4 * MIB

#: KiB a trial below which memory counts as flat: a study of 10,000 trials then grows by less than 250 MiB.
FLAT = 25.0

#: Points of a curve of memory in the record.
_POINTS = 120


@dataclass(frozen=True)
class Scale:
    """How large the study is and how it is disturbed.

    Attributes:
        trials: cells, one trial each.
        seeds: of each, trained together.
        epochs: of each.
        every: epochs between checkpoints.
        pause: seconds between two kills of a worker, drawn evenly from this range; longer until another trial has been
            begun, since workers that are killed while they start would train nothing for ever.
        drivers: shares of the trials begun at which the driver is killed.
        looped: cells that a plain loop trains too.
        most: workers that are killed at most.
        seed: of the kills.
    """

    trials: int
    seeds: int
    epochs: int
    every: int
    pause: tuple[float, float]
    drivers: tuple[float, ...]
    looped: int
    most: int = 1000
    seed: int = 0


FULL = Scale(1000, seeds=2, epochs=6, every=2, pause=(4.0, 10.0), drivers=(0.2, 0.45, 0.7), looped=5)
QUICK = Scale(60, seeds=2, epochs=6, every=2, pause=(3.0, 6.0), drivers=(0.4,), looped=2)


@dataclass(frozen=True)
class Soaked(Result):
    """A result with curves: `series` has, of each run, its samples in columns."""

    series: dict[str, dict[str, list[Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One second of a run.

    Attributes:
        seconds: since the run began.
        life: which driver it is, from 0.
        trials: begun, by their checkpoints in the study's folder.
        driver: its bytes.
        files: its open files.
        workers: bytes of each worker, by process id.
    """

    seconds: float
    life: int
    trials: int
    driver: int
    files: int
    workers: dict[int, int]


@dataclass
class Run:
    """What a run of the study went through."""

    seconds: float = 0.0
    workers_killed: int = 0
    drivers_killed: int = 0
    #: Processes below killed drivers that were still there two seconds later.
    left_behind: int = 0
    samples: list[Sample] = field(default_factory=list)


def run(quick: bool) -> Soaked:
    """Run the study twice in a temporary folder and compare."""
    return measure(QUICK if quick else FULL)


def measure(scale: Scale) -> Soaked:
    """Soak at a scale.

    Raises:
        RuntimeError: the command ended otherwise than by a kill of ours.
    """
    cores = usable_cpus()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        file = _study_file(Path(scratch), scale)
        runs = {
            "calm": _soak(Path(scratch) / "calm", file, scale, cores, disturbed=False),
            "disturbed": _soak(Path(scratch) / "disturbed", file, scale, cores, disturbed=True),
        }
        readers = {name: open_study(str(Path(scratch) / name / "soak")) for name in runs}
        epochs = {name: _begun(Path(scratch) / name / "epochs") for name in runs}
        counts = _counts(scale, runs["disturbed"], readers["disturbed"], epochs)
        counts["cells unlike the calm run's"] = _unlike(readers["calm"], readers["disturbed"])
        counts["cells unlike a plain loop's"] = _unlike_a_loop(readers["disturbed"], scale)
        train_seconds = float(readers["calm"].runs()[0]["train_seconds"])
    ideal = train_seconds / cores
    calm, disturbed = runs["calm"], runs["disturbed"]
    return Soaked(
        settings={**asdict(scale), "cores": cores, "device": "cpu", "warm": WARM, "flat_kib_a_trial": FLAT},
        ratios={
            "wall: disturbed / calm": ratio([disturbed.seconds], [calm.seconds]),
            "wall: calm / ideal": ratio([calm.seconds], [ideal]),
            "wall: disturbed / ideal": ratio([disturbed.seconds], [ideal]),
        },
        samples={
            "calm: wall": Summary.of([calm.seconds]),
            "disturbed: wall": Summary.of([disturbed.seconds]),
            "ideal": Summary.of([ideal]),
            **_memory("calm", calm, scale),
            **_memory("disturbed", disturbed, scale),
        },
        counts=counts,
        notes=(
            "Wall is from the first command's start to the last one's end, every restart of a killed driver included. "
            "Ideal is the calm run's own training seconds over the cores, without evaluation, checkpoints, imports or "
            "Ray.",
            "Workers are killed by SIGKILL after pauses drawn evenly from `pause`, and not before another trial has "
            "been begun; drivers when the shares `drivers` of the trials have a checkpoint; what one leaves "
            "is killed two seconds later, and the same command is started.",
            "Memory a trial is the slope of a line by least squares through a process's resident memory, once a "
            f"second, over the trials begun, after the first {WARM:.0%} of all trials and the first third of its own "
            f"life. Flat is below {FLAT:g} KiB a trial. Of the workers each that lived for a tenth of the trials gives "
            "a slope; a trial is one of any worker's, so one of its own counts for as many as there are workers. "
            f"Steps of more than {STEP / MIB:g} MiB within a second are left out and told apart: when 64 pieces of "
            "records are merged for the first time, memory is taken that is kept for the next time.",
            "Trained twice: replicate epochs that were begun more than once, as counted in the workers; a killed "
            "worker's unfinished epoch is among them. Rows recorded again are equal ones, of which readers keep one.",
        ),
        series={name: _series(ran) for name, ran in runs.items()},
    )


# The runs


def _soak(storage: Path, file: str, scale: Scale, cores: int, *, disturbed: bool) -> Run:
    """The command until it is done, killed on the way if it is to be."""
    storage.mkdir()
    draws, found = random.Random(scale.seed), Run()
    due = [share * scale.trials for share in scale.drivers] if disturbed else []
    began = time.perf_counter()
    with (storage / "printed").open("w") as out:
        process = _start(storage, file, cores, out)
        worker_due, progress = time.perf_counter() + draws.uniform(*scale.pause), 0
        try:
            while process.poll() is None:
                sample = _look(process.pid, storage, time.perf_counter() - began, found.drivers_killed)
                found.samples.append(sample)
                if due and sample.trials >= due[0]:
                    due.pop(0)
                    found.left_behind += _kill_driver(process)
                    found.drivers_killed += 1
                    process = _start(storage, file, cores, out)
                elif (
                    disturbed
                    and found.workers_killed < scale.most
                    and time.perf_counter() >= worker_due
                    and sample.workers
                    and sample.trials > progress
                ):
                    with suppress(ProcessLookupError):
                        os.kill(draws.choice(sorted(sample.workers)), signal.SIGKILL)
                        found.workers_killed += 1
                    worker_due, progress = time.perf_counter() + draws.uniform(*scale.pause), sample.trials
                _wait(process, began + len(found.samples))
        finally:
            if process.poll() is None:
                _kill_driver(process)
    found.seconds = time.perf_counter() - began
    if process.returncode or due:
        printed = (storage / "printed").read_text(errors="replace").strip()
        raise RuntimeError(f"study run ended with {process.returncode}, {len(due)} kills left: {printed[-2000:]}")
    return found


def _start(storage: Path, file: str, cores: int, out: Any) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(part for part in (str(COUNTED), os.environ.get("PYTHONPATH", "")) if part)
    return subprocess.Popen(
        [sys.executable, "-m", "study", "run", file, "--storage", str(storage), "--cpus", str(cores), "--no-report"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": path, "COUNTED_EPOCHS": str(storage / "epochs")},
    )


def _wait(process: subprocess.Popen[bytes], until: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.05, until - time.perf_counter()))


def _kill_driver(process: subprocess.Popen[bytes]) -> int:
    """SIGKILL; how many processes below it were still there two seconds later, which are then killed by their ids."""
    family = {pid: title(pid) for pid in descendants(process.pid)}
    process.kill()
    process.wait()
    time.sleep(2)
    left = [pid for pid, name in family.items() if name and title(pid)]
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


def _look(driver: int, storage: Path, seconds: float, life: int) -> Sample:
    workers = [pid for pid in descendants(driver) if title(pid).startswith(WORKER)]
    trials = storage / "soak" / "trials"
    return Sample(
        seconds=seconds,
        life=life,
        trials=len(os.listdir(trials)) if trials.is_dir() else 0,
        driver=memory(driver),
        files=open_files(driver),
        workers={pid: size for pid in workers if (size := memory(pid))},
    )


def _study_file(folder: Path, scale: Scale) -> str:
    content = {
        "name": "soak",
        "question": "Is anything lost, and does anything grow?",
        "recipe": {
            "dataset": "synthetic",
            "model": "mlp",
            "optimiser": "sam",
            "epochs": scale.epochs,
            "device": "cpu",
        },
        "grid": {"gamma": [round(0.0005 * (i + 1), 4) for i in range(scale.trials)]},
        "seeds": list(range(scale.seeds)),
        "checkpoints": {"every": scale.every},
        "resources": {"cpu": 1, "gpu": 0},
        # A kill is a failure of the trial that it hits; here no number of them is too many.
        "max_failures": 100,
    }
    file = folder / "soak.yaml"
    file.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return str(file)


# What became of it


def _begun(log: Path) -> Counter[tuple[str, ...]]:
    """How often each (gamma, seed, epoch) was begun."""
    return Counter(tuple(line.split()[:3]) for line in log.read_text().splitlines())


def _counts(
    scale: Scale, disturbed: Run, reader: StudyReader, epochs: dict[str, Counter[tuple[str, ...]]]
) -> dict[str, int]:
    replicates, history = reader.replicates(), reader.history()
    planned = scale.trials * scale.seeds
    recorded = reader.folder.table("history", ["cell"]).num_rows
    ends = reader.folder.table("ends", ["cell", "seed"])
    keys = history[["cell", "seed", "epoch"]]
    begun = epochs["disturbed"]
    return {
        "trials": scale.trials,
        "replicate epochs": planned * scale.epochs,
        "workers killed": disturbed.workers_killed,
        "drivers killed": disturbed.drivers_killed,
        "processes left two seconds after their driver": disturbed.left_behind,
        "replicates lost": planned - int((replicates["status"] == "complete").sum()),
        "replicates more than once in the table": len(replicates) - len(replicates[["cell", "seed"]].drop_duplicates()),
        "ends recorded again": ends.num_rows - ends.group_by(["cell", "seed"]).aggregate([]).num_rows,
        "rows of history lost": planned * scale.epochs - len(keys.drop_duplicates()),
        "rows of history duplicated": len(keys) - len(keys.drop_duplicates()),
        "rows of history recorded again": recorded - len(keys.drop_duplicates()),
        "replicate epochs trained twice, calm": sum(epochs["calm"].values()) - len(epochs["calm"]),
        "replicate epochs trained twice, disturbed": sum(begun.values()) - len(begun),
        # A killed worker loses its trial's epochs since the last checkpoint; a killed driver all of its workers'.
        "replicate epochs trained twice, at most": scale.every
        * scale.seeds
        * (disturbed.workers_killed + usable_cpus() * disturbed.drivers_killed),
    }


def _unlike(one: StudyReader, other: StudyReader) -> int:
    """Cells whose ends or epochs differ in anything but when and where."""
    different: set[str] = set()
    for key, frames in (
        (["cell", "seed"], [reader.replicates() for reader in (one, other)]),
        (["cell", "seed", "epoch"], [reader.history() for reader in (one, other)]),
    ):
        first, second = (_placeless(frame, key) for frame in frames)
        both = first.index.intersection(second.index)
        different |= set(first.index.symmetric_difference(second.index).get_level_values("cell"))
        a, b = first.loc[both, sorted(first.columns)], second.loc[both, sorted(first.columns)]
        unlike = ~((a == b) | (a.isna() & b.isna())).all(axis=1)
        different |= set(both[unlike.to_numpy()].get_level_values("cell"))
    return len(different)


def _placeless(frame: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    return frame.drop(columns=[c for c in _PLACE if c in frame.columns]).set_index(key).sort_index()


def _unlike_a_loop(reader: StudyReader, scale: Scale) -> int:
    """Of cells over the whole grid, how many a loop of a few lines trains to other numbers."""
    import torch

    from trainables.replicate import Replicate

    ends = {(row["gamma"], row["seed"]): row for row in reader.replicates().to_dict("records")}
    rows = reader.history().to_dict("records")
    history = {(row["cell"], row["seed"], row["epoch"]): row for row in rows}
    gammas = sorted({gamma for gamma, _ in ends})
    wrong = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for gamma in gammas[:: max(1, len(gammas) // scale.looped)][: scale.looped]:
            alike = True
            for seed in range(scale.seeds):
                end = ends[gamma, seed]
                recipe = Recipe.of({**reader.spec["recipe"], "gamma": gamma})
                replicate = Replicate(recipe, seed)
                for epoch in range(1, scale.epochs + 1):
                    row, recorded = replicate.train_epoch(), history[str(end["cell"]), seed, epoch]
                    alike &= all(_same(row[name], recorded[name]) for name in row.keys() - _PLACE)
                alike &= all(end[name] == value for name, value in replicate.final().items())
            wrong += not alike
    finally:
        torch.set_num_threads(threads)
    return wrong


def _same(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))  # two that are no number are alike


# Memory


def _memory(name: str, ran: Run, scale: Scale) -> dict[str, Summary]:
    """How large processes are and how they grow."""
    warm = [s for s in ran.samples if s.trials >= WARM * scale.trials]
    drivers = [
        slope
        for life in range(ran.drivers_killed + 1)
        if (slope := _slope([(s.trials, s.driver) for s in warm if s.life == life], scale)) is not None
    ]
    pids = {pid for s in warm for pid in s.workers}
    workers = [
        slope
        for pid in sorted(pids)
        if (slope := _slope([(s.trials, s.workers[pid]) for s in warm if pid in s.workers], scale)) is not None
    ]
    sizes = {
        "driver's memory": [s.driver / MIB for s in warm],
        "a worker's memory": [size / MIB for s in warm for size in s.workers.values()],
    }
    found = {f"{name}: {what}": Summary.of(values, "MiB") for what, values in sizes.items() if values}
    found[f"{name}: driver's open files"] = Summary.of([float(s.files) for s in ran.samples], "files")
    steps = [
        (after.driver - before.driver) / MIB
        for before, after in pairwise(warm)
        if before.life == after.life and after.trials < scale.trials
    ]
    if steps:
        # The first time that 64 pieces of records are merged takes memory that is kept for the next time.
        found[f"{name}: driver's largest step in a second"] = Summary.of([max(steps)], "MiB")
    if drivers:
        found[f"{name}: driver's growth a trial"] = Summary.of(drivers, "KiB")
    if workers:
        found[f"{name}: a worker's growth a trial"] = Summary.of(workers, "KiB")
    return found


def _slope(points: Sequence[tuple[int, int]], scale: Scale) -> float | None:
    """KiB a trial of the line through (trials, bytes) of one process; None over less than a tenth of the trials.

    By least squares, steps of more than `STEP` within a second left out: `_memory` tells them apart.
    """
    points = points[:-1]  # of a process that was dying, or had begun to end
    if len(points) < 3 or points[-1][0] - points[0][0] < scale.trials / 10:
        return None
    settled = points[0][0] + SETTLED * (points[-1][0] - points[0][0])
    points = [point for point in points if point[0] >= settled]
    if len({trials for trials, _ in points}) < 2:
        return None
    level, steps = [points[0]], 0
    for (_, before), (trials, size) in pairwise(points):
        if abs(size - before) > STEP:
            steps += size - before
        level.append((trials, size - steps))
    return statistics.linear_regression(*zip(*level, strict=True)).slope / 1024


def _series(ran: Run) -> dict[str, list[Any]]:
    """At most `_POINTS` of the samples, in columns; memory in MiB, of the workers the largest one's."""
    step = max(1, len(ran.samples) // _POINTS)
    samples = ran.samples[::step]
    return {
        "seconds": [round(s.seconds, 1) for s in samples],
        "driver_number": [s.life for s in samples],
        "trials_begun": [s.trials for s in samples],
        "driver_mib": [round(s.driver / MIB, 1) for s in samples],
        "driver_files": [s.files for s in samples],
        "workers": [len(s.workers) for s in samples],
        "largest_worker_mib": [round(max(s.workers.values(), default=0) / MIB, 1) for s in samples],
    }
