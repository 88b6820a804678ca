"""Nodes that a cluster does not have yet and its autoscaler may start: of what kinds, and at most how many.

Ray tells a driver only what is there. What may come is in the configuration of the autoscaler, a process on the head
that was started with its file (`ray up` calls it ray_bootstrap_config.yaml); some services report it to the head
instead. A driver on another machine than the head sees neither file nor process, and knows the reported one only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: KubeRay sets it in every pod of its clusters.
_KUBERAY = "KUBERAY_GEN_RAY_START_CMD"

_CONFIG, _GCS = "--autoscaling-config=", "--gcs-address="


@dataclass(frozen=True)
class NodeType:
    """A kind of node: its resources as Ray names them (`CPU`, `GPU`), and how many there may be at most."""

    name: str
    resources: Mapping[str, float]
    most: int

    def __str__(self) -> str:
        most = "any number" if self.most == sys.maxsize else f"at most {self.most}"
        return f"{self.name} ({most}: cpu {self['CPU']:g}, gpu {self['GPU']:g})"

    def __getitem__(self, resource: str) -> float:
        return float(self.resources.get(resource, 0))


def node_types() -> list[NodeType] | None:
    """The kinds of node that the connected cluster may grow by; none where nothing starts any.

    None if nobody can say: a KubeRay cluster, whose autoscaler is in a container of its own, Ray's client, or a kind
    whose resources only the cloud knows.
    """
    import ray
    from ray._private.state import state

    if ray.util.client.ray.is_connected():
        return None
    reported = state.get_cluster_config()
    if reported is not None and reported.node_group_configs:
        return [
            NodeType(group.name, dict(group.resources), sys.maxsize if group.max_count < 0 else group.max_count)
            for group in reported.node_group_configs
            if group.max_count
        ]
    file = _config_file(_command_lines(), ray.get_runtime_context().gcs_address)
    if file is None:
        return None if _KUBERAY in os.environ else []
    return of_file(file)


def of_file(file: Path) -> list[NodeType] | None:
    """The kinds of node in an autoscaler's file; none if it cannot be read or starts none.

    The head's kind counts only where there may be more of it than the head. None if the file leaves the resources of a
    kind to a cloud.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    return of_config(content) if isinstance(content, dict) else []


def of_config(content: Mapping[str, Any]) -> list[NodeType] | None:
    """The kinds of node in the content of an autoscaler's file; see `of_file`."""
    provider = content.get("provider")
    # Machines of one's own, whose resources no file has, are all there from the beginning.
    here = isinstance(provider, Mapping) and provider.get("type") == "local"
    limit = content.get("max_workers")
    limit = limit if isinstance(limit, int) else 2  # Ray's own default
    kinds = content.get("available_node_types")
    found = []
    for name, kind in (kinds if isinstance(kinds, Mapping) else {}).items():
        if not isinstance(kind, Mapping):
            continue
        resources = kind.get("resources")
        most = kind.get("max_workers", 0 if name == content.get("head_node_type") else limit)
        if isinstance(most, int) and min(most, limit) > 0:
            if not isinstance(resources, Mapping) or not resources:
                if here:
                    continue
                return None
            numbers = {k: float(v) for k, v in resources.items() if isinstance(v, int | float)}
            found.append(NodeType(str(name), numbers, min(most, limit)))
    return found


def _config_file(commands: Iterable[list[str]], gcs_address: str) -> Path | None:
    """The file of the autoscaler that serves this cluster, by the command that started it."""
    port = gcs_address.rpartition(":")[2]
    for command in commands:
        if not any(part.endswith("/monitor.py") for part in command[:4]):
            continue
        given = {key: part.removeprefix(key) for part in command for key in (_CONFIG, _GCS) if part.startswith(key)}
        # Its own host may go by another name there; a port is one cluster's on a machine.
        if _CONFIG in given and given.get(_GCS, "").rpartition(":")[2] == port:
            return Path(given[_CONFIG]).expanduser()
    return None


def _command_lines() -> Iterable[list[str]]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield [part.decode(errors="replace") for part in file.read_bytes().split(b"\0") if part]
        except OSError:
            continue
