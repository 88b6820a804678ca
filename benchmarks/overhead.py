"""What a trial costs that does nothing: ours with everything recorded beside Ray Tune's trainables.

Every contender is a whole process, timed from its start to its end, with a few trials and with many. What a further
trial costs is the difference of the two over the difference in trials: the start of Python, Ray and the first workers
is in both. Ours is the real command `study run`, twice: with trials that do the least that a study can (make a network,
train one epoch of one batch, validate, test, write a checkpoint), and with the same trials around a replicate that does
nothing (`benchmarks.still`), as the peers' do: they hand out made-up metrics.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import made_up
from benchmarks.measure import Summary, ratio
from benchmarks.processes import fresh, study
from benchmarks.record import Result, usable_cpus
from study.reader import open_study

#: The peers: which trainable, and with Tune's default loggers or none.
PEERS = {
    "Ray function trainable, default loggers": {"as_function": True, "loggers": True},
    "Ray class trainable, reused actors, default loggers": {"as_function": False, "loggers": True},
    "Ray class trainable, reused actors, no loggers": {"as_function": False, "loggers": False},
}

FUNCTION, CLASS, BARE = PEERS

#: Ours: every trial with a little training, and with none.
OURS, STILL = "ours", "ours without training"

#: Names of the ratios that have a goal: the most that each may be.
GOALS = {
    f"a further trial: {ours} / {peer}": most
    for ours in (OURS, STILL)
    for peer, most in ((FUNCTION, 0.1), (CLASS, 1.2))
}


@dataclass(frozen=True)
class Scale:
    """Trials of the small and of the large experiment, and how often each is run. A trial has one epoch."""

    few: int
    many: int
    rounds: int


FULL = Scale(few=10, many=100, rounds=3)
QUICK = Scale(few=2, many=20, rounds=1)


def run(quick: bool) -> Result:
    """Run everything in temporary folders."""
    return measure(QUICK if quick else FULL)


def measure(scale: Scale) -> Result:
    """Run every contender with few and with many trials, in turn.

    Raises:
        RuntimeError: something did not end as it has to.
    """
    template, _ = fresh("benchmarks.made_up", "template")
    cpus = usable_cpus()

    def still(scratch: Path, trials: int) -> float:
        file = made_up.study_file(scratch, "nothing", trials, 1)
        given = {"file": file, "storage": str(scratch), "cpus": cpus, "template": template}
        _, ended = fresh("benchmarks.still", "run", **given)
        _check(scratch, trials)
        return ended.seconds

    def peer(settings: dict[str, bool]) -> Callable[[Path, int], float]:
        def seconds(scratch: Path, trials: int) -> float:
            given: dict[str, Any] = {"trials": trials, "epochs": 1, "cpus": cpus, "template": template, **settings}
            _, ended = fresh("benchmarks.plain_tune", "run", **given, storage=str(scratch), name="peer")
            return ended.seconds

        return seconds

    contenders: dict[str, Callable[[Path, int], float]] = {
        OURS: lambda scratch, trials: _ours(scratch, trials, cpus),
        STILL: still,
    }
    contenders |= {name: peer(settings) for name, settings in PEERS.items()}
    walls: dict[str, dict[int, list[float]]] = {name: {scale.few: [], scale.many: []} for name in contenders}
    for _ in range(scale.rounds):
        for name, contender in contenders.items():
            for trials, values in walls[name].items():
                with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
                    values.append(contender(Path(scratch), trials))
    further = {name: further_trial(wall[scale.few], wall[scale.many], scale) for name, wall in walls.items()}
    return Result(
        settings={
            **asdict(scale),
            "cores": cpus,
            "goals": GOALS,
            "study": {**made_up.RECIPE, "epochs": 1, "seeds": [0]},
        },
        ratios={
            **{
                f"a further trial: {ours} / {name}": ratio(further[ours], further[name])
                for ours in (OURS, STILL)
                for name in PEERS
            },
            **{
                f"{scale.many} trials, the process: {OURS} / {name}": ratio(
                    walls[OURS][scale.many], walls[name][scale.many]
                )
                for name in PEERS
            },
        },
        samples={
            **{f"a further trial: {name}": Summary.of(values) for name, values in further.items()},
            **{
                f"{trials} trials, the process: {name}": Summary.of(values)
                for name, wall in walls.items()
                for trials, values in wall.items()
            },
        },
        counts={"trials, few": scale.few, "trials, many": scale.many},
        notes=(
            "A further trial: (wall of many - wall of few) / (many - few), the walls of whole processes, as many "
            "trials at a time as there are cores. Alike for all. Where the starts of two processes differ by more "
            "(on a busy machine, in a quick run) it means nothing, and may be below zero.",
            "Ours: the command `study run`, a cell of one seed each, with provenance, records, a checkpoint of every "
            "trial and the merging at the end, no report; its trials really make and train a network for one epoch of "
            "one batch, validate and test it, which is not subtracted. Without training: the same command, workers and "
            "records around a replicate that hands out made-up rows.",
            "The peers' trials make one report of made-up metrics with the columns of ours and write no checkpoint. "
            "Function: an actor a trial, Tune's default. Class: warm actors.",
        ),
    )


def further_trial(few: list[float], many: list[float], scale: Scale) -> list[float]:
    """Wall seconds that each trial costs beyond the first few, a value a round."""
    return [(b - a) / (scale.many - scale.few) for a, b in zip(few, many, strict=True)]


def _ours(scratch: Path, trials: int, cpus: int) -> float:
    file = made_up.study_file(scratch, "nothing", trials, 1)
    ended = study("run", file, "--storage", str(scratch), "--cpus", str(cpus), "--no-report")
    _check(scratch, trials)
    return ended.seconds


def _check(storage: Path, trials: int) -> None:
    status = open_study(str(storage / "nothing")).replicates()["status"]
    if len(status) != trials or not (status == "complete").all():
        raise RuntimeError(f"not every trial is complete: {status.value_counts().to_dict()}")
