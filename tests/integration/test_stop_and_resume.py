"""Real runs that are asked to stop lose no epoch, and go on from their folder to what a plain loop finds."""

import json
import os
import pty
import re
import subprocess
import sys
import threading

import pandas as pd
import pytest
from object_store import CREDENTIALS, ObjectStore
from processes import ENVIRONMENT, descendants, end, ended, start_run, start_study, study, trial_workers, wait_for
from service_cluster import ServiceCluster
from undisturbed import Tables

from study import connect
from study.lock import VARIABLE, holder
from study.reader import open_study
from study.stopping import ask, wait
from study.store import StudyFolder, child
from trainables.recipe import Recipe
from trainables.replicate import Replicate

CONTENT = {
    "name": "asked",
    "question": "Does a request to stop cost anything?",
    "recipe": {"dataset": "synthetic", "model": "mlp", "optimiser": "sam", "batch_size": 32, "lr": 0.05},
    "grid": {"gamma": [0.05, 0.2, 0.5]},
    "resources": {"cpu": 1, "gpu": 0},
    # The only checkpoints are those that workers write when they are told to end.
    "checkpoints": {"every": 100_000},
}

#: More than any of these runs trains before it is stopped.
ENDLESS = 1_000_000


def write(path, epochs, **more):
    file = path / "asked.yaml"
    file.write_text(json.dumps({**CONTENT, **more, "recipe": {**CONTENT["recipe"], "epochs": epochs}}))
    return file


def kept(folder):
    """Of each trial the epochs of its checkpoints."""
    found = {}
    for path in StudyFolder(str(folder)).walk("trials"):
        if match := re.fullmatch(r"([^/]+)/checkpoints/(\d+)\.pt", path):
            found.setdefault(match[1], []).append(int(match[2]))
    return found


def training(process):
    """Wait until trials are trained."""
    family = wait_for(lambda: process.poll() is not None or trial_workers(process.pid), seconds=180)
    assert process.poll() is None, process.communicate()
    return family


