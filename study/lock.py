"""Who runs a study: at most one driver at a time, on a local folder, on NFS and on an object store alike.

    lock/<term>-<token>.json    a driver's entry, who it is; written once, before anything else
    lock/<term>-<token>.beat    its sign of life; the first one takes the lock, and one follows every TTL / BEATS
    lock/<term>-<token>.end     it has given the lock back; stays until the next driver has taken it
    lock/<term>-<token>.stop    somebody asks it to stop, see study.stopping; decides nothing about who holds the lock

No store that pyarrow reaches has to offer more than this: a file appears whole, and a listing shows what was written
before it (S3 since 2020; an NFS client after it has itself changed the folder). Every driver writes files of its own
name only, so nobody overwrites another's, and what is deleted decides nothing. Two rules make the lock:

- **The latest term that has given a sign of life rules**; whoever is earlier holds nothing any more.
- **Write, then look.** Of two who both write before they look, at least one sees the other.

A contender writes its entry, with a later term than it saw, looks, and withdraws if somebody lives who rules. If not,
it gives its first sign of life and looks. A holder gives a sign of life and looks. In both looks a later term that
rules means that the lock is that one's. A later entry without a sign of life is a contender that has not decided: it
is waited for, and overtaken with a still later term if it never does. So of several contenders one has the lock in
the end.

Nobody lives behind an entry if its process is gone from this very machine (process id and start time, in one boot and
one process namespace; containers that merely share a host's name are other machines), or if it has been silent for
TTL by its clock and stays silent while it is watched for more than two beats, since clocks differ. An entry that
tells no time (damaged, or from a clock that is ahead) has to stay silent while it is watched for TTL. Who takes over
looks again, after writing its own entry, whether the silent one has stirred. So a holder that was asleep (a suspended
machine, SIGSTOP, a network that was cut) finds at its next sign of life that it holds nothing any more, and
`Lease.check` gives that sign itself when the last one is old.

SHARPNESS_STUDY_LOCK_TTL sets TTL in seconds. A driver is judged by the TTL that it wrote down itself.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import random
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

from study.files import TEMPORARY, Files, StoreError, absent
from study.words import duration

FOLDER = "lock"

#: Seconds of silence after which a driver counts as gone, unless the environment says otherwise.
TTL, VARIABLE = 120.0, "SHARPNESS_STUDY_LOCK_TTL"

#: A sign of life is given every TTL / BEATS, and silence is believed after WATCHED times that.
BEATS, WATCHED = 8, 2.2

#: Seconds that the end of a run waits for its lock to be removed from a store that may be broken.
LEAVING = 10.0

#: Seconds between two looks for a request to stop in a local folder. Elsewhere a look costs: there it is what the
#: listings of the signs of life show.
LOOK = 2.0

#: Letters of a name that others have written.
_LONGEST = 80

#: Times that an entry is written again because somebody has just removed the empty folder.
_ATTEMPTS = 20

_NAME = re.compile(r"([0-9]{8}-[0-9a-f]{8})\.(.+)")

State = Literal["alive", "silent", "gone"]

_log = logging.getLogger(__name__)


class HeldError(StoreError):
    """Somebody else runs this study; the message says who, since when, and what to do."""


class LostError(StoreError):
    """Somebody else has taken this study over, or its lock was removed."""


@dataclass(frozen=True)
class Holder:
    """Who runs a study, by their own words in its lock; a damaged entry says nothing.

    Attributes:
        run: id of the run.
        where: `user@host`.
        pid: process id there.
        since: when it took the lock.
        seen: its last sign of life, by its own clock.
        state: `alive`; `gone` if its process is; `silent` if it may be: it gave no sign of life for its TTL.
    """

    run: str | None
    where: str | None
    pid: int | None
    since: datetime | None
    seen: datetime | None
    state: State

    def __str__(self) -> str:
        """`ann@node7 (process 42, run R), since 2026-11-25 07:10:31 UTC (3 h 2 min ago), last sign of life 4 s ago`."""
        if self.where is None:
            return "somebody whose entry in the lock is damaged"
        text = f"{self.where} (process {self.pid}, run {self.run})"
        if self.since is not None:
            text += f", since {self.since:%Y-%m-%d %H:%M:%S} UTC ({_ago(self.since)})"
        return text + (f", last sign of life {_ago(self.seen)}" if self.seen else "")


def holder(folder: Files) -> Holder | None:
    """Who runs the study now, or has left it without a word; None if nobody. Writes nothing and does not wait.

    Raises:
        StoreError: the folder cannot be read.
    """
    entry = Claim(folder, "").ruler()
    return None if entry is None else entry.holder


@contextmanager
def hold(folder: Files, run: str) -> Iterator[Lease]:
    """Run a study as the only one who does: the lock is held inside and removed at the end.

    A run that finds a silent holder watches it first (`WATCHED` beats, or TTL if its entry tells no time).

    Args:
        folder: the study's folder; if it is made for the lock and nothing else has come into it, it goes again.
        run: this run's id.

    Raises:
        HeldError: somebody else runs it.
        StoreError: the folder cannot be read or written.
    """
    claim = Claim(folder, run)
    try:
        claim.take()
    except BaseException:
        # The store may be what is broken.
        with suppress(StoreError):
            claim.leave()
        raise
    lease = Lease(claim)
    try:
        yield lease
    finally:
        lease.end()


class Lease:
    """The right to write into a study's folder, kept alive by a thread of its own until `end`."""

    def __init__(self, claim: Claim) -> None:
        self._claim, self._again = claim, 0.0
        self._lost: str | None = None
        #: Who asked this run to stop, `user@host`; None while nobody has.
        self.asked: str | None = None
        self._guard, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._live, name="study-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LostError if the study is no longer ours. Costs nothing while signs of life are given in time.

        Raises:
            LostError: another run took it over, or its lock was removed.
            StoreError: for TTL no sign of life could be given, so nobody knows.
        """
        if self._lost is None and self._silence() > self._claim.ttl / 2 and self._claim.clock.elapsed() >= self._again:
            # This process was asleep, or the store is slow: look before another line is written.
            try:
                self._renew()
            except StoreError:
                if self._silence() > self._claim.ttl:
                    raise
                self._again = self._claim.clock.elapsed() + self._claim.beat
        if self._lost is not None:
            raise LostError(self._lost)

    def end(self) -> None:
        """Give the lock back. A store that does not answer is not waited for: the lock then dies with this process."""
        self._over.set()
        self._thread.join(LEAVING)
        if self._thread.is_alive():
            _log.warning("cannot remove the lock in %s; the next run takes it over", self._claim.folder.uri)

    def _silence(self) -> float:
        return self._claim.clock.elapsed() - self._claim.seen

    def _live(self) -> None:
        clock = self._claim.clock
        pause = min(LOOK, self._claim.beat) if self._claim.folder.is_local else self._claim.beat
        due = clock.elapsed() + self._claim.beat
        while not self._over.wait(max(0.0, min(pause, due - clock.elapsed()))) and self._lost is None:
            # Whoever needs to know is told by `check`; a store that stays away for a while is not the end.
            if clock.elapsed() >= due:
                with suppress(StoreError):
                    self._renew()
                due = clock.elapsed() + self._claim.beat
            with suppress(StoreError):
                self._take_note()
        with suppress(StoreError):
            self._claim.leave()

    def _renew(self) -> None:
        with self._guard:
            try:
                self._claim.renew()
            except LostError as error:
                self._lost = str(error)

    def _take_note(self) -> None:
        """Learn that somebody wants this run to stop."""
        if self.asked is None and self._lost is None and (asked := self._claim.request()) is not None:
            self.asked = asked
            _log.warning("%s asks this run to stop: each trial in training ends with its epoch", asked)


class Clock:
    """Time as a lock needs it."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def elapsed(self) -> float:
        """Seconds that also pass while the machine is suspended."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Claim:
    """One driver's entry in the lock, from its claim to its last sign of life.

    Args:
        folder: the study's folder.
        run: the run's id.
        ttl: seconds of silence after which others may take over; by default the environment's.
        clock: tests bring their own.

    Raises:
        StoreError: the environment's TTL is no number of seconds.
    """

    def __init__(self, folder: Files, run: str, ttl: float | None = None, clock: Clock | None = None) -> None:
        self.folder, self.run, self.clock = folder, run, clock or Clock()
        self.ttl = _ttl() if ttl is None else ttl
        self.beat = self.ttl / BEATS
        #: Our entry; `former` ones have been overtaken by it.
        self.name: str | None = None
        self.former: list[str] = []
        self.held = False
        #: When the last sign of life began after which the lock was still ours, by `Clock.elapsed`.
        self.seen = 0.0
        self._beats = 0
        #: Whether the last listing had a request to stop.
        self._requested = False
        #: Folders that come into being with the lock, the study's own first.
        self._made = absent(folder.path()) if folder.is_local else []
        #: Contenders whose process was gone.
        self._undecided: set[str] = set()
        #: What the entries of those held when nobody lived behind them.
        self._dead: dict[str, tuple[bytes, bytes | None]] = {}

    def take(self) -> None:
        """Hold the lock.

        Raises:
            HeldError: somebody else does.
        """
        while True:
            self._refuse_the_living()
            self._contend()
            with suppress(LostError):
                self.renew()
                break
            self._withdraw()
        self.held = True
        self._sweep()

    def renew(self) -> None:
        """Give a sign of life, then look whether somebody else rules.

        Raises:
            LostError: somebody does, or our entry is gone.
        """
        began = waited = self.clock.elapsed()
        self._show()
        while self._disputed():
            if self.clock.elapsed() <= waited + WATCHED * self.beat:
                self._pause()
                continue
            self._overtake()
            waited = self.clock.elapsed()
        self.seen = began

    def request(self) -> str | None:
        """Who asks this driver to stop, `user@host`; None if nobody does."""
        for name in (*self.former, self.name) if self._requested or self.folder.is_local else ():
            if (data := self.folder.read(FOLDER, f"{name}.stop")) is not None:
                self._requested = True
                return _said(_parsed(data))
        return None

    def leave(self) -> None:
        """Give the lock back, and remove the folder if it was made for it."""
        if self.name is not None:
            if self.held and self.folder.names() != [FOLDER]:
                # Whoever was overtaken and is still asleep shall see a later term when it wakes.
                self.folder.write(_json({**self._me, "ended": _text(self.clock.now())}), FOLDER, f"{self.name}.end")
            self.held = False
            self._withdraw()
        if self.folder.is_local:
            # Only empty ones go: somebody else's entry keeps both.
            with suppress(OSError):
                os.rmdir(self.folder.path(FOLDER))
                for made in self._made:
                    os.rmdir(made)

    def ruler(self) -> Entry | None:
        """The entry of whoever rules, others than this driver; None if nobody does."""
        while True:
            terms = self._terms()
            name = _ruling(terms)
            if name is None or "end" in terms[name] or name in self.former:
                return None
            entry = self._entry(name)
            if entry is not None and entry.content[1] is not None:
                return entry
            # It has changed since it was listed.
            self._pause()

    # To take

    def _refuse_the_living(self, *, patient: bool = True) -> None:
        """Return when nobody lives who rules; raise HeldError if somebody does.

        A silent one is watched if there is patience for it; one that was watched and has stirred since is alive.
        """
        while (entry := self.ruler()) is not None and entry.content != self._dead.get(entry.name):
            state = entry.state
            if state == "gone":
                self._dead[entry.name] = entry.content
            elif state == "alive" or entry.name in self._dead or not patient:
                self._refuse(entry)
            else:
                self._watch(entry)

    def _contend(self) -> None:
        """Write an entry, and look whether somebody has come or stirred in between."""
        self._announce()
        self._refuse_the_living(patient=False)

    def _overtake(self) -> None:
        """Rule by a later term than a contender that does not decide; if it wakes it finds that.

        Raises:
            LostError: somebody else has ruled meanwhile.
        """
        assert self.name is not None
        self.former.append(self.name)
        self._announce()
        ruling = _ruling(self._terms())
        if ruling not in self.former:
            self._lose(None if ruling is None else self._entry(ruling))
        self._show()

    def _announce(self) -> None:
        """Write an entry whose term is later than everybody's."""
        last = max((int(name.partition("-")[0]) for name in self._terms()), default=0)
        self.name = f"{last + 1:08d}-{secrets.token_hex(4)}"
        self._me = {"run": self.run, "since": _text(self.clock.now()), "ttl": self.ttl, **me()}
        for left in reversed(range(_ATTEMPTS)):
            try:
                self.folder.write(_json(self._me), FOLDER, f"{self.name}.json")
                break
            except StoreError as error:
                # Whoever left last may have removed the empty folder under the write.
                if not left or not isinstance(error.__cause__, FileNotFoundError):
                    raise
                self._pause()

    def _watch(self, entry: Entry) -> None:
        """Wait until one that seems gone has had the time to show that it is not."""
        began, seconds = self.clock.elapsed(), entry.watched
        _log.warning(
            "%s is held by %s; watching for %s whether that is still alive",
            self.folder.uri, entry.holder, duration(seconds),
        )  # fmt: skip
        while self.clock.elapsed() - began <= seconds:
            self.clock.sleep(min(self.beat / 4, 1.0))
            now = self._entry(entry.name)
            if now is None:
                # It has given the lock back, or somebody else was faster.
                return
            if now.content != entry.content:
                self._refuse(now)
        self._dead[entry.name] = entry.content

    def _disputed(self) -> bool:
        """Whether a later contender has not decided yet.

        Raises:
            LostError: a later term rules, or our entry is gone.
        """
        assert self.name is not None
        terms = self._terms()
        ruling = _ruling(terms)
        if ruling is not None and ruling > self.name:
            self._lose(self._entry(ruling))
        if "json" not in terms.get(self.name, ()):
            self._lose(None)
        self._requested = any("stop" in terms.get(name, ()) for name in (*self.former, self.name))
        later = {name for name, parts in terms.items() if name > self.name and parts == {"json"}} - self._undecided
        # Believed only when the next listing still shows no sign of life: it may have given one and ended just now.
        self._undecided |= {name for name in later if (entry := self._entry(name)) and entry.state == "gone"}
        return bool(later)

    def _show(self) -> None:
        self._beats += 1
        life = {"beat": self._beats, "time": _text(self.clock.now())}
        self.folder.write(_json(life), FOLDER, f"{self.name}.beat")

    def _withdraw(self) -> None:
        for name in (*self.former, self.name):
            # In this order: a sign of life without an entry says nothing.
            self.folder.delete(FOLDER, f"{name}.json")
            self.folder.delete(FOLDER, f"{name}.beat")
            if self._requested:
                self.folder.delete(FOLDER, f"{name}.stop")
        self.name, self.former = None, []

    def _sweep(self) -> None:
        """Delete what earlier terms have left, half written files included."""
        assert self.name is not None
        for file in self.folder.names(FOLDER):
            if (match := _NAME.fullmatch(file)) and match[1] < self.name:
                self.folder.delete(FOLDER, file)

    def _pause(self) -> None:
        # Several who wait for one thing do not come back at one moment.
        self.clock.sleep(random.uniform(0.2, 1.0) * min(0.5, self.beat / 10))

    # To say

    def _refuse(self, entry: Entry) -> NoReturn:
        holder = entry.holder
        if holder.where is None:
            do = f"if no run of this study is alive, delete {self.folder.path(FOLDER, entry.name + '.json')}"
        else:
            do = "wait until it ends or stop it, then the same command goes on from what it has finished"
        raise HeldError(f"{self.folder.uri} is being run by {holder}; {do}")

    def _lose(self, entry: Entry | None) -> NoReturn:
        self.held = False
        by = f"taken over by {entry.holder}, as this run gave no sign of life" if entry else "its lock was removed"
        raise LostError(f"{self.folder.uri} is no longer this run's: {by}; what it has recorded is kept")

    # To read

    def _terms(self) -> dict[str, set[str]]:
        """Of each entry the endings of its files: `json`, `beat`, `end`."""
        found: dict[str, set[str]] = {}
        for file in self.folder.names(FOLDER):
            if (match := _NAME.fullmatch(file)) and not file.endswith(TEMPORARY):
                found.setdefault(match[1], set()).add(match[2])
        return found

    def _entry(self, name: str) -> Entry | None:
        who = self.folder.read(FOLDER, f"{name}.json")
        if who is None:
            who = self.folder.read(FOLDER, f"{name}.end")
        if who is None:
            return None
        return Entry(name, (who, self.folder.read(FOLDER, f"{name}.beat")), self.clock.now(), self.ttl)


