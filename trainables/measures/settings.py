"""The settings of each measure, as a study file writes them under `measures:`.

    measures:
      perturbation: {alpha: [0.5, 1, 2], directions: [adversarial]}
      curvature:                       # all defaults
      sharpness: {metrics: [sam, fsam], gamma: [0.05, 0.1]}

A setting that the others leave without effect is `None` in the settings; giving it a value is an error, as in a recipe.
This file imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trainables.problems import Problem, RecipeError, explain, nearest

#: What a setting means where the others use it and the study does not name it.
RANDOM_DRAWS, RECOMPUTE_BATCHES = 3, 20
ETA = {"fsam": 1.0, "asam_official": 0.01}


class Measure(BaseModel):
    """Settings of one measure, frozen; `batches` counts batches of the training split, all of them if null."""

    # Defaults are checked too: one that is written out has the identity of one that is not.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    @field_validator("*")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{number} is not a finite number")
        return value

    def _used(self, problems: list[Problem], key: str, used: bool, default: Any, refusal: str) -> None:
        """Write down the default of a setting that is used, refuse the value of one that is not."""
        if used and getattr(self, key) is None:
            # The model is frozen for its users; this is still its construction.
            self.__dict__[key] = default
        elif not used and getattr(self, key) is not None:
            problems.append(Problem(key, refusal, unused=True))


class Perturbation(Measure):
    """Robustness to parameter perturbation (section 5.4, Fig 4).

    Attributes:
        alpha: lengths of the perturbation, in units of the parameters; 0 is always measured too.
        directions: `adversarial` is along the gradient of the training loss, `random` along a Gaussian vector.
        random_draws: independent Gaussian directions; 3 if not named.
        batches: of the gradient; null, the default, is the whole training split.
        batch_norm: `kept`, the running statistics of theta; `recomputed`, estimated anew at each perturbed theta; or
            both, a curve for each.
        recompute_batches: training batches of that estimate; 20 if not named.
    """

    alpha: tuple[float, ...] = Field((0.1, 0.2, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5), strict=False)
    directions: tuple[Literal["adversarial", "random"], ...] = Field(("adversarial", "random"), strict=False)
    random_draws: int | None = Field(None, ge=1)
    batches: int | None = Field(None, ge=1)
    batch_norm: tuple[Literal["kept", "recomputed"], ...] = Field(("kept",), strict=False)
    recompute_batches: int | None = Field(None, ge=1)

    @field_validator("alpha")
    @classmethod
    def _above_zero(cls, alpha: tuple[float, ...]) -> tuple[float, ...]:
        if alpha and min(alpha) == 0:
            raise ValueError("0 is not above 0; it is measured without being named")
        return _increasing(alpha, "lengths", above_zero=True)

    @field_validator("directions")
    @classmethod
    def _named_once(cls, directions: tuple[str, ...]) -> tuple[str, ...]:
        return _once(directions, ("adversarial", "random"))

    @field_validator("batch_norm", mode="before")
    @classmethod
    def _one_or_several(cls, batch_norm: Any) -> Any:
        return (batch_norm,) if isinstance(batch_norm, str) else batch_norm

    @field_validator("batch_norm")
    @classmethod
    def _kind_once(cls, batch_norm: tuple[str, ...]) -> tuple[str, ...]:
        return _once(batch_norm, ("kept", "recomputed"))

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        problems: list[Problem] = []
        self._used(
            problems,
            "random_draws",
            "random" in self.directions,
            RANDOM_DRAWS,
            "directions has no random, so nothing is drawn; add it or leave random_draws out",
        )
        self._used(
            problems,
            "batches",
            "adversarial" in self.directions,
            None,
            "directions has no adversarial, so there is no gradient; add it or leave batches out",
        )
        self._used(
            problems,
            "recompute_batches",
            "recomputed" in self.batch_norm,
            RECOMPUTE_BATCHES,
            "batch_norm has no recomputed, so it is not used; add it",
        )
        if problems:
            raise RecipeError(problems)
        return self


class Curvature(Measure):
    """Trace and largest eigenvalue of the training loss's Hessian.

    Attributes:
        batches: of the Hessian, which is their exact mean; null is the whole training split.
        probes: Rademacher vectors of the trace (Hutchinson 1990).
        tolerance: the eigenvalue has converged once |H v - lambda v| is below this share of H's largest eigenvalue
            in size, |v| = 1.
        max_iterations: most products with the Hessian that the eigenvalue may take. Their vectors are held: this many
            copies of the parameters.
    """

    batches: int | None = Field(8, ge=1)
    probes: int = Field(10, ge=1)
    tolerance: float = Field(1e-3, gt=0, lt=1)
    max_iterations: int = Field(40, ge=1)


class Sharpness(Measure):
    """Loss at the worst point of a neighbourhood less the loss at theta, the quantity that training minimises (eq 1).

    Attributes:
        metrics: neighbourhoods, of `trainables.sharpness.METRICS`.
        gamma: their radii.
        eta: for `fsam` and `asam_official`, each value with each of them; not named, 1 for `fsam` and 0.01 for
            `asam_official`.
        batches: of the loss; null is the whole training split.
        per_batch: false is one worst point for all images together; true is one for each batch and their mean, as in
            training with minibatches.
    """

    metrics: tuple[Literal["sam", "asam_official", "asam_eq5", "fsam"], ...] = Field(("sam",), strict=False)
    gamma: tuple[float, ...] = Field((0.01, 0.02, 0.05, 0.1, 0.2), strict=False)
    eta: tuple[float, ...] | None = Field(None, strict=False)
    batches: int | None = Field(None, ge=1)
    per_batch: bool = False

    @field_validator("metrics")
    @classmethod
    def _named_once(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        return _once(metrics, ("sam", "asam_official", "asam_eq5", "fsam"))

    @field_validator("gamma")
    @classmethod
    def _radii(cls, gamma: tuple[float, ...]) -> tuple[float, ...]:
        return _increasing(gamma, "radii", above_zero=True)

    @field_validator("eta")
    @classmethod
    def _etas(cls, eta: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if eta is None else _increasing(eta, "values", above_zero=False)

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        problems: list[Problem] = []
        refusal = f"metrics {', '.join(self.metrics)} do not use it; fsam and asam_official do"
        self._used(problems, "eta", any(metric in ETA for metric in self.metrics), None, refusal)
        if problems:
            raise RecipeError(problems)
        return self

    def etas(self, metric: str) -> tuple[float | None, ...]:
        """The values of eta that `metric` is measured with; (None,) where it has no eta."""
        if metric not in ETA:
            return (None,)
        return (ETA[metric],) if self.eta is None else self.eta


MEASURES: dict[str, type[Measure]] = {
    "perturbation": Perturbation,
    "curvature": Curvature,
    "sharpness": Sharpness,
}


def check(settings: Mapping[str, Any]) -> dict[str, Measure]:
    """Check what a study writes under `measures`: the name of each measure with its settings, null for all defaults.

    Raises:
        RecipeError: with every problem found; keys are relative to `measures`, such as `perturbation.alpha`.
    """
    if not isinstance(settings, Mapping):
        raise RecipeError([Problem("", f"{settings!r} is not a mapping from measures ({_names()}) to their settings")])
    problems: list[Problem] = []
    found: dict[str, Measure] = {}
    for name, given in settings.items():
        if name not in MEASURES:
            message = f"unknown measure{nearest(str(name), MEASURES)} (known: {_names()})"
            problems.append(Problem(str(name), message))
            continue
        try:
            found[name] = _measure(MEASURES[name], given)
        except RecipeError as error:
            problems += [Problem(f"{name}.{p.key}" if p.key else name, p.message, p.unused) for p in error.problems]
    if problems:
        raise RecipeError(problems)
    return found


def _measure(kind: type[Measure], given: Any) -> Measure:
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise RecipeError([Problem("", f"{given!r} is not a mapping of settings; leave it empty for the defaults")])
    odd = [key for key in given if not isinstance(key, str)]
    if odd:
        raise RecipeError([Problem("", f"the key {key!r} is not text") for key in odd])
    try:
        return kind(**given)
    except ValidationError as error:
        raise RecipeError(explain(error, kind.model_fields)[0]) from None


def _increasing(numbers: tuple[float, ...], noun: str, *, above_zero: bool) -> tuple[float, ...]:
    if not numbers:
        raise ValueError(f"has no {noun}; name at least one or leave it out for the default")
    for number in numbers:
        if not math.isfinite(number):
            raise ValueError(f"{number} is not a finite number")
        if number < 0 or (above_zero and number == 0):
            raise ValueError(f"{number:g} is {'not above 0' if above_zero else 'below 0'}")
    for one, following in pairwise(numbers):
        if not one < following:
            raise ValueError(f"must increase, but {following:g} follows {one:g}")
    # -0.0 is 0.0, and 1 is 1.0, under one identity
    return tuple(float(number) + 0.0 for number in numbers)


def _once(names: tuple[str, ...], order: Iterable[str]) -> tuple[str, ...]:
    if not names:
        raise ValueError(f"names nothing; name at least one of {', '.join(order)}")
    if len(set(names)) < len(names):
        raise ValueError("names one of them twice")
    rank: Callable[[str], int] = list(order).index
    return tuple(sorted(names, key=rank))


def _names() -> str:
    return ", ".join(sorted(MEASURES))
