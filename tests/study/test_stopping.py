"""A request to stop reaches the run that is asked, no other and no later one; its answer is that the lock is free."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from memory_folder import MemoryFolder

from study import lock, stopping
from study.cli import main
from study.lock import BEATS, FOLDER, VARIABLE, Claim, hold, holder, me
from study.stopping import ask, end_now, is_asked, wait
from study.store import StoreError, StudyFolder

#: Seconds; a beat is 0.1 s.
SHORT = 0.8


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setenv(VARIABLE, str(SHORT))


class Remote(MemoryFolder):
    """Like an object store: nothing local, and every request is counted."""

    is_local = False

    def __init__(self):
        super().__init__()
        self.asked = []

    def read(self, *parts):
        self.asked.append(("read", "/".join(parts)))
        return super().read(*parts)

    def walk(self, *parts):
        self.asked.append(("list", "/".join(parts)))
        return super().walk(*parts)


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    made = StudyFolder(str(tmp_path / "n")) if request.param == "local" else Remote()
    made.write(b"{}", "study.json")
    return made


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def forge(folder, name="00000001-0123abcd", *, age=0.0, **who):
    """A driver's entry that its last sign of life makes `age` seconds old."""
    seen = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    entry = {"run": "r9", "since": seen, "ttl": SHORT, "user": "ann", "host": "node7", "pid": 42, **who}
    folder.write(json.dumps(entry).encode(), FOLDER, f"{name}.json")
    folder.write(json.dumps({"beat": 1, "time": seen}).encode(), FOLDER, f"{name}.beat")


def requests(folder):
    return [name for name in folder.names(FOLDER) if name.endswith(".stop")]


def test_the_run_that_is_asked_learns_by_whom_and_the_answer_is_its_lock(folder, caplog):
    answers = []
    with hold(folder, "r1") as lease:
        asked = ask(folder)
        assert (asked.holder.run, asked.holder.pid) == ("r1", os.getpid())
        until(lambda: lease.asked)
        assert lease.asked == f"{me()['user']}@{me()['host']}"
        lease.check()  # it still holds the study
        waiting = threading.Thread(target=lambda: answers.append(wait(asked)))
        waiting.start()
        time.sleep(0.2)
        assert not answers, "it still runs"
        assert wait(asked, timeout=0.05) == "waiting"
    waiting.join(20)
    assert answers == ["given_back"]
    assert requests(folder) == []
    assert "asks this run to stop" in caplog.text


def test_nobody_is_asked_where_nobody_runs(folder):
    assert ask(folder) is None
    with hold(folder, "r1"):
        pass
    assert ask(folder) is None
    assert requests(folder) == []


def test_asked_twice_it_is_one_request(folder):
    with hold(folder, "r1") as lease:
        first, second = ask(folder), ask(folder)
        assert first.entry == second.entry
        assert len(requests(folder)) == 1
        until(lambda: lease.asked)
    assert wait(first) == wait(second) == "given_back"


def test_a_request_that_comes_too_late_stops_no_later_run(folder):
    with hold(folder, "r1"):
        asked = ask(folder)
    # As if it had been written when the first run had looked for the last time.
    folder.write(b"{}", FOLDER, f"{asked.entry}.stop")
    with hold(folder, "r2") as lease:
        assert wait(asked) == "given_back", "the one that was asked has ended"
        time.sleep(3 * SHORT / BEATS)
        assert lease.asked is None
        assert requests(folder) == []
    assert holder(folder) is None


def test_a_request_to_a_run_that_died_stops_nobody_who_takes_over(folder):
    forge(folder, age=60)
    ask(folder)
    assert len(requests(folder)) == 1
    with hold(folder, "r2") as lease:
        time.sleep(3 * SHORT / BEATS)
        assert lease.asked is None
        assert requests(folder) == []


def test_an_entry_without_a_word_is_told_apart_from_one_that_goes_on(folder):
    forge(folder, age=60)
    assert wait(ask(folder), timeout=0.05) == "silent"
    now = [0.0]
    looks = []

    def sleep(seconds):
        now[0] += seconds
        looks.append(now[0])

    assert wait(ask(folder), clock=lambda: now[0], sleep=sleep) == "silent"
    assert looks[-1] > lock.WATCHED * SHORT / BEATS, "it could have stirred"
    forge(folder, age=0)
    assert wait(ask(folder), timeout=0.05) == "waiting"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder.delete(FOLDER, requests(folder)[0])
    forge(folder, **{**me(), "pid": gone.pid, "born": 1})
    assert not is_asked(folder)
    assert wait(ask(folder)) == "gone"
    assert is_asked(folder), "a supervisor does not begin again what was asked to stop"
    with hold(folder, "r2") as lease:
        assert not is_asked(folder), "whoever begins it by hand is not meant"
        assert lease.asked is None


