"""A look at a data set's files before a study is planned: how many images of how many classes, and which bytes."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace

from trainables.data.files import (
    DIGITS,
    DataError,
    DatasetFacts,
    chunks,
    facts_of,
    published_fingerprint,
    unreadable,
)
from trainables.data.listing import Listing, listed

#: Bytes up to which the contents of image files are part of their fingerprint; it takes seconds to read them.
CONTENTS_LIMIT = 2 << 30


@dataclass(frozen=True)
class Survey:
    """What a plan needs to know of its data.

    Attributes:
        facts: with all numbers known (`side` stays None for images of any size).
        fingerprint: 16 hexadecimal digits that change with the data.
    """

    facts: DatasetFacts
    fingerprint: str


def survey(dataset: str, root: str | None = None, folder: str | None = None) -> Survey:
    """Facts and fingerprint of a data set, without decoding an image and without torch.

    The fingerprint of a data set of fixed size is the SHA-256 of its files' bytes. That of image files is taken over
    each file's path, size and bytes, in the order of the paths; above `CONTENTS_LIMIT` bytes in all (ImageNet has
    150 GB) over paths and sizes alone, so that an image that was changed and kept its size is not noticed there.

    Args:
        dataset: a key of `DATASETS`.
        root: the data root, for data sets that have files.
        folder: of `image_folder`, relative to the root; not used by the others.

    Raises:
        DataError: files are missing, unreadable or wrong, or the name is unknown; one line.
    """
    facts = facts_of(dataset)
    if facts.side is not None:
        return Survey(facts, published_fingerprint(dataset, root))
    listing = listed(dataset, root, folder)
    if facts.train is None:
        n = len(listing.train)
        facts = replace(facts, classes=listing.classes, train=n, test=len(listing.test), validation=max(1, n // 10))
    return Survey(facts, _fingerprint(dataset, listing))


def fingerprint(name: str, root: str | None = None, folder: str | None = None) -> str:
    """The fingerprint of `survey`."""
    return survey(name, root, folder).fingerprint


def _fingerprint(name: str, listing: Listing) -> str:
    base = str(listing.base)
    sizes = {}
    for file in sorted([*listing.train, *listing.test, *listing.others]):
        path = os.path.join(base, file)
        try:
            sizes[file] = os.stat(path).st_size
        except OSError as error:
            raise unreadable(listing.base / file, error) from None
        if not sizes[file]:
            raise DataError(f"{name}: {path} is empty; replace or remove it")
    whole = sum(sizes.values()) <= CONTENTS_LIMIT
    state = hashlib.sha256()
    for file, size in sizes.items():
        # A path holds no zero byte and its size says where the content ends, so that no two sets read the same.
        state.update(b"%s\0%d\0" % (os.fsencode(file), size))
        if whole:
            for chunk in chunks(listing.base / file):
                state.update(chunk)
    return state.hexdigest()[:DIGITS]
