"""How a study stands, read from its folder while it is run or not: `study status`. Needs neither Ray nor torch.

Ends and decisions answer for everything that is over; of the epochs only those of trials without an end are kept in
memory, so that a study of ten thousand trials is asked in seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from study.asha import Asha
from study.budget import Balance, Usage
from study.ledger import Replayed, Story, merges, replay, why
from study.lock import Holder, holder
from study.reader import StudyReader
from study.settings import Price, Resources
from study.store import ENDED, StoreError
from trainables.recipe import EXECUTION, digest

if TYPE_CHECKING:
    import pandas as pd

    from analysis.layout import Layout

#: Runs that are shown.
LAST_RUNS = 3


@dataclass(frozen=True)
class Driver:
    """Who runs the study, or has left it without a word. Times are ISO 8601 in UTC."""

    text: str
    state: str  # alive, silent, gone
    run: str | None
    where: str | None
    pid: int | None
    since: str | None
    seen: str | None


@dataclass(frozen=True)
class Begun:
    """A trial that has epochs and no end; `epoch` is the last that every seed has on record."""

    trial: str
    cell: str
    name: str
    seeds: list[int]
    epoch: int
    epochs: int


@dataclass(frozen=True)
class Failed:
    """Replicates that failed for one reason."""

    reason: str
    replicates: int
    trials: list[str]


@dataclass(frozen=True)
class Run:
    """One run, or a merge; `state` is running, ended, interrupted (politely, or by its store) or cut off (killed)."""

    run: str
    state: str
    started: str | None
    ended: str | None
    seconds: float | None
    trials: dict[str, int]
    reason: str | None


@dataclass(frozen=True)
class Best:
    """The complete cell of highest mean validation accuracy, a fraction in [0, 1], with its n and 95 % t interval."""

    cell: str
    name: str
    validation_accuracy: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Ledger:
    """Whether ASHA's decisions follow from each other: see `study.ledger`."""

    decisions: int
    unplanned: int
    mismatches: list[str]


@dataclass(frozen=True)
class Left:
    """What is still to be trained, at the speed of each arm's replicates that have ended.

    Attributes:
        seconds: of training on one trial's resources.
        cost: of that training alone, at the study's price and with the last run's resources; None without a price.
        currency: the price's.
    """

    seconds: float
    cost: float | None
    currency: str


@dataclass(frozen=True)
class Status:
    """A study at one moment.

    Attributes:
        cells: of each arm, its cells by status as `analysis.tables.cells` gives it.
        unsampled: of each arm, cells that a search has still to choose; empty for a grid.
        replicates: by status, and `planned`: those of cells not chosen yet included.
        epochs_done: replicate epochs of ends and of begun trials.
        epochs_planned: epochs_done of what has ended, all epochs of what has not.
        at_most: whether early stopping may leave some of the planned ones out.
        best: None where no cell is complete, and where cells differ in their data or model, which are no rivals.
        ledger: None under fifo.
    """

    name: str
    question: str
    folder: str
    scheduler: str
    driver: Driver | None
    cells: dict[str, dict[str, int]]
    unsampled: dict[str, int]
    replicates: dict[str, int]
    epochs_done: int
    epochs_planned: int
    at_most: bool
    begun: list[Begun]
    failed: list[Failed]
    runs: list[Run]
    best: Best | None
    ledger: Ledger | None = field(default=None)
    #: What all runs have used, and what the study's budget has left.
    balance: Balance | None = None
    #: None where nothing is left, or nothing has ended by which to tell.
    left: Left | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False)


