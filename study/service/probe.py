"""`python -m study.service.probe run FILE ...`, or `resume FOLDER`: looks at a study and at every node.

It runs as a job on the head of the cluster, with the arguments that the study's own job will have, and prints what it
found as one line of JSON behind `MARK`. On each node a task of 0 CPUs answers in JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from typing import Any

#: Before the line that is the answer; everything else in the job's log is not.
MARK = "@preflight "

#: Seconds that a node has for each of its answers. A worker on a busy machine needs some of them to start; for the
#: first one it reads what fingerprints a data set, up to 2 GiB or a million names over the network.
ANSWER_WITHIN, FACTS_WITHIN = 90.0, 300.0

#: Seconds for which a storage that fails is tried again: a person waits.
PATIENCE = "5"


class NodeLook:
    """What is done on one node, as an actor there. Every answer is JSON: `problem` where it cannot be given.

    The imports stand in its methods: a node on which this project is not installed has to be able to say so.
    """

    def __init__(self, ask: str) -> None:
        self._ask: dict[str, Any] = json.loads(ask)
        self._trace: Any = None

    def facts(self) -> str:
        ask = self._ask
        os.environ["SHARPNESS_STUDY_STORE_PATIENCE"] = ask["patience"]
        try:
            from study.service import looks
        except ImportError as error:
            return json.dumps({"problem": f"sharpness-study is not installed there ({error})"})
        try:
            found: dict[str, Any] = looks.facts()
            if ask["cuda"] and ask["gpus"]:
                found["cuda"] = looks.torch_has_cuda()
            found["free"] = looks.free_space(ask["storage"])
            found["data"] = looks.data_marks(ask["datasets"], ask["root"])
            found["weights"] = looks.weights_marks(ask["weights"])
            self._trace = looks.Trace(ask["storage"], ask["token"], ask["name"])
            found["written"] = self._trace.write()
        except Exception as error:
            return json.dumps({"problem": f"{type(error).__name__}: {error}"})
        return json.dumps(found)

    def unseen(self, names: str) -> str:
        return json.dumps(self._trace.unseen(json.loads(names)))

    def delete(self) -> str:
        return json.dumps(self._trace.delete() if self._trace else None)

    def leave(self) -> str:
        if self._trace:
            self._trace.leave()
        return "null"


def main(arguments: Sequence[str] | None = None) -> int:
    """Look, and print what was found."""
    from study.spec import StudyError
    from study.store import StoreError

    os.environ["SHARPNESS_STUDY_STORE_PATIENCE"] = PATIENCE
    try:
        found = _look(*meant(arguments))
    except (StudyError, StoreError) as error:
        found = {"problems": str(error).splitlines()}
    print(MARK + json.dumps(found), flush=True)
    return 0


def meant(arguments: Sequence[str] | None) -> tuple[Any, Any]:
    """The study of a job's arguments, and its folder.

    Raises:
        study.spec.StudyError: the file is wrong.
        study.store.StoreError: the folder holds no such study, or cannot be read.
    """
    from study.cli.planning import file_arguments, load

    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    file_arguments(verbs.add_parser("run"))
    verbs.add_parser("resume").add_argument("folder")
    options = parser.parse_args(arguments)
    return load(options) if options.verb == "run" else _frozen(options.folder)


def _frozen(uri: str) -> tuple[Any, Any]:
    """A study as its folder has it, wherever that lies now."""
    from study.service.client import apart
    from study.spec import Study
    from study.store import StoreError, StudyFolder

    folder = StudyFolder(uri)
    spec = folder.spec()
    if spec is None:
        raise StoreError(f"{folder.uri} holds no study (no study.json)")
    storage, name = apart(folder.uri)
    if spec["name"] != name:
        raise StoreError(f"{folder.uri} holds {spec['name']}; give the folder that name again")
    return Study.frozen({**spec, "storage": storage}), folder


def _look(study: Any, folder: Any) -> dict[str, Any]:
    from study.cluster import connected
    from study.preflight import ClusterError
    from study.service.supervise import own_cluster

    found: dict[str, Any] = {"problems": [], "notes": []}
    try:
        with connected(own_cluster()):
            found["nodes"] = _nodes(study)
            _plan(study, folder, found)
    except ClusterError as error:
        found["problems"] += str(error).splitlines()
    return found


def _plan(study: Any, folder: Any, found: dict[str, Any]) -> None:
    """What the study lacks, who runs it, and whether the cluster can give its trials."""
    from study.budget import reached, used
    from study.cli.running import refuse_another_study
    from study.cluster import choose_resources, node_types
    from study.lock import holder
    from study.plan import make_plan
    from study.preflight import ClusterError, check_weights
    from study.spec import StudyError
    from study.store import StoreError
    from trainables.data import DataError
    from trainables.models.weights import WeightsError

    try:
        plan = make_plan(study, folder)
        refuse_another_study(study, plan, folder)
        there = holder(folder)
    except (DataError, WeightsError) as error:
        # Every node says so itself; this one is among them.
        found["unplanned"] = str(error).splitlines()
        return
    except (StudyError, StoreError) as error:
        found["problems"] += str(error).splitlines()
        return
    found["replicates"], found["done"] = plan.replicates, plan.done
    found["missing"] = bool(plan.todo) or any(plan.unsampled().values())
    if there is not None and there.state == "alive":
        found["holder"] = {"run": there.run, "text": str(there)}
    if not found["missing"]:
        return
    if (limit := reached(study.budget, study.price, used(folder.runs()))) is not None:
        key = limit.partition(":")[0]
        found["problems"].append(f"{limit}: give it more (--set {key}=...)")
    try:
        check_weights(plan)
        found["resources"] = choose_resources(study.resources, plan)
    except (ClusterError, WeightsError) as error:
        found["problems"] += str(error).splitlines()
    found["grows"] = node_types() != []


def _nodes(study: Any) -> list[dict[str, Any]]:
    """A row for each living node, the one of this driver first."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    living = [node for node in ray.nodes() if node["Alive"]]
    here = ray.get_runtime_context().get_node_id()
    living.sort(key=lambda node: (node["NodeID"] != here, node["NodeManagerAddress"], node["NodeID"]))
    recipes = [recipe for _, recipe in [*study.points, *study.corners()]]
    root = study.data_root()
    ask: dict[str, Any] = {
        "storage": study.storage,
        "token": secrets.token_hex(8),
        "patience": PATIENCE,
        "root": None if root is None else os.path.abspath(os.path.expanduser(root)),
        "datasets": sorted({(r.dataset, r.folder) for r in recipes}, key=str),
        # As the driver hands them to its workers, which have working directories of their own.
        "weights": sorted(
            {os.path.abspath(os.path.expanduser(r.pretrained)) for r in recipes if r.pretrained and _is_file(r)}
        ),
        "cuda": study.resources.gpu != 0 and any(r.device != "cpu" for r in recipes),
    }
    remote: Any = ray.remote(num_cpus=0, max_restarts=0)(NodeLook)
    rows: list[dict[str, Any]] = []
    actors: list[Any] = []
    for node in living:
        has = node["Resources"]
        rows.append(
            {
                "node": node["NodeID"],
                "address": node["NodeManagerAddress"],
                "cpus": has.get("CPU", 0.0),
                "gpus": has.get("GPU", 0.0),
            }
        )
        where = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        own = {**ask, "name": node["NodeID"], "gpus": has.get("GPU", 0.0)}
        actors.append(remote.options(scheduling_strategy=where).remote(json.dumps(own)))
    for row, answer in zip(rows, _answers([actor.facts.remote() for actor in actors], FACTS_WITHIN), strict=True):
        row.update(answer)
    able = [i for i, row in enumerate(rows) if "problem" not in row]
    writers = [rows[i]["node"] for i in able if rows[i]["written"] is None]
    seen = _answers(
        [actors[i].unseen.remote(json.dumps([name for name in writers if name != rows[i]["node"]])) for i in able]
    )
    for i, answer in zip(able, seen, strict=True):
        rows[i].update({"problem": answer["problem"]} if "problem" in answer else {"unseen": answer})
    _answers([actors[i].delete.remote() for i in able])
    _answers([actors[i].leave.remote() for i in able])
    return rows


def _is_file(recipe: Any) -> bool:
    from trainables.models.weights import weights_source

    return weights_source(recipe.pretrained, model=recipe.model).path is not None


def _answers(references: list[Any], within: float = ANSWER_WITHIN) -> list[Any]:
    """What each node answered, in its order; `problem` for one that did not within its time."""
    import ray

    deadline, found = time.monotonic() + within, []
    for reference in references:
        try:
            found.append(json.loads(ray.get(reference, timeout=max(0.1, deadline - time.monotonic()))))
        except ray.exceptions.GetTimeoutError:
            found.append({"problem": f"does not answer within {within:.0f} s"})
        except ray.exceptions.RayError as error:
            found.append({"problem": f"cannot run a task there ({str(error).strip().splitlines()[0]})"})
    return found


if __name__ == "__main__":
    sys.exit(main())
