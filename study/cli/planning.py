"""`study plan`: what running a study file would do; and the file and folder that every verb means."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.cli.codes import OK
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
        print(json.dumps(_plan_json(made, folder), indent=1))
        return OK
    for line in plan_lines(made, folder):
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
        "early_stopping": _expected(plan),
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


def plan_lines(plan: Plan, folder: StudyFolder) -> list[str]:
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
        speed = _measured_speed(plan)
        if speed is not None:
            lines.append(f"  time: {most}{duration(speed[0] * work['gradients'])} of training {speed[1]}")
    else:
        lines.append("  nothing is missing")
    return lines


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
