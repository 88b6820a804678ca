"""A recipe's images, opened once and kept from one trial to the next.

A worker trains many cells of one study, and all of them read the same images. The two most recent splits are kept; a
third one (a study that varies the data set) evicts the oldest. Image files that fit in memory are decoded once for all
splits of their data set; others stream (see `trainables.data.streamed`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.data.datasets import load
from trainables.data.decode import stored
from trainables.data.files import DATASETS, DataError
from trainables.data.images import Images, Resident, stored_side
from trainables.data.listing import Listing, listed
from trainables.data.splits import IMAGENET_MEAN, IMAGENET_STD, Splits, split, split_positions, statistics
from trainables.data.stratify import stratified
from trainables.data.streamed import Files, Streamed
from trainables.recipe import Recipe

#: Bytes of decoded images up to which they are kept in the device's memory: 43,000 images of 256 x 256 pixels.
RESIDENT_LIMIT = 8 << 30

#: Images of a batch of which pixels are counted at once.
_COUNTED = 256


def opened(recipe: Recipe, root: str | None, device: torch.device) -> Splits:
    """The recipe's splits, giving out uint8 images on `device`.

    Images of a fixed size are given out as they are, whatever the recipe's `image_side` (the augmentation resizes them,
    last of all); images of any size are squares of `image_side` pixels.

    Raises:
        trainables.data.DataError: files are missing or damaged, or are fewer than the recipe asks for.
    """
    if DATASETS[recipe.dataset].side is not None:
        assert recipe.validation_size is not None  # a recipe resolves it where it is known
        sizes = _Sizes(recipe.validation_size, recipe.train_size, recipe.test_size, recipe.split_seed)
        return _fixed(recipe.dataset, root, str(device), sizes)
    assert recipe.image_side is not None
    key = _Key(recipe.dataset, root, recipe.folder, recipe.image_side, str(device), _workers(recipe.loader_workers))
    return _any_size(key, _Sizes(recipe.validation_size, recipe.train_size, recipe.test_size, recipe.split_seed))


class _Sizes(NamedTuple):
    """How many images of each split, and which."""

    validation: int | None
    train: int | None
    test: int | None
    seed: int

    def test_positions(self, labels: NDArray[np.integer]) -> NDArray[np.int64]:
        """Which test images are measured: stratified, the same for every study with this size and seed."""
        if self.test is None:
            return np.arange(len(labels))
        return stratified(labels, self.test, self.seed, "test subset")


@lru_cache(maxsize=2)
def _fixed(dataset: str, root: str | None, device: str, sizes: _Sizes) -> Splits:
    assert sizes.validation is not None
    try:
        splits = split(
            load(dataset, root), validation_size=sizes.validation, split_seed=sizes.seed, train_size=sizes.train
        )
        test = splits.test
        assert isinstance(test, Resident)
        if sizes.test is not None:
            test = test.take(torch.from_numpy(sizes.test_positions(test.y.numpy())))
    except ValueError as error:
        raise DataError(f"{dataset}: {error}") from None

    def moved(images: Images) -> Images:
        assert isinstance(images, Resident)
        return images.to(device)

    return replace(
        splits,
        train=moved(splits.train),
        validation=moved(splits.validation),
        test=moved(test),
        mean=splits.mean.to(device),
        std=splits.std.to(device),
    )


class _Key(NamedTuple):
    """What decides how the images of a data set are opened."""

    dataset: str
    root: str | None
    folder: str | None
    side: int
    device: str
    workers: int


@dataclass(frozen=True, eq=False)
class _Decoded:
    listing: Listing
    pixels: Tensor | Files  # uint8, or the files themselves: of the training images and then the test images


@lru_cache(maxsize=2)
def _any_size(key: _Key, sizes: _Sizes) -> Splits:
    decoded = _decoded(key)
    listing, device = decoded.listing, torch.device(key.device)
    labels = np.array([*listing.train_labels, *listing.test_labels], dtype=np.int64)
    n = len(listing.train)
    try:
        train, validation = split_positions(labels[:n], sizes.validation or max(1, n // 10), sizes.seed, sizes.train)
        test = n + sizes.test_positions(labels[n:])
    except ValueError as error:
        raise DataError(f"{key.dataset}: {error}") from None

    def part(rows: NDArray[np.int64]) -> Images:
        y = torch.from_numpy(labels[rows]).to(device)
        if isinstance(decoded.pixels, Files):
            return Streamed(decoded.pixels, rows, y)
        return Resident(decoded.pixels, y, key.side, torch.from_numpy(rows).to(device))

    kept = part(train)
    if isinstance(decoded.pixels, Files):
        mean, std = torch.tensor(IMAGENET_MEAN, device=device), torch.tensor(IMAGENET_STD, device=device)
    else:
        mean, std = statistics(kept.batches(torch.arange(len(kept)).split(_COUNTED)))
    return Splits(
        train=kept,
        validation=part(validation),
        test=part(test),
        classes=listing.classes,
        mean=mean,
        std=std,
        train_index=torch.from_numpy(train),
        validation_index=torch.from_numpy(validation),
    )


@lru_cache(maxsize=1)
def _decoded(key: _Key) -> _Decoded:
    """The files of a data set and their pixels: one copy of these, or one set of processes, for all its splits."""
    listing = listed(key.dataset, key.root, key.folder)
    base, paths = str(listing.base), [*listing.train, *listing.test]
    if DATASETS[key.dataset].streams or len(paths) * 3 * stored_side(key.side) ** 2 > RESIDENT_LIMIT:
        device = torch.device(key.device)
        return _Decoded(listing, Files(key.dataset, base, paths, side=key.side, device=device, workers=key.workers))
    whole = [os.path.join(base, path) for path in paths]
    return _Decoded(listing, _pixels(whole, key.side, key.workers).to(key.device))


def _pixels(paths: Sequence[str], side: int, workers: int) -> Tensor:
    """All images, (N, 3, stored, stored) uint8. Threads are enough: Pillow decodes and resizes outside of the GIL."""
    x = torch.empty(len(paths), 3, stored_side(side), stored_side(side), dtype=torch.uint8)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for row, pixels in zip(x.numpy(), pool.map(partial(stored, side=side), paths), strict=True):
                row[:] = pixels
        except DataError:
            pool.shutdown(cancel_futures=True)
            raise
    return x


def _workers(asked: int | None) -> int:
    if asked is not None:
        return asked
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
