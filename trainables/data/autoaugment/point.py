"""Operations on pixel values: each is a table of 256 entries for an image or for a channel of it.

`table(setting)` needs no image; AutoContrast, Equalize and Contrast read their table off each image. Pillow does
the first two by such tables as well (ImageOps.py); its Brightness and Contrast blend the image with a constant
(ImageEnhance.py, Blend.c), so that a table gives the same numbers with a fourth of the work at 32x32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.data.autoaugment.blend import blend, luma
from trainables.data.autoaugment.strength import Setting, strength

#: Operations that `table` knows.
FIXED = frozenset(("Identity", "Invert", "Solarize", "Posterize", "Brightness"))


def table(setting: Setting) -> Tensor:
    """(256,) uint8: what becomes of each pixel value under an operation of FIXED."""
    levels = torch.arange(256)
    amount = strength(setting, 1, 1)
    if setting.operation == "Invert":
        levels = 255 - levels
    elif setting.operation == "Solarize":
        levels = torch.where(levels < amount, levels, 255 - levels)
    elif setting.operation == "Posterize":
        levels = levels & ~(2 ** (8 - int(amount)) - 1)
    elif setting.operation == "Brightness":
        return blend(torch.zeros(256), levels.float(), torch.tensor(1.0 + amount))
    return levels.to(torch.uint8)


def autocontrast_tables(x: Tensor) -> Tensor:
    """Stretch each channel's values over 0 to 255, as `PIL.ImageOps.autocontrast`.

    Args:
        x: (N, C, H, W) uint8.

    Returns:
        (N, C, 256) uint8; a channel of one value keeps it.
    """
    low, high = x.amin((2, 3)).double()[..., None], x.amax((2, 3)).double()[..., None]
    levels = torch.arange(256, dtype=torch.float64, device=x.device)
    flat = high <= low
    # Python computes `int(level * scale + offset)` in double precision; so does this, in the same order. The 255 is a
    # tensor because torch takes `number / tensor` for number * (1 / tensor), which rounds twice.
    scale = torch.full_like(low, 255.0) / (high - low).masked_fill(flat, 1.0)
    stretched = (levels * scale).add_(-low * scale).clamp_(0, 255)
    return torch.where(flat, levels, stretched).to(torch.uint8)


def equalize_tables(x: Tensor) -> Tensor:
    """Flatten each channel's histogram, as `PIL.ImageOps.equalize`.

    Args:
        x: (N, C, H, W) uint8.

    Returns:
        (N, C, 256) uint8; a channel whose pixels, those of the brightest value left out, are fewer than 255 is kept.
    """
    n, channels = x.shape[:2]
    levels = torch.arange(256, dtype=torch.int32, device=x.device)
    planes = x.view(n, channels, -1).long()
    one = torch.ones((), dtype=torch.int32, device=x.device).expand_as(planes)
    histogram = torch.zeros(n, channels, 256, dtype=torch.int32, device=x.device).scatter_add_(2, planes, one)
    below = histogram.cumsum(2, dtype=torch.int32).sub_(histogram)
    brightest = x.amax((2, 3)).long()[..., None]
    step = below.gather(2, brightest).div_(255, rounding_mode="floor")
    spread = (below + step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    return torch.where(step == 0, levels, spread).to(torch.uint8)


def contrast_tables(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey, as `PIL.ImageEnhance.Contrast`.

    Args:
        x: (N, C, H, W) uint8.
        factor: (N,) float32.

    Returns:
        (N, 1, 256) uint8, for all channels alike.
    """
    pixels = x.shape[2] * x.shape[3]
    total = luma(x.float()).to(torch.int32).sum((1, 2, 3))
    grey = total.mul_(2).add_(pixels).div_(2 * pixels, rounding_mode="floor")  # the mean, halves rounded up
    levels = torch.arange(256, dtype=torch.float32, device=x.device)
    return blend(grey.float()[:, None, None], levels, factor[:, None, None])


def look_up(x: Tensor, tables: Tensor) -> Tensor:
    """Replace every pixel by its entry.

    Args:
        x: (N, C, H, W) uint8.
        tables: (N, C, 256) uint8, or (N, 1, 256) for all channels alike.
    """
    n, different = tables.shape[:2]
    start = torch.arange(n * different, dtype=torch.int32, device=x.device).mul_(256).view(n, different, 1, 1)
    return tables.reshape(-1).index_select(0, (x + start).view(-1)).view_as(x)
