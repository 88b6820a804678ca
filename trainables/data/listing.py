"""Data sets that are image files: which files there are, of which class, in which order. Nothing is decoded.

A folder of class folders is read as torchvision's ImageFolder reads it: the classes are the sorted names of the
folders, and an image is any file below one, at any depth, with one of `EXTENSIONS`. Hidden files and folders do not
count, nor do other files. Neither torch nor torchvision (seconds to import) is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainables.data.files import DATASETS, DataError, data_root, kind_of, unreadable

#: Those of torchvision.datasets.folder.IMG_EXTENSIONS (a test compares them), whatever their case.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

#: Share of the images that are the test set of a folder which has none, and which images: constants of this project,
#: no study's settings, so that every study of a folder is measured on the same images.
FOLDER_TEST_SHARE = 0.2
FOLDER_TEST_SEED = 1998

_LAYOUT = "expected one folder of images for each class, in train/ and in test/ or val/, or right here"


@dataclass(frozen=True)
class Listing:
    """The files of a data set, by path relative to `base`, and their labels.

    Attributes:
        base: the data set's folder.
        classes: number of classes; labels are 0 .. classes - 1.
        train: training images, validation included.
        train_labels: one for each.
        test: test images.
        test_labels: one for each.
        others: files that are no images and say which image is what.
    """

    base: Path
    classes: int
    train: Sequence[str]
    train_labels: Sequence[int]
    test: Sequence[str]
    test_labels: Sequence[int]
    others: Sequence[str] = ()


def listed(name: str, root: str | None, folder: str | None = None) -> Listing:
    """The files of a data set whose images have any size.

    Args:
        name: a key of `DATASETS` without a `side`.
        root: the data root.
        folder: of `image_folder`, relative to the root.

    Raises:
        DataError: something is missing or wrong; one line that says what is expected where.
    """
    if name == "image_folder":
        return _image_folder(root, folder)
    if name == "imagenet":
        found = _imagenet(root)
    else:
        from trainables.data import annotated

        found = {"flowers102": annotated.flowers102, "stanford_cars": annotated.stanford_cars}[name](root)
    facts = DATASETS[name]
    counts = (("classes", found.classes, facts.classes), ("training images", len(found.train), facts.train))
    for what, there, published in (*counts, ("test images", len(found.test), facts.test)):
        if there != published:
            raise DataError(
                f"{name}: {found.base} has {there} {what} and the published set {published};"
                " for a part of it use image_folder"
            )
    return found


def _imagenet(root: str | None) -> Listing:
    """ILSVRC 2012, class folders in train/ and val/: as torchvision's ImageFolder, no development kit needed."""
    layout = (
        "expected imagenet/train/ and imagenet/val/ in the data root, each with a folder for each class (n01440764 ..)"
    )
    base = data_root("imagenet", root, "imagenet") / "imagenet"
    for part in ("train", "val"):
        if kind_of(base / part) != "folder":
            raise DataError(f"imagenet: {base / part} is missing or not a folder; {layout}")
    return _parts("imagenet", base, ["train"], "val", layout)


def _image_folder(root: str | None, folder: str | None) -> Listing:
    """A folder of one's own.

    With train/ the test set is test/, or val/ where there is no test/; a val/ beside test/ counts as training images,
    of which the study holds out its validation images. Without train/ the class folders lie in the folder itself, and
    `FOLDER_TEST_SHARE` of the images, stratified by class, are the test set.
    """
    name = "image_folder"
    if not folder:
        raise DataError(f"{name}: `folder` says which one below the data root; {_LAYOUT}")
    base = data_root(name, root, folder) / folder
    if kind_of(base) != "folder":
        raise DataError(f"{name}: {base} is missing or not a folder; {_LAYOUT}")
    has = {part for part in ("train", "test", "val") if kind_of(base / part) == "folder"}
    if "train" in has and len(has) == 1:
        raise DataError(f"{name}: {base} has train/ and neither test/ nor val/; {_LAYOUT}")
    if has and "train" not in has:
        raise DataError(f"{name}: {base} has {min(has)}/ and no train/; {_LAYOUT}")
    if has:
        return _parts(name, base, ["train", "val"] if len(has) == 3 else ["train"], min(has - {"train"}), _LAYOUT)
    return _split_off(name, base, _classes(name, base, "", _LAYOUT))


