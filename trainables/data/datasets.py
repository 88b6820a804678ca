"""Data sets of one fixed size as tensors: uint8 images and their labels, in memory or on a device, undisturbed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainables.data.draws import order, words
from trainables.data.files import (
    DATASETS,
    LAYOUTS,
    DataError,
    digits_file,
    facts_of,
    published_fingerprint,
)
from trainables.data.images import Resident
from trainables.data.stratify import stratified

#: Which of scikit-learn's digits are the test set: a constant of this project, no study's seed.
DIGITS_TEST_SEED = 1998

#: How far a synthetic image strays from its class's pattern, in the pattern's own standard deviations: a linear
#: classifier does well and not perfectly.
SYNTHETIC_NOISE = 2.0


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as published, before any split of its training set.

    Attributes:
        name: its key in `DATASETS`.
        classes: number of classes.
        train: the training set, in the files' order.
        test: the test set.
        fingerprint: of its files, see `trainables.data.fingerprint`.
    """

    name: str
    classes: int
    train: Resident
    test: Resident
    fingerprint: str


def load(name: str, root: str | None = None, device: str | torch.device = "cpu") -> Source:
    """Read a data set of one fixed size onto `device`.

    Args:
        name: a key of `DATASETS` with a `side`.
        root: folder that holds the files in torchvision's layout; `digits` and `synthetic` need none.
        device: where the tensors go.

    Raises:
        DataError: the files are missing, unreadable or damaged; always one line.
    """
    facts = facts_of(name)
    if name not in _READERS:
        raise DataError(f"{name} has images of any size: `trainables.data.opened` makes them one size")
    mark = published_fingerprint(name, root)  # before anything is decoded: it refuses files that are not the published
    train, test = _READERS[name](name, root)
    for images, count in ((train, facts.train), (test, facts.test)):
        if images.x.shape != (count, facts.channels, facts.side, facts.side):
            raise DataError(f"{name}: expected {count} images, found an array of shape {tuple(images.x.shape)}")
    return Source(name, _fixed(name)[0], train.to(device), test.to(device), mark)


def download(name: str, root: str | None = None) -> None:
    """Have torchvision fetch a data set into `root`, unless its files are already there and right.

    CIFAR and Flowers-102; nothing happens for the other data sets, which need no files or have to be put there by hand
    (`trainables.data.survey` says what is expected where).

    Raises:
        DataError: there is no root, or the download failed; one line.
    """
    facts_of(name)
    folder = {**{key: layout.folder for key, layout in LAYOUTS.items()}, "flowers102": "flowers-102"}.get(name)
    if folder is None:
        return
    if root is None:
        raise DataError(f"{name}: a download needs a data root to put {folder}/ in")
    first = {"split": "test"} if name == "flowers102" else {"train": False}
    try:
        _torchvision(name)(Path(root).expanduser(), **first, download=True)
    except (
        Exception
    ) as error:  # URLError, EOFError of a cut archive, OSError of a full disk: the user's line is the same
        raise DataError(
            f"{name}: the download into {Path(root)} failed ({type(error).__name__}: {_line(error)});"
            f" put {folder}/ there by hand"
        ) from None


def _digits(name: str, root: str | None) -> tuple[Resident, Resident]:
    """scikit-learn's 1,797 digits, 8x8 with values 0 .. 16.

    They are the test part of UCI's "Optical recognition of handwritten digits" (Alpaydin & Kaynak 1998) and have no
    official split of their own: 360 images, stratified by class, are the test set here.
    """
    path = digits_file()
    try:
        # `load_digits` reads this file in this way; a worker would wait seconds for it to be imported.
        table = np.loadtxt(path, delimiter=",", dtype=np.float64)
        labels = table[:, -1].astype(np.int64)
        pixels = table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise DataError(f"digits: {path} is damaged ({_line(error)}); install scikit-learn again") from None
    images = Resident(torch.from_numpy(pixels), torch.from_numpy(labels))
    test = stratified(labels, _fixed(name)[4], DIGITS_TEST_SEED, "digits test set")
    train = np.setdiff1d(np.arange(len(images)), test)
    return images.take(torch.from_numpy(train)), images.take(torch.from_numpy(test))


def _synthetic(name: str, root: str | None) -> tuple[Resident, Resident]:
    """Ten random patterns, one a class, each image a noisy copy of one: learnable, balanced, and not trivial."""
    classes, channels, side, train, test = _fixed(name)
    shape = (channels, side, side)
    patterns = _normal(classes, shape, "synthetic patterns")
    parts = []
    for part, count in (("train", train), ("test", test)):
        y = order(count, 0, f"synthetic {part} labels") % classes
        x = patterns[y] + SYNTHETIC_NOISE * _normal(count, shape, f"synthetic {part} images")
        pixels = np.clip(np.rint(128 + 25 * x), 0, 255).astype(np.uint8)
        parts.append(Resident(torch.from_numpy(pixels), torch.from_numpy(y.astype(np.int64))))
    return parts[0], parts[1]


def _normal(n: int, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Nearly normal numbers of variance 1 by adding twelve uniform ones: exact integers until the last division."""
    count = n * int(np.prod(shape))
    # 16 of each word's bits: twelve of them add up without a rounding that could differ between machines.
    total = (words(12 * count, 0, what) >> np.uint64(48)).reshape(12, count).sum(0)
    return (total.astype(np.float64) / 2**16 - 6).reshape(n, *shape)


def _cifar(name: str, root: str | None) -> tuple[Resident, Resident]:
    """Krizhevsky, "Learning multiple layers of features from tiny images", 2009, through torchvision."""
    kind = _torchvision(name)
    parts = []
    for train in (True, False):
        try:
            part = kind(Path(str(root)).expanduser(), train=train)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{name}: torchvision cannot read {root}: {_line(error)}") from None
        x = torch.from_numpy(part.data.transpose(0, 3, 1, 2).copy())
        parts.append(Resident(x, torch.tensor(part.targets, dtype=torch.int64)))
    return parts[0], parts[1]


def _torchvision(name: str) -> Callable:
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "flowers102": datasets.Flowers102}[name]


def _fixed(name: str) -> tuple[int, int, int, int, int]:
    """Classes, channels, side, training and test images of a data set of which all of them are known."""
    facts = DATASETS[name]
    assert facts.classes is not None
    assert facts.side is not None
    assert facts.train is not None
    assert facts.test is not None
    return facts.classes, facts.channels, facts.side, facts.train, facts.test


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_READERS: dict[str, Callable[[str, str | None], tuple[Resident, Resident]]] = {
    "digits": _digits,
    "synthetic": _synthetic,
    "cifar10": _cifar,
    "cifar100": _cifar,
}
