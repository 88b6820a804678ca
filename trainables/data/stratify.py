"""A subset that keeps the classes' shares, of exactly the size that was asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainables.data.draws import order


def stratified(labels: NDArray[np.integer], size: int, seed: int, what: str) -> NDArray[np.int64]:
    """Positions of `size` labels, ascending, each class as often as its share says.

    Shares are rounded by largest remainder, so that they add up to `size` exactly and no class is off by one or more;
    equal remainders go to the lower class. Which members of a class are taken is uniform, and fixed by the seed.

    Args:
        labels: (N,) integers.
        size: in [0, N].
        seed: of the draw.
        what: the draw's name, so that one seed serves several independent draws.

    Raises:
        ValueError: `size` is out of range.
    """
    n = len(labels)
    if not 0 <= size <= n:
        raise ValueError(f"cannot take {size} of {n} images")
    classes, counts = np.unique(labels, return_counts=True)
    wanted, remainder = np.divmod(counts.astype(np.int64) * size, max(n, 1))
    wanted[np.argsort(-remainder, kind="stable")[: size - wanted.sum()]] += 1
    shuffled = order(n, seed, what)
    chosen = [shuffled[labels[shuffled] == c][:k] for c, k in zip(classes, wanted, strict=True)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))
