"""The verbs that follow a run from anywhere that reaches its study's folder: watch, stop, resume."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from study.cli.clusters import next_steps, reached
from study.cli.codes import BAD_INPUT, FAILED_TRIALS, INTERRUPTED, OK, STOPPED_BY_BUDGET
from study.cli.named import meant, named
from study.cli.numbers import seconds, whole
from study.cli.running import run_arguments, run_study
from study.naming import folder_elsewhere
from study.preflight import ClusterError
from study.spec import Study, StudyError
from study.store import StoreError, StudyFolder
from study.words import duration

if TYPE_CHECKING:
    from study.lock import Holder
    from study.spectator import Look, Spectator
    from study.stopping import Asked

#: Seconds between two looks: at a terminal, and for lines.
_LIVE_EVERY, _LINES_EVERY = 5.0, 10.0

#: Seconds between two signs that a stop is still waited for.
_TOLD_EVERY = 30.0

_CODES = {
    "complete": OK,
    "failed": FAILED_TRIALS,
    "budget": STOPPED_BY_BUDGET,
    "interrupted": INTERRUPTED,
    "broken": BAD_INPUT,
    "cut off": BAD_INPUT,
}


def register(verbs: Any) -> None:
    """Add these verbs to the command."""
    parser = verbs.add_parser(
        "watch",
        help="show a running study cell by cell, from anywhere, until its run ends",
        description="Show a running study cell by cell until its run ends. The exit code is then that of the run.",
    )
    named(parser)
    parser.add_argument(
        "--every", type=seconds, metavar="SECONDS", help="between two looks (default: 5; 10 where it prints lines)"
    )
    parser.add_argument(
        "--wait", type=seconds, default=0.0, metavar="SECONDS", help="wait so long for a run to begin (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each look")
    parser.set_defaults(verb=watch)

    parser = verbs.add_parser(
        "stop",
        help="ask the run of a study to end: checkpoints first, nothing is lost",
        description="Ask the run of a study to end. Its trials end with the epochs in which they are and keep a "
        "checkpoint; then the run gives its lock back, which is waited for.",
    )
    named(parser)
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="wait at most so long (default: no limit)")
    parser.add_argument(
        "--now", action="store_true", help="do not wait for the epochs: end the process, or with --address the job"
    )
    parser.add_argument("--address", metavar="URL", help="of the cluster whose job it is, for --now")
    parser.set_defaults(verb=stop)

    parser = verbs.add_parser(
        "resume",
        help="go on with a study as its folder has it, without its file",
        description="Go on with a study as its folder has it: what `study run` of its file, with the same settings, "
        "would do.",
    )
    named(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting above the folder's, e.g. budget.wall=4h",
    )
    run_arguments(
        parser,
        "http://HOST:PORT of a cluster's dashboard submits it as a job; another address is a Ray cluster to run on "
        "from here; without it, one of this run's own",
    )
    parser.add_argument(
        "--restarts", type=whole(0), metavar="N", help="of a job: times that a killed run is begun again"
    )
    parser.set_defaults(verb=resume)


# watch


def watch(options: argparse.Namespace) -> int:
    try:
        return _watch(options)
    except KeyboardInterrupt:
        print("study: no longer watched; the run goes on", file=sys.stderr)
        return INTERRUPTED


def _watch(options: argparse.Namespace) -> int:
    from study.spectator import End

    spectator, look = _begun(options)
    if not look.alive:
        with _display(json_lines=options.json, grid=True) as show:
            show(look)
        last = spectator.end(None)
        if not options.json:
            who = f"held by {look.holder}, which may be gone" if look.holder else "nobody runs it now"
            print(f"{who}; {last.line}" if last else who)
        # Who waited for a run wants to know how it went, also if it was over at once.
        return _CODES[last.kind] if options.wait and last else OK
    run = None
    live = sys.stdout.isatty()
    with _display(json_lines=options.json, grid=live) as show:
        for look in spectator.looks(options.every or (_LIVE_EVERY if live else _LINES_EVERY)):
            show(look)
            if look.holder is not None and look.alive:
                run = look.holder.run
    if look.holder is None:
        end = spectator.end(run) or End("complete", f"run {run} found nothing to do")
    else:
        end = End("cut off", f"no sign of life of {look.holder}; `study resume` goes on with the study")
    print(json.dumps({"run": run, "end": end.kind, "message": end.line}) if options.json else end.line)
    return _CODES[end.kind]


def _begun(options: argparse.Namespace) -> tuple[Spectator, Look]:
    """The study's spectator and its first look, once somebody runs it, its run is over, or the wait is."""
    from study.spectator import Spectator

    deadline, first = time.monotonic() + options.wait, True
    known: set[Any] = set()
    while True:
        over = time.monotonic() >= deadline
        try:
            folder = meant(options)
            spectator = Spectator(folder)
            look = spectator.look()
            runs = folder.runs()
            if first:
                known = {run.get("run") for run in runs}
            new = any(run.get("ended") is not None and run.get("run") not in known for run in runs)
            if over or look.alive or new or look.board.done >= look.board.total:
                return spectator, look
        except StoreError:
            # A study that was only just submitted has no folder yet.
            if over:
                raise
        first = False
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))


