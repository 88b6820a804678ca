"""Plan: a study as cells and trials with their ids, less what its folder already has. No Ray, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from study.asha import Asha, Decision
from study.spec import Study
from study.store import ENDED, StudyFolder
from trainables.data import fingerprint
from trainables.recipe import EXECUTION, Recipe, digest


@dataclass(frozen=True)
class Cell:
    """One point of arms x grid, seeds left out; `id` is the hash of its resolved recipe and its data."""

    id: str
    arm: str
    recipe: Recipe


@dataclass(frozen=True)
class PlannedTrial:
    """One run of a cell's missing seeds.

    `until` is the epoch at which an earlier decision on this cell ends it (its full length if the cell is complete),
    and None where the scheduler still has to decide: seeds that are added to a decided cell follow its decision,
    so that a cell has one fidelity.
    """

    cell: Cell
    seeds: tuple[int, ...]
    until: int | None

    @cached_property
    def id(self) -> str:
        return trial_id(self.cell, self.seeds)

    @property
    def epochs(self) -> int:
        return self.until or self.cell.recipe.epochs


@dataclass(frozen=True)
class Plan:
    """What a run has to do: the cells, what is ended, and the trials that are missing."""

    study: Study
    fingerprints: dict[str, str]
    cells: list[Cell]
    ended: dict[tuple[str, int], dict[str, Any]]
    todo: list[PlannedTrial]
    decisions: list[Decision]

    @property
    def replicates(self) -> int:
        return len(self.cells) * len(self.study.seeds)

    @property
    def done(self) -> int:
        """Planned replicates that have ended."""
        return sum((cell.id, seed) in self.ended for cell in self.cells for seed in self.study.seeds)

    def work(self) -> dict[str, int]:
        """What the missing trials cost at most: replicate epochs, optimiser steps, minibatch gradients, images."""
        totals = dict.fromkeys(("epochs", "steps", "gradients", "images"), 0)
        for trial in self.todo:
            recipe, epochs = trial.cell.recipe, trial.epochs * len(trial.seeds)
            steps = recipe.steps_per_epoch * epochs
            totals["epochs"] += epochs
            totals["steps"] += steps
            totals["gradients"] += steps * recipe.gradients_per_step
            totals["images"] += recipe.train_images * epochs
        return totals

    def rungs(self) -> list[int]:
        """Epochs at which ASHA decides; none under fifo."""
        asha = self.asha()
        return asha.rungs if asha else []

    def asha(self) -> Asha | None:
        """The study's ASHA with its recorded decisions taken back, or None under fifo."""
        scheduler = self.study.scheduler
        if scheduler.name != "asha" or not self.cells:
            return None
        asha = Asha(self.cells[0].recipe.epochs, *scheduler.settings())
        asha.rebuild(self.decisions)
        return asha

    def rows(self) -> list[dict[str, Any]]:
        """One row per planned replicate, as the store's plan.parquet holds it."""
        rows = []
        for cell in self.cells:
            columns = {k: v for k, v in cell.recipe.columns().items() if k not in EXECUTION}
            rows += [{"cell": cell.id, "arm": cell.arm, "seed": seed, **columns} for seed in self.study.seeds]
        return rows


#: What planning needs of a replicate's end.
_WANTED = (
    "cell",
    "seed",
    "status",
    "epoch",
    "scheduler",
    "validation_accuracy",
    "train_seconds",
    "gradient_evaluations",
)


def trial_id(cell: Cell, seeds: Iterable[int]) -> str:
    """12 hexadecimal digits for a cell's run with these seeds."""
    return digest("trial", cell.id, sorted(seeds))


def make_plan(study: Study, folder: StudyFolder) -> Plan:
    """Lay the study out and subtract what the folder has.

    Raises:
        trainables.data.DataError: a data set is missing or damaged.
        study.store.StoreError: the folder cannot be read.
    """
    root = study.data_root()
    prints: dict[str, str] = {}
    cells = []
    for arm, recipe in study.points:
        if recipe.dataset not in prints:
            prints[recipe.dataset] = fingerprint(recipe.dataset, root)
        cells.append(Cell(recipe.identity(prints[recipe.dataset]), arm, recipe))
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
    return Plan(study, prints, cells, ended, todo, [as_decision(row) for row in decided])


def as_decision(row: Mapping[str, Any]) -> Decision:
    return Decision(**{key: row[key] for key in Decision.__dataclass_fields__})
