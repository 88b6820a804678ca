"""Data sets by name: what is known of them before they are read, their fingerprints, and ways to get at them.

This file, `files`, `listing` and `survey` import neither torch nor scikit-learn, so that a study's plan is checked in a
moment. A trial's images come from `trainables.data.opened`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables.data.files import DATASETS, DataError, DatasetFacts
from trainables.data.survey import Survey, fingerprint, survey

if TYPE_CHECKING:
    import torch

    from trainables.data.datasets import Source

__all__ = ["DATASETS", "DataError", "DatasetFacts", "Survey", "download", "fingerprint", "load", "survey"]


def load(name: str, root: str | None = None, device: str | torch.device = "cpu") -> Source:
    """Read a data set of fixed size, checked against its fingerprint: see `trainables.data.datasets.load`."""
    from trainables.data import datasets

    return datasets.load(name, root, device)


def download(name: str, root: str | None = None) -> None:
    """Fetch a data set that torchvision can fetch: see `trainables.data.datasets.download`."""
    from trainables.data import datasets

    datasets.download(name, root)