def status(reader: StudyReader, now: datetime | None = None) -> Status:
    """Look at a study's folder.

    Args:
        reader: of the folder.
        now: by which the running one's time is counted; by default the clock's.

    Raises:
        StoreError: the folder is damaged or cannot be read.
    """
    from analysis.tables import CELL_STATUSES, cells

    now = now or datetime.now(UTC)
    held = holder(reader.folder)
    replicates, runs = reader.replicates(), reader.runs()
    table = cells(replicates, "validation_accuracy") if len(replicates) else replicates
    named = _names(reader.spec, table)
    by_arm: dict[str, dict[str, int]] = {arm: {} for arm in reader.spec.get("arms") or {}}
    for arm, states in table["status"].groupby(table["arm"], sort=False) if len(table) else ():
        counts = states.value_counts()
        by_arm[str(arm)] = {name: int(counts[name]) for name in CELL_STATUSES if name in counts}
    unsampled = _unsampled(reader.spec, by_arm)
    done, planned = _epochs(reader.spec, replicates, unsampled)
    states = replicates["status"].value_counts()
    seeds = len(reader.spec.get("seeds", [0]))
    return Status(
        name=reader.spec["name"],
        question=" ".join(reader.spec["question"].split()),
        folder=reader.folder.uri,
        scheduler=str(reader.scheduler),
        driver=None if held is None else _driver(held),
        cells=by_arm,
        unsampled=unsampled,
        replicates={
            "planned": len(replicates) + seeds * sum(unsampled.values()),
            **{str(name): int(n) for name, n in states.items()},
        },
        epochs_done=done,
        epochs_planned=planned,
        at_most=reader.scheduler.name == "asha" and done < planned,
        begun=_begun(replicates, named),
        failed=_failed(replicates),
        runs=[_run(record, held, now) for record in runs[-LAST_RUNS:]],
        best=_best(reader.spec, table, named),
        ledger=_ledger(reader, replicates, runs),
        balance=reader.used(runs) if runs else None,
        left=_left(reader.spec, replicates, planned - done, runs),
    )


def explain(reader: StudyReader, name: str) -> list[str]:
    """Every decision on a trial or on all trials of a cell, and how they ended or what they wait for.

    Args:
        reader: of the study's folder.
        name: id of a trial or of a cell, or its beginning.

    Raises:
        StoreError: nothing, or more than one thing, has that name; or the folder cannot be read.
    """
    plan = reader.replicates()
    ends = reader.folder.table("ends", ["trial", "cell", "seed"])
    decided = [row for row in reader.folder.decisions_rows() if row["scheduler"] == str(reader.scheduler)]
    missing = plan[~plan["status"].isin(ENDED)]
    waiting = {
        # As a plan names it (`study.plan.trial_id`): the run of a cell's missing seeds.
        str(cell): (digest("trial", cell, sorted(map(int, seeds))), sorted(map(int, seeds)))
        for cell, seeds in missing["seed"].groupby(missing["cell"], sort=False)
    }
    cell_of: dict[str, str] = {trial: cell for cell, (trial, _) in waiting.items()}
    begun = plan[plan["status"] == "running"]
    cell_of |= dict(zip(begun["trial"], begun["cell"], strict=True))
    cell_of |= {row["trial"]: row["cell"] for row in decided}
    if len(ends):
        cell_of |= dict(zip(ends["trial"].to_pylist(), ends["cell"].to_pylist(), strict=True))
    cell_of |= {str(cell): str(cell) for cell in plan["cell"].unique()}
    cell, trial = _resolve(name, cell_of)
    own = [row for row in decided if row["cell"] == cell]
    return why(_story(reader, plan, cell, waiting.get(cell), own), trial)


def _resolve(name: str, cell_of: Mapping[str, str]) -> tuple[str, str | None]:
    """The cell that a name means, and the trial if it means one of its trials."""
    matching = [name] if name in cell_of else sorted(known for known in cell_of if name and known.startswith(name))
    cells = {cell_of[known] for known in matching}
    if not matching:
        raise StoreError(f"{name}: no trial and no cell of this study has an id that begins so")
    if len(cells) > 1:
        known = ", ".join(f"{'cell' if cell_of[m] == m else 'trial'} {m}" for m in matching[:5])
        more = f" and {len(matching) - 5} more" if len(matching) > 5 else ""
        raise StoreError(f"{name}: could be {known}{more}; give more of the id")
    one = matching[0]
    return cells.pop(), one if len(matching) == 1 and one != cell_of[one] else None


