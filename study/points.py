"""Which recipes a study asks for: arms x grid, with exceptions. No file, no line number, no Ray, no torch.

Four sections give a recipe its settings, the later above the earlier: `recipe`, a point of `grid`, the arm's own, and
the `exceptions` that match. A shared setting goes to every arm that uses it; one that an arm names itself and does not
use is an error, and so is one that no arm uses.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainables.problems import RecipeError
from trainables.recipe import EXECUTION, Recipe, digest

#: The keys that lead to a value of the study file.
KeyPath = tuple[str | int, ...]

#: A study file with more problems than this is shown these first.
MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Assembled:
    """The settings of one point before they are checked, and where each came from."""

    arm: str
    settings: dict[str, Any]
    where: dict[str, KeyPath]
    pinned: frozenset[str]  # the arm named these itself: not using one is an error
    matched: frozenset[int] = frozenset()  # the exceptions that are about this point

    def resolve(self) -> Recipe:
        """The recipe; shared settings that it does not use are left out.

        Raises:
            RecipeError: anything else that is wrong.
        """
        settings = self.settings
        # A setting can become unused only when another one has been left out: a few rounds at the most.
        while True:
            try:
                return Recipe.of(settings)
            except RecipeError as error:
                drop = {p.key for p in error.problems if p.unused and p.key in settings and p.key not in self.pinned}
                if not drop:
                    raise
                settings = {k: v for k, v in settings.items() if k not in drop}


@dataclass(frozen=True)
class Design:
    """The sections of a study that make its recipes."""

    recipe: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    grid: Mapping[str, list[Any]]
    exceptions: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]] = ()  # (when, set)
    named: bool = field(default=True)  # whether the study names its arms

    @classmethod
    def of(
        cls,
        recipe: Mapping[str, Any],
        arms: Mapping[str, Any],
        grid: Mapping[str, list[Any]],
        exceptions: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]] = (),
    ) -> Design:
        """A study without arms has one, named after its optimiser."""
        optimiser = str(recipe.get("optimiser", Recipe.model_fields["optimiser"].default))
        return cls(recipe, dict(arms) or {optimiser: {}}, grid, exceptions, bool(arms))

    def points(self, arm: str) -> Iterator[Assembled]:
        """The points of one arm: the product of the axes that it does not set itself."""
        axes = {k: list(enumerate(v)) for k, v in self.grid.items() if k not in self.arms[arm]}
        for values in itertools.product(*axes.values()):
            where = {k: ("grid", k, i) for k, (i, _) in zip(axes, values, strict=True)}
            yield self.assemble(arm, {k: v for k, (_, v) in zip(axes, values, strict=True)}, where)

    def assemble(self, arm: str, point: Mapping[str, Any], where: Mapping[str, KeyPath]) -> Assembled:
        """One point's settings. `where` says which keys of the study led to each of the point's values."""
        own = self.arms[arm]
        settings: dict[str, Any] = {**self.recipe, **point, **own}
        origin: dict[str, KeyPath] = {k: ("recipe", k) for k in self.recipe}
        origin |= where
        if self.named:
            origin |= {k: ("arms", arm, k) for k in own}
        pinned, matched = set(own), set()
        # By what the point is without exceptions: an axis that its optimiser does not use says nothing of it.
        known = {**_resolved(Assembled(arm, settings, origin, frozenset(own))), "arm": arm} if self.exceptions else {}
        for i, (when, changed) in enumerate(self.exceptions):
            if _matches(when, known):
                known |= changed
                matched.add(i)
                settings |= changed
                origin |= {k: ("exceptions", i, "set", k) for k in changed}
                pinned -= changed.keys()
        return Assembled(arm, settings, origin, frozenset(pinned), frozenset(matched))

    def excepted(self) -> dict[str, int]:
        """How many cells get each setting from an exception."""
        counts: dict[str, set[str]] = {}
        for arm in self.arms if self.exceptions else ():
            for point in self.points(arm):
                settings = point.resolve().settings()
                cell = digest(arm, settings)
                for key, where in point.where.items():
                    if where[0] == "exceptions" and key in settings:
                        counts.setdefault(key, set()).add(cell)
        return {key: len(cells) for key, cells in counts.items()}

    def recipes(self) -> list[tuple[str, Recipe]]:
        """Every (arm, recipe), each recipe once an arm."""
        found = []
        for arm in self.arms:
            seen = set()
            for point in self.points(arm):
                recipe = point.resolve()
                key = tuple(recipe.__dict__.values())
                if key not in seen:
                    seen.add(key)
                    found.append((arm, recipe))
        return found


def check(design: Design, extra: Sequence[Assembled] = (), changed: Collection[str] = ()) -> list[tuple[KeyPath, str]]:
    """Problems of the recipes that a design makes, each once and at the key that caused it.

    Args:
        design: the study's sections.
        extra: further points to be judged beside the design's own, e.g. the ends of a search space.
        changed: keys of which the study was narrowed: an exception about one of them may match nothing.
    """
    found: dict[tuple[KeyPath, str], None] = {}
    for key, values in design.grid.items():
        if len({repr(v) for v in values}) < len(values):
            found[("grid", key), "has a value twice"] = None
    for key in design.recipe.keys() & design.grid.keys():
        message = f"is given in recipe too; leave it in one place (an axis is replaced by --set {key}=[...])"
        found[("grid", key), message] = None
    used: set[KeyPath] = set()
    matched: set[int] = set()
    for point in itertools.chain(*(design.points(arm) for arm in design.arms), extra):
        matched |= point.matched
        try:
            keys = set(point.resolve().settings())
        except RecipeError as error:
            for problem in error.problems:
                if not problem.unused or problem.key in point.pinned:
                    found[_place(point, problem.key), problem.message] = None
            keys = {p.key for p in error.problems if not p.unused}
            if len(found) > MOST_PROBLEMS:
                return list(found)
        places = [point.where[key] for key in keys & point.where.keys()]
        used |= {place[:2] if place[0] == "grid" else place for place in places}
    for i, (when, _) in enumerate(design.exceptions):
        about = {"arms", *when} if "arm" in when else set(when)
        if i not in matched and not about & set(changed):
            found[("exceptions", i, "when"), "matches no cell"] = None
    if found:
        return list(found)
    # Narrowed to some arms, a study may leave shared settings unread that the others would have read.
    return [(place, message) for place, message in _unread(design, used, matched) if not {"arms", "arm"} & set(changed)]


def same_recipe_twice(points: Sequence[tuple[str, Recipe]]) -> list[tuple[KeyPath, str]]:
    """Each cell belongs to one arm: counted in two, its seeds would count twice."""
    seen: dict[str, str] = {}
    for arm, recipe in points:
        first = seen.setdefault(digest(recipe.settings()), arm)
        if first != arm:
            knobs = ", ".join(f"{k} {v:g}" for k in ("gamma", "eta") if (v := getattr(recipe, k)) is not None)
            what = f" at {knobs}" if knobs else ""
            return [(("arms", arm), f"is the same recipe as arm {first}{what}; leave it out or change one of them")]
    return []


def _unread(design: Design, used: set[KeyPath], matched: set[int]) -> list[tuple[KeyPath, str]]:
    """Settings that no recipe reads; of exceptions those that match a cell."""
    # Every recipe uses these, though they are no part of its settings, or may be null in all of them.
    always = EXECUTION | {"train_size", "test_size", "pretrained"}
    found: list[tuple[KeyPath, str]] = []
    for section, settings in (("recipe", design.recipe), ("grid", design.grid)):
        for key in settings:
            if (section, key) in used or key in always or (section == "recipe" and settings[key] is None):
                continue
            found.append(((section, key), _nobody_uses(key, design)))
    for i in sorted(matched):
        for key in design.exceptions[i][1]:
            if ("exceptions", i, "set", key) not in used and key not in always:
                found.append((("exceptions", i, "set", key), "no cell that it matches uses it"))
    return found


def _nobody_uses(key: str, design: Design) -> str:
    owners = [name for name, own in design.arms.items() if key in own]
    if owners:
        return f"every arm that uses it sets its own ({', '.join(owners)})"
    if any(key in changed for _, changed in design.exceptions):
        return "exceptions replace it in every cell that uses it"
    return f"no arm uses it (arms: {', '.join(design.arms)})"


def _place(point: Assembled, key: str) -> KeyPath:
    where = point.where.get(key, ("recipe", key))
    # An axis that is no setting at all is wrong as a whole and not in one of its values.
    return where[:2] if where[0] == "grid" and key not in Recipe.model_fields else where


def _resolved(point: Assembled) -> Mapping[str, Any]:
    """A point's settings with their defaults; as written where they are wrong, or an exception makes them right."""
    try:
        return point.resolve().settings()
    except RecipeError:
        return point.settings


def _matches(when: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    return all(settings.get(k) == v or (isinstance(v, list) and settings.get(k) in v) for k, v in when.items())
