"""Training, validation and test images of a study: one split for all its trials, whatever their seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.data.datasets import Images, Source
from trainables.data.stratify import stratified


@dataclass(frozen=True, eq=False)
class Splits:
    """What a trial trains on, is judged by, and is measured on once at the end.

    Attributes:
        train: images to train on.
        validation: images held out of the training set; a scheduler sees only these.
        test: the data set's test images, untouched.
        classes: number of classes.
        mean: (channels,) float32, of the training images' pixels in uint8 units.
        std: (channels,) float32, their population standard deviation, so that `(x.float() - mean) / std` has mean 0 and
            variance 1; 1 for a channel that is constant.
        train_index: (len(train),) int64 on the CPU, ascending positions in the source's training set.
        validation_index: (len(validation),) likewise.
    """

    train: Images
    validation: Images
    test: Images
    classes: int
    mean: Tensor
    std: Tensor
    train_index: Tensor
    validation_index: Tensor


def split(source: Source, *, validation_size: int, split_seed: int, train_size: int | None = None) -> Splits:
    """Split a source's training set, stratified by class, into training and validation images.

    The sizes are exact. The validation images depend on `validation_size` and `split_seed` alone: studies with
    different `train_size` are judged by the same images.

    Args:
        source: the data set.
        validation_size: images to hold out.
        split_seed: fixes the draws, in every version of NumPy and torch.
        train_size: images to keep of the rest, also stratified; None keeps all.

    Raises:
        ValueError: the sizes do not fit the data set.
    """
    n = len(source.train)
    if not 1 <= validation_size < n:
        raise ValueError(f"validation_size {validation_size} is not between 1 and {n - 1}, of {n} training images")
    labels = source.train.y.cpu().numpy()
    validation = stratified(labels, validation_size, split_seed, "validation split")
    train = np.setdiff1d(np.arange(n), validation)
    if train_size is not None:
        if not 1 <= train_size <= len(train):
            raise ValueError(
                f"train_size {train_size} is not between 1 and {len(train)}"
                f" ({n} training images less {validation_size} for validation)"
            )
        train = train[stratified(labels[train], train_size, split_seed, "training subset")]
    train_index, validation_index = torch.from_numpy(train), torch.from_numpy(validation)
    kept = _take(source.train, train_index)
    mean, std = statistics(kept.x)
    return Splits(
        train=kept,
        validation=_take(source.train, validation_index),
        test=source.test,
        classes=source.classes,
        mean=mean,
        std=std,
        train_index=train_index,
        validation_index=validation_index,
    )


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each channel's pixels, both (channels,) float32 on x's device.

    They are counted in exact integers and divided in float64, so that every device finds the same bits.

    Args:
        x: (N, channels, H, W) uint8, N above 0.
    """
    values = torch.arange(256, dtype=torch.int64)
    mean, std = [], []
    for channel in x.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256).cpu()
        n, total, squares = (int((counts * values**power).sum()) for power in range(3))
        variance = (n * squares - total * total) / n**2
        mean.append(total / n)
        # A constant channel carries nothing: it becomes 0, not a division by 0.
        std.append(variance**0.5 if variance > 0 else 1.0)
    return (
        torch.tensor(mean, dtype=torch.float64).to(x.device, torch.float32),
        torch.tensor(std, dtype=torch.float64).to(x.device, torch.float32),
    )


def _take(images: Images, index: Tensor) -> Images:
    there = index.to(images.x.device)
    return Images(images.x[there], images.y[there])
