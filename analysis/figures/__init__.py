"""Frames -> Axes. Nothing is computed here: `tables` and `compare` do that, so that every pixel is in a table too.

heatmap(marked(replicates))            one pixel a cell, statuses hatched, references beside the grid
heatmaps(cells, over="label_noise")    the same, a panel a value, one colour scale
difference_map(matched_differences(...))   Fisher SAM minus SAM at the same gamma
sensitivity(marked(replicates), "gamma")   one setting on the axis, a line an arm, intervals
learning_curves(curves(history, cells))    mean over the seeds by epoch
learning_panels(curves, titles, arms)      the same, a panel a condition
label_noise(also(...), arms)               outcomes against the rate of label noise
robustness(curves_of(...))                 accuracy against the length of a perturbation
slices(cells, axes), search_course(course(cells))   what a search found
parallel(cells, axes), importances(importance(cells, axes))   a line a cell; what each setting explains
accuracy_against_cost(at_equal_cost(...))   against minibatch gradients and seconds
diagnostics(diagnostics(history, cells))   the probe's direction and length by epoch
sharpness_against_accuracy(against_accuracy(...))   a point a cell
survival(audit.survival(decisions, cells))   how many cells reached each rung, and were stopped there
trade_off(audit(...).summary()), rank_correlation(correlations(...))   what early stopping would save and lose
save(axes, "folder/heatmap")           PNG and SVG
"""

from analysis.figures.cost import accuracy_against_cost
from analysis.figures.diagnostics import diagnostics
from analysis.figures.differences import difference_map
from analysis.figures.heatmaps import heatmap, heatmaps
from analysis.figures.lines import learning_curves, learning_panels, sensitivity
from analysis.figures.noise import label_noise
from analysis.figures.parallel import importances, parallel
from analysis.figures.robustness import robustness
from analysis.figures.search import search_course, slices
from analysis.figures.sharpness import sharpness_against_accuracy
from analysis.figures.stopping import rank_correlation, survival, trade_off
from analysis.figures.style import save

__all__ = [
    "accuracy_against_cost",
    "diagnostics",
    "difference_map",
    "heatmap",
    "heatmaps",
    "importances",
    "label_noise",
    "learning_curves",
    "learning_panels",
    "parallel",
    "rank_correlation",
    "robustness",
    "save",
    "search_course",
    "sensitivity",
    "sharpness_against_accuracy",
    "slices",
    "survival",
    "trade_off",
]
