"""Training, validation and test images of a study: one split for all its trials, whatever their seeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.data.datasets import Source
from trainables.data.images import Images
from trainables.data.stratify import stratified

#: Of ImageNet's training images, R, G, B in uint8 units (0.485 .. in units of 1), as in torchvision's weights.
IMAGENET_MEAN = tuple(255 * v for v in (0.485, 0.456, 0.406))
IMAGENET_STD = tuple(255 * v for v in (0.229, 0.224, 0.225))


@dataclass(frozen=True, eq=False)
class Splits:
    """What a trial trains on, is judged by, and is measured on once at the end.

    Attributes:
        train: images to train on.
        validation: images held out of the training set; a scheduler sees only these.
        test: the data set's test images, untouched.
        classes: number of classes.
        mean: (channels,) float32, of the training images' pixels in uint8 units; ImageNet's for images that stream.
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

    def normalised_as(self, kind: Literal["data", "imagenet", "half"] | str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation to normalise with, (channels,) float32 each, in uint8 units.

        Args:
            kind: `data` is the training images' own, `imagenet` ImageNet's (torchvision's weights), `half` 127.5 for
                both (the published ViT weights), so that pixels become -1 .. 1.

        Raises:
            ValueError: the kind is unknown, or the images have other than ImageNet's three channels.
        """
        if kind == "data":
            return self.mean, self.std
        if kind == "half":
            half = torch.full_like(self.mean, 127.5)
            return half, half.clone()
        if kind != "imagenet":
            raise ValueError(f"normalisation {kind!r} is not data, imagenet or half")
        if len(self.mean) != 3:
            raise ValueError(f"ImageNet's mean is of 3 channels, these images have {len(self.mean)}; use data or half")
        return self.mean.new_tensor(IMAGENET_MEAN), self.mean.new_tensor(IMAGENET_STD)


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
    train, validation = split_positions(source.train.y.cpu().numpy(), validation_size, split_seed, train_size)
    train_index, validation_index = torch.from_numpy(train), torch.from_numpy(validation)
    kept = source.train.take(train_index)
    mean, std = statistics([kept.x])
    return Splits(
        train=kept,
        validation=source.train.take(validation_index),
        test=source.test,
        classes=source.classes,
        mean=mean,
        std=std,
        train_index=train_index,
        validation_index=validation_index,
    )


def split_positions(
    labels: NDArray[np.integer], validation_size: int, split_seed: int, train_size: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which training images are trained on and which are held out, ascending, from their labels alone: see `split`.

    Raises:
        ValueError: the sizes do not fit the number of labels.
    """
    n = len(labels)
    if not 1 <= validation_size < n:
        raise ValueError(f"validation_size {validation_size} is not between 1 and {n - 1}, of {n} training images")
    validation = stratified(labels, validation_size, split_seed, "validation split")
    train = np.setdiff1d(np.arange(n), validation)
    if train_size is not None:
        if not 1 <= train_size <= len(train):
            raise ValueError(
                f"train_size {train_size} is not between 1 and {len(train)}"
                f" ({n} training images less {validation_size} for validation)"
            )
        train = train[stratified(labels[train], train_size, split_seed, "training subset")]
    return train, validation


def statistics(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each channel's pixels, both (channels,) float32 on the images' device.

    They are counted in exact integers and divided in float64, so that every device finds the same bits, however the
    images are cut into batches.

    Args:
        batches: (N, channels, H, W) uint8 each, at least one image in all.
    """
    counts, device = torch.zeros((), dtype=torch.int64), torch.device("cpu")
    for batch in batches:
        device = batch.device
        counts = counts + torch.stack([torch.bincount(c.flatten(), minlength=256).cpu() for c in batch.unbind(1)])
    values = torch.arange(256, dtype=torch.int64)
    mean, std = [], []
    for channel in counts:
        n, total, squares = (int((channel * values**power).sum()) for power in range(3))
        variance = (n * squares - total * total) / n**2
        mean.append(total / n)
        # A constant channel carries nothing: it becomes 0, not a division by 0.
        std.append(variance**0.5 if variance > 0 else 1.0)
    return (
        torch.tensor(mean, dtype=torch.float64).to(device, torch.float32),
        torch.tensor(std, dtype=torch.float64).to(device, torch.float32),
    )
