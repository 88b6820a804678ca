"""The manifests for Kubernetes: what Ray's own autoscaler reads out of them, and their structure.

The operator's CRDs come in no package of a registry that this project uses, so the structure is held against the keys
that the operator's API reference gives (`ray.io/v1`), written down below; a key that is not there fails.
"""

import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from study.spec import Study

KUBERAY = Path(__file__).parents[2] / "deploy" / "kuberay"


def closed(required, **properties):
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": properties}


TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITY = {"type": "string", "pattern": r"^[0-9.]+(m|[KMGT]i?)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}

CONTAINER = closed(
    "name image resources",
    name=TEXT,
    image=TEXT,
    resources=closed("requests limits", requests=QUANTITIES, limits=QUANTITIES),
    securityContext=closed("", allowPrivilegeEscalation=FLAG, runAsNonRoot=FLAG, runAsUser=COUNT),
    volumeMounts={"type": "array", "items": closed("name mountPath", name=TEXT, mountPath=TEXT, readOnly=FLAG)},
    env={"type": "array", "items": closed("name", name=TEXT, value=TEXT, valueFrom={"type": "object"})},
    lifecycle={"type": "object"},
)
POD = closed(
    "containers",
    serviceAccountName=TEXT,
    automountServiceAccountToken=FLAG,
    restartPolicy={"const": "Never"},
    tolerations={"type": "array", "items": closed("key", key=TEXT, operator=TEXT, effect=TEXT, value=TEXT)},
    containers={"type": "array", "minItems": 1, "items": CONTAINER},
    volumes={"type": "array", "items": closed("name", name=TEXT, emptyDir=closed("", medium=TEXT, sizeLimit=QUANTITY))},
)
TEMPLATE = closed("spec", metadata={"type": "object"}, spec=POD)
CLUSTER = closed(
    "headGroupSpec rayVersion",
    rayVersion=TEXT,
    authOptions=closed("mode", mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed(
        "",
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Conservative", "Aggressive"]},
        resources={"type": "object"},
    ),
    headGroupSpec=closed(
        "template rayStartParams",
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        enableIngress=FLAG,
        rayStartParams=TEXTS,
        template=TEMPLATE,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            "groupName minReplicas maxReplicas template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            idleTimeoutSeconds=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        ),
    },
)
JOB = closed(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER,
)
METADATA = closed("namespace", name=TEXT, generateName=TEXT, namespace=TEXT)
SCHEMAS = {
    "RayCluster": closed(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"}, kind={"const": "RayCluster"}, metadata=METADATA, spec=CLUSTER,
    ),
    "RayJob": closed(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"}, kind={"const": "RayJob"}, metadata=METADATA, spec=JOB,
    ),
}  # fmt: skip


def manifest(name):
    return yaml.safe_load((KUBERAY / f"{name}.yaml").read_text())


def cluster(name):
    read = manifest(name)
    return read["spec"] if read["kind"] == "RayCluster" else read["spec"]["rayClusterSpec"]


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_a_manifest_has_the_structure_of_its_kind(name):
    read = manifest(name)
    jsonschema.Draft202012Validator(SCHEMAS[read["kind"]]).validate(read)


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_rays_autoscaler_reads_gpu_workers_that_come_and_go_and_a_head_without_work(name):
    read = {"metadata": {"name": "n", "namespace": "default"}, "spec": cluster(name)}
    derived = _derive_autoscaling_config_from_ray_cr(read)
    types = derived["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1
    assert types["gpu"]["resources"]["CPU"] == 4
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 8)
    assert derived["idle_timeout_minutes"] == 10
    assert cluster(name)["autoscalerOptions"]["version"] == "v2"


def test_both_manifests_start_the_same_cluster():
    assert cluster("raycluster") == cluster("rayjob")


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_the_token_is_wanted_and_the_head_is_reached_from_inside_alone(name):
    read = cluster(name)
    assert read["authOptions"] == {"mode": "token"}
    assert read["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert read["headGroupSpec"]["enableIngress"] is False
    groups = [read["headGroupSpec"], *read["workerGroupSpecs"]]
    for container in (c for group in groups for c in group["template"]["spec"]["containers"]):
        assert container["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert "ports" not in container


def test_a_job_that_is_tried_again_goes_on_in_the_same_folder_and_runs_a_study_that_exists():
    spec = manifest("rayjob")["spec"]
    words = spec["entrypoint"].split()
    assert words[:2] == ["study", "run"]
    assert words[words.index("--storage") + 1].startswith("s3://")
    file = Path(__file__).parents[2] / re.sub(r"^/home/ray/sharpness-study/", "", words[2])
    assert Study.load(file).name == "table1_cifar10"
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