@dataclass(frozen=True)
class Entry:
    """Somebody's entry as it was read.

    Attributes:
        name: term and token.
        content: the bytes of who it is, and of the sign of life or None.
        read: when.
        usual: TTL of the reader, for an entry that does not say its own.
    """

    name: str
    content: tuple[bytes, bytes | None]
    read: datetime
    usual: float

    @cached_property
    def who(self) -> Mapping[str, Any]:
        return _parsed(self.content[0])

    @cached_property
    def seen(self) -> datetime | None:
        """Its last sign of life, by its own clock."""
        life = self.content[1]
        return None if life is None else _time(_parsed(life).get("time"))

    @property
    def ttl(self) -> float:
        ttl = self.who.get("ttl")
        return float(ttl) if isinstance(ttl, (int, float)) and ttl > 0 else self.usual

    @property
    def _age(self) -> float | None:
        """Seconds since it was seen; None if its clock is of no use."""
        age = None if self.seen is None else (self.read - self.seen).total_seconds()
        return None if age is None or age < -self.ttl / BEATS else age

    @property
    def watched(self) -> float:
        """Seconds for which its silence has to be seen."""
        return self.ttl if self._age is None else WATCHED * self.ttl / BEATS

    @property
    def state(self) -> State:
        if is_gone(self.who):
            return "gone"
        return "silent" if self._age is None or self._age > self.ttl else "alive"

    @property
    def holder(self) -> Holder:
        who = self.who
        where = _said(who) if who.get("host") else None
        run = _plain(str(who["run"])) if who.get("run") else None
        return Holder(run, where, who.get("pid"), _time(who.get("since")), self.seen, self.state)


