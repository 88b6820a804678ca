"""The study's folder: the truth about a study, on any filesystem that pyarrow reaches.

    <storage>/<name>/
      study.json                     schema version, the checked study
      study.yaml                     the file as its user wrote it
      plan.parquet                   one row per planned replicate: cell, arm, seed, the recipe's columns
      chosen.json                    what a search has drawn, each cell before it is trained
      search.db                      Optuna's record of a search (SQLite), unless its study names a database
      runs/<run>.json                provenance of each run: when, where, with what versions, how it ended
      trials/<trial>/history.parquet     one row per seed and epoch, written by the trial
      trials/<trial>/decisions.parquet   the scheduler's decisions on it, written by the driver before they are acted on
      trials/<trial>/replicates.parquet  one row per seed when the trial has ended: that it exists means "ended"
      trials/<trial>/measures/<tag>.parquet  what was measured on its networks, see study.measured
      trials/<trial>/checkpoints/<epoch>.pt   with its checksum in the file
      report/                        what `study report` draws

Every file is written whole or not at all. A reader needs neither Ray nor torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

#: Raised when the layout changes in a way that an older reader would misread.
SCHEMA = 1

_MAGIC = b"sharpness-study checkpoint 1\n"

_OWN = {
    "plan.parquet",
    "chosen.json",
    "study.yaml",
    "study.json",
    "search.db",
    "search.db-journal",
    "runs",
    "trials",
    "report",
    ".writable",
}

#: A replicate with one of these is not trained again by the same plan.
ENDED = ("complete", "stopped", "diverged")


class StoreError(Exception):
    """The folder cannot be used; the message is one line that says why."""


def standing(row: Mapping[str, Any], scheduler: str) -> int | None:
    """How good an end a row of replicates.parquet is: 0 for the best, None if it is no end under this scheduler.

    A stop that another scheduler's rule decided is none. A stop without a scheduler followed from the cell's own end.
    """
    status = row["status"]
    if status == "stopped" and row.get("scheduler") not in (None, scheduler):
        return None
    return (*ENDED, "failed").index(status)


def child(storage: str, name: str) -> str:
    """The address of `name` in a storage: a local path, or a URI whose query stays behind the path."""
    base, mark, query = storage.partition("?") if "://" in storage else (storage, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


class StudyFolder:
    """Paths, whole writes and reads of one study's folder. Small and picklable: workers get a copy.

    Args:
        uri: a local path, or a URI that pyarrow knows (`s3://bucket/prefix/name`).
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

    # Bytes

    def path(self, *parts: str) -> str:
        return posixpath.join(self._place[1], *parts)

    def write(self, data: bytes, *parts: str) -> None:
        """Write a file whole or not at all.

        Raises:
            StoreError: it could not be written; an older version of it is as it was.
        """
        system, target = self._place[0], self.path(*parts)
        try:
            if not self.is_local:
                # An object appears when its upload is complete.
                with system.open_output_stream(target) as out:
                    out.write(data)
                return
            system.create_dir(posixpath.dirname(target), recursive=True)
            temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                with open(temporary, "wb") as out:
                    out.write(data)
                Path(temporary).replace(target)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {target}: {error.strerror or error}") from error

    def read(self, *parts: str) -> bytes | None:
        """The file's bytes, or None if there is no such file."""
        from pyarrow import fs

        system, target = self._place[0], self.path(*parts)
        try:
            if system.get_file_info(target).type != fs.FileType.File:
                return None
            with system.open_input_stream(target) as source:
                return bytes(source.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {target}: {error.strerror or error}") from error

    def names(self, *parts: str) -> list[str]:
        """Sorted names in a folder; empty if there is none."""
        from pyarrow import fs

        selector = fs.FileSelector(self.path(*parts), allow_not_found=True)
        try:
            return sorted(info.base_name for info in self._place[0].get_file_info(selector))
        except OSError as error:
            raise StoreError(f"cannot list {self.path(*parts)}: {error.strerror or error}") from error

    def delete(self, *parts: str) -> None:
        with suppress(FileNotFoundError):
            self._place[0].delete_file(self.path(*parts))

    # The study

    def save_study(self, spec: Mapping[str, Any], text: str, plan_rows: list[dict[str, Any]]) -> None:
        """Freeze what is about to run: the checked study, the file as written, and every planned replicate."""
        self.save_plan(plan_rows)
        self.write(text.encode(), "study.yaml")
        # Last: a folder with study.json has everything before it.
        self.write(_json({"schema": SCHEMA, "study": dict(spec)}), "study.json")

    def save_plan(self, rows: list[dict[str, Any]]) -> None:
        """Write every planned replicate; a search adds to them as it chooses."""
        self.write(_parquet(rows), "plan.parquet")

    def save_chosen(self, rows: list[dict[str, Any]]) -> None:
        """Write what a search has drawn so far: `cell`, `arm` and the `values` of its axes, in its order."""
        self.write(_json(rows), "chosen.json")

    def chosen(self) -> list[dict[str, Any]]:
        """What searches in this folder have drawn, also from spaces that they have no longer."""
        data = self.read("chosen.json")
        try:
            return [] if data is None else list(json.loads(data))
        except ValueError:
            raise StoreError(f"{self.path('chosen.json')} is damaged") from None

    def spec(self) -> dict[str, Any] | None:
        """The study as it was frozen, or None in a folder without one.

        Raises:
            StoreError: the folder belongs to a newer version, or its study.json is damaged.
        """
        data = self.read("study.json")
        if data is None:
            return None
        try:
            content = json.loads(data)
            schema, spec = content["schema"], content["study"]
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"{self.path('study.json')} is damaged") from None
        if schema != SCHEMA:
            raise StoreError(f"{self.uri} has schema {schema}; this version reads schema {SCHEMA}")
        return dict(spec)

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

    def foreign(self) -> bool:
        """Whether the folder holds somebody else's files and no study (one cut short while it was made is ours)."""
        if self.read("study.json") is not None:
            return False
        return any(name not in _OWN and not name.endswith(".tmp") for name in self.names())

    # Runs

    def save_run(self, run: str, record: Mapping[str, Any]) -> None:
        self.write(_json(dict(record)), "runs", f"{run}.json")

    def runs(self) -> list[dict[str, Any]]:
        """Provenance of each run, oldest first."""
        found = [self.read("runs", name) for name in self.names("runs") if name.endswith(".json")]
        return sorted((json.loads(data) for data in found if data), key=lambda r: r.get("started", ""))

    # Trials

    def save_history(self, trial: str, rows: list[Any]) -> None:
        self.write(_parquet(rows), "trials", trial, "history.parquet")

    def save_outcome(self, trial: str, rows: list[dict[str, Any]]) -> None:
        self.write(_parquet(rows), "trials", trial, "replicates.parquet")

    def save_decisions(self, trial: str, rows: list[dict[str, Any]]) -> None:
        self.write(_parquet(rows), "trials", trial, "decisions.parquet")

    def save_measure(self, trial: str, tag: str, rows: list[dict[str, Any]]) -> None:
        self.write(_parquet(rows), "trials", trial, "measures", f"{tag}.parquet")

    def measures(self, trial: str) -> set[str]:
        """The tags of what has been measured on a trial."""
        names = self.names("trials", trial, "measures")
        return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}

    def measured(self, trials: Iterable[str]) -> dict[str, tuple[set[str], bool]]:
        """Of each trial the tags of its measures, and whether it has a checkpoint that could be measured."""
        names = list(trials)
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda trial: (self.measures(trial), bool(self._checkpoint_names(trial))), names)
            return dict(zip(names, found, strict=True))

    def trial_table(
        self, file: str, trials: Iterable[str] | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """One kind of file over all trials (or those named) as one table, each row with its `trial`.

        `columns` that a file does not have are left out of it.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = self.names("trials") if trials is None else list(trials)

        def table(trial: str) -> pa.Table | None:
            data = self.read("trials", trial, file)
            if data is None:
                return None
            try:
                rows = pq.ParquetFile(pa.BufferReader(data)).read(columns=columns, use_threads=False)
            except (pa.ArrowInvalid, OSError) as error:
                raise StoreError(f"{self.path('trials', trial, file)} is damaged ({error})") from None
            return rows.append_column("trial", pa.array([trial] * len(rows), pa.string()))

        with ThreadPoolExecutor(8) as pool:
            tables = [part for part in pool.map(table, names) if part is not None]
        # A column may be all null in one file and numbers in another.
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})

    def trial_rows(
        self, file: str, trials: Iterable[str] | None = None, columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """`trial_table` as plain rows."""
        rows: list[dict[str, Any]] = self.trial_table(file, trials, columns).to_pylist()
        return rows

    def ends(self, scheduler: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The end of each replicate that has one, once: the best of several, as `standing` judges them."""
        import pyarrow as pa

        table = self.trial_table("replicates.parquet", columns=columns)
        if not len(table):
            return table
        keys = table.select([c for c in ("cell", "seed", "trial", "status", "scheduler") if c in table.column_names])
        best: dict[tuple[str, int], tuple[int, str, int]] = {}
        for i, row in enumerate(keys.to_pylist()):
            rank = standing(row, scheduler)
            if rank is not None:
                candidate = (rank, row["trial"], i)
                key = (row["cell"], row["seed"])
                best[key] = min(best.get(key, candidate), candidate)
        return table.take(pa.array(sorted(i for _, _, i in best.values()), pa.int64()))

    def decisions_rows(self) -> list[dict[str, Any]]:
        """The scheduler's decisions in the order in which they were taken."""
        return sorted(self.trial_rows("decisions.parquet"), key=lambda r: (r["started"], r["sequence"]))

    # Checkpoints

    def save_checkpoint(self, trial: str, epoch: int, payload: bytes, keep: int) -> None:
        """Write a checkpoint with its checksum, then let go of all but the newest `keep`."""
        head = _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n"
        self.write(head + payload, "trials", trial, "checkpoints", f"{epoch:06d}.pt")
        for name in self._checkpoint_names(trial)[:-keep]:
            self.delete("trials", trial, "checkpoints", name)

    def load_checkpoint(self, trial: str) -> tuple[bytes | None, list[str]]:
        """The newest whole checkpoint, or None; and the names of damaged ones that were passed over."""
        damaged: list[str] = []
        for name in reversed(self._checkpoint_names(trial)):
            data = self.read("trials", trial, "checkpoints", name)
            if data and data.startswith(_MAGIC):
                digest, _, payload = data[len(_MAGIC) :].partition(b"\n")
                if hashlib.sha256(payload).hexdigest().encode() == digest:
                    return payload, damaged
            damaged.append(name)
        return None, damaged

    def delete_checkpoints(self, trial: str) -> None:
        for name in self._checkpoint_names(trial):
            self.delete("trials", trial, "checkpoints", name)

    def _checkpoint_names(self, trial: str) -> list[str]:
        return [n for n in self.names("trials", trial, "checkpoints") if n.endswith(".pt")]


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _parquet(rows: list[Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(_same_keys(rows)), out)
    return out.getvalue()


def _same_keys(rows: list[Any]) -> list[dict[str, Any]]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in keys} for row in rows]
