"""A folder on any filesystem that pyarrow reaches: whole writes, patient reads, one line for what goes wrong.

A local file is written beside its name, forced to the disk and renamed, so that whoever looks sees the old file or the
new one, also after a power cut. An object appears when its upload is complete. Faults that pass by themselves (a server
that answers 500, a time-out, a stale NFS handle) are waited out; those that do not (a full or read-only disk, a refused
key) end in a StoreError at once.
"""

from __future__ import annotations

import errno
import logging
import os
import posixpath
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pyarrow import fs

#: Seconds for which a store that does not answer is tried again before the run stops.
PATIENCE = float(os.environ.get("SHARPNESS_STUDY_STORE_PATIENCE", "120"))

#: Seconds before the first further try (doubled each time), the longest pause, and when a person is told.
FIRST_PAUSE, LONGEST_PAUSE, TOLD_AFTER = 0.25, 15.0, 1.0

#: What a file is called until it is whole.
TEMPORARY = ".tmp"

#: Local faults that another try may not meet; every other one is told at once.
_PASSING = {
    errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.ECONNRESET, errno.EREMOTEIO,
}  # fmt: skip

#: What no further try changes, in the words of object stores.
_REFUSED = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN_ID"
    r"|EXPIRED_TOKEN|HTTP (response code|status) (401|403|404)"
)

T = TypeVar("T")

_log = logging.getLogger(__name__)


class StoreError(Exception):
    """The folder cannot be used; the message is one line that says why."""


def child(storage: str, name: str) -> str:
    """The address of `name` in a storage: a local path, or a URI whose query stays behind the path."""
    base, mark, query = storage.partition("?") if "://" in storage else (storage, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


class Files:
    """Whole writes and reads below one folder. Small and picklable: workers get a copy.

    Args:
        uri: a local path, or a URI that pyarrow knows (`s3://bucket/prefix/name`).

    Raises:
        StoreError: the address would be misread, or holds credentials.
    """

    def __init__(self, uri: str) -> None:
        uri = uri.removeprefix("file://")
        if re.match(r"^[A-Za-z][A-Za-z0-9+.-]+:/*([^/]|$)", uri) and not re.match(r"^[^:]+://[^/]", uri):
            raise StoreError(f"{uri}: not a path; a remote storage is scheme://bucket/prefix")
        if "://" in uri and "@" in uri.partition("://")[2].partition("/")[0]:
            # It would be printed, recorded and put into reports.
            raise StoreError("storage: leave credentials out of the address; give them by environment or profile")
        self.uri = uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().absolute())

    def __getstate__(self) -> dict[str, str]:
        return {"uri": self.uri}

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri

    @cached_property
    def _place(self) -> tuple[fs.FileSystem, str]:
        from pyarrow import fs

        try:
            if self.is_local:
                return fs.LocalFileSystem(), self.uri
            return fs.FileSystem.from_uri(self.uri)
        except Exception as error:
            raise StoreError(f"{self.uri}: not a storage that can be reached ({error})") from None

    def path(self, *parts: str) -> str:
        """Where a file lies, as its filesystem names it."""
        return posixpath.join(self._place[1], *parts)

    def write(self, data: bytes, *parts: str) -> None:
        """Write a file whole or not at all.

        Raises:
            StoreError: it could not be written; an older version of it is as it was.
        """
        target = self.path(*parts)
        put = self._put_local if self.is_local else self._put_object
        _patiently(f"write {target}", lambda: put(data, target))

    def read(self, *parts: str) -> bytes | None:
        """The file's bytes, or None if there is no such file."""
        from pyarrow import fs

        system, target = self._place[0], self.path(*parts)

        def get() -> bytes | None:
            try:
                if system.get_file_info(target).type != fs.FileType.File:
                    return None
                with system.open_input_stream(target) as source:
                    return bytes(source.read())
            except FileNotFoundError:
                return None

        return _patiently(f"read {target}", get)

    def names(self, *parts: str) -> list[str]:
        """Sorted names in a folder; empty if there is none."""
        return sorted({posixpath.basename(path) for path, _ in self._listed(False, *parts)})

    def walk(self, *parts: str) -> dict[str, int]:
        """Every file below a folder: its path relative to it, and its size in bytes."""
        from pyarrow import fs

        root = self.path(*parts).rstrip("/") + "/"
        found = self._listed(True, *parts)
        return {path.removeprefix(root): int(info.size) for path, info in found if info.type == fs.FileType.File}

    def delete(self, *parts: str) -> None:
        """Delete a file, if it is there."""
        target = self.path(*parts)

        def remove() -> None:
            with suppress(FileNotFoundError):
                self._place[0].delete_file(target)

        _patiently(f"delete {target}", remove)

    def sweep(self, *parts: str) -> None:
        """Delete what writers that were killed have left half written."""
        if self.is_local:
            for name in self.walk(*parts):
                if name.endswith(TEMPORARY):
                    self.delete(*parts, name)

    def check_writable(self) -> None:
        """Raise StoreError if a file cannot be written here; leaves nothing behind that was not there."""
        if not self.is_local:
            self.write(b"", ".writable")
            self.delete(".writable")
            return
        # The deepest folder that exists decides; nothing is made to find out.
        place = Path(self._place[1])
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise StoreError(f"cannot write to {self.uri}: {place} is a file")
        probe = place / f".writable-{uuid.uuid4().hex[:8]}"
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StoreError(f"cannot write to {place}: {error.strerror or error}") from None

    def _listed(self, recursive: bool, *parts: str) -> Iterator[tuple[str, fs.FileInfo]]:
        from pyarrow import fs

        target = self.path(*parts)
        selector = fs.FileSelector(target, allow_not_found=True, recursive=recursive)
        found = _patiently(f"list {target}", lambda: self._place[0].get_file_info(selector))
        return ((info.path, info) for info in found)

    def _put_object(self, data: bytes, target: str) -> None:
        with self._place[0].open_output_stream(target) as out:
            out.write(data)

    def _put_local(self, data: bytes, target: str) -> None:
        folder = posixpath.dirname(target)
        made = absent(folder)
        os.makedirs(folder, exist_ok=True)
        temporary = f"{target}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
        try:
            with open(temporary, "wb") as out:
                out.write(data)
                out.flush()
                # Before the rename: after a power cut the new name must not stand for an empty file.
                os.fsync(out.fileno())
            os.replace(temporary, target)
        finally:
            with suppress(OSError):
                os.unlink(temporary)
        for changed in (folder, *(posixpath.dirname(new) for new in made)):
            _sync_folder(changed)


