"""The schedulers as Ray runs them. ASHA's decision is recorded before it is acted on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from study.asha import Asha
from study.plan import Plan, PlannedTrial
from study.provenance import now
from study.store import StudyFolder
from study.trouble import Trouble

#: What the schedulers compare: the cell's mean over its seeds, from the validation split (never the test set).
METRIC = "validation_accuracy"


class LedgerAsha(FIFOScheduler):
    """`study.asha.Asha` under Ray Tune, with its ledger in the study's folder.

    Args:
        ashas: each arm's rungs, with earlier runs' decisions taken back.
        plan: the trials of this run; those with an `until` follow a decision that is already recorded.
        folder: the study's folder.
        run: this run's id.
        trouble: takes note of a folder that cannot be written.
    """

    def __init__(self, ashas: Mapping[str, Asha], plan: Plan, folder: StudyFolder, run: str, trouble: Trouble) -> None:
        super().__init__()
        self._ashas, self._folder, self._run, self._trouble = ashas, folder, run, trouble
        self._scheduler, self._started = str(plan.study.scheduler), now()
        self._open = {trial.id: trial.cell for trial in plan.todo if trial.until is None and not trial.trained}
        self._sequence = 0
        # The file of a trial is written whole: keep what earlier runs decided on it.
        self._rows: dict[str, list[dict[str, Any]]] = {}
        for row in folder.trial_rows("decisions.parquet", self._open):
            self._rows.setdefault(row.pop("trial"), []).append(row)

    def expect(self, trial: PlannedTrial) -> None:
        """Take in a trial that a search has just chosen."""
        self._open[trial.id] = trial.cell

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Continue or stop, by the cell's mean validation accuracy at the rungs."""
        name: str = trial.config["trial"]
        cell = self._open.get(name)
        decision = self._ashas[cell.arm].decide(cell.id, result["epoch"], result[METRIC]) if cell else None
        if cell is None or decision is None:
            return TrialScheduler.CONTINUE
        self._sequence += 1
        row = {
            **vars(decision),
            "scheduler": self._scheduler,
            "run": self._run,
            "started": self._started,
            "sequence": self._sequence,
        }
        self._rows.setdefault(name, []).append(row)
        with self._trouble.noted():
            self._folder.save_decisions(name, self._rows[name])
        # Only what is recorded has happened: a rebuilt ASHA stands where this one does.
        self._ashas[cell.arm].record(decision)
        return TrialScheduler.STOP if decision.stop else TrialScheduler.CONTINUE


class Fifo(FIFOScheduler):
    """Every trial in full."""

    def expect(self, trial: PlannedTrial) -> None:
        """Nothing depends on which trials there are."""


def make_scheduler(plan: Plan, folder: StudyFolder, run: str, trouble: Trouble) -> LedgerAsha | Fifo:
    """The scheduler that the study names, ready to go on from what its folder has."""
    ashas = plan.ashas()
    return LedgerAsha(ashas, plan, folder, run, trouble) if ashas else Fifo()
