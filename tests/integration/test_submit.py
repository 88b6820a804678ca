"""Studies submitted to a real cluster with its dashboard, its Jobs and a token: two nodes on this machine.

The second node is in a mount namespace of its own, where the system lets us make one: what is below PRIVATE is another
folder there, as on a machine that does not mount it.
"""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from cluster import title
from PIL import Image
from processes import wait_for
from service_cluster import TOKEN, ServiceCluster
from undisturbed import Tables

from study.store import StudyFolder

SMALL = """\
name: small
question: Does it run as a job?   # as it was written
recipe: {dataset: synthetic, model: mlp, batch_size: 16, epochs: 3, lr: 0.05, optimiser: fsam}
grid: {gamma: [0.05, 0.5]}
seeds: [0, 1]
"""

#: Long enough for its driver to be killed in the middle of it.
LONGER = SMALL.replace("small", "longer").replace("epochs: 3", "epochs: 60") + "checkpoints: {every: 1}\n"

LEAVES = """\
name: leaves
question: Is it there on every node?
recipe:
  dataset: image_folder
  folder: leaves
  image_side: 8
  validation_size: 4
  normalisation: half
  model: resnet20
  epochs: 1
  optimiser: sam
grid: {gamma: [0.05]}
seeds: 8
"""


def namespaces():
    """Whether a process may have mounts of its own here."""
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    for name in ("private", "shared", "nowhere"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("oak", "elm"):
            (folder / "private" / "sets" / "leaves" / split / label).mkdir(parents=True)
            for i in range(8):
                image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
                image.save(folder / "private" / "sets" / "leaves" / split / label / f"{i}.png")
    for name, text in (("small", SMALL), ("longer", LONGER), ("leaves", LEAVES)):
        (folder / f"{name}.yaml").write_text(text)
    (folder / "not_uploaded.txt").write_text("beside the study file")
    return folder


@pytest.fixture(scope="module")
def cluster(place):
    own = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {place / "private"} && exec "$@"', "sh")
    with ServiceCluster(2, 1, before={1: own} if namespaces() else {}) as started:
        yield started


def study(cluster, *arguments, timeout=300, **environment):
    """`study ARGUMENTS` of somebody who has the token."""
    done = subprocess.run(
        [sys.executable, "-m", "study", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**cluster.client, **environment},
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done


def jobs(cluster):
    return json.loads(study(cluster, "list", "--address", cluster.url, "--json").stdout)["jobs"]


def drivers(cluster):
    """The `study run` processes on the head."""
    words = {pid: title(pid).split("\0") for pid in cluster.head.processes()}
    return [pid for pid, line in words.items() if line[1:3] == ["-m", "study"] and line[3] in ("run", "resume")]


def test_a_study_runs_as_a_job_and_finds_what_a_plain_loop_finds(cluster, place):
    file, storage = place / "small.yaml", place / "shared"
    done = study(cluster, "submit", file, "--address", cluster.url, "--storage", storage)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["node", "python", "ray", "torch", "cpu", "gpu", "storage", "free", "data"]
    assert len([line for line in lines if line.startswith("192.") or " ok " in line]) == 2
    (job,) = jobs(cluster)
    folder = str(storage / "small")
    assert (job["study"], job["folder"]) == ("small", folder)
    assert f"job {job['job']} runs small in {folder}" in lines
    assert f"  study watch {folder} --wait 300" in lines

    again = study(cluster, "submit", file, "--address", cluster.url, "--storage", storage)
    assert again.returncode == 0
    assert again.stdout.startswith(f"{folder} is being run by job {job['job']}\n")

    followed = study(cluster, "logs", "small", "--address", cluster.url, "--follow")
    assert followed.stdout.splitlines()[-1] == f"job {job['job']} succeeded: done"
    assert "small: Does it run as a job?" in followed.stdout
    Tables.by_a_plain_loop(file, place / "nowhere").assert_found_in(folder)
    # As it was written, and run on the cluster's own address.
    assert StudyFolder(folder).read("study.yaml").decode() == SMALL
    command = StudyFolder(folder).runs()[0]["command"]
    assert command[command.index("--address") + 1].endswith(cluster.address.partition(":")[2])

    finished = study(cluster, "submit", file, "--address", cluster.url, "--storage", storage, "--json")
    answer = json.loads(finished.stdout)
    assert (finished.returncode, answer["already"], answer["job"]) == (0, "finished", None)
    assert answer["message"] == f"nothing is missing in {folder}: all 4 replicates are done"
    listed = study(cluster, "list", "--address", cluster.url, "--storage", storage).stdout
    assert "4 complete of 4" in listed
    assert len(jobs(cluster)) == 1  # the looks are no jobs of a study, and the finished one has not run again


def test_only_the_study_file_is_uploaded_and_no_token_is_on_the_job(cluster, place):
    code = (
        "import json; from ray.job_submission import JobSubmissionClient\n"
        f"print(json.dumps([d.model_dump(mode='json') for d in JobSubmissionClient({cluster.url!r}).list_jobs()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=cluster.client, capture_output=True, text=True, check=True)
    everything = done.stdout.splitlines()[-1]
    assert TOKEN not in everything
    details = [d for d in json.loads(everything) if (d["metadata"] or {}).get("study") == "small"]
    assert {"study", "folder", "storage", "file_sha256", "submitted_by"} <= details[0]["metadata"].keys()
    package = details[0]["runtime_env"]["working_dir"].rpartition("/")[2].removesuffix(".zip")
    unpacked = list(os.scandir(next(
        root for root, folders, _ in os.walk(cluster.folder) if os.path.basename(root) == package
    )))  # fmt: skip
    assert [entry.name for entry in unpacked] == ["study.yaml"]


def test_whoever_is_not_let_in_is_told_why_at_once(cluster, place):
    def refused(**environment):
        done = study(cluster, "submit", place / "small.yaml", "--address", cluster.url, "--storage", place / "shared",
                     **environment)  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        return line

    assert "refuses this token" in refused(RAY_AUTH_TOKEN="f" * 64)
    assert f"the cluster at {cluster.url} wants a token" in refused(RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN_PATH="")
    assert "no token is found" in refused(RAY_AUTH_TOKEN_PATH="", HOME=str(place))
    # The file is judged before the cluster is asked.
    done = study(cluster, "submit", place / "small.yaml", "--set", "gama=1", "--address", "http://127.0.0.1:1")
    assert "gama" in done.stderr


def test_a_cluster_that_is_not_ready_says_what_is_wrong_with_which_node(cluster, place):
    if not namespaces():
        pytest.skip("needs mount namespaces (unshare --mount): root, or a system that allows them")
    private = place / "private"
    done = study(cluster, "submit", place / "leaves.yaml", "--address", cluster.url, "--storage", private / "studies",
                 "--data", private / "sets", "--set", "resources={gpu: 8}")  # fmt: skip
    assert done.returncode == 2
    first, second = (line.split(")")[0] + ")" for line in done.stdout.splitlines()[1:3])
    problems = [line.removeprefix("study: ") for line in done.stderr.splitlines()]
    for here, there in ((first, second), (second, first)):
        assert any(
            p.startswith(
                f"{here}: does not see in {private}/studies what {there} wrote (is not there): it is not shared"
            )
            for p in problems
        )
    assert any(p.startswith(f"{second}: data set leaves: ") and str(private / "sets") in p for p in problems)
    assert "resources: a trial asks for cpu 8, gpu 8; the largest node of this cluster has cpu 2, gpu 0" in problems
    assert len(problems) == 4
    # Nothing was submitted, and nothing is left of the look.
    assert not (private / "studies").exists()
    assert "leaves" not in {job["study"] for job in jobs(cluster)}


@pytest.mark.long
def test_a_killed_driver_is_started_again_and_a_job_that_is_gone_is_resumed(cluster, place):
    file, storage = place / "longer.yaml", place / "shared"
    folder = StudyFolder(str(storage / "longer"))
    submitted = study(
        cluster, "submit", file, "--address", cluster.url, "--storage", storage, "--restarts", 1, "--json"
    )
    assert submitted.returncode == 0, submitted.stderr
    job = json.loads(submitted.stdout)["job"]

    def kill_in_the_middle(before):
        """The driver, once a trial has a checkpoint that it had not before."""
        names = wait_for(lambda: checkpoints(folder) - before, every=0.05)
        (driver,) = drivers(cluster)
        os.kill(driver, signal.SIGKILL)
        return driver, before | names

    killed, seen = kill_in_the_middle(set())
    wait_for(lambda: [pid for pid in drivers(cluster) if pid != killed], seconds=60)
    kill_in_the_middle(seen | checkpoints(folder))
    ended = wait_for(
        lambda: next((j for j in jobs(cluster) if j["job"] == job and j["ended"]), None), seconds=60, every=1
    )
    assert (ended["state"], ended["message"]) == (
        "failed",
        "its driver was killed (SIGKILL); what is finished is stored",
    )
    log = study(cluster, "logs", job, "--address", cluster.url).stdout
    assert "the driver was killed by SIGKILL (is its node short of memory?); restart 1 of 1 in 2 s" in log
    assert "the driver was killed by SIGKILL 2 times" in log

    resumed = study(cluster, "resume", storage / "longer", "--address", cluster.url)
    assert resumed.returncode == 0, resumed.stderr
    followed = study(cluster, "logs", "longer", "--address", cluster.url, "--follow")
    assert followed.stdout.splitlines()[-1].endswith("succeeded: done")
    Tables.by_a_plain_loop(file, place / "nowhere").assert_found_in(folder.uri)
    # The frozen study went on, and the file is still as it was written.
    assert folder.read("study.yaml").decode() == LONGER
    assert len(folder.runs()) == 3


def checkpoints(folder):
    return {name for name in folder.walk("trials") if name.endswith(".pt")}
