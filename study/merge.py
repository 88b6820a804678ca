"""Two folders of one study made one: `study merge A B`.

What B has and A lacks is taken into A: ends with their epochs, decisions, checkpoints and measures; what trials without
an end have reached; planned replicates, a search's chosen cells, and the runs' provenance. What both have is A's.
Where both have it and it differs, that is a conflict: it is named, and A's stays.

A merge is a run of its own with a record in `runs/` and rows in `records/`, so it overwrites nobody's. It writes a
trial's files before its end and the plan last: killed in the middle it leaves a readable folder, and the same merge
again ends it. Done twice it changes nothing.

Optuna's database is not merged. It is a record beside the folder, and the next run makes it follow the folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from study.lock import Lease, hold, holder
from study.missing import Conflict, File, Missing, Side, compare
from study.provenance import new_run_id, now, provenance
from study.records import FOLDER, Piece, from_parquet, to_parquet
from study.store import StoreError, StudyFolder
from study.words import count

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows of one piece: what is held in memory once more while it is written.
_ROWS = 500_000

#: Conflicts and remarks that are printed of a folder; the merge's record has all.
_MOST_LINES = 20


@dataclass
class Taken:
    """What came from one folder, counted, and what is to be known of it."""

    source: str
    ends: int = 0
    epochs: int = 0
    decisions: int = 0
    checkpoints: int = 0
    measures: int = 0
    planned: int = 0
    chosen: int = 0
    runs: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        return {key: value for key, value in vars(self).items() if isinstance(value, int)}


#: What is counted, in words: an end is one seed's, an epoch too.
_NOUNS = {
    "ends": "ended replicate",
    "epochs": "replicate epoch",
    "decisions": "decision",
    "checkpoints": "checkpoint",
    "measures": "measurement",
    "planned": "planned replicate",
    "chosen": "chosen cell",
    "runs": "run record",
}


@dataclass(frozen=True)
class Merged:
    """What a merge did: the merged folder, and what came into it from each of the others."""

    folder: str
    taken: list[Taken]

    @property
    def conflicts(self) -> list[Conflict]:
        return [conflict for taken in self.taken for conflict in taken.conflicts]


def merge(into: StudyFolder, others: Sequence[StudyFolder], out: StudyFolder | None = None) -> Merged:
    """Take into a folder what others have and it lacks.

    Args:
        into: the folder that goes first: what it has stays.
        others: read as they are, also while they are run.
        out: where to make the merged folder, if `into` is to stay as it is. One that was begun there goes on.

    Raises:
        StoreError: the folders are not of one study, one holds none or cannot be read, or the target cannot be written.
        study.lock.HeldError: the target is being run.
    """
    target = out or into
    sources = [into, *others] if out is not None else list(others)
    _refuse(target, [into, *others], made=out is not None)
    target.check_writable()
    run = new_run_id()
    done = []
    with hold(target, run) as lease:
        # What an earlier merge that was killed has left half written.
        target.tidy()
        for source in sources:
            done.append(_take(target, source, run, lease))
            run = new_run_id()
    return Merged(target.uri, done)


def lines(merged: Merged) -> list[str]:
    """A merge for a terminal."""
    out = []
    for taken in merged.taken:
        parts = [count(n, _NOUNS[key]) for key, n in taken.counts().items() if n]
        out.append(f"from {taken.source} into {merged.folder}: {', '.join(parts) or 'nothing, it is all there'}")
        out += [f"  {remark}" for remark in taken.remarks[:_MOST_LINES]]
        if taken.conflicts:
            out.append(f"  {count(len(taken.conflicts), 'conflict')}; what {merged.folder} has stays:")
            out += [f"    {conflict}" for conflict in taken.conflicts[:_MOST_LINES]]
        if (more := len(taken.conflicts) - _MOST_LINES) > 0:
            out.append(f"    and {more:,} more")
    return out


def _refuse(target: StudyFolder, folders: Sequence[StudyFolder], *, made: bool) -> None:
    """Refuse folders that are no parts of one study, before anything is written."""
    named = [folder.uri for folder in folders]
    if twice := next((uri for uri in named if named.count(uri) > 1), None):
        raise StoreError(f"{twice} is named twice; a folder is merged with others")
    if made and target.uri in named:
        raise StoreError(f"{target.uri} is one of the folders that are merged; choose another one to make")
    if target.foreign():
        raise StoreError(f"{target.uri} holds other files and no study; choose another folder")
    known = [Side(folder) for folder in folders]
    if made and target.spec() is not None:
        known.insert(0, Side(target))
    for n, one in enumerate(known):
        for other in known[n + 1 :]:
            if reason := _strangers(one, other):
                raise StoreError(f"{one.folder.uri} and {other.folder.uri} are no parts of one study: {reason}")


def _strangers(one: Side, other: Side) -> str | None:
    """Why two folders are no parts of one study; None if they are."""
    if one.spec["name"] != other.spec["name"]:
        return f"their names are {one.spec['name']} and {other.spec['name']}"
    shared = one.arms.keys() & other.arms.keys()
    if one.spec["question"].split() != other.spec["question"].split() and not shared:
        return "they ask different questions and share no cell"
    if one.scheduler != other.scheduler:
        return f"their schedulers are {one.scheduler} and {other.scheduler}"
    for cell in sorted(shared):
        if one.arms[cell] != other.arms[cell]:
            return f"cell {cell} is of arm {one.arms[cell]} in one and of arm {other.arms[cell]} in the other"
    if one.scheduler != "fifo":
        for arm in one.lengths.keys() & other.lengths.keys():
            if one.lengths[arm] != other.lengths[arm]:
                epochs = f"{one.lengths[arm]} epochs in one and {other.lengths[arm]} in the other"
                return f"arm {arm} has {epochs}; asha compares cells of one length"
    return None


def _take(target: StudyFolder, source: StudyFolder, run: str, lease: Lease) -> Taken:
    """Compare, then write what is missing: a trial's files before its end, and the plan last."""
    here, there = Side(target), Side(source)
    missing = compare(here, there)
    taken = Taken(source.uri, conflicts=missing.conflicts, remarks=_remarks(missing, here, there))
    if not missing:
        return taken
    write = _Writer(target, source, run, lease)
    record = {"run": run, "started": now(), **provenance()}
    merged = {"from": source.uri, **_whose(missing, here, there)}
    write.run({**record, "ended": None, "merge": merged})
    copied = write.files(missing.files, missing.partly)
    write.rows("history", missing.epochs)
    # A trial's checkpoints after its epochs: while it has none here, what is missing is still taken.
    copied += write.files(missing.going, {})
    write.rows("decisions", missing.decisions)
    write.rows("ends", missing.ends)
    write.study(missing, here, there)
    taken.checkpoints, taken.measures = copied.count("checkpoints"), copied.count("measures")
    taken.ends, taken.epochs, taken.decisions = len(missing.ends), len(missing.epochs), len(missing.decisions)
    taken.planned, taken.chosen, taken.runs = len(missing.plan), len(missing.chosen), len(missing.runs)
    said = {"conflicts": [str(conflict) for conflict in taken.conflicts], "remarks": taken.remarks}
    write.run({**record, "ended": now(), "merge": {**merged, "taken": taken.counts(), **said}})
    return taken


