"""Cells: recipes with the data and the weights that they name, which have to be looked at. No Ray, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from study.spec import StudyError
from trainables.data import DatasetFacts, Survey, survey
from trainables.models.weights import weights_mark
from trainables.problems import Problem
from trainables.recipe import Recipe


@dataclass(frozen=True)
class Cell:
    """One point of arms x grid, seeds left out; `id` is the hash of its resolved recipe, its data and first weights.

    `facts` are those of its data set, as found.
    """

    id: str
    arm: str
    recipe: Recipe
    facts: DatasetFacts


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
            mark = weights_mark(recipe.pretrained, model=recipe.model)
            self._marks[f"{recipe.pretrained} for {recipe.model}"] = mark
        return Cell(recipe.identity(found.fingerprint, mark), arm, recipe, found.facts)

    def fingerprints(self) -> dict[str, str]:
        """What was looked at, for a run's record."""
        sets = {folder or name: s.fingerprint for (name, folder), s in self._surveys.items()}
        return sets | self._marks
