"""Jobs on clusters that are not as usual: one that grows, one whose job is stopped, one with nodes of another kind."""

import time
from pathlib import Path

import pytest
import yaml
from cluster import living
from processes import wait_for
from service_cluster import ServiceCluster
from test_submit import LONGER, SMALL, checkpoints, drivers, jobs, study
from undisturbed import Tables

from study.lock import holder
from study.store import StudyFolder

#: Each starts a cluster of its own.
pytestmark = pytest.mark.long

#: Ray's own provider for tests: its nodes are processes of this machine, the autoscaler is the real one (version 2).
FAKE_HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
GROWING = {
    "cluster_name": "growing",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "provider": {"type": "external", "module": PROVIDER, "use_node_id_as_ip": True, "head_node_id": FAKE_HEAD,
                 "launch_multiple": True},
    "auth": {"ssh_user": "nobody"},
    "head_node_type": "ray.head.default",  # the provider knows it by this name
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2, "GPU": 1, "object_store_memory": 100_000_000}, "node_config": {},
                   "min_workers": 0, "max_workers": 1},
    },
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
}  # fmt: skip


def write(folder, text):
    file = folder / f"{text.split()[1]}.yaml"
    file.write_text(text)
    return file


def test_a_cluster_that_is_only_its_head_is_asked_for_what_it_may_start(tmp_path):
    config = tmp_path / "growing.yaml"
    config.write_text(yaml.safe_dump(GROWING))
    environment = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD,
    }
    file, storage = write(tmp_path, SMALL), tmp_path / "shared"
    with ServiceCluster(0, head=[f"--autoscaling-config={config}"], **environment) as cluster:
        asked = ("submit", file, "--address", cluster.url, "--storage", storage)
        # More than it may ever start: said at once.
        done = study(cluster, *asked, "--set", "resources={cpu: 3}")
        assert done.returncode == 2
        assert done.stderr == (
            "study: resources: a trial asks for cpu 3, gpu 0.5; the largest node of this cluster has cpu 0, gpu 0, "
            "and its autoscaler starts only worker (at most 1: cpu 2, gpu 1)\n"
        )
        done = study(cluster, *asked, "--set", "resources={gpu: 2, cpu: 2}")
        assert "a trial asks for cpu 2, gpu 2" in done.stderr
        # What it may start is waited for. (That it comes then is Ray's part: this provider's nodes do not.)
        done = study(cluster, *asked)
        assert done.returncode == 0, done.stderr
        assert "nodes that the cluster starts later are not looked at" in done.stdout
        assert len([line for line in done.stdout.splitlines() if " ok " in line]) == 1
        wait_for(lambda: holder(StudyFolder(str(storage / "small"))), seconds=60)
        (job,) = jobs(cluster)
        assert job["state"] == "running"


def test_a_job_that_is_stopped_at_once_is_not_started_again_and_can_be_gone_on_with(tmp_path):
    file, storage = write(tmp_path, LONGER), tmp_path / "shared"
    folder = StudyFolder(str(storage / "longer"))
    with ServiceCluster(2) as cluster:
        done = study(cluster, "submit", file, "--address", cluster.url, "--storage", storage, "--restarts", 5, "--json")
        assert done.returncode == 0, done.stderr
        wait_for(lambda: checkpoints(folder))
        (driver,) = drivers(cluster)
        stopped = study(cluster, "stop", "--now", storage / "longer", "--address", cluster.url)
        assert stopped.returncode == 0, stopped.stderr
        (job,) = wait_for(lambda: [job for job in jobs(cluster) if job["ended"]], every=1)
        assert (job["state"], job["message"]) == ("stopped", "stopped at once; what is finished is stored")
        wait_for(lambda: not living(driver), seconds=30)
        time.sleep(5)
        assert drivers(cluster) == []
        assert holder(folder) is None or holder(folder).state == "gone"
        assert "; restart " not in study(cluster, "logs", job["job"], "--address", cluster.url).stdout

        study(cluster, "resume", storage / "longer", "--address", cluster.url)
        study(cluster, "logs", "longer", "--address", cluster.url, "--follow")
    Tables.by_a_plain_loop(file, tmp_path / "nowhere").assert_found_in(folder.uri)


def test_a_node_without_this_project_or_with_another_commit_of_it_is_named(tmp_path):
    """The second node has no `study` to import, the third one whose code differs in a comment."""
    file, storage = write(tmp_path, SMALL), tmp_path / "shared"
    none, other = tmp_path / "none", tmp_path / "other"
    (none / "study").mkdir(parents=True)
    (none / "study" / "__init__.py").write_text("raise ImportError('no study here')\n")
    root = Path(__file__).parents[2]
    for package in ("study", "trainables", "analysis"):
        for source in (root / package).rglob("*.py"):
            target = other / source.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    with (other / "trainables" / "schedule.py").open("a") as schedule:
        schedule.write("# mended here only\n")
    before = {i + 1: ("env", f"PYTHONPATH={path}") for i, path in enumerate((none, other))}
    with ServiceCluster(1, 1, 1, before=before) as cluster:
        done = study(cluster, "submit", file, "--address", cluster.url, "--storage", storage)
        assert jobs(cluster) == []
    assert done.returncode == 2
    problems = done.stderr.splitlines()
    assert len(problems) == 2
    assert [p for p in problems if "sharpness-study is not installed there (no study here)" in p]
    assert [p for p in problems if "has sharpness-study 0.1.0+" in p and "install the same commit on both" in p]
    assert not storage.exists()
