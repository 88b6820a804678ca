"""A cluster by `ray up deploy/onprem.yaml` on hosts of its own, a study on it, and a host that is cut off meanwhile."""

import json
import os
import re

import hosts as test_hosts
import pytest
from launched import Launcher
from processes import wait_for
from undisturbed import Tables

STUDY = """
name: cut_off
question: Does a study end as it should when a host goes?
recipe: {dataset: digits, model: digits_cnn, train_size: 200, epochs: 120, batch_size: 32, lr: 0.05}
arms: {sam: {optimiser: sam}}
grid: {gamma: [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]}
seeds: [0, 1]
checkpoints: {every: 5}
"""

no_hosts = test_hosts.why_not()
pytestmark = pytest.mark.skipif(bool(no_hosts), reason=no_hosts)


def trains(host):
    return [title for title in host.titles() if title.startswith("ray::ResourceTrainable.train")]


def training_host(workers, study):
    """The first host that trains once something of `study` is stored; fails at once where that cannot come any more."""
    assert not ended(study), "the study ended before any host but the head trained"
    return list((study / "trials").glob("*/*")) and next(filter(trains, workers), None)


def run_record(folder):
    (record,) = (folder / "runs").glob("*.json")
    return json.loads(record.read_text())


def test_a_study_ends_as_a_plain_loop_though_one_of_the_hosts_that_ray_up_started_is_cut_off(tmp_path_factory):
    # Short: ssh and Ray have sockets in it.
    folder = tmp_path_factory.mktemp("up")
    shared, file = folder / "shared", folder / "cut_off.yaml"
    shared.mkdir()
    file.write_text(STUDY)
    with test_hosts.Hosts(["head", "worker1", "worker2"], shared) as hosts:
        head, *workers = hosts.hosts
        launcher = Launcher(folder / "launcher", hosts, head, workers)
        said = [launcher.ray("up", "--yes", launcher.file)]

        # The workers are the head's to start.
        wait_for(lambda: "3 local.cluster.node" in status(launcher), seconds=240, every=2)
        for host in hosts.hosts:
            assert host.ssh("stat -c %a ~/.ray/auth_token").stdout.strip() == "600"
            assert host.ssh("git -C ~/sharpness-study rev-parse HEAD").stdout.strip() == launcher.commit
        with launcher.forwarded(head) as address:
            said.append(launcher.study("list", "--address", address, code=2, RAY_AUTH_TOKEN="not the token"))
            assert "token" in said[-1]
            said.append(launcher.study("submit", file, "--storage", shared, "--address", address))
            assert all(f"{host.address} ({host.name})" in said[-1] for host in hosts.hosts)
            assert re.search(rf"^job cut_off-\S+ runs cut_off in {shared}/cut_off$", said[-1], re.MULTILINE)

            study = shared / "cut_off"
            # Whichever comes first: on a calm machine the head may train the most while another host starts.
            cut = wait_for(lambda: training_host(workers, study), seconds=180)
            cut.cut()
            expected = Tables.by_a_plain_loop(file, folder / "nowhere")

            # A job of its own, which nobody here has to wait for: what is asked is its folder.
            wait_for(lambda: ended(study), seconds=240, every=1)
            said.append(launcher.study("list", "--address", address, "--storage", shared))
        expected.assert_found_in(str(study))
        record = run_record(study)
        assert record["failures"]["lost"] >= 1, "nothing was trained on the host that was cut off"
        assert record["code"] == {"commit": launcher.commit, "uncommitted_changes": False}

        # Where the token is: in one file of each host, and in nothing that was printed or stored.
        for host in hosts.hosts:
            if host is not cut:
                found = host.ssh(f"grep -rlsF {launcher.token} /tmp /dev/shm", check=False).stdout.split()
                assert found == [f"{host.home}/.ray/auth_token"]
        assert launcher.token not in "".join(said)

        # A host that comes back learns that it counts as gone, and ends what it still does.
        cut.plug_in()
        launcher.ray("down", "--yes", launcher.file)
        assert not head.titles()
        # Ray tells the workers nothing: what misses its head ends by itself.
        wait_for(lambda: not any(host.titles() for host in workers), seconds=120, every=1)
        started = [pid for host in hosts.hosts for pid in host.processes()]
    assert hosts.left_behind() == []
    assert not any(os.path.exists(f"/proc/{pid}") for pid in started)


def status(launcher):
    return launcher.ray("exec", launcher.file, "ray status")


def ended(study):
    return any(json.loads(path.read_text()).get("ended") for path in (study / "runs").glob("*.json"))
