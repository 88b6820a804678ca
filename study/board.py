"""The state of a running study, cell by cell: what the terminal shows, free of how it is drawn and of Ray."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from study.cells import Cell
from study.plan import Plan, PlannedTrial


@dataclass
class CellState:
    """What is known of one cell: its state, last epoch, mean validation accuracy in [0, 1] and epochs of its target."""

    cell: Cell
    target: int
    state: str = "waiting"
    epoch: int = 0
    value: float | None = None


@dataclass
class Board:
    """The cells of a plan as they move on."""

    title: str
    cells: dict[str, CellState]
    total: int  # replicate epochs this run may train
    done: int = 0  # replicate epochs this run has trained or spared
    trained: int = 0
    began: float | None = None
    unsampled: int = 0  # cells that a search has still to choose
    whose: str = " of this run"  # the epochs'; nothing where they are all that the study has
    _left: dict[str, int] = field(default_factory=dict, repr=False)
    _seeds: dict[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, plan: Plan) -> Board:
        board = cls(plan.study.name, {}, plan.work()["epochs"], unsampled=sum(plan.unsampled().values()))
        for cell in plan.cells:
            ended = [row for seed in plan.study.seeds if (row := plan.ended.get((cell.id, seed)))]
            state = CellState(cell, cell.recipe.epochs)
            if ended:
                values = [row["validation_accuracy"] for row in ended]
                state.value = sum(values) / len(values)
                state.epoch = int(ended[0]["epoch"])
                state.state = (
                    worst([row["status"] for row in ended]) if len(ended) == len(plan.study.seeds) else "waiting"
                )
            board.cells[cell.id] = state
        for trial in plan.todo:
            board.expect(trial)
        return board

    def expect(self, trial: PlannedTrial) -> None:
        """A trial of this run; its cell may be one that a search has just chosen."""
        if trial.cell.id not in self.cells:
            self.cells[trial.cell.id] = CellState(trial.cell, trial.cell.recipe.epochs)
            self.unsampled -= 1
        self._seeds[trial.id] = len(trial.seeds)
        self._left[trial.id] = trial.epochs * len(trial.seeds)

    def start(self, cell: str) -> None:
        if self.began is None:
            self.began = time.monotonic()
        self.cells[cell].state = "running"

    def report(self, trial: str, cell: str, epoch: int, value: float) -> None:
        """An epoch of every seed of the trial is finished."""
        entry = self.cells[cell]
        entry.state, entry.epoch, entry.value = "running", epoch, value
        self.trained += self._seeds[trial]
        spent = min(self._seeds[trial], self._left[trial])
        self._left[trial] -= spent
        self.done += spent

    def end(self, trial: str, cell: str, state: str) -> None:
        """The trial has ended; epochs that it did not need count as done."""
        self.cells[cell].state = state
        self.done += self._left[trial]
        self._left[trial] = 0

    def counts(self) -> Counter[str]:
        return Counter(entry.state for entry in self.cells.values())

    def seconds_left(self) -> float | None:
        """By the epochs trained so far in this run; None before there are any. Early stops only shorten it."""
        if self.began is None or not self.trained:
            return None
        return (time.monotonic() - self.began) / self.trained * (self.total - self.done)


def worst(states: list[str]) -> str:
    """The state of a cell whose replicates ended in these: the one a reader has to know first."""
    return next(s for s in ("failed", "diverged", "stopped", "complete") if s in states)
