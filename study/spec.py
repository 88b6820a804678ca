"""Study: one YAML file that asks a question, checked whole before anything starts. No Ray, no torch."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator

from study.naming import check_name
from study.points import Assembled, Design, KeyPath, check, same_recipe_twice
from study.search_space import Search
from study.settings import STRICT, Budget, Checkpoints, Exceptional, Price, Resources, Scheduler
from study.words import count
from study.yaml_text import YamlError, parse
from trainables.data import DATASETS
from trainables.devices import unshareable
from trainables.measures.settings import check as check_measures
from trainables.problems import Problem, RecipeError, nearest
from trainables.recipe import Recipe, digest

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
    exceptions: tuple[Exceptional, ...] = Field((), strict=False)
    search: Search | None = None
    measures: dict[str, Any] = {}
    seeds: tuple[int, ...] = Field((0,), strict=False, min_length=1)
    scheduler: Scheduler = Scheduler()
    resources: Resources = Resources()
    checkpoints: Checkpoints = Checkpoints()
    budget: Budget = Budget()
    price: Price | None = None
    max_failures: int = Field(2, ge=0, description="times a failed trial is tried again")
    tensorboard: bool = Field(False, description="write TensorBoard event files into the study's folder")
    storage: str = Field("results", min_length=1)
    data: str | None = Field(None, min_length=1)
    small: dict[str, Any] = Field({}, description="settings above the file's that `--small` takes")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return check_name(name)

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

    @field_validator("measures", mode="before")
    @classmethod
    def _known_measures(cls, value: Any) -> Any:
        # Kept as the settings they resolve to: two spellings of one measure are one measure.
        return {name: settings.model_dump(mode="json") for name, settings in check_measures(value or {}).items()}

    @classmethod
    def load(cls, file: str | os.PathLike[str], overrides: Sequence[str] = (), *, small: bool = False) -> Study:
        """Read and check a study file.

        Args:
            file: the YAML file.
            overrides: `key=value` settings above the file's, e.g. `recipe.epochs=2`, `epochs=2`, `seeds=[0]`.
            small: take the file's own `small` settings above the others, and `_small` behind its name.

        Raises:
            StudyError: with every problem found, each with its line or key.
        """
        try:
            text = Path(file).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise StudyError([f"{file}: no such file"]) from None
        except IsADirectoryError:
            hint = "`study status` and `study report` take a study's folder"
            raise StudyError([f"{file}: is a folder, and a study file is wanted; {hint}"]) from None
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError([f"{file}: cannot be read ({error.__class__.__name__}: {error})"]) from None
        changed: set[str] = set()  # by --set or small: a study may be narrowed to cells that no exception is about
        try:
            content, lines = parse(text)
            if not isinstance(content, dict):
                raise YamlError("holds no mapping of keys to values (name, question, recipe, grid, ...)")
            content = _unshared(content)
            if small:
                changed |= _make_small(content, lines)
            elif content.get("small") and not overrides:
                _check_small(cls, file)
            for override in overrides:
                key, value = _override(override)
                _put(content, lines, key, value, _SET, f"--set {override}")
                changed |= set(key.split("."))
        except YamlError as error:
            raise StudyError([f"{file}: {error}"]) from None
        try:
            return cls.of(content, changed)
        except _Located as error:
            raise StudyError(
                [f"{_at(file, path, lines)}: {_join(path, message)}" for path, message in error.found]
            ) from None

    @classmethod
    def frozen(cls, content: Mapping[str, Any], overrides: Sequence[str] = ()) -> Study:
        """The study that a folder holds, as it was checked when it was run last.

        Args:
            content: what `StudyFolder.spec` gives.
            overrides: `key=value` settings above it.

        Raises:
            StudyError: with every problem found, each with its key.
        """
        own: dict[str, Any] = _unshared(dict(content))
        try:
            for override in overrides:
                _put(own, {}, *_override(override), _SET, f"--set {override}")
        except YamlError as error:
            raise StudyError([str(error)]) from None
        # It may have been narrowed to cells that no exception is about, and to arms that do not use all of its axes.
        about = {key for exception in own.get("exceptions") or () for key in exception["when"]}
        return cls.of(own, about | {"arms"})

    @classmethod
    def of(cls, content: Mapping[str, Any], changed: Collection[str] = ()) -> Study:
        """Check a mapping as a study file holds it.

        Args:
            content: the mapping.
            changed: keys that were set above the file's. An exception that is about one of them may match no cell.

        Raises:
            StudyError: with every problem found, each with its key.
        """
        found: list[tuple[KeyPath, str]] = []
        study = None
        try:
            study = cls(**content)
        except ValidationError as error:
            found += _explain(error, cls, content)
        # The recipes are judged even where other sections are wrong: every error of a file at once.
        design = _design(content)
        search = study.search if study else None
        found += check(design, _ends(design, search), changed) + _check_sections(content, design, search)
        if study is not None and not found:
            found += same_recipe_twice(study.points) + _check_schedule(study) + _check_search(study)
            found += _check_devices(study)
            if study.budget.cost is not None and study.price is None:
                found.append((("budget", "cost"), "needs a price: what a device costs an hour, e.g. `price: 2.10 EUR`"))
        if study is None or found:
            # The order of the file, and no problem twice.
            raise _Located(list(dict.fromkeys(found)))
        return study

    @cached_property
    def design(self) -> Design:
        """The sections that make the recipes."""
        return Design.of(self.recipe, self.arms, self.grid, [(e.when, e.set) for e in self.exceptions])

    @cached_property
    def points(self) -> list[tuple[str, Recipe]]:
        """Every (arm, recipe) of arms x grid, each recipe once an arm; none where a search is to find them."""
        return [] if self.search else self.design.recipes()

    def searched(self, arm: str) -> Search | None:
        """The search over those axes that an arm uses: that it does not name itself and that its optimiser reads."""
        if self.search is None:
            return None
        own = self.search.only(self.search.space.keys() - self.design.arms[arm].keys())
        used: set[str] = set()
        for point in _ends(self.design, own, [arm]):
            used |= point.resolve().settings().keys()
        return own.only(used)

    def anywhere(self, arm: str) -> Recipe:
        """A recipe of the arm, at some point of the grid or of the search's space."""
        if self.search is None:
            return next(self.design.points(arm)).resolve()
        return _ends(self.design, self.searched(arm), [arm])[0].resolve()

    def corners(self) -> list[tuple[str, Recipe]]:
        """Recipes at the ends of the search's axes, by arm; none without a search."""
        return [(p.arm, p.resolve()) for arm in self.design.arms for p in _ends(self.design, self.searched(arm), [arm])]

    def sampled(self, arm: str, values: Mapping[str, Any]) -> Recipe:
        """The recipe of an arm at a point of the search's space.

        Raises:
            RecipeError: the values do not go together.
        """
        return self.design.assemble(arm, values, {}).resolve()

    def data_root(self) -> str | None:
        """Folder of the data sets' files: the study's, else the environment's, else None."""
        return self.data or os.environ.get(DATA_VARIABLE) or None


