"""What is wrong with a setting, in sentences: the key, the value, and a way out."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError


@dataclass(frozen=True)
class Problem:
    """What is wrong with one key, in a sentence that says what to do; `unused`: nothing would read the key."""

    key: str
    message: str
    unused: bool = False

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class RecipeError(ValueError):
    """Every problem of a recipe at once, in `problems`."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(map(str, self.problems)))


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known word nearest to `word`, or an empty string."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def explain(error: ValidationError, known: Iterable[str]) -> tuple[list[Problem], set[str]]:
    """pydantic's errors as problems in this project's words, and the keys that have to be left out to go on."""
    problems: list[Problem] = []
    bad: set[str] = set()
    for item in error.errors():
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, RecipeError):
            problems += cause.problems
            continue
        key = str(item["loc"][0])
        bad.add(key)
        problems.append(Problem(key, _sentence(key, item, known)))
    return problems, bad


def _sentence(key: str, item: Any, known: Iterable[str]) -> str:
    given, kind, ctx = item["input"], item["type"], item.get("ctx", {})
    shown = repr(given) if isinstance(given, str) else json.dumps(given, default=str)
    match kind:
        case "extra_forbidden":
            return f"unknown{nearest(key, known)}"
        case "literal_error":
            names = ctx["expected"].replace("'", "")
            return f"{shown} is not one of {names}{nearest(str(given), names.replace(' or ', ', ').split(', '))}"
        case "float_type" | "int_type" | "bool_type" | "string_type":
            wanted = {"float": "a number", "int": "a whole number", "bool": "true or false", "string": "text"}
            return f"{shown} is not {wanted[kind.split('_')[0]]}"
        case "greater_than":
            return f"{shown} is not above {ctx['gt']:g}"
        case "greater_than_equal":
            return f"{shown} is below {ctx['ge']:g}"
        case "less_than":
            return f"{shown} is not below {ctx['lt']:g}"
        case "less_than_equal":
            return f"{shown} is above {ctx['le']:g}"
        case "string_pattern_mismatch":
            return f"{shown} is not auto, cpu, cuda or cuda:N"
        case "tuple_type":
            return f"{shown} is not a list"
        case "value_error":
            return str(ctx["error"])
        case _:
            return f"{shown}: {item['msg']}"
