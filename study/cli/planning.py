"""`study plan`: what running a study file would do; and the file and folder that every verb means."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.budget import HOUR, Balance, Usage, estimated_lines, used
from study.cli.codes import OK
from study.cli.numbers import seconds
from study.spec import Study
from study.store import StudyFolder, child
from study.words import count, duration

if TYPE_CHECKING:
    from study.plan import Plan


def register(verbs: Any) -> None:
    """Add these verbs to the command."""
    parser = verbs.add_parser("plan", help="check a study file and say what running it would do")
    file_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument(
        "--seconds-per-epoch",
        type=seconds,
        metavar="SECONDS",
        help="what an epoch of one seed takes, to estimate time and cost (default: what this folder's have taken)",
    )
    parser.set_defaults(verb=plan)


def file_arguments(parser: argparse.ArgumentParser) -> None:
    """What every verb that takes a study file takes."""
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


def load(options: argparse.Namespace) -> tuple[Study, StudyFolder]:
    """The study that the arguments mean, and its folder."""
    overrides = list(options.set)
    for key in ("storage", "data"):
        if getattr(options, key) is not None:
            # As JSON: a path that looks like another YAML value stays text.
            overrides.append(f"{key}={json.dumps(getattr(options, key))}")
    study = Study.load(options.file, overrides, small=options.small)
    return study, StudyFolder(child(study.storage, study.name))


def text(file: str) -> str:
    """The study file as its user wrote it."""
    return Path(file).read_text(encoding="utf-8")


def plan(options: argparse.Namespace) -> int:
    from study.plan import make_plan

    study, folder = load(options)
    made = make_plan(study, folder)
    if options.json:
        print(json.dumps(_plan_json(made, folder, options.seconds_per_epoch), indent=1))
        return OK
    for line in plan_lines(made, folder, options.seconds_per_epoch):
        print(line)
    return OK


def _plan_json(plan: Plan, folder: StudyFolder, seconds_per_epoch: float | None) -> dict[str, Any]:
    study, runs = plan.study, folder.runs()
    time = _training_time(plan, folder, seconds_per_epoch)
    resources = _resources(plan, runs)
    need = None if time is None or resources is None else Usage.of(resources, time[0])
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
        "early_stopping": _expected(plan),
        "work": plan.work(),
        "estimate": {
            # None where nobody knows.
            "training_seconds": None if time is None else time[0],
            "gpu_hours": None if need is None else need.gpu / HOUR,
            "cpu_hours": None if need is None else need.cpu / HOUR,
            "cost": None if need is None or study.price is None else need.cost(study.price),
        },
        "balance": _balance(plan, runs).to_json(),
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


def plan_lines(plan: Plan, folder: StudyFolder, seconds_per_epoch: float | None = None) -> list[str]:
    """What running a plan would do."""
    study = plan.study
    lines = [f"{study.name}: {study.question}"]
    for arm in study.design.arms:
        lines.append(f"  {arm}: {_arm_cells(plan, arm)}")
    measure = sum(bool(trial.trained) for trial in plan.todo)
    train = len(plan.todo) - measure + sum(plan.unsampled().values())
    lines.append(
        f"  {count(plan.replicates // len(study.seeds), 'cell')} x {count(len(study.seeds), 'seed')} = "
        f"{plan.replicates} replicates, {plan.done} done; {count(train, 'trial')} to train (a trial trains the "
        "missing seeds of a cell)"
    )
    if study.search is None and (excepted := study.design.excepted()):
        settings = ", ".join(f"{key} in {n}" for key, n in excepted.items())
        lines.append(f"  exceptions set {settings} of {count(len(plan.cells), 'cell')}")
    if study.measures:
        when = f"; {count(measure, 'trained trial')} to measure" if measure else ", of every trial that is complete"
        lines.append(f"  measures: {', '.join(study.measures)}{when}")
    if plan.unmeasurable:
        lines.append(
            f"  {count(len(plan.unmeasurable), 'complete trial')} kept no checkpoint (checkpoints.final: false), "
            "so it cannot be measured any more"
        )
    rungs = plan.rungs()
    lines.append(
        f"  scheduler {study.scheduler}" + (f": decides at epochs {', '.join(map(str, rungs))}" if rungs else "")
    )
    lines += [f"  {line}" for line in _stopping_lines(plan)]
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
        lines += [f"  {line}" for line in _cost_lines(plan, folder, most, seconds_per_epoch)]
    else:
        lines.append("  nothing is missing")
    return lines


def _cost_lines(plan: Plan, folder: StudyFolder, most: str, seconds_per_epoch: float | None) -> list[str]:
    """Time and cost of what is missing, as far as they can be known, and what is used of the budget."""
    study, runs = plan.study, folder.runs()
    asked = bool(study.budget) or study.price is not None
    time = _training_time(plan, folder, seconds_per_epoch)
    lines = []
    if time is not None:
        seconds, why = time
        lines.append(f"time: {most}{duration(seconds)} of training {why}")
        if asked:
            lines += estimated_lines(seconds, _resources(plan, runs), study.budget, study.price, used(runs), most=most)
    elif asked:
        lines.append("time and cost: not known before an epoch is trained; --seconds-per-epoch estimates them")
    if asked and (runs or study.budget):
        lines.append(str(_balance(plan, runs)))
    return lines


def _balance(plan: Plan, runs: Sequence[Mapping[str, Any]]) -> Balance:
    return Balance.of(plan.study.model_dump(mode="json", include={"budget", "price"}), used(runs))


def _resources(plan: Plan, runs: Sequence[Mapping[str, Any]]) -> Mapping[str, float] | None:
    """A trial's devices: as the study says, else as the last run had them; None where they are still to be chosen."""
    asked = plan.study.resources
    cpu = asked.cpu or asked.several
    if asked.gpu:
        return {"gpu": asked.gpu, "cpu": cpu}
    if asked.gpu == 0 or all(trial.cell.recipe.device == "cpu" for trial in plan.todo):
        return {"gpu": 0.0, "cpu": cpu}
    return next((run["resources"] for run in reversed(runs) if run.get("resources")), None)