class _Located(StudyError):
    """Problems with the path of keys that leads to each."""

    def __init__(self, found: list[tuple[KeyPath, str]]) -> None:
        self.found = found
        super().__init__([_join(path, message) for path, message in found])


def _design(content: Mapping[str, Any]) -> Design:
    """The sections that make the recipes, as far as they are what they have to be."""
    recipe, grid, arms = (_mapping(content.get(key)) for key in ("recipe", "grid", "arms"))
    exceptions = content.get("exceptions")
    return Design.of(
        recipe,
        {k: _mapping(v) for k, v in arms.items()},
        {k: v for k, v in grid.items() if isinstance(v, list) and v},
        [
            (_mapping(e.get("when")), _mapping(e.get("set")))
            for e in (exceptions if isinstance(exceptions, list) else [])
            if isinstance(e, dict)
        ],
    )


def _ends(design: Design, search: Search | None, arms: Iterable[str] | None = None) -> list[Assembled]:
    """The ends of a search's axes as points to be judged; none without a search."""
    found = []
    for arm in (design.arms if arms is None else arms) if search else ():
        for values in search.ends() if search else ():
            point = {k: v for k, v in values.items() if k not in design.arms[arm]}
            found.append(design.assemble(arm, point, {k: ("search", "space", k) for k in point}))
    return found


