"""A study's search as Ray Tune runs it: the cells of every arm, asked one by one and told how they ended.

The arms take turns, so that each optimiser's search moves on at the same pace. What an earlier run has chosen and not
finished comes first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.tune.search import Searcher

from study.plan import Cell, Plan, PlannedTrial
from study.search import End, OptunaSearch, Suggestion
from study.search_storage import SearchError, storage_url
from study.store import StoreError, StudyFolder
from study.trouble import Trouble


class Sampling(Searcher):
    """Suggests trials to Ray, and passes their reports on to the arm that they belong to.

    Args:
        plan: the study with what its folder has; cells that are chosen here are added to it.
        folder: the study's folder; its plan is written anew with every cell, before the cell is trained.
        make_job: what a worker is told of a trial.
        listeners: told of every trial that is chosen.
        trouble: takes note of a folder that cannot be written.
    """

    def __init__(
        self,
        plan: Plan,
        folder: StudyFolder,
        make_job: Callable[[PlannedTrial], dict[str, Any]],
        listeners: list[Callable[[PlannedTrial], None]],
        trouble: Trouble,
    ) -> None:
        super().__init__(metric="validation_accuracy", mode="max")
        assert plan.study.search is not None
        self._plan, self._folder, self._make_job = plan, folder, make_job
        self._listeners, self._trouble = listeners, trouble
        self._objectives = plan.study.search.objectives
        with self._told():
            self._searches = {arm: self._search(arm) for arm in plan.study.design.arms}
        self._cells = {cell.id: cell for cell in plan.cells}
        self._measured_only = deque(trial for trial in plan.todo if trial.trained)
        self._todo = {trial.cell.id: trial for trial in plan.todo if not trial.trained}
        self._turns = deque(self._searches)
        self._asked: dict[str, tuple[str, Suggestion, int]] = {}  # Ray's trial id -> arm, suggestion, seeds

    @property
    def exhausted(self) -> list[str]:
        """A line for each arm that has fewer cells than asked, and why."""
        return [f"{arm}: {s.exhausted}" for arm, s in self._searches.items() if s.exhausted]

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration; `Searcher.FINISHED` when every arm has all its cells."""
        if self._measured_only:
            return self._configured(self._measured_only.popleft())
        while self._turns:
            arm = self._turns[0]
            with self._told():
                suggestion = self._searches[arm].ask()
            if suggestion is None:
                self._turns.popleft()
                continue
            self._turns.rotate(-1)
            trial = self._todo.pop(suggestion.cell, None) or self._chosen(arm, suggestion)
            self._asked[trial_id] = (arm, suggestion, len(trial.seeds))
            return self._configured(trial)
        return str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch of a cell that is still in training."""
        if trial_id in self._asked:
            arm, suggestion, _ = self._asked[trial_id]
            with self._told():
                self._searches[arm].report(suggestion.number, result["epoch"], _mean(result, self._objectives[0]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The cell has ended: of itself, by the scheduler, or with an error."""
        if trial_id not in self._asked:
            return
        arm, suggestion, seeds = self._asked.pop(trial_id)
        if error or result is None:
            end = End("failed")
        elif seeds < len(self._plan.study.seeds):
            # Some seeds were there already: the cell's mean is of all of them, which the next run reads in the folder.
            return
        else:
            outcome = result.get("outcome") or "stopped"
            if outcome != "diverged":
                # Ray gives the last report with the end.
                self._searches[arm].report(suggestion.number, result["epoch"], _mean(result, self._objectives[0]))
            end = End(outcome, result["epoch"], {name: _mean(result, name) for name in self._objectives})
        with self._told():
            self._searches[arm].tell(suggestion.number, end)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the folder and Optuna's database are the record, and Ray's is never restored."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study goes on from its folder")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong with Optuna's database is trouble with the store."""
        with self._trouble.noted():
            try:
                yield
            except SearchError as error:
                raise StoreError(str(error)) from error

    def _search(self, arm: str) -> OptunaSearch:
        plan = self._plan
        settings = plan.study.searched(arm)
        assert settings is not None
        url = storage_url(settings.storage, self._folder.uri if self._folder.is_local else None)
        search = OptunaSearch(
            settings,
            plan.study.name,
            arm,
            url,
            lambda values: plan.surveyor.cell(arm, plan.study.sampled(arm, values)).id,
        )
        ends = {cell: self._end(cell) for cell in plan.cells if cell.arm == arm}
        search.reconcile(
            {cell.id: end for cell, end in ends.items() if end},
            {cell.id: cell.recipe.settings() for cell, end in ends.items() if not end},
        )
        return search

    def _end(self, cell: Cell) -> End | None:
        """How a cell ended in the folder; None unless all its seeds have."""
        rows = [self._plan.ended.get((cell.id, seed)) for seed in self._plan.study.seeds]
        found = [row for row in rows if row is not None]
        if len(found) < len(rows):
            return None
        statuses = {row["status"] for row in found}
        outcome = next(s for s in ("diverged", "stopped", "complete") if s in statuses)
        values = {name: sum(row[name] for row in found) / len(found) for name in self._objectives}
        return End(outcome, max(int(row["epoch"]) for row in found), values, cell.recipe.settings())

    def _chosen(self, arm: str, suggestion: Suggestion) -> PlannedTrial:
        """Take a new cell into the plan, on disk before it is trained."""
        study = self._plan.study
        cell = self._plan.surveyor.cell(arm, study.sampled(arm, suggestion.settings))
        trial = self._plan.add(cell)
        with self._trouble.noted():
            self._folder.save_plan(self._plan.rows())
        for listen in self._listeners:
            listen(trial)
        return trial

    def _configured(self, trial: PlannedTrial) -> dict[str, Any]:
        return {"trial": trial.id, "job": self._make_job(trial)}


def _mean(result: Mapping[str, Any], name: str) -> float:
    """A metric of the cell: the mean over its seeds' rows."""
    values = [float(row[name]) for row in result["replicates"]]
    return sum(values) / len(values)