def test_a_run_that_is_asked_to_stop_keeps_a_checkpoint_of_every_trial_in_training(tmp_path):
    folder = StudyFolder(str(tmp_path / "asked"))
    process = start_run(write(tmp_path, ENDLESS), tmp_path)
    try:
        training(process)
        held = holder(folder)
        asked = ask(folder)
        assert (asked.holder.run, asked.holder.pid) == (held.run, process.pid)
        assert wait(asked, timeout=120) == "given_back"
    finally:
        code, out, err = ended(process, 60)
    assert code == 130, out + err
    assert "asks this run to stop: each trial in training ends with its epoch" in err
    assert re.search(r"^stopped as \S+@\S+ asked: what is finished is in ", out, re.MULTILINE), out
    (run,) = folder.runs()
    assert run["interrupted"]
    assert re.fullmatch(r"stopped as \S+@\S+ asked", run["reason"])
    frame = open_study(folder.uri).replicates()
    begun = frame[frame["status"] == "running"]
    assert len(begun), "it was in the middle"
    for trial, epoch in zip(begun["trial"], begun["epoch"], strict=True):
        (last,) = kept(folder.uri)[trial]
        assert last >= epoch >= 1
    assert holder(folder) is None
    assert not [name for name in folder.names("lock") if name.endswith(".stop")]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Watched at a terminal and elsewhere, stopped by its name, resumed by its name, and stopped again."""
    path = tmp_path_factory.mktemp("asked")
    file, folder = write(path, ENDLESS), path / "asked"
    named = ("asked", "--storage", path)
    screen = Screen("watch", *named, "--wait", "120", "--every", "0.5")
    lines = subprocess.Popen(
        [sys.executable, "-m", "study", "watch", *map(str, named), "--wait", "120", "--every", "1", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    process = start_run(file, path)
    try:
        training(process)
        wait_for(lambda: len(open_study(str(folder)).history()), seconds=60)
        found = {"path": path, "folder": folder, "stop": study("stop", *named)}
    finally:
        found["run"] = ended(process, 60)
    found["lines"] = (*lines.communicate(timeout=60), lines.returncode)
    found["screen"] = screen.ended()
    found["before"], found["kept"] = open_study(str(folder)).replicates(), kept(folder)
    found["again"] = study("stop", *named)
    second = start_study("resume", *named, "--cpus", 2, "--no-report")
    try:
        training(second)
        beyond = max(max(epochs) for epochs in found["kept"].values())
        wait_for(lambda: open_study(str(folder)).history()["epoch"].max() > beyond + 10, seconds=120)
        assert wait(ask(StudyFolder(str(folder))), timeout=120) == "given_back"
        out, _ = second.communicate(timeout=60)
    finally:
        end(second, descendants(second.pid))
    found["resumed"] = second.returncode, out
    return found


class Screen:
    """`study ARGUMENTS` at a terminal of 100 columns, and what it has drawn there."""

    def __init__(self, *arguments):
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "study", *map(str, arguments)],
            stdin=theirs, stdout=theirs, stderr=theirs,
            env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.drawn = b""
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, ours):
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                return
            if not data:
                return
            self.drawn += data

    def ended(self):
        code = self.process.wait(120)
        self._reader.join(10)
        return code, self.drawn.decode(errors="replace")


@pytest.mark.long
def test_stop_waits_for_the_end_and_says_so(stopped):
    code, out, _ = stopped["run"]
    assert code == 130, out
    done = stopped["stop"]
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert re.match(r"asked \S+@\S+ \(process \d+, run \S+\) to stop; ", first)
    assert re.match(r"stopped after \d+ s: run \S+ ended after .*; stopped as \S+@\S+ asked$", second)
    assert "resume" in third
    assert stopped["again"].stdout == f"nobody runs {stopped['folder']} now\n"
    assert stopped["again"].returncode == 0


@pytest.mark.long
def test_whoever_watches_sees_it_train_and_end_with_the_codes_of_the_run(stopped):
    out, err, code = stopped["lines"]
    assert code == 130, err
    *looks, last = map(json.loads, out.splitlines())
    assert last["end"] == "interrupted"
    assert {look["study"] for look in looks} == {"asked"}
    assert max(look["cells"].get("running", 0) for look in looks) == 2, "two CPUs"
    done = [look["epochs_done"] for look in looks]
    assert done == sorted(done)
    assert done[-1] == stopped["before"]["epoch"].fillna(0).sum() > 0
    assert {look["epochs_planned"] for look in looks} == {3 * ENDLESS}
    code, screen = stopped["screen"]
    assert code == 130
    assert re.search(r"\d+\.\d › \d+/1000000", screen), "a cell in training with its accuracy and epoch"
    assert re.search(r"run by \S+@\S+ \(process \d+, run ", screen)
    assert re.search(r"run \S+ ended after .*; stopped as ", screen.replace("\r\n", " "))


@pytest.mark.long
def test_what_is_resumed_by_name_goes_on_where_it_was_and_trains_what_a_plain_loop_trains(stopped):
    code, out = stopped["resumed"]
    assert "Traceback" not in out
    assert code == 130, out
    begun = stopped["before"].query("status == 'running'")
    assert len(begun) == len(stopped["kept"]) == 2
    history = open_study(str(stopped["folder"])).history()
    assert not history.duplicated(["cell", "seed", "epoch"]).any()
    now = kept(stopped["folder"])
    for trial, gamma in zip(begun["trial"], begun["gamma"], strict=True):
        (before,) = stopped["kept"][trial]
        assert max(now[trial]) > before
        rows = history[history["trial"] == trial].sort_values("epoch")
        assert list(rows["epoch"]) == list(range(1, len(rows) + 1)), "none is missing"
        replicate = Replicate(Recipe.of({**CONTENT["recipe"], "epochs": ENDLESS, "gamma": float(gamma)}), 0)
        # Some way beyond where it was stopped.
        assert len(rows) >= before
        for loss in rows["train_loss"].head(before + 10):
            assert replicate.train_epoch()["train_loss"] == loss


@pytest.mark.long
def test_a_finished_study_has_nothing_to_resume_and_a_changed_one_what_is_new(tmp_path):
    file = write(tmp_path, 2)
    assert study("run", file, "--storage", tmp_path, "--cpus", 2, "--no-report").returncode == 0
    calm = Tables.by_a_plain_loop(file, tmp_path / "nowhere")
    file.unlink()
    done = study("resume", tmp_path / "asked", "--no-report")
    assert done.returncode == 0
    assert "nothing is missing" in done.stdout
    calm.assert_found_in(str(tmp_path / "asked"))
    more = study("resume", "asked", "--storage", tmp_path, "--cpus", 2, "--no-report", "--set", "seeds=2")
    assert more.returncode == 0, more.stderr
    frame = open_study(str(tmp_path / "asked")).replicates()
    assert list(frame["status"]) == ["complete"] * 6
    assert len(set(frame.loc[frame["seed"] == 0, "run"])) == 1, "what was there was not trained again"
    assert set(frame.loc[frame["seed"] == 0, "run"]).isdisjoint(frame.loc[frame["seed"] == 1, "run"])


@pytest.mark.long
def test_now_does_not_wait_for_the_epochs(tmp_path):
    process = start_run(write(tmp_path, ENDLESS), tmp_path)
    try:
        training(process)
        done = study("stop", tmp_path / "asked", "--now")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("ended: what was checkpointed is kept in ")
    finally:
        code, out, err = ended(process, 60)
    assert code == 130, out + err
    assert holder(StudyFolder(str(tmp_path / "asked"))) is None


@pytest.mark.long
def test_a_run_whose_folder_is_on_an_object_store_is_stopped_from_anywhere(tmp_path, monkeypatch):
    # A sign of life each 2 s: only with one does it look for a request.
    monkeypatch.setitem(ENVIRONMENT, VARIABLE, "16")
    with ObjectStore(tmp_path / "log") as store:
        for name, value in CREDENTIALS.items():
            monkeypatch.setitem(ENVIRONMENT, name, value)
            monkeypatch.setenv(name, value)
        store.make_bucket("studies")
        storage = store.uri("studies")
        folder = StudyFolder(child(storage, "asked"))
        process = start_run(write(tmp_path, ENDLESS), storage)
        try:
            training(process)
            done = study("stop", "asked", "--storage", storage, "--timeout", 120)
            assert done.returncode == 0, done.stderr
        finally:
            code, out, err = ended(process, 60)
        assert code == 130, out + err
        (run,) = folder.runs()
        assert run["reason"].startswith("stopped as ")
        assert not [name for name in folder.names("lock") if name.endswith(".stop")]
        assert any(path.endswith(".pt") for path in folder.walk("trials"))


@pytest.mark.long
def test_a_study_from_python_is_stopped_resumed_and_read(tmp_path, monkeypatch):
    monkeypatch.delenv("SHARPNESS_STUDY_DATA", raising=False)
    studies = connect(storage=str(tmp_path))
    content = {**CONTENT, "name": "python", "recipe": {**CONTENT["recipe"], "epochs": 700}}
    run = studies.submit(content, cpus=2)
    try:
        wait_for(lambda: run._process.poll() is not None or trial_workers(run._process.pid), seconds=180)
        twice = studies.submit(content)
        assert twice.already == "running"
        with pytest.raises(TimeoutError):
            twice.wait(timeout=0.1)
        assert run.stop(timeout=120) == "given_back"
        assert run.wait(timeout=60) == twice.wait(timeout=60) == "interrupted", run.logs()
        assert set(run.results()["status"]) != {"complete"}
        again = run.resume(cpus=2)
        assert again.wait(timeout=240) == "complete", again.logs()
    finally:
        for handle in (run, locals().get("again")):
            if handle is not None:
                end(handle._process, descendants(handle._process.pid))
    assert again.status().replicates == {"planned": 3, "complete": 3}
    file = tmp_path / "python.yaml"
    file.write_text(json.dumps(content))
    Tables.by_a_plain_loop(file, tmp_path / "nowhere").assert_found_in(again.folder)
    pd.testing.assert_frame_equal(again.results(), open_study(str(tmp_path / "python")).replicates())
    assert studies.open("python").wait() == "complete"


# A job of a cluster


@pytest.fixture(scope="module")
def cluster():
    with ServiceCluster(2) as running:
        yield running


@pytest.fixture
def client(cluster, monkeypatch):
    """This process and the commands that it starts have the cluster's token."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    for name in [name for name in ENVIRONMENT if name.startswith("RAY_")]:
        monkeypatch.delitem(ENVIRONMENT, name)
    for name, value in cluster.client.items():
        if name.startswith("RAY_"):
            monkeypatch.setenv(name, value)
            monkeypatch.setitem(ENVIRONMENT, name, value)
    return cluster


