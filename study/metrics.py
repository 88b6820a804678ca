"""Gauges and counters of a running study for Prometheus, through Ray's own metrics agent.

The driver sets them from the trials' reports, so that there is one writer and nothing is counted per step. Ray exports
them on the driver's node with `ray_` before their names, some ten seconds later. A run on a cluster of its own has
none: nobody could scrape it.

Cardinality is bounded: the first `MOST_CELLS` cells to report get series of their own (eight each); what later ones do
is in the series of their arm and of the study, and `study_cells_without_series` says how many they are.
"""

from __future__ import annotations

import math
import time
from collections import Counter as Tally
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from study.budget import Usage, limits
from study.progress import SIGNS

if TYPE_CHECKING:
    from study.board import Board
    from study.plan import PlannedTrial
    from study.spec import Study

#: Cells that have series of their own.
MOST_CELLS = 500

#: Seconds between two updates of what is not set by a report.
EVERY = 5.0

_CELL = ("study", "arm", "cell")

#: Name, what it is, labels.
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "study_validation_accuracy_ratio": ("Validation accuracy in [0, 1], mean over the cell's seeds", _CELL),
    "study_train_loss_nats": ("Training loss, mean over the cell's seeds", _CELL),
    "study_epoch": ("Epochs that every seed of the cell has", _CELL),
    "study_epsilon_norm": ("Euclidean norm of the perturbation, mean over the cell's seeds", _CELL),
    "study_cosine_to_sam": ("Cosine of the perturbation to SAM's, mean over the cell's seeds", _CELL),
    "study_images_per_second": ("Training images per second of training, of the trial", _CELL),
    "study_device_memory_bytes": ("The most memory that the trial's worker has held on its GPU", _CELL),
    "study_best_validation_accuracy_ratio": ("Highest of the arm's cells at their last epoch", ("study", "arm")),
    "study_cells": ("Cells by state", ("study", "arm", "state")),
    "study_cells_without_series": ("Cells in training or ended that have no series of their own", ("study",)),
    "study_run_epochs_done": ("Replicate epochs that this run has trained or been spared", ("study",)),
    "study_run_epochs_planned": ("Replicate epochs that this run may train", ("study",)),
    "study_device_used_seconds": ("Device time of all runs of the study", ("study", "device")),
    "study_wall_used_seconds": ("Time in which the study was run, all runs together", ("study",)),
    "study_cost_used": ("Cost of all runs at the study's price", ("study", "currency")),
    "study_budget_used_ratio": ("Used share of a limit of the study's budget", ("study", "limit")),
}
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "study_skipped_steps_total": ("Optimiser steps skipped because a gradient was not finite", _CELL),
    "study_images_total": ("Training images seen in this run", ("study", "arm")),
}

#: Of a report's rows, and what it is shown as.
_MEANS = {"eps_norm": "study_epsilon_norm", "cosine_to_sam": "study_cosine_to_sam"}

#: A metric as Ray's: `set` or `inc` with tags.
Make = Callable[[str, str, tuple[str, ...]], Any]


class Metrics(Protocol):
    """Something that is told how a run gets on."""

    def report(self, trial: PlannedTrial, result: Mapping[str, Any]) -> None:
        """An epoch of a trial, or its end."""

    def step(self, board: Board, usage: Usage) -> None:
        """Called often, with what all runs have taken until now."""


class NoMetrics:
    """Costs nothing."""

    def report(self, trial: PlannedTrial, result: Mapping[str, Any]) -> None: ...

    def step(self, board: Board, usage: Usage) -> None: ...