def absent(folder: str) -> list[str]:
    """A local folder and its parents as far as they are not there, the innermost first."""
    found = []
    while not os.path.isdir(folder):
        found.append(folder)
        folder = posixpath.dirname(folder)
    return found


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network filesystems cannot and say so.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _patiently(what: str, act: Callable[[], T]) -> T:
    """Do it, again while the fault may pass and the patience lasts.

    Raises:
        StoreError: `cannot WHAT: REASON`.
    """
    began, pause, told = time.monotonic(), FIRST_PAUSE, False
    while True:
        try:
            return act()
        except OSError as error:
            waited = time.monotonic() - began
            if not _may_pass(error) or waited + pause > PATIENCE:
                tried = f" (tried for {waited:.0f} s)" if waited >= 1 else ""
                raise StoreError(f"cannot {what}: {in_a_line(error)}{tried}") from error
            if not told and waited >= TOLD_AFTER:
                told = True
                _log.warning("cannot %s: %s; trying again for %.0f s", what, in_a_line(error), PATIENCE)
            # Many workers that met one fault do not come back at one moment.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)


def _may_pass(error: OSError) -> bool:
    if error.errno is not None:
        return error.errno in _PASSING
    # pyarrow's errors of object stores have a text and no number.
    return not isinstance(error, (FileNotFoundError, PermissionError)) and not _REFUSED.search(str(error))


def in_a_line(error: OSError) -> str:
    """What an error says, in one line of bearable length."""
    return " ".join((error.strerror or str(error)).split())[:300]
