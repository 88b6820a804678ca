"""What a study's driver records: how trials ended, what the scheduler decided, and every epoch.

    records/<run>/<kind>-<first>-<last>.parquet      kind: ends, decisions, history

The driver is the only writer. Each run has a folder of its own, so no run, however late or wrongly alive, overwrites
another's. Within a run the pieces are numbered; when there are many small ones they are merged into one whose name
spans theirs. A piece whose range lies inside another's is superseded, so a merge that is cut short is harmless, and a
reader needs no table of contents: it lists, and lists again if a piece has gone meanwhile.

Parquet has checksums for its pages at most, and one flipped bit in the rest can pass for other data. So every file has
the SHA-256 of its other bytes before its footer, where a Parquet reader, which goes by offsets, does not look.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from study.files import Files, StoreError

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = ("ends", "decisions", "history")

FOLDER = "records"

#: So many pieces of one size are merged into one of the next.
FAN = 64

#: Seconds between two writes of what has ended, and of the epochs of trials that go on.
ENDS_EVERY, EPOCHS_EVERY = 1.0, 15.0

#: Times a reader lists again because a piece that it has seen is gone.
_LISTINGS = 100

#: Bytes of a file's digest, and of what is after a Parquet file's footer: its length and the format's mark.
_DIGEST, _TAIL = 32, 8

_PIECE = re.compile(r"^([^/]+)/([a-z]+)-(\d{8})-(\d{8})\.parquet$")

Row = Mapping[str, Any]


@dataclass(frozen=True, order=True)
class Piece:
    """One file: the numbers `first` to `last` of a kind in a run."""

    run: str
    kind: str
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.first:08d}-{self.last:08d}.parquet"

    def spans(self, other: Piece) -> bool:
        return self != other and self.first <= other.first and other.last <= self.last


def pieces(files: Files) -> list[Piece]:
    """Every piece that counts, in the order of runs and numbers; also while pieces are merged."""
    # No listing of a folder is a picture of one moment: one may come too early for a merged piece and too late for its
    # parts. The next one sees it, since between two merges of one number lie at least FAN writes.
    return _in_force({**files.walk(FOLDER), **files.walk(FOLDER)})


def _in_force(names: Iterable[str]) -> list[Piece]:
    kept: list[Piece] = []
    # A piece comes after any that spans it: wider ones first.
    for piece in sorted(_named(names), key=lambda p: (p.run, p.kind, p.first, -p.last)):
        last = kept[-1] if kept else None
        if last is None or (last.run, last.kind) != (piece.run, piece.kind) or not last.spans(piece):
            kept.append(piece)
    return kept


def _named(names: Iterable[str]) -> list[Piece]:
    return [Piece(m[1], m[2], int(m[3]), int(m[4])) for name in names if (m := _PIECE.match(name))]


def read(
    files: Files,
    kind: str,
    columns: Sequence[str] | None = None,
    where: Callable[[pa.Table], pa.Table] | None = None,
    chosen: Callable[[Piece], bool] | None = None,
) -> pa.Table:
    """Everything of one kind as one table, also while it is being written.

    Args:
        files: the study's folder.
        kind: one of `KINDS`.
        columns: only these, as far as they are there.
        where: takes from each piece's rows those that are wanted, before the pieces are put together.
        chosen: which pieces; all without it.

    Raises:
        StoreError: a piece is damaged or cannot be read.
    """
    import pyarrow as pa

    before: list[Piece] | None = None
    # A piece never changes: what has been read of it stands while the rest is listed again.
    found: dict[Piece, pa.Table] = {}
    for _ in range(_LISTINGS):
        listed = [piece for piece in pieces(files) if piece.kind == kind]
        if _torn(listed) and listed != before:
            # A merge went on under the listing's eyes. A gap that stays is somebody's doing.
            before = listed
            continue
        wanted = [piece for piece in listed if chosen is None or chosen(piece)]
        missing = [piece for piece in wanted if piece not in found]
        try:
            with ThreadPoolExecutor(8) as pool:
                for piece, table in zip(
                    missing, pool.map(lambda piece: _table(files, piece, columns, where), missing), strict=True
                ):
                    found[piece] = table
        except _Gone:
            continue
        tables = [found[piece] for piece in wanted]
        # A column may be all null in one piece and numbers in another.
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
    raise StoreError(f"{files.path(FOLDER)} changes faster than it can be read")


def _torn(listed: Sequence[Piece]) -> bool:
    """Whether numbers are missing between pieces."""
    ends: dict[tuple[str, str], int] = {}
    for piece in listed:
        if piece.first != ends.get((piece.run, piece.kind), 0) + 1:
            return True
        ends[piece.run, piece.kind] = piece.last
    return False


class _Gone(Exception):
    """A piece has been merged into another since it was listed."""


def _table(
    files: Files, piece: Piece, columns: Sequence[str] | None, where: Callable[[pa.Table], pa.Table] | None = None
) -> pa.Table:
    place = (FOLDER, piece.run, piece.name)
    data = files.read(*place)
    if data is None:
        raise _Gone(files.path(*place))
    found = from_parquet(data, files.path(*place), columns)
    return found if where is None else where(found)


def from_parquet(data: bytes, path: str, columns: Sequence[str] | None = None, *, sealed: bool = True) -> pa.Table:
    """A table from a file's bytes, checked by its digest.

    Args:
        data: the file's bytes.
        path: what to call it in an error.
        columns: only these, as far as they are there.
        sealed: False for a file of an older version, which has no digest.

    Raises:
        StoreError: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if sealed:
        # Before anything of it is believed: what reads Parquet may end in any error on bytes that are none.
        whole, footer = memoryview(data), _footer(memoryview(data))
        at = footer - _DIGEST
        if at < 0 or whole[at:footer] != _digest(whole[:at], whole[footer:]):
            raise _damaged(path, "it does not match its checksum")
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        return file.read(columns=None if columns is None else list(columns), use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, " ".join(str(error).split())[:100]) from None


