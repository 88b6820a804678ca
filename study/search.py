"""Optuna behind a study's `search`: suggests cells, is told how they end, and goes on where a killed driver left it.

One `OptunaSearch` for each arm, so that every optimiser gets the same number of cells. It knows nothing of Ray: the
driver asks for a cell, trains it, and tells.

The study's folder is the truth and Optuna's database a record beside it. `reconcile` makes the second follow the
first: what ended in the folder is told, what Optuna has lost is added, and what did not end is handed out again under
its own number before anything new is sampled.

What is reproducible: a draw is a function of the search's seed, of how many draws came before it, and of what Optuna
has been told by then; no generator is kept. `random` therefore suggests the same cells whatever the timing, and the
other samplers do where one cell is trained at a time, killed and resumed or not. Cells trained side by side end in an
order that nobody controls, and what TPE, CMA-ES and NSGA-II suggest depends on it. The arms of a study share the
seed, so that arms that search the same axes begin with the same cells.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from study.search_space import Search
from study.search_storage import SearchError, connect, in_one_line, storage_url
from study.search_values import Values, sampler
from trainables.problems import RecipeError
from trainables.recipe import digest

__all__ = ["End", "Found", "OptunaSearch", "SearchError", "Suggestion", "storage_url"]

OUTCOMES = ("complete", "stopped", "diverged", "failed")

#: Suggestions in a row that are no new cell before the next ones are drawn at random, and before the search is over.
PATIENCE, GIVES_UP = 10, 100

#: Complete cells below which importances would be noise.
LEAST_FOR_IMPORTANCES = 20


class Suggestion(NamedTuple):
    """A cell to train: Optuna's number of it, the settings as plain values, and the cell's id."""

    number: int
    settings: dict[str, Any]
    cell: str


class Found(NamedTuple):
    """One of the best cells: its settings, and its objectives in the search's order."""

    number: int
    cell: str
    settings: dict[str, Any]
    values: list[float]


@dataclass(frozen=True)
class End:
    """How a cell ended.

    Args:
        outcome: `complete`, `stopped` (by ASHA), `diverged`, or `failed` (for the last time in this run).
        epoch: the last one.
        values: the cell's means over its seeds, by metric; needed of the objectives where it is complete.
        settings: those of the cell's recipe, from which a lost database is made again.
    """

    outcome: str
    epoch: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"{self.outcome!r} is no end of a cell ({', '.join(OUTCOMES)})")


