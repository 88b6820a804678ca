"""Plan: a study as cells and trials with their ids, less what its folder already has. No Ray, no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from study.asha import Asha, Decision
from study.measured import tags
from study.search_space import OBJECTIVES
from study.spec import Study, StudyError
from study.store import ENDED, StudyFolder
from trainables.data import DatasetFacts, Survey, survey
from trainables.models.weights import weights_mark
from trainables.problems import Problem, RecipeError
from trainables.recipe import EXECUTION, Recipe, digest


@dataclass(frozen=True)
class Cell:
    """One point of arms x grid, seeds left out; `id` is the hash of its resolved recipe, its data and first weights.

    `facts` are those of its data set, as found.
    """

    id: str
    arm: str
    recipe: Recipe
    facts: DatasetFacts


@dataclass(frozen=True)
class PlannedTrial:
    """One run of a cell's missing seeds.

    `until` is the epoch at which an earlier decision on this cell ends it (its full length if the cell is complete),
    and None where the scheduler still has to decide: seeds that are added to a decided cell follow its decision,
    so that a cell has one fidelity. `trained` is the id of a complete trial that only lacks measures.
    """

    cell: Cell
    seeds: tuple[int, ...]
    until: int | None
    trained: str | None = None

    @cached_property
    def id(self) -> str:
        return self.trained or trial_id(self.cell, self.seeds)

    @property
    def epochs(self) -> int:
        """Epochs that it may train of each seed."""
        return 0 if self.trained else self.until or self.cell.recipe.epochs


class Surveyor:
    """Looks at each data set and file of weights once, and makes cells of recipes."""

    def __init__(self, root: str | None) -> None:
        self._root = root
        self._surveys: dict[tuple[str, str | None], Survey] = {}
        self._marks: dict[str, str] = {}

    def survey(self, recipe: Recipe) -> Survey:
        key = (recipe.dataset, recipe.folder)
        if key not in self._surveys:
            self._surveys[key] = survey(*key[:1], self._root, recipe.folder)
        return self._surveys[key]

    def cell(self, arm: str, recipe: Recipe) -> Cell:
        """The cell of a recipe.

        Raises:
            trainables.data.DataError: its data set is missing or damaged.
            trainables.models.weights.WeightsError: its file of weights is.
            StudyError: the data set is smaller than the recipe asks.
        """
        found = self.survey(recipe)
        problems = recipe.misfits(found.facts)
        if problems:
            raise StudyError([Problem(f"recipe.{p.key}", f"{p.message} (arm {arm})") for p in problems])
        mark = None
        if recipe.pretrained is not None:
            mark = self._marks[recipe.pretrained] = weights_mark(recipe.pretrained, model=recipe.model)
        return Cell(recipe.identity(found.fingerprint, mark), arm, recipe, found.facts)

    def fingerprints(self) -> dict[str, str]:
        """What was looked at, for a run's record."""
        sets = {folder or name: s.fingerprint for (name, folder), s in self._surveys.items()}
        return sets | self._marks


@dataclass(frozen=True)
class Plan:
    """What a run has to do: the cells, what is ended, and the trials that are missing."""

    study: Study
    surveyor: Surveyor
    cells: list[Cell]
    ended: dict[tuple[str, int], dict[str, Any]]
    todo: list[PlannedTrial]
    decisions: list[Decision]
    #: Complete trials that lack measures and have no checkpoint to measure.
    unmeasurable: list[str] = field(default_factory=list)

    @property
    def replicates(self) -> int:
        return (len(self.cells) + sum(self.unsampled().values())) * len(self.study.seeds)

    def unsampled(self) -> dict[str, int]:
        """Cells that a search has still to choose, by arm; empty for a grid."""
        if self.study.search is None:
            return {}
        chosen = Counter(cell.arm for cell in self.cells)
        return {arm: max(0, self.study.search.cells - chosen[arm]) for arm in self.study.design.arms}

    def add(self, cell: Cell) -> PlannedTrial:
        """Take in a cell that a search has chosen."""
        trial = PlannedTrial(cell, tuple(sorted(self.study.seeds)), None)
        self.cells.append(cell)
        self.todo.append(trial)
        return trial

    @property
    def done(self) -> int:
        """Planned replicates that have ended."""
        return sum((cell.id, seed) in self.ended for cell in self.cells for seed in self.study.seeds)

    def work(self) -> dict[str, int]:
        """What the missing trials cost at most: replicate epochs, optimiser steps, minibatch gradients, images."""
        totals = dict.fromkeys(("epochs", "steps", "gradients", "images"), 0)
        parts = [(t.cell.recipe, t.cell.facts, t.epochs * len(t.seeds)) for t in self.todo]
        for arm, count in self.unsampled().items():
            # What it will choose is not known; any of its points stands for them.
            recipe = self.study.anywhere(arm)
            facts = self.surveyor.survey(recipe).facts
            parts.append((recipe, facts, count * recipe.epochs * len(self.study.seeds)))
        for recipe, facts, epochs in parts:
            steps = recipe.steps_per_epoch(facts) * epochs
            totals["epochs"] += epochs
            totals["steps"] += steps
            totals["gradients"] += steps * recipe.gradients_per_step
            totals["images"] += recipe.train_images(facts) * epochs
        return totals

    def rungs(self) -> list[int]:
        """Epochs at which ASHA decides; none under fifo."""
        return sorted({rung for asha in self.ashas().values() for rung in asha.rungs})

    def ashas(self) -> dict[str, Asha]:
        """The study's ASHA with its recorded decisions taken back, one for each arm; none under fifo.

        An arm's cells are compared with each other and not with another optimiser's: one that learns slowly at first
        would lose all its cells, and the comparison of optimisers with them.
        """
        if self.study.scheduler.name != "asha":
            return {}
        arm_of = {cell.id: cell.arm for cell in self.cells}
        found = {}
        for arm in self.study.design.arms:
            epochs = next((cell.recipe for cell in self.cells if cell.arm == arm), None) or self.study.anywhere(arm)
            found[arm] = Asha(epochs.epochs, *self.study.scheduler.settings())
            found[arm].rebuild(decision for decision in self.decisions if arm_of[decision.cell] == arm)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One row per planned replicate, as the store's plan.parquet holds it."""
        rows = []
        for cell in self.cells:
            columns = {k: v for k, v in cell.recipe.columns().items() if k not in EXECUTION}
            rows += [{"cell": cell.id, "arm": cell.arm, "seed": seed, **columns} for seed in self.study.seeds]
        return rows


