"""The verbs that use a cluster as a service: submit, list, logs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from study.cli.clusters import ADDRESS, next_steps, reached
from study.cli.codes import BAD_INPUT, INTERRUPTED, OK
from study.cli.numbers import whole
from study.cli.planning import file_arguments, load
from study.files import Files, StoreError, child
from study.naming import is_plain
from study.service.parcel import check_places

if TYPE_CHECKING:
    from study.service.client import Submitted

_JOB_HEAD = ("job", "study", "state", "started", "ended", "")
_STUDY_HEAD = ("study", "replicates", "run by")


def register(verbs: Any) -> None:
    """Add these verbs to the command."""
    parser = verbs.add_parser(
        "submit",
        help="run a study as a job of a Ray cluster, after a look at every node",
        description="Look at every node of a Ray cluster, and run the study there as a job if all is well. The job "
        "goes on without this machine. A study that is running or finished is not submitted again.",
    )
    file_arguments(parser)
    parser.add_argument("--address", required=True, metavar="URL", help=ADDRESS)
    parser.add_argument(
        "--restarts", type=whole(0), default=0, metavar="N", help="times that a killed run is begun again (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print what became of it as JSON")
    parser.set_defaults(verb=submit)

    parser = verbs.add_parser("list", help="list the studies of a cluster's jobs, of a storage, or of both")
    parser.add_argument("--address", metavar="URL", help=ADDRESS)
    parser.add_argument("--storage", help="folder or URI that holds studies")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(verb=list_studies)

    parser = verbs.add_parser("logs", help="print what a study's job has printed")
    parser.add_argument("name", metavar="NAME_OR_JOB", help="a study's name, its folder, or a job's id")
    parser.add_argument("--address", required=True, metavar="URL", help=ADDRESS)
    parser.add_argument("--follow", action="store_true", help="go on until the job ends")
    parser.set_defaults(verb=logs)


def submit(options: argparse.Namespace) -> int:
    from study.connection import once_ended

    # Before a cluster is asked.
    check_places(load(options)[0])
    cluster = reached(options.address)
    told = sys.stderr if options.json else sys.stdout

    def attempt() -> Submitted:
        return cluster.submit(
            options.file,
            storage=options.storage,
            settings=options.set,
            restarts=options.restarts,
            small=options.small,
            data=options.data,
            show=lambda line: print(line, file=told, flush=True),
        )

    done = once_ended(cluster, attempt)
    if options.json:
        print(json.dumps(done.to_json(), indent=1))
        return OK
    print(done.message)
    for line in next_steps(done, cluster.address):
        print(line)
    return OK


def list_studies(options: argparse.Namespace) -> int:
    if options.address is None and options.storage is None:
        raise StoreError("give --address of a cluster, --storage of studies, or both")
    found: dict[str, Any] = {}
    if options.address is not None:
        found["jobs"] = [job.to_json() for job in reached(options.address).jobs()]
    damaged: list[str] = []
    if options.storage is not None:
        found["studies"] = list(_studies(options.storage, damaged))
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(_tables(found)))
    for problem in damaged:
        print(f"study: {problem}", file=sys.stderr)
    return BAD_INPUT if damaged else OK


def _studies(storage: str, damaged: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each study of a storage; those that cannot be read are told instead."""
    from study.reader import StudyReader
    from study.status import status
    from study.store import StudyFolder

    for name in Files(storage).names():
        if not is_plain(name):
            continue
        folder = StudyFolder(child(storage, name))
        try:
            if folder.read("study.json") is None:
                continue
            seen = json.loads(status(StudyReader(folder)).to_json())
        except StoreError as error:
            damaged.append(str(error))
            continue
        yield {
            "study": name,
            "folder": folder.uri,
            "replicates": seen["replicates"],
            "driver": seen["driver"],
            "best": seen["best"],
        }


def _tables(found: Mapping[str, list[Mapping[str, Any]]]) -> Iterator[str]:
    for kind, empty in (("jobs", "no jobs of studies"), ("studies", "no studies")):
        if kind not in found:
            continue
        rows = [_job_row(row) if kind == "jobs" else _study_row(row) for row in found[kind]]
        head = _JOB_HEAD if kind == "jobs" else _STUDY_HEAD
        if not rows:
            yield empty
            continue
        table = [head, *rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        for row in table:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _job_row(job: Mapping[str, Any]) -> tuple[str, ...]:
    def time(key: str) -> str:
        return str(job[key] or "").replace("T", " ").replace("+00:00", " UTC")

    return job["job"], job["study"], job["state"], time("started"), time("ended"), job["message"]


def _study_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    planned = row["replicates"]["planned"]
    counts = ", ".join(f"{n} {state}" for state, n in row["replicates"].items() if n and state != "planned")
    counts = f"{counts} of {planned}"
    driver = row["driver"]
    return row["study"], counts, "nobody" if driver is None else f"{driver['where']} ({driver['state']})"


def logs(options: argparse.Namespace) -> int:
    cluster = reached(options.address)
    job = cluster.job(options.name)
    try:
        for line in cluster.logs(job.job, options.follow):
            print(line, flush=options.follow)
    except KeyboardInterrupt:
        print(f"study: no longer followed; job {job.job} goes on", file=sys.stderr)
        return INTERRUPTED
    if options.follow and not (ended := cluster.job(job.job)).is_live:
        print(f"job {ended.job} {ended.state}: {ended.message}")
    return OK