class RayMetrics:
    """A run's metrics, exported by Ray.

    Args:
        study: whose.
        gauge: makes a gauge of a name, a description and its labels; by default Ray's.
        counter: makes a counter; by default Ray's.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        study: Study,
        gauge: Make | None = None,
        counter: Make | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._clock = study, clock
        gauge, counter = gauge or _ray_gauge, counter or _ray_counter
        self._gauges = {name: gauge(name, *rest) for name, rest in GAUGES.items()}
        # Ray adds Prometheus's `_total` by itself.
        self._counters = {name: counter(name.removesuffix("_total"), *rest) for name, rest in COUNTERS.items()}
        self._names: dict[str, str] = {}
        self._nameless: set[str] = set()
        self._seen: dict[
            str, tuple[int, int]
        ] = {}  # of a trial: its last epoch, and images of all its seeds until then
        self._last = -math.inf
        #: The last value of every gauge by its tags: Ray forgets one that is not set again within two intervals.
        self._values: dict[tuple[str, tuple[str, ...]], tuple[float, dict[str, str]]] = {}

    def report(self, trial: PlannedTrial, result: Mapping[str, Any]) -> None:
        rows = result["replicates"]
        if not rows:
            return
        images = sum(int(row.get("images_seen") or 0) for row in rows)
        epoch, before = self._seen.get(trial.id, (0, 0))
        self._seen[trial.id] = (result["epoch"], images)
        seconds, name = result["step_seconds"], self._name(trial)
        # A trial that goes on from a checkpoint first reports what was trained before.
        new = images - before if seconds > 0 else 0
        if new > 0:
            self._counters["study_images_total"].inc(new, self._tags(arm=trial.cell.arm))
        if name is None:
            return
        tags = self._tags(arm=trial.cell.arm, cell=name)
        self._set("study_validation_accuracy_ratio", result["validation_accuracy"], tags)
        self._set("study_train_loss_nats", result.get("train_loss"), tags)
        self._set("study_epoch", result["epoch"], tags)
        self._set("study_device_memory_bytes", result.get("device_memory_bytes"), tags)
        for key, metric in _MEANS.items():
            values = [row[key] for row in rows if row.get(key) is not None]
            self._set(metric, sum(values) / len(values) if values else None, tags)
        if new > 0:
            self._set("study_images_per_second", new / seconds, tags)
        skipped = sum(int(row.get("skipped_steps") or 0) for row in result["rows"] if row["epoch"] > epoch)
        if skipped:
            self._counters["study_skipped_steps_total"].inc(skipped, tags)

    def step(self, board: Board, usage: Usage) -> None:
        now = self._clock()
        if now - self._last < EVERY:
            return
        self._last = now
        for (name, _), (value, tags) in self._values.items():
            self._gauges[name].set(value, tags)
        states: dict[str, Tally[str]] = {arm: Tally() for arm in self._study.design.arms}
        best: dict[str, float] = {}
        for entry in board.cells.values():
            states[entry.cell.arm][entry.state] += 1
            if entry.value is not None and math.isfinite(entry.value):
                best[entry.cell.arm] = max(entry.value, best.get(entry.cell.arm, 0.0))
        for arm, tally in states.items():
            for state in SIGNS:
                # Zeros too: what a state has left must not stay at its last number.
                self._set("study_cells", tally[state], self._tags(arm=arm, state=state))
            self._set("study_best_validation_accuracy_ratio", best.get(arm), self._tags(arm=arm))
        self._set("study_cells_without_series", len(self._nameless), self._tags())
        self._set("study_run_epochs_done", board.done, self._tags())
        self._set("study_run_epochs_planned", board.total, self._tags())
        for device, seconds in (("gpu", usage.gpu), ("cpu", usage.cpu)):
            self._set("study_device_used_seconds", seconds, self._tags(device=device))
        self._set("study_wall_used_seconds", usage.wall, self._tags())
        price = self._study.price
        if price is not None:
            self._set("study_cost_used", usage.cost(price), self._tags(currency=price.currency or "none"))
        for limit in limits(self._study.budget, price, usage):
            self._set("study_budget_used_ratio", limit.used / limit.most, self._tags(limit=limit.name))

    def _set(self, name: str, value: Any, tags: dict[str, str]) -> None:
        """What is not known, or is no number, is left as it was."""
        if value is not None and math.isfinite(value):
            self._values[name, tuple(tags.values())] = float(value), tags
            self._gauges[name].set(float(value), tags)

    def _tags(self, **more: str) -> dict[str, str]:
        return {"study": self._study.name, **more}

    def _name(self, trial: PlannedTrial) -> str | None:
        """A short name for the trial's cell, or None where it gets no series."""
        cell = trial.cell
        if cell.id not in self._names and cell.id not in self._nameless:
            if len(self._names) >= MOST_CELLS:
                self._nameless.add(cell.id)
            else:
                self._names[cell.id] = label(trial, self._axes())
        return self._names.get(cell.id)

    def _axes(self) -> list[str]:
        study = self._study
        return list(study.search.space if study.search else study.grid)


def label(trial: PlannedTrial, axes: list[str]) -> str:
    """What the study varies, and the beginning of the cell's id, e.g. `gamma=0.1 eta=1 5f3a91`."""
    settings = trial.cell.recipe.settings()
    parts = [f"{key}={_short(settings[key])}" for key in axes if settings.get(key) is not None]
    return " ".join([*parts, trial.cell.id[:6]])


def make_metrics(study: Study, *, named: bool) -> Metrics:
    """A run's metrics.

    Args:
        study: whose.
        named: whether it runs on a cluster that its user named. Metrics of a driver that came through Ray's client
            would not be exported.
    """
    import ray

    return RayMetrics(study) if named and not ray.util.client.ray.is_connected() else NoMetrics()


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)[:40]


def _ray_gauge(name: str, description: str, labels: tuple[str, ...]) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(name, description, labels)


def _ray_counter(name: str, description: str, labels: tuple[str, ...]) -> Any:
    from ray.util.metrics import Counter

    return Counter(name, description, labels)
