"""What one folder of a study has and another lacks, and where the two contradict each other: what a merge has to do.

Nothing is written here. What both have is the other's (`here`); where it differs that is a conflict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from study.plan import as_decision
from study.records import from_parquet
from study.settings import Scheduler
from study.store import ENDED, StoreError, StudyFolder, standing

if TYPE_CHECKING:
    import pyarrow as pa

Row = Mapping[str, Any]

#: Cell, seed, and the scheduler of a stop that is not this study's own.
Key = tuple[str, int, str | None]

#: Trial, `checkpoints` or `measures`, and name.
File = tuple[str, str, str]

#: Columns of an end that say where and when, and not what.
_PLACE = frozenset({"trial", "run", "device", "steps", "train_seconds", "scheduler"})

#: What a person looks at first where two ends differ.
_TELLING = ("test_accuracy", "validation_accuracy", "epoch", "validation_loss", "test_loss", "train_loss")


@dataclass(frozen=True)
class Conflict:
    """What both folders have, and not the same; `here` stays.

    Attributes:
        cell: whose.
        seed: of which replicate; None where it is about the cell.
        here: what the target has.
        there: what the source has.
        source: the source's address.
    """

    cell: str
    seed: int | None
    here: str
    there: str
    source: str

    def __str__(self) -> str:
        """One line."""
        of = "" if self.seed is None else f", seed {self.seed}"
        return f"cell {self.cell}{of}: {self.here}; in {self.source} {self.there}"


@dataclass(frozen=True)
class Missing:
    """What `there` has and `here` lacks.

    Attributes:
        ends: rows of replicates that have ended.
        decisions: a scheduler's.
        epochs: history of those ends, and of trials that have none.
        files: what ended trials keep.
        going: checkpoints of trials without an end.
        partly: of trials some of whose seeds are here of another trial, those that are not.
        runs: content of the runs' records, by name.
        plan: planned replicates.
        chosen: a search's cells.
        spec: the study with what both ask; empty where it stays as it is.
        conflicts: what stays as it is here.
    """

    ends: pa.Table
    decisions: list[dict[str, Any]]
    epochs: pa.Table
    files: list[File]
    going: list[File]
    partly: dict[str, set[int]]
    runs: dict[str, bytes]
    plan: list[dict[str, Any]]
    chosen: list[dict[str, Any]]
    spec: dict[str, Any]
    conflicts: list[Conflict]

    def __bool__(self) -> bool:
        """Whether there is anything to take."""
        rows = len(self.ends) + len(self.epochs)
        return bool(
            rows or self.decisions or self.files or self.going or self.runs or self.plan or self.chosen or self.spec
        )


class Side:
    """What one folder has, each table read once."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The study.

        Raises:
            StoreError: there is none.
        """
        spec = self.folder.spec()
        if spec is None:
            raise StoreError(f"{self.folder.uri} holds no study (no study.json)")
        return spec

    @cached_property
    def scheduler(self) -> str:
        return str(Scheduler(**self.spec["scheduler"]))

    @cached_property
    def plan(self) -> list[dict[str, Any]]:
        """Planned replicates; none where no cell is chosen yet."""
        data = self.folder.read("plan.parquet")
        if data is None:
            return []
        rows: list[dict[str, Any]] = from_parquet(data, self.folder.path("plan.parquet")).to_pylist()
        return rows

    @cached_property
    def arms(self) -> dict[str, str]:
        """Each planned cell's arm."""
        return {row["cell"]: row["arm"] for row in self.plan}

    @cached_property
    def lengths(self) -> dict[str, int]:
        """Epochs of each arm's cells; under ASHA they are the same for all."""
        return {row["arm"]: row["epochs"] for row in self.plan}

    @cached_property
    def decisions(self) -> list[dict[str, Any]]:
        return self.folder.decisions_rows()

    @cached_property
    def table(self) -> pa.Table:
        """Every end on record."""
        return self.folder.table("ends")

    @cached_property
    def ends(self) -> list[dict[str, Any]]:
        """The same as rows."""
        rows: list[dict[str, Any]] = self.table.to_pylist()
        return rows

    def best(self, scheduler: str) -> dict[Key, tuple[int, int]]:
        """How good the best end of each replicate is (see `study.store.standing`), and its place in `ends`.

        A stop by another scheduler is an end of its own: the study may go back to that one.
        """
        found: dict[Key, tuple[int, str, int]] = {}
        for place, row in enumerate(self.ends):
            rank, other = standing(row, scheduler), None
            if rank is None:
                rank, other = ENDED.index("stopped"), row["scheduler"]
            key, candidate = (row["cell"], row["seed"], other), (rank, row["trial"], place)
            found[key] = min(found.get(key, candidate), candidate)
        return {key: (rank, place) for key, (rank, _, place) in found.items()}

    def names(self, trial: str, kind: str) -> dict[str, int]:
        """Names and sizes of a trial's `checkpoints` or `measures`."""
        return self.kept.get((trial, kind), {})

    @cached_property
    def kept(self) -> dict[tuple[str, str], dict[str, int]]:
        """Names and sizes of what trials keep, by trial and kind."""
        found: dict[tuple[str, str], dict[str, int]] = {}
        for path, size in self.folder.walk("trials").items():
            trial, kind, name = [*path.split("/"), "", ""][:3]
            if name.endswith((".pt", ".parquet")):
                found.setdefault((trial, kind), {})[name] = size
        return found


