"""Ray Tune's loop under this project's rules of failure, with what it does wrong about some failures mended.

Seen with Ray 2.60, killing workers and nodes:

- It counts a lost node like an error of the trial. Here `study.failures.Failures` decides.
- A worker that Ray's memory monitor ends, and an answer that is lost with its node, end the whole run ("Caught
  unexpected exception"). Here they are the death of one worker.
- What goes wrong while a warm worker takes its next trial fails that trial for good, however many retries it has; if
  the worker dies it is even counted twice. Here it is a failure like any other.
- An error of a callback, searcher or scheduler at a trial's end is put down to the trial. Here it ends the run.
- Its snapshots for a restore that this project never uses hold every trial. Here there are none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.tune.error import TuneError, _TuneStopTrialError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from study.failures import Failures, Unexpected


class Controller(TuneController):
    """Ray Tune's controller, with failures counted by `failures`."""

    def __init__(self, *arguments: Any, failures: Failures, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._failures = failures
        manager = self._actor_manager
        task_failed = manager._actor_task_failed

        def failed(tracked_actor_task: Any, exception: Exception) -> None:
            if not isinstance(exception, RayActorError | RayTaskError):
                exception = Unexpected(exception)
            task_failed(tracked_actor_task, exception)

        manager._actor_task_failed = failed

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        """Nothing: the study's folder is the truth, and Ray's restore is never used."""

    def _mark_trial_to_checkpoint(self, trial: Trial) -> None:
        """Nothing; see `checkpoint`."""

    def _process_trial_result(self, trial: Trial, result: dict[str, Any]) -> Any:
        self._failures.reported(trial.config["trial"], result["epoch"])
        return super()._process_trial_result(trial, result)

    def _process_trial_failure(self, trial: Trial, exception: Exception) -> None:
        if isinstance(exception, _TuneStopTrialError):
            raise TuneError(str(exception))
        again = self._failures.take(trial.config["trial"], exception)
        trial.should_recover = partial(bool, again)
        super()._process_trial_failure(trial, exception)

    def _actor_failed(self, tracked_actor: Any, exception: Exception) -> None:
        # Whom a worker failed that was taking it is free to be given to another one.
        self._resetting_trials.discard(self._actor_to_trial[tracked_actor])
        super()._actor_failed(tracked_actor, exception)

    def _schedule_trial_task(
        self,
        trial: Trial,
        method_name: str,
        *arguments: Any,
        on_error: Callable[[Trial, Exception], None] | None = None,
        **more: Any,
    ) -> Any:
        if method_name == "reset":
            on_error = self._reset_failed
        return super()._schedule_trial_task(trial, method_name, *arguments, on_error=on_error, **more)

    def _reset_failed(self, trial: Trial, exception: Exception) -> None:
        if trial not in self._resetting_trials:
            return  # with its worker, in `_actor_failed`
        self._resetting_trials.discard(trial)
        self._set_trial_status(trial, Trial.RUNNING)
        self._unstage_trial_with_resources(trial)
        self._trial_task_failure(trial, exception)


@contextmanager
def counted(failures: Failures) -> Iterator[None]:
    """`Tuner.fit` in here runs a `Controller`. Ray has no other way to hand it one."""
    module = sys.modules["ray.tune.tune"]
    usual = module.TuneController
    module.TuneController = partial(Controller, failures=failures)
    try:
        yield
    finally:
        module.TuneController = usual
