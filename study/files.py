"""A folder on any filesystem that pyarrow reaches: whole writes, patient reads, one line for what goes wrong.

A local file is written beside its name, forced to the disk and renamed, so that whoever looks sees the old file or the
new one, also after a power cut. An object appears when its upload is complete. Faults that pass by themselves (a server
that answers 500, a time-out, a stale NFS handle) are waited out; those that do not (a full or read-only disk, a refused
key) end in a StoreError at once.

SHARPNESS_STUDY_STORE_PATIENCE sets the seconds for which they are waited out.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import posixpath
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pyarrow import fs

VARIABLE = "SHARPNESS_STUDY_STORE_PATIENCE"

#: Seconds for which a store that does not answer is tried again before the run stops; the environment's, if it has any.
PATIENCE: float | None = None
DEFAULT_PATIENCE = 120.0

#: Seconds before the first further try (doubled each time), the longest pause, and when a person is told.
FIRST_PAUSE, LONGEST_PAUSE, TOLD_AFTER = 0.25, 15.0, 1.0

#: Of each request to an object store: seconds without a sign of the server, seconds to reach it, and tries of the
#: client's own, a second or so apart, so that a lost part does not cost its whole upload.
ANSWER_WITHIN, REACH_WITHIN, TRIES = 10.0, 5.0, 2

#: Bytes that go to an object store in one request and not in three or more; pyarrow could do it up to 10 MB.
ONE_REQUEST = 5_000_000

#: Times that a folder is listed again because one below it has gone meanwhile.
_LISTINGS = 100

#: What a file is called until it is whole.
TEMPORARY = ".tmp"

#: Local faults that another try may not meet; every other one is told at once.
_PASSING = {
    errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.ECONNRESET, errno.EREMOTEIO,
}  # fmt: skip

#: What no further try changes, in the words of object stores. Of the HTTP statuses: wrong region or address, a request
#: that is refused, and 507, S3's full disk. Of curl's codes: an address that is none and certificates that do not fit.
_REFUSED = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN_ID"
    r"|EXPIRED_TOKEN|HTTP (?:response code|status) (?:3\d\d|4(?!08|09|25|29)\d\d|501|507)|curlCode: (?:1|3|60|77),"
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
        StoreError: the address would be misread, or holds credentials; the environment's patience is no number.
    """

    def __init__(self, uri: str) -> None:
        if uri.startswith("file://"):
            uri = uri.removeprefix("file://").removeprefix("localhost")
            if not uri.startswith("/"):
                raise StoreError(f"file://{uri}: not a path; a local storage is file:///path or just the path")
        if re.match(r"^[A-Za-z][A-Za-z0-9+.-]+:/*([^/]|$)", uri) and not re.match(r"^[^:]+://[^/]", uri):
            raise StoreError(f"{uri}: not a path; a remote storage is scheme://bucket/prefix")
        if "://" in uri and "@" in uri.partition("://")[2].partition("/")[0]:
            # It would be printed, recorded and put into reports.
            raise StoreError("storage: leave credentials out of the address; give them by environment or profile")
        patience()
        self.uri = uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().absolute())

    def __getstate__(self) -> dict[str, str]:
        return {"uri": self.uri}

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri

    @cached_property
    def _place(self) -> tuple[fs.FileSystem, str]:
        from pyarrow import fs

        if self.is_local:
            return fs.LocalFileSystem(), self.uri
        try:
            # Without a region in its address S3 is asked for it.
            system, root = _patiently(f"reach {self.uri}", lambda: fs.FileSystem.from_uri(self.uri))
            return self._with_timeouts(system, allow_delayed_open=False), root
        except StoreError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"{self.uri}: not a storage that can be reached ({reason})") from None

    @cached_property
    def _for_small(self) -> fs.FileSystem:
        """The filesystem that puts an object of at most `ONE_REQUEST` bytes.

        For larger ones it must not be taken: one whose first request fails it replaces with an empty one when its
        stream is closed (pyarrow 26).
        """
        return self._with_timeouts(self._place[0], allow_delayed_open=True)

    def _with_timeouts(self, system: fs.FileSystem, *, allow_delayed_open: bool) -> fs.FileSystem:
        """The same store; if it is S3, one whose calls come back in bearable time.

        What a URI gives tries 31 times: 6 seconds for a server that fails, and some minutes for one that is silent,
        before anybody can be told (pyarrow 26).
        """
        from pyarrow import fs

        # What pyarrow takes in a URI only would be lost.
        if not isinstance(system, fs.S3FileSystem) or "tls_verify_certificates=" in self.uri:
            return system
        make, (settings,) = system.__reduce__()
        return make(
            {
                **settings,
                # Not longer than the patience of the impatient, down to a second.
                "request_timeout": min(ANSWER_WITHIN, max(1.0, patience())),
                "connect_timeout": min(REACH_WITHIN, max(1.0, patience())),
                "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
                "allow_delayed_open": allow_delayed_open,
                # Without it a part that fails is forgotten when the stream is closed, and a piece becomes the object.
                "background_writes": True,
            }
        )

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
        target = self.path(*parts)
        get = self._get_local if self.is_local else self._get_object

        def found() -> bytes | None:
            try:
                return get(target)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

        return _patiently(f"read {target}", found)

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
        """Raise StoreError if a file cannot be written here. Leaves no file behind that was not there."""
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
        system = self._place[0]

        def look() -> list[fs.FileInfo]:
            for _ in range(_LISTINGS):
                with suppress(FileNotFoundError):
                    return list(system.get_file_info(selector))
            raise OSError(errno.EBUSY, "it changes faster than it can be listed")

        return ((info.path, info) for info in _patiently(f"list {target}", look))

    def _get_local(self, target: str) -> bytes:
        return Path(target).read_bytes()

    def _get_object(self, target: str) -> bytes:
        # Without the compression that pyarrow guesses from the name.
        with self._place[0].open_input_file(target) as source:
            size, data = source.size(), bytes(source.read())
        if len(data) != size:
            raise OSError(f"{len(data)} bytes came of {size}")
        return data

    def _put_object(self, data: bytes, target: str) -> None:
        def put() -> None:
            system = self._for_small if len(data) <= ONE_REQUEST else self._place[0]
            out = system.open_output_stream(target, compression=None)
            out.write(data)
            out.close()

        # A stream can only be closed: one that an exception has left in the middle would put what it holds so far into
        # the object's place. The exceptions of signals (Ctrl-C, a worker's SIGTERM) come to the main thread only.
        if threading.current_thread() is threading.main_thread():
            with ThreadPoolExecutor(1) as other:
                other.submit(put).result()
        else:
            put()

    def _put_local(self, data: bytes, target: str) -> None:
        folder = posixpath.dirname(target)
        made = absent(folder)
        try:
            os.makedirs(folder, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise NotADirectoryError(errno.ENOTDIR, f"{made[-1] if made else folder} is a file") from None
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


def patience() -> float:
    """Seconds for which a fault that may pass is waited out.

    Raises:
        StoreError: the environment says something that is no number of seconds.
    """
    if PATIENCE is not None:
        return PATIENCE
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text) if text else DEFAULT_PATIENCE
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise StoreError(f"{VARIABLE}: {text!r} is not a number of seconds")
    return seconds