class OptunaSearch:
    """The search of one arm, kept in Optuna's database as the study `<study>.<arm>`.

    How an end is told, and why:

    - complete: COMPLETE with the objectives' values. One that is not finite counts as diverged.
    - stopped: PRUNED, which keeps the last reported value. TPE ranks it below all complete ones, the longest trained
      first.
    - diverged: PRUNED with the constraint `diverged` violated. As FAIL it would teach nothing, since every sampler
      passes failures over, and as merely pruned it would rank above all that was stopped earlier; an infeasible trial
      ranks behind every other one with TPE. CMA-ES and NSGA-II learn from complete trials only: to NSGA-II a diverged
      cell is no parent, to CMA-ES it is as if it had not been drawn.
    - failed: FAIL, because a crash says nothing about the settings. The next `reconcile` hands the cell out again.

    Each trial has the user attributes `arm`, `cell`, `status` and `epoch`. Settings that make a cell which the search
    already has are not trained twice: the trial gets `copy_of` and the earlier one's end, at once or when it comes.
    Settings that no recipe can have are `refused`, which counts as infeasible. Neither uses up one of the `cells`.

    Args:
        settings: the study's search, with the axes that this arm uses (`Search.only`).
        study: the study's name.
        arm: the arm's name.
        url: from `storage_url`, or a storage of Optuna's that is open.
        identify: the id of the cell that settings make in this arm. May raise RecipeError: settings that are each right
            need not go together.

    Raises:
        SearchError: the database cannot be opened, or holds another search under this name.
    """

    def __init__(
        self,
        settings: Search,
        study: str,
        arm: str,
        url: str | optuna.storages.BaseStorage,
        identify: Callable[[dict[str, Any]], str],
    ) -> None:
        self.settings, self.arm, self.name = settings, arm, f"{study}.{arm}"
        #: Why there is nothing more to suggest though fewer than `cells` have been, or None.
        self.exhausted: str | None = None
        self._identify = identify
        self._values = Values(settings.space)
        self._storage, self._study = connect(url, self.name, settings)
        self._id = self._storage.get_study_id_from_name(self.name)
        self._latest: dict[str, int] = {}  # cell -> the trial that stands for it
        self._copies: dict[str, list[int]] = {}  # cell -> trials that wait for its end
        self._open: deque[Suggestion] = deque()
        self._points: set[str] = set()
        self._ended: dict[str, End] = {}
        self._handles: dict[int, optuna.Trial] = {}
        self._reported: dict[int, set[int]] = {}
        self._draws = 0
        self._queued = False
        self._load()

    def _load(self) -> None:
        """Take up what the database has. A trial without a cell was never handed out: its driver died asking."""
        for trial in self._study.get_trials(deepcopy=False):
            attributes = trial.user_attrs
            if trial.state == TrialState.WAITING or attributes.get("status") == "abandoned":
                continue
            if trial.state == TrialState.RUNNING and "cell" not in attributes:
                self._note(trial.number, status="abandoned")
                self._study.tell(trial.number, state=TrialState.FAIL)
                continue
            self._draws += "again" not in attributes
            if not self._values.fit(trial.params):
                # Drawn from an earlier space: it still informs the sampler, and is none of this search's cells.
                if trial.state == TrialState.RUNNING:
                    self._note(trial.number, status="abandoned")
                    self._study.tell(trial.number, state=TrialState.FAIL)
                continue
            self._points.add(_point(trial.params))
            if "cell" not in attributes:
                continue
            cell = str(attributes["cell"])
            if "copy_of" not in attributes:
                self._latest[cell] = trial.number
            elif trial.state == TrialState.RUNNING:
                self._copies.setdefault(cell, []).append(trial.number)
        for cell, number in self._latest.items():
            if self._frozen(number).state == TrialState.RUNNING:
                self._reopen(cell)
        self._settle_copies()

    # What the driver does

    @in_one_line
    def reconcile(self, ended: Mapping[str, End], chosen: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Make the database say what the study's folder says. Call it once, before the first `ask`.

        Args:
            ended: the end of every cell of this arm's search that has ended in the folder, by the cell's id. Cells
                that Optuna does not know are added and count among `cells`; those whose settings are not in the space
                are passed over. A cell that Optuna has as ended and the folder has not is handed out again, as a new
                trial with the attribute `again`.
            chosen: the recipe's settings of the cells that the folder's plan has from this search and that have not
                ended, by the cell's id. Those that Optuna does not know are added and handed out first.
        """
        for cell, end in ended.items():
            number = self._latest.get(cell)
            if number is None:
                self._adopt(cell, end)
                continue
            state = self._frozen(number).state
            if state == TrialState.RUNNING:
                self.tell(number, end)
            elif state == TrialState.FAIL:
                self._repeat(cell, number)
                self.tell(self._latest[cell], end)
        self._ended = dict(ended)
        self._open = deque(s for s in self._open if s.cell not in ended)
        for cell, number in list(self._latest.items()):
            if cell not in ended and self._frozen(number).state.is_finished():
                self._repeat(cell, number)
                self._reopen(cell)
        for cell, settings in (chosen or {}).items():
            params = self._values.of(settings)
            if cell not in self._latest and cell not in ended and params is not None:
                self._add(cell, params)
                self._draws += 1
                self._reopen(cell)

    @in_one_line
    def ask(self) -> Suggestion | None:
        """The next cell to train; None when all `cells` have been handed out, or no new one is to be found.

        Cells that an earlier driver left open come first, then `enqueue`, then the sampler's.

        Raises:
            SearchError: what is suggested makes no recipe, time after time, or the database fails.
        """
        if self._open:
            return self._open.popleft()
        self._queue()
        refused = 0
        for attempt in range(GIVES_UP):
            if len(self._latest) >= self.settings.cells:
                return None
            if len(self._points) >= self.settings.size:
                self.exhausted = f"the space has no more than {len(self._latest)} cells"
                return None
            number, settings = self._draw(at_random=attempt >= PATIENCE)
            try:
                cell = self._identify(settings)
            except RecipeError as error:
                refused += 1
                self._refuse(number, str(error))
                if refused == GIVES_UP:
                    raise SearchError(f"search.space: {GIVES_UP} settings in a row make no recipe ({error})") from None
                continue
            if cell in self._latest:
                self._note(number, copy_of=self._latest[cell], cell=cell)
                self._copies.setdefault(cell, []).append(number)
                self._settle_copies(cell)
                continue
            self._note(number, cell=cell)
            self._latest[cell] = number
            if cell not in self._ended:
                return Suggestion(number, settings, cell)
            self.tell(number, self._ended[cell])
        self.exhausted = f"{GIVES_UP} suggestions in a row were no new cell, after {len(self._latest)} cells"
        return None

    @in_one_line
    def report(self, number: int, epoch: int, value: float) -> None:
        """An epoch's value of the objective. The first report of an epoch stands: a resumed cell repeats some.

        Does nothing for two objectives, of which Optuna keeps no course, and once the cell has ended.
        """
        if len(self.settings.objectives) > 1:
            return
        handle = self._handle(number)
        if epoch not in self._reported[number] and self._frozen(number).state == TrialState.RUNNING:
            handle.report(value, epoch)
            self._reported[number].add(epoch)

    @in_one_line
    def tell(self, number: int, end: End) -> None:
        """How the cell of this suggestion ended; a second end of the same one is passed over.

        Raises:
            SearchError: a complete cell without one of the objectives.
        """
        trial = self._frozen(number)
        if trial.state.is_finished():
            return
        self._finish(number, end)
        if end.outcome != "failed":
            self._settle_copies(trial.user_attrs.get("cell"))

    @in_one_line
    def best(self) -> list[Found]:
        """The best complete cell, or with two objectives the Pareto front; empty before a cell is complete."""
        trials = [t for t in self._study.best_trials if "copy_of" not in t.user_attrs] if self._complete() else []
        return [Found(t.number, t.user_attrs["cell"], self._values.settings(t.params), list(t.values)) for t in trials]

    @in_one_line
    def importances(self, least: int = LEAST_FOR_IMPORTANCES) -> dict[str, float] | None:
        """Each axis's share of the objective's variance over the space, from the largest (fANOVA, Hutter et al. 2014).

        None for two objectives, and for fewer than `least` complete cells, where it would be noise. Cells that were
        stopped or diverged have no part in it.
        """
        if len(self.settings.objectives) > 1 or self._complete() < least:
            return None
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.settings.seed % 2**32)
        return dict(optuna.importance.get_param_importances(self._study, evaluator=evaluator))

    def close(self) -> None:
        """Let the database go."""
        self._storage.remove_session()
        if isinstance(self._storage, optuna.storages.RDBStorage):
            self._storage.engine.dispose()

    # Trials

    def _draw(self, at_random: bool) -> tuple[int, dict[str, Any]]:
        """A new trial: the first that is queued, else the sampler's next."""
        seed = int(digest("search", self.settings.seed, self._draws)[:8], 16)
        self._study.sampler = sampler(self.settings, seed, at_random)
        try:
            trial = self._study.ask(self._values.distributions)
        except ValueError as error:
            raise SearchError(
                f"search.space: {self.name} was begun with another space; give the study another name ({error})"
            ) from None
        self._draws += 1
        self._handles[trial.number], self._reported[trial.number] = trial, set()
        self._points.add(_point(trial.params))
        self._note(trial.number, arm=self.arm)
        return trial.number, self._values.settings(trial.params)

    def _queue(self) -> None:
        """Put `enqueue` in line, what of it is not there yet."""
        if self._queued:
            return
        self._queued = True
        there = [
            {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            for trial in self._study.get_trials(deepcopy=False)
            if trial.user_attrs.get("status") != "abandoned"
        ]
        for settings in self.settings.enqueue:
            wanted = self._values.params(settings)
            if not any(wanted.items() <= params.items() for params in there):
                self._study.enqueue_trial(wanted)

    def _adopt(self, cell: str, end: End) -> None:
        """Add a cell that ended in the folder and that the database does not know."""
        params = self._values.of(end.settings)
        if params is None or end.outcome == "failed":
            return
        self._add(cell, params)
        self._draws += 1
        self.tell(self._latest[cell], end)

    def _repeat(self, cell: str, number: int) -> None:
        """A new trial with the settings of one that is finished in the database and not in the folder."""
        self._add(cell, self._frozen(number).params, again=number)

    def _add(self, cell: str, params: dict[str, Any], **attributes: Any) -> None:
        attributes = {"arm": self.arm, "cell": cell, **attributes}
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions=self._values.distributions,
                user_attrs=attributes,
            )
        )
        self._points.add(_point(params))
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._latest[cell] = max(trial.number for trial in running if trial.user_attrs == attributes)

    def _reopen(self, cell: str) -> None:
        trial = self._frozen(self._latest[cell])
        self._open.append(Suggestion(trial.number, self._values.settings(trial.params), cell))

    def _refuse(self, number: int, reason: str) -> None:
        self._note(number, status="refused", reason=reason)
        self._infeasible(number, "refused")
        self._study.tell(number, state=TrialState.PRUNED)

    def _finish(self, number: int, end: End) -> None:
        outcome, values = end.outcome, []
        if outcome == "complete":
            try:
                values = [float(end.values[name]) for name in self.settings.objectives]
            except (KeyError, TypeError):
                missing = [name for name in self.settings.objectives if end.values.get(name) is None]
                raise SearchError(f"search.objectives: a complete cell has no {' and no '.join(missing)}") from None
            if not all(map(math.isfinite, values)):
                outcome = "diverged"
        self._note(number, status=outcome, epoch=end.epoch)
        if outcome == "complete":
            self._study.tell(number, values)
            return
        if outcome == "stopped" and end.epoch is not None:
            value = end.values.get(self.settings.objectives[0])
            if value is not None:
                self.report(number, end.epoch, value)
        if outcome == "diverged":
            self._infeasible(number, "diverged")
        self._study.tell(number, state=TrialState.FAIL if outcome == "failed" else TrialState.PRUNED)

    def _settle_copies(self, cell: str | None = None) -> None:
        """Give the ends that are there to the trials that wait for them."""
        for name in [cell] if cell is not None else list(self._copies):
            trial = self._frozen(self._latest[name]) if name in self._latest and name in self._copies else None
            if trial is None or trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                continue
            values = dict(zip(self.settings.objectives, trial.values or [], strict=False))
            end = End(trial.user_attrs["status"], trial.user_attrs.get("epoch"), values)
            for number in self._copies.pop(name):
                self._finish(number, end)

    def _infeasible(self, number: int, why: str) -> None:
        handle = self._handle(number)
        if why not in handle.constraints:
            handle.set_constraint(why, 1.0)

    def _note(self, number: int, **attributes: Any) -> None:
        # In the order given: `cell` comes last, and that it is there means that the others are.
        for key, value in attributes.items():
            self._handle(number).set_user_attr(key, value)

    def _handle(self, number: int) -> optuna.Trial:
        """Optuna's handle of a trial, for those of earlier processes too."""
        if number not in self._handles:
            self._handles[number] = optuna.Trial(self._study, self._trial_id(number))
            self._reported[number] = set(self._frozen(number).intermediate_values)
        return self._handles[number]

    def _frozen(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._trial_id(number))

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _complete(self) -> int:
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return sum("copy_of" not in trial.user_attrs for trial in trials)


def _point(params: Mapping[str, Any]) -> str:
    return repr(sorted(params.items()))
