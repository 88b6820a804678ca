"""Data sets for the tests, read once."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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


@pytest.fixture(scope="session")
def flowers89(tmp_path_factory):
    """A data root with the real folder of 89 classes of flowers, 20 images each."""
    tar = Path(__file__).parents[4] / "shared" / "data" / "flowers89.tar"
    if not tar.is_file():
        pytest.skip("needs shared/data/flowers89.tar")
    root = tmp_path_factory.mktemp("flowers")
    with tarfile.open(tar) as archive:
        archive.extractall(root, filter="data")
    return root


@pytest.fixture
def draw():
    """Writes an image of soft random colours; the suffix names the format."""

    def write(path, seed=0, size=(40, 30), mode="RGB"):
        path.parent.mkdir(parents=True, exist_ok=True)
        bands = len(Image.new(mode, (1, 1)).getbands())
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, bands), dtype=np.uint8)
        image = Image.merge(mode, [Image.fromarray(coarse[:, :, band]).resize(size) for band in range(bands)])
        image.save(path)
        return path

    return write


@pytest.fixture
def folder_of(draw):
    """Writes class folders of images; sizes differ from image to image."""

    def write(base, classes=("ant", "bee", "cat"), each=5):
        for c, name in enumerate(classes):
            for i in range(each):
                draw(base / name / f"{i}.png", seed=100 * c + i, size=(20 + 7 * i, 45 - 4 * i))
        return base

    return write