def _damaged(path: str, reason: str) -> StoreError:
    return StoreError(
        f"{path} is damaged ({reason}); put its copy back, or move it away and run the study again: what only it held "
        "is then made again or missing"
    )


def to_parquet(rows: Sequence[Row] | pa.Table) -> bytes:
    """A table's bytes, with their digest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(_same_keys(rows))
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    with out.getbuffer() as data:
        footer = _footer(data)
        return b"".join((data[:footer], _digest(data[:footer], data[footer:]), data[footer:]))


def _footer(data: memoryview) -> int:
    """Where a Parquet file's footer begins, as the file says; below zero if it cannot."""
    return len(data) - _TAIL - int.from_bytes(data[-_TAIL : -_TAIL + 4], "little")


def _digest(pages: memoryview, footer: memoryview) -> bytes:
    digest = hashlib.sha256(pages)
    digest.update(footer)
    return digest.digest()


def _same_keys(rows: Iterable[Row]) -> list[dict[str, Any]]:
    rows = list(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in keys} for row in rows]


def merge(files: Files, parts: Sequence[Piece]) -> Piece:
    """Put neighbouring pieces of a run and kind into one, then delete them.

    Raises:
        StoreError: a piece is gone, is damaged, or the new one cannot be written; nothing is lost.
    """
    import pyarrow as pa

    try:
        with ThreadPoolExecutor(8) as pool:
            tables = list(pool.map(lambda piece: _table(files, piece, None), parts))
    except _Gone as gone:
        raise StoreError(f"{gone} is gone; somebody else changes this study's folder") from None
    whole = Piece(parts[0].run, parts[0].kind, parts[0].first, parts[-1].last)
    merged = pa.concat_tables(tables, promote_options="permissive")
    files.write(to_parquet(merged), FOLDER, whole.run, whole.name)
    for piece in parts:
        files.delete(FOLDER, piece.run, piece.name)
    return whole


