"""Ask the run of a study to stop, from anywhere that reaches its folder.

The request is a file beside the driver's entry in the lock (`study.lock`), so it is for that run and no later one; but
a run that takes over from one that died before it could heed it is asked in its place, for as long as somebody waits,
and a job's supervisor (`study.service.supervise`) does not begin again what was asked to stop. The
thread that gives the driver's signs of life sees it: within `LOOK` seconds in a local folder, with the next sign of
life elsewhere. Then no trial is begun, each one in training ends with its epoch and keeps a checkpoint, and the run
ends as an interrupted one. The answer is that the lock is given back. No cluster and no job is asked, so it works for a
run on a laptop, in a terminal on another machine, and for a job alike.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from study.lock import FOLDER, Claim, Holder, is_gone, is_here, me
from study.store import StoreError, StudyFolder

#: Seconds between two looks whether the lock is given back.
EVERY = 1.0

#: Seconds that a driver has for Ctrl-C's clean end before `end_now` kills it.
GRACE = 45.0

#: How a request ended. `given_back`: the run is over and clean. `gone`: its process is no more. `silent`: it may be
#: gone. `waiting`: it has not ended in the time that there was.
Answer = Literal["given_back", "gone", "silent", "waiting"]


@dataclass(frozen=True)
class Asked:
    """A request to stop that stands.

    Attributes:
        folder: of the study.
        entry: the driver's name in the lock.
        holder: who is asked.
    """

    folder: StudyFolder
    entry: str
    holder: Holder


def ask(folder: StudyFolder) -> Asked | None:
    """Ask whoever runs the study to stop; None if nobody does. Asked again, the request is the same. Whose process is
    gone is not asked.

    Raises:
        StoreError: the folder cannot be read or written.
    """
    entry = Claim(folder, "").ruler()
    if entry is None:
        return None
    # Beside a dead one's too: it may have a supervisor, which begins again what nobody asked to stop.
    here, now = me(), datetime.now(UTC).isoformat(timespec="milliseconds")
    content = {"user": here["user"], "host": here["host"], "time": now}
    folder.write((json.dumps(content, indent=1) + "\n").encode(), FOLDER, f"{entry.name}.stop")
    return Asked(folder, entry.name, entry.holder)


def is_asked(folder: StudyFolder) -> bool:
    """Whether the run that holds the lock, or held it when it died, was asked to stop.

    Raises:
        StoreError: the folder cannot be read.
    """
    entry = Claim(folder, "").ruler()
    return entry is not None and folder.read(FOLDER, f"{entry.name}.stop") is not None


def wait(
    asked: Asked,
    timeout: float | None = None,
    told: Callable[[float], None] = lambda seconds: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Answer:
    """Wait until the run that was asked holds the lock no more, and neither does one that took over when it died.

    Args:
        asked: the request.
        timeout: seconds; None for as long as it takes, or until a silent one has been silent for as long as a next
            run would watch it.
        told: called with the seconds that have passed, after each look.
        clock: tells the time in seconds.
        sleep: waits.

    Raises:
        StoreError: the folder cannot be read.
    """
    began = stirred = clock()
    while True:
        entry = Claim(asked.folder, "").ruler()
        # A driver that was taken for gone, and has come back with a later term, is still the one that was asked.
        if entry is None or (entry.name != asked.entry and entry.holder.run != asked.holder.run):
            _forget(asked)
            if entry is None or not _was_cut_off(asked) or (successor := ask(asked.folder)) is None:
                return "given_back"
            asked = successor
            continue
        if entry.state == "gone":
            # Its lock is the next run's, which takes the request with it.
            return "gone"
        if entry.state != "silent":
            stirred = clock()
        elif clock() - stirred > entry.watched:
            return "silent"
        if timeout is not None and clock() - began >= timeout:
            return "silent" if entry.state == "silent" else "waiting"
        told(clock() - began)
        left = EVERY if timeout is None else min(EVERY, timeout - (clock() - began))
        sleep(max(0.0, left))


def _was_cut_off(asked: Asked) -> bool:
    """Whether the run that was asked had begun to train and died before it could say that it has ended."""
    return any(r.get("run") == asked.holder.run and r.get("ended") is None for r in asked.folder.runs())


def _forget(asked: Asked) -> None:
    # It came too late for a run that was just ending; the run itself takes away what it has seen.
    with suppress(StoreError):
        asked.folder.delete(FOLDER, f"{asked.entry}.stop")


def end_now(folder: StudyFolder, grace: float = GRACE) -> Literal["ended", "killed"]:
    """End the run's process on this machine without waiting for its epochs: Ctrl-C's way, then SIGKILL.

    Raises:
        StoreError: nobody runs the study, it runs elsewhere, or the process is not a `study` command that this user may
            end.
    """
    entry = Claim(folder, "").ruler()
    if entry is None or entry.state == "gone":
        raise StoreError(f"nobody runs {folder.uri} now")
    pid = entry.who.get("pid")
    # So that nobody begins it again.
    ask(folder)
    if not is_here(entry.who) or not isinstance(pid, int):
        raise StoreError(
            f"{folder.uri} is run by {entry.holder}, not on this machine: end it there, or give the --address of the "
            "cluster whose job it is"
        )
    if not _is_study(pid):
        # Whoever can write into the folder could name any process.
        raise StoreError(f"{folder.uri}: process {pid} in its lock is no `study` command of this user; end it by hand")
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            if is_gone(entry.who):
                return "ended" if number == signal.SIGTERM else "killed"
            time.sleep(0.2)
    raise StoreError(f"process {pid} of {folder.uri} does not end")


def _is_study(pid: int) -> bool:
    """Whether a process is this user's and runs this package's command."""
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.getuid():
            return False
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return _runs_study(words)


def _runs_study(words: Sequence[str]) -> bool:
    """Whether a command line is that of `study run` or `study resume`, as a script, a module or a file."""
    for i, word in enumerate(words):
        if (
            list(words[i - 1 : i + 1]) == ["-m", "study"]
            or os.path.basename(word) == "study"
            or word.endswith("/study/__main__.py")
        ):
            return list(words[i + 1 : i + 2]) in (["run"], ["resume"])
    return False