def _training_time(plan: Plan, folder: StudyFolder, seconds_per_epoch: float | None) -> tuple[float, str] | None:
    """Seconds of training that are missing on one trial's resources, and how they are known; None if they are not."""
    work, abreast = plan.work(), plan.study.resources.abreast(len(plan.study.seeds))
    if seconds_per_epoch is not None:
        said = f"on one trial's resources, at {seconds_per_epoch:g} s an epoch"
        return seconds_per_epoch * work["epochs"] / abreast, said
    speed = _measured_speed(plan, folder)
    return None if speed is None else (speed[0] * work["gradients"] / abreast, speed[1])


def _expected(plan: Plan) -> dict[str, Any] | None:
    """What ASHA would do to this plan if cells were ranked at random: share of the epochs saved, cells trained in full,
    cells of each arm; None under fifo.
    """
    if plan.study.scheduler.name != "asha":
        return None
    from analysis.replay import Setting, expected

    epochs = {arm: asha.max_t for arm, asha in plan.ashas().items()}
    counts = Counter(cell.arm for cell in plan.cells)
    counts.update(plan.unsampled())
    arms = {arm: counts[arm] for arm in epochs}
    found = expected([(n, epochs[arm]) for arm, n in arms.items()], Setting(*plan.study.scheduler.settings()))
    return {"saved": round(found.saved, 4), "complete": round(found.complete, 2), "cells": arms}


#: A share of the epochs below which early stopping is not worth what it loses.
_WORTH = 0.25


def _stopping_lines(plan: Plan) -> list[str]:
    """A warning where a study is too small for ASHA to pay."""
    expected = _expected(plan)
    if expected is None:
        return []
    _, factor = plan.study.scheduler.settings()
    # The only cell of an arm is never stopped.
    few = [f"{arm} ({n})" for arm, n in expected["cells"].items() if 1 < n < factor**2]
    if few:
        why = (
            f"too few cells for ASHA to choose well: {', '.join(few)}, fewer than reduction_factor squared "
            f"({factor**2}); a cell is judged by a handful of others"
        )
    elif expected["saved"] < _WORTH:
        why = "ASHA can save little here"
    else:
        return []
    more = "lower grace_period" if expected["saved"] < _WORTH else "lower reduction_factor, plan more cells"
    cells = sum(expected["cells"].values())
    return [
        f"warning: {why}",
        f"  if cells ranked at random, it would save {expected['saved'] * 100:.0f} % of the epochs and train "
        f"{expected['complete']:.0f} of {count(cells, 'cell')} in full",
        f"  train all in full (--set scheduler=fifo), or {more}; `study audit` says what stopping would have lost",
    ]


def _arm_cells(plan: Plan, arm: str) -> str:
    """`30 cells (5 gamma x 6 eta)`, or what a search samples of an arm."""
    study = plan.study
    search = study.searched(arm)
    if search is not None:
        left = plan.unsampled()[arm]
        return (
            f"{count(search.cells, 'cell')} by {search.sampler} over {', '.join(search.space)}, "
            f"{left} still to be chosen"
        )
    recipes = [cell.recipe for cell in plan.cells if cell.arm == arm]
    counts = {key: len({repr(getattr(r, key)) for r in recipes}) for key in study.grid}
    axes = [f"{n} {key}" for key, n in counts.items() if n > 1]
    return count(len(recipes), "cell") + (f" ({' x '.join(axes)})" if axes else "")


def _measured_speed(plan: Plan, folder: StudyFolder) -> tuple[float, str] | None:
    """Seconds per minibatch gradient of what this study has trained; None before there are any.

    Of trials that have ended, or else of those that have begun.
    """
    columns = ["train_seconds", "gradient_evaluations"]
    rows: list[Mapping[str, Any]] = [row for row in plan.ended.values() if row.get(columns[1])]
    said = f"the {count(len(rows), 'replicate')} trained"
    if not rows:
        # Each row's cost counts from its trial's beginning: the last is what all of them took.
        last: dict[tuple[str, int], Mapping[str, Any]] = {}
        for row in folder.rows("history", ["cell", "seed", *columns]):
            key = (row["cell"], row["seed"])
            if key not in last or row[columns[1]] > last[key][columns[1]]:
                last[key] = row
        rows = [row for row in last.values() if row[columns[1]]]
        said = f"the {count(len(rows), 'replicate')} begun"
    if not rows:
        return None
    seconds, gradients = (sum(row[key] for row in rows) for key in columns)
    return seconds / gradients, f"on one trial's resources, at the speed of {said}"
