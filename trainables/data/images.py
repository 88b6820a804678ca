"""Images and their labels, given out in batches of uint8 pixels, wherever the pixels come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.data.resized_crop import resized_crop


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
    def batches(self, index: Sequence[Tensor], *, crop_seed: int | None = None) -> Iterator[Tensor]:
        """The images of each index, one batch after the other.

        Args:
            index: (B,) int64 positions in [0, N) for each batch, on any device (the images' own is the quickest).
            crop_seed: give random resized crops (see `trainables.data.resized_crop`) that this seed fixes; without it
                the images as they are evaluated.

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

    def batches(self, index: Sequence[Tensor], *, crop_seed: int | None = None) -> Iterator[Tensor]:
        """See `Images.batches`. One generator draws all the crops: they depend on the order of the images."""
        device = self.x.device
        generator = None if crop_seed is None else torch.Generator(device).manual_seed(crop_seed)
        margin = centred(self.x.shape[2], self.side)
        centre = self.x[:, :, margin : margin + self.side, margin : margin + self.side]
        for batch in index:
            there = batch.to(device)
            if self.rows is not None:
                there = self.rows[there]
            yield centre[there] if generator is None else resized_crop(self.x[there], self.side, generator)

    def take(self, index: Tensor) -> Resident:
        """Some of the images, their pixels copied: a part of a small set is read faster from memory of its own."""
        there = index.to(self.x.device)
        return Resident(self.x[there if self.rows is None else self.rows[there]], self.y[there], self.given)

    def to(self, device: str | torch.device) -> Resident:
        """The same images on another device."""
        rows = None if self.rows is None else self.rows.to(device)
        return Resident(self.x.to(device), self.y.to(device), self.given, rows)


def centred(whole: int, part: int) -> int:
    """Where the centre `part` of `whole` pixels starts, as torchvision's CenterCrop rounds it."""
    return round((whole - part) / 2)


def stored_side(side: int) -> int:
    """Pixels to which an image's shorter side is resized before its centre of `side` pixels is cut out: 256 for 224."""
    return -(-side * 8 // 7)
