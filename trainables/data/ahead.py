"""The batches of an epoch as the network sees them, several of small images computed at a time.

Augmentation is a hundred kernels or so, each of which is over in microseconds on a GPU; for twenty batches at once they
are the same hundred. A CPU is best at one batch, which stays in its caches. The numbers are the same either way, since
draws are made batch by batch and an image's result depends on nothing but its own pixels and draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from trainables.data.drawn import Draws
from trainables.data.images import Images
from trainables.data.streamed import Streamed

#: Values that a GPU computes at once: 21 batches of 128 images of 3x32x32, as float32 32 MiB, and a few times that for
#: what lies between uint8 pixels and the result. One batch of images of 224x224 is more already.
AT_ONCE = 2**23


def batches_at_once(images: Images, size: int, side: int) -> int:
    """How many batches are worth computing at a time: on a CPU, or of images that come one batch at a time, 1.

    Args:
        images: that are trained on.
        size: images of a batch.
        side: of an image as the network sees it, in pixels.
    """
    if images.y.device.type == "cpu" or isinstance(images, Streamed):
        return 1
    return max(1, AT_ONCE // (size * images.channels * max(side, images.side) ** 2))


def augmented(
    images: Images,
    batches: Sequence[Tensor],
    draw: Callable[[int], Draws],
    apply: Callable[[Tensor, Draws], Tensor],
    *,
    chunk: int = 1,
    crop_seed: int | None = None,
    parts: Sequence[slice] | None = None,
) -> Iterator[Tensor]:
    """The batch of each step. What is held is one chunk, and while the next one is computed the batch last given out.

    Args:
        images: that the batches are of.
        batches: (B,) int64 positions for each step, as `Images.batches` takes them.
        draw: the draws of a batch of so many images, on the CPU; called once for each batch, in order.
        apply: from (N, C, H, W) uint8 and their draws to N images as the network sees them, whose results do not depend
            on each other.
        chunk: batches computed at a time.
        crop_seed: as for `Images.batches`.
        parts: of each batch, the images that are given out; its draws are those of the whole batch. All if missing.

    Yields:
        `apply`'s result for the images of each batch, or of its part.

    Raises:
        trainables.data.DataError: an image cannot be decoded.
    """
    pixels = images.batches(batches, crop_seed=crop_seed, parts=parts, together=chunk)
    for first, some in zip(range(0, len(batches), chunk), pixels, strict=True):
        draws = [draw(len(batch)) for batch in batches[first : first + chunk]]
        if parts is not None:
            draws = [whole[part] for whole, part in zip(draws, parts[first : first + chunk], strict=True)]
        yield from apply(some, Draws.cat(draws).to(some.device)).split([len(of_batch) for of_batch in draws])
