"""Colour and sharpness: each image is blended with a poorer one, or pushed away from it.

`PIL.ImageEnhance` does so with float32 numbers (Blend.c). All images are float32 here, with whole values from 0 to 255:
such numbers, their sums and the weighted sums below are exact, so only the blend itself rounds, and it
rounds as Pillow's does because a product and a sum are two operations (a fused one would round once).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: ITU-R 601-2 weights of red, green and blue in 65536ths, as in Pillow's Convert.c.
_LUMA = (19595.0, 38470.0, 7471.0)


def blend(poorer: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """`poorer + factor (x - poorer)`, clipped to 0 to 255 and cut to whole numbers: `PIL.Image.blend`.

    Args:
        poorer: float32, of x's shape or one that broadcasts to it.
        x: float32.
        factor: float32, likewise; 1 returns x.

    Returns:
        uint8.
    """
    return (x - poorer).mul_(factor).add_(poorer).clamp_(0, 255).to(torch.uint8)


def luma(x: Tensor) -> Tensor:
    """Grey values, rounded: `image.convert("L")`.

    Args:
        x: (N, 3, H, W) or (N, 1, H, W) float32; grey images are returned as they are.

    Returns:
        (N, 1, H, W) float32.
    """
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, 1)
    # Below 2^24, so exact in float32.
    total = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).add_(32768)
    return total.mul_(2.0**-16).floor_()


def smooth(x: Tensor) -> Tensor:
    """Each pixel averaged with its neighbours, itself weighing 5 of 13; the border stays: Pillow's SMOOTH filter.

    Args:
        x: (N, C, H, W) float32.

    Returns:
        (N, C, H, W) float32, whole values. An image with a side below 3 is all border.
    """
    smoothed = x.clone()
    if min(x.shape[2:]) < 3:
        return smoothed
    columns = x[:, :, :, :-2] + x[:, :, :, 1:-1]
    columns += x[:, :, :, 2:]
    total = columns[:, :, :-2] + columns[:, :, 1:-1]
    total += columns[:, :, 2:]
    total.add_(x[:, :, 1:-1, 1:-1], alpha=4)
    # A thirteenth is never within 1/26 of a half: float32 rounds the right way.
    smoothed[:, :, 1:-1, 1:-1] = total.div_(13).add_(0.5).floor_()
    return smoothed


def colour(x: Tensor, factor: Tensor) -> Tensor:
    """Towards grey (factor below 1) or away from it: `PIL.ImageEnhance.Color`.

    Args:
        x: (N, C, H, W) uint8.
        factor: (N,) float32.
    """
    values = x.float()
    return blend(luma(values), values, factor[:, None, None, None])


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Towards the smoothed image (factor below 1) or away from it: `PIL.ImageEnhance.Sharpness`.

    Args:
        x: (N, C, H, W) uint8.
        factor: (N,) float32.
    """
    values = x.float()
    return blend(smooth(values), values, factor[:, None, None, None])
