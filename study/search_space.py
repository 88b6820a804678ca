"""The study's section `search`: which settings are sampled instead of laid out in a grid, how, and for what.

Checked without Optuna, so that a study file is judged at once; `study.search` samples.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
import types
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from study.settings import STRICT
from trainables.problems import explain, nearest
from trainables.recipe import Recipe

#: What a search can look for: means over a cell's seeds at its end, each with the direction that is better.
OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "validation_accuracy": "maximize",
    "validation_loss": "minimize",
    "train_accuracy": "maximize",
    "train_loss": "minimize",
    "gradient_evaluations": "minimize",
    "train_seconds": "minimize",
}

#: What ASHA compares, and so all that a search beside it can look for.
_ASHA_METRIC = "validation_accuracy"

_Model = TypeVar("_Model", bound=BaseModel)

_Path = tuple[str | int, ...]

_Number = int | Annotated[float, Field(allow_inf_nan=False)]


class Axis(BaseModel):
    """One setting's values: a range (`low` to `high`, both included), or `choices`.

    `log` draws uniformly in the logarithm; `step` draws from low, low + step, ..., high. A range of a whole-number
    setting is of whole numbers.
    """

    model_config = STRICT
    low: _Number | None = None
    high: _Number | None = None
    step: _Number | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = Field(None, strict=False)

    @model_validator(mode="wrap")
    @classmethod
    def _every_problem(cls, content: Any, check: ModelWrapValidatorHandler[Axis]) -> Axis:
        if not isinstance(content, Mapping | cls):
            raise ValueError(f"{content!r} is neither a range ({{low: ..., high: ...}}) nor {{choices: [...]}}")
        return _named_keys(cls, content, check)

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            ranged = [key for key in ("low", "high", "step") if getattr(self, key) is not None] + ["log"] * self.log
            if ranged:
                raise ValueError(f"has choices and {ranged[0]}; give either a range or choices")
            if not self.choices:
                raise ValueError("choices is empty")
            if any(same(a, b) for a, b in itertools.combinations(self.choices, 2)):
                raise ValueError("choices has a value twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices")
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0 (it is {self.low})")
        if self.log and self.step is not None:
            raise ValueError("step does not go with log; leave one out")
        if self.step is not None:
            if self.step <= 0:
                raise ValueError(f"step {self.step} is not above 0")
            low, step = Decimal(str(self.low)), Decimal(str(self.step))
            whole = (Decimal(str(self.high)) - low) // step
            if low + whole * step != Decimal(str(self.high)):
                raise ValueError(
                    f"high {self.high} is not low {self.low} and so many steps of {self.step}; "
                    f"take high {low + whole * step if whole else low + step}"
                )
        return self

    @property
    def whole(self) -> bool:
        """Whether it is a range of whole numbers (once the search has been checked)."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def size(self) -> float:
        """How many values there are; infinite for a range without a step."""
        if self.choices is not None:
            return len(self.choices)
        step = self.step or (1 if self.whole else None)
        if step is None:
            return math.inf
        return int((Decimal(str(self.high)) - Decimal(str(self.low))) // Decimal(str(step))) + 1

    def has(self, value: Any) -> bool:
        """Whether the axis can draw this value."""
        if self.choices is not None:
            return any(same(value, choice) for choice in self.choices)
        assert self.low is not None
        assert self.high is not None
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if not self.low <= value <= self.high:
            return False
        return self.step is None or (Decimal(str(value)) - Decimal(str(self.low))) % Decimal(str(self.step)) == 0

    def ends(self) -> tuple[Any, ...]:
        """The values at which a check finds what is wrong with the axis: its ends, or every choice."""
        return self.choices if self.choices is not None else (self.low, self.high)


class Search(BaseModel):
    """A study's `search`. Every arm has its own: `cells` of it, over those axes of `space` that the arm uses.

    `startup` is how many cells are drawn at random before TPE or CMA-ES begins, `population` NSGA-II's size of a
    generation; each has a default where its sampler is chosen and is refused elsewhere. `enqueue` lists settings to
    try first; what such an entry leaves out is sampled. `concurrency` is the most cells trained at once, and None
    leaves it to the resources. `storage` is a database's URL, and None a file of SQLite in the study's folder.
    """

    model_config = STRICT
    space: dict[str, Axis] = Field(min_length=1)
    cells: int = Field(ge=1, le=100_000, description="cells to sample, for each arm")
    sampler: Literal["tpe", "random", "cmaes", "nsga2"] = "tpe"
    seed: int = Field(0, ge=0, lt=2**63, description="the sampler's")
    startup: int | None = Field(None, ge=1)
    population: int | None = Field(None, ge=2)
    objectives: tuple[str, ...] = Field((_ASHA_METRIC,), strict=False, min_length=1)
    storage: str | None = Field(None, min_length=1)
    enqueue: tuple[dict[str, Any], ...] = Field((), strict=False)
    concurrency: int | None = Field(None, ge=1)

    @model_validator(mode="wrap")
    @classmethod
    def _every_problem(cls, content: Any, check: ModelWrapValidatorHandler[Search]) -> Search:
        if not isinstance(content, Mapping | cls):
            raise ValueError(f"{content!r} is no search; it has keys (space, cells, sampler, ...)")
        return _named_keys(cls, content, check)

    @field_validator("space")
    @classmethod
    def _axes_of_a_recipe(cls, space: dict[str, Axis]) -> dict[str, Axis]:
        found = [(path, message) for key, axis in space.items() for path, message in _misfits(key, axis)]
        if found:
            raise _located(cls.__name__, found)
        return {key: _typed(key, axis) for key, axis in space.items()}

    @field_validator("objectives")
    @classmethod
    def _nothing_by_test(cls, objectives: tuple[str, ...]) -> tuple[str, ...]:
        for name in objectives:
            if name.startswith("test_"):
                raise ValueError(
                    f"{name}: nothing is chosen by the test set; {name.replace('test_', 'validation_')} is"
                )
            if name not in OBJECTIVES:
                raise ValueError(f"{name}: unknown{nearest(name, OBJECTIVES)} (known: {', '.join(OBJECTIVES)})")
        if len(set(objectives)) < len(objectives):
            raise ValueError("names an objective twice")
        if len(objectives) > 2:
            raise ValueError(f"at most two ({len(objectives)} are given)")
        return objectives

    @field_validator("storage")
    @classmethod
    def _no_password(cls, url: str | None) -> str | None:
        if url is None:
            return None
        # The message must not repeat what it refuses.
        if not re.match(r"(sqlite|postgresql|mysql)(\+\w+)?://", url):
            raise ValueError("is no database's URL; write sqlite:///<file>, postgresql://<host>/<name> or mysql://...")
        login = url.partition("://")[2].partition("/")[0].rpartition("@")[0]
        if ":" in login or re.search(r"[?&]\w*passw\w*=", url):
            raise ValueError(
                "leave the password out, it would be printed and recorded; give it by environment or ~/.pgpass"
            )
        return url

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        found: list[tuple[_Path, str]] = []
        for key, users, default in (
            ("startup", ("tpe", "cmaes"), min(10, max(1, self.cells // 2))),
            ("population", ("nsga2",), min(50, max(4, self.cells // 5))),
        ):
            value = getattr(self, key)
            if self.sampler not in users:
                if value is not None:
                    found.append(((key,), f"belongs to {' and '.join(users)}; {self.sampler} does not use it"))
            elif value is None:
                self.__dict__[key] = default
            elif value >= self.cells:
                found.append(
                    ((key,), f"{value} of {self.cells} cells leaves {self.sampler} nothing; sampler random is that")
                )
        if self.sampler == "cmaes":
            if len(self.objectives) > 1:
                found.append((("sampler",), "cmaes has one objective; tpe and nsga2 take two"))
            chosen = [key for key, axis in self.space.items() if axis.choices is not None]
            if chosen:
                found.append(
                    (("sampler",), f"cmaes only draws numbers from ranges ({chosen[0]} has choices); take tpe")
                )
        if len(self.enqueue) > self.cells:
            found.append((("enqueue",), f"lists {len(self.enqueue)} settings for {self.cells} cells"))
        for i, settings in enumerate(self.enqueue):
            for key, value in settings.items():
                if key not in self.space:
                    found.append((("enqueue", i, key), f"is no axis of space{nearest(key, self.space)}"))
                elif not self.space[key].has(_as_choice(value)):
                    found.append((("enqueue", i, key), f"{value!r} is not among the values of space.{key}"))
        if found:
            raise _located(type(self).__name__, found)
        return self

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """Which way is better, for each objective, in Optuna's words."""
        return [OBJECTIVES[name] for name in self.objectives]

    @property
    def size(self) -> float:
        """How many different settings the space has; infinite with a continuous axis."""
        return math.prod(axis.size for axis in self.space.values())

    def conflicts(self, scheduler: str) -> list[tuple[tuple[str, ...], str]]:
        """What does not go with the study's scheduler or is not installed here: (key in search, message)."""
        found: list[tuple[tuple[str, ...], str]] = []
        if scheduler == "asha":
            if len(self.objectives) > 1:
                found.append((("objectives",), "asha stops cells by one objective; take scheduler fifo for two"))
            elif self.objectives[0] != _ASHA_METRIC:
                message = f"asha stops cells by {_ASHA_METRIC}; search for that too, or take scheduler fifo"
                found.append((("objectives",), message))
            if self.sampler in ("cmaes", "nsga2"):
                message = f"{self.sampler} learns from complete cells only, and asha stops most; take tpe or random"
                found.append((("sampler",), message))
        if self.sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
            found.append((("sampler",), "cmaes needs a package that is not installed: pip install cmaes"))
        driver = self.storage and _missing_driver(self.storage)
        if driver:
            found.append((("storage",), driver))
        return found

    def only(self, keys: Collection[str]) -> Search:
        """This search over those axes of its space that are among `keys`: what an arm that uses these keys searches."""
        space = {key: axis for key, axis in self.space.items() if key in keys}
        kept = [{k: v for k, v in settings.items() if k in space} for settings in self.enqueue]
        distinct = {repr(sorted(settings.items())): settings for settings in kept if settings}
        return self.model_copy(update={"space": space, "enqueue": tuple(distinct.values())})

    def ends(self) -> Iterator[dict[str, Any]]:
        """Settings in which every axis has each of its ends (or choices) once: what a check of recipes has to try."""
        longest = max((len(axis.ends()) for axis in self.space.values()), default=0)
        for i in range(longest):
            yield {key: axis.ends()[min(i, len(axis.ends()) - 1)] for key, axis in self.space.items()}


def _named_keys(model: type[_Model], content: Any, check: ModelWrapValidatorHandler[_Model]) -> _Model:
    """Check the content, and tell an unknown key by its nearest right name along with whatever else is wrong."""
    if not isinstance(content, Mapping):
        return check(content)
    unknown = [key for key in content if key not in model.model_fields]
    found: list[InitErrorDetails] = [_line((key,), f"unknown{nearest(key, model.model_fields)}") for key in unknown]
    try:
        checked = check({key: value for key, value in content.items() if key not in unknown})
    except ValidationError as error:
        if not found:
            raise
        for item in error.errors():
            reason = item.get("ctx", {}).get("error")
            found.append(_line(item["loc"], str(reason) if reason else f"{item['msg']} (it is {item['input']!r})"))
    if found:
        raise ValidationError.from_exception_data(model.__name__, found)
    return checked


def _located(title: str, found: list[tuple[_Path, str]]) -> ValidationError:
    """One error with a message for each path of keys, as pydantic's own have it."""
    return ValidationError.from_exception_data(title, [_line(path, message) for path, message in found])


def _line(path: _Path, message: str) -> InitErrorDetails:
    # The template is the same for all, so that braces in a message are no part of one.
    return InitErrorDetails(
        type=PydanticCustomError("value_error", "{error}", {"error": message}), loc=path, input=None
    )


def field_kinds(key: str) -> set[type]:
    """The plain types that a recipe's field takes; a list of names counts as tuple, None is left out."""
    kinds: set[type] = set()
    todo = [Recipe.model_fields[key].annotation]
    while todo:
        kind = todo.pop()
        if get_origin(kind) in (Union, types.UnionType):
            todo += get_args(kind)
        elif get_origin(kind) is Literal:
            kinds |= {type(name) for name in get_args(kind)}
        elif kind is not type(None):
            origin = get_origin(kind) or kind
            assert isinstance(origin, type)
            kinds.add(origin)
    return kinds


def _misfits(key: str, axis: Axis) -> Iterator[tuple[_Path, str]]:
    """What of an axis the recipe's field of that name cannot be."""
    if key not in Recipe.model_fields:
        yield (key,), f"unknown{nearest(key, Recipe.model_fields)}"
        return
    if axis.choices is not None:
        places: list[tuple[_Path, Any]] = [(("choices", i), value) for i, value in enumerate(axis.choices)]
    else:
        kinds = field_kinds(key)
        if not kinds & {int, float}:
            yield (key,), "is no number; give choices: [...]"
            return
        if float not in kinds:
            for name in ("low", "high", "step"):
                value = getattr(axis, name)
                if isinstance(value, float):
                    yield (key, name), f"{value!r} is not a whole number, and {key} is one"
                    return
        places = [(("low",), axis.low), (("high",), axis.high)]
    for place, value in places:
        message = _misfit(key, value)
        if message:
            yield (key, *place), message


def _misfit(key: str, value: Any) -> str | None:
    """Why a recipe's field cannot have this value on its own, whatever the other fields are."""
    try:
        Recipe(**{key: value})
    except ValidationError as error:
        problems, bad = explain(error, Recipe.model_fields)
        if key in bad:
            return next(p.message for p in problems if p.key == key)
    return None


def _typed(key: str, axis: Axis) -> Axis:
    """The axis with its numbers as the recipe's field has them: 1 is 1.0 of a float."""
    if axis.choices is not None:
        kinds = field_kinds(key)
        values = [_as_choice(value) for value in axis.choices]
        if float in kinds:
            values = [float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values]
        return axis.model_copy(update={"choices": tuple(values)})
    if float in field_kinds(key):
        numbers = {name: getattr(axis, name) for name in ("low", "high", "step")}
        return axis.model_copy(update={name: None if v is None else float(v) for name, v in numbers.items()})
    return axis


def same(a: Any, b: Any) -> bool:
    """Whether two values of a setting are one: 1 is 1.0, and true is not 1."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _as_choice(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _missing_driver(url: str) -> str | None:
    """Why this Python cannot talk to the database, or None if it can."""
    import sqlalchemy
    from sqlalchemy.engine import make_url

    try:
        make_url(url).get_dialect().import_dbapi()
    except ImportError as error:
        name = error.name or str(error)
        return f"needs a package that is not installed ({name}); install it, or name another driver (postgresql+...)"
    except sqlalchemy.exc.ArgumentError:
        return "is no database's URL; write postgresql://<host>/<name>"
    return None