def test_the_one_that_was_asked_may_come_back_with_a_later_term(folder):
    forge(folder)
    asked = ask(folder)
    folder.delete(FOLDER, "00000001-0123abcd.json")
    forge(folder, "00000002-0123abcd")
    assert wait(asked, timeout=0.05) == "waiting"
    folder.delete(FOLDER, "00000002-0123abcd.json")
    forge(folder, "00000003-0123abcd", run="another")
    assert wait(asked, timeout=0.05) == "given_back"


def test_a_run_that_takes_over_from_one_that_died_unheeding_is_asked_in_its_place(folder):
    """Seen: a driver that a job's supervisor begins again went on, and `study stop` said that it had stopped."""
    folder.save_run("r1", {"run": "r1", "started": "2026-11-25T07:00:00.000+00:00"})
    forge(folder, run="r1")
    asked = ask(folder)
    folder.delete(FOLDER, f"{asked.entry}.json")
    forge(folder, "00000002-0123abcd", run="r2")
    assert wait(asked, timeout=0.05) == "waiting"
    assert requests(folder) == ["00000002-0123abcd.stop"]
    # One that has ended has nobody asked for it.
    folder.delete(FOLDER, "00000002-0123abcd.stop")
    ended = {"started": "2026-11-25T07:00:00.000+00:00", "ended": "2026-11-25T08:00:00.000+00:00"}
    folder.save_run("r1", {"run": "r1", **ended})
    assert wait(asked, timeout=0.05) == "given_back"
    assert requests(folder) == []


def test_a_driver_that_overtook_a_contender_still_hears_what_its_former_entry_was_asked(folder):
    claim = Claim(folder, "r1")
    claim.take()
    asked = ask(folder)
    forge(folder, "00000009-ffffffff")
    folder.delete(FOLDER, "00000009-ffffffff.beat")
    claim.renew()
    assert claim.name != asked.entry, "it has a later term than who never decided"
    assert claim.request() == f"{me()['user']}@{me()['host']}"
    claim.leave()
    assert requests(folder) == []


def test_while_nobody_asks_an_object_store_is_asked_no_more_than_a_sign_of_life_costs():
    folder = Remote()
    claim = Claim(folder, "r1")
    claim.take()
    folder.asked.clear()
    for _ in range(5):
        claim.renew()
        assert claim.request() is None
    assert folder.asked == [("list", FOLDER)] * 5
    claim.leave()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"user": "a"}', b"null"])
def test_a_damaged_request_is_a_request_of_somebody(folder, content):
    with hold(folder, "r1") as lease:
        folder.write(content, FOLDER, f"{ask(folder).entry}.stop")
        until(lambda: lease.asked)
        # Whichever of the two it has seen.
        assert lease.asked in ("somebody", f"{me()['user']}@{me()['host']}")
    claim = Claim(folder, "r2")
    claim.take()
    folder.write(content, FOLDER, f"{claim.name}.stop")
    claim.renew()
    assert claim.request() == "somebody"
    claim.leave()


def test_who_asks_is_shown_without_what_a_terminal_would_obey(folder):
    claim = Claim(folder, "r1")
    claim.take()
    evil = {"user": "\x1b]0;owned\x07" + "u" * 500, "host": "h\n\rstudy: all is lost"}
    folder.write(json.dumps(evil).encode(), FOLDER, f"{claim.name}.stop")
    claim.renew()
    said = claim.request()
    assert said.isprintable()
    assert len(said) <= 80
    claim.leave()


def test_a_local_request_is_seen_between_two_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "800")
    monkeypatch.setattr(lock, "LOOK", 0.1)
    folder = StudyFolder(str(tmp_path / "n"))
    with hold(folder, "r1") as lease:
        beat = folder.read(FOLDER, f"{ask(folder).entry}.beat")
        until(lambda: lease.asked)
        assert folder.read(FOLDER, f"{ask(folder).entry}.beat") == beat


def test_signs_of_life_are_not_given_more_often_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOOK", 0.01)
    folder = StudyFolder(str(tmp_path / "n"))
    given = []
    show = Claim._show
    monkeypatch.setattr(Claim, "_show", lambda claim: (given.append(time.monotonic()), show(claim)))
    with hold(folder, "r1"):
        until(lambda: len(given) >= 6)
    assert all(b - a >= 0.9 * SHORT / BEATS for a, b in pairwise(given[1:]))


# The verb