def _check_sections(content: Mapping[str, Any], design: Design, search: Search | None) -> list[tuple[KeyPath, str]]:
    """Sections that do not go together, whatever is in them."""
    found: list[tuple[KeyPath, str]] = []
    for key, values in _mapping(content.get("grid")).items():
        if values == []:
            found.append((("grid", key), "has no values"))
    if search is None:
        return found
    if content.get("grid"):
        found.append((("grid",), "a study has a grid or a search; put the axis into search.space as choices"))
    for key in search.space:
        if key in design.recipe:
            found.append((("search", "space", key), "is given in recipe too; leave it in one place"))
        elif all(key in own for own in design.arms.values()):
            found.append((("search", "space", key), "every arm sets its own"))
    return found


def _check_search(study: Study) -> list[tuple[KeyPath, str]]:
    if study.search is None:
        return []
    found: list[tuple[KeyPath, str]] = [
        (("search", *key), message) for key, message in study.search.conflicts(study.scheduler.name)
    ]
    searches = {arm: search for arm in study.design.arms if (search := study.searched(arm))}
    arms = {arm: set(search.space) for arm, search in searches.items()}
    same: dict[str, str] = {}
    for arm, search in searches.items():
        if search.space and search.cells > search.size:
            message = f"{search.cells} of arm {arm}, whose axes have no more than {search.size:,.0f} different settings"
            found.append((("search", "cells"), message))
        first = same.setdefault(digest(study.anywhere(arm).settings(), sorted(search.space)), arm)
        if first != arm:
            found.append((("arms", arm), f"searches the same recipes as arm {first}; leave it out or change one"))
    for key in study.search.space.keys() - set().union(*arms.values()):
        found.append((("search", "space", key), f"no arm uses it (arms: {', '.join(arms)})"))
    for arm, axes in arms.items():
        if not axes:
            found.append((("arms", arm), "uses no axis of the search's space; put it into a study of its own"))
    return found


def _check_devices(study: Study) -> list[tuple[KeyPath, str]]:
    """What does not go over several processes, said before any has started."""
    asked = study.resources
    if asked.several == 1:
        return []
    if not asked.data_parallel:
        if asked.several > len(study.seeds):
            seeds = count(len(study.seeds), "seed")
            message = f"{asked.several} processes for {seeds}: some would idle; or data_parallel: true"
            return [(("resources",), message)]
        return []
    for arm, recipe in [*study.points, *study.corners()]:
        facts = DATASETS[recipe.dataset]
        images = recipe.train_images(facts) if facts.train is not None else None
        if (reason := unshareable(recipe, asked.several, images)) is not None:
            return [(("resources", "data_parallel"), f"{reason} (arm {arm})")]
    return []


