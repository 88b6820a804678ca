"""Label noise of an exact rate: van Rooyen, Menon & Williamson, "Learning with symmetric label noise", NeurIPS 2015."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainables.data.draws import below, order


def corrupt(
    labels: Tensor, *, rate: float, kind: Literal["symmetric", "uniform"] | str, classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Labels of which an exact share is replaced. The input is left as it is.

    Exactly `round(rate * N)` labels are chosen (Python's round: halves go to the even number), uniformly over all N.
    `symmetric` moves each to one of the other classes, uniformly, so that exactly this share is wrong. `uniform` draws
    each anew from all classes, so that a chosen label keeps its class with probability 1 / classes and only a share of
    `rate * (1 - 1 / classes)` is expected to be wrong; both are called symmetric noise in the literature.

    For one seed the labels chosen at a lower rate are among those chosen at a higher one and move to the same class: a
    comparison over rates is a paired one.

    Args:
        labels: (N,) int64, each in [0, classes).
        rate: in [0, 1].
        kind: `symmetric` or `uniform`.
        classes: number of classes.
        seed: not negative; fixes the draws, in every version of NumPy and torch and on every device.

    Returns:
        The noisy labels, (N,) int64, and which ones were chosen, (N,) bool, both on the labels' device.

    Raises:
        ValueError: `rate`, `kind`, `classes`, `seed` or a label is out of range.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"label noise rate {rate} is not in [0, 1]")
    if kind not in ("symmetric", "uniform"):
        raise ValueError(f"label noise kind {kind!r} is not symmetric or uniform")
    if classes < (2 if kind == "symmetric" else 1):
        raise ValueError(f"{kind} label noise needs more than {classes} classes")
    y = labels.cpu().numpy()
    n = len(y)
    if n and not (y.min() >= 0 and y.max() < classes):
        raise ValueError(f"a label is not in [0, {classes})")
    mask = np.zeros(n, dtype=bool)
    mask[order(n, seed, "label noise: which")[: round(rate * n)]] = True
    what = f"label noise: {kind}"
    if kind == "symmetric":
        moved = (y + 1 + below(classes - 1, n, seed, what)) % classes
    else:
        moved = below(classes, n, seed, what)
    noisy = torch.from_numpy(np.where(mask, moved, y).astype(np.int64))
    return noisy.to(labels.device), torch.from_numpy(mask).to(labels.device)


def mask_hash(labels: Tensor) -> str:
    """16 hexadecimal digits of the SHA-256 of labels, to record which ones a replicate was trained on.

    Args:
        labels: (N,) integers; dtype and device do not matter.
    """
    # Little-endian by name: the digest is the same on every machine.
    return hashlib.sha256(labels.cpu().numpy().astype("<i8").tobytes()).hexdigest()[:16]
