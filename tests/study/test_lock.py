"""The lock keeps two drivers apart: in every order of steps that is tried, and with real processes that race for it.

Run as a program this file is those processes: `test_lock.py VERB ADDRESS ...`, see the end.
"""

import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from study import lock
from study.files import Files, StoreError
from study.lock import BEATS, VARIABLE, WATCHED, Claim, Clock, HeldError, LostError, hold, holder, is_gone, me

ROOT = Path(__file__).parents[2]

#: Seconds; a beat is 0.1 s.
SHORT = 0.8


# Every order of steps: drivers in threads of which one at a time makes one step, on a clock that is made up


class KilledError(BaseException):
    """A driver's process is gone in the middle of whatever it did."""


class Attempt:
    """What became of one try to hold the lock, by the world's steps and seconds."""

    def __init__(self, run):
        self.run = run
        self.took = self.left = self.refused = None
        self.lost = self.killed = False
        #: When the last sign of life was written.
        self.shown = None
        #: Of the signs of life after which the lock was still ours: the step and the second at which it began, and
        #: the second at which it was written.
        self.renewed = []


class Driver:
    """A contender of the made-up world."""

    def __init__(self, world, name, skew):
        self.name, self.skew = name, skew
        self.turn = threading.Semaphore(0)
        self.wake, self.ended = 0.0, False
        self.attempts = []
        self.thread = threading.Thread(target=world.live, args=(self,), daemon=True)


class World(Files):
    """A store in memory whose every call is one step, and a clock that moves when nobody has anything to do.

    Args:
        seed: of the order of the steps.
        drivers: how many contend.
        stalls: the chance that a driver sleeps, often for longer than its TTL, before a step.
        kills: the chance that a driver is killed before a step; others see it if all run on `one_machine`.
        skew: seconds by which the drivers' clocks differ at most.
        renewals: signs of life that a holder gives before it leaves.
        tries: how often a driver comes.
    """

    TTL = 80.0

    def __init__(self, seed, drivers, stalls=0.0, kills=0.0, skew=0.0, renewals=3, tries=1, one_machine=True):
        super().__init__("s3://made/up")
        self.random, self.files = random.Random(seed), {}
        self.stalls, self.kills, self.one_machine = stalls, kills, one_machine
        self.renewals, self.tries = renewals, tries
        self.steps, self.time = 0, 0.0
        self.scheduler, self.active = threading.Semaphore(0), None
        self.failure = None
        self.drivers = [Driver(self, f"run{i}", self.random.uniform(-skew, skew)) for i in range(drivers)]

    def run(self):
        """Let the drivers live to their ends."""
        for driver in self.drivers:
            driver.thread.start()
        while waiting := [d for d in self.drivers if not d.ended]:
            ready = [d for d in waiting if d.wake <= self.time]
            if not ready:
                self.time = min(d.wake for d in waiting)
                continue
            driver = self.random.choice(ready)
            if self.random.random() < self.stalls:
                driver.wake = self.time + self.random.uniform(0.5, 3) * self.TTL
                continue
            self.active = driver
            driver.turn.release()
            self.scheduler.acquire()
            self.steps += 1
            self.time += self.random.uniform(0, 0.5)
            assert self.steps < 50_000, "nobody comes to an end"
        if self.failure:
            raise self.failure

    def live(self, driver):
        driver.turn.acquire()
        try:
            self.drive(driver)
        except BaseException as error:
            self.failure = error
        finally:
            driver.ended = True
            self.scheduler.release()

    def drive(self, driver):
        for _ in range(self.tries):
            attempt = Attempt(f"{driver.name}-{len(driver.attempts)}")
            driver.attempts.append(attempt)
            claim = Seen(self, attempt.run, self.TTL, SkewedClock(self, driver))
            claim.attempt = attempt
            try:
                claim.take()
                for _ in range(self.renewals):
                    claim.clock.sleep(claim.beat)
                    claim.renew()
            except HeldError as error:
                attempt.refused = str(error)
            except LostError:
                attempt.lost = True
            except KilledError:
                attempt.killed = True
            attempt.left = self.steps
            with suppress(KilledError):
                if not attempt.killed:
                    claim.leave()
                claim.clock.sleep(self.random.uniform(0, self.TTL))

    def is_gone(self, who):
        """What a driver can tell of another one's process; to ask takes time."""
        self.step()
        (attempt,) = [a for d in self.drivers for a in d.attempts if a.run == who["run"]]
        return self.one_machine and attempt.left is not None

    @property
    def holders(self):
        """The attempts that took the lock, in that order."""
        return sorted((a for d in self.drivers for a in d.attempts if a.took), key=lambda a: a.took)

    def step(self, wait=0.0):
        """Give the turn back, and go on when it comes again."""
        driver = self.active
        driver.wake = self.time + wait
        self.scheduler.release()
        driver.turn.acquire()
        if self.random.random() < self.kills:
            raise KilledError
        return driver

    # What a lock needs of a store

    def path(self, *parts):
        return "/".join(parts)

    def write(self, data, *parts):
        driver = self.step()
        self.files[parts] = data
        if parts[-1].endswith(".beat"):
            driver.attempts[-1].shown = self.time

    def read(self, *parts):
        self.step()
        return self.files.get(parts)

    def names(self, *parts):
        self.step()
        return sorted(path[-1] for path in self.files if path[:-1] == parts)

    def delete(self, *parts):
        self.step()
        self.files.pop(parts, None)


