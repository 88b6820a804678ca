"""The verb export: a study's results in the forms that other programs read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from study.cli.codes import OK
from study.reader import StudyReader, open_study
from study.store import StoreError

FORMATS = ("weights", "tables", "csv", "parquet", "latex", "optuna")

_SUFFIXES = {
    ".safetensors": "weights",
    ".tex": "latex",
    ".db": "optuna",
    ".sqlite": "optuna",
    ".sqlite3": "optuna",
}

#: Schemes of URIs that are no database's.
_STORES = ("s3", "gs", "gcs", "abfs", "hdfs", "file")

_EPILOG = """\
formats:
  weights   a trained replicate's network (safetensors), for `pretrained:` of another study; see --cell and --seed
  csv, parquet, tables (both)
            cells, replicates, history, decisions and measures, a file each, into the folder OUT
  latex     arms and conditions as a table in the paper's form
  optuna    every ended cell as a trial, an Optuna study for each arm, in a file of SQLite or a database's URL; then
            `optuna-dashboard sqlite:///OUT`
Without --format OUT decides: .safetensors weights; .tex latex; .db, .sqlite, .sqlite3 and URLs optuna; a name without
suffix is a folder and gets tables.
"""


def register(verbs: Any) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        "export",
        help="write results for other programs: weights, CSV, Parquet, LaTeX, Optuna",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="the study's folder or URI")
    parser.add_argument("--out", required=True, help="what to write: a file, a folder or a database's URL, by format")
    parser.add_argument("--format", choices=FORMATS, help="default: by OUT, see below")
    parser.add_argument("--replace", action="store_true", help="overwrite what is there already")
    parser.add_argument("--cell", help="weights: id of a cell, or its beginning (default: the best by validation)")
    parser.add_argument("--seed", type=int, help="weights: which replicate (default: the lowest seed)")
    parser.set_defaults(verb=export)


def export(options: argparse.Namespace) -> int:
    for name in ("out", "cell"):
        if getattr(options, name) == "":
            raise StoreError(f"--{name} is empty")
    kind = options.format or format_of(options.out)
    if kind != "weights":
        for name in ("cell", "seed"):
            if getattr(options, name) is not None:
                raise StoreError(f"--{name}: belongs to --format weights; {kind} has every cell and seed")
    if "://" in options.out and (kind != "optuna" or options.out.split("://")[0] in _STORES):
        raise StoreError(f"--out {options.out}: exports are written to this machine, or into a database by its URL")
    reader = open_study(options.folder)
    _check_place(reader, options.out, kind)
    if kind == "weights":
        lines = [_weights(reader, options)]
    elif kind == "optuna":
        from study.export_optuna import export_optuna

        lines = export_optuna(reader, options.out, replace=options.replace)
    elif kind == "latex":
        from study.export_tables import export_latex

        lines = export_latex(reader, options.out, replace=options.replace)
    else:
        from study.export_tables import export_tables

        formats = ("csv", "parquet") if kind == "tables" else (kind,)
        lines = export_tables(reader, options.out, formats, replace=options.replace)
    print("\n".join(lines))
    return OK


def _check_place(reader: StudyReader, out: str, kind: str) -> None:
    """Refuse to write where another thing is, whatever the user allows to be replaced.

    Raises:
        StoreError: the place is within the study's folder, or its suffix is another format's.
    """
    if "://" in out:
        return
    path = Path(out)
    if kind in ("tables", "csv", "parquet") and path.exists() and not path.is_dir():
        raise StoreError(f"--out {out}: is a file; --format {kind} writes into a folder")
    other = _SUFFIXES.get(path.suffix.lower(), kind)
    if other != kind and not path.is_dir():
        raise StoreError(f"--out {out}: {path.suffix} is for --format {other}, and {kind} was asked for")
    if reader.folder.is_local:
        own = Path(reader.folder.uri).resolve()
        place = path.resolve()
        if place.is_relative_to(own) and not place.is_relative_to(own / "report"):
            raise StoreError(f"--out {out}: within the study's own folder, which holds nothing else")


def format_of(out: str) -> str:
    """The format that the name of what is to be written asks for.

    Raises:
        StoreError: it asks for none.
    """
    suffix = Path(out).suffix.lower()
    if "://" in out:
        return "optuna"
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if not suffix or Path(out).is_dir():
        return "tables"
    if suffix in (".csv", ".parquet"):
        raise StoreError(f"--out {out}: there are several tables; give a folder and --format {suffix[1:]}")
    raise StoreError(f"--out {out}: {suffix} is no format's suffix; add --format ({', '.join(FORMATS)})")


def _weights(reader: StudyReader, options: argparse.Namespace) -> str:
    from analysis.layout import CONDITIONS
    from analysis.tables import best_cell, cells, varied
    from analysis.words import settings
    from study.export_weights import export_weights

    path = Path(options.out)
    if path.exists() and not options.replace:
        raise StoreError(f"--out: {path} would be overwritten; choose another place or add --replace")
    cell, note = options.cell, ""
    if cell is None:
        table = cells(reader.replicates())
        best = best_cell(table)
        if best is None:
            raise StoreError(f"{reader.folder.uri}: no cell is complete yet")
        if conditions := varied(table, CONDITIONS):
            # A cell under an easier condition is not better for it.
            note = f"\nthat is the best of all conditions ({settings(best, conditions)}); --cell names another"
        cell = str(best["cell"])
    return export_weights(reader, options.out, cell, options.seed) + note
