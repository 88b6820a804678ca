"""Frames -> Axes. Nothing is computed here: `tables` and `compare` do that, so that every pixel is in a table too.

heatmap(marked(replicates))            one pixel a cell, statuses hatched, references beside the grid
sensitivity(marked(replicates), "gamma")   one setting on the axis, a line an arm, intervals
learning_curves(curves(history, cells))    mean over the seeds by epoch
learning_panels(curves, titles, arms)      the same, a panel a condition
label_noise(also(...), arms)               outcomes against the rate of label noise
robustness(curves_of(...))                 accuracy against the length of a perturbation
slices(cells, axes), search_course(course(cells))   what a search found
save(axes, "folder/heatmap")           PNG and SVG
"""

from analysis.figures.heatmaps import heatmap
from analysis.figures.lines import learning_curves, learning_panels, sensitivity
from analysis.figures.noise import label_noise
from analysis.figures.robustness import robustness
from analysis.figures.search import search_course, slices
from analysis.figures.style import save

__all__ = [
    "heatmap",
    "label_noise",
    "learning_curves",
    "learning_panels",
    "robustness",
    "save",
    "search_course",
    "sensitivity",
    "slices",
]
