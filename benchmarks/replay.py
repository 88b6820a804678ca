"""Decisions of successive halving a second on one core: the audit's replay beside Ray's scheduler and the study's own.

Each replays the same recorded curves in the same launch order under the same setting, and has to stop the same cells.
The replay looks at rungs only; Ray's scheduler object and `study.asha` are told of every epoch at which they decide,
and of no other, which is the cheapest way to use them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from analysis.replay import Decided, Setting, replay
from benchmarks.measure import Summary, interleaved, ratio
from benchmarks.record import Result
from study.asha import Asha


@dataclass(frozen=True)
class Plan:
    """`cells` curves of `epochs` epochs in one arm, one after the other; the larger study is for ours alone."""

    cells: int
    large: int
    epochs: int
    grace_period: int
    reduction_factor: int
    rounds: int


FULL = Plan(cells=500, large=10_000, epochs=100, grace_period=1, reduction_factor=3, rounds=9)
QUICK = Plan(cells=100, large=500, epochs=30, grace_period=1, reduction_factor=3, rounds=3)


class _Trial:
    """What Ray's scheduler asks of a trial."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def run(quick: bool) -> Result:
    """Measure, on one thread."""
    return measure(QUICK if quick else FULL)


def measure(plan: Plan) -> Result:
    """Time every contender of a plan.

    Raises:
        RuntimeError: they do not stop the same cells at the same epochs.
    """
    setting = Setting(plan.grace_period, plan.reduction_factor)
    curves, large = drawn(plan.cells, plan.epochs), drawn(plan.large, plan.epochs)
    runs = contenders(plan, setting, curves)
    ends = {name: contender() for name, contender in runs.items()}
    if any(found != ends["replay"] for found in ends.values()):
        raise RuntimeError("the contenders do not stop the same cells")
    decisions = {"": _decisions(curves, setting), "large": _decisions(large, setting)}
    timed: dict[str, Callable[[], object]] = {**runs, "large": lambda: _replayed(large, setting)}
    seconds = interleaved(timed, rounds=plan.rounds, warm_up=1)
    each = {
        name: [value / decisions["large" if name == "large" else ""] for value in values]
        for name, values in seconds.items()
    }
    names = {
        "replay": "the audit's replay",
        "large": f"the audit's replay, {plan.large:,} cells",
        "study.asha": "study.asha",
        "ray": "Ray's AsyncHyperBandScheduler",
    }
    return Result(
        settings={**asdict(plan), "threads": 1},
        ratios={
            "a decision: Ray's scheduler / replay": ratio(each["ray"], each["replay"]),
            "a decision: study.asha / replay": ratio(each["study.asha"], each["replay"]),
        },
        samples={
            f"{names[name]}, decisions a second": Summary.of([1 / value for value in values], "1/s")
            for name, values in each.items()
        },
        counts={
            f"decisions, {plan.cells:,} cells": decisions[""],
            f"decisions, {plan.large:,} cells": decisions["large"],
        },
        notes=(
            "Curves are random with ties (two decimals), cells are launched one after the other. Every contender stops "
            "the same cells at the same epochs, checked before anything is timed.",
            "Ray's object takes the quantile of an unsorted dictionary at every decision, so that its cost grows with "
            "the number of cells.",
        ),
    )


def drawn(cells: int, epochs: int) -> list[list[float]]:
    """Random curves with ties."""
    draw = random.Random(0)
    return [[round(draw.random(), 2) for _ in range(epochs)] for _ in range(cells)]


def contenders(plan: Plan, setting: Setting, curves: list[list[float]]) -> dict[str, Callable[[], list[int]]]:
    """Each way to decide over the same curves; a call returns the epoch at which each cell is stopped, or 0."""
    rungs = setting.rungs(plan.epochs)

    def by_asha() -> list[int]:
        asha = Asha(plan.epochs, plan.grace_period, plan.reduction_factor)
        ends = [0] * len(curves)
        for cell, curve in enumerate(curves):
            name = str(cell)
            for rung in rungs:
                decision = asha.report(name, rung, curve[rung - 1])
                if decision is not None and decision.stop:
                    ends[cell] = rung
                    break
        return ends

    def by_ray() -> list[int]:
        scheduler = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric="value",
            mode="max",
            max_t=plan.epochs,
            grace_period=plan.grace_period,
            reduction_factor=plan.reduction_factor,
        )
        nobody: Any = None
        ends = [0] * len(curves)
        for cell, curve in enumerate(curves):
            trial: Any = _Trial(str(cell))
            scheduler.on_trial_add(nobody, trial)
            for rung in rungs:
                result = {"epoch": rung, "value": curve[rung - 1]}
                if scheduler.on_trial_result(nobody, trial, result) == TrialScheduler.STOP:
                    ends[cell] = rung
                    break
        return ends

    return {"replay": lambda: _replayed(curves, setting), "study.asha": by_asha, "ray": by_ray}


def _replayed(curves: list[list[float]], setting: Setting) -> list[int]:
    return replay(curves, [0] * len(curves), [len(curves[0])], setting, range(len(curves)))


def _decisions(curves: list[list[float]], setting: Setting) -> int:
    ledger: list[Decided] = []
    replay(curves, [0] * len(curves), [len(curves[0])], setting, range(len(curves)), ledger=ledger)
    return len(ledger)