def _check_schedule(study: Study) -> list[tuple[KeyPath, str]]:
    if study.scheduler.name != "asha":
        return []
    lengths: dict[str, set[int]] = {arm: set() for arm in study.design.arms}
    for arm, recipe in study.points:
        lengths[arm].add(recipe.epochs)
    for arm in study.design.arms:
        lengths[arm] |= {p.resolve().epochs for p in _ends(study.design, study.searched(arm), [arm])}
    grace, _ = study.scheduler.settings()
    for arm, epochs in lengths.items():
        if len(epochs) > 1:
            return [(("scheduler",), f"asha compares cells of one length; arm {arm}'s have epochs {sorted(epochs)}")]
        if grace >= min(epochs):
            return [(("scheduler", "grace_period"), f"{grace} of {min(epochs)} epochs leaves nothing to stop")]
    return []


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _explain(error: ValidationError, model: type[BaseModel], content: Mapping[str, Any]) -> list[tuple[KeyPath, str]]:
    """pydantic's errors about the study's own keys, in this project's words."""
    found: list[tuple[KeyPath, str]] = []
    for item in error.errors():
        path = tuple(item["loc"])
        given, kind = item["input"], item["type"]
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, RecipeError):
            # A section with keys of its own, checked by those who know them.
            found += [((*path, *p.key.split(".")) if p.key else path, p.message) for p in cause.problems]
            continue
        match kind:
            case "missing":
                message = "is missing"
            case "extra_forbidden":
                message = f"unknown{nearest(str(path[-1]), _known_keys(model, path[:-1]))}"
                if len(path) == 1 and path[0] in Recipe.model_fields:
                    message = "unknown here; it belongs under recipe (or under grid, as a list)"
            case "value_error":
                message = str(item["ctx"]["error"])
            case "literal_error":
                message = f"{given!r} is not one of {item['ctx']['expected'].replace(chr(39), '')}"
            case "tuple_type" | "list_type":
                message = f"{given!r} is not a list"
            case "dict_type" | "model_type":
                message = f"{given!r} is not a mapping of keys to values"
            case _:
                message = f"{item['msg'][0].lower()}{item['msg'][1:]} (it is {given!r})"
        found.append((path, message))
    return found


def _known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys of the section that a path leads to."""
    for part in path:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        inner = model.model_fields[part].annotation
        while not isinstance(inner, type) or not issubclass(inner, BaseModel):
            # A section that may be missing, or a list of them: `Search | None`, `tuple[Exceptional, ...]`.
            inner = get_args(inner)[0]
        model = inner
    return list(model.model_fields)


def _override(override: str) -> tuple[str, Any]:
    """The key and the value of one `key=value`."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise YamlError(f"--set {override}: write key=value")
    try:
        return key.strip(), parse(text)[0]
    except YamlError as error:
        raise YamlError(f"--set {override}: {error}") from None


def _check_small(kind: type[Study], file: str | os.PathLike[str]) -> None:
    """What is wrong with a file's small settings is wrong with the file."""
    try:
        kind.load(file, small=True)
    except StudyError as error:
        raise StudyError([f"{problem} (with --small)" for problem in error.problems]) from None


def _make_small(content: dict[str, Any], lines: dict[KeyPath, int]) -> set[str]:
    """Apply the file's own `small` settings, each at the line where it stands; the keys that it sets."""
    small = content.pop("small", None)
    if not small or not isinstance(small, dict):
        raise YamlError("has no `small` settings (keys as for --set, and their values)")
    if isinstance(content.get("name"), str):
        content["name"] += "_small"
    for key, value in small.items():
        _put(content, lines, str(key), value, lines.get(("small", key), _SET), f"small.{key}")
    return {part for key in small for part in str(key).split(".")}


def _put(content: dict[str, Any], lines: dict[KeyPath, int], key: str, value: Any, line: int, said: str) -> None:
    """Set one value; a bare recipe field means `recipe.<field>`, or its grid axis where a list replaces that."""
    path = key.split(".")
    if len(path) == 1 and path[0] not in Study.model_fields and path[0] in Recipe.model_fields:
        axis = path[0] in _mapping(content.get("grid")) and isinstance(value, list)
        path = ["grid" if axis else "recipe", path[0]]
    place = content
    for part in path[:-1]:
        inner = place.setdefault(part, {})
        if inner is None or isinstance(inner, str):
            # An empty section, or the short form of one: `scheduler: asha`, `resources: auto`.
            inner = place[part] = {"name": inner} if part == "scheduler" and inner else {}
        if not isinstance(inner, dict):
            raise YamlError(f"{said}: {part} holds no keys")
        place = inner
    place[path[-1]] = value
    for known in [known for known in lines if known[: len(path)] == tuple(path)]:
        del lines[known]
    lines[tuple(path)] = line


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
