"""The study's folder: the truth about a study, on any filesystem that pyarrow reaches.

    <storage>/<name>/
      study.json                     schema version, the checked study
      study.yaml                     the file as its user wrote it
      plan.parquet                   one row per planned replicate: cell, arm, seed, the recipe's columns
      chosen.json                    what a search has drawn, each cell before it is trained
      search.db                      Optuna's record of a search (SQLite), unless its study names a database
      lock/                          who runs it, see study.lock
      runs/<run>.json                provenance of each run: when, where, with what versions, how it ended
      records/<run>/                 ends, decisions and epochs as that run's driver wrote them, see study.records
      trials/<trial>/checkpoints/<epoch>.pt   written by the trial, with its checksum in the file
      trials/<trial>/measures/<tag>.parquet   what was measured on its networks, see study.measured
      tensorboard/<arm>/<cell>/seed_<n>/      TensorBoard's event files, if the study asks for them, see study.events
      report/                        what `study report` draws

Every file is written whole or not at all. A reader needs neither Ray nor torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from study.files import TEMPORARY, Files, StoreError, child
from study.records import FOLDER, Recording, from_parquet, read, tidy, to_parquet

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ENDED", "SCHEMA", "StoreError", "StudyFolder", "child", "standing"]

#: Raised when the layout changes in a way that an older reader would misread. 1 had small files for each trial.
SCHEMA = 2

#: Where a JSON file has the digest of the rest of it.
_DIGEST = "sha256"

_MAGIC = b"sharpness-study checkpoint 1\n"

_OWN = {
    "plan.parquet",
    "chosen.json",
    "study.yaml",
    "study.json",
    "search.db",
    "search.db-journal",
    "lock",
    "runs",
    FOLDER,
    "trials",
    "report",
    "tensorboard",
    ".writable",
}

#: A replicate with one of these is not trained again by the same plan.
ENDED = ("complete", "stopped", "diverged")


def standing(row: Mapping[str, Any], scheduler: str) -> int | None:
    """How good an end a row of the ends is: 0 for the best, None if it is no end under this scheduler.

    A stop that another scheduler's rule decided is none. A stop without a scheduler followed from the cell's own end.
    """
    status = row["status"]
    if status == "stopped" and row.get("scheduler") not in (None, scheduler):
        return None
    return (*ENDED, "failed").index(status)


class StudyFolder(Files):
    """The layout of one study's folder."""

    # The study

    def save_study(self, spec: Mapping[str, Any], text: str, plan_rows: list[dict[str, Any]]) -> None:
        """Freeze what is about to run: the checked study, the file as written, and every planned replicate."""
        self.save_plan(plan_rows)
        self.write(text.encode(), "study.yaml")
        # Last: a folder with study.json has everything before it.
        self.save_spec(spec)

    def save_spec(self, spec: Mapping[str, Any]) -> None:
        """Write the checked study, in a folder of this version's schema."""
        self.write(_json({"schema": SCHEMA, "study": dict(spec)}), "study.json")

    def save_plan(self, rows: list[dict[str, Any]]) -> None:
        """Write every planned replicate; a search adds to them as it chooses."""
        self.write(to_parquet(rows), "plan.parquet")

    def save_chosen(self, rows: list[dict[str, Any]]) -> None:
        """Write what a search has drawn so far: `cell`, `arm` and the `values` of its axes, in its order."""
        self.write(_json({"cells": rows}), "chosen.json")

    def chosen(self) -> list[dict[str, Any]]:
        """What searches in this folder have drawn, also from spaces that they have no longer."""
        content = self.json("chosen.json")
        return [] if content is None else list(content["cells"])

    def spec(self) -> dict[str, Any] | None:
        """The study as it was frozen, or None in a folder without one.

        Raises:
            StoreError: the folder belongs to a newer version, or its study.json is damaged.
        """
        content, whole = self._unsealed("study.json")
        if content is None:
            return None
        if not isinstance(content, dict) or "schema" not in content or (content["schema"] == SCHEMA and not whole):
            raise self._damaged("study.json")
        if content["schema"] == 1:
            raise StoreError(f"{self.uri} has the older schema 1; `study run` with its study file takes it over")
        if content["schema"] != SCHEMA:
            raise StoreError(f"{self.uri} has schema {content['schema']}; this version reads schema {SCHEMA}")
        return dict(content["study"])

    def foreign(self) -> bool:
        """Whether the folder holds somebody else's files and no study (one cut short while it was made is ours)."""
        if self.read("study.json") is not None:
            return False
        return any(name not in _OWN and not name.endswith(TEMPORARY) for name in self.names())

    # Runs

    def save_run(self, run: str, record: Mapping[str, Any]) -> None:
        self.write(_json(dict(record)), "runs", f"{run}.json")

    def runs(self) -> list[dict[str, Any]]:
        """Provenance of each run, oldest first."""
        found = [self.json("runs", name) for name in self.names("runs") if name.endswith(".json")]
        return sorted((record for record in found if record), key=lambda r: r.get("started", ""))

    def json(self, *parts: str, sealed: bool = True) -> Any:
        """A JSON file's content, or None if there is no such file.

        Args:
            parts: where it is.
            sealed: False where an older version may have written it, without a digest.

        Raises:
            StoreError: it is damaged.
        """
        content, whole = self._unsealed(*parts)
        if sealed and content is not None and not whole:
            raise self._damaged(*parts)
        return content

    def _unsealed(self, *parts: str) -> tuple[Any, bool]:
        """A JSON file's content, and whether it has a digest; one that it has is right."""
        data = self.read(*parts)
        if data is None:
            return None, False
        try:
            content = json.loads(data)
        except ValueError:
            raise self._damaged(*parts) from None
        digest = content.pop(_DIGEST, None) if isinstance(content, dict) else None
        if content is None or (digest is not None and digest != _digest(content)):
            raise self._damaged(*parts)
        return content, digest is not None

    def _damaged(self, *parts: str) -> StoreError:
        return StoreError(f"{self.path(*parts)} is damaged; put its copy back, or delete it if there is none")

    # Records

    def recording(self, run: str, check: Callable[[], None] = lambda: None) -> Recording:
        """What a run's driver writes with; `run` is an id that no other run has, for `check` see Recording."""
        return Recording(self, run, check)

    def tidy(self) -> None:
        """Merge what earlier runs have left in small pieces, and delete what killed ones have left half written."""
        for part in (FOLDER, "trials", "runs"):
            self.sweep(part)
        if self.is_local:
            # Not below: the lock's are alive.
            for name in self.names():
                if name.endswith(TEMPORARY):
                    self.delete(name)
        tidy(self)

    def table(self, kind: str, columns: Sequence[str] | None = None, trials: Iterable[str] | None = None) -> pa.Table:
        """`ends`, `decisions` or `history` as recorded, each row with its `trial`; of the named trials only.

        Columns that are not there are left out.
        """
        if trials is None:
            return read(self, kind, columns)
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(list(trials), pa.string())
        asked = None if columns is None else list(dict.fromkeys(["trial", *columns]))
        return read(self, kind, asked, lambda part: part.filter(pc.is_in(part["trial"], wanted)))

    def rows(
        self, kind: str, columns: Sequence[str] | None = None, trials: Iterable[str] | None = None
    ) -> list[dict[str, Any]]:
        """`table` as plain rows."""
        found: list[dict[str, Any]] = self.table(kind, columns, trials).to_pylist()
        return found

    def ends(self, scheduler: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The end of each replicate that has one, once: the best of several, as `standing` judges them."""
        import pyarrow as pa

        if columns is not None:
            columns = list(dict.fromkeys(["trial", *columns]))
        table = self.table("ends", columns)
        if not len(table):
            return table
        keys = table.select([c for c in ("cell", "seed", "trial", "status", "scheduler") if c in table.column_names])
        best: dict[tuple[str, int], tuple[int, str, int]] = {}
        for i, row in enumerate(keys.to_pylist()):
            rank = standing(row, scheduler)
            if rank is not None:
                # Of several failures the last one's reason: it is what is still to be mended.
                candidate = (rank, row["trial"], -i if row["status"] == "failed" else i)
                key = (row["cell"], row["seed"])
                best[key] = min(best.get(key, candidate), candidate)
        return table.take(pa.array(sorted(abs(i) for _, _, i in best.values()), pa.int64()))

    def unfinished(self, ended: Iterable[str], columns: Sequence[str]) -> pa.Table:
        """Epochs of the trials that are not among the ended ones."""
        import pyarrow as pa
        import pyarrow.compute as pc

        over = pa.array(list(ended), pa.string())
        asked = list(dict.fromkeys(["trial", *columns]))
        return read(self, "history", asked, lambda part: part.filter(pc.invert(pc.is_in(part["trial"], over))))

    def decisions_rows(self) -> list[dict[str, Any]]:
        """The scheduler's decisions in the order in which they were taken."""
        return sorted(self.rows("decisions"), key=lambda row: row["sequence"])

    # Trials

    def trial_files(self) -> dict[str, list[str]]:
        """Of each trial the names of its files, such as `checkpoints/000012.pt`: one listing for all."""
        found: dict[str, list[str]] = {}
        for path in self.walk("trials"):
            trial, _, name = path.partition("/")
            if not name.endswith(TEMPORARY):
                found.setdefault(trial, []).append(name)
        return found

    def save_measure(self, trial: str, tag: str, rows: list[dict[str, Any]]) -> None:
        self.write(to_parquet(rows), "trials", trial, "measures", f"{tag}.parquet")

    def measures(self, trial: str) -> set[str]:
        """The tags of what has been measured on a trial."""
        names = self.names("trials", trial, "measures")
        return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}

    def measured(self, trials: Iterable[str]) -> dict[str, tuple[set[str], bool]]:
        """Of each trial the tags of its measures, and whether it has a checkpoint that could be measured."""
        files = self.trial_files()

        def of(trial: str) -> tuple[set[str], bool]:
            parts = [name.partition("/") for name in files.get(trial, [])]
            tags = {n.removesuffix(".parquet") for kind, _, n in parts if kind == "measures" and n.endswith(".parquet")}
            return tags, any(kind == "checkpoints" and n.endswith(".pt") for kind, _, n in parts)

        return {trial: of(trial) for trial in trials}

    def measure_table(self, tag: str) -> pa.Table:
        """What one measure found, over all trials, each row with its `trial`.

        Raises:
            StoreError: a file of it is damaged or cannot be read.
        """
        import pyarrow as pa

        trials = sorted(trial for trial, names in self.trial_files().items() if f"measures/{tag}.parquet" in names)

        def table(trial: str) -> pa.Table | None:
            place = ("trials", trial, "measures", f"{tag}.parquet")
            data = self.read(*place)
            if data is None:
                return None
            rows = from_parquet(data, self.path(*place))
            return rows.append_column("trial", pa.array([trial] * len(rows), pa.string()))

        with ThreadPoolExecutor(8) as pool:
            tables = [part for part in pool.map(table, trials) if part is not None]
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})

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


def _json(content: Mapping[str, Any]) -> bytes:
    """With a digest of the rest, since a flipped digit is JSON too."""
    return (json.dumps({**content, _DIGEST: _digest(content)}, indent=1) + "\n").encode()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
