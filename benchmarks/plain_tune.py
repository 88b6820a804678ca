"""The peer: Ray Tune as its manual has it, with the loggers that it brings (CSV, JSON, TensorBoard).

A class trainable, warm actors (`reuse_actors`), one report an epoch with the metrics that ours has in a row, nothing
printed, no checkpoints: the cheapest way to run many short trials with Tune. Or a function trainable with an actor of
its own for each trial, Tune's default and the usual way. Each function here is for a process of
its own, since Tune reads its environment when it is imported.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

#: Metrics a result has; the rest of a row is what Tune adds by itself (iteration, times).
Metrics = dict[str, Any]


def run(
    trials: int,
    epochs: int,
    cpus: int,
    loggers: bool,
    storage: str,
    name: str,
    template: list[Any],
    as_function: bool = False,
) -> dict[str, float]:
    """Run an experiment whose trials do nothing.

    Args:
        trials: how many.
        epochs: reports of each.
        cpus: trials at a time.
        loggers: with the default ones, or with none.
        storage: where the experiment's folder `name` goes.
        name: of the experiment.
        template: of the metrics, see `made_up.template`.
        as_function: a function trainable and no reuse of actors, in place of the class and warm actors.

    Returns:
        What `Stopwatch.read` says of the driver, and the wall seconds of `fit`.
    """
    tunes_environment(loggers)
    import ray
    from ray import tune

    from benchmarks.stopwatch import Stopwatch

    watch = Stopwatch()

    class Timed(tune.Callback):
        def on_trial_result(self, *arguments: Any, **named: Any) -> None:
            watch.result()

    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        began = time.perf_counter()
        found = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(nothing if as_function else trainable(), template=template, epochs=epochs),
                {"cpu": 1},
            ),
            param_space={"gamma": tune.grid_search([round(0.001 * (i + 1), 3) for i in range(trials)])},
            tune_config=tune.TuneConfig(reuse_actors=not as_function),
            run_config=tune.RunConfig(
                name=name,
                storage_path=storage,
                verbose=0,
                callbacks=[Timed()],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
        seconds = time.perf_counter() - began
        if loggers and (found.num_terminated, found.num_errors) != (trials, 0):
            raise RuntimeError(f"{found.num_terminated} of {trials} trials ended, {found.num_errors} with an error")
    finally:
        ray.shutdown()
    if watch.results != trials * epochs:
        raise RuntimeError(f"{watch.results} results of {trials * epochs}")
    return {**watch.read(), "fit": seconds}


def restore(storage: str, name: str, cpus: int, template: list[Any]) -> dict[str, float]:
    """`Tuner.restore` of a finished experiment, as one would ask whether anything is left to do.

    Returns:
        Wall seconds to `restore`, and until `fit` has found that nothing is missing (`nothing`) and has read every
        trial's results as frames, as it does unasked; the `rows` of these.
    """
    tunes_environment()
    import ray
    from ray import tune

    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        began = time.perf_counter()
        bound = tune.with_resources(tune.with_parameters(trainable(), template=template, epochs=0), {"cpu": 1})
        tuner = tune.Tuner.restore(str(Path(storage) / name), trainable=bound)
        restored = time.perf_counter()
        found = tuner.fit()
        nothing = time.perf_counter()
        frames = [found[i].metrics_dataframe for i in range(len(found))]
        rows = sum(0 if frame is None else len(frame) for frame in frames)
        return {"restore": restored - began, "nothing": nothing - restored, "rows": rows}
    finally:
        ray.shutdown()


def tunes_environment(loggers: bool = True) -> None:
    """Set Tune up before it is imported: as it comes, but quiet, and without its loggers if that is asked.

    This project's own runs switch the loggers off in the environment, which a process inherits from who starts it.
    """
    for name in [name for name in os.environ if name.startswith("TUNE_")]:
        del os.environ[name]
    if not loggers:
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"


def trainable() -> Any:
    """The class of trials that do nothing."""
    from ray import tune

    from benchmarks.made_up import MadeUp

    class Nothing(tune.Trainable):
        def setup(self, config: dict[str, Any], template: list[Any] | None = None, epochs: int = 0) -> None:
            self.made_up, self.epochs = MadeUp(template or []), epochs

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> Metrics:
            row = self.made_up.row(0, self.iteration + 1)
            return {**row, "done": self.iteration + 1 >= self.epochs}

    return Nothing


def nothing(config: dict[str, Any], template: list[Any], epochs: int) -> None:
    """The function of trials that do nothing."""
    from ray import tune

    from benchmarks.made_up import MadeUp

    made_up = MadeUp(template)
    for epoch in range(1, epochs + 1):
        tune.report(made_up.row(0, epoch))


def log_alone(trials: int, epochs: int, at_once: int, storage: str, template: list[Any]) -> dict[str, float]:
    """What the default loggers take, without a cluster: made-up results handed to them as Tune's controller does.

    Args:
        trials: how many.
        epochs: results of each.
        at_once: trials that go on at a time.
        storage: where their folders go.
        template: of the metrics.

    Returns:
        `results`, and wall seconds and `cpu` seconds of this process in the loggers.
    """
    from ray.train._internal.storage import StorageContext
    from ray.tune.experiment import Trial
    from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback

    from benchmarks.made_up import MadeUp

    class Here(StorageContext):
        #: Tune's own is in its cluster's temporary folder.
        experiment_driver_staging_path = storage

    made_up = MadeUp(template)
    loggers = [CSVLoggerCallback(), JsonLoggerCallback(), TBXLoggerCallback()]
    context = Here(storage_path=storage, experiment_dir_name="logged")
    seconds = cpu = 0.0
    for first in range(0, trials, at_once):
        group = [
            Trial("nothing", config={"gamma": 0.001 * (n + 1)}, stub=True, storage=context, trial_id=f"{n:08d}")
            for n in range(first, min(first + at_once, trials))
        ]
        for trial in group:
            trial.init_local_path()
        for epoch in range(1, epochs + 1):
            results = [_added_by_tune(trial, made_up.row(0, epoch), epoch == epochs) for trial in group]
            wall, processor = time.perf_counter(), time.process_time()
            for trial, result in zip(group, results, strict=True):
                for logger in loggers:
                    if epoch == 1:
                        logger.on_trial_start(0, group, trial)
                    logger.on_trial_result(0, group, trial, result)
                    if epoch == epochs:
                        logger.on_trial_complete(0, group, trial)
            seconds, cpu = seconds + time.perf_counter() - wall, cpu + time.process_time() - processor
    return {"results": trials * epochs, "seconds": seconds, "cpu": cpu}


def _added_by_tune(trial: Any, row: Metrics, done: bool) -> Metrics:
    """A result as it comes to a callback; the values stand for those of a real one."""
    return {
        **row,
        "done": done,
        "trial_id": trial.trial_id,
        "training_iteration": row["epoch"],
        "date": "2026-11-25_08-00-00",
        "timestamp": 1795593600,
        "time_this_iter_s": 0.01,
        "time_total_s": 0.01 * row["epoch"],
        "time_since_restore": 0.01 * row["epoch"],
        "iterations_since_restore": row["epoch"],
        "pid": 1,
        "hostname": "node",
        "node_ip": "127.0.0.1",
        "config": trial.config,
    }
