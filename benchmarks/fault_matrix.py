"""What faults cost a study: every fault at every phase of its life, on real Ray with real processes.

Each case runs a tiny study with the fault, runs the same command again until it is done, and compares its tables with
an undisturbed run's, bit for bit. The cases, the faults and the judge are the tests' own (`tests/integration/faults`).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.measure import Summary
from benchmarks.record import Result

#: The tests are no package: their folder has to be on the path.
TESTS = Path(__file__).parent.parent / "tests" / "integration"


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        name: fault, phase and scheduler.
        problems: what is not as it has to be, a line each.
        twice: epochs that were trained twice, each seed's counted; `bound` may be.
        lost: rows of the history that the undisturbed run has and this one has not; `added`: the other way round.
        runs: of the command, until it was done.
        seconds: of all of them.
    """

    name: str
    problems: tuple[str, ...]
    twice: int
    bound: int
    lost: int
    added: int
    runs: int
    seconds: float


def run(quick: bool) -> Result:
    """Run the whole matrix (about an hour), or the tests' own selection of it."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    matrix, disturbed = import_module("faults.matrix"), import_module("faults.disturbed")
    cases = matrix.selection() if quick else matrix.sensible()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        calm = {name: disturbed.undisturbed(name, Path(scratch) / name) for name in matrix.SCHEDULERS}
        full = disturbed.Calm(disturbed.Tables.of(calm["fifo"].folder))
        outcomes = []
        for number, case in enumerate(cases, 1):
            outcome = _outcome(disturbed, case, full, Path(scratch) / f"case-{number}")
            said = "; ".join(outcome.problems) or "as undisturbed"
            print(f"{number} of {len(cases)}: {case.name}: {said}", file=sys.stderr, flush=True)
            outcomes.append(outcome)
    settings = {
        "epochs": matrix.EPOCHS,
        "cells": len(matrix.GAMMAS),
        "seeds": len(matrix.SEEDS),
        "epochs between checkpoints": matrix.EVERY,
        "schedulers": dict(matrix.SCHEDULERS),
        "faults": list(matrix.FAULTS),
        "phases": list(matrix.PHASES),
    }
    return result(settings, outcomes, [ran.seconds for ran in calm.values()], without_sense(matrix.cases()))


def _outcome(disturbed: Any, case: Any, calm: Any, folder: Path) -> Outcome:
    begun = time.monotonic()
    try:
        ran = disturbed.disturb(case, folder)
    except AssertionError as error:
        # It waited in vain; the other cases are worth having all the same.
        reason = str(error).splitlines()[0]
        return Outcome(case.name, (reason,), 0, case.bound, len(calm.full.history), 0, 0, time.monotonic() - begun)
    problems = tuple(disturbed.problems(case, ran, calm))
    judged = disturbed.judge(case, ran, calm) if ran.codes[-1] == 0 else None
    return Outcome(
        name=case.name,
        problems=problems,
        twice=ran.twice,
        bound=case.bound,
        # A study that never got done has nothing that counts.
        lost=judged.lost if judged else len(calm.full.history),
        added=judged.added if judged else 0,
        runs=len(ran.codes),
        seconds=ran.seconds,
    )


def without_sense(cases: Iterable[Any]) -> dict[str, list[str]]:
    """The fields of the matrix that cannot be, by their reason."""
    found: dict[str, list[str]] = {}
    for case in cases:
        if case.nonsense:
            # The scheduler is said only where it is the reason.
            name = f"{case.fault}, {case.phase}"
            names = found.setdefault(case.nonsense, [])
            if name not in names:
                names.append(name)
    return found


def result(
    settings: dict[str, Any], outcomes: Sequence[Outcome], calm: Sequence[float], nonsense: dict[str, list[str]]
) -> Result:
    """The record's content.

    Args:
        settings: of the study and the matrix.
        outcomes: one a case, at least one of which may train epochs twice.
        calm: seconds of the undisturbed commands.
        nonsense: see `without_sense`.
    """
    bounded = [outcome for outcome in outcomes if outcome.bound]
    return Result(
        settings=settings,
        ratios={"epochs trained twice / bound": Summary.of([o.twice / o.bound for o in bounded], "ratio")},
        samples={
            "undisturbed command": Summary.of(list(calm)),
            "disturbed, all runs of the command": Summary.of([o.seconds for o in outcomes]),
            "runs of the command until done": Summary.of([float(o.runs) for o in outcomes], "runs"),
        },
        counts={
            "cases": len(outcomes),
            "cases with any problem": sum(bool(o.problems) for o in outcomes),
            "rows lost": sum(o.lost for o in outcomes),
            "rows too many": sum(o.added for o in outcomes),
            "cases with more epochs trained twice than the bound": sum(o.twice > o.bound for o in outcomes),
            "epochs trained twice": sum(o.twice for o in outcomes),
            "epochs that may be trained twice": sum(o.bound for o in outcomes),
            **{f"epochs trained twice: {o.name}": o.twice for o in outcomes},
        },
        notes=(
            "Each case: one fault at one phase, then the same command until it is done; its tables of replicates, "
            "history and decisions are compared bit for bit with an undisturbed run's, all but the columns that say "
            "when and where. Under ASHA a trial whose worker dies may be overtaken by the next one: the tables have to "
            "be what the full curves give in the order in which this study's reports came.",
            "An epoch is trained twice if any replicate begins it again; each seed's counts. The bound is the epochs "
            "between two checkpoints, of each seed of the one trial that is killed; one more interval where the newest "
            "checkpoint is damaged; none where no trial is killed.",
            *(f"Problem: {o.name}: {problem}" for o in outcomes for problem in o.problems),
            *(f"No case, since {reason}: {'; '.join(names)}." for reason, names in nonsense.items()),
        ),
    )