class Seen(Claim):
    """Notes when a sign of life found that the lock was ours; the first one is what takes it."""

    def renew(self):
        began = self.folder.steps, self.folder.time
        super().renew()
        self.attempt.took = self.attempt.took or (self.folder.steps, self.folder.time)
        self.attempt.renewed.append((*began, self.attempt.shown))


class SkewedClock(Clock):
    def __init__(self, world, driver):
        self.world, self.driver = world, driver

    def now(self):
        return datetime(2026, 11, 25, tzinfo=UTC) + timedelta(seconds=self.world.time + self.driver.skew)

    def elapsed(self):
        return self.world.time

    def sleep(self, seconds):
        self.world.step(seconds)


@pytest.fixture
def made_up(monkeypatch):
    """Worlds whose every draw comes from their seed."""

    def make(seed, *arguments, **more):
        world = World(seed, *arguments, **more)
        monkeypatch.setattr(lock, "random", world.random)
        token = SimpleNamespace(token_hex=lambda n: f"{world.random.getrandbits(8 * n):0{2 * n}x}")
        monkeypatch.setattr(lock, "secrets", token)
        monkeypatch.setattr(lock, "is_gone", world.is_gone)
        monkeypatch.setattr(lock, "_log", SimpleNamespace(warning=lambda *_: None))
        world.run()
        return world

    return make


def check_apart(world, clocks_agree=True):
    """Whoever is still there when another one takes the lock has been silent, and never holds it again."""
    for i, other in enumerate(world.holders):
        step, moment = other.took
        for one in world.holders[:i]:
            if one.left <= step:
                continue
            assert all(began < step for began, _, _ in one.renewed), "one that was taken over still held the lock"
            _, began, written = one.renewed[-1]
            assert moment - written >= WATCHED * World.TTL / BEATS, "one was not watched"
            if clocks_agree:
                assert moment - began >= World.TTL, "one that had given a sign of life within its TTL was taken over"


@pytest.mark.parametrize("drivers", [2, 3, 5])
def test_of_drivers_that_start_together_one_holds_the_lock_in_any_order_of_steps(made_up, drivers):
    for seed in range(60):
        # Nobody has ended when the last one asks.
        world = made_up(seed, drivers, renewals=40)
        assert len(world.holders) == 1, seed
        refused = [a.refused for d in world.drivers for a in d.attempts if not a.took]
        assert all("is being run by" in line for line in refused)
        assert [path[-1][-4:] for path in world.files] == [".end"], "the lock was given back"


@pytest.mark.parametrize("skew", [0.0, 1000.0])
@pytest.mark.parametrize("kills", [0.0, 0.02])
def test_no_order_of_steps_sleeps_and_kills_gives_the_lock_to_two(made_up, skew, kills):
    taken_over = lost = 0
    for seed in range(120):
        stalls = 0.03 + 0.05 * (seed % 2)
        world = made_up(
            seed, 2 + seed % 3, stalls=stalls, kills=kills, skew=skew, renewals=12, tries=5, one_machine=bool(seed % 3)
        )  # fmt: skip
        check_apart(world, clocks_agree=not skew)
        lost += sum(one.lost for one in world.holders)
        taken_over += sum(one.took[0] < other.took[0] < one.left for one in world.holders for other in world.holders)
        if not kills:
            assert all(path[-1].endswith(".end") for path in world.files), "all have come to an end"
    # These worlds are about something.
    assert taken_over > 10
    assert lost > 10


# One lock in one process


