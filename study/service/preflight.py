"""What a look at every node of a cluster says: a table for a person, and a line for each problem. No Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from study.preflight import ClusterError

#: Free bytes below which a disk is too full to begin with.
LEAST_FREE = 2**30

_GIB = 2**30


class PreflightError(ClusterError):
    """The cluster is not ready for the study: a line for each problem. `preflight` has the table."""

    def __init__(self, preflight: Preflight) -> None:
        self.preflight = preflight
        super().__init__("\n".join(preflight.problems))


@dataclass(frozen=True)
class Preflight:
    """What was found before a submission.

    Attributes:
        nodes: a row for each living node, see `study.service.probe`.
        problems: a line for each thing that has to be mended first; it names the node and what to do.
        notes: lines worth knowing.
        missing: whether the study lacks anything; None if it could not be planned.
        holder: who runs it now, if anybody lives: `run` and `text`.
        resources: of one trial.
    """

    nodes: list[dict[str, Any]]
    problems: list[str]
    notes: list[str] = field(default_factory=list)
    missing: bool | None = None
    done: int = 0
    replicates: int = 0
    holder: Mapping[str, Any] | None = None
    resources: Mapping[str, float] | None = None

    def lines(self) -> list[str]:
        """The table, a line for each node."""
        head = ("node", "python", "ray", "torch", "cpu", "gpu", "storage", "free", "data")
        rows = [head, *(_row(name, row) for name, row in zip(names(self.nodes), self.nodes, strict=True))]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

    def to_json(self) -> dict[str, Any]:
        return {
            "nodes": [{"name": name, **row} for name, row in zip(names(self.nodes), self.nodes, strict=True)],
            "problems": self.problems,
            "notes": self.notes,
            "resources": None if self.resources is None else dict(self.resources),
        }


def judged(found: Mapping[str, Any], storage: str, client: Mapping[str, Any]) -> Preflight:
    """What a look found, judged.

    Args:
        found: the answer of `study.service.probe`.
        storage: of the study.
        client: `study.service.looks.facts` of the machine that submits.
    """
    nodes = list(found.get("nodes", []))
    problems = [*_versions(nodes, client), *_storage(nodes, storage), *_marks(nodes), *_disks(nodes), *_cuda(nodes)]
    problems = [f"{name}: {row['problem']}" for name, row in _named(nodes) if "problem" in row] + problems
    problems += found.get("problems", [])
    if not problems:
        # A data set that is wrong on the head has been named with its node.
        problems += found.get("unplanned", [])
    notes = list(found.get("notes", []))
    if found.get("grows", False):
        notes.append(
            "nodes that the cluster starts later are not looked at: they need the same image, data and storage"
        )
    return Preflight(
        nodes,
        list(dict.fromkeys(problems)),
        notes,
        found.get("missing"),
        found.get("done", 0),
        found.get("replicates", 0),
        found.get("holder"),
        found.get("resources"),
    )


def names(nodes: list[dict[str, Any]]) -> list[str]:
    """A name for each node: its address, its host's name behind it, and its id where two would be one."""
    said = [f"{row['address']} ({row['host']})" if row.get("host") else str(row["address"]) for row in nodes]
    count = Counter(said)
    return [
        name if count[name] == 1 else f"{name[:-1] if name.endswith(')') else name + ' ('}, {row['node'][:6]})"
        for name, row in zip(said, nodes, strict=True)
    ]


def _named(nodes: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return list(zip(names(nodes), nodes, strict=True))


def _answered(nodes: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, row) for name, row in _named(nodes) if "problem" not in row]


