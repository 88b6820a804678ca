"""The scheduler's recorded decisions as a whole: whether each follows from those before it, and why a trial ended.

A decision is a function of the rung's values before it (`study.asha`), and all of them are on record in the order in
which they were taken. So the ledger can be checked: fed with the same values in the same order, fresh rungs have to
decide the same, field by field. `replay` does that; where it fails it says which decision, and what is likely.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from study.asha import Asha, Decision
from study.plan import as_decision

Row = Mapping[str, Any]

#: What a decision says beyond its cell, epoch and value.
_DECIDED = ("rung", "cutoff", "rank", "n", "stop")


@dataclass(frozen=True)
class Mismatch:
    """A recorded decision that does not follow from those before it.

    Attributes:
        run: the run that took it.
        sequence: its number.
        trial: the trial it was taken on.
        recorded: what is on record.
        replayed: what follows; None if nothing was to be decided there.
        why: what is likely.
    """

    run: str
    sequence: int
    trial: str
    recorded: Decision
    replayed: Decision | None
    why: str

    def __str__(self) -> str:
        """One line."""
        head = f"decision {self.sequence} of run {self.run} (trial {self.trial}): recorded {verdict(self.recorded)}"
        follows = "no decision" if self.replayed is None else verdict(self.replayed)
        return f"{head}; replayed: {follows} ({self.why})"


@dataclass(frozen=True)
class Replayed:
    """What a replay found.

    Attributes:
        decisions: how many were replayed.
        unplanned: how many were passed over, because their cells are planned no longer.
        mismatches: those that do not follow, in their order.
    """

    decisions: int
    unplanned: int
    mismatches: list[Mismatch]


@dataclass(frozen=True)
class Merged:
    """Two folders that became one: the runs whose decisions each of them had.

    Until then neither's runs knew of the other's decisions, so they are no rivals of each other.
    """

    here: frozenset[str]
    there: frozenset[str]


def merges(runs: Iterable[Row]) -> list[Merged]:
    """The merges among the records of a folder's runs."""
    found = [run["merge"] for run in runs if run.get("merge")]
    return [Merged(frozenset(m["here"]), frozenset(m["there"])) for m in found]


def ordered(rows: Iterable[Row]) -> list[Row]:
    """Decisions in the order in which they were taken; those of merged folders, which have none, side by side."""
    return sorted(rows, key=lambda row: (row["sequence"], row["run"]))


def replay(
    rows: Iterable[Row], arms: Mapping[str, str], asha: Callable[[str], Asha], merged: Sequence[Merged] = ()
) -> Replayed:
    """Take every decision again and compare.

    Args:
        rows: decisions of one scheduler, as recorded.
        arms: each planned cell's arm.
        asha: an arm's rungs, empty.
        merged: the merges that made the folder.
    """
    decisions = ordered(rows)
    planned = [row for row in decisions if row["cell"] in arms]
    left = {as_decision(row).rung for row in decisions if row["cell"] not in arms}
    found: list[Mismatch] = []
    for group, known in _groups({row["run"] for row in planned}, merged):
        ashas: dict[str, Asha] = {}
        pooled: Counter[int] = Counter()
        for row in planned:
            if row["run"] not in known:
                continue
            arm = arms[row["cell"]]
            if arm not in ashas:
                ashas[arm] = asha(arm)
            recorded = as_decision(row)
            pooled[recorded.rung] += 1
            if row["run"] in group:
                again = ashas[arm].decide(recorded.cell, recorded.epoch, recorded.value)
                if again is None or not _equal(again, recorded):
                    why = _likely(recorded, again, row["run"], merged, recorded.rung in left)
                    if again is not None and again.n < recorded.n == pooled[recorded.rung]:
                        why = "it was taken by an older version, in which all arms shared their rungs"
                    found.append(Mismatch(row["run"], row["sequence"], row["trial"], recorded, again, why))
            # What was decided is what the next decisions were taken after, right or wrong.
            ashas[arm].rebuild([recorded])
    found.sort(key=lambda mismatch: (mismatch.sequence, mismatch.run))
    return Replayed(len(planned), len(decisions) - len(planned), found)


