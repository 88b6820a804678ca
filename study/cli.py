"""The `study` command. Each verb is a thin line from the arguments to the package; errors are one clear line each."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from study.reader import open_study
from study.spec import Study, StudyError
from study.store import StoreError, StudyFolder, child
from trainables.data import DataError
from trainables.models.weights import WeightsError

if TYPE_CHECKING:
    from study.plan import Plan

#: Exit codes, as `study --help` lists them.
OK, FAILED_TRIALS, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

#: Distinct reasons of failed trials that are printed; the report has all.
_MOST_REASONS = 5

_EPILOG = """\
exit codes: 0 done; 1 done, but some trials failed; 2 the input, the data, the storage or the cluster is not as it has
to be (each problem on a line of its own, nothing changed on disk); 130 interrupted (the same command goes on)"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    parser = _Parser(prog="study", description="Studies of sharpness-aware training on Ray Tune.", epilog=_EPILOG)
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    plan = verbs.add_parser("plan", help="check a study file and say what running it would do")
    _file_arguments(plan)
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.set_defaults(verb=_plan)

    run = verbs.add_parser("run", help="train what a study's folder does not have yet, then report")
    _file_arguments(run)
    run.add_argument("--address", help="Ray cluster to run on; without it, one of this run's own on this machine")
    run.add_argument("--cpus", type=_positive, help="CPUs that a cluster of our own may use (default: all)")
    run.add_argument(
        "--download", action="store_true", help="let torchvision fetch missing data sets into the data root"
    )
    run.add_argument("--no-report", action="store_true", help="do not write the report at the end")
    run.set_defaults(verb=_run)

    report = verbs.add_parser("report", help="draw the figures, tables and page of a study's folder")
    report.add_argument("folder", help="the study's folder, e.g. results/digits_sensitivity, or a URI")
    report.add_argument(
        "--out", help="where to write it (default: the folder's own report/; NAME-report here if that is remote)"
    )
    report.set_defaults(verb=_report)

    export = verbs.add_parser("export", help="write a trained network's weights, for `pretrained:` of another study")
    export.add_argument("folder", help="the study's folder or URI")
    export.add_argument("--out", required=True, help="the file to write (safetensors)")
    export.add_argument("--cell", help="id of a cell, or its beginning (default: the best by validation)")
    export.add_argument("--seed", type=int, help="which replicate (default: the lowest seed)")
    export.set_defaults(verb=_export)

    toy = verbs.add_parser("toy", help="draw the paper's two-dimensional example (section 3.1, figures 1 to 3)")
    toy.add_argument("--out", default="results/toy", help="where to write figures and tables (default: results/toy)")
    toy.set_defaults(verb=_toy)

    options = parser.parse_args(arguments)
    try:
        code: int = options.verb(options)
        return code
    except (StudyError, StoreError, DataError, WeightsError) as error:
        for line in str(error).splitlines():
            print(f"study: {line}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        # During the run itself Ray Tune ends the trials and `_train` reports; this is before or after it.
        print("study: interrupted; nothing that was finished is lost", file=sys.stderr)
        return INTERRUPTED


def _file_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="the study's YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting above the file's, e.g. epochs=2",
    )
    parser.add_argument(
        "--small", action="store_true", help="take the file's own `small` settings: the same study on two cores"
    )
    parser.add_argument("--storage", help="folder or URI that holds studies (above the file's)")
    parser.add_argument("--data", help="folder of the data sets' files (above the file's)")


def _load(options: argparse.Namespace) -> tuple[Study, StudyFolder]:
    overrides = list(options.set)
    for key in ("storage", "data"):
        if getattr(options, key) is not None:
            # As JSON: a path that looks like another YAML value stays text.
            overrides.append(f"{key}={json.dumps(getattr(options, key))}")
    study = Study.load(options.file, overrides, small=options.small)
    return study, StudyFolder(child(study.storage, study.name))


def _plan(options: argparse.Namespace) -> int:
    from study.plan import make_plan

    study, folder = _load(options)
    plan = make_plan(study, folder)
    if options.json:
        print(json.dumps(_plan_json(plan, folder), indent=1))
        return OK
    for line in _plan_lines(plan, folder):
        print(line)
    return OK


