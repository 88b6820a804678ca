"""Data sets by name: what is known of them before they are read, their fingerprints, and a way to load them.

This file and `files` import neither torch nor scikit-learn, so that a study's plan is checked in a moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables.data.files import DATASETS, DataError, DatasetFacts, fingerprint

if TYPE_CHECKING:
    import torch

    from trainables.data.datasets import Source

__all__ = ["DATASETS", "DataError", "DatasetFacts", "fingerprint", "load"]


def load(name: str, root: str | None = None, device: str | torch.device = "cpu", *, download: bool = False) -> Source:
    """Read a data set, checked against its fingerprint: see `trainables.data.datasets.load`."""
    from trainables.data import datasets

    return datasets.load(name, root, device, download=download)