@pytest.mark.long
def test_a_job_is_watched_stopped_and_resumed_through_its_folder(client, tmp_path):
    file, named = write(tmp_path, ENDLESS), ("asked", "--storage", tmp_path)
    done = study("submit", file, "--address", client.url, "--storage", tmp_path, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    watching = subprocess.Popen(
        [sys.executable, "-m", "study", "watch", *map(str, named), "--wait", "180", "--every", "1", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    folder = StudyFolder(str(tmp_path / "asked"))
    wait_for(lambda: client.head.workers() and len(folder.rows("history", ["epoch"])), seconds=240)
    stopped = study("stop", *named, "--timeout", 120)
    assert stopped.returncode == 0, stopped.stderr
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["end"] == "interrupted"
    first = kept(folder.uri)
    assert first
    resumed = study("resume", *named, "--address", client.url, timeout=500)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    wait_for(lambda: client.head.workers(), seconds=240)
    refused = study("resume", *named, "--no-report")
    assert refused.returncode == 2
    assert "is being run by" in refused.stderr
    now = study("stop", *named, "--now", "--address", client.url)
    assert now.returncode == 0, now.stderr
    assert re.match(r"stopped job asked-\S+: ", now.stdout)
    wait_for(lambda: not client.head.workers(), seconds=120)
    assert all(max(kept(folder.uri)[trial]) >= max(epochs) for trial, epochs in first.items())
    none = study("stop", *named, "--now", "--address", client.url)
    assert none.returncode == 2
    assert "no job at" in none.stderr


@pytest.mark.long
def test_a_job_from_python_is_submitted_waited_for_and_read(client, tmp_path):
    studies = connect(client.url, storage=str(tmp_path))
    content = {**CONTENT, "name": "python", "recipe": {**CONTENT["recipe"], "epochs": 3}}
    run = studies.submit(content)
    assert run.job.startswith("python-")
    assert run.wait(timeout=400) == "complete", run.logs()
    assert any("3 complete" in line for line in run.logs())
    assert list(run.results()["status"]) == ["complete"] * 3
    file = tmp_path / "python.yaml"
    file.write_text(json.dumps(content))
    Tables.by_a_plain_loop(file, tmp_path / "nowhere").assert_found_in(run.folder)
    assert studies.submit(content).already == "finished"
    endless = studies.submit({**content, "name": "endless", "recipe": {**CONTENT["recipe"], "epochs": ENDLESS}})
    wait_for(lambda: client.head.workers(), seconds=240)
    assert studies.open("endless").job == endless.job
    assert endless.stop(timeout=200) == "given_back"
    assert endless.wait(timeout=60) == "interrupted"
