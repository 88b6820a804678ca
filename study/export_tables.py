"""A study's tables as files for other programs: CSV, Parquet, and LaTeX in the paper's form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.reader import StudyReader
from study.store import StoreError

if TYPE_CHECKING:
    import pandas as pd


def frames(reader: StudyReader) -> dict[str, pd.DataFrame]:
    """`cells`, `replicates`, `history`, `decisions` and each measure of the study under its own name, as stored: a
    measure's rows are those of single seeds.

    Raises:
        StoreError: the study has planned nothing.
    """
    from analysis.tables import cells

    replicates = reader.replicates()
    if replicates.empty:
        raise StoreError(f"{reader.folder.uri}: no cell is planned yet")
    found = {"cells": cells(replicates), "replicates": replicates}
    found |= {"history": reader.history(), "decisions": reader.decisions()}
    return found | {name: reader.measures(name) for name in reader.spec.get("measures") or {}}


def export_tables(
    reader: StudyReader, out: str, formats: Sequence[str] = ("csv", "parquet"), *, replace: bool = False
) -> list[str]:
    """Write every table into the folder `out`, each file whole or not at all; a line for each file.

    Raises:
        StoreError: a file is there already and `replace` is false, or `out` cannot be written.
    """
    from analysis.tables import write_frames

    folder, tables = Path(out), frames(reader)
    names = [folder / f"{name}.{suffix}" for name in tables for suffix in formats]
    _refuse([path for path in names if path.exists()], replace)
    try:
        written = write_frames(tables, folder, formats)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror or error}") from None
    return [f"{path}: {len(tables[path.stem])} rows" for path in written.values()]


def export_latex(reader: StudyReader, out: str, *, replace: bool = False) -> list[str]:
    """Write the table of arms and conditions in the paper's form into the file `out`; a line that says so.

    Raises:
        StoreError: as for `export_tables`.
    """
    from analysis.latex import table
    from analysis.tables import whole

    path = Path(out)
    _refuse([path] if path.exists() else [], replace)
    tables = frames(reader)
    text = table(tables["cells"], tables["replicates"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror or error}") from None
    return [f"{path}: a table for LaTeX; it needs \\usepackage{{booktabs}}"]


def _refuse(there: list[Path], replace: bool) -> None:
    if there and not replace:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise StoreError(f"--out: {there[0]}{more} would be overwritten; choose another place or add --replace")
