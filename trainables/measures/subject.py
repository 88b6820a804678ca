"""What a measure is given: a trained model, with the batches and the loss that it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainables.randomness import stream

Split = Literal["train", "test"]
Batch = tuple[Tensor, Tensor]
Row = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Subject:
    """A trained model and what it is measured with.

    Attributes:
        model: the network, in any mode. A measure leaves it as it found it, bit for bit.
        seed: of the replicate; what a measure draws is a function of it.
        device: where the model and the batches are.
        batches: `batches(split, limit)` gives (x, y), x as the model takes it: normalised, not augmented, in the
            model's dtype; y (n,) int64. Training labels are the ones that were trained on, noise included, and
            training batches are as large as in training. `limit` is a number of batches, None for the whole split.
            The same arguments give the same batches in the same order; see `batch_indices`.
        loss: `loss(logits, y)`, 0-d: the mean loss that was trained, label smoothing included, without weight decay.
        forward: `forward(x)`, the model's logits (n, classes) in at least float32, under the recipe's precision.
    """

    model: nn.Module
    seed: int
    device: torch.device
    batches: Callable[[Split, int | None], Iterable[Batch]]
    loss: Callable[[Tensor, Tensor], Tensor]
    forward: Callable[[Tensor], Tensor]


def batch_indices(images: int, size: int, limit: int | None, *, seed: int, split: Split) -> Iterator[Tensor]:
    """Positions of each batch's images: a permutation fixed by seed and split, cut into batches.

    A limit keeps the first batches: a random subset of the images, and a larger limit a superset of it. The last batch
    of the whole split may be short.

    Args:
        images: of the split. size: images of a batch. limit: batches, at most; None for all.

    Yields:
        (n,) int64 on the CPU, the same on every device.
    """
    order = torch.randperm(images, generator=stream(seed, f"measured batches, {split}"))
    yield from order.split(size)[:limit]
