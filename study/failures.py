"""Why a trial's worker ended before its time, whether the trial is tried again, and what a person is told.

What happened to the machine is not the trial's doing: a node that dies, is drained or cannot be reached is a loss, and
a lost trial goes on elsewhere from its last checkpoint, uncounted. What happened in the trial's own process is a
failure: it is tried again `max_failures` times and then recorded with its reason. A trial that is lost again and again
without an epoch in between may be what kills the nodes, so there is an end to that too.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ray.exceptions import (
    ActorDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    UnserializableException,
)

from trainables.memory import OutOfMemory

#: lost: the node is gone. memory: a device or a node has no memory left. died: the process was killed or crashed on a
#: living node. error: a Python exception.
Kind = Literal["lost", "memory", "died", "error"]

#: Losses in a row, without an epoch in between, after which a trial has failed.
MOST_LOSSES = 10

#: Seconds in which several losses are one: until Ray has noticed that a node is gone it may put the trial there again.
SETTLING = 20.0

#: Letters of a reason.
_LONGEST = 500

_NODE_GONE = re.compile(r"its node has died|node was terminated|node was drained|Owner's node|owner has died")


@dataclass(frozen=True)
class Failure:
    """What ended a trial's worker; `reason` is one line for a person."""

    kind: Kind
    reason: str


class Unexpected(RayActorError):
    """An error of Ray's that its Tune takes for a bug of its own, as the death of a worker, which it can take.

    Args:
        original: what Ray raised.
    """

    def __init__(self, original: Exception) -> None:
        super().__init__(error_msg=str(original))
        self.original = original

    def __reduce__(self) -> tuple[type[Unexpected], tuple[Exception]]:
        return Unexpected, (self.original,)


def classify(error: Exception) -> Failure:
    """What an exception that Ray delivers says about the trial's worker."""
    if isinstance(error, Unexpected):
        original = error.original
        if isinstance(original, RayError):
            return classify(original)
        name = _short(f"{type(original).__name__}: {original}")
        return Failure("error", f"it raised an exception that cannot be read outside its process ({name})")
    text = str(error)
    if isinstance(error, RayTaskError):
        return _raised(type(error.cause).__name__, str(error.cause))
    if isinstance(error, UnserializableException) or (isinstance(error, RayActorError) and error.actor_init_failed):
        return _raised(*_last_raised(text))
    if isinstance(error, OutOfMemoryError) or "running low on memory" in text or "NODE_OUT_OF_MEMORY" in text:
        return Failure("memory", _node_memory(text))
    if isinstance(error, ActorDiedError):
        if error.preempted or _NODE_GONE.search(text):
            return Failure("lost", _lost_node(text))
        return Failure("died", _death(text))
    if isinstance(error, RayError):
        # Of a worker that is said to be unavailable its node would say within a second if it had died by itself.
        said = re.search(r"RPC error: (.*?) rpc_code", text)
        return Failure("lost", f"its node is gone or cannot be reached ({_short(said[1] if said else text)})")
    return _raised(type(error).__name__, text)


@dataclass
class _Tally:
    """Of one trial."""

    epochs: int = 0  # the last one that was reported
    failures: int = 0
    losses_in_a_row: int = 0
    last_loss: float = float("-inf")
    last: Failure | None = None


