"""Timing that survives a shared machine: samples are interleaved, and what is compared was taken side by side."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """A sample in four numbers and its unit (`s`, `ratio`, ...)."""

    unit: str
    n: int
    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float], unit: str = "s") -> Summary:
        """Summarise at least one value.

        Raises:
            ValueError: there are no values.
        """
        if not values:
            raise ValueError("no values to summarise")
        return cls(unit, len(values), statistics.median(values), min(values), max(values))


def interleaved(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, repeats: int = 1, warm_up: int = 1
) -> dict[str, list[float]]:
    """Time A B C, A B C, ...: a slow minute of the machine falls on all of them alike.

    Args:
        runs: what to time, by name.
        rounds: samples of each.
        repeats: calls in one sample.
        warm_up: calls of each before anything is timed.

    Returns:
        Seconds per call: one value a round for each name; the same place in two lists is the same round.
    """
    for run in runs.values():
        for _ in range(warm_up):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, run in runs.items():
                begun = time.perf_counter()
                for _ in range(repeats):
                    run()
                seconds[name].append((time.perf_counter() - begun) / repeats)
    finally:
        if collecting:
            gc.enable()
    return seconds


def ratio(over: Sequence[float], under: Sequence[float]) -> Summary:
    """Each round's over / under, summarised: steadier than a ratio of medians where the machine's speed drifts.

    Raises:
        ValueError: the two do not have the same number of rounds, or none.
    """
    return Summary.of([a / b for a, b in zip(over, under, strict=True)], "ratio")
