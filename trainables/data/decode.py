"""From an image file to uint8 pixels, as torchvision's transforms on PIL images do it; a test compares them.

Whatever a file holds (grey, palette, transparency, CMYK) becomes RGB by Pillow's convert, and like torchvision's loader
this does not turn an image by its EXIF orientation. Unlike it, grey of 16 bits keeps its upper 8 bits, as Pillow does
with colours of 16 bits: convert would turn all above 255 white. Grey of 32 bits, whose range is not known, is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trainables.data.draws import words
from trainables.data.files import DataError
from trainables.data.images import centred, stored_side
from trainables.data.resized_crop import DRAWS, boxes


def stored(path: str, side: int) -> NDArray[np.uint8]:
    """The image as it is kept in memory for crops of `side` pixels.

    Its shorter side is resized to `stored_side(side)` pixels (bicubic, antialiased) and its centre is cut out.

    Returns:
        (3, stored, stored).

    Raises:
        DataError: the file is missing, damaged or no image.
    """
    return _decode(path, lambda image: _centre(image, side))


def evaluated(path: str, side: int) -> NDArray[np.uint8]:
    """The image as it is evaluated: the centre of `stored`, Resize(256) and CenterCrop(224) for a side of 224.

    Returns:
        (3, side, side).

    Raises:
        DataError: as above.
    """
    margin = centred(stored_side(side), side)
    return stored(path, side)[:, margin : margin + side, margin : margin + side]


def cropped(path: str, side: int, seed: int, index: int) -> NDArray[np.uint8]:
    """A random resized crop of the image, a function of the seed and the image's position.

    Returns:
        (3, side, side).

    Raises:
        DataError: as above.
    """

    def crop(image: Image.Image) -> Image.Image:
        top, left, height, width = boxes(box_draws(seed, index), image.height, image.width)[0].tolist()
        box = (left, top, left + width, top + height)
        return image.crop(box).resize((side, side), Image.Resampling.BILINEAR)

    return _decode(path, crop)


def box_draws(seed: int, index: int) -> Tensor:
    """The uniform numbers of one image's box: (1, DRAWS) float64."""
    # 53 bits are all that a float64 in [0, 1) holds.
    drawn = (words(DRAWS, seed, f"resized crop {index}") >> np.uint64(11)).astype(np.float64) / 2**53
    return torch.from_numpy(drawn)[None]


def _decode(path: str, change: Callable[[Image.Image], Image.Image]) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(change(_rgb(image)))
    except Exception as error:  # on damaged bytes Pillow raises OSError, SyntaxError, ValueError, struct.error ...
        reason = "no image that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else _line(error)
        raise DataError(f"{path} cannot be decoded: {reason}; replace or remove it") from None
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels (Pillow's mode {image.mode}) have no known range, save it with 8 bits")
    return image.convert("RGB")


def _centre(image: Image.Image, side: int) -> Image.Image:
    """The stored square, placed so that its centre is exactly torchvision's Resize(stored) and CenterCrop(side)."""
    square = stored_side(side)
    width, height = image.size
    long = int(square * max(width, height) / min(width, height))
    width, height = (square, long) if width <= height else (long, square)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    # Halves are rounded to even: two centre crops in a row would be a pixel off one, now and then.
    left, top = (centred(whole, side) - centred(square, side) for whole in (width, height))
    return image.crop((left, top, left + square, top + square))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