def _whose(missing: Missing, here: Side, there: Side) -> dict[str, list[str]]:
    """Whose decisions knew of each other until now (`study.ledger.Merged`); of nobody if none are taken."""
    if not missing.decisions:
        return {"here": [], "there": []}
    sides = {"here": here, "there": there}
    return {name: sorted({row["run"] for row in side.decisions}) for name, side in sides.items()}


def _remarks(missing: Missing, here: Side, there: Side) -> list[str]:
    uri, found = there.folder.uri, []
    held = holder(there.folder)
    if held is not None and held.state == "alive":
        found.append(f"{uri} is being run by {held.where or 'somebody'}; merge again when that is over")
    known = {row["run"] for row in here.decisions}
    if known and {row["run"] for row in missing.decisions} - known:
        found.append(
            f"{count(len(missing.decisions), 'decision')} of asha in {uri} compared other rivals: a cell that was "
            "stopped there might have gone on here"
        )
    for trial, seeds in missing.partly.items():
        if there.names(trial, "checkpoints"):
            found.append(
                f"trial {trial} of {uri} is taken in part (seed {', '.join(map(str, sorted(seeds)))}), and its "
                "checkpoint, which holds all of its seeds, is not"
            )
    return found


class _Writer:
    """What a merge writes, while it holds the target."""

    def __init__(self, target: StudyFolder, source: StudyFolder, name: str, lease: Lease) -> None:
        self._target, self._source, self._name, self._lease = target, source, name, lease

    def run(self, record: Mapping[str, Any]) -> None:
        self._lease.check()
        self._target.save_run(self._name, record)

    def rows(self, kind: str, rows: Sequence[Mapping[str, Any]] | pa.Table) -> None:
        """Write rows as pieces of this merge's own records."""
        for number, first in enumerate(range(0, len(rows), _ROWS), start=1):
            self._lease.check()
            piece = Piece(self._name, kind, number, number)
            self._target.write(to_parquet(rows[first : first + _ROWS]), FOLDER, self._name, piece.name)

    def files(self, files: Sequence[File], partly: Mapping[str, set[int]]) -> list[str]:
        """Copy trials' files; of a measurement of trials that are taken in part those seeds' rows. Each one's kind."""

        def copy(file: File) -> str | None:
            trial, kind, _ = file
            data = self._source.read("trials", *file)
            if data is None:
                # Its trial goes on meanwhile and has a newer one.
                return None
            if kind == "measures" and trial in partly:
                rows = from_parquet(data, self._source.path("trials", *file)).to_pylist()
                data = to_parquet([row for row in rows if row["seed"] in partly[trial]])
            self._lease.check()
            self._target.write(data, "trials", *file)
            return kind

        with ThreadPoolExecutor(8) as pool:
            return [kind for kind in pool.map(copy, files) if kind]

    def study(self, missing: Missing, here: Side, there: Side) -> None:
        """Write what the folder says of itself."""
        self._lease.check()
        for name, content in missing.runs.items():
            self._target.write(content, "runs", name)
        if missing.chosen:
            self._target.save_chosen([*self._target.chosen(), *missing.chosen])
        if missing.plan:
            self._target.save_plan(_grouped([*here.plan, *missing.plan]))
        if self._target.read("study.yaml") is None and (text := there.folder.read("study.yaml")) is not None:
            self._target.write(text, "study.yaml")
        if missing.spec:
            # Last: a folder with study.json has everything before it.
            self._target.save_spec(missing.spec)


def _grouped(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Planned replicates with each cell's seeds side by side, as a plan has them."""
    place: dict[str, int] = {}
    for row in rows:
        place.setdefault(row["cell"], len(place))
    return sorted(rows, key=lambda row: (place[row["cell"]], row["seed"]))
