"""Workers, nodes and whole clusters that end while a study trains: what is retried, what counts, what is said."""

import json
import os
import signal
import subprocess
import sys

import processes
import psutil
import pytest
from cluster import ACCESS, Cluster, living, title
from processes import descendants, end, start_study, study, trial_workers, wait_for
from undisturbed import Tables

from study.plan import make_plan
from study.reader import open_study
from study.spec import Study
from study.store import StudyFolder

#: Minutes on two busy cores: each starts clusters and kills them.
pytestmark = pytest.mark.long

STUDY = """\
name: nodes
question: Do lost nodes matter?
recipe: {dataset: synthetic, model: mlp, batch_size: 16, epochs: 24, lr: 0.05, optimiser: fsam}
grid: {gamma: [0.05, 0.5]}
seeds: [0, 1]
checkpoints: {every: 1}
"""


def write(folder, extra=""):
    file = folder / "nodes.yaml"
    file.write_text(STUDY + extra)
    return file


def newest(folder, trial):
    """The epoch of a trial's newest checkpoint; 0 before there is one."""
    names = StudyFolder(str(folder)).names("trials", trial, "checkpoints")
    return max((int(name.split(".")[0]) for name in names if name.split(".")[0].isdigit()), default=0)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """What the study finds if nothing disturbs it."""
    folder = tmp_path_factory.mktemp("calm")
    return Tables.by_a_plain_loop(write(folder), folder / "nowhere")


def test_lost_nodes_change_nothing_and_are_no_failures(calm, tmp_path, monkeypatch):
    for key, value in ACCESS.items():
        monkeypatch.setitem(processes.ENVIRONMENT, key, value)
    file, folder = write(tmp_path, "max_failures: 0\n"), tmp_path / "nodes"
    with Cluster(0, 1, 1) as cluster:
        _, first, second = cluster.nodes
        process = start_study("run", file, "--storage", tmp_path, "--no-report", "--address", cluster.address)
        try:
            trials = [trial.id for trial in make_plan(Study.load(file), StudyFolder(str(folder))).todo]
            wait_for(lambda: min(newest(folder, trial) for trial in trials) >= 2)
            family = first.kill_raylet()
            reached = max(newest(folder, trial) for trial in trials)
            wait_for(lambda: max(newest(folder, trial) for trial in trials) > reached)
            second.remove()
            assert process.poll() is None
            cluster.add(1)
            out, _ = process.communicate(timeout=120)
            assert process.returncode == 0, out
        finally:
            end(process, descendants(process.pid))
        assert not any(map(living, family)), "the workers of a dead raylet end by themselves"
    calm.assert_found_in(str(folder))
    (run,) = open_study(str(folder)).runs()
    assert run["failures"]["lost"] >= 2
    assert run["failures"]["retried"] == run["failures"]["lost"]
    assert sum(run["failures"][kind] for kind in ("died", "error", "memory", "given_up")) == 0


@pytest.mark.parametrize("kills", [2, 3])
def test_a_worker_that_dies_is_tried_again_as_often_as_the_study_says(calm, tmp_path, kills):
    file, folder = write(tmp_path, "max_failures: 2\n"), tmp_path / "nodes"
    victim = make_plan(Study.load(file), StudyFolder(str(folder))).todo[0].id
    process = start_study("run", file, "--storage", tmp_path, "--cpus", 1, "--no-report")
    try:
        for _ in range(kills):
            before = newest(folder, victim)
            # With one CPU whoever trains is the one whose checkpoints come.
            wait_for(lambda before=before: newest(folder, victim) > before)
            (worker,) = trial_workers(process.pid)
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda worker=worker: not living(worker))
        out, _ = process.communicate(timeout=120)
    finally:
        end(process, descendants(process.pid))
    (run,) = open_study(str(folder)).runs()
    assert run["failures"]["died"] == kills
    assert run["failures"]["lost"] == 0
    if kills == 2:
        assert process.returncode == 0, out
        calm.assert_found_in(str(folder))
        return
    assert process.returncode == 1, out
    assert "1 complete, 1 failed" in out or "1 failed, 1 complete" in out
    rows = open_study(str(folder)).replicates()
    assert dict(rows.groupby("status")["seed"].count()) == {"complete": 2, "failed": 2}
    (reason,) = set(rows[rows["status"] == "failed"]["reason"])
    assert reason.startswith("the worker process died (killed by a signal")
    assert "after epoch" in reason
    assert reason.endswith("(tried 3 times)")
    assert reason in out
    again = study("run", file, "--storage", tmp_path, "--cpus", 2, "--no-report")
    assert again.returncode == 0, again.stderr
    calm.assert_found_in(str(folder))


