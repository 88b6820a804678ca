"""Images and their labels, given out in batches of uint8 pixels, wherever the pixels come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.data.drawn import sent
from trainables.data.resized_crop import draw, resized_crop


class Images(ABC):
    """Images in one order.

    Attributes:
        y: int64, (N,), on the device that the batches come on.
    """

    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of an image."""

    @property
    @abstractmethod
    def side(self) -> int:
        """Pixels of the side of an image as it is given out."""

    @abstractmethod
    def batches(
        self,
        index: Sequence[Tensor],
        *,
        crop_seed: int | None = None,
        parts: Sequence[slice] | None = None,
        together: int = 1,
    ) -> Iterator[Tensor]:
        """The images of each index, one batch after the other.

        Args:
            index: (B,) int64 positions in [0, N) for each batch, on any device (the images' own is the quickest).
            crop_seed: give random resized crops (see `trainables.data.resized_crop`) that this seed fixes; without it
                the images as they are evaluated.
            parts: of each batch, the images that are given out, as they would be with all of it; all if missing.
            together: batches that are given out as one, end to end; the last may be of fewer.

        Yields:
            (B, channels, side, side) uint8 on the device.

        Raises:
            trainables.data.DataError: an image cannot be decoded (not from memory).
        """


@dataclass(frozen=True, eq=False)
class Resident(Images):
    """Images whose pixels are in the device's memory.

    Attributes:
        x: uint8, (M, channels, stored, stored).
        y: int64, (N,).
        given: side of the images given out: the centre of the stored ones; None gives them whole.
        rows: int64, (N,), which of x are the images; None: all of x, in order. So that several splits share one x.
    """

    x: Tensor
    y: Tensor
    given: int | None = None
    rows: Tensor | None = None

    @property
    def channels(self) -> int:
        return self.x.shape[1]

    @property
    def side(self) -> int:
        return self.given or self.x.shape[2]

    def batches(
        self,
        index: Sequence[Tensor],
        *,
        crop_seed: int | None = None,
        parts: Sequence[slice] | None = None,
        together: int = 1,
    ) -> Iterator[Tensor]:
        """See `Images.batches`. One generator, on the CPU, draws all the crops: they depend on the images' order."""
        device, (height, width) = self.x.device, self.x.shape[2:]
        generator = None if crop_seed is None else torch.Generator().manual_seed(crop_seed)
        margin = centred(height, self.side)
        centre = self.x[:, :, margin : margin + self.side, margin : margin + self.side]
        for first in range(0, len(index), together):
            some = slice(first, first + together)
            there = joined(index[some], parts and parts[some]).to(device)
            if self.rows is not None:
                there = self.rows[there]
            if generator is None:
                yield centre[there]
            else:
                box = [draw(len(batch), height, width, generator) for batch in index[some]]
                yield resized_crop(self.x[there], sent(joined(box, parts and parts[some]), device), self.side)

    def take(self, index: Tensor) -> Resident:
        """Some of the images, their pixels copied: a part of a small set is read faster from memory of its own."""
        there = index.to(self.x.device)
        return Resident(self.x[there if self.rows is None else self.rows[there]], self.y[there], self.given)

    def to(self, device: str | torch.device) -> Resident:
        """The same images on another device."""
        rows = None if self.rows is None else self.rows.to(device)
        return Resident(self.x.to(device), self.y.to(device), self.given, rows)


def joined(batches: Sequence[Tensor], parts: Sequence[slice] | None) -> Tensor:
    """Parts of batches, or all of each, end to end."""
    if parts is not None:
        batches = [batch[part] for batch, part in zip(batches, parts, strict=True)]
    return batches[0] if len(batches) == 1 else torch.cat([*batches])


def centred(whole: int, part: int) -> int:
    """Where the centre `part` of `whole` pixels starts, as torchvision's CenterCrop rounds it."""
    return round((whole - part) / 2)


def stored_side(side: int) -> int:
    """Pixels to which an image's shorter side is resized before its centre of `side` pixels is cut out: 256 for 224."""
    return -(-side * 8 // 7)
