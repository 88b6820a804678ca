"""Ray Tune's callback that turns a trial's reports into the study's records and moves the board on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import tune

from study.board import Board, worst
from study.budget import Meter
from study.events import Events
from study.failures import Failures
from study.lock import Lease
from study.metrics import Metrics
from study.plan import Plan, PlannedTrial
from study.progress import Display
from study.records import Recording
from study.store import StoreError, StudyFolder
from study.trouble import Trouble
from trainables.memory import remedies


class Recorder(tune.Callback):
    """Records every epoch and how each trial ended, and moves the board on.

    Args:
        plan: what this run has to do.
        folder: the study's folder.
        recording: what this run writes with.
        board: moved on with every report.
        lease: says that this run still holds the folder.
        failures: why trials were given up.
        display: shows the board.
        trouble: takes note of a folder that cannot be written.
        meter: counts what the run takes.
        metrics: are told how it gets on.
        events: TensorBoard's files; None where the study wants none.
    """

    def __init__(
        self,
        plan: Plan,
        folder: StudyFolder,
        recording: Recording,
        board: Board,
        lease: Lease,
        failures: Failures,
        display: Display,
        trouble: Trouble,
        meter: Meter,
        metrics: Metrics,
        events: Events | None = None,
    ) -> None:
        self.folder, self.recording, self.board = folder, recording, board
        self.lease, self.failures, self.display, self.trouble = lease, failures, display, trouble
        self.meter, self.metrics, self.events = meter, metrics, events
        #: Where a scheduler has stopped trials, by id; see `LedgerAsha.stops`.
        self.stops: Mapping[str, int] = {}
        self.scheduler = str(plan.study.scheduler)
        self.ended: dict[str, int] = {}
        self.devices: set[str] = set()
        self.train_seconds = 0.0
        self.final = plan.study.checkpoints.final
        self.reasons: list[str] = []
        self.unmeasured: list[str] = []
        self.remarks: list[str] = []
        self._trials = {trial.id: trial for trial in plan.todo}
        self._recorded: set[str] = set()

    def expect(self, trial: PlannedTrial) -> None:
        """Take in a trial that a search has just chosen."""
        self._trials[trial.id] = trial
        self.board.expect(trial)

    def name(self, trial: Any) -> str:
        """What Ray shows a trial as."""
        return readable(self._planned(trial))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles its callbacks for its own restore, which this project never uses."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.board.start(self._planned(trial).cell.id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record the trial's end if this is its last result: its own outcome, or the scheduler's stop (`done`)."""
        planned = self._planned(trial)
        self.devices |= {result["device"]} - {""}
        # What this run trained: the rows' own seconds go back to the trial's beginning, in whichever run that was.
        self.train_seconds += result["step_seconds"]
        self.board.report(planned.id, planned.cell.id, result["epoch"], result["validation_accuracy"])
        self.unmeasured += result.get("unmeasured", [])
        self.remarks += result["remarks"]
        self.recording.history(planned.id, result["rows"])
        self.metrics.report(planned, result)
        if self.events is not None:
            with self.trouble.noted():
                self.events.report(planned, result)
        outcome = result.get("outcome") or ("stopped" if result.get("done") else None)
        if outcome == "unkept":
            # What one worker cannot write no other one can: the run stops, and the trial has not failed.
            with self.trouble.noted():
                raise StoreError(result["reason"])
        if outcome == "measured":
            # Its end is on record, and who trained it.
            if not self.final and not result["unmeasured"]:
                with self.trouble.noted():
                    self.folder.delete_checkpoints(planned.id)
            self._note(planned, "measured")
        elif outcome == "failed":
            self._fail(planned, result["reason"])
        elif outcome:
            rows = [self._row(planned, row, outcome) for row in self._last(planned, result)]
            keep = self.final or bool(result.get("unmeasured"))
            self._end(
                planned, [{**row, "device": result["device"], "steps": result["steps"]} for row in rows], keep=keep
            )
        self.display.update()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Many times a second: write what is due."""
        with self.trouble.noted():
            # Before anything is written: another driver may have taken over while this one was asleep.
            self.lease.check()
            self.recording.tick()
            self.meter.save()
        self.metrics.step(self.board, self.meter.total())

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial has failed for the last time."""
        planned = self._planned(trial)
        self._fail(planned, self.failures.reason(planned.id))
        self.display.update()

    def _fail(self, planned: PlannedTrial, reason: str) -> None:
        if planned.trained:
            # It is complete, whatever became of measuring it.
            self.unmeasured.append(f"trial {planned.id}: {reason}")
            self._note(planned, "failed")
            return
        if reason not in self.reasons:
            self.reasons.append(reason)
        failed = {**self._common(planned), "status": "failed", "epoch": None, "reason": reason}
        self._end(planned, [{**failed, "seed": seed} for seed in planned.seeds], keep=True)

    def _last(self, planned: PlannedTrial, result: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows with which a trial has ended: those of the epoch at which it was stopped, if it was."""
        epoch = self.stops.get(planned.id, result["epoch"])
        if epoch == result["epoch"]:
            return list(result["replicates"])
        # It had gone further under another scheduler, and goes into this one's tables as the others do.
        labels = {row["seed"]: row["label_hash"] for row in result["replicates"]}
        rows = [{k: v for k, v in row.items() if k != "cell"} for row in result["rows"] if row["epoch"] == epoch]
        return [{**row, "label_hash": labels[row["seed"]]} for row in rows]

    def _planned(self, trial: Any) -> PlannedTrial:
        return self._trials[trial.config["trial"]]

    def _row(self, trial: PlannedTrial, row: dict[str, Any], outcome: str) -> dict[str, Any]:
        """A replicate's end. Its `scheduler` is the one whose rule stopped it, and None where nothing did."""
        status, reason, scheduler, epoch = outcome, None, None, row["epoch"]
        if outcome == "diverged":
            # The cell has diverged; of its replicates only some have, and the rest was stopped with them.
            status = "diverged" if row["diverged"] else "stopped"
            reason = f"diverged at epoch {epoch}" if row["diverged"] else f"another seed diverged at epoch {epoch}"
        elif outcome == "stopped" and self.scheduler != "fifo":
            reason, scheduler = f"stopped by {self.scheduler} at epoch {epoch}", self.scheduler
        elif outcome == "stopped":
            reason = f"its cell had ended at epoch {epoch}"
        values = {key: value for key, value in row.items() if key != "diverged"}
        return {**self._common(trial), **values, "status": status, "reason": reason, "scheduler": scheduler}

    def _common(self, trial: PlannedTrial) -> dict[str, Any]:
        return {"cell": trial.cell.id, "run": self.recording.run, "scheduler": None}

    def _end(self, trial: PlannedTrial, rows: list[dict[str, Any]], *, keep: bool) -> None:
        if trial.id in self._recorded:
            return
        state = worst([row["status"] for row in rows])
        self.recording.end(trial.id, rows)
        if state == "complete" and not keep:
            with self.trouble.noted():
                # Its end first: without one and without a checkpoint it would be trained again.
                self.recording.flush()
                self.folder.delete_checkpoints(trial.id)
        self._note(trial, state)

    def remedy(self, trial: str) -> str:
        """What to change where a node's memory does not hold a trial."""
        return remedies(self._trials[trial].cell.recipe, "node")

    def _note(self, trial: PlannedTrial, state: str) -> None:
        self.failures.ended(trial.id)
        self._recorded.add(trial.id)
        self.board.end(trial.id, trial.cell.id, "complete" if trial.trained else state)
        self.ended[state] = self.ended.get(state, 0) + 1


def readable(trial: PlannedTrial) -> str:
    """A readable name for Ray's dashboard and logs, e.g. `fsam_gamma=0.1_eta=1_5f3a...`."""
    settings = trial.cell.recipe.settings()
    knobs = [f"{key}={settings[key]:g}" for key in ("gamma", "eta") if key in settings]
    return "_".join([trial.cell.arm, *knobs, trial.id])
