"""A job's small parent: real drivers that end, are killed, are stopped."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from study import spectator
from study.preflight import ClusterError
from study.service import supervise
from study.service.supervise import FIRST_PAUSE, LONGEST_PAUSE, Supervisor, own_cluster


def supervised(script, restarts, tmp_path):
    """A supervisor over a Python script that can count how often it was started; what it said; how long it waited."""
    file = tmp_path / "driver.py"
    file.write_text(
        "import os, signal, sys, time, pathlib\n"
        f"mark = pathlib.Path({str(tmp_path / 'starts')!r})\n"
        "with mark.open('a') as out: out.write('.')\n"
        "starts = mark.stat().st_size\n" + textwrap.dedent(script)
    )
    said, waited = [], []
    supervisor = Supervisor(lambda: subprocess.Popen([sys.executable, str(file)]), restarts, waited.append, said.append)
    return supervisor, said, waited, lambda: (tmp_path / "starts").stat().st_size


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_a_driver_that_ends_by_itself_is_not_started_again(code, tmp_path):
    supervisor, said, waited, starts = supervised(f"sys.exit({code})", 3, tmp_path)
    assert supervisor.run() == code
    assert (starts(), said, waited) == (1, [], [])


def test_a_driver_that_is_killed_is_started_again_and_its_end_counts(tmp_path):
    supervisor, said, waited, starts = supervised(
        "os.kill(os.getpid(), signal.SIGKILL) if starts < 3 else sys.exit(1)", 5, tmp_path
    )
    assert supervisor.run() == 1
    assert starts() == 3
    assert waited == [FIRST_PAUSE, 2 * FIRST_PAUSE]
    assert said[0].startswith("the driver was killed by SIGKILL (is its node short of memory?); restart 1 of 5 in 2 s")


def test_a_driver_that_is_killed_too_often_is_given_up(tmp_path):
    supervisor, said, _, starts = supervised("os.kill(os.getpid(), signal.SIGSEGV)", 2, tmp_path)
    assert supervisor.run() == 128 + signal.SIGSEGV
    assert starts() == 3
    assert said[-1] == "the driver was killed by SIGSEGV 3 times; study resume goes on from what is stored"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_driver_that_somebody_ended_is_not_started_again(name, tmp_path):
    code = f"signal.signal(signal.{name}, signal.SIG_DFL); os.kill(os.getpid(), signal.{name})"
    supervisor, _, waited, starts = supervised(code, 3, tmp_path)
    assert supervisor.run() == 128 + getattr(signal, name)
    assert (starts(), waited) == (1, [])


def test_a_study_that_was_asked_to_stop_is_not_begun_again(tmp_path):
    supervisor, said, _, starts = supervised("os.kill(os.getpid(), signal.SIGKILL)", 3, tmp_path)
    supervisor._asked = lambda: starts() == 2
    assert supervisor.run() == 128 + signal.SIGKILL
    assert starts() == 2
    assert said[-1] == "somebody has asked the study to stop: the driver is not started again"


def test_a_watcher_waits_for_longer_than_a_supervisor_pauses():
    assert spectator.SUCCESSION >= LONGEST_PAUSE + 30


def test_without_restarts_it_is_started_once(tmp_path):
    supervisor, said, waited, starts = supervised("os.kill(os.getpid(), signal.SIGKILL)", 0, tmp_path)
    assert supervisor.run() == 128 + signal.SIGKILL
    assert (starts(), waited, len(said)) == (1, [], 1)


def test_pauses_do_not_grow_without_end(tmp_path):
    supervisor, _, waited, _ = supervised("os.kill(os.getpid(), signal.SIGKILL)", 8, tmp_path)
    supervisor.run()
    assert max(waited) == LONGEST_PAUSE
    assert waited == sorted(waited)


def test_a_driver_that_was_killed_since_somebody_stops_the_job_is_not_started_again(tmp_path):
    supervisor, said, _, starts = supervised("os.kill(os.getpid(), signal.SIGKILL)", 3, tmp_path)
    supervisor.stop()
    assert supervisor.run() == 128 + signal.SIGKILL
    assert (starts(), said) == (1, [])


def test_a_stop_during_the_pause_ends_it(tmp_path):
    supervisor, _, _, starts = supervised("os.kill(os.getpid(), signal.SIGKILL)", 3, tmp_path)
    supervisor._sleep = lambda seconds: supervisor.stop()
    assert supervisor.run() == 128 + signal.SIGKILL
    assert starts() == 1


@pytest.mark.parametrize("address", [None, "", "auto", "http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_outside_a_job_no_cluster_is_taken(address, monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match="no job of a Ray cluster"):
        own_cluster()
    assert supervise.main(["--", "run", "x.yaml"]) == 2
    assert "study: this is no job of a Ray cluster" in capsys.readouterr().err


def test_the_job_runs_the_verb_it_was_given_on_its_own_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    seen = []

    class Driver:
        def __init__(self, command, **more):
            seen.append(command)

        def wait(self):
            return 0

    monkeypatch.setattr(supervise.subprocess, "Popen", Driver)
    monkeypatch.setattr(supervise.signal, "signal", lambda *_: None)
    assert supervise.main(["--restarts=2", "--", "run", "study.yaml", "--set=name=a b", "--storage=/s"]) == 0
    assert seen == [[sys.executable, "-m", "study", "run", "study.yaml", "--set=name=a b", "--storage=/s",
                     "--address", "10.0.0.1:6379", "--no-report"]]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_driver_does_not_outlive_its_parent(tmp_path):
    """Nobody would see it: the job has ended with its parent."""
    script = textwrap.dedent(
        """
        import subprocess, sys
        from study.service.supervise import _die_with_parent
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], preexec_fn=_die_with_parent)
        print(child.pid, flush=True)
        child.wait()
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(30)
    wait_for_its_end(child)


def wait_for_its_end(pid, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return
        if stat.rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} lives on")
