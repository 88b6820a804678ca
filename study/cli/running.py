"""`study run`: train what a folder lacks, as the only one who does."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from study.budget import reached, used
from study.cli.codes import FAILED_TRIALS, INTERRUPTED, OK, STOPPED_BY_BUDGET
from study.cli.looking import print_report
from study.cli.numbers import whole
from study.cli.planning import file_arguments, load, plan_lines, text
from study.lock import Lease, hold
from study.plan import make_plan
from study.preflight import check_this_machine, check_weights
from study.provenance import new_run_id
from study.reader import open_study
from study.records import pieces
from study.schema1 import old_spec, take_over
from study.spec import Study, StudyError
from study.store import StoreError, StudyFolder
from study.words import count, duration

if TYPE_CHECKING:
    from study.plan import Plan

#: Distinct reasons of failed trials that are printed; the report has all.
_MOST_REASONS = 5


def register(verbs: Any) -> None:
    """Add these verbs to the command."""
    parser = verbs.add_parser("run", help="train what a study's folder does not have yet, then report")
    file_arguments(parser)
    run_arguments(parser, "Ray cluster to run on; without it, one of this run's own on this machine")
    parser.set_defaults(verb=run)


def run_arguments(parser: argparse.ArgumentParser, address: str) -> None:
    """What every verb that runs a study takes; `address` says what its own is for."""
    parser.add_argument("--address", help=address)
    parser.add_argument("--cpus", type=whole(1), help="CPUs that a cluster of our own may use (default: all)")
    parser.add_argument(
        "--download", action="store_true", help="let torchvision fetch missing data sets into the data root"
    )
    parser.add_argument("--no-report", action="store_true", help="do not write the report at the end")


def run(options: argparse.Namespace) -> int:
    study, folder = load(options)
    return run_study(study, folder, text(options.file), options)


def run_study(study: Study, folder: StudyFolder, written: str, options: argparse.Namespace) -> int:
    """Train what the folder lacks, and report.

    Args:
        study: what is asked for.
        folder: its folder.
        written: the study file as its user wrote it.
        options: `address`, `cpus`, `download` and `no_report`.
    """
    if options.address is not None and options.cpus is not None:
        raise StudyError(["--cpus is for a cluster of our own; with --address the cluster decides"])
    if options.download:
        from trainables.data import download

        recipes = [recipe for _, recipe in study.points] or [study.anywhere(arm) for arm in study.design.arms]
        for dataset in dict.fromkeys(recipe.dataset for recipe in recipes):
            download(dataset, study.data_root())
    code = _run_alone(study, folder, new_run_id(), written, options)
    if code != INTERRUPTED and not options.no_report:
        print_report(folder.uri, None)
    return code


def _run_alone(study: Study, folder: StudyFolder, run: str, written: str, options: argparse.Namespace) -> int:
    """Refuse what is wrong before anything is touched; then hold the folder for as long as it is written."""
    if (there := old_spec(folder)) is not None:
        if there["name"] != study.name:
            raise _another(there, folder)
        with hold(folder, run):
            take_over(folder)
        print(f"{folder.uri} was of schema 1 and has been taken over")
    before = _state(folder)
    plan = make_plan(study, folder)
    refuse_another_study(study, plan, folder)
    if _missing(plan):
        check_weights(plan)
        if options.address is None:
            check_this_machine(plan.study.resources, options.cpus)
    folder.check_writable()
    with hold(folder, run) as lease:
        if _state(folder) != before:
            # Whoever held it until just now has finished something.
            plan = make_plan(study, folder)
        print("\n".join(plan_lines(plan, folder)), flush=True)
        take_over(folder)  # what was cut short of it, if anything was
        folder.tidy()
        if not _missing(plan):
            # The folder shows the study that was asked for last, also when other runs have trained it all.
            folder.save_study(study.model_dump(mode="json"), written, plan.rows())
            return OK
        if (limit := reached(study.budget, study.price, used(folder.runs()))) is not None:
            # Before a cluster is started or asked.
            print(_over(limit, folder), file=sys.stderr)
            return STOPPED_BY_BUDGET
        return _train(plan, folder, run, written, lease, options)


def _missing(plan: Plan) -> bool:
    return bool(plan.todo) or any(plan.unsampled().values())


def _state(folder: StudyFolder) -> tuple[object, object]:
    """What a plan of a folder depends on."""
    return pieces(folder), folder.read("chosen.json")


def _train(plan: Plan, folder: StudyFolder, run: str, written: str, lease: Lease, options: argparse.Namespace) -> int:
    from study.cluster import connected  # Ray takes seconds to import: only here
    from study.runner import run_plan

    with connected(options.address, options.cpus):
        # Whoever stops this process politely gets the clean end of the keyboard's; Ray has just set its own.
        signal.signal(signal.SIGTERM, _interrupt)
        summary = run_plan(plan, folder, run, written, lease, monitored=options.address is not None)
    ended = ", ".join(f"{n} {state}" for state, n in summary.ended.items()) or "none ended"
    print(
        f"{count(summary.trials, 'trial')} in {duration(summary.seconds)}: {ended}; "
        f"{duration(summary.train_seconds)} of training in all trials together"
    )
    for line in summary.remarks:
        print(f"study: {line}", file=sys.stderr)
    for line in summary.exhausted:
        print(f"search of {line}")
    for reason in summary.reasons[:_MOST_REASONS]:
        print(f"study: failed: {reason}", file=sys.stderr)
    for line in summary.unmeasured:
        print(f"study: {line}; the same command measures again", file=sys.stderr)
    if summary.budget is not None:
        print(_over(summary.budget, folder), file=sys.stderr)
        return STOPPED_BY_BUDGET
    if summary.interrupted:
        why = f"stopped as {summary.asked} asked" if summary.asked else "interrupted"
        print(f"{why}: what is finished is in {folder.uri}; the same command goes on from there")
        return INTERRUPTED
    if summary.ended.get("failed"):
        print(
            f"study: {summary.ended['failed']} trials failed; the report says why, the same command tries again",
            file=sys.stderr,
        )
        return FAILED_TRIALS
    return FAILED_TRIALS if summary.unmeasured else OK


def _over(limit: str, folder: StudyFolder) -> str:
    key = limit.partition(":")[0]
    return (
        f"study: stopped by its budget ({limit}); what is finished is in {folder.uri}, and the same command goes on "
        f"from there with more (--set {key}=...)"
    )


def _interrupt(*_: Any) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's `&` starts it so, and until Ray Tune trains nobody else has set it.
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def refuse_another_study(study: Study, plan: Plan, folder: StudyFolder) -> None:
    """A folder is continued only by a study with the same name that asks the same question or shares a cell."""
    if folder.foreign():
        raise StoreError(f"{folder.uri} holds other files and no study; choose another name or --storage")
    there = folder.spec()
    if there is not None and (
        there["name"] != study.name
        or (
            there["question"] != study.question
            and not ({cell.id for cell in plan.cells} & set(open_study(folder.uri).replicates()["cell"]))
        )
    ):
        raise _another(there, folder)


def _another(there: Mapping[str, Any], folder: StudyFolder) -> StoreError:
    return StoreError(
        f"{folder.uri} holds another study ({there['name']}: {there['question'].strip()}); "
        "choose another name or --storage"
    )
