"""Plan: a study as cells and trials with their ids, less what its folder already has. No Ray, no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from study.asha import Asha, Decision
from study.cells import Cell, Surveyor
from study.measured import tags
from study.search_space import OBJECTIVES
from study.spec import Study, StudyError
from study.store import ENDED, StudyFolder
from trainables.problems import Problem, RecipeError
from trainables.recipe import EXECUTION, digest


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


@dataclass(frozen=True)
class Plan:
    """What a run has to do: the cells, what is ended, and the trials that are missing."""

    study: Study
    surveyor: Surveyor
    cells: list[Cell]
    ended: dict[tuple[str, int], dict[str, Any]]
    todo: list[PlannedTrial]
    decisions: list[Decision]
    #: What a search drew for each of its cells, by the cell's id.
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)
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

    def add(self, cell: Cell, values: dict[str, Any]) -> PlannedTrial:
        """Take in a cell that a search has chosen by these values."""
        trial = PlannedTrial(cell, tuple(sorted(self.study.seeds)), None)
        self.cells.append(cell)
        self.chosen[cell.id] = values
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
    # A folder of another version would look like an empty one.
    folder.spec()
    surveyor = Surveyor(study.data_root())
    chosen: dict[str, dict[str, Any]] = {}
    if study.search is None:
        cells = _distinct([surveyor.cell(arm, recipe) for arm, recipe in study.points])
    else:
        for arm, recipe in study.corners():
            # What is wrong with the data or the weights is wrong before the first cell is drawn.
            surveyor.cell(arm, recipe)
        cells, chosen = _chosen(study, surveyor, folder)
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
    return Plan(
        study, surveyor, cells, ended, todo + lacking, [as_decision(row) for row in decided], chosen, unmeasurable
    )


def _distinct(cells: list[Cell]) -> list[Cell]:
    """Each cell once; two paths to one file of weights or one folder make one cell.

    Raises:
        StudyError: two arms make the same cell: counted in both, its seeds would count twice.
    """
    found: dict[str, Cell] = {}
    for cell in cells:
        first = found.setdefault(cell.id, cell)
        if first.arm != cell.arm:
            raise StudyError([Problem(f"arms.{cell.arm}", f"is the same training as arm {first.arm}; leave it out")])
    return list(found.values())


def _chosen(study: Study, surveyor: Surveyor, folder: StudyFolder) -> tuple[list[Cell], dict[str, dict[str, Any]]]:
    """The cells that this search has chosen before, with what was drawn for them: those that are in its space now."""
    cells: dict[str, Cell] = {}
    drawn: dict[str, dict[str, Any]] = {}
    searches = {arm: study.searched(arm) for arm in study.design.arms}
    for row in folder.chosen():
        search, values = searches.get(row["arm"]), row["values"]
        if search is None or values.keys() != search.space.keys():
            continue
        if not all(axis.has(values[key]) for key, axis in search.space.items()):
            continue
        try:
            cell = surveyor.cell(row["arm"], study.sampled(row["arm"], values))
        except (RecipeError, StudyError):
            continue
        if cell.id == row["cell"]:
            cells[cell.id], drawn[cell.id] = cell, values
    return list(cells.values()), drawn


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
        lacking.append(trial)
    seeds: dict[str, set[int]] = {}
    for row in folder.rows("ends", ["seed"], lacking) if lacking else []:
        seeds.setdefault(row["trial"], set()).add(row["seed"])
    return [PlannedTrial(complete[t], tuple(sorted(seeds[t])), None, t) for t in lacking], hopeless


def as_decision(row: Mapping[str, Any]) -> Decision:
    return Decision(**{key: row[key] for key in Decision.__dataclass_fields__})
