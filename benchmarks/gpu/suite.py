"""Results of one run of the suite, the time that is left to it, and how a device is timed."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.tape import Tape
from trainables.capture import CudaGraphs, Recorder

#: Groups of tensors that are compared by themselves: parameters, floating buffers, counters.
State = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class Check:
    """A statement that holds or not: the worst `distance` that was seen, and what it may be."""

    name: str
    distance: float
    allowed: float
    detail: str = ""

    @property
    def holds(self) -> bool:
        return self.distance <= self.allowed


@dataclass(frozen=True)
class Row:
    """A figure that was measured, and its goal in words where it has one."""

    name: str
    value: float
    unit: str
    goal: str = ""
    detail: str = ""


@dataclass
class Suite:
    """One run.

    Args:
        device: to run on.
        small: everything as small as it goes: to see that nothing breaks.
        seconds: that it may take.
        data_root: folder of real CIFAR, where there is one.
    """

    device: torch.device
    small: bool
    seconds: float
    data_root: str | None = None
    checks: list[Check] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    study: dict[str, Any] = field(default_factory=dict)
    begun: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.perf_counter() - self.begun)

    def recorder(self) -> Recorder:
        """A new one: CUDA graphs, or on a CPU a tape."""
        return CudaGraphs(self.device) if self.device.type == "cuda" else Tape()

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, runs: Mapping[str, Callable[[], object]], *, rounds: int, repeats: int) -> dict[str, list[float]]:
        """Seconds a call, a value a round for each name; rounds run all in turn, and each sample waits for its end."""
        for run in runs.values():
            run()
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                self.wait()
                begun = time.perf_counter()
                for _ in range(repeats):
                    run()
                self.wait()
                found[name].append((time.perf_counter() - begun) / repeats)
        return found

    def check(self, name: str, distance: float, allowed: float, detail: str = "") -> None:
        """Take note of a check, and say it."""
        check = Check(name, distance, allowed, detail)
        self.checks.append(check)
        mark = "ok  " if check.holds else "FAIL"
        print(f"{mark} {name}: {distance:.1e} (allowed {allowed:.0e}){'; ' + detail if detail else ''}", flush=True)

    def row(self, name: str, value: float, unit: str, goal: str = "", detail: str = "") -> None:
        """Take note of a figure, and say it. The goals are a GPU's."""
        goal = "" if self.small else goal
        self.rows.append(Row(name, value, unit, goal, detail))
        print(f"     {name}: {value:.4g} {unit}{f' (goal {goal})' if goal else ''}", flush=True)

    def skip(self, name: str, reason: str) -> None:
        """Take note of what was not done."""
        self.skipped.append((name, reason))
        print(f"skip {name}: {reason}", flush=True)

    def attempt(self, name: str, need: float, run: Callable[[Suite], None], *, check: bool = False) -> None:
        """A section: skipped where less than `need` seconds are left; an error in it ends it and not the suite.

        Args:
            name: of it.
            need: seconds.
            run: it.
            check: an error in it is a check that does not hold.
        """
        if self.left < need:
            self.skip(name, f"{self.left:.0f} s left, some {need:.0f} needed")
            return
        try:
            run(self)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if check:
                self.check(name, math.inf, 0.0, reason)
            else:
                self.skip(name, reason)
        gc.collect()
        if self.device.type == "cuda":
            with suppress(RuntimeError):
                torch.cuda.empty_cache()

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return {
            "small": self.small,
            "checks": [
                {**asdict(c), "distance": c.distance if math.isfinite(c.distance) else None, "holds": c.holds}
                for c in self.checks
            ],
            "rows": [{**asdict(r), "value": r.value if math.isfinite(r.value) else None} for r in self.rows],
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "study": self.study,
            "seconds": round(time.perf_counter() - self.begun, 1),
        }


def apart(one: State, other: State, start: State) -> float:
    """|one - other| / |one - start|, wherever they are: the largest over the state's groups.

    Infinite where one is no number, or where integers, which are not measured, differ.
    """
    found = [0.0]
    for a, b, c in zip(one, other, start, strict=True):
        whole = [(x, y) for x, y in zip(a, b, strict=True) if not x.is_floating_point()]
        if any(not torch.equal(x.cpu(), y.cpu()) for x, y in whole):
            return math.inf
        off = _norm([x.detach().cpu().double() - y.detach().cpu().double() for x, y in zip(a, b, strict=True)])
        way = _norm([x.detach().cpu().double() - y.detach().cpu().double() for x, y in zip(a, c, strict=True)])
        found.append(0.0 if off == 0 else off / way if way else math.inf)
    return max((share if share == share else math.inf) for share in found)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([t.norm() for t in tensors]).norm()) if tensors else 0.0


def middle(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the rounds' own ratios."""
    return median(a / b for a, b in zip(over, under, strict=True))