def compare(here: Side, there: Side) -> Missing:
    """What is to be taken from there.

    Raises:
        StoreError: a folder is damaged or cannot be read.
    """
    return _Comparison(here, there).missing()


class _Comparison:
    def __init__(self, here: Side, there: Side) -> None:
        self.here, self.there = here, there
        self.scheduler = there.scheduler
        self.mine, self.theirs = here.best(self.scheduler), there.best(self.scheduler)
        self.conflicts: list[Conflict] = []

    def missing(self) -> Missing:
        there = self.there
        decisions, overruled = self._decisions()
        ends = self._ends(overruled)
        places = sorted(ends.values())
        whole, partly = self._accepted(ends)
        begun = self._begun(set(places))
        ended = {(there.ends[place]["trial"], there.ends[place]["seed"]) for place in places}
        return Missing(
            ends=there.table.take(places) if places else there.table.slice(0, 0),
            decisions=decisions,
            epochs=self._epochs(ended | {(trial, seed) for trial, seeds in begun.items() for seed in seeds}),
            files=self._files(whole, partly),
            going=[
                (trial, "checkpoints", name)
                for trial in begun
                for name in sorted(there.names(trial, "checkpoints").keys() - self.here.names(trial, "checkpoints"))
            ],
            partly=partly,
            runs=self._runs(),
            plan=_others(there.plan, self.here.plan, ("cell", "seed")),
            chosen=_others(there.folder.chosen(), self.here.folder.chosen(), ("cell",)),
            spec=self._spec(),
            conflicts=self.conflicts,
        )

    def _decisions(self) -> tuple[list[dict[str, Any]], set[str]]:
        """Decisions that are missing, and the cells that were stopped there and are known here to have gone on."""
        decided = {(row["cell"], row["rung"], row["scheduler"]): row for row in self.here.decisions}
        missing, overruled = [], set()
        for row in _others(self.there.decisions, self.here.decisions, ("run", "sequence")):
            mine = decided.get((row["cell"], row["rung"], row["scheduler"]))
            if mine is None:
                missing.append(row)
                continue
            # A cell is decided once at a rung. What follows from a decision that is left out is left out with it.
            one, other = as_decision(mine), as_decision(row)
            if (one.stop, one.epoch) != (other.stop, other.epoch) or not _same(one.value, other.value):
                self._conflict(row["cell"], None, _decided(mine), _decided(row))
            if other.stop and not one.stop and row["scheduler"] == self.scheduler:
                overruled.add(row["cell"])
        return missing, overruled

    def _ends(self, overruled: set[str]) -> dict[Key, int]:
        """The ends that are missing: their places there."""
        missing: dict[Key, int] = {}
        for key, (rank, place) in self.theirs.items():
            row = self.there.ends[place]
            if key[0] in overruled and row["status"] == "stopped" and row.get("scheduler") == self.scheduler:
                continue
            mine = self.mine.get(key)
            if mine is None or rank < mine[0]:
                missing[key] = place
            elif rank == mine[0] and row["status"] != "failed":
                self._name_differences(self.here.ends[mine[1]], row)
        apart = self._apart(missing)
        return {key: place for key, place in missing.items() if key[0] not in apart or key[2] is not None}

    def _name_differences(self, mine: Row, theirs: Row) -> None:
        differing = _differing(mine, theirs)
        if not differing:
            return
        key = next((key for key in _TELLING if key in differing), differing[0])
        here, there = (f"{row['status']}, {key} {row.get(key)!r}{_on(row.get('device'))}" for row in (mine, theirs))
        more = f" ({len(differing) - 1} more columns differ)" if len(differing) > 1 else ""
        self._conflict(mine["cell"], mine["seed"], here, there + more)

    def _apart(self, missing: Mapping[Key, int]) -> set[str]:
        """The cells that were trained to one epoch here and another there: such seeds are no replicates of a cell."""
        mine: dict[str, set[int | None]] = {}
        theirs: dict[str, set[int | None]] = {}
        for key, (_, place) in self.mine.items():
            if key not in missing and key[2] is None:
                mine.setdefault(key[0], set()).update(self._fidelity(self.here.ends[place]))
        for key, place in missing.items():
            if key[2] is None:
                theirs.setdefault(key[0], set()).update(self._fidelity(self.there.ends[place]))
        apart = {cell for cell, found in theirs.items() if found and mine.get(cell) and len(found | mine[cell]) > 1}
        for cell in sorted(apart):
            seeds = ", ".join(str(seed) for own, seed, other in sorted(missing, key=repr) if own == cell and not other)
            left = f"{_reached(theirs[cell])} (seed {seeds}), which is left out"
            self._conflict(cell, None, _reached(mine[cell]), left)
        return apart

    def _fidelity(self, row: Row) -> set[int | None]:
        """How far an end says that its cell is trained: in full (None) or to a stop's epoch; nothing of a failure."""
        if row["status"] == "complete":
            return {None}
        return {row["epoch"]} if row["status"] == "stopped" and row.get("scheduler") == self.scheduler else set()

    def _accepted(self, ends: Mapping[Key, int]) -> tuple[list[str], dict[str, set[int]]]:
        """The trials there whose files belong to what is on record here then: with all their seeds, or with some.

        No trial here could go on from the checkpoint of one with some of its seeds.
        """
        own: dict[str, set[int]] = {}
        every: dict[str, set[int]] = {}
        for key, (rank, place) in self.theirs.items():
            row, mine = self.there.ends[place], self.mine.get(key)
            every.setdefault(row["trial"], set()).add(row["seed"])
            if key in ends or (mine is not None and mine[0] == rank and self._is_here(row, mine[1])):
                own.setdefault(row["trial"], set()).add(row["seed"])
        whole = [trial for trial, seeds in own.items() if seeds == every[trial]]
        return whole, {trial: seeds for trial, seeds in own.items() if seeds != every[trial]}

    def _is_here(self, row: Row, place: int) -> bool:
        mine = self.here.ends[place]
        return bool(mine["trial"] == row["trial"]) and not _differing(mine, row)

    def _begun(self, taken: set[int]) -> dict[str, set[int]]:
        """Trials there without an end, with their seeds, that nobody here has ended.

        One that has checkpoints of its own here goes on from these.
        """
        rows = self.there.ends
        over = {rows[place]["trial"] for _, place in self.theirs.values() if rows[place]["status"] in ENDED}
        here = [self.here.ends[place] for _, place in self.mine.values()]
        ended_here = {row["trial"] for row in here if row["status"] in ENDED}
        # One whose end is left out counts as begun: what it has trained is not lost.
        over &= {rows[place]["trial"] for place in taken} | ended_here
        progress = self.there.folder.unfinished(over, ["cell", "seed"])
        each = progress.group_by(["trial", "cell", "seed"]).aggregate([]).to_pylist() if len(progress) else []
        seeds: dict[str, set[tuple[str, int]]] = {
            trial: set() for trial, kind in self.there.kept if kind == "checkpoints" and trial not in over
        }
        for row in [*each, *(row for row in rows if row["trial"] not in over)]:
            seeds.setdefault(row["trial"], set()).add((row["cell"], row["seed"]))
        ended = {key[:2] for key, (_, place) in self.mine.items() if _stands(key, self.here.ends[place])}
        ended |= {key[:2] for key, (_, place) in self.theirs.items() if place in taken and _stands(key, rows[place])}
        return {
            trial: {seed for _, seed in own}
            for trial, own in seeds.items()
            if trial not in ended_here
            and not own & ended
            and self.here.names(trial, "checkpoints").items() <= self.there.names(trial, "checkpoints").items()
        }

    def _files(self, whole: Iterable[str], partly: Iterable[str]) -> list[File]:
        """What is missing of the files of trials that have ended."""
        found: list[File] = []
        for trial in whole:
            # A failed attempt may have left earlier checkpoints here.
            newest = max(self.here.names(trial, "checkpoints"), default="")
            found += [(trial, "checkpoints", n) for n in sorted(self.there.names(trial, "checkpoints")) if n > newest]
        for trial in (*whole, *partly):
            missing = self.there.names(trial, "measures").keys() - self.here.names(trial, "measures")
            found += [(trial, "measures", name) for name in sorted(missing)]
        return found

    def _epochs(self, replicates: set[tuple[str, int]]) -> pa.Table:
        """The history of these (trial, seed), less what is here."""
        import pyarrow as pa

        trials, seeds = zip(*sorted(replicates), strict=True) if replicates else ((), ())
        named = list(dict.fromkeys(trials))
        found = self.there.folder.table("history", trials=named) if named else pa.table({})
        if not len(found):
            return found
        # By its place: a join moves rows about, and cannot carry columns of every type.
        places = found.select(["trial", "seed", "epoch"]).append_column("place", pa.array(range(len(found))))
        places = places.join(pa.table({"trial": trials, "seed": seeds}), ["trial", "seed"], join_type="left semi")
        known = self.here.folder.table("history", ["seed", "epoch"], named)
        if len(known):
            places = places.join(known, ["trial", "seed", "epoch"], join_type="left anti")
        return found.take(places["place"].combine_chunks().sort())

    def _runs(self) -> dict[str, bytes]:
        """Records of runs that are missing, and of those that were still going on when they were copied."""
        found = {}
        for name in self.there.folder.names("runs"):
            if not name.endswith(".json") or (content := self.there.folder.read("runs", name)) is None:
                continue
            mine = self.here.folder.json("runs", name)
            over = (self.there.folder.json("runs", name) or {}).get("ended") is not None
            if mine is None or (mine.get("ended") is None and over):
                found[name] = content
        return found

    def _spec(self) -> dict[str, Any]:
        """The study with what the other asks beside it: arms, values of the grid, seeds, measures."""
        here, there = self.here.folder.spec(), self.there.spec
        if here is None:
            return there
        both = dict(here)
        for key in ("arms", "measures"):
            if new := {k: v for k, v in (there.get(key) or {}).items() if k not in (here.get(key) or {})}:
                both[key] = {**(here.get(key) or {}), **new}
        if grid := there.get("grid"):
            mine = here.get("grid") or {}
            both["grid"] = {axis: _union(mine.get(axis, []), grid.get(axis, [])) for axis in {**mine, **grid}}
        if seeds := there.get("seeds"):
            both["seeds"] = _union(here.get("seeds", []), seeds)
        return {} if both == here else both

    def _conflict(self, cell: str, seed: int | None, here: str, there: str) -> None:
        self.conflicts.append(Conflict(cell, seed, here, there, self.there.folder.uri))


