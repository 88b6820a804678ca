"""What a cluster may grow by, and whether it can ever give a trial."""

import sys
from types import SimpleNamespace

import pytest

from study import autoscaler, cluster
from study.autoscaler import NodeType, of_config, of_file
from study.preflight import ClusterError
from study.settings import Resources

CONFIG = {
    "cluster_name": "c",
    "max_workers": 8,
    "provider": {"type": "aws", "region": "eu-north-1"},
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 4}, "node_config": {}},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}, "min_workers": 0, "max_workers": 4, "node_config": {}},
        "big": {"resources": {"CPU": 96, "GPU": 8, "accelerator_type:H100": 1}, "max_workers": 20, "node_config": {}},
        "off": {"resources": {"CPU": 1, "GPU": 64}, "max_workers": 0, "node_config": {}},
    },
}


def test_kinds_that_may_come_are_those_with_resources_and_room():
    assert of_config(CONFIG) == [
        NodeType("gpu", {"CPU": 8.0, "GPU": 1.0}, 4),
        NodeType("big", {"CPU": 96.0, "GPU": 8.0, "accelerator_type:H100": 1.0}, 8),
    ]


def test_where_a_cloud_alone_knows_what_a_kind_has_nobody_can_say():
    kinds = {**CONFIG["available_node_types"], "unknown": {"max_workers": 2, "node_config": {}}}
    assert of_config({**CONFIG, "available_node_types": kinds}) is None
    kinds["unknown"]["max_workers"] = 0
    assert of_config({**CONFIG, "available_node_types": kinds}) == of_config(CONFIG)


def test_a_cluster_that_may_have_no_workers_has_no_kinds():
    assert of_config({**CONFIG, "max_workers": 0}) == []


def test_ray_itself_fills_in_the_limits_that_we_assume():
    """The defaults of a file that leaves them out are Ray's."""
    from ray.autoscaler._private.util import prepare_config

    bare = {"cluster_name": "c", "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]},
            "auth": {"ssh_user": "x"}}  # fmt: skip
    filled = prepare_config(bare)
    kinds = of_config(filled)
    # An on-premises file says nothing of what its machines have: nothing is claimed of them.
    assert kinds == []
    assert filled["max_workers"] == 1


@pytest.mark.parametrize("content", ["", "[]", "a: [", "available_node_types: 7", "available_node_types: {a: 1}"])
def test_a_file_that_says_nothing_gives_nothing(content, tmp_path):
    (tmp_path / "c.yaml").write_text(content)
    assert of_file(tmp_path / "c.yaml") == []
    assert of_file(tmp_path / "none.yaml") == []


def test_the_file_is_that_of_the_autoscaler_of_this_very_cluster(tmp_path):
    def monitor(file, gcs):
        return [
            "/bin/python",
            "-u",
            "/x/ray/autoscaler/v2/monitor.py",
            f"--gcs-address={gcs}",
            f"--autoscaling-config={file}",
        ]

    commands = [
        ["/bin/sh"],
        ["grep", "--autoscaling-config=/evil", "--gcs-address=10.0.0.1:6379"],
        monitor("/other.yaml", "10.0.0.1:6380"),
        monitor("/ours.yaml", "10.0.0.1:6379"),
    ]
    assert str(autoscaler._config_file(commands, "10.0.0.1:6379")) == "/ours.yaml"
    assert autoscaler._config_file(commands, "10.0.0.1:1") is None
    # A fixed cluster's monitor has no file.
    assert autoscaler._config_file([commands[3][:4]], "10.0.0.1:6379") is None


def test_rays_autoscaler_is_started_with_the_words_that_are_looked_for():
    import inspect

    from ray._private import services

    source = inspect.getsource(services.start_monitor)
    assert '"--autoscaling-config="' in source
    assert "--gcs-address=" in source
    assert '"monitor.py"' in source


def chosen(asked, nodes, coming, monkeypatch, device="auto"):
    """`choose_resources` on a cluster of these nodes that may grow by those kinds."""
    trial = SimpleNamespace(cell=SimpleNamespace(recipe=SimpleNamespace(device=device, model="wrn28_10")))
    plan = SimpleNamespace(todo=[trial])
    monkeypatch.setattr(cluster, "node_types", lambda: coming)
    living = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr(cluster, "ray", SimpleNamespace(nodes=lambda: living))
    monkeypatch.setattr(cluster, "MODELS", {"wrn28_10": SimpleNamespace(light=False)})
    return cluster.choose_resources(asked, plan)


HEAD = {"CPU": 2.0}


def test_a_cluster_that_is_only_its_head_may_still_give_gpus(monkeypatch):
    kinds = of_config(CONFIG)
    assert chosen(Resources(gpu=8), [HEAD], kinds, monkeypatch) == {"cpu": 8.0, "gpu": 8.0}
    # Left to us: one GPU, since GPUs are to come.
    assert chosen(Resources(), [HEAD], kinds, monkeypatch) == {"cpu": 1.0, "gpu": 1.0}
    assert chosen(Resources(), [{}], kinds, monkeypatch, device="cpu") == {"cpu": 1.0, "gpu": 0.0}


def test_more_than_any_node_that_may_come_is_refused_at_once(monkeypatch):
    with pytest.raises(ClusterError) as error:
        chosen(Resources(gpu=16), [HEAD], of_config(CONFIG), monkeypatch)
    assert str(error.value) == (
        "resources: a trial asks for cpu 16, gpu 16; the largest node of this cluster has cpu 2, gpu 0, and its "
        "autoscaler starts only gpu (at most 4: cpu 8, gpu 1), big (at most 8: cpu 96, gpu 8)"
    )
    with pytest.raises(ClusterError, match=r"has cpu 2, gpu 0$"):
        chosen(Resources(gpu=1), [HEAD], [], monkeypatch)
    # GPUs and CPUs have to be on one node.
    with pytest.raises(ClusterError, match="cpu 97, gpu 1"):
        chosen(Resources(cpu=97, gpu=1), [{"CPU": 128.0}], of_config(CONFIG), monkeypatch)


def test_where_nobody_knows_what_may_come_it_is_asked_for(monkeypatch):
    assert chosen(Resources(gpu=2), [HEAD], None, monkeypatch) == {"cpu": 2.0, "gpu": 2.0}


def test_a_kind_without_a_limit_says_so():
    assert str(NodeType("gpu", {"GPU": 1}, sys.maxsize)) == "gpu (any number: cpu 0, gpu 1)"
