"""Data that stay on the device from one trial to the next: a warm worker loads a split once.

A worker trains many cells of one study, and all of them read the same few megabytes. The two most recent splits are
kept; a third one (a study that varies the data set) evicts the oldest.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from trainables.data import load
from trainables.data.splits import Splits, split
from trainables.recipe import Recipe


def resident(recipe: Recipe, root: str | None, device: torch.device) -> Splits:
    """The recipe's splits on `device`, uint8 images with statistics of the training split.

    Raises:
        trainables.data.DataError: the files are missing or damaged.
    """
    assert recipe.validation_size is not None  # a recipe resolves it
    return _resident(recipe.dataset, root, str(device), recipe.validation_size, recipe.split_seed, recipe.train_size)


@lru_cache(maxsize=2)
def _resident(
    dataset: str, root: str | None, device: str, validation_size: int, split_seed: int, train_size: int | None
) -> Splits:
    splits = split(load(dataset, root), validation_size=validation_size, split_seed=split_seed, train_size=train_size)

    return replace(
        splits,
        train=splits.train.to(device),
        validation=splits.validation.to(device),
        test=splits.test.to(device),
        mean=splits.mean.to(device),
        std=splits.std.to(device),
    )