def tidy(files: Files, runs: Iterable[str] | None = None) -> None:
    """Merge the small pieces that runs have left, and delete the superseded ones that a merge cut short has left.

    Args:
        files: the study's folder.
        runs: of these, which are over; of all without it.

    Raises:
        StoreError: see `merge`.
    """
    wanted = None if runs is None else set(runs)
    names = {**files.walk(FOLDER), **files.walk(FOLDER)}
    listed = [piece for piece in _in_force(names) if wanted is None or piece.run in wanted]
    for piece in set(_named(names)) - set(listed):
        if wanted is None or piece.run in wanted:
            files.delete(FOLDER, piece.run, piece.name)
    rows: list[list[Piece]] = [[]]
    for piece in (piece for piece in listed if piece.first == piece.last):
        last = rows[-1][-1] if rows[-1] else piece
        if rows[-1] and (last.run, last.kind, last.last + 1) != (piece.run, piece.kind, piece.first):
            rows.append([])
        rows[-1].append(piece)
    for row in rows:
        if len(row) > 1:
            merge(files, row)


@dataclass
class Recording:
    """A run's records as its driver writes them.

    Decisions are on disk when `decide` returns: they are acted on next. Ends and epochs wait for company: `tick`,
    called often, writes what is due. What a killed driver had not written is had again from the trials' checkpoints.

    Args:
        files: the study's folder.
        run: the run's id, which no other run has.
        check: called before anything is written; raises StoreError if this run may not write any more.
    """

    files: Files
    run: str
    check: Callable[[], None] = lambda: None
    _waiting: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    _numbers: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    _levels: dict[str, list[list[Piece]]] = field(default_factory=lambda: {kind: [[]] for kind in KINDS})
    _written: float = field(default_factory=lambda: time.monotonic() - ENDS_EVERY)

    def __getstate__(self) -> dict[str, Any]:
        """Without `check`: Ray pickles a scheduler for a restore of its own that this project never uses."""
        return {name: value for name, value in vars(self).items() if name != "check"}

    def history(self, trial: str, rows: Iterable[Row]) -> None:
        """Take epochs of a trial: one row per seed and epoch."""
        self._waiting["history"] += [{"trial": trial, **row} for row in rows]

    def end(self, trial: str, rows: Iterable[Row]) -> None:
        """Take how a trial ended: one row per seed."""
        self._waiting["ends"] += [{"trial": trial, **row} for row in rows]

    def decide(self, trial: str, row: Row) -> None:
        """Write a scheduler's decision on a trial.

        Raises:
            StoreError: it could not be written; it must not be acted on.
        """
        self._write("decisions", [{"trial": trial, **row}])
        self._merge("decisions")

    def tick(self) -> None:
        """Write what has waited long enough.

        Raises:
            StoreError: it could not be written.
        """
        passed = time.monotonic() - self._written
        if (self._waiting["ends"] and passed >= ENDS_EVERY) or (self._waiting["history"] and passed >= EPOCHS_EVERY):
            self.flush()

    def flush(self) -> None:
        """Write everything that waits. Epochs first: a trial that has ended has all of them.

        Raises:
            StoreError: it could not be written; it still waits.
        """
        for kind in ("history", "ends"):
            if self._waiting[kind]:
                self._write(kind, self._waiting[kind])
                self._waiting[kind] = []
                self._merge(kind)
        self._written = time.monotonic()

    def close(self) -> None:
        """Write everything and leave few files.

        Raises:
            StoreError: it could not be written.
        """
        self.flush()
        tidy(self.files, [self.run])
        self._levels = {kind: [[]] for kind in KINDS}

    def _write(self, kind: str, rows: Sequence[Row]) -> None:
        self.check()
        number = self._numbers[kind] + 1
        piece = Piece(self.run, kind, number, number)
        self.files.write(to_parquet(rows), FOLDER, piece.run, piece.name)
        self._levels[kind][0].append(piece)
        self._numbers[kind] = number

    def _merge(self, kind: str) -> None:
        """Merge what is full, with every level that this fills; each row is written a few times, however many."""
        levels = self._levels[kind]
        level, full = 0, list[Piece]()
        while level < len(levels) and len(levels[level]) + bool(full) >= FAN:
            full = levels[level] + full
            level += 1
        if full:
            whole = merge(self.files, full)
            levels[:level] = [[] for _ in range(level)]
            if level == len(levels):
                levels.append([])
            levels[level].append(whole)
