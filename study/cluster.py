"""The Ray cluster of a run: the one that the user named, or one of this run's own. Nothing else is attached to."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from study.autoscaler import NodeType, node_types
from study.plan import Plan
from study.preflight import ClusterError
from study.spec import Resources
from trainables.models import MODELS

#: How long a cluster that the user named may take to answer.
CONNECT_SECONDS = 10.0

#: The most trials of small networks that share a GPU when the study leaves it to us.
SHARE = 4


@contextmanager
def connected(address: str | None, cpus: int | None = None) -> Iterator[None]:
    """Ray for the length of a run.

    Args:
        address: of a running cluster; None starts one for this run, on this machine, and ends it.
        cpus: CPUs that a cluster of our own may use; all if None.

    Raises:
        ClusterError: no cluster at that address.
    """
    if address not in (None, "auto"):
        _check_reachable(str(address))
    # Ray's housekeeping must not talk over the study's own display.
    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "configure_logging": True,
    }
    # As coming versions of Ray do it: a trial without a GPU keeps its environment (its recipe says `cpu` anyway).
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        if address is None:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(f"no Ray cluster at {address or 'local'}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself tries a wrong address for minutes before it says anything."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "an address is HOST:PORT, ray://HOST:PORT or auto"
        raise ClusterError(f"no Ray cluster at {address}: {reason}") from None


def choose_resources(asked: Resources, plan: Plan) -> dict[str, float]:
    """CPUs and GPUs of one trial on the connected cluster.

    Left to us, a trial takes one CPU for each of its processes (the same wherever it runs, since the number of threads
    decides on the last bits of a sum) and, where there are GPUs, one for each process, or a share of one where every
    network is too small to fill it and there are trials enough.

    Raises:
        ClusterError: no node can ever hold such a trial, none that the autoscaler may start included.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    known = node_types()
    coming = known or []
    # A cluster that has scaled down to its head gets its GPUs when they are asked for.
    gpus = sum(node.get("GPU", 0) for node in nodes) or sum(kind["GPU"] * kind.most for kind in coming)
    cpu = asked.cpu if asked.cpu is not None else asked.several
    gpu = asked.gpu
    on_cpu = all(trial.cell.recipe.device == "cpu" for trial in plan.todo)
    if gpu is None:
        gpu = 0.0 if on_cpu or not gpus else float(asked.several) if asked.several > 1 else _share(plan, gpus)
    # Where nobody knows what may come it is asked for.
    if known is not None and not any(
        node.get("CPU", 0) >= cpu and node.get("GPU", 0) >= gpu for node in [*nodes, *(k.resources for k in coming)]
    ):
        raise ClusterError(_too_much(cpu, gpu, nodes, coming))
    needs_gpu = sorted({t.cell.recipe.device for t in plan.todo if t.cell.recipe.device.startswith("cuda")})
    if needs_gpu and not gpu:
        raise ClusterError(f"recipe.device: {needs_gpu[0]} asked, and a trial gets no GPU here")
    for name in (name for name in needs_gpu if ":" in name):
        # A worker sees the GPUs that Ray gives it, counted from 0.
        if asked.several > 1:
            raise ClusterError(f"recipe.device: {name} is one device, and a trial has {asked.several} processes")
        if int(name.partition(":")[2]) >= max(1, gpu):
            raise ClusterError(f"recipe.device: {name} asked, and a trial gets gpu {gpu:g}, counted from cuda:0")
    return {"cpu": float(cpu), "gpu": float(gpu)}


def _too_much(cpu: float, gpu: float, nodes: list[dict[str, float]], coming: list[NodeType]) -> str:
    """Ray would wait for ever for such a node."""
    has: dict[str, float] = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
    line = (
        f"resources: a trial asks for cpu {cpu:g}, gpu {gpu:g}; the largest node of this cluster has "
        f"cpu {has.get('CPU', 0):g}, gpu {has.get('GPU', 0):g}"
    )
    if coming:
        line += f", and its autoscaler starts only {', '.join(map(str, coming))}"
    return line


def _share(plan: Plan, gpus: float) -> float:
    if not all(MODELS[trial.cell.recipe.model].light for trial in plan.todo):
        return 1.0
    return 1.0 / min(SHARE, max(1, math.ceil(len(plan.todo) / gpus)))