def _story(
    reader: StudyReader,
    replicates: pd.DataFrame,
    cell: str,
    waiting: tuple[str, list[int]] | None,
    decisions: Sequence[Mapping[str, Any]],
) -> Story:
    """All that the folder knows of a cell."""
    import pyarrow.compute as pc

    from analysis.tables import cells

    named = _names(reader.spec, cells(replicates, "validation_accuracy")) if len(replicates) else {}
    planned = replicates[replicates["cell"] == cell]
    ends = reader.folder.table("ends")
    reached: dict[str, dict[int, int]] = {}
    running = planned[planned["status"] == "running"]
    for trial, seed, epoch in zip(running["trial"], running["seed"], running["epoch"], strict=True):
        reached.setdefault(str(trial), {})[int(seed)] = int(epoch)
    held = holder(reader.folder)
    return Story(
        cell=cell,
        name=named.get(cell, "planned no longer"),
        epochs=int(planned["epochs"].iloc[0]) if len(planned) else 0,
        scheduler=str(reader.scheduler),
        ends=ends.filter(pc.equal(ends["cell"], cell)).to_pylist() if len(ends) else [],
        decisions=decisions,
        epochs_reached=reached,
        waiting=waiting,
        run_by=(held.where or "somebody") if held is not None and held.state == "alive" else None,
    )


# Its parts


def _driver(held: Holder) -> Driver:
    since, seen = (None if time is None else time.isoformat(timespec="seconds") for time in (held.since, held.seen))
    return Driver(str(held), held.state, held.run, held.where, held.pid, since, seen)


def _layout(spec: Mapping[str, Any], table: pd.DataFrame) -> Layout:
    """What the study varies."""
    from analysis.layout import layout
    from analysis.search import search_axes

    axes = [*(spec.get("grid") or {}), *search_axes(spec)] if "grid" in spec or spec.get("search") else None
    return layout(table, axes, search=bool(spec.get("search")))


def _names(spec: Mapping[str, Any], table: pd.DataFrame) -> dict[str, str]:
    """Each cell as a person calls it: its arm and the settings that the study varies."""
    from analysis.words import cell_name

    if table.empty:
        return {}
    # Where a cell is trained is none of its settings.
    fields = [name for name in _layout(spec, table).factors if name not in EXECUTION]
    columns = ["cell", "arm", *fields]
    rows = zip(*(table[column] for column in columns), strict=True)
    return {str(row[0]): cell_name(dict(zip(columns, row, strict=True)), fields) for row in rows}


