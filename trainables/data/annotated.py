"""Oxford Flowers-102 and Stanford Cars, whose labels lie in MATLAB files, in the folders that torchvision expects.

torchvision's classes read the same files (tests compare them with these); importing torchvision costs every worker
seconds, and it would not say which label is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainables.data.files import DATASETS, DataError, data_root, kind_of, unreadable
from trainables.data.listing import Listing


def flowers102(root: str | None) -> Listing:
    """Nilsback & Zisserman, "Automated flower classification over a large number of classes", 2008.

    In `flowers-102/`: `jpg/`, `imagelabels.mat` and `setid.mat`. The official training and validation images, in this
    order, are the training images.

    Raises:
        DataError: files are missing or damaged, or a label is out of range.
    """
    name = "flowers102"
    base = _folder(name, root, "flowers-102", "jpg/, imagelabels.mat and setid.mat")
    labels = _read(name, base / "imagelabels.mat", "labels").ravel().astype(np.int64)
    sets = {key: _read(name, base / "setid.mat", key).ravel().astype(np.int64) for key in ("trnid", "valid", "tstid")}
    classes = DATASETS[name].classes

    def part(ids: np.ndarray, what: str) -> tuple[list[str], list[int]]:
        for i in ids.tolist():
            if not 1 <= i <= len(labels):
                raise DataError(f"{name}: setid.mat names image {i} ({what}), imagelabels.mat has {len(labels)} labels")
        own = labels[ids - 1]
        files = [f"jpg/image_{i:05d}.jpg" for i in ids.tolist()]
        return files, _in_range(name, files, own, classes, base / "imagelabels.mat")

    train = part(np.concatenate([sets["trnid"], sets["valid"]]), "training")
    test = part(sets["tstid"], "test")
    _all_there(name, base, [*train[0], *test[0]])
    return Listing(base, int(classes or 0), *train, *test, others=("imagelabels.mat", "setid.mat"))


def stanford_cars(root: str | None) -> Listing:
    """Krause, Stark, Deng & Fei-Fei, "3D object representations for fine-grained categorization", 2013.

    In `stanford_cars/`: `cars_train/`, `cars_test/`, `devkit/cars_train_annos.mat` and
    `cars_test_annos_withlabels.mat`.

    Raises:
        DataError: files are missing or damaged, or a label is out of range.
    """
    name = "stanford_cars"
    held = "cars_train/, cars_test/, devkit/cars_train_annos.mat and cars_test_annos_withlabels.mat"
    base = _folder(name, root, "stanford_cars", held)
    annotations = ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat")
    classes = DATASETS[name].classes
    parts: list[tuple[list[str], list[int]]] = []
    for file, folder in zip(annotations, ("cars_train", "cars_test"), strict=True):
        table = np.atleast_1d(_read(name, base / file, "annotations"))
        if not table.dtype.names or not {"fname", "class"} <= set(table.dtype.names):
            raise DataError(f"{name}: {base / file} does not give each image's file name and class")
        files = [f"{folder}/{row}" for row in table["fname"]]
        parts.append((files, _in_range(name, files, table["class"].astype(np.int64), classes, base / file)))
    train, test = parts
    _all_there(name, base, [*train[0], *test[0]])
    return Listing(base, int(classes or 0), *train, *test, others=annotations)


def _folder(name: str, root: str | None, folder: str, held: str) -> Path:
    base = data_root(name, root, folder) / folder
    if kind_of(base) != "folder":
        raise DataError(f"{name}: {base} is missing or not a folder; expected {held} in it (torchvision's layout)")
    return base


def _read(name: str, path: Path, key: str) -> np.ndarray:
    """One variable of a MATLAB file."""
    from scipy.io import loadmat

    if kind_of(path) != "file":
        raise DataError(f"{name}: {path} is missing or not a file (torchvision's layout)")
    try:
        found = loadmat(path, squeeze_me=True)
    except PermissionError as error:
        raise unreadable(path, error) from None
    except Exception as error:  # scipy raises a dozen kinds on damaged bytes
        raise DataError(f"{name}: {path} is damaged or no MATLAB file ({type(error).__name__}); get it again") from None
    if key not in found:
        raise DataError(f"{name}: {path} has no {key!r}; it is not the published file")
    return np.asarray(found[key])


def _in_range(name: str, files: Sequence[str], labels: np.ndarray, classes: int | None, source: Path) -> list[int]:
    """Labels from 0, of labels from 1."""
    for file, label in zip(files, labels.tolist(), strict=True):
        if classes is not None and not 1 <= label <= classes:
            raise DataError(f"{name}: {source} gives {file} the class {label}, which is not in 1 .. {classes}")
    return (labels - 1).tolist()


def _all_there(name: str, base: Path, files: Sequence[str]) -> None:
    folders = {Path(file).parent for file in files}
    there = set()
    for folder in folders:
        if kind_of(base / folder) != "folder":
            raise DataError(f"{name}: {base / folder} is missing or not a folder (torchvision's layout)")
        there |= {str(folder / path.name) for path in (base / folder).iterdir()}
    for file in files:
        if file not in there:
            raise DataError(f"{name}: {base / file} is missing; unpack the images again")
