"""What is measured on a trained model: Fig 4's robustness, the Hessian's trace and top eigenvalue, sharpness.

settings       what a study file says of each measure, and its check; no torch
subject        what a measure is given: a model, its batches, its loss
held           the model as it was found, whatever a measure does to it
passes         sums over batches: loss, accuracy, gradient
perturbation   section 5.4: accuracy at theta + alpha g / |g|
curvature      Hessian trace and largest eigenvalue
sharpness      loss at the worst point of a neighbourhood less the loss at theta

This file imports no torch, so that a study's plan is checked in a moment.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from trainables.measures.settings import MEASURES, Measure, check

if TYPE_CHECKING:
    from trainables.measures.subject import Row, Subject

__all__ = ["MEASURES", "Measure", "check", "run"]


def run(name: str, subject: Subject, settings: Measure) -> list[Row]:
    """Measure one trained model; a function of the model, the settings and the subject's seed.

    The model is afterwards as it was found, bit for bit: parameters, buffers, modes, gradients. Torch's global
    generators are where they were.

    Args:
        name: a key of `MEASURES`.
        subject: the model with its data.
        settings: of this measure, as `check` returns them.

    Returns:
        Tidy rows; the columns are described by the measure's module.

    Raises:
        ValueError: the name is unknown, the settings belong to another measure, or the model has no parameter
            that requires grad.
    """
    if name not in MEASURES:
        raise ValueError(f"unknown measure {name!r} (known: {', '.join(sorted(MEASURES))})")
    if not isinstance(settings, MEASURES[name]):
        raise ValueError(f"{name}: needs settings of type {MEASURES[name].__name__}, not {type(settings).__name__}")
    rows: list[Row] = import_module(f"trainables.measures.{name}").measure(subject, settings)
    return rows
