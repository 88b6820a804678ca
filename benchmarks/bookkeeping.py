"""What the records of a large study cost, beside Ray Tune with the loggers that it brings.

Three questions. How many results a second does the driver's own code take, everything recorded, with no cluster that
could be its limit (`without_ray`)? How long do `plan`, `status` and a resumed run take on the folder that this made, of
ten thousand trials with two million epochs, and how much memory? And under a real Ray, with trials that do nothing, how
many results a second pass through ours and through plain Tune (`still`, `plain_tune`)?
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import made_up
from benchmarks.measure import Summary, ratio
from benchmarks.processes import Ended, fresh, study
from benchmarks.record import Result, usable_cpus
from study.store import StudyFolder

GIB, MIB = 2**30, 2**20

#: What issue 4 asks of the large folder: results a second, GiB of a process, and seconds that are still "seconds".
GOALS = {"results a second": 500, "GiB of plan, status and resume": 1, "seconds of plan, status and resume": 10}

#: The ways of asking a folder, as the rows of the result name them; the last one is of a study of one trial.
ASKED = ("plan", "status", "status --why", "resume, to Ray's first trial", "the same of a study of one trial")


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        cells: of the large study, one seed each.
        epochs: of each of its trials.
        at_once: trials that go on at a time while it is made.
        trials: of each experiment under a real Ray.
        reports: of each of those trials.
        rounds: of everything but the making of the large study.
    """

    cells: int
    epochs: int
    at_once: int
    trials: int
    reports: int
    rounds: int


#: 10,000 cells go to their end; one in 101 has a bad value and is stopped.
FULL = Scale(10_100, 200, 64, trials=100, reports=100, rounds=3)
QUICK = Scale(303, 20, 16, trials=8, reports=25, rounds=1)


def run(quick: bool) -> Result:
    """Make the folders in a temporary one and measure; everything timed is in processes of its own."""
    return measure(QUICK if quick else FULL)


def measure(scale: Scale) -> Result:
    """Measure at a scale.

    Raises:
        RuntimeError: something did not end as it has to.
    """
    template, _ = fresh("benchmarks.made_up", "template")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        large = _large(Path(scratch), scale, template)
        under = _under_ray(Path(scratch), scale, template)
    return Result(
        settings={**asdict(scale), "cores": usable_cpus(), "goals": GOALS, "study": {**made_up.RECIPE, "seeds": [0]}},
        ratios={**large.ratios, **under.ratios},
        samples={**large.samples, **under.samples},
        counts={**large.counts, **under.counts},
        notes=(
            "Large: made by `study run` with made-up results in place of Ray; the product plans, locks, decides "
            "(ASHA), records and merges. Results a second count every wall second in that code, waits for the disk and "
            "the merging at the end included; made-up numbers and the workers' checkpoints are outside.",
            "Tune's loggers alone: CSV, JSON and TensorBoard callbacks, handed results of the same columns one by one, "
            "without a cluster. They flush each line and force none of it to the disk; ours forces every file.",
            "Memory is the process's own highest (VmHWM), without Ray's processes. Of a driver's, torch and Ray are "
            "most. `Resume, to Ray's first trial` has one trial missing and ends where Ray would get it: planning, the "
            "lock and every import, without the start of Ray; a study of one trial costs what is not the folder's.",
            "Under Ray: trials that do nothing, as many at a time as there are cores; between the first and the last "
            "result, the change from trial to trial on warm workers included. Ours writes each trial's last checkpoint "
            "besides; plain Tune writes none.",
        ),
    )


# The large study