@pytest.mark.parametrize(("program", "what"), [("raylet/raylet", "raylet"), ("gcs/gcs_server", "GCS")])
def test_a_cluster_that_is_gone_ends_the_command_in_one_line_and_it_goes_on_later(tmp_path, program, what):
    file, folder = write(tmp_path), tmp_path / "nodes"
    # Without an end: the workers go on for a while when their head is gone.
    command = ("run", file, "--storage", tmp_path, "--cpus", 1, "--no-report", "--set", "epochs=4000")
    trial = make_plan(Study.load(file, ["epochs=4000"]), StudyFolder(str(folder))).todo[0].id
    process = start_study(*command)
    try:
        wait_for(lambda: newest(folder, trial) >= 2)
        family = descendants(process.pid)
        (victim,) = [pid for pid in family if program in title(pid).split("\0")[0]]
        os.kill(victim, signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 2, out
        said = [line for line in out.splitlines() if line.startswith("study:")]
        assert len(said) == 1, out
        assert said[0].startswith("study: the Ray cluster is gone: ")
        assert what in said[0]
        assert "the same command goes on" in said[0]
        assert "Traceback" not in out
        # (Two agents of Ray's look for a dead head for a minute more, and hold nothing.)
        wait_for(lambda: not any(living(pid) and "Trainable" in title(pid) for pid in family))
    finally:
        end(process, family)
    (run,) = open_study(str(folder)).runs()
    assert "cluster is gone" in run["reason"]
    reached = newest(folder, trial)
    again = start_study(*command)
    try:
        wait_for(lambda: newest(folder, trial) > reached)
        again.send_signal(signal.SIGTERM)
        again.communicate(timeout=90)
        assert again.returncode == 130
    finally:
        end(again, descendants(again.pid))
    epochs = open_study(str(folder)).history().query("trial == @trial")["epoch"]
    assert sorted(epochs) == sorted(2 * list(range(1, epochs.max() + 1))), "no epoch twice, none missing, of two seeds"


#: Tune under `study.controller`, in a process of its own: what each trial does is in its name.
ODD_TRIALS = """
import json, logging, os, sys, tempfile, time
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"], os.environ["RAY_AIR_NEW_OUTPUT"] = "1", "0"
import ray
from ray import tune
from study.budget import Meter, Usage
from study.controller import counted
from study.failures import Failures
from study.settings import Budget

folder = sys.argv[1]

class Odd(tune.Trainable):
    def setup(self, config):
        self.epoch, self.does = 0, config["trial"]

    def reset_config(self, config):
        self.setup(config)
        if self.does == "reset" and not os.path.exists(f"{folder}/reset"):
            open(f"{folder}/reset", "w").close()
            raise ValueError("not this time")
        if self.does == "reset and die" and not os.path.exists(f"{folder}/died"):
            open(f"{folder}/died", "w").close()
            os._exit(3)
        return True

    def step(self):
        self.epoch += 1
        if self.does == "hog":
            self.hoard = []
            while True:
                self.hoard.append(bytes(range(256)) * 400_000)
                time.sleep(0.02)
        return {"epoch": self.epoch, "done": self.epoch == 2}

ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
failures = Failures(1)
names = json.loads(sys.argv[2])
meter = Meter({"cpu": 1}, Usage(), Budget(), None)
with tempfile.TemporaryDirectory() as scratch, counted(failures, meter):
    results = tune.Tuner(
        tune.with_resources(Odd, {"cpu": 1}),
        param_space={"trial": tune.grid_search(names)},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=scratch, verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)
        ),
    ).fit()
said = {
    "ended": [result.config["trial"] for result in results if result.metrics and result.metrics.get("done")],
    "counts": failures.counts(),
    "reasons": {name: failures.reason(name) for name in names},
}
with open(f"{folder}/said.json", "w") as file:
    json.dump(said, file)
"""


def odd_trials(folder, *names, **environment):
    done = subprocess.run(
        [sys.executable, "-c", ODD_TRIALS, str(folder), json.dumps(names)],
        capture_output=True,
        text=True,
        timeout=150,
        env={**processes.ENVIRONMENT, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "said.json").read_text())


def test_what_fails_while_a_warm_worker_takes_its_next_trial_is_tried_again(tmp_path):
    """Ray Tune left to itself gives up on both."""
    said = odd_trials(tmp_path, "plain", "reset", "also plain", "reset and die")
    assert sorted(said["ended"]) == ["also plain", "plain", "reset", "reset and die"]
    assert said["counts"] == {"lost": 0, "memory": 0, "died": 1, "error": 1, "retried": 2, "given_up": 0}
    assert said["reasons"]["reset"] == "ValueError: not this time"


def test_a_worker_that_takes_the_nodes_memory_ends_alone_and_says_so(tmp_path):
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + 3 * 2**30) / memory.total
    said = odd_trials(tmp_path, "plain", "hog", "also plain",
                      RAY_memory_usage_threshold=f"{threshold:.3f}", RAY_memory_monitor_refresh_ms="100")  # fmt: skip
    assert sorted(said["ended"]) == ["also plain", "plain"]
    assert said["counts"]["memory"] == 2
    assert "ran out of memory" in said["reasons"]["hog"]
    assert "by this worker)" in said["reasons"]["hog"]