def _patiently(what: str, act: Callable[[], T]) -> T:
    """Do it, again while the fault may pass and the patience lasts.

    Raises:
        StoreError: `cannot WHAT: REASON`.
    """
    began, pause, told, bearable = time.monotonic(), FIRST_PAUSE, False, patience()
    while True:
        try:
            done = act()
        except OSError as error:
            waited = time.monotonic() - began
            if not _may_pass(error) or waited >= bearable:
                tried = f" (tried for {waited:.0f} s)" if waited >= 1 else ""
                raise StoreError(f"cannot {what}: {in_a_line(error)}{tried}") from error
            if not told and waited >= TOLD_AFTER:
                told = True
                _log.warning("cannot %s: %s; trying again for %.0f s", what, in_a_line(error), bearable)
            # Many workers that met one fault do not come back at one moment. The last try is when the patience ends.
            time.sleep(min(pause * random.uniform(0.5, 1.0), bearable - waited))
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if told:
                _log.warning("the store answers again after %.0f s", time.monotonic() - began)
            return done


def _may_pass(error: OSError) -> bool:
    if error.errno is not None:
        return error.errno in _PASSING
    # pyarrow's errors of object stores have a text and no number.
    return not isinstance(error, (FileNotFoundError, PermissionError)) and not _REFUSED.search(str(error))


def in_a_line(error: OSError) -> str:
    """What an error says, in one line of bearable length."""
    text = " ".join((error.strerror or str(error)).split())
    # Which file it was is said already.
    return re.sub(r"^When .*?: (?=AWS Error)", "", text)[:300]
