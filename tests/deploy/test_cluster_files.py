"""What the files that start clusters promise: valid to Ray, little to change, no port but ssh's, tokens everywhere."""

import copy
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.util import hash_runtime_conf, prepare_config, validate_config

PROJECT = Path(__file__).parents[2]
LAUNCHED = ["cluster.yaml", "deploy/onprem.yaml", "deploy/gcp.yaml"]
EVERY = [*LAUNCHED, "deploy/kuberay/raycluster.yaml", "deploy/kuberay/rayjob.yaml"]

#: What stands for something of the user's own: only where a line says CHANGE.
PLACEHOLDER = re.compile(r"\b(PROJECT|HEAD_ADDRESS|WORKER_ADDRESS|USER|REGISTRY|COMMIT)\b")


def text(name):
    return (PROJECT / name).read_text()


def config(name):
    return yaml.safe_load(text(name))


def start_commands(name):
    read = config(name)
    return [c for c in read["head_start_ray_commands"] if "ray start" in c], [
        c for c in read["worker_start_ray_commands"] if "ray start" in c
    ]


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_takes_the_file(name):
    prepared = prepare_config(config(name))
    validate_config(prepared)
    assert prepared["cluster_name"] == "sharpness-study"


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_refuses_the_file_with_a_key_that_it_does_not_know(name):
    # That the check above can fail.
    prepared = prepare_config({**config(name), "idle_timeout": 3})
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepared)


@pytest.mark.parametrize(("name", "most"), [*zip(EVERY, [3, 4, 7, 3, 4], strict=True)])
def test_what_has_to_be_changed_is_marked_and_little(name, most):
    lines = text(name).splitlines()
    code = [(number, line) for number, line in enumerate(lines) if not line.lstrip().startswith("#")]
    marked = [number for number, line in enumerate(lines) if "CHANGE:" in line]
    assert 0 < len(marked) <= most
    for number, line in code:
        if PLACEHOLDER.search(line.partition("#")[0]):
            # On its line, or just above.
            assert any(number - 4 <= mark <= number for mark in marked), f"{name}:{number + 1}: {line.strip()}"


@pytest.mark.parametrize("name", EVERY)
def test_nothing_that_looks_like_a_secret_stands_in_the_file(name):
    assert not re.search(r"\b[0-9a-f]{32,}\b|AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|RAY_AUTH_TOKEN=[^$]", text(name))


