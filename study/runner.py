"""Run a plan under Ray Tune: the only place that builds a Tuner.

Ray schedules and keeps the workers warm. Nothing of Ray's own records is kept: its experiment folder is a temporary
one, and what a study needs to go on is in the study's folder.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

# Before Ray Tune is imported: a file per trial and epoch from Ray's loggers would only repeat the study's own.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "3600")

from ray import tune  # the environment above has to be set first

from study.board import Board
from study.budget import Meter, Usage, recorded, unlimited, used
from study.cluster import choose_resources
from study.controller import counted
from study.events import Events
from study.failures import Failures
from study.keeper import FolderKeeper
from study.lock import Lease
from study.measured import tags
from study.metrics import make_metrics
from study.plan import Plan, PlannedTrial
from study.preflight import ClusterError
from study.progress import Display, make_display
from study.provenance import now, provenance
from study.recorder import Recorder, readable
from study.sampling import Sampling
from study.scheduling import make_scheduler
from study.store import StoreError, StudyFolder
from study.trouble import Trouble
from trainables.models.weights import weights_source
from trainables.trial import Trial


@dataclass
class Summary:
    """How a run ended."""

    run: str
    seconds: float
    train_seconds: float  # of training in this run, summed over the replicates; what a killed worker lost included
    trials: int  # that this run had to do
    ended: dict[str, int] = field(default_factory=dict)  # trials of this run by how they ended
    reasons: list[str] = field(default_factory=list)  # why trials failed, each once
    unmeasured: list[str] = field(default_factory=list)  # a line for each measure that failed
    remarks: list[str] = field(default_factory=list)  # what a person should know of: damaged checkpoints passed over
    exhausted: list[str] = field(default_factory=list)  # a line for each arm whose search found no more cells
    interrupted: bool = False
    usage: Usage = field(default_factory=Usage)  # of this run
    budget: str | None = None  # the limit that stopped it, in words
    asked: str | None = None  # who stopped it by a request, `user@host`


def run_plan(
    plan: Plan,
    folder: StudyFolder,
    run: str,
    text: str,
    lease: Lease,
    display: Display | None = None,
    *,
    monitored: bool = False,
) -> Summary:
    """Train what the plan misses on the connected cluster, and record it in the folder.

    Args:
        plan: what to train.
        folder: the study's folder.
        run: this run's id.
        text: the study file as its user wrote it.
        lease: says that this run still holds the folder.
        display: where to show it; by default the terminal.
        monitored: whether to export metrics for Prometheus.

    Raises:
        study.preflight.ClusterError: the cluster can never run such a trial, or is gone.
        study.store.StoreError: the folder cannot be written.
    """
    resources = choose_resources(plan.study.resources, plan)
    # Nothing may be written after a take-over.
    lease.check()
    folder.save_study(plan.study.model_dump(mode="json"), text, plan.rows())
    before = used(folder.runs())
    record: dict[str, Any] = {
        "run": run,
        "started": now(),
        "ended": None,
        "resources": resources,
        "data_fingerprints": plan.surveyor.fingerprints(),
        **provenance(),
    }
    folder.save_run(run, record)
    board = Board.of(plan)
    trouble = Trouble()
    recording = folder.recording(run, lease.check)
    failures = Failures(plan.study.max_failures, remedy=lambda trial: recorder.remedy(trial))
    meter = Meter(
        resources,
        before,
        plan.study.budget,
        plan.study.price,
        lambda usage: folder.save_run(run, {**record, "usage": recorded(usage)}),
    )
    metrics = make_metrics(plan.study, named=monitored)
    axes = plan.study.search.space if plan.study.search else plan.study.grid
    events = Events(folder, list(axes)) if plan.study.tensorboard else None
    recorder = Recorder(
        plan, folder, recording, board, lease, failures, display or make_display(board), trouble, meter, metrics, events
    )
    if (line := unlimited(plan.study.budget, resources)) is not None:
        recorder.remarks.append(line)
    began = time.monotonic()
    broken: str | None = "ended by an error"
    try:
        with (
            tempfile.TemporaryDirectory(prefix="sharpness-study-") as scratch,
            recorder.display,
            counted(failures, meter, lambda: lease.asked is not None),
        ):
            exhausted = _fit(plan, folder, resources, recorder, scratch, trouble)
        recording.close()
        broken = None
    except ClusterError as error:
        broken = str(error)
        raise
    except Exception as error:
        if trouble.first is None:
            raise
        broken = str(trouble.first)
        raise trouble.first from error
    finally:
        if broken:
            # The store may be what is broken.
            with suppress(StoreError):
                folder.save_run(
                    run,
                    {
                        **record,
                        "ended": now(),
                        "interrupted": True,
                        "reason": broken,
                        "usage": recorded(meter.usage()),
                    },
                )
                # Last: a run that was taken over may not.
                recording.flush()
    unsampled = [arm for arm, count in plan.unsampled().items() if count]
    summary = Summary(
        run=run,
        seconds=time.monotonic() - began,
        train_seconds=recorder.train_seconds,
        trials=len(plan.todo),
        ended=recorder.ended,
        reasons=recorder.reasons,
        unmeasured=recorder.unmeasured,
        remarks=recorder.remarks,
        exhausted=exhausted,
        interrupted=sum(recorder.ended.values()) < len(plan.todo) or len(exhausted) < len(unsampled),
        usage=meter.usage(),
    )
    if summary.interrupted:
        # Who asks while a budget's end is on its way has not stopped it.
        summary.budget, summary.asked = meter.reached, None if meter.reached else lease.asked
    folder.save_run(
        run,
        {
            **record,
            "ended": now(),
            "seconds": round(summary.seconds, 3),
            "train_seconds": round(summary.train_seconds, 3),
            "trials": summary.ended,
            "unmeasured": summary.unmeasured,
            "remarks": summary.remarks,
            "failures": failures.counts(),
            "exhausted": summary.exhausted,
            "interrupted": summary.interrupted,
            **({"reason": f"stopped by its budget ({summary.budget})"} if summary.budget else {}),
            **({"reason": f"stopped as {summary.asked} asked"} if summary.asked else {}),
            "usage": recorded(summary.usage),
            "devices": sorted(recorder.devices),
        },
    )
    return summary


def _fit(
    plan: Plan,
    folder: StudyFolder,
    resources: dict[str, float],
    recorder: Recorder,
    scratch: str,
    trouble: Trouble,
) -> list[str]:
    """Run the plan to its end; a line for each arm whose search found fewer cells than it was to."""
    study = plan.study
    make_job = JobMaker(resources, tags(study.measures))
    trainable = tune.with_resources(
        tune.with_parameters(
            Trial,
            keeper=FolderKeeper(folder, study.checkpoints.keep),
            jobs={} if study.search else {trial.id: make_job(trial) for trial in plan.todo},
            data_root=_absolute(study.data_root()),
            threads=max(1, int(resources["cpu"]) // study.resources.several),
            processes=study.resources.several,
            data_parallel=study.resources.data_parallel,
            checkpoint_every=study.checkpoints.every,
            checkpoint_seconds=study.checkpoints.seconds,
        ),
        resources,
    )
    # Failures are recorded with their reason; Ray would print each one's whole traceback over the display.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    scheduler = make_scheduler(plan, folder, recorder.recording, trouble)
    recorder.stops = scheduler.stops
    search: Sampling | None = None
    sampling: dict[str, Any] = {}
    if study.search is not None:
        search = Sampling(plan, folder, make_job, [recorder.expect, scheduler.expect], trouble)
        sampling = {
            "search_alg": search,
            "num_samples": -1,
            "max_concurrent_trials": study.search.concurrency,
        }
    tune.Tuner(
        trainable,
        param_space={} if study.search else {"trial": tune.grid_search([trial.id for trial in plan.todo])},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            reuse_actors=True,
            trial_name_creator=lambda trial: recorder.name(trial),
            trial_dirname_creator=lambda trial: trial.config["trial"],
            **sampling,
        ),
        run_config=tune.RunConfig(
            name=study.name,
            storage_path=scratch,
            verbose=0,
            callbacks=[recorder],
            # The study's folder has its own checkpoints; Ray's would be asked for at the end of every trial.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()
    return search.exhausted if search else []


class JobMaker:
    """What a worker is told of a trial.

    Args:
        resources: of one trial.
        measures: the study's, by tag.
    """

    def __init__(self, resources: dict[str, float], measures: Mapping[str, tuple[str, dict[str, Any]]]) -> None:
        self._gpu, self._measures = bool(resources["gpu"]), dict(measures)

    def __call__(self, trial: PlannedTrial) -> dict[str, Any]:
        recipe = trial.cell.recipe
        here: dict[str, Any] = {
            # A trial that was given no GPU must not find one by itself.
            "device": recipe.device if self._gpu else "cpu",
            "loader_workers": recipe.loader_workers,
            "capture": recipe.capture,
            "seeds_together": recipe.seeds_together,
            "compile": recipe.compile,
        }
        if recipe.pretrained:
            path = weights_source(recipe.pretrained, model=recipe.model).path
            here["pretrained"] = _absolute(str(path)) if path else recipe.pretrained
        return {
            "cell": trial.cell.id,
            "name": readable(trial),
            "recipe": {**recipe.settings(), **here},
            "seeds": list(trial.seeds),
            "until": trial.until,
            "trained": bool(trial.trained),
            "measures": self._measures,
        }


def _absolute(root: str | None) -> str | None:
    # Workers have another working directory.
    return None if root is None else os.path.abspath(os.path.expanduser(root))