@pytest.fixture
def short(monkeypatch):
    """A TTL that tests can wait for; for child processes as well."""
    monkeypatch.setenv(VARIABLE, str(SHORT))


def forge(folder, *, who=None, life="now", name="00000001-0123abcd"):
    """Write somebody's lock: what a driver on another machine would have written with changes to that, or bytes."""
    if not isinstance(who, bytes):
        there = {**me(), "host": "elsewhere", "user": "ann", "boot": "another", "run": "R1", "ttl": SHORT}
        since = datetime.now(UTC) - timedelta(hours=2)
        who = json.dumps({**there, "since": since.isoformat(), **(who or {})}).encode()
    times = {"now": 0.0, "long ago": -3600.0, "ahead": 3600.0}
    if life in times:
        life = json.dumps({"beat": 7, "time": (datetime.now(UTC) + timedelta(seconds=times[life])).isoformat()})
    folder.write(who, "lock", f"{name}.json")
    folder.write(life.encode(), "lock", f"{name}.beat")


def test_whoever_is_refused_learns_who_holds_the_study_since_when_and_what_to_do(tmp_path):
    folder = Files(str(tmp_path / "study"))
    with hold(folder, "R1") as lease:
        with pytest.raises(HeldError) as refused, hold(folder, "R2"):
            pytest.fail("two drivers")
        lease.check()
    line = str(refused.value)
    assert "\n" not in line
    assert re.search(
        rf"study is being run by \S+@\S+ \(process {os.getpid()}, run R1\), since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC "
        r"\(.+\), last sign of life .+; wait until it ends or stop it",
        line,
    ), line


def test_a_lock_that_was_given_back_can_be_taken_and_leaves_a_trace_only_beside_something(tmp_path):
    folder = Files(str(tmp_path / "study"))
    for run in ("R1", "R2"):
        with hold(folder, run):
            assert holder(folder).run == run
        assert not (tmp_path / "study").exists()
    with hold(folder, "R3"):
        folder.write(b"{}", "study.json")
    assert holder(folder) is None
    with hold(folder, "R4"):
        assert len(folder.names("lock")) == 2
    assert holder(folder) is None
    (left,) = folder.names("lock")
    assert json.loads(folder.read("lock", left))["run"] == "R4"


def test_an_empty_folder_that_was_there_before_stays_and_is_empty(tmp_path):
    with hold(Files(str(tmp_path)), "R1"):
        pass
    assert not list(tmp_path.iterdir())


def test_an_error_inside_gives_the_lock_back(tmp_path):
    folder = Files(str(tmp_path / "study"))
    with pytest.raises(ZeroDivisionError), hold(folder, "R1"):
        raise ZeroDivisionError
    with hold(folder, "R2"):
        assert holder(folder).state == "alive"


def test_a_lock_on_another_machine_is_believed_while_it_gives_signs_of_life(tmp_path, short):
    folder = Files(str(tmp_path))
    forge(folder)
    assert holder(folder).state == "alive"
    with pytest.raises(
        HeldError, match=r"run by ann@elsewhere \(process \d+, run R1\), since .* \(2 h 0 min ago\), last"
    ):
        Claim(folder, "R2").take()


def test_a_lock_on_another_machine_that_stays_silent_is_taken_over_after_it_was_watched(tmp_path, short, caplog):
    folder = Files(str(tmp_path))
    forge(folder, life="long ago")
    assert holder(folder).state == "silent"
    began = time.monotonic()
    with hold(folder, "R2"):
        assert time.monotonic() - began >= WATCHED * SHORT / BEATS
        assert holder(folder).run == "R2"
        assert len(folder.names("lock")) == 2, "what the silent one has left is gone"
    assert "held by ann@elsewhere" in caplog.text


@pytest.mark.parametrize("life", ["long ago", "ahead", "", '{"beat": 3', "[]", '{"time": 12}'])
def test_a_lock_whose_clock_differs_or_whose_sign_of_life_is_damaged_is_alive_if_it_stirs(tmp_path, short, life):
    folder = Files(str(tmp_path))
    forge(folder, life=life)
    stirring = threading.Timer(0.1, lambda: folder.write(b"whatever", "lock", "00000001-0123abcd.beat"))
    stirring.start()
    with pytest.raises(HeldError, match="run by ann@elsewhere"):
        Claim(folder, "R2").take()
    stirring.join()