def _parts(name: str, base: Path, train: Sequence[str], test: str, layout: str) -> Listing:
    """A listing of folders that each hold the same class folders."""
    found = {part: _classes(name, base, part, layout) for part in (*train, test)}
    names = list(found[train[0]])
    for part, classes in found.items():
        if alien := min(classes.keys() - set(names), default=None):
            raise DataError(f"{name}: {part}/ of {base} has the class {alien!r} that {train[0]}/ has not")
        if lost := min(set(names) - classes.keys(), default=None):
            raise DataError(f"{name}: {train[0]}/ of {base} has the class {lost!r} that {part}/ has not")
    labelled = {part: [(path, label) for label, own in enumerate(names) for path in found[part][own]] for part in found}
    pairs = [pair for part in train for pair in labelled[part]]
    return Listing(base, len(names), *_columns(pairs), *_columns(labelled[test]))


def _split_off(name: str, base: Path, classes: Mapping[str, Sequence[str]]) -> Listing:
    import numpy as np

    from trainables.data.stratify import stratified

    pairs = [(path, label) for label, paths in enumerate(classes.values()) for path in paths]
    if len(pairs) < 4:
        raise DataError(f"{name}: {base} has {len(pairs)} images, too few for training, validation and test")
    labels = np.array([label for _, label in pairs])
    size = max(1, round(FOLDER_TEST_SHARE * len(pairs)))
    test = set(stratified(labels, size, FOLDER_TEST_SEED, "image folder test set").tolist())
    kept = [pair for i, pair in enumerate(pairs) if i not in test]
    return Listing(base, len(classes), *_columns(kept), *_columns([pairs[i] for i in sorted(test)]))


def _columns(pairs: Sequence[tuple[str, int]]) -> tuple[list[str], list[int]]:
    return [path for path, _ in pairs], [label for _, label in pairs]


def _classes(name: str, base: Path, part: str, layout: str) -> dict[str, list[str]]:
    """The images of each class folder of `base / part`, relative to `base`, in ImageFolder's order."""
    top = base / part
    found: dict[str, list[str]] = {}
    for entry in _entries(str(top)):
        if entry.is_dir():
            own = os.path.join(part, entry.name)
            found[entry.name] = list(_images(name, str(base), own, (entry.inode(),)))
            if not found[entry.name]:
                raise DataError(
                    f"{name}: the class folder {entry.path} holds no images ({', '.join(EXTENSIONS)});"
                    " fill or remove it"
                )
    if len(found) < 2:
        what = "no class folders" if not found else f"only one class folder, {min(found)}/"
        raise DataError(f"{name}: {top} has {what}; {layout}")
    return found


def _images(name: str, base: str, folder: str, above: tuple[int, ...]) -> Iterator[str]:
    """Images in and below a folder: its own first, then those of its subfolders, each in the order of their names."""
    subfolders = []
    for entry in _entries(os.path.join(base, folder)):
        if entry.is_dir():
            subfolders.append(entry)
        elif entry.name.lower().endswith(EXTENSIONS):
            if not entry.is_file():
                raise DataError(f"{name}: {entry.path} is no file, or a link to nothing")
            yield os.path.join(folder, entry.name)
    for entry in subfolders:
        inode = os.stat(entry.path).st_ino if entry.is_symlink() else entry.inode()
        if inode in above:
            raise DataError(f"{name}: {entry.path} is a link to a folder that it lies in; remove it")
        yield from _images(name, base, os.path.join(folder, entry.name), (*above, inode))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise unreadable(Path(folder), error) from None
