"""Folders of schema 1, which had three small Parquet files for each trial, taken over into records."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from study.records import FOLDER, KINDS, Piece, from_parquet, to_parquet
from study.store import SCHEMA, StudyFolder

if TYPE_CHECKING:
    import pyarrow as pa

#: The run whose records hold what the old files held.
RUN = "schema-1"

_FILES = {"ends": "replicates.parquet", "decisions": "decisions.parquet", "history": "history.parquet"}


def take_over(folder: StudyFolder) -> bool:
    """Bring a folder of schema 1 to this version's; whoever calls it holds the folder. Says whether it was one.

    Cut short, it begins again: the old files go when everything else is done.

    Raises:
        StoreError: a file is damaged or cannot be written.
    """
    data = folder.read("study.json")
    content = None if data is None else json.loads(data)
    if not isinstance(content, dict) or content.get("schema") != 1:
        return False
    tables = {kind: _table(folder, file) for kind, file in _FILES.items()}
    tables["decisions"] = _renumbered(tables["decisions"])
    for kind in KINDS:
        if len(tables[kind]):
            folder.write(to_parquet(tables[kind]), FOLDER, RUN, Piece(RUN, kind, 1, 1).name)
    folder.write((json.dumps({**content, "schema": SCHEMA}, indent=1) + "\n").encode(), "study.json")
    for trial, names in folder.trial_files().items():
        for name in names:
            if name in _FILES.values():
                folder.delete("trials", trial, name)
    return True


def _table(folder: StudyFolder, file: str) -> pa.Table:
    import pyarrow as pa

    def of(trial: str) -> pa.Table | None:
        data = folder.read("trials", trial, file)
        if data is None:
            return None
        rows = from_parquet(data, folder.path("trials", trial, file))
        return rows.append_column("trial", pa.array([trial] * len(rows), pa.string()))

    trials = sorted(trial for trial, names in folder.trial_files().items() if file in names)
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