@pytest.mark.parametrize("life", ["ahead", "", '{"beat": 3', '{"time": "2026-11-25T00:00:00"}'])
def test_a_sign_of_life_that_tells_no_time_is_watched_for_the_whole_ttl(tmp_path, short, life):
    folder = Files(str(tmp_path))
    forge(folder, life=life)
    began = time.monotonic()
    with hold(folder, "R2"):
        assert time.monotonic() - began >= SHORT


@pytest.mark.parametrize("who", [b"", b'{"run": "R1", "us', b"\xff\xfe\x00", b"[1]", b'{"ttl": "no"}'])
def test_a_damaged_entry_is_somebody_until_it_is_long_silent(tmp_path, short, who):
    folder = Files(str(tmp_path))
    forge(folder, who=who)
    with pytest.raises(
        HeldError, match=r"somebody whose entry in the lock is damaged; if no run .* delete .*abcd\.json"
    ):
        Claim(folder, "R2", ttl=60).take()
    forge(folder, who=who, life="")
    began = time.monotonic()
    with hold(folder, "R2"):
        assert time.monotonic() - began >= SHORT


def test_a_driver_is_judged_by_the_ttl_that_it_wrote_down(tmp_path, short):
    folder = Files(str(tmp_path))
    forge(folder, who={"ttl": 7200}, life="long ago")
    with pytest.raises(HeldError):
        Claim(folder, "R2").take()


def test_an_entry_that_never_gave_a_sign_of_life_holds_nothing(tmp_path):
    folder = Files(str(tmp_path))
    folder.write(json.dumps({**me(), "run": "R1"}).encode(), "lock", "00000004-0123abcd.json")
    folder.write(b"half", "lock", "00000004-0123abcd.beat.77.tmp")
    assert holder(folder) is None
    with hold(folder, "R2"):
        assert all(name.startswith("00000005") for name in folder.names("lock"))


def test_a_holder_overtakes_a_contender_that_never_decides(tmp_path, short):
    folder = Files(str(tmp_path))
    with hold(folder, "R1") as lease:
        folder.write(json.dumps({"run": "R2", "host": "elsewhere"}).encode(), "lock", "00000009-0123abcd.json")
        wait_until(lambda: "00000010" in folder.names("lock")[-1])
        time.sleep(SHORT / BEATS * 2)
        lease.check()
        assert holder(folder).run == "R1"


def test_files_of_others_in_the_lock_are_left_alone(tmp_path):
    folder = Files(str(tmp_path))
    folder.write(b"?", "lock", "notes.txt")
    with hold(folder, "R1"):
        pass
    assert "notes.txt" in folder.names("lock")


def test_a_holder_whose_lock_was_removed_by_hand_is_told(tmp_path, short):
    folder = Files(str(tmp_path))
    with hold(folder, "R1") as lease:
        for name in folder.names("lock"):
            folder.delete("lock", name)
        told = wait_until(lambda: lost(lease))
    assert "is no longer this run's: its lock was removed" in told
    assert not folder.names(), "it leaves nothing behind"


def test_a_holder_that_was_taken_over_is_told_by_whom(tmp_path, short):
    folder = Files(str(tmp_path))
    with hold(folder, "R1") as lease:
        forge(folder, who={"run": "R7"}, name="00000002-0123abcd")
        told = wait_until(lambda: lost(lease))
        assert "\n" not in told
        assert re.search(r"is no longer this run's: taken over by ann@elsewhere \(process \d+, run R7\), since", told)
        with pytest.raises(LostError):
            lease.check()
    assert folder.names("lock") == ["00000002-0123abcd.beat", "00000002-0123abcd.json"], "only what was its own is gone"


def test_the_lease_outlives_a_store_that_fails_for_a_while_and_not_one_that_fails_for_its_ttl(tmp_path, short):
    folder = Files(str(tmp_path))
    with hold(folder, "R1") as lease:
        write, failing = folder.write, threading.Event()

        def shaky(*arguments):
            if failing.is_set():
                raise StoreError("cannot write: the store is away")
            write(*arguments)

        folder.write = shaky
        failing.set()
        until = time.monotonic() + 0.75 * SHORT
        while time.monotonic() < until:
            lease.check()
            time.sleep(0.01)
        failing.clear()
        time.sleep(2 * SHORT / BEATS)
        lease.check()
        failing.set()
        told = wait_until(lambda: lost(lease))
        assert told == "cannot write: the store is away"
        # Nobody took it over meanwhile, so it is still ours.
        failing.clear()
        lease.check()


