"""Shear, translation and rotation: every one is a table that says which source pixel each pixel comes from.

Pillow's affine transform with the nearest neighbour (`affine_fixed` in its Geometry.c) computes source positions in
16.16 fixed point. The same integers are computed here once per setting and image size; a batch is then one gather.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.data.autoaugment.strength import Setting, strength

OPERATIONS = frozenset(("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"))

#: Pixels on a side up to which no transform here leaves the range of the 16.16 numbers (beyond it Pillow computes in
#: floating point instead).
LARGEST_SIDE = 16_384

Matrix = tuple[float, float, float, float, float, float]


def matrix(setting: Setting, height: int, width: int) -> Matrix:
    """(a, b, c, d, e, f) of `x_source = a x + b y + c, y_source = d x + e y + f`, in pixels.

    To the last bit what `torchvision.transforms.functional.affine` (shear about the corner, translation) and
    `PIL.Image.rotate` (about the centre) hand to Pillow.
    """
    amount = strength(setting, height, width)
    if setting.operation == "TranslateX":
        return (1.0, 0.0, float(-int(amount)), 0.0, 1.0, 0.0)
    if setting.operation == "TranslateY":
        return (1.0, 0.0, 0.0, 0.0, 1.0, float(-int(amount)))
    if setting.operation == "Rotate":
        angle = -math.radians(amount % 360.0)
        cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
        middle_x, middle_y = width / 2, height / 2
        right = cosine * -middle_x + sine * -middle_y + middle_x
        down = -sine * -middle_x + cosine * -middle_y + middle_y
        return (cosine, sine, right, -sine, cosine, down)
    # torchvision goes from the slope to an angle in degrees and back, which can move the last bit.
    angle = math.radians(math.degrees(math.atan(amount)))
    if setting.operation == "ShearX":
        return (1.0, math.tan(angle), 0.0, 0.0, 1.0, 0.0)
    return (1.0, 0.0, 0.0, math.sin(angle) / math.cos(angle), 1.0, 0.0)


def sources(setting: Setting, height: int, width: int) -> Tensor:
    """For each pixel, in reading order, the place of its source pixel.

    Returns:
        (height * width,) int64; height * width, one past the last pixel, stands for "outside".
    """
    a, b, c, d, e, f = matrix(setting, height, width)
    x = torch.arange(width)
    y = torch.arange(height)[:, None]
    # The centre of the first pixel is at (0.5, 0.5); then one fixed-point step a pixel.
    column = (_fixed(c + a * 0.5 + b * 0.5) + _fixed(a) * x + _fixed(b) * y) >> 16
    row = (_fixed(f + d * 0.5 + e * 0.5) + _fixed(d) * x + _fixed(e) * y) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return torch.where(inside, row * width + column, height * width).view(-1)


def resample(x: Tensor, source: Tensor, fill: int) -> Tensor:
    """Take every pixel from its source.

    Args:
        x: (N, C, H, W) uint8.
        source: (N, H * W) int64 as `sources` returns it, one row an image.
        fill: value of pixels from outside.
    """
    n, channels = x.shape[:2]
    # One more pixel at the end of every plane: "outside" is a place like any other.
    planes = F.pad(x.view(n, channels, -1), (0, 1), value=fill)
    return planes.gather(2, source[:, None, :].expand(n, channels, -1)).view_as(x)


def _fixed(value: float) -> int:
    return math.floor(value * 65536.0 + 0.5)
