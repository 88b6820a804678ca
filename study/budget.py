"""What a study has taken of its devices and of time, over all its runs, and whether its budget allows more.

A run counts the devices that its workers hold: from the moment Ray has given a worker its resources, through its
imports, its data, its training and measuring, to its end. So a worker that is killed has cost what it held until Ray
noticed, and an epoch that is trained twice counts twice: that is what somebody pays. Time in which a trial waits for a
device costs nothing. What nobody uses of a machine, its idle devices and its head, is not counted.

Each run keeps its usage in its record, `runs/<run>.json`, written every `WRITE_EVERY` seconds: of a run that is killed
at most that much is missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from study.settings import Budget, Price
from study.words import duration

#: Seconds between two writes of a run's usage.
WRITE_EVERY = 30.0

#: Seconds of an hour.
HOUR = 3600.0


@dataclass(frozen=True)
class Usage:
    """What runs have taken, in seconds.

    Attributes:
        gpu: of GPUs, as reserved: a quarter of one for four seconds is one.
        cpu: of CPUs of trials that had no GPU.
        wall: during which the study was run.
        estimated: runs of earlier versions, which counted nothing: of them what they trained is taken, a lower bound.
    """

    gpu: float = 0.0
    cpu: float = 0.0
    wall: float = 0.0
    estimated: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.gpu + other.gpu, self.cpu + other.cpu, self.wall + other.wall, self.estimated + other.estimated
        )

    @classmethod
    def of(cls, resources: Mapping[str, float], seconds: float, wall: float = 0.0, estimated: int = 0) -> Usage:
        """What trials of these resources take in so many seconds, summed over the trials."""
        gpu = float(resources.get("gpu") or 0)
        cpu = 0.0 if gpu else float(resources.get("cpu") or 0)
        return cls(gpu * seconds, cpu * seconds, wall, estimated)

    def cost(self, price: Price) -> float:
        """In the price's currency."""
        return (self.gpu * price.gpu + self.cpu * price.cpu) / HOUR


def used(runs: Iterable[Mapping[str, Any]]) -> Usage:
    """What the recorded runs of a folder have taken together; merges, which train nothing, have taken nothing."""
    total = Usage()
    for run in runs:
        if run.get("usage"):
            gpu, cpu, wall = (float(run["usage"].get(key) or 0) for key in ("gpu", "cpu", "wall"))
            total += Usage(gpu, cpu, wall)
        elif run.get("resources"):
            seconds = float(run.get("train_seconds") or 0)
            total += Usage.of(run["resources"], seconds, float(run.get("seconds") or 0), 1)
    return total


def reached(budget: Budget, price: Price | None, usage: Usage) -> str | None:
    """Which limit the usage has reached, for a person; None while there is something left of each."""
    for limit in limits(budget, price, usage):
        if limit.used >= limit.most:
            return f"budget.{limit.name}: {limit.said(limit.used)} of {limit.said(limit.most)} used"
    return None


@dataclass(frozen=True)
class Limit:
    """One limit of a budget and what is used of it: GPU hours, seconds, or money."""

    name: str
    most: float
    used: float
    currency: str = ""

    def said(self, value: float) -> str:
        match self.name:
            case "gpu_hours":
                return hours(value * HOUR, "GPU")
            case "wall":
                return duration(value)
            case _:
                return money(value, self.currency)


def limits(budget: Budget, price: Price | None, usage: Usage) -> list[Limit]:
    """The limits that the budget sets."""
    currency = price.currency if price else ""
    cost = usage.cost(price) if price else 0.0
    found = [
        Limit("gpu_hours", budget.gpu_hours or 0, usage.gpu / HOUR),
        Limit("wall", budget.wall or 0, usage.wall),
        Limit("cost", budget.cost or 0, cost, currency),
    ]
    return [limit for limit in found if getattr(budget, limit.name) is not None]