def _groups(runs: set[str], merged: Sequence[Merged]) -> list[tuple[set[str], set[str]]]:
    """Runs that knew of the same runs' decisions, and those runs: one group unless folders were merged."""
    groups: dict[frozenset[str], set[str]] = {}
    for run in runs:
        known = set(runs)
        for merge in merged:
            if run in merge.here | merge.there:
                # A run of both was there before one folder became two.
                known &= {*(merge.here if run in merge.here else ()), *(merge.there if run in merge.there else ())}
        groups.setdefault(frozenset(known), set()).add(run)
    return [(group, set(known)) for known, group in groups.items()]


def _equal(one: Decision, other: Decision) -> bool:
    return all(getattr(one, key) == getattr(other, key) for key in _DECIDED)


def _likely(recorded: Decision, again: Decision | None, run: str, merged: Sequence[Merged], left: bool) -> str:
    """What may have come between a decision and its replay."""
    if again is None or again.rung != recorded.rung:
        return "its cell had been decided there before, or its epoch is at no rung of these settings"
    if missing := recorded.n - again.n:
        if missing > 0 and left:
            return "the study has been narrowed since; rivals of it are planned no longer"
        if missing > 0 and any(run in merge.there for merge in merged):
            return "it came by a merge that left rivals of it out"
        if missing > 0:
            return "rivals of it are missing from the records"
        return "the study has been widened since; when it was taken, cells that had been decided were not planned"
    return "it has been altered, or taken by other rules"


# Why


def verdict(decision: Decision) -> str:
    """`stopped at epoch 9, rung 9, ranked 7 of 9, cutoff 0.412, value 0.398`."""
    cutoff = "no cutoff yet" if decision.cutoff is None else f"cutoff {decision.cutoff:.3f}"
    value = f"{decision.value:.3f}" if math.isfinite(decision.value) else "not finite"
    if f"{decision.cutoff or 0:.3f}" == value and decision.value != decision.cutoff:
        # A hair's breadth decided: what is printed has to show it.
        cutoff, value = f"cutoff {decision.cutoff!r}", repr(decision.value)
    return (
        f"{'stopped' if decision.stop else 'went on'} at epoch {decision.epoch}, rung {decision.rung}, "
        f"ranked {decision.rank} of {decision.n}, {cutoff}, value {value}"
    )


@dataclass(frozen=True)
class Story:
    """What a folder knows of one cell.

    Args:
        cell: its id.
        name: its arm and settings, for a person.
        epochs: of a full trial; 0 where the cell is planned no longer.
        scheduler: the study's, as the records spell it.
        ends: every recorded end of its seeds, in their order.
        decisions: the scheduler's on it.
        epochs_reached: of each trial without an end and each of its seeds, the last recorded epoch.
        waiting: the id of the trial that its missing seeds make, and what these are.
        run_by: who runs the study now, or None.
    """

    cell: str
    name: str
    epochs: int
    scheduler: str
    ends: Sequence[Row]
    decisions: Sequence[Row]
    epochs_reached: Mapping[str, Mapping[int, int]]
    waiting: tuple[str, Sequence[int]] | None
    run_by: str | None

    @property
    def trials(self) -> list[str]:
        """Every trial of it: decided, ended, begun or waiting."""
        found = [*(row["trial"] for row in self.decisions), *(row["trial"] for row in self.ends), *self.epochs_reached]
        return list(dict.fromkeys([*found, *([self.waiting[0]] if self.waiting else [])]))


def why(story: Story, trial: str | None = None) -> list[str]:
    """Every decision on a cell, or on one trial of it, and how each trial ended or what it waits for."""
    lines = []
    for name in story.trials if trial is None else [trial]:
        seeds = sorted(_seeds(story, name))
        said = f", {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}" if seeds else ""
        lines.append(f"trial {name}{said} of cell {story.cell} ({story.name})")
        decisions = [as_decision(row) for row in ordered(story.decisions) if row["trial"] == name]
        lines += [f"  {verdict(decision)}" for decision in decisions]
        lines += [f"  {line}" for line in _outcome(story, name, decisions)]
    return lines


