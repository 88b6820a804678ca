"""What a submission uploads: the study file, and the weights that it names by a relative path. Nothing else.

Data sets and storage are named by what every node sees; a relative path would mean another place on each.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath

from study.files import Files
from study.spec import Study, StudyError

#: The study file's name in the job's working directory.
FILE = "study.yaml"

#: Bytes that the head takes in one upload (aiohttp's limit in Ray's dashboard), with room for the archive's own.
MOST = 100 * 1024**2 - 64 * 1024


def check_places(study: Study) -> None:
    """Refuse places that are not the same on every node.

    Raises:
        StudyError: with every such place.
        study.files.StoreError: the storage's address is none, or holds credentials.
    """
    problems = []
    Files(study.storage)
    if "://" not in study.storage and not os.path.isabs(study.storage):
        problems.append(
            f"storage: {study.storage} is a relative path, another folder on every node; give one that all nodes see "
            "(--storage /shared/studies or s3://bucket/studies)"
        )
    if study.data is not None and not os.path.isabs(os.path.expanduser(study.data)):
        problems.append(
            f"data: {study.data} is a relative path, another folder on every node; give an absolute one, or leave it "
            "to SHARPNESS_STUDY_DATA on the head"
        )
    for path in _weights(study):
        if ".." in PurePosixPath(path).parts:
            problems.append(f"pretrained: {path} leads out of this folder; copy it here, or give an absolute path")
    if problems:
        raise StudyError(problems)


def pack(study: Study, text: str, folder: Path) -> None:
    """Put what is uploaded into an empty folder.

    Args:
        study: whose places have been checked.
        text: the study file as its user wrote it.
        folder: where to put it.

    Raises:
        StudyError: a file of weights cannot be read, or all together are more than the head takes.
    """
    (folder / FILE).write_text(text, encoding="utf-8")
    sizes = {FILE: len(text.encode())}
    for path in _weights(study):
        try:
            sizes[path] = Path(path).stat().st_size
        except OSError as error:
            raise StudyError([f"pretrained: cannot read {path}: {error.strerror or error}"]) from None
    if (total := sum(sizes.values())) > MOST:
        largest = max(sizes, key=lambda name: sizes[name])
        raise StudyError(
            [
                f"{largest}: {_megabytes(sizes[largest])} of {_megabytes(total)} to upload, and the cluster takes "
                f"{_megabytes(MOST)}; put weights where every node sees them and give the absolute path"
            ]
        )
    for path in sizes.keys() - {FILE}:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(path, target)
        except OSError as error:
            raise StudyError([f"pretrained: cannot read {path}: {error.strerror or error}"]) from None


def _weights(study: Study) -> list[str]:
    """The files of weights that a study names by a relative path."""
    from trainables.models.weights import WeightsError, weights_source

    found = set()
    for _, recipe in [*study.points, *study.corners()]:
        if recipe.pretrained is None:
            continue
        try:
            source = weights_source(recipe.pretrained, model=recipe.model)
        except WeightsError as error:
            raise StudyError([str(error)]) from None
        if source.path is not None and not source.path.is_absolute():
            found.add(str(source.path))
    return sorted(found)


def _megabytes(size: int) -> str:
    return f"{size / 1024**2:,.1f} MiB"
