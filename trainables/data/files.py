"""What is known of each data set, and the fixed ones' files: where they lie and whether they are the published ones.

Nothing is decoded here and neither torch nor scikit-learn is imported: a plan needs the fingerprint of its data to know
which trials it already has, and it needs it at once. Pickled files are only ever read after this check. Data sets of
image files are listed in `trainables.data.listing`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: Hexadecimal digits of a fingerprint.
DIGITS = 16

#: The bytes of `synthetic`, so to speak: change it with whatever changes its images.
SYNTHETIC_VERSION = b"synthetic 1"

_CHUNK = 1 << 20


class DataError(Exception):
    """A data set is missing, unreadable or damaged: one line that says what is expected where."""


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a data set before it is read.

    Attributes:
        classes: number of classes; None: not known before `trainables.data.survey` has looked at the files.
        channels: channels of an image.
        side: pixels of an image's side; None: images of any size, each made a square of the recipe's `image_side`.
        train: images of the training set, validation included; None as for `classes`.
        test: images of the test set; None as for `classes`.
        validation: images that are held out of the training set unless the study says otherwise; None as for `classes`.
        about: one line for people.
        streams: images are decoded from their files in every epoch, by worker processes, and never all in memory.
    """

    classes: int | None
    channels: int
    side: int | None
    train: int | None
    test: int | None
    validation: int | None
    about: str
    streams: bool = False


DATASETS: dict[str, DatasetFacts] = {
    "digits": DatasetFacts(10, 1, 8, 1437, 360, 287, "handwritten digits (UCI optdigits), part of scikit-learn"),
    "cifar10": DatasetFacts(10, 3, 32, 50_000, 10_000, 5_000, "Krizhevsky 2009; needs a data root"),
    "cifar100": DatasetFacts(100, 3, 32, 50_000, 10_000, 5_000, "Krizhevsky 2009; needs a data root"),
    "synthetic": DatasetFacts(10, 3, 8, 512, 256, 128, "noisy copies of ten random patterns; for tests"),
    # Test: ILSVRC's validation set, as usual, since the labels of its test set were never published.
    "imagenet": DatasetFacts(
        1000, 3, None, 1_281_167, 50_000, 10_000, "ILSVRC 2012 in class folders; needs a data root", streams=True
    ),
    # Training: the official training and validation images together (1,020 each), as in fine-tuning papers.
    "flowers102": DatasetFacts(102, 3, None, 2_040, 6_149, 204, "Nilsback & Zisserman 2008; needs a data root"),
    "stanford_cars": DatasetFacts(196, 3, None, 8_144, 8_041, 814, "Krause et al. 2013; needs a data root"),
    "image_folder": DatasetFacts(None, 3, None, None, None, None, "any folder of class folders below the data root"),
}


def facts_of(name: str) -> DatasetFacts:
    """What is known of the data set `name`.

    Raises:
        DataError: there is no such data set; the message names the nearest one.
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise DataError(f"unknown data set {name!r}{hint} (known: {', '.join(sorted(DATASETS))})")
    return DATASETS[name]


@dataclass(frozen=True)
class Layout:
    """A published data set's folder below the data root: its files and their MD5, in the order of the fingerprint.

    `fingerprint` is that of the published files where it is known: it spares them the second, slower hash.
    """

    folder: str
    archive: str
    files: tuple[tuple[str, str], ...]
    fingerprint: str | None = None


#: The file names and MD5 sums are those of torchvision.datasets.CIFAR10 and CIFAR100 (a test compares them).
LAYOUTS: dict[str, Layout] = {
    "cifar10": Layout(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        (
            ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            ("test_batch", "40351d587109b95175f43aff81a1287e"),
            ("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        ),
        fingerprint="62f75217f6f8ddd3",
    ),
    "cifar100": Layout(
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        (
            ("train", "16019d7e3df5f24257cddd939b257f8d"),
            ("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
            ("meta", "7973b15100ade9c7d40fb424638fde48"),
        ),
    ),
}


def published_fingerprint(name: str, root: str | None = None) -> str:
    """16 hexadecimal digits of the SHA-256 of a fixed data set's files, read in a fixed order and not decoded.

    Args:
        name: a key of `DATASETS` whose images have one size.
        root: folder that holds `cifar-10-batches-py` or `cifar-100-python`; not used by the other data sets.

    Raises:
        DataError: the files are missing, unreadable or not the published ones.
    """
    if name == "synthetic":
        return hashlib.sha256(SYNTHETIC_VERSION).hexdigest()[:DIGITS]
    if name == "digits":
        return _hash("sha256", [digits_file()])
    layout = LAYOUTS[name]
    paths = _paths(name, layout, root)
    found = _hash("sha256", paths)
    if found != layout.fingerprint:
        for path, (_, md5) in zip(paths, layout.files, strict=True):
            if _hash("md5", [path], digits=32) != md5:
                raise DataError(
                    f"{name}: {path} is damaged or incomplete (its MD5 is not {md5}); unpack {layout.archive} again"
                )
    return found


def _paths(name: str, layout: Layout, root: str | None) -> list[Path]:
    """The files of a published data set, each seen to be there."""
    base = data_root(name, root, layout.folder)
    folder = base / layout.folder
    if kind_of(folder) != "folder":
        packed = kind_of(base / layout.archive) == "file"
        hint = f"; unpack {layout.archive} there" if packed else " (torchvision's layout)"
        raise DataError(f"{name}: {folder} is missing or not a folder{hint}")
    paths = [folder / file for file, _ in layout.files]
    for path in paths:
        if kind_of(path) != "file":
            raise DataError(f"{name}: {path} is missing or not a file; unpack {layout.archive} again")
    return paths


def data_root(name: str, root: str | None, folder: str) -> Path:
    """The data root as a folder that is there.

    Args:
        name: of the data set, for the message.
        root: as given, or None; `~` is a home folder.
        folder: what is expected in it, for the message.

    Raises:
        DataError: it was not given, is missing, or is no folder.
    """
    if root is None:
        raise DataError(
            f"{name} needs a data root: the folder that holds {folder}/"
            " (give --data DIR, SHARPNESS_STUDY_DATA, or `data` in the study's file)"
        )
    base = Path(root).expanduser()
    kind = kind_of(base)
    if kind is None:
        raise DataError(f"{name}: the data root {base} does not exist; expected {folder}/ in it")
    if kind != "folder":
        raise DataError(f"{name}: the data root {base} is not a folder; expected one with {folder}/ in it")
    return base


def kind_of(path: Path) -> Literal["file", "folder", "other"] | None:
    """What is there, or None. From Python 3.14 Path.is_dir calls a folder missing that may not be looked into."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from None
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def digits_file() -> Path:
    """scikit-learn's copy of the digits, found without importing it.

    Raises:
        DataError: scikit-learn or its copy is missing.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("digits: scikit-learn, which holds them, is not installed")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise DataError(f"digits: {path} is missing; install scikit-learn again")
    return path


def _hash(algorithm: str, paths: list[Path], digits: int = DIGITS) -> str:
    state = hashlib.new(algorithm, usedforsecurity=False)
    for path in paths:
        for chunk in chunks(path):
            state.update(chunk)
    return state.hexdigest()[:digits]


def chunks(path: Path) -> Iterator[bytes]:
    """A file's bytes, a piece at a time.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> DataError:
    """The error of a path that the system does not let us read."""
    reason = (error.strerror or str(error)).lower()
    return DataError(f"{error.filename or path} cannot be read: {reason}")
