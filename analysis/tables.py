"""Store -> tidy frames: one row a replicate, a cell, a cell's epoch; written as CSV and Parquet.

Every frame spells the settings as the Recipe does. Accuracies are fractions in [0, 1], times are seconds of training.
A number that stands for several seeds carries its n and its 95 % interval (Student t).

Status of a cell, from those of its replicates, the first that holds:

| status | when |
|---|---|
| diverged | any seed diverged: a mean of the survivors would flatter the cell |
| failed | any seed failed |
| complete | every planned seed is complete |
| stopped | any seed was stopped by the scheduler |
| running | any seed is being trained |
| partial | some seeds are complete, the others not begun |
| missing | nothing has been trained |

Fidelities are never mixed (invariant 6): test figures are means over complete replicates only; other figures too, but
for stopped and running cells, where they are means over the replicates of that status at `epoch`, the deepest epoch
that these reached. `status` and `epoch` therefore say what a number may be compared with.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from pandas.api.types import is_object_dtype

from analysis.intervals import interval, interval_of

#: The Recipe's fields in its order. A copy, because this package imports nothing that could pull in torch; a test
#: holds it equal to `trainables.recipe.Recipe`.
RECIPE_FIELDS: tuple[str, ...] = (
    "dataset", "folder", "image_side", "train_size", "validation_size", "test_size", "split_seed", "label_noise",
    "label_noise_kind", "validation_labels", "augmentation", "crop_padding", "autoaugment_policy", "cutout_size",
    "normalisation", "model", "pretrained", "dropout", "optimiser", "gamma", "eta", "asam_convention", "fisher", "m",
    "natural_gradient", "same_dropout", "base", "lr", "momentum", "nesterov", "beta1", "beta2", "weight_decay",
    "schedule", "epochs", "batch_size", "label_smoothing", "precision", "device", "loader_workers", "capture",
    "seeds_together", "compile",
)  # fmt: skip

#: Of these, those that say where and how a recipe runs and not what it is.
EXECUTION = ("device", "loader_workers", "capture", "seeds_together", "compile")

CELL_STATUSES = ("complete", "partial", "running", "stopped", "diverged", "failed", "missing")
_REPLICATE_STATUSES = ("complete", "stopped", "diverged", "failed", "running", "missing")
_UNFINISHED = ("stopped", "running")
_MANY_ROWS = 100_000


class StudyReader(Protocol):
    """What this package asks of `study.reader.open_study(...)`."""

    @property
    def spec(self) -> dict[str, Any]: ...
    def runs(self) -> list[dict[str, Any]]: ...
    def used(self, runs: list[dict[str, Any]] | None = None) -> object: ...
    def replicates(self) -> pd.DataFrame: ...
    def history(self) -> pd.DataFrame: ...
    def decisions(self) -> pd.DataFrame: ...
    def measures(self, name: str) -> pd.DataFrame: ...


def cells(
    replicates: pd.DataFrame, metric: str = "test_accuracy", *, intervals: Literal["t", "bootstrap"] = "t"
) -> pd.DataFrame:
    """One row a cell, in the plan's order.

    Args:
        replicates: one row a planned replicate (`reader.replicates()`).
        metric: the column that `mean`, `std`, `low` and `high` summarise.
        intervals: how `low` and `high` are made, the validation's too. Student's t, or the bootstrap (BCa), which with
            fewer than some ten seeds is too narrow: see `intervals.interval_of`. Takes milliseconds a cell.

    Returns:
        `cell`, `arm`, the Recipe's fields that `replicates` has, then
        `status` and `epoch` (see the module; `epoch` is NaN for complete, partial and missing cells),
        `n` (replicates behind `mean`), `n_planned`, `n_complete`, `n_diverged`, `n_failed`, `metric` (its name),
        `mean`, `std` (ddof 1), `low`, `high` (95 % t interval; NaN for n < 2),
        `validation_mean`, `validation_low`, `validation_high`, `validation_n` (of validation_accuracy),
        `gradient_evaluations` and `train_seconds` (what the cell cost: sums over its replicates), and `reason` (the
        first that a replicate gave for not completing).

    Raises:
        ValueError: `metric` is not a column of `replicates`.
    """
    if metric not in replicates:
        known = [c for c in map(str, replicates) if c.endswith(("_accuracy", "_loss"))]
        raise ValueError(f"metric {metric!r} is not in the table (it has {', '.join(known) or 'no metrics'})")
    plan = ["cell", "arm", *(f for f in RECIPE_FIELDS if f in replicates)]
    table = replicates[plan].drop_duplicates("cell").set_index("cell")
    table = table.infer_objects()

    count = replicates.groupby(["cell", "status"], observed=True).size().unstack(fill_value=0)
    count = count.reindex(index=table.index, columns=list(_REPLICATE_STATUSES), fill_value=0)
    planned = count.sum(axis=1)
    status = np.select(
        [
            count["diverged"] > 0,
            count["failed"] > 0,
            (count["complete"] == planned) & (planned > 0),
            count["stopped"] > 0,
            count["running"] > 0,
            count["complete"] > 0,
        ],
        ["diverged", "failed", "complete", "stopped", "running", "partial"],
        "missing",
    )
    table["status"] = status
    rows = replicates.assign(_cell_status=replicates["cell"].map(table["status"]))
    own = rows[(rows["status"] == rows["_cell_status"]) & ~rows["status"].isin(["complete", "missing"])]
    epoch = pd.to_numeric(own["epoch"]).groupby(own["cell"]).max()
    table["epoch"] = epoch.reindex(table.index).astype(float)
    rows["_cell_epoch"] = rows["cell"].map(table["epoch"])

    summary = _summary(rows, metric, table.index, intervals)
    table["n"] = summary["count"]
    table["n_planned"] = planned
    for name in ("complete", "diverged", "failed"):
        table[f"n_{name}"] = count[name]
    table["metric"] = metric
    table["mean"], table["std"] = summary["mean"], summary["std"]
    table["low"], table["high"] = summary["low"], summary["high"]
    if "validation_accuracy" in rows:
        summary = _summary(rows, "validation_accuracy", table.index, intervals)
        table["validation_mean"] = summary["mean"]
        table["validation_low"], table["validation_high"] = summary["low"], summary["high"]
        table["validation_n"] = summary["count"]
    for cost in ("gradient_evaluations", "train_seconds"):
        if cost in rows:
            table[cost] = pd.to_numeric(rows[cost]).groupby(rows["cell"]).sum().reindex(table.index)
    if "reason" in rows:
        table["reason"] = rows.groupby("cell")["reason"].first().reindex(table.index)
    return table.reset_index()


def _summary(rows: pd.DataFrame, metric: str, index: pd.Index, method: Literal["t", "bootstrap"]) -> pd.DataFrame:
    """mean, std, count and interval of each cell's comparable replicates."""
    use = rows["status"] == "complete"
    if not metric.startswith("test_"):
        unfinished = rows["_cell_status"].isin(_UNFINISHED)
        at_epoch = (rows["status"] == rows["_cell_status"]) & (rows["epoch"] == rows["_cell_epoch"])
        use = (use & ~unfinished) | (unfinished & at_epoch)
    values = _finite(rows.loc[use, metric])
    by_cell = values.groupby(rows.loc[use, "cell"])
    summary = by_cell.agg(["mean", "std", "count"]).reindex(index)
    summary["count"] = summary["count"].fillna(0).astype(int)
    if method == "t":
        summary["low"], summary["high"] = interval(summary["mean"], summary["std"], summary["count"])
    else:
        ends = {cell: interval_of(own, method) for cell, own in by_cell}
        summary["low"], summary["high"] = (
            np.array([ends.get(cell, (np.nan, np.nan))[side] for cell in index], dtype=float) for side in (0, 1)
        )
    return summary