@pytest.mark.parametrize("name", LAUNCHED)
def test_head_and_workers_want_a_token_by_name_and_get_it_as_a_file(name):
    for commands in start_commands(name):
        (command,) = commands
        assert re.match(r"export RAY_AUTH_MODE=token ", command)
    assert config(name)["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert 'chmod 600 "$HOME/.ray/auth_token"' in text("deploy/set_up_node.sh")


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_dashboard_and_jobs_listen_on_the_heads_loopback(name):
    ((head,), (worker,)) = start_commands(name)
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in head + worker


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_autoscaler_is_the_second_where_ray_has_it(name):
    ((head,), _) = start_commands(name)
    local = config(name)["provider"]["type"] == "local"
    assert f"RAY_enable_autoscaler_v2={0 if local else 1}" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/gcp.yaml"])
def test_nothing_is_paid_for_while_nobody_works_and_no_trial_runs_on_the_head(name):
    prepared = prepare_config(config(name))
    types = prepared["available_node_types"]
    assert prepared["idle_timeout_minutes"] == 10
    assert prepared["provider"]["cache_stopped_nodes"] is False
    assert types["head"]["resources"]["CPU"] == 0
    workers = {key: value for key, value in types.items() if key != prepared["head_node_type"]}
    assert {value["min_workers"] for value in workers.values()} == {0}
    assert workers["gpu_on_demand"]["max_workers"] == 0
    assert workers["gpu_spot"]["priority"] > workers["gpu_on_demand"]["priority"]
    assert workers["gpu_spot"]["max_workers"] == prepared["max_workers"]


@pytest.mark.parametrize("name", LAUNCHED)
def test_what_is_copied_is_the_commit_and_no_environment_results_or_credentials(name, tmp_path):
    read = config(name)
    sources = {source for source in read["file_mounts"].values() if not source.startswith("~")}
    assert sources == {".git", ".venv/pyvenv.cfg", "deploy/set_up_node.sh"}
    # rsync's own word on what it leaves out.
    source, target = tmp_path / "from" / ".git", tmp_path / "to"
    for path in ("config", "hooks/post-checkout", "index", "HEAD", "objects/00/config", "refs/heads/main.lock"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text("x")
    excludes = [argument for pattern in read["rsync_exclude"] for argument in ("--exclude", pattern)]
    try:
        subprocess.run(["rsync", "-a", *excludes, f"{source}/", f"{target}/"], check=True)
    except FileNotFoundError:
        pytest.skip("no rsync here")
    copied = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert copied == ["HEAD", "objects/00/config"]


def test_ray_up_reads_no_gigabytes_to_tell_whether_something_changed(monkeypatch, tmp_path):
    # Ray hashes every file below a mount, excluded or not: were the clone's top mounted, its environment's 6 GB too.
    for name in (".git/HEAD", ".venv/pyvenv.cfg", ".venv/lib/torch.so", "deploy/set_up_node.sh", ".ray/auth_token"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    mounts = config("cluster.yaml")["file_mounts"]
    before = hash_runtime_conf(mounts, [], {"case": 0})
    (tmp_path / ".venv/lib/torch.so").write_text("other")
    assert hash_runtime_conf(mounts, [], {"case": 0}, generate_file_mounts_contents_hash=True) == before
    (tmp_path / ".git/HEAD").write_text("other")
    assert hash_runtime_conf(mounts, [], {"case": 0}, generate_file_mounts_contents_hash=True) != before


def test_the_files_agree_on_what_nodes_get():
    first, *others = (config(name) for name in LAUNCHED)
    for other in others:
        assert other["file_mounts"] == first["file_mounts"]
        assert other["rsync_exclude"] == first["rsync_exclude"]
        # Data of machines of one's own is put there by their owner.
        assert other["setup_commands"] == first["setup_commands"][: len(other["setup_commands"])]


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/gcp.yaml"])
def test_every_node_that_comes_gets_the_data_and_knows_where(name, monkeypatch):
    fetched = []
    monkeypatch.setattr("trainables.data.download", lambda dataset, root: fetched.append((dataset, root)))
    words = shlex.split(config(name)["setup_commands"][1])
    assert words[:2] == ["~/sharpness-study/.venv/bin/python", "-c"]
    exec(words[2], {})
    assert fetched == [("cifar10", "~/data"), ("cifar100", "~/data")]
    for commands in start_commands(name):
        (command,) = commands
        assert 'SHARPNESS_STUDY_DATA="$HOME/data" ' in command


def test_an_image_has_no_credentials_of_a_remote():
    ignored = text(".dockerignore").splitlines()
    assert {".git/config", ".git/hooks", ".git/index"} <= set(ignored)


def test_versions_are_those_of_the_lock():
    lock = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text("requirements.lock"), re.MULTILINE))
    for name in ("deploy/kuberay/raycluster.yaml", "deploy/kuberay/rayjob.yaml"):
        assert f"rayVersion: {lock['ray']}\n" in text(name)
    assert f"UV_VERSION := {re.search(r'uv_version=(.*)', text('deploy/set_up_node.sh'))[1]}\n" in text("Makefile")
    made_for = re.search(r"--python-version (\S+)", text("Makefile"))[1]
    assert f"FROM python:{made_for}-" in text("deploy/Dockerfile")
    # Set-up installs this and nothing else.
    assert "boto3" in lock, "the head of cluster.yaml starts machines with it"


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """Amazon, as moto imitates it, and a home in which Ray may leave the key that it makes."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    with mock_aws():
        yield boto3.client("ec2", region_name="us-west-2")


@pytest.fixture
def bootstrapped(aws):
    """`cluster.yaml` as Ray has it once it has made keys and security groups."""
    from ray.autoscaler._private.aws import config as ray_aws

    ray_aws._get_subnets_or_die.cache_clear()  # another test's Amazon had other subnets
    return ray_aws.bootstrap_aws(prepare_config(config("cluster.yaml")))


def test_on_aws_nothing_but_ssh_is_let_in_from_outside(aws, bootstrapped):
    groups = {g for t in bootstrapped["available_node_types"].values() for g in t["node_config"]["SecurityGroupIds"]}
    rules = [
        r for g in aws.describe_security_groups(GroupIds=sorted(groups))["SecurityGroups"] for r in g["IpPermissions"]
    ]
    assert rules
    from_outside = [rule for rule in rules if rule["IpRanges"] or rule.get("Ipv6Ranges")]
    assert [(r["IpProtocol"], r["FromPort"], r["ToPort"]) for r in from_outside] == [("tcp", 22, 22)]
    inside = {pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]}
    assert inside == groups


def test_on_aws_a_worker_is_known_to_have_a_gpu_before_there_is_one(aws):
    # The autoscaler, and `study submit`, judge by it whether the cluster can ever give a trial what it asks.
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    filled = AWSNodeProvider.fillout_available_node_types_resources(prepare_config(config("cluster.yaml")))
    validate_config(filled)
    resources = {key: value["resources"] for key, value in filled["available_node_types"].items()}
    assert resources["head"] == {"CPU": 0}
    for worker in ("gpu_spot", "gpu_on_demand"):
        assert {key: resources[worker][key] for key in ("CPU", "GPU")} == {"CPU": 4, "GPU": 1}


def test_on_aws_the_roles_are_those_that_deploy_describes(bootstrapped):
    types = bootstrapped["available_node_types"]
    assert {key: value["node_config"]["IamInstanceProfile"] for key, value in types.items()} == {
        "head": {"Name": "sharpness-study-head"},
        "gpu_spot": {"Name": "sharpness-study-worker"},
        "gpu_on_demand": {"Name": "sharpness-study-worker"},
    }
    # Ray makes a role of its own, which may do anything with EC2 and S3, only where none is named.
    assert "IamInstanceProfile" not in bootstrapped["head_node"]


def test_on_aws_spot_and_on_demand_differ_in_the_market_alone():
    types = copy.deepcopy(config("cluster.yaml")["available_node_types"])
    assert types["gpu_spot"]["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert types["gpu_spot"]["node_config"] == types["gpu_on_demand"]["node_config"]


def test_the_roles_policies_are_json_and_bound_to_what_they_name():
    for path in sorted((PROJECT / "deploy" / "aws").glob("*.json")):
        statements = json.loads(path.read_text())["Statement"]
        assert {statement["Effect"] for statement in statements} == {"Allow"}
        for statement in statements:
            actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
            assert all(action.split(":")[1] != "*" for action in actions)
            if any(action.startswith(("s3:", "iam:")) for action in actions):
                assert statement["Resource"] != "*"


def test_the_set_up_script_is_executable_and_a_valid_script():
    script = PROJECT / "deploy" / "set_up_node.sh"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], capture_output=True, check=False).returncode == 0