def _versions(nodes: list[dict[str, Any]], client: Mapping[str, Any]) -> list[str]:
    """Ray's, Python's and this project's have to be the client's; torch's those of the first node.

    Ray itself refuses a node with another Python, and two commits of this project may train to other numbers.
    """
    found = []
    answered = _answered(nodes)
    for name, row in answered:
        if _minor(row["python"]) != _minor(client["python"]):
            found.append(
                f"{name}: has Python {row['python']}, and this machine {client['python']}; use {_minor(row['python'])} "
                "here, or build the cluster with this one"
            )
        if row["ray"] != client["ray"]:
            found.append(
                f"{name}: has Ray {row['ray']}, and this machine {client['ray']}; install ray=={row['ray']} here, or "
                "the other there"
            )
        if row["version"] != client["version"]:
            found.append(
                f"{name}: has sharpness-study {row['version']}, and this machine {client['version']}; install the same "
                "commit on both"
            )
        if row["torch"] != answered[0][1]["torch"]:
            found.append(
                f"{name}: has torch {row['torch']}, and {answered[0][0]} {answered[0][1]['torch']}; install one "
                "version on every node"
            )
    return found


def _storage(nodes: list[dict[str, Any]], storage: str) -> list[str]:
    found = []
    answered = _answered(nodes)
    # One that has written, and then answers no more, is among those that the others do not see.
    by_id = {row["node"]: name for name, row in _named(nodes)}
    for name, row in answered:
        if row["written"] is not None:
            found.append(f"{name}: storage {storage} cannot be used there: {row['written']}")
    for name, row in answered:
        # Where nothing can be written nothing is to be seen either: said once.
        if row["written"] is None and (unseen := row.get("unseen")):
            others = ", ".join(by_id[node] for node in unseen)
            reason = next(iter(unseen.values()))
            found.append(
                f"{name}: does not see in {storage} what {others} wrote ({reason}): it is not shared; name a folder "
                "that every node mounts (NFS), or object storage (s3://bucket/prefix)"
            )
    return found


def _marks(nodes: list[dict[str, Any]]) -> list[str]:
    """Data sets and weights have to be there on every node, and the same."""
    found = []
    answered = _answered(nodes)
    for kind, what in (("data", "data set"), ("weights", "weights")):
        for thing in dict.fromkeys(thing for _, row in answered for thing in row.get(kind, {})):
            marks = {name: row[kind][thing] for name, row in answered if thing in row.get(kind, {})}
            for name, mark in marks.items():
                if "problem" in mark:
                    found.append(f"{name}: {what} {thing}: {mark['problem']}")
            whole = {name: mark["fingerprint"] for name, mark in marks.items() if "fingerprint" in mark}
            usual = Counter(whole.values()).most_common(1)[0][0] if whole else None
            for name, mark in whole.items():
                if mark != usual:
                    like = next(other for other, its in whole.items() if its == usual)
                    found.append(
                        f"{name}: {what} {thing} has fingerprint {mark}, and {usual} on {like}; copy it from there"
                    )
    return found


def _disks(nodes: list[dict[str, Any]]) -> list[str]:
    return [
        f"{name}: {_gib(free)} free in its {place} folder; make room, at least {_gib(LEAST_FREE)}"
        for name, row in _answered(nodes)
        for place, free in row.get("free", {}).items()
        if free < LEAST_FREE
    ]


def _cuda(nodes: list[dict[str, Any]]) -> list[str]:
    return [
        f"{name}: has {row['gpus']:g} GPU, and a torch that was built without CUDA; install one with it"
        for name, row in _answered(nodes)
        if row.get("cuda") is False
    ]


def _row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    cpu, gpu = f"{row['cpus']:g}", f"{row['gpus']:g}"
    if "problem" in row:
        return (name, "?", "?", "?", cpu, gpu, "?", "?", "?")
    storage = "not usable" if row["written"] is not None else "not shared" if row.get("unseen") else "ok"
    marks = {**row.get("data", {}), **row.get("weights", {})}
    data = ", ".join(f"{thing} {mark.get('fingerprint', 'not usable')}" for thing, mark in marks.items())
    free = min(row["free"].values()) if row.get("free") else None
    return (
        name,
        str(row["python"]),
        str(row["ray"]),
        str(row["torch"]),
        cpu,
        gpu,
        storage,
        "?" if free is None else _gib(free),
        data,
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
