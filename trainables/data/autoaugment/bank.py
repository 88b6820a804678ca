"""A set of settings made ready for images of one shape, and their application: one setting to each image of a batch.

The settings of a policy are few (about 50), so whatever does not depend on pixels is computed once and kept: value
tables, source positions, factors. Then a batch is handled in one of two ways, with equal results:

- on a CPU its images are sorted by the kind of what is done to them, and every kind works on its own images;
- elsewhere every kind works on all images, those that it does not concern with an identity for a parameter. That costs
  the same whatever is drawn, and the host never waits for the device to learn how many there are of what. (On a CPU it
  would take 4 to 5 times as long: `python -m benchmarks augmentation`.)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from enum import IntEnum

import torch
from torch import Tensor

from trainables.data.autoaugment import blend, geometry, point
from trainables.data.autoaugment.strength import Setting, strength

#: Pixel values of a sorted batch that are worked on at a time: what is computed from them (up to 8 bytes a value) fits
#: into a cache. For 32x32 images 2^17 to 2^20 and no bound at all were equally fast; for 224x224 2^19 was the fastest.
PIECE = 2**19


class Kind(IntEnum):
    """How a setting is carried out; from FIXED on by tables of values."""

    NOTHING = 0
    GEOMETRY = 1
    COLOUR = 2
    SHARPNESS = 3
    FIXED = 4
    AUTOCONTRAST = 5
    EQUALIZE = 6
    CONTRAST = 7


_BLENDS = {"Color": Kind.COLOUR, "Sharpness": Kind.SHARPNESS}
_READ_OFF = {"AutoContrast": Kind.AUTOCONTRAST, "Equalize": Kind.EQUALIZE, "Contrast": Kind.CONTRAST}


def kind_of(setting: Setting, channels: int) -> Kind:
    """The kind of a setting on images of so many channels."""
    if setting.operation == "Identity" or (setting.operation == "Color" and channels == 1):
        return Kind.NOTHING
    if setting.operation in geometry.OPERATIONS:
        return Kind.GEOMETRY
    if setting.operation in point.FIXED:
        return Kind.FIXED
    return (_BLENDS | _READ_OFF)[setting.operation]


class Bank:
    """Settings for images of one shape on one device.

    Args:
        settings: what can be done to an image; the places in this tuple are its numbers.
        channels: of the images, 1 or 3.
        height: in pixels.
        width: likewise.
        fill: value of pixels that a shear, translation or rotation brings in from outside.
        device: where the images are.

    Raises:
        ValueError: images are neither grey nor RGB, a side is beyond `geometry.LARGEST_SIDE`, or fill is no pixel.
    """

    def __init__(
        self, settings: tuple[Setting, ...], channels: int, height: int, width: int, fill: int, device: torch.device
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"AutoAugment is for images of 1 (grey) or 3 (RGB) channels, not {channels}")
        if max(height, width) > geometry.LARGEST_SIDE:
            raise ValueError(f"AutoAugment is for sides up to {geometry.LARGEST_SIDE} pixels, not {height} x {width}")
        if not 0 <= fill <= 255:
            raise ValueError(f"fill {fill} is not a pixel value, 0 to 255")
        kinds = [kind_of(setting, channels) for setting in settings]
        self.fill = fill
        self.present = frozenset(kinds)
        self.kind = torch.tensor(kinds, device=device)
        nothing = Setting("Identity")
        self.table = torch.stack(
            [point.table(s if k is Kind.FIXED else nothing) for s, k in zip(settings, kinds, strict=True)]
        ).to(device)
        self.source, self.source_row = _sources(settings, kinds, height, width, device)
        self.colour = _factors(settings, "Color", device)
        self.sharpness = _factors(settings, "Sharpness", device)
        self.contrast = _factors(settings, "Contrast", device)

    def apply(self, x: Tensor, which: Tensor, *, sort: bool | None = None) -> Tensor:
        """Carry out `settings[which[n]]` on image n.

        Args:
            x: (N, C, H, W) uint8 of the bank's shape, on its device; left as it is.
            which: (N,) int64.
            sort: sort the batch by kind, which on anything but a CPU makes the host wait; by default on a CPU only.

        Returns:
            (N, C, H, W) uint8, contiguous.
        """
        if sort or (sort is None and x.device.type == "cpu"):
            return self._sorted(x, which)
        return self._everyone(x.contiguous(), which)

    def _sorted(self, x: Tensor, which: Tensor) -> Tensor:
        kinds = self.kind.index_select(0, which)
        kinds, order = kinds.sort(stable=True)
        x, which = x.index_select(0, order).contiguous(), which.index_select(0, order)

        for run, kind in _pieces(kinds, x):
            some, what = x[run], which[run]
            if kind is Kind.GEOMETRY:
                x[run] = self._resample(some, what)
            elif kind is Kind.COLOUR:
                x[run] = blend.colour(some, self.colour[what])
            elif kind is Kind.SHARPNESS:
                x[run] = blend.sharpness(some, self.sharpness[what])
            elif kind is Kind.AUTOCONTRAST:
                x[run] = point.look_up(some, point.autocontrast_tables(some))
            elif kind is Kind.EQUALIZE:
                x[run] = point.look_up(some, point.equalize_tables(some))
            elif kind is Kind.CONTRAST:
                x[run] = point.look_up(some, point.contrast_tables(some, self.contrast[what]))
            elif kind is Kind.FIXED:
                x[run] = point.look_up(some, self.table[what][:, None])
        return x.index_select(0, order.argsort())

    def _everyone(self, x: Tensor, which: Tensor) -> Tensor:
        kinds = self.kind[which][:, None, None]
        tables = self.table[which][:, None]
        if Kind.AUTOCONTRAST in self.present:
            tables = torch.where(kinds == Kind.AUTOCONTRAST, point.autocontrast_tables(x), tables)
        if Kind.EQUALIZE in self.present:
            tables = torch.where(kinds == Kind.EQUALIZE, point.equalize_tables(x), tables)
        if Kind.CONTRAST in self.present:
            tables = torch.where(kinds == Kind.CONTRAST, point.contrast_tables(x, self.contrast[which]), tables)
        # One thing is done to an image, so the order of the kinds does not matter: for all others it is an identity.
        x = point.look_up(x, tables)
        if Kind.GEOMETRY in self.present:
            x = self._resample(x, which)
        if Kind.COLOUR in self.present:
            x = blend.colour(x, self.colour[which])
        if Kind.SHARPNESS in self.present:
            x = blend.sharpness(x, self.sharpness[which])
        return x

    def _resample(self, x: Tensor, which: Tensor) -> Tensor:
        source = self.source.index_select(0, self.source_row.index_select(0, which))
        return geometry.resample(x, source, self.fill)


def _pieces(kinds: Tensor, x: Tensor) -> Iterator[tuple[slice, Kind]]:
    """Neighbours of one kind, and that kind: at most PIECE pixel values at a time, but at least an image."""
    bounds = torch.searchsorted(kinds, torch.arange(len(Kind) + 1, device=kinds.device)).tolist()
    images = max(1, PIECE // x[0].numel())
    for kind, first, end in zip(Kind, bounds[:-1], bounds[1:], strict=True):
        if kind is not Kind.NOTHING:
            for start in range(first, end, images):
                yield slice(start, min(start + images, end)), kind


@functools.lru_cache(maxsize=16)
def bank(
    settings: tuple[Setting, ...], channels: int, height: int, width: int, fill: int, device: torch.device
) -> Bank:
    """A `Bank`, kept for the next batch of the same shape."""
    return Bank(settings, channels, height, width, fill, device)


def _sources(
    settings: tuple[Setting, ...], kinds: list[Kind], height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(G, H * W) source positions, the first row an identity, and (S,): the row of each setting."""
    rows = [torch.arange(height * width)]
    row_of = []
    for setting, kind in zip(settings, kinds, strict=True):
        row_of.append(len(rows) if kind is Kind.GEOMETRY else 0)
        if kind is Kind.GEOMETRY:
            rows.append(geometry.sources(setting, height, width))
    return torch.stack(rows).to(device), torch.tensor(row_of, device=device)


def _factors(settings: tuple[Setting, ...], operation: str, device: torch.device) -> Tensor:
    """(S,) float32: the factor of each setting of this operation, 1 for every other."""
    factors = [1.0 + strength(s, 1, 1) if s.operation == operation else 1.0 for s in settings]
    return torch.tensor(factors, dtype=torch.float32, device=device)