@contextmanager
def _display(*, json_lines: bool, grid: bool) -> Iterator[Callable[[Look], None]]:
    """Something that shows a look: the grid of a terminal, or a line where it is new."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from study.progress import render, summary

    shown = ""

    def line(look: Look) -> None:
        nonlocal shown
        text = json.dumps(look.to_json()) if json_lines else summary(look.board)
        if json_lines or text != shown:
            print(text, flush=True)
        shown = text

    if json_lines or not grid:
        yield line
        return
    console = Console()
    if not console.is_terminal:
        yield lambda look: console.print(render(look.board))
        return
    with Live(console=console, auto_refresh=False) as view:
        yield lambda look: view.update(
            Group(render(look.board), Text(f"run by {_who(look.holder)}" if look.holder else "", style="dim")),
            refresh=True,
        )


def _who(holder: Holder) -> str:
    """Short enough for a line."""
    return f"{holder.where} (process {holder.pid}, run {holder.run})"


# stop


def stop(options: argparse.Namespace) -> int:
    from study import stopping

    if options.address is not None and not options.now:
        raise StudyError(["--address is for --now; without it the study's folder is enough to ask its run to end"])
    if options.address is not None:
        return _stop_job(folder_elsewhere(options.study, options.storage), options.address)
    folder = meant(options)
    if options.now:
        how = stopping.end_now(folder)
        lock = "; its lock is left, and the next run takes it over at once" if how == "killed" else ""
        print(f"{how}{lock}: what was checkpointed is kept in {folder.uri}")
        return OK
    asked = stopping.ask(folder)
    if asked is None:
        print(f"nobody runs {folder.uri} now")
        return OK
    if asked.holder.state == "gone":
        print(
            f"nobody runs {folder.uri} any more: held by {asked.holder}; its process is gone, the next run takes over"
        )
        return OK
    print(f"asked {_who(asked.holder)} to stop; its trials end with the epochs in which they are", flush=True)
    try:
        return _await(asked, options.timeout)
    except KeyboardInterrupt:
        print("study: no longer waited for; the request stands, and the run ends by it", file=sys.stderr)
        return INTERRUPTED


def _await(asked: Asked, timeout: float | None) -> int:
    from study.spectator import ended
    from study.stopping import wait

    folder, last = asked.folder, 0.0

    def tell(seconds: float) -> None:
        nonlocal last
        if seconds - last >= _TOLD_EVERY:
            last = seconds
            print(f"not yet, after {duration(seconds)}", flush=True)

    began = time.monotonic()
    answer = wait(asked, timeout, tell)
    took = duration(time.monotonic() - began)
    match answer:
        case "given_back":
            record = next((r for r in reversed(folder.runs()) if r.get("run") == asked.holder.run), None)
            said = f": {ended(record).line}" if record else ""
            print(f"stopped after {took}{said}")
            print("`study resume` or the same `study run` goes on from there")
            return OK
        case "gone":
            why = "its process has ended without giving the lock back; what it had checkpointed is kept"
        case "silent":
            why = "it gives no sign of life and may be gone; if it wakes it ends by the request"
        case "waiting":
            why = f"it has not ended after {took}; the request stands (--now ends it without waiting for its epochs)"
    print(f"study: {asked.holder}: {why}", file=sys.stderr)
    return BAD_INPUT


def _stop_job(folder: StudyFolder, address: str) -> int:
    from study.connection import end_job

    cluster = reached(address)
    jobs = [job for job in cluster.jobs() if job.folder == folder.uri and job.is_live]
    if not jobs:
        raise ClusterError(f"no job at {address} runs {folder.uri} now; `study list --address {address}` has all")
    for job in jobs:
        end_job(cluster, job.job)
        print(f"stopped job {job.job}: what was checkpointed is kept in {folder.uri}")
    return OK


# resume


def resume(options: argparse.Namespace) -> int:
    if options.address is not None and options.address.startswith(("http://", "https://")):
        return _submit(folder_elsewhere(options.study, options.storage), options)
    folder = meant(options)
    if options.restarts is not None:
        raise StudyError(["--restarts is for a job: --address http://HOST:PORT"])
    spec, written = folder.spec(), folder.read("study.yaml")
    if spec is None or written is None:
        raise StoreError(f"{folder.uri} holds no study yet; `study run` its file")
    study = Study.frozen(spec, options.set)
    if study.name != spec["name"]:
        raise StudyError(["--set name: a folder keeps its study's name"])
    # What is asked for on the command line is not in the file as it was written; study.json has it.
    return run_study(study, folder, written.decode(errors="replace"), options)


def _submit(folder: StudyFolder, options: argparse.Namespace) -> int:
    from study.connection import once_ended

    for name in ("set", "cpus", "download"):
        if getattr(options, name):
            raise StudyError([f"--{name} is for a run from here; a job runs the study as its folder has it"])
    cluster = reached(options.address)
    done = once_ended(
        cluster,
        lambda: cluster.resume(folder.uri, restarts=options.restarts or 0, show=lambda line: print(line, flush=True)),
    )
    print(done.message)
    if done.already == "running" and done.job is None:
        # By no job of this cluster: of one that was lost, perhaps.
        print("study: nothing was resumed; a run that is lost counts as gone two minutes after its last sign of life")
        return BAD_INPUT
    for line in next_steps(done, cluster.address):
        print(line)
    return OK