@pytest.fixture
def verb(capsys):
    def run(*arguments):
        code = main(["stop", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_the_verb_asks_waits_and_says_how_it_ended(tmp_path, verb):
    folder = StudyFolder(str(tmp_path / "n"))
    folder.write(b"{}", "study.json")
    over = {"started": "2026-11-25T07:00:00.000+00:00", "ended": "2026-11-25T07:01:00.000+00:00", "interrupted": True}

    def serve(lease, held):
        until(lambda: lease.asked)
        folder.save_run("r1", {"run": "r1", **over, "reason": f"stopped as {lease.asked} asked"})
        held.__exit__(None, None, None)

    held = hold(folder, "r1")
    server = threading.Thread(target=serve, args=(held.__enter__(), held))
    server.start()
    code, out, err = verb("n", "--storage", tmp_path)
    server.join(20)
    assert code == 0, err
    first, second, _ = out.splitlines()
    who = f"{me()['user']}@{me()['host']}"
    assert (
        first
        == f"asked {who} (process {os.getpid()}, run r1) to stop; its trials end with the epochs in which they are"
    )
    assert re.fullmatch(
        rf"stopped after \d+ s: run r1 ended after 1 min 0 s; its trials: none ended; stopped as {re.escape(who)} "
        "asked",
        second,
    )
    assert verb(tmp_path / "n") == (0, f"nobody runs {tmp_path / 'n'} now\n", "")


def test_the_verb_says_what_it_could_not_do(tmp_path, verb):
    folder = StudyFolder(str(tmp_path / "n"))
    folder.write(b"{}", "study.json")
    forge(folder, ttl=1000)
    code, _, err = verb(tmp_path / "n", "--timeout", "0.1")
    assert code == 2
    assert re.match(r"study: ann@node7 \(process 42, run r9\).*: it has not ended after 0 s; the request stands", err)
    forge(folder, age=60)
    code, _, err = verb(tmp_path / "n", "--timeout", "0.1")
    assert code == 2
    assert "it gives no sign of life and may be gone" in err
    forge(folder, **{**me(), "born": 1})
    code, out, _ = verb(tmp_path / "n")
    assert code == 0
    assert "its process is gone, the next run takes over" in out
    code, _, err = verb(tmp_path / "n", "--address", "http://127.0.0.1:1")
    assert (code, err) == (
        2,
        "study: --address is for --now; without it the study's folder is enough to ask its run to end\n",
    )
    code, _, err = verb("../n", "--storage", tmp_path)
    assert code == 2
    assert err.startswith("study: ../n: with --storage write the study's name")


# --now


@pytest.fixture
def bystander():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "run"])
    yield process
    process.kill()
    process.wait(30)


def test_a_process_that_is_no_study_is_not_ended_whatever_the_lock_says(tmp_path, bystander):
    folder = StudyFolder(str(tmp_path / "n"))
    forge(folder, **{**me(), "pid": bystander.pid, "born": lock._born(bystander.pid)})
    with pytest.raises(StoreError, match="is no `study` command of this user; end it by hand"):
        end_now(folder)
    assert bystander.poll() is None


def test_a_process_of_another_machine_is_not_looked_for_here(tmp_path, bystander):
    folder = StudyFolder(str(tmp_path / "n"))
    forge(folder, **{**me(), "host": "node7", "pid": bystander.pid, "born": lock._born(bystander.pid)})
    with pytest.raises(StoreError, match="not on this machine: end it there, or give the --address"):
        end_now(folder)
    assert bystander.poll() is None


def test_a_number_that_another_process_has_now_is_nobody(tmp_path, bystander):
    folder = StudyFolder(str(tmp_path / "n"))
    forge(folder, **{**me(), "pid": bystander.pid, "born": 1})
    with pytest.raises(StoreError, match="nobody runs"):
        end_now(folder)
    assert bystander.poll() is None


@pytest.fixture
def module(tmp_path, monkeypatch):
    """`python -m study run` of a package of that name that holds a folder's lock and answers signals as it is told."""
    (tmp_path / "fake" / "study").mkdir(parents=True)
    (tmp_path / "fake" / "study" / "__init__.py").touch()
    program = tmp_path / "fake" / "study" / "__main__.py"
    started = []

    def start(folder, on_term):
        program.write_text(
            f"import signal, time\nsignal.signal(signal.SIGTERM, {on_term})\n"
            "print('ready', flush=True)\ntime.sleep(60)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "study", "run", "x.yaml"], cwd=tmp_path / "fake", stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        forge(folder, **{**me(), "pid": process.pid, "born": lock._born(process.pid)})
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(30)


def test_now_ends_the_process_politely_if_it_listens_and_kills_it_if_not(tmp_path, module):
    folder = StudyFolder(str(tmp_path / "n"))
    polite = module(folder, "lambda *_: exit(130)")
    threading.Thread(target=polite.wait, daemon=True).start()
    assert end_now(folder, grace=20) == "ended"
    assert polite.wait(5) == 130
    deaf = module(folder, "signal.SIG_IGN")
    threading.Thread(target=deaf.wait, daemon=True).start()
    assert end_now(folder, grace=1) == "killed"
    assert deaf.wait(5) == -signal.SIGKILL
    with pytest.raises(StoreError, match="nobody runs"):
        end_now(folder)


def test_a_study_command_is_known_however_it_was_started():
    def known(*words):
        return stopping._runs_study(words)

    assert known("/venv/bin/python", "-m", "study", "run", "x.yaml")
    assert known("/venv/bin/python", "/venv/bin/study", "resume", "x")
    assert known("/venv/bin/python", "/src/study/__main__.py", "run", "x")
    assert not known("/venv/bin/python", "-m", "study", "report", "x", "run")
    assert not known("/usr/bin/vi", "run")
    assert not known("run", "study")
    assert not known()
