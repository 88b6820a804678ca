"""Reproducible draws for what belongs to a study and not to a device: splits, label noise, synthetic images.

Only the raw words of PCG64 seeded through SeedSequence are used: NumPy keeps both streams the same in every version,
which it does not promise for the methods of `Generator` (NEP 19), and torch does not promise at all. A split or a noise
mask is therefore the same on every machine and after every upgrade.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def words(n: int, seed: int, what: str) -> NDArray[np.uint64]:
    """`n` uniform 64-bit words of the stream `what` of this seed; streams are independent of each other.

    Raises:
        ValueError: the seed is negative.
    """
    label = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "big")
    return np.random.PCG64(np.random.SeedSequence([seed, label])).random_raw(n)


def order(n: int, seed: int, what: str) -> NDArray[np.int64]:
    """A uniform permutation of 0 .. n - 1."""
    return np.argsort(words(n, seed, what), kind="stable")


def below(bound: int, n: int, seed: int, what: str) -> NDArray[np.int64]:
    """`n` uniform integers in [0, bound). The remainder's bias, bound / 2^64, is out of any test's reach."""
    return (words(n, seed, what) % np.uint64(bound)).astype(np.int64)
