"""The learning rate as a function of the epoch: nothing to save, nothing that rounding can drift."""

from __future__ import annotations

import math

from trainables.recipe import Recipe


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Learning rate of the epoch that follows `epoch` finished ones.

    The cosine (Loshchilov & Hutter 2016, section 5.1 of the paper) falls once an epoch, as in ASAM's published code,
    over the recipe's full length: a trial that is stopped early has trained on the beginning of the same curve.
    """
    assert recipe.lr is not None  # a recipe resolves it
    if recipe.schedule == "constant":
        return recipe.lr
    return recipe.lr * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
