"""A study's status in words, for a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime

from study.budget import money
from study.status import Begun, Best, Driver, Failed, Ledger, Run, Status
from study.store import ENDED
from study.words import count, duration

#: Trials in training and reasons that are printed; the JSON has all.
_MOST_LINES = 10

#: Decisions that do not follow from those before them which are told one by one; of one cause there are many.
_MOST_MISMATCHES = 3


def lines(found: Status) -> list[str]:
    """A status for a terminal."""
    out = [f"{found.name}: {found.question}", f"  folder {found.folder}, scheduler {found.scheduler}"]
    out.append(f"  {_who(found.driver)}")
    for arm, states in found.cells.items():
        parts = [f"{n:,} {name}" for name, n in states.items()]
        if left := found.unsampled.get(arm):
            parts.append(f"{left:,} still to be chosen")
        cells = count(sum(states.values()) + (left or 0), "cell")
        out.append(f"  {arm}: {cells} ({', '.join(parts) or 'none chosen'})")
    ended = sum(found.replicates.get(name, 0) for name in ENDED)
    out.append(
        f"  {ended:,} of {count(found.replicates['planned'], 'replicate')} ended, {found.epochs_done:,} of "
        f"{'at most ' if found.at_most else ''}{count(found.epochs_planned, 'epoch')} trained"
    )
    if found.left is not None:
        cost = "" if found.left.cost is None else f", {money(found.left.cost, found.left.currency)}"
        out.append(
            f"  left: {'at most ' if found.at_most else ''}{duration(found.left.seconds)} of training on one trial's "
            f"resources{cost}, at the speed of what has ended"
        )
    if found.balance is not None:
        out.append(f"  {found.balance}")
        if found.balance.spent:
            out.append(f"  stopped by its budget until it gets more: {found.balance.spent}")
    if found.begun:
        alive = found.driver is not None and found.driver.state == "alive"
        out.append("in training:" if alive else "begun and not ended; the next run goes on with them:")
        out += _cut([_begun_line(trial) for trial in found.begun])
    if found.failed:
        out.append("failed, tried again by the next run:")
        out += _cut([_failed_line(failed) for failed in found.failed])
    if found.runs:
        out.append("last runs:")
        out += [_run_line(run) for run in found.runs]
    if found.best is not None:
        out.append(_best_line(found.best))
    if found.ledger is not None:
        out += _ledger_lines(found.ledger)
    return out


def _who(driver: Driver | None) -> str:
    if driver is None:
        return "nobody runs it now"
    if driver.state == "alive":
        return f"run by {driver.text}"
    word = "its process is gone" if driver.state == "gone" else "it may be gone"
    return f"nobody runs it any more: held by {driver.text}; {word}, the next run takes over"


def _begun_line(trial: Begun) -> str:
    return (
        f"  trial {trial.trial} ({trial.name}), {count(len(trial.seeds), 'seed')}: epoch {trial.epoch} of "
        f"{trial.epochs}"
    )


def _failed_line(failed: Failed) -> str:
    trials = ", ".join(failed.trials[:3]) + (f" and {len(failed.trials) - 3} more" if len(failed.trials) > 3 else "")
    return f"  {count(failed.replicates, 'replicate')}: {failed.reason} (trial {trials})"


def _run_line(run: Run) -> str:
    since = "" if run.started is None else f" since {_time(run.started)}"
    ended = ", ".join(f"{n:,} {state}" for state, n in run.trials.items())
    match run.state:
        case "running":
            text = f"running{since}" + ("" if run.seconds is None else f" ({duration(run.seconds)})")
        case "cut off":
            text = f"cut off{since and f', begun {_time(run.started or str())}'}"
        case _:
            took = "" if run.seconds is None else f" after {duration(run.seconds)}"
            text = f"{run.state} {_time(run.ended or '')}{took}"
    parts = [text, f"trials: {ended}" if ended else "", run.reason or ""]
    return f"  {run.run} {'; '.join(part for part in parts if part)}"


def _time(text: str) -> str:
    """`2026-11-25 07:10:31 UTC` of an ISO 8601 time."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return text


def _best_line(best: Best) -> str:
    from analysis.words import measured

    low, high = (math.nan if value is None else value for value in (best.low, best.high))
    value = measured(best.validation_accuracy, low, high, best.n, "validation_accuracy", sign="+-")
    return f"best complete cell so far, by validation: {best.name}: {value} (cell {best.cell})"


def _ledger_lines(ledger: Ledger) -> list[str]:
    if not ledger.decisions and not ledger.unplanned:
        return ["ledger: nothing has been decided yet"]
    unplanned = f", {ledger.unplanned:,} more on cells that are planned no longer" if ledger.unplanned else ""
    head = f"ledger: {count(ledger.decisions, 'decision')}{unplanned}; replayed, "
    if not ledger.mismatches:
        return [head + "each follows from those before it"]
    shown = [
        textwrap.fill(line, 118, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
        for line in ledger.mismatches[:_MOST_MISMATCHES]
    ]
    left = len(ledger.mismatches) - len(shown)
    more = [f"  and {left:,} more; --json has all"] if left else []
    return [f"{head}{len(ledger.mismatches):,} do not follow from those before them:", *shown, *more]


def _cut(found: Sequence[str]) -> list[str]:
    more = [f"  and {len(found) - _MOST_LINES:,} more"] if len(found) > _MOST_LINES else []
    return [*found[:_MOST_LINES], *more]
