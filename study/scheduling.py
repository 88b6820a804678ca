"""The schedulers as Ray runs them. ASHA's decision is recorded before it is acted on."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from study.asha import Asha
from study.plan import Plan, PlannedTrial
from study.records import Recording
from study.store import StudyFolder
from study.trouble import Trouble

#: What the schedulers compare: the cell's mean over its seeds, from the validation split (never the test set).
METRIC = "validation_accuracy"


class LedgerAsha(FIFOScheduler):
    """`study.asha.Asha` under Ray Tune, with its ledger in the study's records.

    Args:
        ashas: each arm's rungs, with earlier runs' decisions taken back.
        plan: the trials of this run; those with an `until` follow a decision that is already recorded.
        recording: where decisions are written.
        sequence: of the last decision that is recorded; this run's count on.
        trouble: takes note of a folder that cannot be written.

    Attributes:
        stops: the epoch at which each trial was stopped, by its id: that of the decision, whatever it has trained.
    """

    def __init__(
        self, ashas: Mapping[str, Asha], plan: Plan, recording: Recording, sequence: int, trouble: Trouble
    ) -> None:
        super().__init__()
        self.stops: dict[str, int] = {}
        self._ashas, self._recording, self._sequence, self._trouble = ashas, recording, sequence, trouble
        self._scheduler = str(plan.study.scheduler)
        self._open = {trial.id: trial.cell for trial in plan.todo if trial.until is None and not trial.trained}

    def expect(self, trial: PlannedTrial) -> None:
        """Take in a trial that a search has just chosen."""
        self._open[trial.id] = trial.cell

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Continue or stop, by the cell's mean validation accuracy at the rungs.

        A trial that goes on from a checkpoint reports its earlier epochs again: a rung that nobody has decided yet is
        decided by the value at that very epoch.
        """
        name: str = trial.config["trial"]
        cell = self._open.get(name)
        if cell is None:
            return TrialScheduler.CONTINUE
        for epoch, rows in groupby(result["rows"], key=itemgetter("epoch")):
            values = [row[METRIC] for row in rows]
            decision = self._ashas[cell.arm].decide(cell.id, epoch, sum(values) / len(values))
            if decision is None:
                continue
            with self._trouble.noted():
                self._recording.decide(
                    name,
                    {
                        **vars(decision),
                        "scheduler": self._scheduler,
                        "run": self._recording.run,
                        "sequence": self._sequence + 1,
                    },
                )
            self._sequence += 1
            # Only what is recorded has happened: a rebuilt ASHA stands where this one does.
            self._ashas[cell.arm].record(decision)
            if decision.stop:
                self.stops[name] = decision.epoch
                return TrialScheduler.STOP
        return TrialScheduler.CONTINUE


class Fifo(FIFOScheduler):
    """Every trial in full."""

    #: Nothing is stopped.
    stops: Mapping[str, int] = MappingProxyType({})

    def expect(self, trial: PlannedTrial) -> None:
        """Nothing depends on which trials there are."""


def make_scheduler(plan: Plan, folder: StudyFolder, recording: Recording, trouble: Trouble) -> LedgerAsha | Fifo:
    """The scheduler that the study names, ready to go on from what its folder has."""
    ashas = plan.ashas()
    if not ashas:
        return Fifo()
    last = max((row["sequence"] for row in folder.rows("decisions", ["sequence"])), default=0)
    return LedgerAsha(ashas, plan, recording, last, trouble)
