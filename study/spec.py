"""Study: one YAML file that asks a question, checked whole before anything starts. No Ray, no torch.

A shared setting (`recipe`, `grid`) goes to every arm that uses it; an arm's own settings stand above both. What no arm
uses is an error, and so is a setting that an arm names itself and does not use.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from study.settings import STRICT, Checkpoints, Resources, Scheduler
from study.yaml_text import Path as KeyPath
from study.yaml_text import YamlError, parse
from trainables.problems import Problem, RecipeError, nearest
from trainables.recipe import Recipe

#: More would be a slip of the pen.
MOST_SEEDS = 10_000

#: In place of a line: the key came from --set.
_SET = -1

#: Where data sets are looked for when neither the command line nor the study says.
DATA_VARIABLE = "SHARPNESS_STUDY_DATA"


class StudyError(ValueError):
    """Every problem of a study file at once, in `problems`; its text has one line for each."""

    def __init__(self, problems: Iterable[Problem | str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Study(BaseModel):
    """A checked study. Build it with `Study.load` or `Study.of`."""

    model_config = STRICT

    name: str
    question: str = Field(min_length=1)
    recipe: dict[str, Any] = {}
    arms: dict[str, dict[str, Any]] = {}
    grid: dict[str, list[Any]] = {}
    seeds: tuple[int, ...] = Field((0,), strict=False, min_length=1)
    scheduler: Scheduler = Scheduler()
    resources: Resources = Resources()
    checkpoints: Checkpoints = Checkpoints()
    max_failures: int = Field(2, ge=0, description="times a failed trial is tried again")
    storage: str = Field("results", min_length=1)
    data: str | None = Field(None, min_length=1)

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        # It becomes a folder, a Ray experiment and a metric label.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name):
            raise ValueError(
                f"{name!r} must be letters, digits, _ and -, at most 100, beginning with a letter or digit"
            )
        return name

    @field_validator("scheduler", mode="before")
    @classmethod
    def _scheduler_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("resources", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return {} if value == "auto" else value

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_or_list(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= MOST_SEEDS:
                raise ValueError(f"at least one seed is needed, and at most {MOST_SEEDS:,}")
            return tuple(range(value))
        if isinstance(value, list):
            for seed in value:
                if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
                    raise ValueError(f"{seed!r} is not a whole number from 0 to 2^63 - 1")
            if len(set(value)) < len(value):
                raise ValueError("a seed is named twice")
        return value

    @classmethod
    def load(cls, file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Study:
        """Read and check a study file.

        Args:
            file: the YAML file.
            overrides: `key=value` settings above the file's, e.g. `recipe.epochs=2`, `epochs=2`, `seeds=[0]`.

        Raises:
            StudyError: with every problem found, each with its line or key.
        """
        try:
            text = Path(file).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise StudyError([f"{file}: no such file"]) from None
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError([f"{file}: cannot be read ({error.__class__.__name__}: {error})"]) from None
        try:
            content, lines = parse(text)
            if not isinstance(content, dict):
                raise YamlError("holds no mapping of keys to values (name, question, recipe, grid, ...)")
            content = _unshared(content)
            for override in overrides:
                _override(content, lines, override)
        except YamlError as error:
            raise StudyError([f"{file}: {error}"]) from None
        try:
            return cls.of(content)
        except _Located as error:
            raise StudyError(
                [f"{_at(file, path, lines)}: {_join(path, message)}" for path, message in error.found]
            ) from None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Study:
        """Check a mapping as a study file holds it.

        Raises:
            StudyError: with every problem found, each with its key.
        """
        found: list[tuple[KeyPath, str]] = []
        study = None
        try:
            study = cls(**content)
        except ValidationError as error:
            found += _explain(error, cls, content)
        found += _check_recipes(content) if study is None else _check_recipes(study.model_dump())
        if study is not None and not found:
            found += _check_arms(study) + _check_schedule(study)
        if study is None or found:
            # The order of the file, and no problem twice.
            raise _Located(list(dict.fromkeys(found)))
        return study

    def arms_or_one(self) -> dict[str, dict[str, Any]]:
        """The arms; a study without any has one, named after its optimiser."""
        return _arms(self.recipe, self.arms)

    @cached_property
    def points(self) -> list[tuple[str, Recipe]]:
        """Every (arm, recipe) of arms x grid, each recipe once an arm: an arm crosses the axes that it uses."""
        found = []
        for arm, own in self.arms_or_one().items():
            seen = set()
            for point in _grid_points(self.grid, own):
                recipe = _resolve({**self.recipe, **point}, own)
                key = tuple(recipe.__dict__.values())
                if key not in seen:
                    seen.add(key)
                    found.append((arm, recipe))
        return found

    def data_root(self) -> str | None:
        """Folder of the data sets' files: the study's, else the environment's, else None."""
        return self.data or os.environ.get(DATA_VARIABLE) or None