def _large(scratch: Path, scale: Scale, template: list[Any]) -> Result:
    storage = str(scratch / "large")
    file = made_up.study_file(scratch, "large", scale.cells, scale.epochs, asha=True)
    given = {"file": file, "storage": storage, "template": template, "at_once": scale.at_once, "leave": 1}
    driven, driver = fresh("benchmarks.without_ray", "drive", **given, checkpoints=True, called=time.time())
    logged, _ = fresh(
        "benchmarks.plain_tune",
        "log_alone",
        trials=min(scale.at_once, scale.cells),
        epochs=scale.epochs,
        at_once=scale.at_once,
        storage=str(scratch / "logged"),
        template=template,
    )
    folder = StudyFolder(f"{storage}/large")
    counts = _counted(folder, driven)
    stopped = next(row["trial"] for row in folder.rows("ends", ["trial", "status"]) if row["status"] == "stopped")
    one = {**given, "file": made_up.study_file(scratch, "one", 1, scale.epochs, asha=True)}
    seconds: dict[str, list[float]] = {name: [] for name in (*ASKED, "history, read", "nothing is missing")}
    peaks: dict[str, list[float]] = {name: [] for name in (*seconds, "report's reading")}
    del peaks["history, read"]

    def take(name: str, ended: Ended, took: float | None = None) -> None:
        seconds[name].append(ended.seconds if took is None else took)
        peaks["report's reading" if name == "history, read" else name].append(ended.peak / GIB)

    for _ in range(scale.rounds):
        take("plan", study("plan", file, "--storage", storage))
        take("status", study("status", folder.uri))
        take("status --why", study("status", folder.uri, "--why", stopped))
        for name, which in zip(ASKED[-2:], (given, one), strict=True):
            resumed, ended = fresh("benchmarks.without_ray", "drive", **which, checkpoints=False, called=time.time())
            take(name, ended, resumed["reached"])
        read, ended = fresh("benchmarks.bookkeeping", "read_history", uri=folder.uri)
        take("history, read", ended, read["seconds"])
    last = study("run", file, "--storage", storage, "--cpus", "1", "--no-report")
    if not last.printed.rstrip().splitlines()[-1].startswith("1 trial "):
        raise RuntimeError(f"the resumed run did not train the one trial that was missing: {last.printed[-500:]}")
    for _ in range(scale.rounds):
        take("nothing is missing", study("run", file, "--storage", storage, "--no-report"))
    ours = driven["results"] / (driven["handling"] + driven["closing"])
    peer = logged["results"] / logged["seconds"]
    name = "large: results a second"
    return Result(
        settings={},
        ratios={
            f"{name}, no cluster: ours / Tune's loggers alone": ratio([ours], [peer]),
            f"{name}: ours / the goal": ratio([ours], [GOALS["results a second"]]),
            "large: resume to Ray's first trial / of a study of one trial": ratio(*(seconds[a] for a in ASKED[-2:])),
        },
        samples={
            f"{name}, no cluster: ours": Summary.of([ours], "results/s"),
            f"{name} of the driver's CPU: ours": Summary.of([driven["results"] / driven["cpu"]], "results/s"),
            f"{name}, no cluster: Tune's loggers alone": Summary.of([peer], "results/s"),
            f"{name} of the CPU: Tune's loggers alone": Summary.of([logged["results"] / logged["cpu"]], "results/s"),
            "large: slowest result (ours)": Summary.of([driven["slowest"]]),
            "large: driver's memory while it records": Summary.of([driver.peak / GIB], "GiB"),
            **{f"large: {name}": Summary.of(values) for name, values in seconds.items()},
            "large: resume with Ray, one trial trained": Summary.of([last.seconds]),
            **{f"large: memory of {name}": Summary.of(values, "GiB") for name, values in peaks.items()},
            "large: memory of resume with Ray": Summary.of([last.peak / GIB], "GiB"),
        },
        counts={f"large: {name}": value for name, value in counts.items()},
    )


def _counted(folder: StudyFolder, driven: dict[str, Any]) -> dict[str, int]:
    files = folder.walk()
    records = [size for path, size in files.items() if path.startswith("records/")]
    return {
        "results": driven["results"],
        "decisions": folder.table("decisions", ["sequence"]).num_rows,
        "ends": folder.table("ends", ["seed"]).num_rows,
        "rows of history": folder.table("history", ["epoch"]).num_rows,
        "files of records": len(records),
        "MiB of records": sum(records) // MIB,
        "files of trials (a checkpoint each)": sum(path.startswith("trials/") for path in files),
        "files": len(files),
    }


def read_history(uri: str) -> dict[str, float]:
    """What a report reads of a study: `rows` of history, and the wall `seconds` until they are a frame."""
    from study.reader import open_study

    began = time.perf_counter()
    rows = len(open_study(uri).history())
    return {"rows": rows, "seconds": time.perf_counter() - began}


# Under a real Ray


def _under_ray(scratch: Path, scale: Scale, template: list[Any]) -> Result:
    file = made_up.study_file(scratch, "still", scale.trials, scale.reports)
    cpus = usable_cpus()
    found: dict[str, list[dict[str, float]]] = {"ours": [], "Tune with loggers": [], "Tune without": []}
    for i in range(scale.rounds):
        storage = str(scratch / f"under-{i}")
        ours, _ = fresh("benchmarks.still", "run", file=file, storage=storage, cpus=cpus, template=template)
        found["ours"].append(ours)
        for name, loggers in (("Tune with loggers", True), ("Tune without", False)):
            given = {"trials": scale.trials, "epochs": scale.reports, "cpus": cpus, "loggers": loggers}
            peer, _ = fresh("benchmarks.plain_tune", "run", **given, storage=storage, name=name[5:], template=template)
            found[name].append(peer)
    speed = {name: [r["results"] / r["seconds"] for r in runs] for name, runs in found.items()}
    cost = {name: [r["cpu"] / r["results"] for r in runs] for name, runs in found.items()}
    peers = [name for name in found if name != "ours"]
    return Result(
        settings={},
        ratios={
            **{f"under Ray: results a second, ours / {name}": ratio(speed["ours"], speed[name]) for name in peers},
            **{f"under Ray: driver's CPU a result, ours / {name}": ratio(cost["ours"], cost[name]) for name in peers},
        },
        samples={
            **{f"under Ray: results a second, {name}": Summary.of(v, "results/s") for name, v in speed.items()},
            **{f"under Ray: driver's CPU a result, {name}": Summary.of(v) for name, v in cost.items()},
        },
        counts={"under Ray: results": scale.trials * scale.reports},
    )
