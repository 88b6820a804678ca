"""`study run` with somebody else in the place of Ray: made-up results, handed to the driver's own code in Ray's order.

Planning, the lock, the recorder, ASHA's ledger, the records and the run's provenance are the product's, put together by
the product. Only the cluster is missing: `Tuner.fit` calls scheduler and callbacks as Ray Tune's controller does after
each result, and measures what they take.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from benchmarks.made_up import MadeUp
from study import cluster, records, runner
from study.cli import main
from study.cli.codes import INTERRUPTED
from study.store import StudyFolder

#: One cell in so many has a bad value and is stopped at the first rung; the others go on, so that a study has the
#: full number of rows.
BAD_EVERY = 101

#: Bytes of a checkpoint: of those of a study, their number is a cost to its driver, their size is none.
CHECKPOINT = b"x" * 1024


@dataclass
class Timing:
    """What the driver's own code took; see `drive` for what each is."""

    results: int = 0
    handling: float = 0.0
    cpu: float = 0.0
    closing: float = 0.0
    reached: float | None = None
    slowest: float = 0.0


@contextmanager
def _timed(timing: Timing) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    timing.handling += time.perf_counter() - wall
    timing.cpu += time.process_time() - cpu


class Tuner:
    """In the place of `ray.tune.Tuner`.

    Args:
        param_space: the grid of trials' ids.
        tune_config: has the scheduler.
        run_config: has the callbacks.
        made_up: makes the results.
        timing: takes note.
        at_once: trials that go on at a time.
        leave: trials at the end that are not begun.
        folder: where the trials' checkpoints go.
    """

    def __init__(
        self,
        param_space: dict[str, Any],
        tune_config: Any,
        run_config: Any,
        made_up: MadeUp,
        timing: Timing,
        at_once: int,
        leave: int,
        folder: StudyFolder | None,
    ) -> None:
        self.ids = param_space["trial"]["grid_search"]
        self.scheduler, self.callbacks = tune_config.scheduler, run_config.callbacks
        self.made_up, self.timing, self.at_once, self.leave, self.folder = made_up, timing, at_once, leave, folder

    def fit(self) -> None:
        """Every trial to its end, `at_once` of them in turn."""
        self.timing.reached = time.time()
        (recorder,) = self.callbacks
        trials = [SimpleNamespace(config={"trial": name}) for name in self.ids]
        waiting = iter(list(enumerate(trials))[: max(0, len(trials) - self.leave)])
        live: dict[str, list[Any]] = {}
        while True:
            while len(live) < self.at_once and (following := next(waiting, None)):
                number, trial = following
                planned = recorder._planned(trial)
                live[trial.config["trial"]] = [number, trial, planned, 0]
                with _timed(self.timing):
                    recorder.on_trial_start(0, trials, trial)
            if not live:
                return
            reports = [(entry[1], self._report(entry)) for entry in live.values()]
            ended = []
            with _timed(self.timing):
                for trial, result in reports:
                    before = time.perf_counter()
                    if self._hand_over(recorder, trials, trial, result):
                        ended.append((trial.config["trial"], result["epoch"]))
                    self.timing.slowest = max(self.timing.slowest, time.perf_counter() - before)
            self.timing.results += len(reports)
            for name, epoch in ended:
                del live[name]
                if self.folder is not None:
                    self.folder.save_checkpoint(name, epoch, CHECKPOINT, keep=1)

    def _hand_over(self, recorder: Any, trials: list[Any], trial: Any, result: dict[str, Any]) -> bool:
        """As the controller's `_process_trial_result` does it; whether the trial has ended."""
        recorder.failures.reported(trial.config["trial"], result["epoch"])
        stop = bool(result.get("done"))
        if not stop:
            stop = self.scheduler.on_trial_result(self, trial, result) == TrialScheduler.STOP
            if stop:
                result["done"] = True
        recorder.on_trial_result(0, trials, trial, result)
        recorder.on_step_end(0, trials)
        return stop

    def _report(self, entry: list[Any]) -> dict[str, Any]:
        number, _, planned, epoch = entry
        entry[3] = epoch = epoch + 1
        # Trials begin in the order of their ids, each better than those before it: ASHA lets it go on.
        bad = number % BAD_EVERY == BAD_EVERY - 1
        accuracy = 0.1 if bad else 0.5 + 0.5 * int(planned.id, 16) / 16 ** len(planned.id)
        row = self.made_up.row(planned.seeds[0], epoch, accuracy)
        return self.made_up.report(planned.cell.id, row, last=epoch == planned.epochs)


def drive(
    file: str, storage: str, template: list[Any], at_once: int, leave: int, checkpoints: bool, called: float
) -> dict[str, Any]:
    """`study run FILE --storage STORAGE`, with made-up results.

    Args:
        file: the study file.
        storage: of the studies.
        template: of the results, see `made_up.template`.
        at_once: trials that go on at a time.
        leave: trials that are left out, as if the run had been interrupted.
        checkpoints: whether each trial leaves one behind, as workers do.
        called: `time.time()` when this process was started.

    Returns:
        `results`; seconds of `handling` them (wall, with every write that this caused) and `cpu` of it, `closing`
        (merging at the end), of the `slowest` result; and `reached`: from the process's start until Ray would have had
        its first trial (None where none was missing).
    """
    timing = Timing()
    stand_in = SimpleNamespace(
        Tuner=lambda trainable, **given: Tuner(
            given["param_space"],
            given["tune_config"],
            given["run_config"],
            MadeUp(template),
            timing,
            at_once,
            leave,
            given["run_config"].callbacks[0].folder if checkpoints else None,
        ),
        with_resources=lambda trainable, resources: trainable,
        with_parameters=lambda trainable, **parameters: trainable,
        grid_search=tune.grid_search,
        TuneConfig=tune.TuneConfig,
        RunConfig=tune.RunConfig,
        CheckpointConfig=tune.CheckpointConfig,
        FailureConfig=tune.FailureConfig,
    )
    close = records.Recording.close

    def timed_close(recording: records.Recording) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        close(recording)
        timing.closing += time.perf_counter() - wall
        timing.cpu += time.process_time() - cpu

    with (
        patch.object(runner, "tune", stand_in),
        patch.object(runner, "choose_resources", lambda *_: {"cpu": 1.0, "gpu": 0.0}),
        # Ray's controller and the watch over its cluster; both would start one.
        patch.object(runner, "counted", lambda *_: nullcontext()),
        patch.object(cluster, "connected", _no_cluster),
        patch.object(records.Recording, "close", timed_close),
    ):
        code = main(["run", file, "--storage", storage, "--no-report"])
    if code != (INTERRUPTED if leave else 0):
        raise RuntimeError(f"study run ended with {code}")
    if ray.is_initialized():
        raise RuntimeError("something has started a Ray")
    return {
        "results": timing.results,
        "handling": timing.handling,
        "closing": timing.closing,
        "cpu": timing.cpu,
        "slowest": timing.slowest,
        "reached": None if timing.reached is None else timing.reached - called,
    }


@contextmanager
def _no_cluster(address: str | None, cpus: int | None) -> Iterator[None]:
    yield
