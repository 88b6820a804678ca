"""Which folder a person means who writes a study's name, a path or an address. No Ray, no torch."""

from __future__ import annotations

import re

from study.files import StoreError, child
from study.store import StudyFolder

#: Where studies are kept if neither their file nor the command line says.
STORAGE = "results"

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def is_plain(name: str) -> bool:
    """Whether it can be a study's name: it becomes a folder, a Ray experiment and a metric label."""
    return _PLAIN.fullmatch(name) is not None


def check_name(name: str) -> str:
    """A study's name as it came.

    Raises:
        ValueError: it is none.
    """
    if not is_plain(name):
        raise ValueError(f"{name!r} must be letters, digits, _ and -, at most 100, beginning with a letter or digit")
    return name


def folder_of(text: str, storage: str | None = None) -> StudyFolder:
    """The folder of a study that has one.

    Args:
        text: a study's name, or its folder as a path or an address. A plain word is a name in the storage and, where no
            storage is named, also a folder of that name here.
        storage: folder or address that holds studies; with one, `text` has to be a name.

    Raises:
        StoreError: there is no such study, the word means two of them, or a storage cannot be read.
    """
    if storage is not None:
        if not is_plain(text):
            raise StoreError(f"{text}: with --storage write the study's name: letters, digits, _ and -")
        return _present(text, [StudyFolder(child(storage, text))])
    if is_plain(text):
        return _present(text, [StudyFolder(text), StudyFolder(child(STORAGE, text))])
    return _present(text, [StudyFolder(text)])


def folder_elsewhere(text: str, storage: str | None = None) -> StudyFolder:
    """The folder of a study that somebody else sees, a cluster say: not looked for unless a word alone names it.

    Args:
        text: as for `folder_of`.
        storage: as for `folder_of`.

    Raises:
        StoreError: a word without a storage names no study here.
    """
    if is_plain(text) and storage is not None:
        return StudyFolder(child(storage, text))
    return folder_of(text, storage) if is_plain(text) or storage is not None else StudyFolder(text)


def _present(text: str, places: list[StudyFolder]) -> StudyFolder:
    there = [folder for folder in places if _has_study(folder)]
    if len(there) > 1:
        raise StoreError(f"{text}: could be {' or '.join(folder.uri for folder in there)}; write its path")
    if there:
        return there[0]
    if text.endswith((".yaml", ".yml")):
        raise StoreError(f"{text}: write the study's name or its folder, not its file")
    if not is_plain(text):
        raise StoreError(f"{places[0].uri} holds no study (no study.json)")
    looked = " or ".join(folder.uri for folder in places)
    raise StoreError(f"{text}: no study in {looked}; --storage says where studies are kept")


def _has_study(folder: StudyFolder) -> bool:
    """Also one that is only about to begin, which has its lock first."""
    return folder.read("study.json") is not None or bool(folder.names("lock"))