def _finite(values: pd.Series) -> pd.Series:
    return pd.to_numeric(values).astype(float).replace([np.inf, -np.inf], np.nan)


def best_cell(table: pd.DataFrame) -> pd.Series | None:
    """The complete cell of highest mean validation accuracy: test accuracy chooses nothing (invariant 5).

    Args:
        table: what `cells` returns or `reader.replicates()`, or any rows of either.

    Returns:
        The cell's row of `cells`, which says its validation and test figures; None while no cell is complete. Equal
        means are common with small validation sets: the most seeds win, then the smallest gamma and eta, where a cell
        that does not use them comes first (the simpler method), then the cell's id.
    """
    if table.empty:
        return None
    if "seed" in table:
        table = cells(table)
    ranked = by_rank(table)
    return table.loc[ranked[0]] if len(ranked) else None


def best_cells(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`best_cell` of each group of `by` (an arm, a model, a rate of label noise), where unused counts as a value.

    Args:
        table: what `cells` returns, or any rows of it.

    Returns:
        The chosen rows in the order of `table`; none for a group without a complete cell.
    """
    ranked = table.loc[by_rank(table)]
    if not by:
        return ranked.iloc[:1]
    first = ranked.groupby(list(by), dropna=False, sort=False).head(1)
    return table.loc[table.index.isin(first.index)]


def by_rank(table: pd.DataFrame) -> pd.Index:
    """Labels of the complete cells, the best by validation first; see `best_cell` for ties."""
    done = table[(table["status"] == "complete") & table["validation_mean"].notna()]
    # Rounded, so that two means of the same values in another order tie rather than differ in the last bit.
    keys = {"_mean": -done["validation_mean"].round(12), "_n": -done["validation_n"]}
    by = [*keys, *(f for f in ("gamma", "eta") if f in done), "cell"]
    return done.assign(**keys).sort_values(by, na_position="first", kind="stable").index


def varied(table: pd.DataFrame, fields: Iterable[str] = RECIPE_FIELDS) -> list[str]:
    """The Recipe's fields that take more than one value in `table`, where unused counts as a value."""
    return [f for f in fields if f in table and table[f].nunique(dropna=False) > 1]


def curves(history: pd.DataFrame, table: pd.DataFrame, metric: str = "validation_accuracy") -> pd.DataFrame:
    """Learning curves: one row a cell and epoch.

    Args:
        history: one row a trial, seed and epoch (`reader.history()`).
        table: what `cells` returns; its `arm`, `status` and settings are joined on.
        metric: the column of `history` that is summarised.

    Returns:
        In the order of `table`: `cell`, `arm`, the settings, `status`, `n_planned`, `validation_mean` (and `best`,
        `indistinguishable` where `table` has them), `leader` (whether it is its arm's `best_cell`), then `epoch`,
        `mean`, `std`, `low`, `high`, `n` (seeds that reached the epoch with a finite value), `n_started` (seeds with
        any history) and `metric`.

    Raises:
        ValueError: `metric` is not a column of `history`.
    """
    if metric not in history:
        raise ValueError(f"metric {metric!r} is not in the history (it has {', '.join(history.columns)})")
    # A resumed seed may have left an epoch twice: the later line is the one the outcome was made from.
    history = history.drop_duplicates(["cell", "seed", "epoch"], keep="last")
    values = _finite(history[metric])
    out = values.groupby([history["cell"], history["epoch"]]).agg(["mean", "std", "count"])
    out = out.rename(columns={"count": "n"}).reset_index()
    out["low"], out["high"] = interval(out["mean"], out["std"], out["n"])
    out["n_started"] = out["cell"].map(history.groupby("cell")["seed"].nunique())
    out["metric"] = metric
    keep = ["cell", "arm", *(f for f in RECIPE_FIELDS if f in table), "status", "n_planned", "validation_mean"]
    keep += [c for c in ("best", "indistinguishable") if c in table]
    named = table[[c for c in keep if c in table]]
    leaders = set(best_cells(table, ["arm"])["cell"])
    return named.assign(leader=named["cell"].isin(leaders)).merge(out, on="cell")


def write_tables(reader: StudyReader, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write replicates, cells and history as CSV (for eyes) and Parquet (typed), each file whole or not at all.

    Returns:
        Path by file name, e.g. `{"cells.csv": ...}`.
    """
    replicates = reader.replicates()
    frames = {"replicates": replicates, "history": reader.history()}
    if not replicates.empty:
        frames["cells"] = cells(replicates)
    return write_frames(frames, folder)


def write_frames(
    frames: dict[str, pd.DataFrame], folder: str | os.PathLike[str], formats: Sequence[str] = ("csv", "parquet")
) -> dict[str, Path]:
    """Write each frame as `<name>.<format>` in `folder`, which is made where it is missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    for name, frame in frames.items():
        plain = _plain(frame)
        for suffix, write in _writers(plain):
            if suffix not in formats:
                continue
            path = folder / f"{name}.{suffix}"
            whole(path, write)
            written[path.name] = path
    return written


def whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it there: readers see all of it or none.

    The temporary name keeps the suffix, from which matplotlib and pandas take the format.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        # mkstemp makes files for one user; a report is read by others as far as the umask lets them.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _writers(frame: pd.DataFrame) -> Sequence[tuple[str, Callable[[Path], Any]]]:
    return (
        ("csv", lambda path: _write_csv(frame, path)),
        ("parquet", lambda path: frame.to_parquet(path, index=False)),
    )


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    if len(frame) < _MANY_ROWS:
        frame.to_csv(path, index=False)
        return
    # A tenth of the time, which for a million epochs is most of a report's; the same values, with text in quotes.
    import pyarrow as pa
    from pyarrow import csv

    csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), path)


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of one type each, as Parquet wants them: a column of mixed values becomes text."""
    frame = frame.infer_objects().copy()
    for name in [c for c, kind in frame.dtypes.items() if is_object_dtype(kind)]:
        kinds = {type(v) for v in frame[name] if v is not None and v == v}
        if len(kinds) > 1 or kinds & {list, tuple, dict, set}:
            frame[name] = [None if v is None or v is pd.NA else str(v) for v in frame[name]]
    return frame
