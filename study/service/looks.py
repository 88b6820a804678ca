"""What is looked at on one machine before a study is submitted: versions, storage, data, disk. No Ray.

The client looks at itself with `facts`; on the cluster a task on every node does, see `study.service.probe`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from study.files import Files, StoreError, absent, child

#: Seconds for which another node's file may stay unseen: an NFS client may keep a listing for as long as that.
SEEN_WITHIN = 15.0


@cache
def version() -> str:
    """This project's version and, behind a plus sign, 12 digits of the SHA-256 of what decides on a number or a file.

    Of an editable checkout the version alone says nothing; `analysis` does not take part in a run.
    """
    import trainables

    here = Path(__file__).parents[1]
    there = Path(str(trainables.__file__)).parent
    digest = hashlib.sha256()
    for package in (here, there):
        for file in sorted(package.rglob("*.py")):
            digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes() + b"\0")
    return f"{_version('sharpness-study') or 'unknown'}+{digest.hexdigest()[:12]}"


def facts() -> dict[str, Any]:
    """Versions of this machine: `host`, `python`, `ray`, `torch` (without what it was built for), `version`."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "ray": _version("ray"),
        "torch": (_version("torch") or "").partition("+")[0] or None,
        "version": version(),
    }


def torch_has_cuda() -> bool:
    """Whether torch was built for CUDA; it takes seconds to import."""
    import torch

    return torch.version.cuda is not None


def free_space(storage: str) -> dict[str, int]:
    """Free bytes where this machine keeps temporary files and, where it is a local folder, in the storage."""
    places = {"temporary": tempfile.gettempdir()}
    if (files := Files(storage)).is_local:
        missing = absent(files.uri)
        places["storage"] = os.path.dirname(missing[-1]) if missing else files.uri
    return {name: shutil.disk_usage(place).free for name, place in places.items()}


def data_marks(datasets: Iterable[Sequence[str | None]], root: str | None) -> dict[str, dict[str, str]]:
    """Of each data set its `fingerprint`, or the `problem` with it here.

    Args:
        datasets: names, each with the folder of an image_folder or None.
        root: folder of the data sets' files.
    """
    from trainables.data import DataError, fingerprint

    found = {}
    for name, folder in datasets:
        assert name is not None
        try:
            found[folder or name] = {"fingerprint": fingerprint(name, root, folder)}
        except DataError as error:
            found[folder or name] = {"problem": str(error).splitlines()[0]}
    return found


def weights_marks(files: Iterable[str]) -> dict[str, dict[str, str]]:
    """As `data_marks`, of files of weights by path."""
    from trainables.models.weights import WeightsError, weights_mark

    found = {}
    for file in files:
        try:
            found[file] = {"fingerprint": weights_mark(file)}
        except WeightsError as error:
            found[file] = {"problem": str(error).splitlines()[0]}
    return found


class Trace:
    """A small file of this node's in the storage, by which the other nodes know that they see the same one.

    Args:
        storage: what holds the studies, a path or a URI.
        token: of this look at the cluster.
        name: of this node, fit for a file's name.

    Raises:
        StoreError: the address is none.
    """

    def __init__(self, storage: str, token: str, name: str) -> None:
        self._files, self._token, self._name = Files(child(storage, f".preflight-{token}")), token, name
        self._made: list[str] = []

    def write(self) -> str | None:
        """Write it and read it back; what went wrong, or None."""
        if self._files.is_local:
            self._made = absent(self._files.uri)
        try:
            self._files.write(self._content(self._name), f"{self._name}.node")
            back = self._files.read(f"{self._name}.node")
        except (StoreError, OSError) as error:
            return str(error)
        return None if back == self._content(self._name) else f"{self._files.uri} does not keep what is written to it"

    def unseen(self, names: Iterable[str], patience: float = SEEN_WITHIN) -> dict[str, str]:
        """Of other nodes that have written those whose file is not listed or not whole here, and why."""
        deadline, left = time.monotonic() + patience, dict.fromkeys(names, "")
        while True:
            for name in list(left):
                try:
                    if f"{name}.node" not in self._files.names():
                        left[name] = "is not there"
                    elif self._files.read(f"{name}.node") != self._content(name):
                        left[name] = "is not what was written"
                    else:
                        del left[name]
                except (StoreError, OSError) as error:
                    left[name] = str(error)
            if not left or time.monotonic() >= deadline:
                return left
            time.sleep(0.5)

    def delete(self) -> str | None:
        """Delete it; what went wrong, or None."""
        try:
            self._files.delete(f"{self._name}.node")
        except (StoreError, OSError) as error:
            return str(error)
        return None

    def leave(self) -> None:
        """Remove the folders that were made for it, once every node has deleted its own."""
        if self._files.is_local:
            with suppress(OSError):
                for folder in dict.fromkeys([self._files.uri, *self._made]):
                    os.rmdir(folder)
            return
        # pyarrow leaves an empty object for the folder of a file that it deletes.
        with suppress(StoreError, OSError):
            if not self._files.names():
                system, root = self._files._place
                system.delete_dir(root)

    def _content(self, name: str) -> bytes:
        return f"{self._token} {name}\n".encode()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
