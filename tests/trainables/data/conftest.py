"""Data sets for the tests, read once."""

import os
from pathlib import Path

import pytest
import torch

from trainables.data import load


@pytest.fixture(scope="session")
def cifar_root():
    root = os.environ.get("SHARPNESS_STUDY_DATA")
    if not root or not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip("needs the real CIFAR-10 in SHARPNESS_STUDY_DATA")
    return root


@pytest.fixture(scope="session")
def cifar10(cifar_root):
    return load("cifar10", cifar_root)


@pytest.fixture(scope="session")
def digits():
    return load("digits")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