def test_the_end_of_a_run_does_not_wait_for_a_store_that_hangs(tmp_path, short, monkeypatch, caplog):
    monkeypatch.setattr(lock, "LEAVING", 0.2)
    folder = Files(str(tmp_path))
    hanging = threading.Event()
    with hold(folder, "R1"):
        folder.write = lambda *_: hanging.wait(20)
        time.sleep(3 * SHORT / BEATS)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert "cannot remove the lock" in caplog.text
    hanging.set()


def test_a_store_that_cannot_be_written_is_said_in_its_usual_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(StoreError, match=r"^cannot write .*: .*/file is a file$"),
        hold(Files(str(tmp_path / "file")), "R1"),
    ):
        pytest.fail("not a folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_read_only_store_is_said_in_its_usual_line(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with (
            pytest.raises(StoreError, match=r"^cannot write .*: Read-only file system"),
            hold(Files(str(tmp_path)), "R1"),
        ):
            pytest.fail("read-only")
        assert holder(Files(str(tmp_path))) is None
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("text", ["abc", "0", "-3", "inf", "nan", ""])
def test_a_ttl_that_is_no_time_is_refused_by_name(tmp_path, monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with (
        pytest.raises(StoreError, match=f"{VARIABLE}: '{text}' is no number of seconds above 0"),
        hold(Files(str(tmp_path)), "R"),
    ):
        pytest.fail("no TTL")


# Who is gone


def test_this_process_is_there_and_its_like_elsewhere_are_not_known_to_be_gone():
    mine = me()
    assert not is_gone(mine)
    dead = {**mine, "born": mine["born"] - 1}
    assert is_gone(dead), "another process has its id now"
    for elsewhere in ({"boot": "another"}, {"namespace": "pid:[1]"}, {"host": "another"}, {"boot": None}):
        assert not is_gone({**dead, **elsewhere}), elsewhere
    for damaged in ({"pid": "12"}, {"born": None}, {"pid": 10**30}):
        assert not is_gone({**dead, **damaged}), damaged
    assert not is_gone({})


def test_a_killed_process_is_gone_before_it_is_buried():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    who = {**me(), "pid": child.pid, "born": lock._born(child.pid)}
    assert not is_gone(who)
    child.kill()
    wait_until(lambda: is_gone(who))
    assert child.wait() == -signal.SIGKILL
    assert is_gone(who)


def test_a_process_that_only_hides_is_not_gone(monkeypatch):
    who = {**me(), "born": 1}

    def refused(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    monkeypatch.setattr(lock, "_born", lambda pid: None)
    assert not is_gone(who)


# Real processes


def lost(lease):
    """What a lease says when it is lost, or None."""
    try:
        lease.check()
    except StoreError as error:
        return str(error)
    return None


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds} s in vain")


def start(verb, uri, *arguments, ttl=SHORT, before=()):
    """This file as a process of its own."""
    environment = {**os.environ, VARIABLE: str(ttl), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*before, sys.executable, __file__, verb, uri, *map(str, arguments)],
        stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip


@pytest.fixture
def begin():
    """`start`, and at the end of the test whatever is left is killed, asleep or not."""
    started = []

    def begin(*arguments, **more):
        started.append(start(*arguments, **more))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait(10)
        process.stdout.close()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The address of a bucket on a server that speaks S3, in a process of its own."""
    pytest.importorskip("moto.server")
    server = start("serve", "s3://", ttl=SHORT)
    try:
        port = int(server.stdout.readline())
        with pytest.MonkeyPatch.context() as patch:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "test")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            yield f"s3://bucket/{{}}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    finally:
        server.kill()
        server.wait(10)


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """The address of a study's folder that is not there yet."""
    if request.param == "local":
        return str(tmp_path / "study")
    return request.getfixturevalue("bucket").format(tmp_path.name)


def test_of_many_processes_that_race_and_are_killed_never_two_are_inside(place, tmp_path, begin):
    arena = begin("arena", place, tmp_path, 5, 4.0, 8, ttl=20)
    told, _ = arena.communicate(timeout=120)
    assert arena.returncode == 0
    events = Counter(told.split())
    assert not events["collision"]
    assert not events["lost"]
    assert events["took"] > 5, events
    assert events["refused"] > 5, events
    assert events["killed"] == 8


def test_of_many_that_find_one_stale_lock_one_takes_it_over(place, short, begin):
    folder = Files(place)
    forge(folder, life="long ago")
    contenders = [begin("hold", place, 4.0) for _ in range(5)]
    told = Counter(line for contender in contenders for line in contender.communicate(timeout=60)[0].split())
    assert (told["took"], told["ended"], told["refused"]) == (1, 1, 4), told


def test_a_killed_drivers_lock_is_taken_over_at_once(place, begin):
    first = begin("hold", place, 60, ttl=120)
    assert first.stdout.readline() == "took\n"
    folder = Files(place)
    with pytest.raises(HeldError, match=f"process {first.pid}"):
        Claim(folder, "R2").take()
    first.kill()
    # Not buried yet.
    wait_until(lambda: holder(folder).state == "gone")
    began = time.monotonic()
    with hold(folder, "R2"):
        assert time.monotonic() - began < 10
        assert holder(folder).run == "R2"
    first.wait(10)


def test_a_driver_that_was_stopped_and_taken_over_does_nothing_more_when_it_wakes(place, begin):
    first = begin("hold", place, 60)
    assert first.stdout.readline() == "took\n"
    os.kill(first.pid, signal.SIGSTOP)
    wait_until(lambda: holder(Files(place)).state == "silent")
    second = begin("hold", place, 3)
    assert second.stdout.readline() == "took\n"
    os.kill(first.pid, signal.SIGCONT)
    told, _ = first.communicate(timeout=30)
    assert told == f"lost {second.pid}\n", "its first look after it woke told it"
    assert second.communicate(timeout=30)[0] == "ended\n", "who took over was not disturbed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make process namespaces")
