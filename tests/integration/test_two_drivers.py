"""Two real `study run` of one folder: the second is told who holds it, and takes over only what nobody holds."""

import os
import re
import signal

import pytest
from processes import ENVIRONMENT, descendants, end, start_study, study, wait_for
from undisturbed import Tables

from study.files import Files
from study.lock import VARIABLE, holder
from study.store import StudyFolder

EPOCHS, CELLS, SEEDS = 12, 3, 2

STUDY = f"""\
name: contended
question: Does a second driver change anything?
recipe: {{dataset: synthetic, model: mlp, optimiser: sam, batch_size: 32, epochs: {EPOCHS}, lr: 0.05}}
grid: {{gamma: [0.05, 0.2, 0.5]}}
seeds: [0, 1]
checkpoints: {{every: 1}}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "contended.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def refused(file):
    """What two drivers at once say: the first and its run, and the second, which is refused."""
    first = start_study("run", file, "--storage", file.parent, "--cpus", 1, "--no-report")
    try:
        run = wait_for(lambda: runs_now(file.parent / "contended", first))
        second = study("run", file, "--storage", file.parent, "--cpus", 1, "--no-report")
        assert first.poll() is None, "the second one came while the first was at it"
        told, _ = first.communicate(timeout=240)
    finally:
        end(first, descendants(first.pid))
    return first, told, run, second


@pytest.fixture(scope="module")
def calm(file):
    """What the study finds if one driver does everything."""
    return Tables.by_a_plain_loop(file, file.parent / "nowhere")


@pytest.fixture
def drivers(file, tmp_path):
    """Starts drivers of one folder; whatever they leave is killed by its id."""
    started = []

    def start():
        process = start_study("run", file, "--storage", tmp_path, "--cpus", 1, "--no-report")
        process.family = set()
        started.append(process)
        return process

    yield start
    for process in started:
        end(process, process.family | set(descendants(process.pid)))


def check(folder, calm):
    """The tables are the undisturbed ones, with every epoch of every seed once."""
    calm.assert_found_in(str(folder))
    assert len(calm.epochs) == CELLS * SEEDS * EPOCHS


def in_the_middle(folder, process):
    """Wait until the first trial has ended and others are to come."""
    wait_for(lambda: StudyFolder(str(folder)).rows("ends"))
    process.family |= set(descendants(process.pid))
    assert process.poll() is None


def last_pieces(folder, run):
    """The number of the last piece of each kind that a run has recorded; merging does not change it."""
    names = Files(str(folder)).names("records", run)
    pieces = [re.fullmatch(r"([a-z]+)-\d+-(\d+)\.parquet", name) for name in names]
    return {kind: max(int(p[2]) for p in pieces if p and p[1] == kind) for kind in {p[1] for p in pieces if p}}


def runs_now(folder, process):
    """The run that holds the folder, if it is this process'."""
    there = holder(Files(str(folder)))
    return there.run if there and there.state == "alive" and there.pid == process.pid else None


def test_the_second_driver_is_told_who_holds_the_study_and_the_first_goes_on(refused, calm, file):
    first, told, run, second = refused
    folder = file.parent / "contended"
    assert second.returncode == 2, second.stdout
    (line,) = second.stderr.splitlines()
    who = rf"study: {folder} is being run by \S+@\S+ \(process {first.pid}, run {run}\), "
    since = r"since [-0-9]+ [:0-9]+ UTC \(.+\), last sign of life .+; wait until it ends or stop it"
    assert re.match(who + since, line), line
    assert first.returncode == 0, told
    check(folder, calm)
    assert [record["run"] for record in StudyFolder(str(folder)).runs()] == [run], "the second one has left no record"
    assert holder(Files(str(folder))) is None


@pytest.mark.long
def test_the_study_of_a_killed_driver_is_taken_over_at_once(calm, drivers, tmp_path):
    folder = tmp_path / "contended"
    first = drivers()
    in_the_middle(folder, first)
    first.kill()
    first.wait(30)
    assert holder(Files(str(folder))).state == "gone"
    second = drivers()
    told, _ = second.communicate(timeout=120)
    assert second.returncode == 0, told
    assert "watching" not in told, "nothing had to be waited for"
    check(folder, calm)


@pytest.mark.long
def test_a_driver_that_slept_while_another_took_over_stops_and_changes_nothing(calm, drivers, tmp_path, monkeypatch):
    # Long enough for a driver that two busy cores keep waiting.
    monkeypatch.setitem(ENVIRONMENT, VARIABLE, "6")
    folder = tmp_path / "contended"
    first = drivers()
    in_the_middle(folder, first)
    os.kill(first.pid, signal.SIGSTOP)
    (old,) = Files(str(folder)).names("records")
    recorded = last_pieces(folder, old)
    wait_for(lambda: holder(Files(str(folder))).state == "silent")
    second = drivers()
    run = wait_for(lambda: runs_now(folder, second))
    os.kill(first.pid, signal.SIGCONT)
    told, _ = first.communicate(timeout=60)
    assert first.returncode == 2, told
    assert re.search(
        rf"^study: {folder} is no longer this run's: taken over by \S+ \(process {second.pid}, run {run}\), since .*$",
        told,
        re.MULTILINE,
    ), told
    assert "Traceback" not in told
    told, _ = second.communicate(timeout=120)
    assert second.returncode == 0, told
    check(folder, calm)
    mine, other = sorted(StudyFolder(str(folder)).runs(), key=lambda record: record["run"] == run)
    assert "taken over by" in mine["reason"]
    assert other["interrupted"] is False
    assert mine["run"] == old
    assert last_pieces(folder, old) == recorded, "it recorded nothing more"
