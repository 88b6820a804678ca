"""Asynchronous successive halving (Li et al. 2020), the stopping variant, as a pure function of the reports.

It decides as Ray's `AsyncHyperBandScheduler` with one bracket does (a test compares them on random reports), and
differs where a study needs more: each decision says rung, cutoff, rank and n; it is rebuilt from recorded decisions;
and a value that is not finite is stopped instead of passing every comparison.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Decision:
    """What was decided for one cell at one rung, and on what grounds.

    `cutoff` is the quantile of the values that the rung had before this one (None for the first); `rank` is 1 for the
    best of the `n` values that the rung has with this one.
    """

    cell: str
    rung: int
    epoch: int
    value: float
    cutoff: float | None
    rank: int
    n: int
    stop: bool


@dataclass
class Asha:
    """Rungs at `grace_period * reduction_factor ** k` below `max_t`; larger values are better.

    Args:
        max_t: epochs of a full trial; the last report is never a decision.
        grace_period: the first rung, in epochs.
        reduction_factor: a trial goes on from a rung if it is not below the (1 - 1/reduction_factor) quantile of the
            values that the rung has seen before it.
    """

    max_t: int
    grace_period: int = 1
    reduction_factor: int = 4
    _values: dict[int, list[float]] = field(default_factory=dict, repr=False)  # rung -> sorted values
    _members: dict[int, set[str]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.grace_period < self.max_t or self.reduction_factor < 2:
            raise ValueError("needs 1 <= grace_period < max_t and reduction_factor >= 2")
        self.rungs: list[int] = []
        rung = self.grace_period
        while rung < self.max_t:
            self.rungs.append(rung)
            rung *= self.reduction_factor
        self._values = {rung: [] for rung in self.rungs}
        self._members = {rung: set() for rung in self.rungs}

    def report(self, cell: str, epoch: int, value: float) -> Decision | None:
        """`decide`, and `record` what was decided."""
        decision = self.decide(cell, epoch, value)
        if decision is not None:
            self.record(decision)
        return decision

    def decide(self, cell: str, epoch: int, value: float) -> Decision | None:
        """The decision, if this report is the cell's first at or past a rung; None elsewhere. Changes nothing.

        A cell that first reports past a rung is decided at the highest rung it has passed, as in Ray.
        """
        if epoch >= self.max_t:
            return None
        for rung in reversed(self.rungs):
            if epoch < rung or cell in self._members[rung]:
                continue
            values = self._values[rung]
            cutoff = _quantile(values, share_below(self.reduction_factor))
            finite = math.isfinite(value)
            better = len(values) - bisect_right(values, value) if finite else len(values)
            return Decision(
                cell=cell,
                rung=rung,
                epoch=epoch,
                value=value,
                cutoff=cutoff,
                rank=better + 1,
                n=len(values) + 1,
                stop=not finite or (cutoff is not None and value < cutoff),
            )
        return None

    def rebuild(self, decisions: Iterable[Decision]) -> None:
        """Take recorded decisions back, so that the next report is decided as if nothing had been interrupted."""
        for decision in decisions:
            if decision.rung in self._members and decision.cell not in self._members[decision.rung]:
                self.record(decision)

    def record(self, decision: Decision) -> None:
        """Give the decision's value its place in the rung."""
        self._members[decision.rung].add(decision.cell)
        # A value that is not a number has no place in a quantile.
        if math.isfinite(decision.value):
            insort(self._values[decision.rung], decision.value)


def share_below(reduction_factor: int) -> float:
    """The quantile that is the cutoff, to the last bit as Ray has it, which asks NumPy for a percentile."""
    return (1 - 1 / reduction_factor) * 100 / 100


def _quantile(ordered: list[float], q: float) -> float | None:
    """NumPy's default (linear) quantile of a sorted list; None of an empty one."""
    if not ordered:
        return None
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    step, part = ordered[high] - ordered[low], position - low
    # From the nearer end, as NumPy does it: a tie at the cutoff is decided by the last bit.
    return ordered[high] - step * (1 - part) if part >= 0.5 else ordered[low] + step * part