def test_a_driver_in_a_container_of_this_host_is_judged_by_its_signs_of_life(tmp_path, begin):
    folder = Files(str(tmp_path / "study"))
    inside = begin("hold", folder.uri, 60, before=["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"])
    if inside.stdout.readline() != "took\n":
        pytest.skip("no process namespaces here")
    # Its process id is small, and here some other process's or nobody's.
    assert holder(folder).pid < 100
    time.sleep(SHORT)
    assert holder(folder).state == "alive"
    with pytest.raises(HeldError):
        Claim(folder, "R2").take()
    inside.kill()
    inside.wait(10)
    wait_until(lambda: holder(folder).state == "silent")
    with hold(folder, "R2"):
        assert holder(folder).run == "R2"


# What those processes do


def contend(uri, seconds):
    """Hold the lock for so long and look at it all the time; say what became of it."""
    try:
        with hold(Files(uri), f"R{os.getpid()}") as lease:
            print("took", flush=True)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                lease.check()
                time.sleep(0.01)
            print("ended", flush=True)
    except HeldError:
        print("refused", flush=True)
    except LostError as error:
        print("lost", re.search(r"process (\d+)", str(error))[1], flush=True)


def arena(uri, scratch, contenders, seconds, kills):
    """Fork processes that take the lock again and again, kill some, and count how it went."""
    log = os.open(f"{scratch}/log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    children = set()

    def fork():
        pid = os.fork()
        if pid:
            children.add(pid)
            return
        code = 1
        try:
            # What takes long to import comes first: all are to race.
            holder(Files(uri))
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                os.write(log, f"{enter(uri, f'{scratch}/inside')}\n".encode())
                time.sleep(random.uniform(0, 0.02))
            code = 0
        finally:
            os._exit(code)

    for _ in range(contenders):
        fork()
    for _ in range(kills):
        time.sleep(seconds / kills)
        victim = random.choice(sorted(children))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        children.remove(victim)
        os.write(log, b"killed\n")
        fork()
    codes = [os.waitpid(child, 0)[1] for child in children]
    print(Path(scratch, "log").read_text(), flush=True)
    return max(codes)


def enter(uri, inside):
    """Take the lock, and see by a file beside it whether anybody else is inside."""
    mine, inside = str(os.getpid()), Path(inside)
    try:
        with hold(Files(uri), f"R{mine}") as lease:
            there = inside.read_text() if inside.exists() else ""
            if there and is_running(there):
                return f"collision {there} {mine}"
            inside.write_text(mine)
            time.sleep(0.01)
            lease.check()
            if inside.read_text() != mine:
                return "collision"
            inside.unlink()
            return "took"
    except HeldError:
        return "refused"
    except LostError:
        return "lost"


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def serve():
    """An S3 server with one bucket, until it is killed; says its port."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys).create_bucket(Bucket="bucket")
    print(port, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    verb, address, *rest = sys.argv[1:]
    if verb == "hold":
        contend(address, float(rest[0]))
    elif verb == "arena":
        sys.exit(arena(address, rest[0], int(rest[1]), float(rest[2]), int(rest[3])))
    else:
        serve()
