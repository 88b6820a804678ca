"""Folders of schema 1, which had three small Parquet files for each trial, taken over into records."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from study.records import FOLDER, Piece, from_parquet, to_parquet
from study.store import StoreError, StudyFolder

if TYPE_CHECKING:
    import pyarrow as pa

#: How the run begins whose records hold what the old files held. The rest is a hash of them: two folders that are
#: merged later do not share a run.
RUN = "schema-1-"

_FILES = {"ends": "replicates.parquet", "decisions": "decisions.parquet", "history": "history.parquet"}

_MEASURE = re.compile(r"^measures/[^/]+\.parquet$")


def old_spec(folder: StudyFolder) -> dict[str, Any] | None:
    """The study of a folder of schema 1; None if it is of another or holds none.

    Raises:
        StoreError: its study.json is damaged.
    """
    content = folder.json("study.json", sealed=False)
    if not isinstance(content, dict) or content.get("schema") != 1:
        return None
    if not isinstance(content.get("study"), dict):
        raise StoreError(f"{folder.path('study.json')} is damaged")
    return dict(content["study"])


def take_over(folder: StudyFolder) -> None:
    """Bring a folder of schema 1 to this version's, or end what was cut short of it; of another folder, nothing.

    Whoever calls it holds the folder. Cut short, it begins again: the old files go when everything else is done.

    Raises:
        StoreError: a file is damaged or cannot be written.
    """
    spec = old_spec(folder)
    if spec is not None:
        files = folder.trial_files()
        _record(folder, {kind: _table(folder, file, files) for kind, file in _FILES.items()})
        # What keeps its place has no digest yet.
        _seal(folder, "plan.parquet")
        for name in folder.names("runs"):
            if name.endswith(".json"):
                folder.save_run(name.removesuffix(".json"), folder.json("runs", name, sealed=False))
        if (chosen := folder.json("chosen.json", sealed=False)) is not None:
            folder.save_chosen(chosen["cells"] if isinstance(chosen, dict) else chosen)
        measures = [(trial, name) for trial, names in files.items() for name in names if _MEASURE.match(name)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda at: _seal(folder, "trials", at[0], at[1]), measures))
        folder.save_spec(spec)
    elif not any(run.startswith(RUN) for run in folder.names(FOLDER)):
        return
    for trial, names in folder.trial_files().items():
        for name in names:
            if name in _FILES.values():
                folder.delete("trials", trial, name)


def _record(folder: StudyFolder, tables: dict[str, pa.Table]) -> None:
    tables["decisions"] = _renumbered(tables["decisions"])
    contents = {kind: to_parquet(table) for kind, table in tables.items() if len(table)}
    run = RUN + hashlib.sha256(b"".join(contents.values())).hexdigest()[:8]
    for name in folder.walk(FOLDER):
        if name.startswith(RUN) and not name.startswith(f"{run}/"):
            # Cut short, and then an older version ran the study once more.
            folder.delete(FOLDER, name)
    for kind, content in contents.items():
        folder.write(content, FOLDER, run, Piece(run, kind, 1, 1).name)


def _seal(folder: StudyFolder, *parts: str) -> None:
    data = folder.read(*parts)
    if data is not None:
        folder.write(to_parquet(from_parquet(data, folder.path(*parts), sealed=False)), *parts)


def _table(folder: StudyFolder, file: str, files: Mapping[str, Sequence[str]]) -> pa.Table:
    """One kind of file over all trials, each row with its `trial`."""
    import pyarrow as pa

    def of(trial: str) -> pa.Table | None:
        data = folder.read("trials", trial, file)
        if data is None:
            return None
        rows = from_parquet(data, folder.path("trials", trial, file), sealed=False)
        return rows.append_column("trial", pa.array([trial] * len(rows), pa.string()))

    trials = sorted(trial for trial, names in files.items() if file in names)
    with ThreadPoolExecutor(8) as pool:
        tables = [part for part in pool.map(of, trials) if part is not None]
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def _renumbered(decisions: pa.Table) -> pa.Table:
    """Counted over all runs: each run had counted its own."""
    import pyarrow as pa

    if not len(decisions):
        return decisions
    ordered = decisions.sort_by([("started", "ascending"), ("sequence", "ascending")]).drop_columns(["started"])
    at = ordered.column_names.index("sequence")
    return ordered.set_column(at, "sequence", pa.array(range(1, len(ordered) + 1), pa.int64()))
