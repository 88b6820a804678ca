"""Every ended cell of a study, grid or search, as a trial of Optuna's, so that its dashboard and plots open any study.

One Optuna study an arm, `<study>.<arm>` as a search calls its own; it maximises the mean validation accuracy. A trial
is a cell with n seeds, where Optuna thinks of one training: every seed's values are among its user attributes.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from study.reader import StudyReader
from study.search_space import Axis, Search, field_kinds
from study.search_storage import BROKEN, open_storage, reason_of, sqlite_url
from study.search_values import Values
from study.store import StoreError

if TYPE_CHECKING:
    import pandas as pd

#: As a search tells Optuna of a cell's end, for the same reasons (`study.search`).
STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}

#: The attribute of an Optuna study that says that it came from here, and so may be replaced from here.
MARK = "exported_by"
_MARKED = "study export"

METRIC = "validation_accuracy"

#: From this ratio of its largest to its smallest value on, a grid's axis is logarithmic.
_DECADE = 10.0


def export_optuna(reader: StudyReader, out: str, *, replace: bool = False) -> list[str]:
    """Write a study's ended cells into Optuna's storage `out`; a line for each Optuna study that it made.

    A trial has the cell's settings that the study crosses or searches and that the cell uses as params (numbers as
    ranges, logarithmic where the search's are or a grid's values span a decade; anything else categorical), the mean
    validation accuracy of a complete cell as value, that of each epoch which all its seeds reached as intermediate
    values, and as user attributes `cell`, `arm`, `status`, `epoch`, `n`, `seeds` (each seed's results), the test
    accuracy with its interval, the costs, the reason of an end, and what else differs within the arm. A stopped cell
    is PRUNED and has no value, since that of an earlier epoch is not comparable; a diverged one is PRUNED with the
    constraint `diverged` violated; a failed one FAIL. Cells that have not ended are left out.

    Args:
        out: the URL of a database, or a file of SQLite, which is made whole or not at all if it is new.
        replace: whether to write anew what an earlier export wrote under the same names.

    Raises:
        StoreError: nothing has ended, the database cannot be used, or it has another study of that name.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials, left_out = _trials(reader)
    if not any(trials.values()):
        raise StoreError(f"{reader.folder.uri}: no cell has ended yet")
    with _storage(out) as storage:
        names = [_name(reader, arm) for arm in trials]
        there = {study.study_name: study for study in optuna.get_all_study_summaries(storage)}
        # All of them before the first is written.
        _refuse([there[name] for name in names if name in there], replace)
        for arm, found in trials.items():
            if _name(reader, arm) in there:
                optuna.delete_study(study_name=_name(reader, arm), storage=storage)
            _write(storage, reader, arm, found)
    lines = [f"{_shown(out)}: {_name(reader, arm)}, {_counted(found)}" for arm, found in trials.items()]
    if left_out:
        lines.append(f"not in it: {left_out} {'cell that has' if left_out == 1 else 'cells that have'} not ended")
    return lines


def _name(reader: StudyReader, arm: str) -> str:
    return f"{reader.spec['name']}.{arm}"


def _counted(trials: list[FrozenTrial]) -> str:
    states = [trial.state for trial in trials]
    counts = ", ".join(f"{states.count(s)} {s.name}" for s in dict.fromkeys(STATES.values()) if s in states)
    return f"{len(trials)} {'trial' if len(trials) == 1 else 'trials'}" + (f" ({counts})" if counts else "")


# Cells -> trials


def _trials(reader: StudyReader) -> tuple[dict[str, list[FrozenTrial]], int]:
    """The trials of each arm in the plan's order, and how many cells have not ended."""
    from analysis.tables import RECIPE_FIELDS, cells, varied

    replicates = reader.replicates()
    table = cells(replicates)
    courses = _courses(reader.history(), table)
    seeds = {str(cell): rows for cell, rows in replicates.groupby("cell", sort=False)}
    space = _searched(reader.spec)
    axes = {*(reader.spec.get("grid") or {}), *space}
    found: dict[str, list[FrozenTrial]] = {}
    for arm, rows in table.groupby("arm", sort=False):
        fields = varied(rows, RECIPE_FIELDS)
        own = {f: axis for f in RECIPE_FIELDS if f in axes and (axis := _axis(f, rows, space.get(f))) is not None}
        distributions = Values(own).distributions
        ended = rows[rows["status"].isin(list(STATES))]
        found[str(arm)] = [
            _trial(row, distributions, [f for f in fields if f not in own], seeds[row["cell"]], courses)
            for row in ended.to_dict("records")
        ]
    return found, int((~table["status"].isin(list(STATES))).sum())


def _courses(history: pd.DataFrame, table: pd.DataFrame) -> dict[str, dict[int, float]]:
    """Each cell's mean validation accuracy by epoch, where all seeds that it began with have one."""
    from analysis.tables import curves

    if METRIC not in history or history.empty:
        return {}
    rows = curves(history, table, METRIC)
    # The mean of those that are left, when a seed has diverged, would flatter the cell.
    rows = rows[rows["n"] == rows["n_started"]]
    return {
        str(cell): {int(e): float(m) for e, m in zip(own["epoch"], own["mean"], strict=True)}
        for cell, own in rows.groupby("cell", sort=False)
    }


def _searched(spec: Mapping[str, Any]) -> dict[str, Axis]:
    return dict(Search(**spec["search"]).space) if spec.get("search") else {}


def _axis(field: str, rows: pd.DataFrame, searched: Axis | None) -> Axis | None:
    """The values of a setting in an arm's cells, as a search would have them; None where it makes no parameter.

    A grid's numbers are a range and no list of choices, for which Optuna could draw neither contours nor slopes.
    """
    values = [_value(field, v) for v in rows[field].dropna().unique()] if field in rows else []
    if not values:
        return None
    if searched is not None and all(searched.has(v) or _stored(searched, v) for v in values):
        return searched
    if len(values) < 2:
        return None
    if field_kinds(field) <= {int, float}:
        low, high = min(values), max(values)
        return Axis(low=low, high=high, log=low > 0 and high / low >= _DECADE)
    return Axis(choices=tuple(values))


def _value(field: str, value: Any) -> Any:
    """A table's value as the recipe's field has it: a column of whole numbers with gaps is one of floats."""
    kinds = field_kinds(field)
    if kinds & {int, float} and not isinstance(value, str | bool):
        return float(value) if float in kinds else int(value)
    if bool in kinds:
        return bool(value)
    # A list without names is an empty text in the tables.
    return str(value) or "none"


def _stored(axis: Axis, value: Any) -> bool:
    """Whether a choice is a list that the tables and Optuna hold as this text."""
    return any(isinstance(c, list) and ("+".join(map(str, c)) or "none") == value for c in axis.choices or ())


def _trial(
    row: dict[Any, Any],
    distributions: Mapping[str, BaseDistribution],
    further: list[str],
    seeds: pd.DataFrame,
    courses: Mapping[str, dict[int, float]],
) -> FrozenTrial:
    params = {}
    for field, distribution in distributions.items():
        if row[field] == row[field] and row[field] is not None:
            params[field] = _value(field, row[field])
        elif isinstance(distribution, CategoricalDistribution) and None in distribution.choices:
            params[field] = None
        # Else the cell does not use it: a conditional parameter, which Optuna leaves out.
    status, value = row["status"], _plain(row["validation_mean"])
    if status == "complete" and value is None:
        status = "diverged"
    attributes = {"cell": row["cell"], "arm": row["arm"], "status": status, "epoch": _whole(seeds["epoch"].max())}
    attributes |= {"reason": row.get("reason"), **{k: row[k] for k in ("gradient_evaluations", "train_seconds")}}
    if status == "complete":  # else it would be of the seeds that survived, or of another epoch
        attributes |= {"n": row["validation_n"], **{k: row[k] for k in ("validation_low", "validation_high")}}
        attributes |= {"test_accuracy": row["mean"], "test_low": row["low"], "test_high": row["high"]}
    attributes |= {field: row[field] for field in further if field in row}
    plain = {name: _plain(v) for name, v in attributes.items()}
    plain["seeds"] = {
        str(s["seed"]): {k: _plain(s[k]) for k in _SEED if k in s} | {"epoch": _whole(s["epoch"])}
        for s in seeds.to_dict("records")
    }
    return optuna.trial.create_trial(
        state=STATES[status],
        value=value if status == "complete" else None,
        params=params,
        distributions={name: distributions[name] for name in params},
        user_attrs={name: v for name, v in plain.items() if v is not None},
        intermediate_values=courses.get(row["cell"], {}),
        constraints={"diverged": 1.0} if status == "diverged" else None,
    )


#: What a trial says of each of its seeds.
_SEED = ("status", "validation_accuracy", "test_accuracy")


def _plain(value: Any) -> Any:
    """A table's value as JSON has it; what is missing or not finite is None."""
    value = value.item() if hasattr(value, "item") else value
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _whole(value: Any) -> int | None:
    return int(value) if value == value else None


# Trials -> storage


def _refuse(there: list[optuna.study.StudySummary], replace: bool) -> None:
    for study in there:
        if study.user_attrs.get(MARK) != _MARKED:
            raise StoreError(
                f"--out: Optuna study {study.study_name} is there and was not exported; take another --out"
            )
        if not replace:
            raise StoreError(f"--out: Optuna study {study.study_name} is there from an earlier export; add --replace")


def _write(storage: optuna.storages.BaseStorage, reader: StudyReader, arm: str, trials: list[FrozenTrial]) -> None:
    name = _name(reader, arm)
    made = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.NopPruner(),
    )
    made.set_user_attr(MARK, _MARKED)
    try:
        for key, value in (("question", reader.spec["question"]), ("arm", arm), ("value", f"mean {METRIC} over seeds")):
            made.set_user_attr(key, value)
        made.add_trials(trials)
    except BaseException:
        # Half of the cells would look like all of them.
        with suppress(*BROKEN):
            optuna.delete_study(study_name=name, storage=storage)
        raise


@contextmanager
def _storage(out: str) -> Iterator[optuna.storages.BaseStorage]:
    """The storage at a URL or in a file; a new file appears under its name when everything is in it."""
    path = None if "://" in out else Path(out)
    temporary: Path | None = None
    storage = None
    try:
        if path is not None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
            os.close(handle)
            temporary = Path(name)
        at = temporary or path
        storage = open_storage(out if at is None else sqlite_url(at.absolute()))
        yield storage
        if path is not None and temporary is not None:
            _let_go(storage)
            # mkstemp makes files for one user.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, path)
    except ImportError as error:
        raise StoreError(f"--out: {_shown(out)} needs a package that is not installed ({error})") from None
    except (*BROKEN, RuntimeError) as error:
        raise StoreError(f"--out: {_shown(out)} cannot be used ({reason_of(error)})") from None
    except OSError as error:
        raise StoreError(f"cannot write {_shown(out)}: {error.strerror or error}") from None
    finally:
        if storage is not None:
            _let_go(storage)
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _shown(out: str) -> str:
    """A database's URL without its password."""
    try:
        return make_url(out).render_as_string() if "://" in out else out
    except ArgumentError:
        return out.partition("://")[0] + "://..."


def _let_go(storage: optuna.storages.RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()