def _stands(key: Key, row: Row) -> bool:
    """Whether an end is one under the study's scheduler."""
    return key[2] is None and row["status"] in ENDED


def _others(rows: Sequence[dict[str, Any]], known: Iterable[Row], by: Sequence[str]) -> list[dict[str, Any]]:
    """Rows that are not among the known ones, by these columns."""
    there = {tuple(row[key] for key in by) for row in known}
    return [row for row in rows if tuple(row[key] for key in by) not in there]


def _differing(one: Row, other: Row) -> list[str]:
    """Columns in which two ends say different things."""
    return [k for k in dict.fromkeys([*one, *other]) if k not in _PLACE and not _same(one.get(k), other.get(k))]


def _same(one: Any, other: Any) -> bool:
    """Equal, where what is not a number equals what is missing."""
    if _none(one) or _none(other):
        return _none(one) and _none(other)
    return bool(one == other)


def _none(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _union(one: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    """Both in their order, each value once; not every value has a hash."""
    found: list[Any] = []
    for value in [*one, *other]:
        if value not in found:
            found.append(value)
    return found


def _on(device: Any) -> str:
    return f" on {device}" if device else ""


def _decided(row: Row) -> str:
    value = f"{row['value']:.3f}" if math.isfinite(row["value"]) else "that is not finite"
    return f"{'stopped' if row['stop'] else 'went on'} at epoch {row['epoch']} with value {value}"


def _reached(fidelities: Iterable[int | None]) -> str:
    """What a cell's ends say of it: `complete`, `stopped at epoch 9`."""
    known = sorted(-1 if f is None else f for f in fidelities)
    return " and ".join("complete" if f < 0 else f"stopped at epoch {f}" for f in known)
