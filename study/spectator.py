"""A running study as anybody sees it who reaches its folder: `study watch`. Needs neither Ray nor torch nor the data.

The driver writes epochs into the folder about every `study.records.EPOCHS_EVERY` seconds: what is seen is that old at
most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from study.board import Board, CellState, worst
from study.cells import Cell
from study.lock import Holder, holder
from study.reader import StudyReader
from study.service.supervise import LONGEST_PAUSE
from study.store import ENDED, StudyFolder
from study.words import duration
from trainables.data import DatasetFacts
from trainables.recipe import EXECUTION, Recipe

if TYPE_CHECKING:
    import pandas as pd

#: How a run has ended. `complete`: it had nothing left to do. `failed`: that, but some trials failed. `budget` and
#: `interrupted`: stopped, and another one goes on. `broken`: by an error. `cut off`: its process is gone, or silent.
Kind = Literal["complete", "failed", "budget", "interrupted", "broken", "cut off"]

#: A look at a large study takes its time: the pause after it is at least so many times as long.
_REST = 3.0

#: Seconds of watching before the time that is left is guessed from what was seen in them.
_ENOUGH = 60.0

#: Seconds after the death of a driver in which another one may take over: the longest pause of a job's supervisor, and
#: what a driver needs until it takes the lock.
SUCCESSION = LONGEST_PAUSE + 35.0

#: What a board needs of a cell stands in the plan; its data set is not looked at.
_NOT_LOOKED_AT = DatasetFacts(None, 0, None, None, None, None, "not looked at")


@dataclass(frozen=True)
class Look:
    """The study at one moment; `holder` is who runs it, None if nobody does."""

    board: Board
    holder: Holder | None

    @property
    def alive(self) -> bool:
        """Whether somebody runs it who gives signs of life."""
        return self.holder is not None and self.holder.state == "alive"

    def to_json(self) -> dict[str, Any]:
        """As plain values: `cells` by state, replicate epochs, seconds that are left or None."""
        left = self.board.seconds_left()
        return {
            "study": self.board.title,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": self.holder.run if self.holder else None,
            "driver": self.holder.state if self.holder else None,
            "cells": dict(self.board.counts()),
            "cells_to_sample": self.board.unsampled,
            "epochs_done": self.board.done,
            "epochs_planned": self.board.total,
            "seconds_left": None if left is None else round(left, 1),
        }


@dataclass(frozen=True)
class End:
    """How a run ended, and a line that says so."""

    kind: Kind
    line: str


class Spectator:
    """Looks at a study's folder again and again. Writes nothing.

    Args:
        folder: the study's.
        clock: tells the time in seconds.

    Raises:
        StoreError: the folder holds no study, or cannot be read.
    """

    def __init__(self, folder: StudyFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self._clock = folder, clock
        self._cells: dict[str, Cell] = {}
        #: Of the run that is watched: when its last look without progress was, and how many epochs there were then.
        self._since: tuple[str, float, int] | None = None
        self._took = 0.0
        StudyReader(folder)

    def look(self) -> Look:
        """The study now.

        Raises:
            StoreError: the folder cannot be read.
        """
        began = self._clock()
        # The lock first: of a run that has given it back everything is there. A new reader each time: the next run may
        # have changed the study.
        held, reader = holder(self.folder), StudyReader(self.folder)
        alive = held is not None and held.state == "alive"
        frame = reader.replicates()
        board = Board(reader.spec["name"], {}, 0, whose="")
        search = reader.spec.get("search")
        rows = self._rows(frame)
        last = _last_epochs(reader, frame) if "running" in set(frame["status"]) else {}
        for cell, seeds in rows.items():
            state = _state(self._cells[cell], seeds, last, alive=alive)
            board.cells[cell] = state
            for row in seeds:
                over = row["status"] in ENDED
                done = int(row["epoch"]) if over or row["status"] == "running" else 0
                board.done += done
                board.total += done if over else state.target
        if search:
            arms = {str(arm) for arm in reader.spec.get("arms") or {}} | set(frame["arm"])
            board.unsampled = max(0, int(search["cells"]) * max(1, len(arms)) - len(rows))
            longest = max((state.target for state in board.cells.values()), default=0)
            length = int((reader.spec.get("recipe") or {}).get("epochs") or longest)
            board.total += board.unsampled * length * len(reader.spec["seeds"])
        if held is not None and alive:
            self._estimate(board, held)
        self._took = self._clock() - began
        return Look(board, held)

    def looks(self, every: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[Look]:
        """The study again and again while somebody runs it; the last look is at what that run has left.

        Args:
            every: seconds between two looks, at least.
            sleep: waits.
        """
        orphaned: float | None = None
        while True:
            look = self.look()
            yield look
            if look.holder is None or look.holder.state == "silent":
                return
            if look.holder.state == "alive":
                orphaned = None
            else:
                orphaned = self._clock() if orphaned is None else orphaned
                if self._clock() - orphaned >= SUCCESSION:
                    return
            sleep(max(every, _REST * self._took))

    def end(self, run: str | None) -> End | None:
        """How a run ended; None if it has left no record, as one that found nothing to do.

        Raises:
            StoreError: the folder cannot be read.
        """
        record = next((r for r in reversed(self.folder.runs()) if r.get("run") == run or run is None), None)
        return None if record is None else ended(record)

    def _rows(self, frame: pd.DataFrame) -> dict[str, list[Mapping[str, Any]]]:
        """Of each cell its replicates."""
        # The plan has no fields of execution; `device` is where a replicate was trained.
        fields = [name for name in Recipe.model_fields if name in frame and name not in EXECUTION]
        new = frame[~frame["cell"].isin(self._cells)].drop_duplicates("cell")
        for row in new[["cell", "arm", *fields]].to_dict("records"):
            # As it was checked when it was planned; a missing value is what the cell does not use.
            used = {name: row[name] for name in fields if row[name] is not None and row[name] == row[name]}
            blank = dict.fromkeys(Recipe.model_fields)
            recipe = Recipe.model_construct(**{**blank, **used})
            self._cells[str(row["cell"])] = Cell(str(row["cell"]), str(row["arm"]), recipe, _NOT_LOOKED_AT)
        rows: dict[str, list[Mapping[str, Any]]] = {}
        for row in frame[["cell", "seed", "status", "epoch", "validation_accuracy"]].to_dict("records"):
            rows.setdefault(str(row["cell"]), []).append({str(key): value for key, value in row.items()})
        return rows

    def _estimate(self, board: Board, held: Holder) -> None:
        """Since when, and how many epochs in that time: what the time that is left is guessed from."""
        run, now = str(held.run), self._clock()
        if self._since is None or self._since[0] != run or board.done <= self._since[2]:
            # Nothing has moved yet: workers are being started, and their time says nothing about an epoch's.
            self._since = (run, now, board.done)
        _, since, before = self._since
        if now - since >= _ENOUGH:
            board.began, board.trained = time.monotonic() - (now - since), board.done - before


def ended(record: Mapping[str, Any]) -> End:
    """How a run ended, by its record.

    Args:
        record: one of `StudyFolder.runs`.
    """
    run, reason = record.get("run"), record.get("reason")
    if record.get("ended") is None:
        return End("cut off", f"run {run} has ended without a word; the next run goes on from its checkpoints")
    took = duration((_time(record["ended"]) - _time(record["started"])).total_seconds())
    trials = ", ".join(f"{n} {state}" for state, n in (record.get("trials") or {}).items()) or "none ended"
    said = f"run {run} ended after {took}; its trials: {trials}"
    if record.get("interrupted"):
        if reason is None:
            return End("interrupted", f"{said}; interrupted, and the next run goes on")
        if reason.startswith("stopped by its budget"):
            return End("budget", f"{said}; {reason}")
        if reason.startswith("stopped as "):
            return End("interrupted", f"{said}; {reason}")
        return End("broken", f"{said}; it broke off: {reason}")
    if (record.get("trials") or {}).get("failed") or record.get("unmeasured"):
        return End("failed", f"{said}; the same study again tries what failed again")
    return End("complete", said)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _last_epochs(reader: StudyReader, frame: pd.DataFrame) -> dict[tuple[str, int], tuple[int, float]]:
    """(cell, seed) -> last epoch on record and its validation accuracy, of the trials that have no end."""
    over = set(frame.loc[frame["status"] != "running", "trial"].dropna())
    found: dict[tuple[str, int], tuple[int, float]] = {}
    columns = ["cell", "seed", "epoch", "validation_accuracy"]
    for row in reader.folder.unfinished(over, columns).to_pylist():
        key = (row["cell"], row["seed"])
        if key not in found or row["epoch"] > found[key][0]:
            found[key] = (row["epoch"], row["validation_accuracy"])
    return found


def _state(
    cell: Cell, seeds: list[Mapping[str, Any]], last: Mapping[tuple[str, int], tuple[int, float]], *, alive: bool
) -> CellState:
    """A cell by its replicates."""
    state = CellState(cell, int(cell.recipe.epochs))
    statuses = [row["status"] for row in seeds]
    if "running" in statuses:
        # Also a trial that an earlier run has begun and that waits for its turn in this one.
        state.state = "running" if alive else "waiting"
        reached = [last[key] for row in seeds if (key := (cell.id, int(row["seed"]))) in last]
        if reached:
            state.epoch = min(epoch for epoch, _ in reached)
            values = [value for _, value in reached if value is not None]
            state.value = sum(values) / len(values) if values else None
        return state
    over = [row for row in seeds if row["status"] in ENDED]
    values = [v for row in over if (v := row["validation_accuracy"]) is not None and v == v]
    if values:
        state.value = sum(values) / len(values)
    if over:
        state.epoch = int(over[0]["epoch"])
    if "missing" not in statuses:
        state.state = worst(statuses)
    return state