def _plan_json(plan: Plan, folder: StudyFolder) -> dict[str, Any]:
    return {
        "study": plan.study.name,
        "folder": folder.uri,
        "cells": len(plan.cells),
        "seeds": list(plan.study.seeds),
        "replicates": plan.replicates,
        "replicates_done": plan.done,
        "cells_to_sample": plan.unsampled(),
        "unmeasurable": plan.unmeasurable,
        "rungs": plan.rungs(),
        "work": plan.work(),
        "done": [{"cell": cell, "seed": seed, "status": row["status"]} for (cell, seed), row in plan.ended.items()],
        "trials": [
            {
                "trial": t.id,
                "cell": t.cell.id,
                "arm": t.cell.arm,
                "seeds": list(t.seeds),
                "epochs": t.epochs,
                "only_measured": bool(t.trained),
            }
            for t in plan.todo
        ],
    }


def _plan_lines(plan: Plan, folder: StudyFolder) -> list[str]:
    study = plan.study
    lines = [f"{study.name}: {study.question}"]
    for arm in study.design.arms:
        lines.append(f"  {arm}: {_arm_cells(plan, arm)}")
    measure = sum(bool(trial.trained) for trial in plan.todo)
    train = len(plan.todo) - measure + sum(plan.unsampled().values())
    lines.append(
        f"  {_count(plan.replicates // len(study.seeds), 'cell')} x {_count(len(study.seeds), 'seed')} = "
        f"{plan.replicates} replicates, {plan.done} done; {_count(train, 'trial')} to train (a trial trains the "
        "missing seeds of a cell)"
    )
    if study.search is None and (excepted := study.design.excepted()):
        settings = ", ".join(f"{key} in {n}" for key, n in excepted.items())
        lines.append(f"  exceptions set {settings} of {_count(len(plan.cells), 'cell')}")
    if study.measures:
        when = f"; {_count(measure, 'trained trial')} to measure" if measure else ", of every trial that is complete"
        lines.append(f"  measures: {', '.join(study.measures)}{when}")
    if plan.unmeasurable:
        lines.append(
            f"  {_count(len(plan.unmeasurable), 'complete trial')} kept no checkpoint (checkpoints.final: false), "
            "so it cannot be measured any more"
        )
    rungs = plan.rungs()
    lines.append(
        f"  scheduler {study.scheduler}" + (f": decides at epochs {', '.join(map(str, rungs))}" if rungs else "")
    )
    lines.append(f"  folder {folder.uri}")
    work = plan.work()
    if measure and not train:
        lines.append("  nothing to train is missing")
    elif train:
        most = "at most " if rungs else ""
        lines.append(
            f"  work: {most}{work['epochs']:,} replicate epochs, {work['gradients']:,} minibatch gradients, "
            f"{work['images']:,} training images"
        )
        speed = _measured_speed(plan)
        if speed is not None:
            lines.append(f"  time: {most}{_duration(speed[0] * work['gradients'])} of training {speed[1]}")
    else:
        lines.append("  nothing is missing")
    return lines


def _arm_cells(plan: Plan, arm: str) -> str:
    """`30 cells (5 gamma x 6 eta)`, or what a search samples of an arm."""
    study = plan.study
    search = study.searched(arm)
    if search is not None:
        left = plan.unsampled()[arm]
        return (
            f"{_count(search.cells, 'cell')} by {search.sampler} over {', '.join(search.space)}, "
            f"{left} still to be chosen"
        )
    recipes = [cell.recipe for cell in plan.cells if cell.arm == arm]
    counts = {key: len({repr(getattr(r, key)) for r in recipes}) for key in study.grid}
    axes = [f"{n} {key}" for key, n in counts.items() if n > 1]
    return _count(len(recipes), "cell") + (f" ({' x '.join(axes)})" if axes else "")


def _measured_speed(plan: Plan) -> tuple[float, str] | None:
    """Seconds per minibatch gradient of the replicates that this study has trained; None before there are any."""
    rows = [row for row in plan.ended.values() if row.get("gradient_evaluations")]
    if not rows:
        return None
    seconds, gradients = (sum(row[key] for row in rows) for key in ("train_seconds", "gradient_evaluations"))
    return (
        seconds / gradients,
        f"on one trial's resources, at the speed of the {len(rows)} replicates trained",
    )