@dataclass
class Failures:
    """The failures of one run.

    Args:
        max_failures: times that a trial is tried again after failures of its own.
        remedy: what to change when a node's memory does not hold the trial of this id; what ran out in the trial's own
            process has said so itself.
        clock: tells the time in seconds.
    """

    max_failures: int
    remedy: Callable[[str], str] = lambda trial: ""
    clock: Callable[[], float] = time.monotonic
    _tallies: dict[str, _Tally] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)

    def take(self, trial: str, error: Exception) -> bool:
        """Count what ended a trial's worker. Returns whether the trial is tried again."""
        failure, tally = classify(error), self._tallies.setdefault(trial, _Tally())
        if failure.kind == "memory" and isinstance(error, Unexpected | RayActorError) and (way := self.remedy(trial)):
            failure = Failure("memory", f"{failure.reason}; {way}")
        if failure.kind == "lost":
            now = self.clock()
            if now - tally.last_loss >= SETTLING:
                tally.losses_in_a_row += 1
                tally.last_loss = now
            again = tally.losses_in_a_row < MOST_LOSSES
        else:
            tally.failures += 1
            again = tally.failures <= self.max_failures
        tally.last = failure
        self._counts[failure.kind] += 1
        self._counts["retried" if again else "given_up"] += 1
        return again

    def reported(self, trial: str, epoch: int) -> None:
        """Take note of an epoch: the trial gets on."""
        if tally := self._tallies.get(trial):
            tally.losses_in_a_row = 0
            tally.epochs = epoch
        else:
            self._tallies[trial] = _Tally(epochs=epoch)

    def ended(self, trial: str) -> None:
        """Forget a trial that has ended well."""
        self._tallies.pop(trial, None)

    def reason(self, trial: str) -> str:
        """Why a trial is given up, in one line."""
        tally = self._tallies.get(trial)
        if tally is None or tally.last is None:
            return "failed without a message"
        reason = tally.last.reason
        if tally.last.kind == "died":
            reason += f", after epoch {tally.epochs}" if tally.epochs else ", before the first epoch"
        if tally.last.kind == "lost":
            return (
                f"lost with its node {tally.losses_in_a_row} times in a row without an epoch in between; perhaps the "
                f"trial is what ends the nodes. The last time: {reason}"
            )
        return reason + (f" (tried {tally.failures} times)" if tally.failures > 1 else "")

    def counts(self) -> dict[str, int]:
        """For the run's record: how many of each kind, how often a trial was `retried`, how many were `given_up`."""
        kinds: tuple[str, ...] = ("lost", "memory", "died", "error", "retried", "given_up")
        return {kind: self._counts[kind] for kind in kinds}


def _raised(name: str, message: str) -> Failure:
    """A Python exception, as its own last line says it."""
    message = _short(message)
    if name == OutOfMemory.__name__:
        return Failure("memory", message)
    if name == "MemoryError":
        return Failure("memory", f"out of memory{f': {message}' if message else ''}")
    return Failure("error", f"{name}: {message}" if message else name)


def _last_raised(text: str) -> tuple[str, str]:
    """Name and message of the exception that ends a traceback's text."""
    lines = text.rstrip().splitlines()
    frames = [i for i, line in enumerate(lines) if line.startswith('  File "')]
    rest = lines[frames[-1] + 1 :] if frames else lines[-1:]
    while len(rest) > 1 and rest[0].startswith("    "):
        del rest[0]
    found = re.fullmatch(r"(?:[\w.<>]+\.)?(\w+)(?:: (.*))?", " ".join(rest), re.DOTALL)
    return (found[1], found[2] or "") if found else ("error", " ".join(rest))


def _death(text: str) -> str:
    """Ray's account of a dead process, without its list of possible causes."""
    where = f" on node {found[1]}" if (found := re.search(r"^\s*ip: (\S+)", text, re.MULTILINE)) else ""
    detail = re.search(r"Worker exit type: (\w+) Worker exit detail: (.*?)(?: Some common causes|$)", text, re.DOTALL)
    if detail is None:
        return f"the worker process ended{where} ({_short(text.splitlines()[-1])})"
    if detail[1] == "SYSTEM_ERROR" and "connection error" in detail[2]:
        return (
            "the worker process died (killed by a signal, by the system when memory ran out, or by a crash in native "
            f"code){where}"
        )
    return f"the worker process ended{where} ({_short(detail[2])})"


def _lost_node(text: str) -> str:
    node = re.search(r"Node Id: (\w{8})", text)
    why = re.search(r"^\s*the actor's node was (.*)$", text, re.MULTILINE)
    if node is None:
        return "its node is gone"
    return f"its node {node[1]} is gone ({_short(why[1])})" if why else f"its node {node[1]} is gone"


def _node_memory(text: str) -> str:
    """What Ray's memory monitor says, in its own figures."""
    node = re.search(r"\(IP: ([^,)]+).*?\) was (\S+) used / (\S+) limit", text)
    used = re.findall(r"actual memory used=([\d.]+\w+)", text)
    reason = "ended by Ray because its node ran out of memory"
    if node:
        reason = f"ended by Ray because node {node[1]} ran out of memory ({node[2]} of {node[3]} in use"
        # With several victims nothing says which of them was this trial's.
        reason += f", {used[0]} by this worker)" if len(used) == 1 else ")"
    return reason


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
