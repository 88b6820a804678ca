"""Every draw of a replicate, as a function of its seed, what is drawn, and the epoch.

No generator lives from one epoch to the next. What epoch 7 of seed 2 draws is the same in whichever process trains it,
after whichever interruption and beside whichever other replicate, so there is no generator state to save and none to
lose; and two optimisers with one seed see the same initial weights, data order, augmentation and noise mask, so that
their difference is a paired one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, what: str, epoch: int = 0) -> int:
    """A 63-bit seed for the stream `what` of this seed and epoch; streams are independent of each other."""
    text = f"{seed}/{what}/{epoch}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def stream(seed: int, what: str, epoch: int = 0) -> torch.Generator:
    """A fresh generator for the stream `what` of this seed and epoch.

    On the CPU, whatever trains: a GPU's would give other numbers.
    """
    return torch.Generator().manual_seed(derive(seed, what, epoch))


def seed_global(seed: int, what: str, epoch: int, device: torch.device) -> None:
    """Put `device`'s global generator at the start of a stream, for layers that draw from it (dropout)."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(derive(seed, what, epoch))
    else:
        torch.default_generator.manual_seed(derive(seed, what, epoch))


@contextmanager
def global_stream(seed: int, what: str, epoch: int, device: torch.device) -> Iterator[None]:
    """`seed_global` for the length of a block; afterwards the generators are where they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed_global(seed, what, epoch, device)
        yield