class _Located(StudyError):
    """Problems with the path of keys that leads to each."""

    def __init__(self, found: list[tuple[KeyPath, str]]) -> None:
        self.found = found
        super().__init__([_join(path, message) for path, message in found])


@dataclass(frozen=True)
class _Origin:
    """Where an arm's settings come from, to name the right key in a message."""

    arm: str | None
    own: Mapping[str, Any]
    recipe: Mapping[str, Any]
    grid: Mapping[str, Any]

    def path(self, key: str, point: Mapping[str, Any]) -> KeyPath:
        if key in self.own and self.arm is not None:
            return ("arms", self.arm, key)
        if key in point and key not in Recipe.model_fields:
            return ("grid", key)
        if key in point:
            return ("grid", key, [repr(v) for v in self.grid[key]].index(repr(point[key])))
        return ("recipe", key)


def _arms(recipe: Mapping[str, Any], arms: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(arms) or {str(recipe.get("optimiser", Recipe.model_fields["optimiser"].default)): {}}


def _grid_points(grid: Mapping[str, list[Any]], own: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    axes = {k: v for k, v in grid.items() if k not in own}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _resolve(shared: Mapping[str, Any], own: Mapping[str, Any]) -> Recipe:
    """The recipe of shared and own settings; shared ones that it does not use are left out.

    Raises:
        RecipeError: anything else that is wrong.
    """
    settings = {**shared, **own}
    # A setting can become unused only when another one has been left out: a few rounds at the most.
    while True:
        try:
            return Recipe.of(settings)
        except RecipeError as error:
            drop = {p.key for p in error.problems if p.unused and p.key in settings and p.key not in own}
            if not drop:
                raise
            settings = {k: v for k, v in settings.items() if k not in drop}


def _check_recipes(content: Mapping[str, Any]) -> list[tuple[KeyPath, str]]:
    """Problems of the recipes that the study's arms and grid make, each once and at the key that caused it."""
    recipe, grid, arms = (_mapping(content.get(key)) for key in ("recipe", "grid", "arms"))
    found: dict[tuple[KeyPath, str], None] = {}
    for key, values in grid.items():
        if values == []:
            found[("grid", key), "has no values"] = None
        elif isinstance(values, list) and len({repr(v) for v in values}) < len(values):
            found[("grid", key), "has a value twice"] = None
    grid = {k: v for k, v in grid.items() if isinstance(v, list) and v}
    arms = {k: _mapping(v) for k, v in arms.items()}
    for key in recipe.keys() & grid.keys():
        found[("grid", key), _twice(key)] = None
    used: set[str] = set()
    for arm, own in _arms(recipe, arms).items():
        origin = _Origin(arm if arm in arms else None, own, recipe, grid)
        for point in _grid_points(grid, own):
            try:
                used |= _resolve({**recipe, **point}, own).settings().keys()
            except RecipeError as error:
                for problem in error.problems:
                    if not problem.unused or problem.key in own:
                        found[origin.path(problem.key, point), problem.message] = None
                used |= {p.key for p in error.problems if not p.unused}
                if len(found) > 20:
                    return list(found)
    # Every recipe uses its device, though that is no part of its identity, and all images where train_size is null.
    used |= {"device", "train_size"}
    if not found:
        for section, settings in (("recipe", recipe), ("grid", grid)):
            for key in settings:
                if key not in used and not (section == "recipe" and settings[key] is None):
                    found[(section, key), _nobody_uses(key, recipe, arms)] = None
    return list(found)


def _twice(key: str) -> str:
    return f"is given in recipe too; leave it in one place (an axis is replaced by --set {key}=[...])"


def _nobody_uses(key: str, recipe: Mapping[str, Any], arms: Mapping[str, Any]) -> str:
    pinned = [name for name, own in arms.items() if key in own]
    if pinned:
        return f"every arm that uses it sets its own ({', '.join(pinned)})"
    return f"no arm uses it (arms: {', '.join(_arms(recipe, arms))})"


def _check_arms(study: Study) -> list[tuple[KeyPath, str]]:
    """Each cell belongs to one arm: counted in two, its seeds would count twice."""
    seen: dict[str, str] = {}
    for arm, recipe in study.points:
        first = seen.setdefault(recipe.identity(""), arm)
        if first != arm:
            knobs = ", ".join(f"{k} {v:g}" for k in ("gamma", "eta") if (v := getattr(recipe, k)) is not None)
            what = f" at {knobs}" if knobs else ""
            return [(("arms", arm), f"is the same recipe as arm {first}{what}; leave it out or change one of them")]
    return []


def _check_schedule(study: Study) -> list[tuple[KeyPath, str]]:
    if study.scheduler.name != "asha":
        return []
    lengths = {recipe.epochs for _, recipe in study.points}
    if len(lengths) > 1:
        return [(("scheduler",), f"asha compares cells of one length; these have epochs {sorted(lengths)}")]
    grace, epochs = study.scheduler.grace_period or 1, lengths.pop()
    if grace >= epochs:
        return [(("scheduler", "grace_period"), f"{grace} of {epochs} epochs leaves nothing to stop")]
    return []


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _explain(error: ValidationError, model: type[BaseModel], content: Mapping[str, Any]) -> list[tuple[KeyPath, str]]:
    """pydantic's errors about the study's own keys, in this project's words."""
    found: list[tuple[KeyPath, str]] = []
    for item in error.errors():
        path = tuple(item["loc"])
        given, kind = item["input"], item["type"]
        match kind:
            case "missing":
                message = "is missing"
            case "extra_forbidden":
                known: Mapping[str, Any] = model.model_fields
                if len(path) > 1:
                    known = model.model_fields[str(path[0])].annotation.model_fields  # type: ignore[union-attr]
                message = f"unknown{nearest(str(path[-1]), known)}"
                if len(path) == 1 and path[0] in Recipe.model_fields:
                    message = "unknown here; it belongs under recipe (or under grid, as a list)"
            case "value_error":
                message = str(item["ctx"]["error"])
            case "literal_error":
                message = f"{given!r} is not one of {item['ctx']['expected'].replace(chr(39), '')}"
            case _:
                message = f"{item['msg'][0].lower()}{item['msg'][1:]} (it is {given!r})"
        found.append((path, message))
    return found


def _override(content: dict[str, Any], lines: dict[KeyPath, int], override: str) -> None:
    """Apply one `key=value`; a bare recipe field means `recipe.<field>`."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise YamlError(f"--set {override}: write key=value")
    path = key.strip().split(".")
    if len(path) == 1 and path[0] not in Study.model_fields and path[0] in Recipe.model_fields:
        path = (
            ["grid", path[0]]
            if path[0] in _mapping(content.get("grid")) and text.strip().startswith("[")
            else ["recipe", path[0]]
        )
    try:
        value, _ = parse(text)
    except YamlError as error:
        raise YamlError(f"--set {override}: {error}") from None
    place = content
    for part in path[:-1]:
        inner = place.setdefault(part, {})
        if inner is None or isinstance(inner, str):
            # An empty section, or the short form of one: `scheduler: asha`, `resources: auto`.
            inner = place[part] = {"name": inner} if part == "scheduler" and inner else {}
        if not isinstance(inner, dict):
            raise YamlError(f"--set {override}: {part} holds no keys")
        place = inner
    place[path[-1]] = value
    for known in [known for known in lines if known[: len(path)] == tuple(path)]:
        del lines[known]
    lines[tuple(path)] = _SET


def _at(file: object, path: KeyPath, lines: Mapping[KeyPath, int]) -> str:
    """`file:12` for the line of the deepest key of the path that the file has; `--set` where that gave it."""
    for n in range(len(path), 0, -1):
        if path[:n] in lines:
            line = lines[path[:n]]
            return "--set" if line == _SET else f"{file}:{line}"
    return str(file)


def _unshared(value: Any) -> Any:
    """A copy in which no two places are the same object, as a YAML alias makes them."""
    if isinstance(value, dict):
        return {k: _unshared(v) for k, v in value.items()}
    return [_unshared(v) for v in value] if isinstance(value, list) else value


def _join(path: KeyPath, message: str) -> str:
    name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    return f"{name}: {message}" if name else message