#: What planning needs of a replicate's end; a search needs its objectives too.
_WANTED = (
    "cell",
    "seed",
    "status",
    "epoch",
    "scheduler",
    "train_seconds",
    "gradient_evaluations",
    *(name for name in OBJECTIVES if name not in ("train_seconds", "gradient_evaluations")),
)


def trial_id(cell: Cell, seeds: Iterable[int]) -> str:
    """12 hexadecimal digits for a cell's run with these seeds."""
    return digest("trial", cell.id, sorted(seeds))


def make_plan(study: Study, folder: StudyFolder) -> Plan:
    """Lay the study out and subtract what the folder has.

    Raises:
        trainables.data.DataError: a data set is missing or damaged.
        trainables.models.weights.WeightsError: a file of weights is missing or unreadable.
        StudyError: a data set is smaller than a recipe asks.
        study.store.StoreError: the folder cannot be read.
    """
    surveyor = Surveyor(study.data_root())
    if study.search is None:
        cells = [surveyor.cell(arm, recipe) for arm, recipe in study.points]
    else:
        cells = _chosen(study, surveyor, folder)
    ids = {cell.id for cell in cells}
    scheduler = str(study.scheduler)
    ended = {
        (row["cell"], row["seed"]): row
        for row in folder.ends(scheduler, _WANTED).to_pylist()
        if row["cell"] in ids and row["status"] in ENDED
    }
    decided = []
    if study.scheduler.name == "asha":
        decided = [r for r in folder.decisions_rows() if r["cell"] in ids and r["scheduler"] == scheduler]
    stops = {row["cell"]: row["epoch"] for row in decided if row["stop"]}
    todo: list[PlannedTrial] = []
    for cell in cells:
        missing = tuple(sorted(seed for seed in study.seeds if (cell.id, seed) not in ended))
        if missing:
            ends = [int(row["epoch"]) for seed in study.seeds if (row := ended.get((cell.id, seed)))]
            until = max(ends) if ends else stops.get(cell.id)
            todo.append(PlannedTrial(cell, missing, until))
    if study.scheduler.name == "asha":
        # In the grid's order the first cells would be each other's only rivals and set the bar for all that follow;
        # the ids are hashes, so this order has nothing to do with gamma or eta, and it is the same each time.
        todo.sort(key=lambda trial: trial.id)
    lacking, unmeasurable = _unmeasured(study, cells, ended, folder)
    return Plan(study, surveyor, cells, ended, todo + lacking, [as_decision(row) for row in decided], unmeasurable)


def _chosen(study: Study, surveyor: Surveyor, folder: StudyFolder) -> list[Cell]:
    """The cells that this search has chosen before: those of the folder's plan that its settings make again."""
    found: dict[str, Cell] = {}
    axes = {arm: list(search.space) if (search := study.searched(arm)) else [] for arm in study.design.arms}
    for row in folder.plan_rows():
        if row["cell"] in found or row["arm"] not in axes:
            continue
        values = {key: _as_setting(key, row.get(key)) for key in axes[row["arm"]]}
        try:
            cell = surveyor.cell(row["arm"], study.sampled(row["arm"], values))
        except (RecipeError, StudyError):
            continue
        if cell.id == row["cell"]:
            found[cell.id] = cell
    return list(found.values())


def _as_setting(key: str, value: Any) -> Any:
    """A setting from its column."""
    if key == "augmentation":
        return str(value).split("+") if value else []
    return value


def _unmeasured(
    study: Study, cells: list[Cell], ended: Mapping[tuple[str, int], Mapping[str, Any]], folder: StudyFolder
) -> tuple[list[PlannedTrial], list[str]]:
    """The complete trials that lack one of the study's measures, and those of them that have no checkpoint left."""
    wanted = set(tags(study.measures))
    if not wanted:
        return [], []
    by_id = {cell.id: cell for cell in cells}
    complete = {
        row["trial"]: by_id[cell]
        for (cell, seed), row in ended.items()
        if row["status"] == "complete" and seed in study.seeds
    }
    lacking, hopeless = [], []
    for trial, (there, kept) in folder.measured(complete).items():
        if wanted <= there:
            continue
        if not kept:
            hopeless.append(trial)
            continue
        seeds = tuple(sorted(row["seed"] for row in folder.trial_rows("replicates.parquet", [trial], ["seed"])))
        lacking.append(PlannedTrial(complete[trial], seeds, None, trial))
    return lacking, hopeless


def as_decision(row: Mapping[str, Any]) -> Decision:
    return Decision(**{key: row[key] for key in Decision.__dataclass_fields__})
