"""Random resized crops: Szegedy et al., "Going deeper with convolutions", CVPR 2015, as torchvision draws them.

A crop covers a uniform share of 8 % to 100 % of the image's area and has a log-uniform ratio of width to height of 3/4
to 4/3; ten boxes are tried and the first that fits is taken, else the largest one in the centre; it is then resized to
the side asked for, bilinearly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10

#: Uniform numbers that one image's box takes, however many attempts it needs.
DRAWS = 2 * ATTEMPTS + 2


def boxes(uniform: Tensor, height: int, width: int) -> Tensor:
    """The boxes of torchvision's RandomResizedCrop.get_params, all images at once.

    Args:
        uniform: (N, DRAWS) float64 in [0, 1).
        height: of the images, in pixels.
        width: likewise.

    Returns:
        (N, 4) int64: top, left, height, width, all within the image.
    """
    share, log_ratio = uniform[:, :ATTEMPTS], uniform[:, ATTEMPTS : 2 * ATTEMPTS]
    area = (SCALE[0] + share * (SCALE[1] - SCALE[0])) * (height * width)
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = torch.exp(low + log_ratio * (high - low))
    w, h = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.byte().argmax(1, keepdim=True)  # the first of equal ones; 0 where none fits
    fallback_h, fallback_w = _largest(height, width)
    found = fits.any(1)
    h = torch.where(found, h.gather(1, first)[:, 0], fallback_h)
    w = torch.where(found, w.gather(1, first)[:, 0], fallback_w)
    top = torch.where(found, torch.floor(uniform[:, -2] * (height - h + 1)), (height - fallback_h) // 2)
    left = torch.where(found, torch.floor(uniform[:, -1] * (width - w + 1)), (width - fallback_w) // 2)
    return torch.stack([top, left, h, w], 1).long()


def _largest(height: int, width: int) -> tuple[int, int]:
    if width / height < RATIO[0]:
        return round(width / RATIO[0]), width
    if width / height > RATIO[1]:
        return height, round(height * RATIO[1])
    return height, width


def draw(images: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A box for each of so many images of height x width pixels, from a generator on the CPU: (N, 4) as `boxes`."""
    return boxes(torch.rand(images, DRAWS, generator=generator, dtype=torch.float64), height, width)


def resized_crop(x: Tensor, box: Tensor, side: int) -> Tensor:
    """Each image's box, resized to side x side pixels; pixels outside of the box have no part in it.

    Sampled bilinearly, without antialiasing: boxes of images stored at 8/7 of `side` are at most that much too large.

    Args:
        x: (N, C, H, W) uint8; it is left as it is.
        box: (N, 4) int64: top, left, height, width; on x's device.
        side: of the result, in pixels.

    Returns:
        (N, C, side, side) uint8.
    """
    grid = torch.stack(
        torch.broadcast_tensors(
            _positions(box[:, 1], box[:, 3], side, x.shape[3])[:, None, :],
            _positions(box[:, 0], box[:, 2], side, x.shape[2])[:, :, None],
        ),
        3,
    )
    values = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return values.round_().to(torch.uint8)


def _positions(start: Tensor, length: Tensor, side: int, whole: int) -> Tensor:
    """Where along an axis of `whole` pixels the result's pixels are read, in grid_sample's units: (N, side) float32."""
    middle = (torch.arange(side, device=start.device) + 0.5) / side
    offset = (middle * length[:, None] - 0.5).clamp_min(0).minimum(length[:, None] - 1)
    return ((start[:, None] + offset).mul_(2).add_(1) / whole - 1).float()
