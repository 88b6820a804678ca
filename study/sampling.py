"""A study's search as Ray Tune runs it: the cells of every arm, asked one by one and told how they ended.

The arms take turns, so that each optimiser's search moves on at the same pace. What an earlier run has chosen and not
finished comes first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.tune.search import Searcher

from study.cells import Cell
from study.plan import Plan, PlannedTrial
from study.search import End, OptunaSearch, Suggestion
from study.search_storage import SearchError, storage_url
from study.spec import StudyError
from study.store import StoreError, StudyFolder
from study.trouble import Trouble
from trainables.problems import Problem, RecipeError


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
        self._arms = {cell.id: cell.arm for cell in plan.cells}
        # Kept when the space changes: put back, its cells are found again.
        self._record = [row for row in folder.chosen() if row["cell"] not in plan.chosen]
        self._record += [{"cell": c.id, "arm": c.arm, "values": plan.chosen[c.id]} for c in plan.cells]
        self._measured_only = deque(trial for trial in plan.todo if trial.trained)
        self._todo = {trial.cell.id: trial for trial in plan.todo if not trial.trained}
        with self._told():
            self._searches = {arm: self._search(arm) for arm in plan.study.design.arms}
        self._turns = deque(self._searches)
        self._asked: dict[str, tuple[str, Suggestion]] = {}  # by Ray's trial id

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
            self._asked[trial_id] = (arm, suggestion)
            return self._configured(trial)
        return str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch of a cell that is still in training."""
        if trial_id in self._asked:
            arm, suggestion = self._asked[trial_id]
            value = _mean(result["replicates"], self._objectives[0])
            with self._told():
                self._searches[arm].report(suggestion.number, result["epoch"], value)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The cell has ended: of itself, by the scheduler, or with an error."""
        if trial_id not in self._asked:
            return
        arm, suggestion = self._asked.pop(trial_id)
        if error or result is None or result.get("outcome") == "failed":
            end = End("failed")
        else:
            # The other seeds, if an earlier run trained them, count as much as these.
            before = [self._plan.ended.get((suggestion.cell, seed)) for seed in self._plan.study.seeds]
            rows = [*result["replicates"], *(row for row in before if row is not None)]
            values = {name: _mean(rows, name) for name in self._objectives}
            end = End(result.get("outcome") or "stopped", result["epoch"], values)
        with self._told():
            if end.outcome in ("complete", "stopped"):
                # Ray gives the last report with the end.
                self._searches[arm].report(suggestion.number, int(end.epoch or 0), end.values[self._objectives[0]])
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
            lambda values: self._identify(arm, values),
        )
        ends = {cell: self._end(cell) for cell in plan.cells if cell.arm == arm}
        search.reconcile(
            {cell.id: end for cell, end in ends.items() if end},
            {cell.id: plan.chosen[cell.id] for cell, end in ends.items() if not end},
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
        return End(outcome, max(int(row["epoch"]) for row in found), values, self._plan.chosen[cell.id])

    def _identify(self, arm: str, values: dict[str, Any]) -> str:
        """The cell of drawn values.

        Raises:
            RecipeError: they do not go together, with the data either, or make a cell of another arm.
        """
        try:
            cell = self._plan.surveyor.cell(arm, self._plan.study.sampled(arm, values))
        except StudyError as error:
            raise RecipeError([p if isinstance(p, Problem) else Problem("", p) for p in error.problems]) from None
        other = self._arms.get(cell.id, arm)
        if other != arm:
            raise RecipeError([Problem("", f"it is a cell of arm {other}")])
        return cell.id

    def _chosen(self, arm: str, suggestion: Suggestion) -> PlannedTrial:
        """Take a new cell into the plan, on disk before it is trained."""
        study = self._plan.study
        cell = self._plan.surveyor.cell(arm, study.sampled(arm, suggestion.settings))
        trial = self._plan.add(cell, suggestion.settings)
        self._arms[cell.id] = arm
        self._record.append({"cell": cell.id, "arm": arm, "values": suggestion.settings})
        with self._trouble.noted():
            self._folder.save_chosen(self._record)
            self._folder.save_plan(self._plan.rows())
        for listen in self._listeners:
            listen(trial)
        return trial

    def _configured(self, trial: PlannedTrial) -> dict[str, Any]:
        return {"trial": trial.id, "job": self._make_job(trial)}


def _mean(rows: Iterable[Mapping[str, Any]], name: str) -> float:
    """A metric of the cell: the mean over its seeds' rows; NaN where one has no such value."""
    values = [math.nan if row.get(name) is None else float(row[name]) for row in rows]
    return sum(values) / len(values) if values else math.nan
