"""Ray Tune's loop under this project's rules of failure, with what it does wrong about some failures mended.

Seen with Ray 2.60, killing workers and nodes:

- It counts a lost node like an error of the trial. Here `study.failures.Failures` decides.
- A worker that Ray's memory monitor ends, and an answer that is lost with its node, end the whole run ("Caught
  unexpected exception"). Here they are the death of one worker.
- What goes wrong while a warm worker takes its next trial fails that trial for good, however many retries it has; if
  the worker dies it is even counted twice. Here it is a failure like any other.
- An error of a callback, searcher or scheduler at a trial's end is put down to the trial. Here it ends the run.
- It waits for ever, or is ended from within, when the cluster itself is gone. Here `study.watch.Watch` ends the run.
- It keeps some fifty kilobytes of statistics of every trial that has ended. Here it keeps none.
- Its snapshots, for a restore that this project never uses, hold every trial. Here is one at the end, without them.
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
from ray.tune.schedulers import TrialScheduler

from study.budget import Meter
from study.failures import Failures, Unexpected
from study.watch import Watch


class Controller(TuneController):
    """Ray Tune's controller, with failures counted by `failures` and devices by `meter`, on a cluster that `watch`
    watches. When the meter's budget is reached or somebody has `asked`, no trial is begun, and each that is in training
    ends with its epoch.
    """

    def __init__(
        self,
        *arguments: Any,
        failures: Failures,
        meter: Meter,
        watch: Watch,
        asked: Callable[[], bool],
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        self._failures, self._meter, self._watch, self._asked = failures, meter, watch, asked
        # Every ten seconds, for a line that nobody reads, the loop would ask the head and hang where there is none.
        self._resource_updater._refresh_period = float("inf")
        manager: Any = self._actor_manager
        task_failed = manager._actor_task_failed

        def failed(tracked_actor_task: Any, exception: Exception) -> None:
            if not isinstance(exception, RayActorError | RayTaskError):
                exception = Unexpected(exception)
            task_failed(tracked_actor_task, exception)

        manager._actor_task_failed = failed

    def step(self) -> None:
        self._watch.check()
        super().step()
        # After the step, which wants nothing to be finished; those that wait for devices hold none.
        self._meter.tick(self._actor_manager.num_live_actors)

    @property
    def _ending(self) -> bool:
        return self._meter.reached is not None or self._asked()

    def is_finished(self) -> bool:
        if not self._ending:
            return bool(super().is_finished())
        # Ray's own way out leaves a worker five seconds for the epoch that it is in and for its checkpoint.
        return not any(trial.status == Trial.RUNNING for trial in self._live_trials)

    def _maybe_add_actors(self) -> None:
        if not self._ending:
            super()._maybe_add_actors()

    def cleanup(self) -> None:
        # Where the cluster is gone, to say goodbye to it takes a minute and Ray's own way out of the process.
        if not self._watch.lost:
            super().cleanup()

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        """Nothing before the end, when Ray's own table of results wants a file to be there."""
        if force:
            super().checkpoint(force=force, wait=wait)

    def _mark_trial_to_checkpoint(self, trial: Trial) -> None:
        """Not at all: the study's folder is the truth."""

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        del state["_failures"], state["_meter"], state["_watch"], state["_asked"]
        return state

    def _process_trial_result(self, trial: Trial, result: dict[str, Any]) -> Any:
        self._failures.reported(trial.config["trial"], result["epoch"])
        decision = super()._process_trial_result(trial, result)
        # Highest, lowest and windowed means of every number ever reported, kept of every trial: nobody reads them.
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()
        return decision

    def _execute_action(self, trial: Trial, decision: str, after_save: bool = False) -> None:
        if self._ending and decision == TrialScheduler.CONTINUE:
            # It has not ended: its worker keeps a checkpoint, and a later run goes on from there.
            self._schedule_trial_stop(trial)
        else:
            super()._execute_action(trial, decision, after_save=after_save)

    def _process_trial_failure(self, trial: Any, exception: Any) -> None:
        if isinstance(exception, _TuneStopTrialError):
            raise TuneError(str(exception))
        again = self._failures.take(trial.config["trial"], exception)
        trial.should_recover = partial(bool, again)
        super()._process_trial_failure(trial, exception)

    def _actor_failed(self, tracked_actor: Any, exception: Exception) -> None:
        # Whom a worker failed that was taking it is free to be given to another one.
        self._resetting_trials.discard(self._actor_to_trial[tracked_actor])
        super()._actor_failed(tracked_actor, exception)

    def _schedule_trial_task(self, trial: Trial, method_name: str, *arguments: Any, **more: Any) -> Any:
        if method_name == "reset":
            more["on_error"] = self._reset_failed
        return super()._schedule_trial_task(trial, method_name, *arguments, **more)

    def _reset_failed(self, trial: Trial, exception: Exception) -> None:
        if trial not in self._resetting_trials:
            return  # with its worker, in `_actor_failed`
        self._resetting_trials.discard(trial)
        self._set_trial_status(trial, Trial.RUNNING)
        self._unstage_trial_with_resources(trial)
        self._trial_task_failure(trial, exception)


@contextmanager
def counted(failures: Failures, meter: Meter, asked: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """`Tuner.fit` in here runs a `Controller` on the connected cluster; Ray has no other way to hand it one.

    Args:
        failures: of the run.
        meter: of the run.
        asked: whether somebody wants the run to stop.

    Raises:
        study.watch.ClusterLost: from `Tuner.fit`.
    """
    module: Any = sys.modules["ray.tune.tune"]
    usual = module.TuneController
    with Watch() as watch:
        module.TuneController = partial(Controller, failures=failures, meter=meter, watch=watch, asked=asked)
        try:
            yield
        finally:
            meter.stop()
            module.TuneController = usual