def _unsampled(spec: Mapping[str, Any], by_arm: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    search = spec.get("search")
    if not search:
        return {}
    return {arm: max(0, int(search["cells"]) - sum(states.values())) for arm, states in by_arm.items()}


def _epochs(spec: Mapping[str, Any], replicates: pd.DataFrame, unsampled: Mapping[str, int]) -> tuple[int, int]:
    """Replicate epochs that are trained, and those of all that is planned."""
    if replicates.empty:
        done, planned, epochs = 0, 0, {}
    else:
        over = replicates["status"].isin(ENDED)
        reached = replicates["epoch"].fillna(0).where(over | (replicates["status"] == "running"), 0)
        done = int(reached.sum())
        planned = int(reached.where(over, replicates["epochs"]).sum())
        epochs = replicates.groupby("arm")["epochs"].max().to_dict()
    # An arm of which no cell is chosen yet is as long as the study says; without a word, as the others.
    length = (spec.get("recipe") or {}).get("epochs") or max(epochs.values(), default=0)
    seeds = len(spec.get("seeds", [0]))
    return done, planned + sum(int(epochs.get(arm, length)) * left * seeds for arm, left in unsampled.items())


def _left(
    spec: Mapping[str, Any], replicates: pd.DataFrame, epochs: int, runs: Sequence[Mapping[str, Any]]
) -> Left | None:
    """What `epochs` replicate epochs that are missing will take."""
    if not epochs or replicates.empty or "train_seconds" not in replicates:
        return None
    over = replicates[replicates["status"].isin(ENDED) & replicates["train_seconds"].notna()]
    trained = over.groupby("arm")[["train_seconds", "epoch"]].sum()
    trained = trained[trained["epoch"] > 0]
    if trained.empty:
        return None
    everywhere = float(trained["train_seconds"].sum() / trained["epoch"].sum())
    speed = (trained["train_seconds"] / trained["epoch"]).to_dict()
    going = replicates[~replicates["status"].isin(ENDED)]
    missing = (going["epochs"] - going["epoch"].where(going["status"] == "running", 0).fillna(0)).groupby(going["arm"])
    by_arm = {str(arm): float(n) for arm, n in missing.sum().items()}
    seconds = sum(n * speed.get(arm, everywhere) for arm, n in by_arm.items())
    # Cells that a search has still to choose are of no row yet.
    seconds += (epochs - sum(by_arm.values())) * everywhere
    seconds /= Resources(**(spec.get("resources") or {})).abreast(len(spec.get("seeds", [0])))
    resources = next((run["resources"] for run in reversed(runs) if run.get("resources")), None)
    price = Price(**spec["price"]) if spec.get("price") else None
    cost = None if price is None or resources is None else Usage.of(resources, seconds).cost(price)
    return Left(seconds, cost, price.currency if price else "")


def _begun(replicates: pd.DataFrame, named: Mapping[str, str]) -> list[Begun]:
    running = replicates[replicates["status"] == "running"]
    return [
        Begun(
            trial=str(trial),
            cell=str(rows["cell"].iloc[0]),
            name=named[str(rows["cell"].iloc[0])],
            seeds=[int(seed) for seed in rows["seed"]],
            epoch=int(rows["epoch"].min()),
            epochs=int(rows["epochs"].iloc[0]),
        )
        for trial, rows in running.groupby("trial", sort=False)
    ]


def _failed(replicates: pd.DataFrame) -> list[Failed]:
    failed = replicates[replicates["status"] == "failed"]
    reasons = failed["reason"].fillna("no reason was recorded")
    groups = [
        Failed(str(reason), len(rows), [str(trial) for trial in rows["trial"].unique()])
        for reason, rows in failed.groupby(reasons, sort=False)
    ]
    return sorted(groups, key=lambda group: -group.replicates)


def _run(record: Mapping[str, Any], held: Holder | None, now: datetime) -> Run:
    run, started, ended = str(record.get("run", "")), record.get("started"), record.get("ended")
    if ended is not None:
        state = "interrupted" if record.get("interrupted") else "ended"
    else:
        state = "running" if held is not None and held.run == run and held.state == "alive" else "cut off"
    seconds = record.get("seconds")
    if seconds is None and started is not None and state != "cut off":
        until = now if ended is None else datetime.fromisoformat(ended)
        seconds = round((until - datetime.fromisoformat(started)).total_seconds(), 3)
    reason = record.get("reason") or (f"merged from {record['merge']['from']}" if record.get("merge") else None)
    return Run(run, state, started, ended, seconds, dict(record.get("trials") or {}), reason)


def _best(spec: Mapping[str, Any], table: pd.DataFrame, named: Mapping[str, str]) -> Best | None:
    from analysis.tables import best_cell

    if table.empty or _layout(spec, table).conditions:
        return None
    row = best_cell(table)
    if row is None:
        return None
    mean, low, high = (_number(row[f"validation_{name}"]) for name in ("mean", "low", "high"))
    assert mean is not None  # it was chosen by it
    return Best(str(row["cell"]), named[str(row["cell"])], mean, low, high, int(row["validation_n"]))


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _ledger(reader: StudyReader, replicates: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> Ledger | None:
    if reader.scheduler.name != "asha":
        return None
    found = check(reader, replicates, runs)
    return Ledger(found.decisions, found.unplanned, [str(mismatch) for mismatch in found.mismatches])


def check(reader: StudyReader, replicates: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> Replayed:
    """Replay a study's ledger.

    Args:
        reader: of the study's folder.
        replicates: `reader.replicates()`.
        runs: `reader.runs()`.
    """
    cells = replicates[["cell", "arm", "epochs"]].drop_duplicates("cell") if len(replicates) else replicates
    arms = dict(zip(cells["cell"], cells["arm"], strict=True))
    epochs = dict(zip(cells["arm"], cells["epochs"], strict=True)) if len(cells) else {}
    rows = [row for row in reader.folder.decisions_rows() if row["scheduler"] == str(reader.scheduler)]

    def rungs(arm: str) -> Asha:
        return Asha(int(epochs[arm]), *reader.scheduler.settings())

    return replay(rows, arms, rungs, merges(runs))
