"""Asynchronous successive halving (Li et al. 2020, the stopping variant) replayed over curves that are known already.

Decides as `study.asha.Asha` and Ray's `AsyncHyperBandScheduler` with one bracket do (tests hold them equal, decision
for decision), and many times as fast as the latter: only rungs are looked at, and each rung is one sorted list. Plain
Python, so that `study plan` can ask what a setting would save without waiting for pandas.
"""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from math import floor, inf
from typing import NamedTuple


@dataclass(frozen=True, order=True)
class Setting:
    """What ASHA is told: rungs at `grace_period * reduction_factor ** k`, below `max_t` and below the last epoch.

    `max_t` is None for a trial's full length, which is what a study gives it.

    Raises:
        ValueError: a grace period or a `max_t` below 1, or a reduction factor below 2.
    """

    grace_period: int = 1
    reduction_factor: int = 4
    max_t: int | None = None

    def __post_init__(self) -> None:
        if self.grace_period < 1 or self.reduction_factor < 2 or (self.max_t is not None and self.max_t < 1):
            raise ValueError("needs grace_period >= 1, reduction_factor >= 2 and max_t >= 1")

    def rungs(self, epochs: int) -> list[int]:
        """The epochs at which a trial of this full length is decided on; none where the grace period is as long."""
        end = epochs if self.max_t is None else min(epochs, self.max_t)
        found, rung = [], self.grace_period
        while rung < end:
            found.append(rung)
            rung *= self.reduction_factor
        return found


class Decided(NamedTuple):
    """One decision, in the words of `study.asha.Decision`; `cell` is the curve's place, `cutoff` None for the first."""

    cell: int
    rung: int
    value: float
    cutoff: float | None
    stop: bool


def replay(
    curves: Sequence[Sequence[float]],
    arms: Sequence[int],
    max_t: Sequence[int],
    setting: Setting,
    order: Sequence[int],
    at_once: int = 1,
    clock: Sequence[Sequence[float]] | None = None,
    ledger: list[Decided] | None = None,
) -> list[int]:
    """Train the cells again, as far as the setting lets them.

    `at_once` cells train beside each other; as soon as one has ended, the next in `order` begins. Reports of one
    moment are taken in the order of the launches. A value that is not finite is stopped and moves no cutoff. The last
    epoch of a cell is its end and no decision.

    Args:
        curves: the value at each epoch of each cell, larger is better: `curves[c][e - 1]`.
        arms: each cell's arm, from 0; an arm has rungs of its own.
        max_t: each arm's full length in epochs.
        order: the cells (places in `curves`) as they are launched.
        clock: when a cell reports each epoch, counted from its launch; None: an epoch takes one unit of time.
        ledger: takes every decision, in their order.

    Returns:
        The epoch at which each cell is stopped; 0 for one that is trained in full (or is not in `order`).
    """
    rungs = [setting.rungs(epochs) for epochs in max_t]
    seen: list[list[list[float]]] = [[[] for _ in own] for own in rungs]
    q = (
        (1 - 1 / setting.reduction_factor) * 100 / 100
    )  # by way of the percentile, as Ray does: the last bit decides ties
    stopped = [0] * len(curves)
    waiting = len(order)
    launch = [0.0] * len(curves)

    def due(cell: int, stage: int) -> float:
        """When a cell reports its next rung, or its end."""
        own, length = rungs[arms[cell]], len(curves[cell])
        epoch = own[stage] if stage < len(own) and own[stage] < length else length
        return launch[cell] + (epoch if clock is None else clock[cell][epoch - 1])

    begun = min(max(at_once, 1), waiting)
    running = [(due(cell, 0), number, cell, 0) for number, cell in enumerate(order[:begun])]
    heapify(running)
    while running:
        now, number, cell, stage = running[0]
        curve, arm = curves[cell], arms[cell]
        own = rungs[arm]
        if stage < len(own) and (rung := own[stage]) < len(curve):
            value, values = curve[rung - 1], seen[arm][stage]
            cutoff: float | None = None
            if values:
                # NumPy's linear quantile, from the nearer end as NumPy does it: a tie at the cutoff is decided by the
                # last bit.
                last = len(values) - 1
                position = q * last
                low = floor(position)
                below, above = values[low], values[low + 1 if low < last else last]
                step, part = above - below, position - low
                cutoff = above - step * (1 - part) if part >= 0.5 else below + step * part
            stop = cutoff is not None and value < cutoff
            if -inf < value < inf:
                insort(values, value)
            else:
                stop = True
            if ledger is not None:
                ledger.append(Decided(cell, rung, value, cutoff, stop))
            if not stop:
                heapreplace(running, (due(cell, stage + 1), number, cell, stage + 1))
                continue
            stopped[cell] = rung
        heappop(running)
        if begun < waiting:
            cell = order[begun]
            launch[cell] = now
            heappush(running, (due(cell, 0), begun, cell, 0))
            begun += 1
    return stopped


#: A larger arm's share is that of this many cells: it hardly moves any more.
_MOST_CELLS = 400
_DRAWS = 20


class Expected(NamedTuple):
    """What a setting does to cells that are ranked at random: share of the epochs saved, cells trained in full."""

    saved: float
    complete: float


def expected(arms: Sequence[tuple[int, int]], setting: Setting, seed: int = 0) -> Expected:
    """What a setting would do if nothing were known of the cells: each has a rank of its own, drawn at random and the
    same at every rung.

    How many cells a rung stops depends on little else than how many there are, since each is compared with those that
    came before it: the first goes on whatever it shows. The mean of some twenty draws.

    Args:
        arms: number of cells and full length in epochs of each arm.
        seed: of the draws.
    """
    draw = random.Random(seed)
    trained = planned = complete = 0.0
    for count, epochs in arms:
        few = min(count, _MOST_CELLS)
        planned += count * epochs
        if not few or not setting.rungs(epochs):
            trained += count * epochs
            complete += count
            continue
        draws = max(2, min(_DRAWS, 2 * _MOST_CELLS // few))
        ends = []
        for _ in range(draws):
            curves = [[draw.random()] * epochs for _ in range(few)]
            ends += replay(curves, [0] * few, [epochs], setting, range(few))
        trained += count * sum(end or epochs for end in ends) / len(ends)
        complete += count * ends.count(0) / len(ends)
    return Expected(1 - trained / planned if planned else 0.0, complete)
