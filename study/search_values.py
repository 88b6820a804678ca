"""A search's settings as Optuna has them: distributions, stored values, samplers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from study.search_space import Axis, Search, same


class Values:
    """Translates between a recipe's settings (plain JSON values) and Optuna's parameters.

    The two differ in lists alone: a database holds `[crop, flip]` as the text `crop+flip`, as the tables do.
    """

    def __init__(self, space: Mapping[str, Axis]) -> None:
        self._space = dict(space)
        # Sorted, so that a study file whose axes change places draws the same.
        self.distributions = {key: _distribution(space[key]) for key in sorted(space)}

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters as settings, in the order of the study's space."""
        return {key: _plain(axis, params[key]) for key, axis in self._space.items()}

    def params(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings, of all axes or of some, as Optuna's parameters."""
        return {key: _encoded(self._space[key], value) for key, value in settings.items()}

    def of(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The parameters at which the space has a recipe's settings, or None if it does not have them.

        A recipe's settings leave out what is None, which can be a choice.
        """
        found = {key: settings.get(key) for key in self._space}
        return self.params(found) if all(axis.has(found[key]) for key, axis in self._space.items()) else None

    def fit(self, params: Mapping[str, Any]) -> bool:
        """Whether parameters, e.g. a database's, are of this space."""
        return params.keys() == self._space.keys() and all(
            axis.has(params[key]) if axis.choices is None else params[key] in _stored(axis)
            for key, axis in self._space.items()
        )


def sampler(settings: Search, seed: int, at_random: bool) -> optuna.samplers.BaseSampler:
    """A fresh sampler, from a 32-bit seed; `at_random` stands in for any other."""
    if at_random or settings.sampler == "random" or not settings.space:
        return optuna.samplers.RandomSampler(seed=seed)
    if settings.sampler == "tpe":
        # Cells in training count as bad ones, so that two asks in a row do not suggest the same.
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=settings.startup or 1, constant_liar=True)
    if settings.sampler == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=settings.startup or 1)
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=settings.population or 2)


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.choices is not None:
        return CategoricalDistribution(_stored(axis))
    low, high, step = axis.low, axis.high, axis.step
    if axis.whole:
        return IntDistribution(cast(int, low), cast(int, high), log=axis.log, step=cast(int, step or 1))
    return FloatDistribution(cast(float, low), cast(float, high), log=axis.log, step=step)


def _stored(axis: Axis) -> list[CategoricalChoiceType]:
    assert axis.choices is not None
    return [("+".join(map(str, choice)) or "none") if isinstance(choice, list) else choice for choice in axis.choices]


def _plain(axis: Axis, value: Any) -> Any:
    if axis.choices is None:
        return int(value) if axis.whole else float(value)
    choice = next(c for c, stored in zip(axis.choices, _stored(axis), strict=True) if same(stored, value))
    return list(choice) if isinstance(choice, list) else choice


def _encoded(axis: Axis, value: Any) -> Any:
    if axis.choices is None:
        return int(value) if axis.whole else float(value)
    return next(s for c, s in zip(axis.choices, _stored(axis), strict=True) if same(c, value))