def _ttl() -> float:
    text = os.environ.get(VARIABLE)
    try:
        seconds = TTL if text is None else float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise StoreError(f"{VARIABLE}: {text!r} is no number of seconds above 0")
    return seconds


def me() -> dict[str, Any]:
    """This process, so that another one can tell whether it is gone."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        # A container's user may have no name.
        user = str(os.getuid())
    return {"user": user, "host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid()), **_machine()}


def is_here(who: Mapping[str, Any]) -> bool:
    """Whether a process is, or was, on this machine, in this boot and namespace."""
    machine = _machine()
    same = all(who.get(key) == value for key, value in machine.items())
    return bool(machine) and same and who.get("host") == socket.gethostname()


def is_gone(who: Mapping[str, Any]) -> bool:
    """Whether a process is known to be gone: it was on this machine, in this boot and namespace, and is not now."""
    pid, born = who.get("pid"), who.get("born")
    if not is_here(who) or not isinstance(pid, int) or not isinstance(born, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # it is somebody else's, who may even hide it in /proc
    now = _born(pid)
    return now is not None and now != born


def _machine() -> dict[str, Any]:
    """What two processes that can see each other have in common; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "namespace": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {}


def _born(pid: int) -> int | None:
    """When a process started, in ticks since the boot; -1 if it has ended and is not buried yet; None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _ruling(terms: Mapping[str, set[str]]) -> str | None:
    """The latest entry that has given a sign of life, or has given the lock back."""
    return max((name for name, parts in terms.items() if "end" in parts or {"json", "beat"} <= parts), default=None)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(content), indent=1) + "\n").encode()


def _parsed(data: bytes) -> Mapping[str, Any]:
    """What was written, or nothing if it is damaged."""
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _said(who: Mapping[str, Any]) -> str:
    """`ann@node7`."""
    return _plain(f"{who.get('user')}@{who.get('host')}" if who.get("user") and who.get("host") else "somebody")


def _plain(text: str) -> str:
    """Of whatever others have written nothing that a terminal would obey."""
    return "".join(letter for letter in text[:_LONGEST] if letter.isprintable())


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def _time(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else None


def _ago(moment: datetime) -> str:
    passed = datetime.now(UTC) - moment
    return "just now" if passed < timedelta(seconds=1) else f"{duration(passed.total_seconds())} ago"
