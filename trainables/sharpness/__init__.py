"""The sharpness-aware family (SAM, ASAM, Fisher SAM): the probe alone, and one optimiser around torch's.

metric           the formula and its four diagonals; `probe`
optimiser        `SharpnessAware`
fisher           `per_example_squares` (eq 11)
diagnostics      what is measured of a probe
kept             what a step puts back: parameters, buffers
gather           what a step reads from the parameter groups
randomness       the same draws in both passes
"""

from trainables.sharpness.fisher import per_example_squares
from trainables.sharpness.metric import METRICS, probe, scaled_by_role
from trainables.sharpness.optimiser import SharpnessAware

__all__ = ["METRICS", "SharpnessAware", "per_example_squares", "probe", "scaled_by_role"]