@dataclass(frozen=True)
class Balance:
    """What a study has used and has left, as `study status`, `study plan` and the report show it.

    Attributes:
        gpu_hours: used, of GPUs.
        cpu_hours: used, of the CPUs of trials without a GPU.
        wall_seconds: during which the study was run.
        cost: of it, None without a price.
        currency: the price's.
        left: of each limit of the budget: GPU hours, seconds of wall, money; not below 0.
        spent: the limit that is reached, in words.
        at_least: whether runs of an earlier version are in it, with what they trained only.
    """

    gpu_hours: float
    cpu_hours: float
    wall_seconds: float
    cost: float | None
    currency: str
    left: dict[str, float]
    spent: str | None
    at_least: bool

    @classmethod
    def of(cls, spec: Mapping[str, Any], usage: Usage) -> Balance:
        """Of a study as its folder has it; one of an earlier version has no budget and no price."""
        budget = Budget(**(spec.get("budget") or {}))
        price = Price(**spec["price"]) if spec.get("price") else None
        return cls(
            gpu_hours=usage.gpu / HOUR,
            cpu_hours=usage.cpu / HOUR,
            wall_seconds=usage.wall,
            cost=usage.cost(price) if price else None,
            currency=price.currency if price else "",
            left={limit.name: max(0.0, limit.most - limit.used) for limit in limits(budget, price, usage)},
            spent=reached(budget, price, usage),
            at_least=bool(usage.estimated),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        """`used: 2.5 GPU hours in 3 h 0 min, 5.00 EUR; left: 7.5 GPU hours, 15.00 EUR`."""
        parts = [hours(seconds, device) for seconds, device in self._devices() if seconds] or ["nothing"]
        said = " and ".join(parts)
        if self.wall_seconds:
            said += f" in {duration(self.wall_seconds)}"
        if self.cost is not None:
            said += f", {money(self.cost, self.currency)}"
        left = ", ".join(Limit(name, 0, 0, self.currency).said(value) for name, value in self.left.items())
        least = "at least " if self.at_least else ""
        return f"used: {least}{said}" + (f"; left: {left}" if left else "")

    def _devices(self) -> list[tuple[float, str]]:
        return [(self.gpu_hours * HOUR, "GPU"), (self.cpu_hours * HOUR, "CPU")]


class Meter:
    """Counts what a run takes, by how many workers hold devices at each moment.

    Args:
        resources: of one worker.
        before: what earlier runs have taken.
        budget: of the study.
        price: of the study.
        write: called with what this run has taken, about every `WRITE_EVERY` seconds.
        clock: tells the time in seconds.

    Attributes:
        reached: the limit that is reached, in words; None while work may go on.
    """

    def __init__(
        self,
        resources: Mapping[str, float],
        before: Usage,
        budget: Budget,
        price: Price | None,
        write: Callable[[Usage], None] = lambda usage: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reached: str | None = None
        self._resources, self._before, self._budget, self._price = dict(resources), before, budget, price
        self._write, self._clock = write, clock
        self._began = self._last = clock()
        self._written = -math.inf
        self._live, self._seconds = 0, 0.0

    def tick(self, live: int) -> None:
        """Take note of how many workers hold devices from now on; called several times a second."""
        now = self._clock()
        # They were as many as at the last look until now.
        self._seconds += self._live * (now - self._last)
        self._last, self._live = now, live
        if self._budget and self.reached is None:
            self.reached = reached(self._budget, self._price, self.total())

    def usage(self) -> Usage:
        """What this run has taken until the last tick."""
        return Usage.of(self._resources, self._seconds, self._last - self._began)

    def total(self) -> Usage:
        """What all runs of the study have taken until the last tick."""
        return self._before + self.usage()

    def save(self) -> None:
        """Write the usage if that is due. Whatever writing raises is raised."""
        if self._last - self._written >= WRITE_EVERY:
            self._written = self._last
            self._write(self.usage())

    def stop(self) -> None:
        """No worker is left: what held devices at the last look has held them until now."""
        self.tick(0)


def recorded(usage: Usage) -> dict[str, float]:
    """A run's usage for its record: device seconds and seconds."""
    return {key: round(getattr(usage, key), 3) for key in ("gpu", "cpu", "wall")}


def hours(seconds: float, device: str) -> str:
    """`2.5 GPU hours`; of less than a hundredth of an hour the seconds."""
    if seconds < HOUR / 100:
        return f"{device} time {seconds:.1f} s"
    return f"{seconds / HOUR:,.2f} {device} hours"


def money(amount: float, currency: str) -> str:
    """`1,234.50 EUR`; of less than a hundredth two digits that say something."""
    said = f"{amount:,.2f}" if amount >= 0.01 or not amount else f"{amount:.2g}"
    return f"{said} {currency}".rstrip()


def estimated_lines(
    seconds: float,
    resources: Mapping[str, float] | None,
    budget: Budget,
    price: Price | None,
    before: Usage,
    *,
    most: str = "",
) -> list[str]:
    """What training would cost, and whether the budget has that much left.

    Args:
        seconds: of training on one trial's resources.
        resources: of a trial; None where neither the study nor an earlier run says.
        budget: of the study.
        price: of the study.
        before: what the runs until now have taken.
        most: `at most ` where a scheduler may spare some of it.
    """
    if resources is None:
        return [
            f"cost: {most}{seconds / HOUR:,.2f} hours of one trial's devices; resources.gpu in the study, or a first "
            "run, says how many that are"
        ]
    need = Usage.of(resources, seconds)
    device, amount = ("GPU", need.gpu) if need.gpu else ("CPU", need.cpu)
    line = f"cost: {most}{hours(amount, device)}"
    if price is not None:
        line += f", {money(need.cost(price), price.currency)}"
    line += f" (of training alone, {resources.get('gpu') or resources.get('cpu'):g} {device} a trial)"
    lines = [line]
    for limit in limits(budget, price, before):
        if limit.name == "wall":
            continue  # how many trials go on at once is not known here
        wanted = need.gpu / HOUR if limit.name == "gpu_hours" else need.cost(price) if price else 0.0
        left = max(0.0, limit.most - limit.used)
        if wanted > left:
            lines.append(
                f"warning: budget.{limit.name} has {limit.said(left)} left of {limit.said(limit.most)}, less than "
                f"{most}the {limit.said(wanted)} that are missing: the run will be stopped by it"
            )
    return lines


def unlimited(budget: Budget, resources: Mapping[str, float]) -> str | None:
    """A line where `gpu_hours` is set and no trial takes a GPU."""
    if budget.gpu_hours is None or resources.get("gpu"):
        return None
    return "budget.gpu_hours does not limit this run: its trials take no GPU (wall and cost do)"
