"""Frames -> Axes. Nothing is computed here: `tables` and `compare` do that, so that every pixel is in a table too.

heatmap(marked(replicates))            one pixel a cell, statuses hatched, references beside the grid
sensitivity(marked(replicates), "gamma")   one setting on the axis, a line an arm, intervals
learning_curves(curves(history, cells))    mean over the seeds by epoch
save(axes, "folder/heatmap")           PNG and SVG
"""

from analysis.figures.heatmaps import heatmap
from analysis.figures.lines import learning_curves, sensitivity
from analysis.figures.style import save

__all__ = ["heatmap", "learning_curves", "save", "sensitivity"]
