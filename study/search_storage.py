"""The database of a search: where it is, how it is opened, and what is said when it fails."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import optuna
import sqlalchemy

from study.search_space import Search

#: A study may be watched by a dashboard while it is written.
_SQLITE_WAITS_S = 60.0


class _Unsynced(sqlite3.Connection):
    """SQLite without a wait for the disk in every commit, of which a cell takes about 16.

    A killed process loses nothing by it. A machine that loses its power may damage the file, which is then deleted and
    made again from the study's folder.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.execute("PRAGMA synchronous = OFF")


#: What a database that fails raises.
BROKEN = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError)

_P = ParamSpec("_P")
_R = TypeVar("_R")


class SearchError(Exception):
    """The search cannot go on; the message is one line that says why and what to do."""


def storage_url(storage: str | None, folder: str | None) -> str:
    """The database's URL: the study's, or else that of `search.db` in its folder.

    Args:
        storage: the study's `search.storage`.
        folder: the absolute path of the study's folder if it is a local one.

    Raises:
        SearchError: neither is given.
    """
    if storage is not None:
        return storage
    if folder is None:
        raise SearchError(
            "search.storage: a study whose folder is not local needs a database, e.g. postgresql://<host>/<name>"
        )
    return sqlite_url(Path(folder) / "search.db")


def sqlite_url(path: Path) -> str:
    """The URL of a file of SQLite."""
    # SQLAlchemy takes what follows a question mark as options.
    return f"sqlite:///{str(path).replace('%', '%25').replace('?', '%3F')}"


def connect(
    url: str | optuna.storages.BaseStorage, name: str, settings: Search
) -> tuple[optuna.storages.BaseStorage, optuna.Study]:
    """The search of this name in the database (or in a storage of Optuna's that is open), made there if it is new.

    Raises:
        SearchError: the database cannot be opened, or holds a search for something else under this name.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = url if isinstance(url, optuna.storages.BaseStorage) else open_storage(url)
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=settings.directions,
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=0),
            pruner=optuna.pruners.NopPruner(),
        )
    except ImportError as error:
        raise SearchError(f"search.storage: {url} needs a package that is not installed ({error})") from None
    except (*BROKEN, RuntimeError) as error:
        remedy = (
            "; a damaged file can be deleted, the study's folder has what ended"
            if "not a database" in str(error)
            else ""
        )
        raise SearchError(f"search.storage: {url} cannot be opened ({reason_of(error)}){remedy}") from None
    if [direction.name.lower() for direction in study.directions] != settings.directions:
        raise SearchError(f"search.objectives: {name} in {url} looks for something else; give the study another name")
    return storage, study


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage at a URL; see `BROKEN` for what it may raise, besides ImportError and RuntimeError."""
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        options = {"connect_args": {"timeout": _SQLITE_WAITS_S, "factory": _Unsynced}}
    # Optuna reads the URL as a format string.
    return optuna.storages.RDBStorage(url.replace("{", "{{").replace("}", "}}"), engine_kwargs=options)


def in_one_line(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """A method in which a database that fails is a SearchError."""

    @functools.wraps(method)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(*args, **kwargs)
        except BROKEN as error:
            raise SearchError(f"search.storage: the database failed ({reason_of(error)})") from error

    return guarded


def reason_of(error: BaseException) -> str:
    """Why a database failed, in one line."""
    return (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
