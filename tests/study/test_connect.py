"""`from study import connect` is light, refuses at the door, and says how each run has ended."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import study
from study import connect, connection
from study.connection import Connection, Handle, RunError
from study.lock import hold, holder
from study.plan import make_plan
from study.preflight import ClusterError
from study.service import client
from study.service.client import Submitted
from study.service.jobs import Job
from study.spec import Study, StudyError
from study.store import StoreError, StudyFolder

CONTENT = {
    "name": "asked",
    "question": "q",
    "recipe": {"dataset": "synthetic", "model": "mlp", "epochs": 2, "batch_size": 32, "optimiser": "sam"},
    "grid": {"gamma": [0.05, 0.1]},
}


def frozen(storage, name="asked"):
    folder = StudyFolder(f"{storage}/{name}")
    made = Study.of({**CONTENT, "name": name})
    folder.save_study(made.model_dump(mode="json"), "", make_plan(made, folder).rows())
    return folder


@pytest.fixture
def processes(monkeypatch):
    """What would be started on this machine: its command, and a process that ends as the test says."""
    started = []

    def popen(command, **more):
        assert more["start_new_session"], "it outlives the notebook"
        process = SimpleNamespace(command=command, pid=1234, returncode=None, log=more["stdout"].name)
        process.poll = lambda: process.returncode
        started.append(process)
        return process

    monkeypatch.setattr(connection.subprocess, "Popen", popen)
    monkeypatch.setattr(connection, "EVERY", 0.01)
    return started


# Light


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, study; from study import connect; import study.connection\n"
        "assert study.connect is connect and callable(connect)\n"
        "connect(storage='x')\n"
        "heavy = {'ray', 'torch', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert study.__all__ == ["connect"]


# This machine


def test_what_is_submitted_is_what_the_command_would_run(processes, tmp_path):
    content = {**CONTENT, "grid": {"gamma": np.array([1e-5, 0.05])}, "seeds": [np.int64(0), np.int64(1)]}
    run = connect(storage=str(tmp_path / "it's here")).submit(content, settings=["epochs=3"], cpus=2)
    (process,) = processes
    assert process.command[:4] == [sys.executable, "-m", "study", "run"]
    file = process.command[4]
    rest = process.command[5:]
    assert rest == ["--set=epochs=3", "--storage", str(tmp_path / "it's here"), "--cpus", "2", "--no-report"]
    loaded = Study.load(file, ["epochs=3"])
    assert loaded.grid == {"gamma": [1e-5, 0.05]}
    assert loaded.seeds == (0, 1)
    assert loaded.recipe["epochs"] == 3
    assert run.folder == str(tmp_path / "it's here" / "asked")
    assert (run.job, run.already) == (None, None)


def test_a_file_is_run_as_it_lies_and_keeps_its_own_storage(processes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(json.dumps({**CONTENT, "storage": "own"}))
    run = connect().submit(tmp_path / "s.yaml")
    assert processes[0].command[4:] == [str(tmp_path / "s.yaml"), "--no-report"]
    assert run.folder == str(tmp_path / "own" / "asked")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**CONTENT, "grid": {"gama": [1]}}, "gama"),
        ({**CONTENT, "name": "../up"}, "must be letters"),
        ({}, "name: is missing"),
    ],
)
def test_a_wrong_study_is_refused_and_nothing_is_started(processes, tmp_path, content, said):
    with pytest.raises(StudyError, match=said):
        connect(storage=str(tmp_path)).submit(content)
    with pytest.raises(StudyError, match="no such file"):
        connect(storage=str(tmp_path)).submit(tmp_path / "none.yaml")
    assert processes == []
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_is_run_already_is_not_started_again(processes, tmp_path):
    folder = frozen(tmp_path)
    with hold(folder, "r1"):
        for run in (connect(storage=str(tmp_path)).submit(CONTENT), connect(storage=str(tmp_path)).resume("asked")):
            assert run.already == "running"
            with pytest.raises(TimeoutError, match=r"still running after 0\.05 s"):
                run.wait(0.05)
    assert processes == []


@pytest.mark.parametrize(("code", "kind"), [(0, "complete"), (1, "failed"), (3, "budget"), (130, "interrupted")])
def test_waiting_tells_how_it_ended(processes, tmp_path, code, kind):
    run = connect(storage=str(tmp_path)).submit(CONTENT)
    with pytest.raises(TimeoutError):
        run.wait(0.05)
    processes[0].returncode = code
    assert run.wait() == kind


def test_a_run_that_was_refused_says_why(processes, tmp_path):
    run = connect(storage=str(tmp_path)).submit(CONTENT)
    processes[0].returncode = 2
    run.log.write_text("asked: q\nstudy: the disk is full\nstudy: and the moon too\n")
    with pytest.raises(RunError, match=r"^the disk is full\nand the moon too$"):
        run.wait()
    run.log.write_text("Killed\n")
    processes[0].returncode = -9
    with pytest.raises(RunError, match=r"ended with code -9; its log is .*run\.log"):
        run.wait()
    assert run.logs() == ["Killed"]


def test_an_opened_study_is_read_and_waited_for_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "EVERY", 0.01)
    folder = frozen(tmp_path)
    run = connect(storage=str(tmp_path)).open("asked")
    assert list(run.results()["status"]) == ["missing"] * 2
    assert run.status().replicates == {"planned": 2, "missing": 2}
    assert run.study().spec["name"] == "asked"
    assert run.stop() == "given_back"
    with pytest.raises(RunError, match="has not been run"):
        run.wait()
    over = {"started": "2026-11-25T07:00:00.000+00:00", "ended": "2026-11-25T07:01:00.000+00:00"}
    folder.save_run("r1", {"run": "r1", **over, "interrupted": True, "reason": "stopped by its budget (x)"})
    assert run.wait() == "budget"
    folder.save_run("r2", {"run": "r2", **over, "interrupted": True, "reason": "the disk is full"})
    with pytest.raises(RunError, match="the disk is full"):
        run.wait()
    with pytest.raises(StoreError, match="no study in"):
        connect(storage=str(tmp_path)).open("other")
    with pytest.raises(StoreError, match="write the study's name"):
        connect(storage=str(tmp_path)).open("../asked")


def test_a_run_that_has_not_begun_is_asked_as_soon_as_it_has(processes, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNESS_STUDY_LOCK_TTL", "0.8")
    run = connect(storage=str(tmp_path)).submit(CONTENT)
    with pytest.raises(TimeoutError, match="has not begun"):
        run.stop(timeout=0.05)
    folder = frozen(tmp_path)
    with hold(folder, "r1") as lease:
        with pytest.raises(TimeoutError, match="the request to stop stands"):
            run.stop(timeout=0.5)
        assert lease.asked is not None
    processes[0].returncode = 130
    assert run.stop() == "given_back"
    assert holder(folder) is None


# A cluster: its client is another one's to test; what is done with its answers is tested here


class FakeCluster:
    """The interface of `study.service.client.Cluster`, with a job whose state the test sets."""

    def __init__(self, address):
        if "nowhere" in address:
            raise ClusterError(f"no cluster at {address}: nobody answers")
        self.address, self.did, self.state, self.message, self.already = address, [], "running", "", None
        FakeCluster.last = self

    def submit(self, file, *, storage, settings=(), restarts=0):
        made = Study.load(file, settings)
        self.did.append(("submit", made.name, storage, tuple(settings), restarts))
        return Submitted(
            None if self.already == "finished" else "j1", made.name, f"{storage}/{made.name}", self.already
        )

    def resume(self, folder, *, restarts=0):
        self.did.append(("resume", folder, restarts))
        return Submitted("j2", "asked", folder, None)

    def jobs(self):
        return [Job("j1", "asked", self.folder, self.state, "2026-11-25T07:00:00+00:00", None, self.message)]

    def job(self, name):
        return Job(name, "asked", "", self.state, "2026-11-25T07:00:00+00:00", None, self.message)

    def logs(self, job, follow=False):
        yield from (f"{job}: a", "b")

    def stop_now(self, job):
        self.did.append(("stop_now", job))
        self.state = "stopped"


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setattr(client, "Cluster", FakeCluster)
    monkeypatch.setattr(connection, "EVERY", 0.01)
    return "http://127.0.0.1:8265"


def test_the_fake_has_the_signatures_of_the_real_one():
    import inspect

    for name in ("submit", "resume", "jobs", "job", "logs", "stop_now"):
        real = inspect.signature(getattr(client.Cluster, name)).parameters
        for parameter in inspect.signature(getattr(FakeCluster, name)).parameters:
            assert parameter in real, (name, parameter)


def test_a_cluster_that_is_not_there_is_said_at_once(cluster):
    with pytest.raises(ClusterError, match="nobody answers"):
        connect("http://nowhere")


def test_a_job_is_submitted_followed_and_read(cluster, tmp_path):
    studies = connect(cluster, storage=str(tmp_path))
    run = studies.submit(CONTENT, settings=["epochs=1"], restarts=2)
    assert FakeCluster.last.did == [("submit", "asked", str(tmp_path), ("epochs=1",), 2)]
    assert (run.job, run.folder, run.already) == ("j1", str(tmp_path / "asked"), None)
    assert run.logs() == ["j1: a", "b"]
    with pytest.raises(TimeoutError):
        run.wait(0.05)
    FakeCluster.last.state = "succeeded"
    assert run.wait() == "complete"
    assert run.resume(restarts=1).job == "j2"
    assert FakeCluster.last.did[-1] == ("resume", str(tmp_path / "asked"), 1)


def test_how_a_job_failed_is_told_by_the_folder_or_by_the_job(cluster, tmp_path):
    run = connect(cluster, storage=str(tmp_path)).submit(CONTENT)
    FakeCluster.last.state, FakeCluster.last.message = "failed", "its log says why"
    with pytest.raises(RunError, match="job j1 failed: its log says why"):
        run.wait()
    folder = frozen(tmp_path)
    before = {"started": "2026-11-25T06:00:00.000+00:00", "ended": "2026-11-25T06:01:00.000+00:00"}
    folder.save_run("r0", {"run": "r0", **before, "interrupted": False, "trials": {"complete": 1}})
    with pytest.raises(RunError, match="job j1 failed"):
        run.wait()  # that was another run's end
    later = {"started": "2026-11-25T07:00:05.000+00:00", "ended": "2026-11-25T07:01:00.000+00:00"}
    folder.save_run("r1", {"run": "r1", **later, "interrupted": False, "trials": {"complete": 1, "failed": 1}})
    assert run.wait() == "failed"


def test_a_job_that_is_only_just_leaving_is_not_taken_for_a_running_one(cluster, tmp_path):
    studies = connect(cluster, storage=str(tmp_path))
    fake, folder, tries = FakeCluster.last, frozen(tmp_path), []

    def resume(uri, *, restarts=0):
        tries.append(uri)
        live = fake.state == "running"
        if len(tries) == 3:
            fake.state = "failed"
        return Submitted("j1" if live else "j2", "asked", uri, "running" if live else None)

    fake.resume = resume
    assert studies.resume("asked").already == "running", "its run has not begun yet"
    started = "2026-11-25T07:00:05.000+00:00"
    folder.save_run("r1", {"run": "r1", "started": started, "ended": None})
    with hold(folder, "r1"):
        assert studies.resume("asked").already == "running"
    folder.save_run("r1", {"run": "r1", "started": started, "ended": "2026-11-25T07:01:00.000+00:00"})
    run = studies.resume("asked")
    assert (run.job, run.already, len(tries)) == ("j2", None, 4)


def test_a_job_that_waits_for_its_turn_is_ended_by_the_cluster(cluster, tmp_path):
    run = connect(cluster, storage=str(tmp_path)).submit(CONTENT)
    FakeCluster.last.state = "pending"
    assert run.stop() == "given_back"
    assert FakeCluster.last.did[-1] == ("stop_now", "j1")


def test_a_job_that_does_not_end_is_said(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "LEAVING", 0.05)
    run = connect(cluster, storage=str(tmp_path)).submit(CONTENT)
    FakeCluster.last.stop_now = lambda job: None
    with pytest.raises(ClusterError, match="still there after"):
        run.stop(now=True)


def test_stop_now_ends_the_job(cluster, tmp_path):
    run = connect(cluster, storage=str(tmp_path)).submit(CONTENT)
    assert run.stop(now=True) == "given_back"
    assert FakeCluster.last.did[-1] == ("stop_now", "j1")


def test_a_study_whose_folder_only_the_cluster_sees_is_resumed(cluster):
    run = connect(cluster).resume("/only/there/asked")
    assert FakeCluster.last.did == [("resume", "/only/there/asked", 0)]
    assert run.folder == "/only/there/asked"
    with pytest.raises(StoreError, match="holds no study"):
        run.results()


def test_a_finished_study_is_neither_run_nor_waited_for(cluster, tmp_path):
    studies = connect(cluster, storage=str(tmp_path))
    FakeCluster.last.already = "finished"
    run = studies.submit(CONTENT)
    assert (run.job, run.already) == (None, "finished")
    assert run.wait(5) == "complete"


def test_an_opened_study_finds_its_living_job(cluster, tmp_path):
    frozen(tmp_path)
    studies = connect(cluster, storage=str(tmp_path))
    FakeCluster.last.folder = str(tmp_path / "asked")
    assert studies.open("asked").job == "j1"
    FakeCluster.last.state = "stopped"
    assert studies.open("asked").job is None
    assert isinstance(studies, Connection)
    assert isinstance(studies.open("asked"), Handle)