def _run(options: argparse.Namespace) -> int:
    from study.plan import make_plan
    from study.preflight import check_weights
    from study.provenance import new_run_id

    if options.address is not None and options.cpus is not None:
        raise StudyError(["--cpus is for a cluster of our own; with --address the cluster decides"])
    study, folder = _load(options)
    if options.download:
        from trainables.data import download

        recipes = [recipe for _, recipe in study.points] or [study.anywhere(arm) for arm in study.design.arms]
        for dataset in dict.fromkeys(recipe.dataset for recipe in recipes):
            download(dataset, study.data_root())
    plan = make_plan(study, folder)
    _refuse_another_study(study, plan, folder)
    folder.check_writable()
    print("\n".join(_plan_lines(plan, folder)), flush=True)
    code = OK
    missing = bool(plan.todo) or any(plan.unsampled().values())
    if not missing:
        # The folder shows the study that was asked for last, also when other runs have trained it all.
        folder.save_study(study.model_dump(mode="json"), _text(options.file), plan.rows())
    if missing:
        check_weights(plan)
        code = _train(plan, folder, new_run_id(), options)
    if code != INTERRUPTED and not options.no_report:
        _print_report(folder.uri, None)
    return code


def _train(plan: Plan, folder: StudyFolder, run: str, options: argparse.Namespace) -> int:
    from study.cluster import ClusterError, check_this_machine, connected  # Ray takes seconds to import: only here
    from study.runner import run_plan

    try:
        if options.address is None:
            check_this_machine(plan.study.resources, options.cpus)
        with connected(options.address, options.cpus):
            # Whoever stops this process politely gets the clean end of the keyboard's; Ray has just set its own.
            signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
            summary = run_plan(plan, folder, run, _text(options.file))
    except ClusterError as error:
        print(f"study: {error}", file=sys.stderr)
        return BAD_INPUT
    ended = ", ".join(f"{n} {state}" for state, n in summary.ended.items()) or "none ended"
    print(
        f"{_count(summary.trials, 'trial')} in {_duration(summary.seconds)}: {ended}; "
        f"{_duration(summary.train_seconds)} of training in all trials together"
    )
    for line in summary.exhausted:
        print(f"search of {line}")
    for reason in summary.reasons[:_MOST_REASONS]:
        print(f"study: failed: {reason}", file=sys.stderr)
    for line in summary.unmeasured:
        print(f"study: {line}; the same command measures again", file=sys.stderr)
    if summary.interrupted:
        print(f"interrupted: what is finished is in {folder.uri}; the same command goes on from there")
        return INTERRUPTED
    if summary.ended.get("failed"):
        print(
            f"study: {summary.ended['failed']} trials failed; the report says why, the same command tries again",
            file=sys.stderr,
        )
        return FAILED_TRIALS
    return FAILED_TRIALS if summary.unmeasured else OK


def _refuse_another_study(study: Study, plan: Plan, folder: StudyFolder) -> None:
    """A folder is continued only by a study with the same name that asks the same question or shares a cell."""
    if folder.foreign():
        raise StoreError(f"{folder.uri} holds other files and no study; choose another name or --storage")
    there = folder.spec()
    if there is None:
        return
    if there["name"] != study.name or (
        there["question"] != study.question
        and not ({cell.id for cell in plan.cells} & set(open_study(folder.uri).replicates()["cell"]))
    ):
        raise StoreError(
            f"{folder.uri} holds another study ({there['name']}: {there['question'].strip()}); "
            "choose another name or --storage"
        )


def _report(options: argparse.Namespace) -> int:
    _print_report(options.folder, options.out)
    return OK


def _export(options: argparse.Namespace) -> int:
    from analysis.tables import best_cell, cells
    from study.export import export

    reader, cell = open_study(options.folder), options.cell
    if cell is None:
        best = best_cell(cells(reader.replicates()))
        if best is None:
            raise StoreError(f"{reader.folder.uri}: no cell is complete yet")
        cell = str(best["cell"])
    print(export(reader, options.out, cell, options.seed))
    return OK


def _toy(options: argparse.Namespace) -> int:
    from analysis.toy import toy

    try:
        print("\n".join(toy(options.out)))
    except OSError as error:
        raise StoreError(f"cannot write to {options.out}: {error.strerror or error}") from None
    return OK


def _print_report(uri: str, out: str | None) -> None:
    from analysis.report import summary_lines, write_report

    reader = open_study(uri)
    if out is None:
        # Pictures of a study on object storage are for the person at this machine.
        out = f"{reader.folder.uri}/report" if reader.folder.is_local else f"{reader.spec['name']}-report"
    if "://" in out:
        raise StoreError(f"--out {out}: a report is written to a folder of this machine")
    try:
        report = write_report(reader, out)
    except OSError as error:
        raise StoreError(f"cannot write the report to {out}: {error.strerror or error}") from None
    for line in summary_lines(reader, report):
        print(line)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _text(file: str) -> str:
    return Path(file).read_text(encoding="utf-8")


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def _duration(seconds: float) -> str:
    from study.progress import duration

    return duration(seconds)


if __name__ == "__main__":
    sys.exit(main())