def _seeds(story: Story, trial: str) -> set[int]:
    if story.waiting and story.waiting[0] == trial:
        return set(story.waiting[1])
    return {row["seed"] for row in story.ends if row["trial"] == trial} | set(story.epochs_reached.get(trial, ()))


def _outcome(story: Story, trial: str, decisions: Sequence[Decision]) -> list[str]:
    """How a trial's seeds ended, each end once; then what it is doing if it has none that stands."""
    ends: dict[str, list[int]] = {}
    for row in story.ends:
        if row["trial"] == trial and not _decided(row, decisions, story.scheduler):
            ends.setdefault(_end(row, story), []).append(row["seed"])
    every = _seeds(story, trial)
    lines = []
    for text, seeds in ends.items():
        whose = "" if set(seeds) == every else f" (seed {', '.join(map(str, sorted(set(seeds))))})"
        lines.append(text + whose)
    if any(decision.stop for decision in decisions) and not any(row["trial"] == trial for row in story.ends):
        lines.append("its end is not recorded yet; a run records it without deciding again")
    elif trial in story.epochs_reached or (story.waiting is not None and story.waiting[0] == trial):
        lines.append(_going(story, trial))
    return lines


def _decided(row: Row, decisions: Sequence[Decision], scheduler: str) -> bool:
    """Whether an end is what a decision on this very trial has already said."""
    stopped = row["status"] == "stopped" and row.get("scheduler") == scheduler
    return stopped and any(d.stop and d.epoch == row["epoch"] for d in decisions)


def _end(row: Row, story: Story) -> str:
    epoch = None if row["epoch"] is None else int(row["epoch"])
    match row["status"]:
        case "complete":
            return f"complete at epoch {epoch}"
        case "failed":
            return f"failed: {row.get('reason') or 'no reason was recorded'}"
        case "stopped" if row.get("scheduler") not in (None, story.scheduler):
            return f"stopped at epoch {epoch} by {row['scheduler']}, which is not this study's scheduler any more"
        case "stopped" if row.get("scheduler") is not None:
            return f"stopped at epoch {epoch}: {_followed(story)}"
        case _:
            return str(row.get("reason") or f"{row['status']} at epoch {epoch}")


def _followed(story: Story) -> str:
    """The decision that a seed follows that was added to its cell later."""
    stops = [row for row in ordered(story.decisions) if row["stop"]]
    if not stops:
        return "it followed its cell's other seeds"
    return f"it followed its cell, which trial {stops[0]['trial']} had seen {verdict(as_decision(stops[0]))}"


def _going(story: Story, trial: str) -> str:
    """What a trial without an end is doing or waits for."""
    scheduled = [row for row in story.ends if row.get("scheduler") in (None, story.scheduler)]
    ended = [int(row["epoch"]) for row in scheduled if row["status"] != "failed" and row["epoch"] is not None]
    stops = [int(row["epoch"]) for row in story.decisions if row["stop"]]
    until = max(ended, default=None) or next(iter(stops), None)
    target = f"epoch {until}, where its cell has ended" if until else f"epoch {story.epochs}"
    if not story.epochs:
        target = "no end, since its cell is planned no longer"
    if any(row["trial"] == trial for row in story.ends):
        # A failure, or another scheduler's stop.
        return f"not ended by that: a run goes on with it from its last checkpoint, to {target}"
    reached = max(story.epochs_reached.get(trial, {}).values(), default=0)
    if story.run_by is None:
        where = f"at epoch {reached}" if reached else "not begun"
        return f"{where}; nobody runs the study now, the next run trains it to {target}"
    if reached:
        return f"in training at epoch {reached}, to {target}; the study is run by {story.run_by}"
    return f"no epoch is recorded yet; it waits for its turn or trains its first, to {target} (run by {story.run_by})"
