"""Study folders with every status, written through the real store as a run writes them; nobody trained them.

`golden` crosses gamma and eta under ASHA and has every status, `golden_noise` has conditions and measures,
`golden_search` is a search; `large` is one of any size, quickly made. Curves end at each replicate's own accuracy.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import pyarrow as pa

from study import records
from study.measured import tags
from study.plan import make_plan, trial_id
from study.records import Piece, to_parquet
from study.spec import Study
from study.store import StudyFolder
from trainables.recipe import digest

EPOCHS, SEEDS = 12, (0, 1, 2)
GRACE, REDUCTION = 3, 2
SCHEDULER = f"asha(grace_period={GRACE}, reduction_factor={REDUCTION})"
RUN = "20261125-070000-golden"

CONTENT = {
    "name": "golden",
    "question": "How sensitive is Fisher SAM to gamma and eta, and what does each status look like?",
    "recipe": {
        **{"dataset": "digits", "model": "digits_cnn", "train_size": 200},
        **{"epochs": EPOCHS, "batch_size": 32, "lr": 0.05},
    },
    "arms": {"fsam": {"optimiser": "fsam"}, "sam": {"optimiser": "sam"}, "sgd": {"optimiser": "sgd"}},
    "grid": {"gamma": [0.01, 0.05, 0.1, 0.5, 1.0], "eta": [1e-3, 1e-2, 1e-1, 1.0, 10.0]},
    "measures": {"sharpness": {"metrics": ["sam"], "gamma": [0.05, 0.1]}, "curvature": {}},
    "seeds": list(SEEDS),
    "scheduler": {"name": "asha", "grace_period": GRACE, "reduction_factor": REDUCTION},
}  # fmt: skip

#: What became of the seeds of a cell, by (arm, gamma, eta); ASHA decides on the others.
FATES = {
    ("fsam", 1.0, 10.0): ("diverged", "diverged", "diverged"),
    ("fsam", 1.0, 1.0): ("stopped", "diverged", "stopped"),
    ("fsam", 0.01, 1e-3): ("failed", "failed", "failed"),
    ("fsam", 0.01, 1e-2): ("missing", "missing", "missing"),
    ("fsam", 0.05, 10.0): ("running", "running", "running"),
    ("fsam", 0.5, 10.0): ("complete", "complete", "missing"),
    ("sam", 0.01, None): ("complete", "failed", "complete"),
}
DIVERGED_AT, RUNNING_AT = 4, 5
FAILURE = "the worker's node ran out of memory (<2 GiB left & swapping)"


def golden(uri):
    """Every status in one grid. Returns the folder."""
    return _recorded(uri, CONTENT, FATES)


def golden_noise(uri, name="golden_noise", **recipe):
    """Rates of label noise by optimiser with what was perturbed; one cell was stopped by hand, one never begun."""
    content = {
        **CONTENT,
        "name": name,
        "question": "Which optimiser keeps its accuracy when training labels are wrong?",
        "recipe": {**CONTENT["recipe"], **recipe},
        "arms": {
            "sgd": {"optimiser": "sgd"},
            "sam": {"optimiser": "sam", "gamma": 0.1},
            "fsam": {"optimiser": "fsam", "gamma": 0.1, "eta": 1.0},
        },
        "grid": {"label_noise": [0.0, 0.2, 0.4]},
        "measures": {"perturbation": {"alpha": [0.5, 1.0, 2.0], "random_draws": 2}},
        "scheduler": "fifo",
    }
    missing = {("fsam", 0.1, 1.0, 0.4): ("missing",) * len(SEEDS)}
    return _recorded(uri, content, missing)


def golden_search(uri, name="golden_search"):
    """A search of three arms, ten cells each; ASHA stopped some."""
    content = {
        **CONTENT,
        "name": name,
        "question": "With equal tuning, which optimiser is best?",
        "grid": {},
        "measures": {},
        "search": {
            "space": {
                "gamma": {"low": 0.01, "high": 1.0, "log": True},
                "eta": {"low": 1e-3, "high": 10.0, "log": True},
                "lr": {"low": 0.01, "high": 0.3, "log": True},
            },
            "cells": 10,
            "sampler": "random",
        },
        "recipe": {k: v for k, v in CONTENT["recipe"].items() if k != "lr"},
    }
    return _recorded(uri, content, {})


def _recorded(uri, content, fates):
    study, folder = Study.of(content), StudyFolder(str(uri))
    plan = make_plan(study, folder)
    if study.search is not None:
        _draw(plan)
        folder.save_chosen([{"cell": c.id, "arm": c.arm, "values": plan.chosen[c.id]} for c in plan.cells])
    folder.save_study(study.model_dump(mode="json"), _yaml(content), plan.rows())
    run = {"run": RUN, "started": "2026-11-25T07:00:00.000+00:00", "command": ["study", "run", "golden.yaml"]}
    run |= {
        "code": {"commit": "0123456789abcdef0123456789abcdef01234567", "uncommitted_changes": False},
        "versions": {"torch": "2.9"},
        "devices": ["CPU"],
    }
    folder.save_run(RUN, {**run, "ended": "2026-11-25T08:00:00.000+00:00", "seconds": 3600.0, "interrupted": True})
    recording = folder.recording(RUN)
    ashas = plan.ashas()
    sequence = 0
    # The order in which they were launched: shuffled, and not by their ids, which a new SEMANTICS changes.
    for cell in sorted(plan.cells, key=lambda c: zlib.crc32(repr(sorted(c.recipe.settings().items())).encode())):
        facts = cell.recipe.columns()
        fate = list(_fate(fates, cell.arm, facts))
        begun = tuple(s for s, f in zip(SEEDS, fate, strict=True) if f != "missing")
        if not begun:
            continue
        trial = trial_id(cell, begun)
        curves = {seed: _curve(facts, cell.arm, seed) for seed in SEEDS}
        until, rung = EPOCHS, None
        if "decide" in fate:
            fate = ["complete"] * len(SEEDS)
            for epoch in range(1, EPOCHS + 1) if cell.arm in ashas else ():
                decision = ashas[cell.arm].report(
                    cell.id, epoch, float(np.mean([c[epoch - 1] for c in curves.values()]))
                )
                if decision is None:
                    continue
                sequence += 1
                recording.decide(trial, {**vars(decision), "scheduler": SCHEDULER, "run": RUN, "sequence": sequence})
                if decision.stop:
                    until, rung, fate = epoch, decision.rung, ["stopped"] * len(SEEDS)
                    break
        for seed, status in zip(SEEDS, fate, strict=True):
            if status == "missing":
                continue
            last = {"running": RUNNING_AT, "failed": 2}.get(status, DIVERGED_AT if "diverged" in fate else until)
            values = [_epoch(facts, seed, e, curves[seed][e - 1], broken=status == "diverged" and e == last)
                      for e in range(1, last + 1)]  # fmt: skip
            recording.history(trial, [{"cell": cell.id, **row} for row in values])
            if status == "running":
                continue
            recording.end(trial, [_end(cell.id, facts, values[-1], status, "diverged" in fate, rung)])
        if fate == ["complete"] * len(SEEDS):
            _measure(folder, study, trial, cell, facts)
    recording.flush()
    return folder


def _draw(plan):
    random = np.random.default_rng(5)
    study = plan.study
    for i in range(study.search.cells):
        for arm in study.design.arms:
            space = study.searched(arm).space
            values = {}
            for name, axis in space.items():
                low, high = math.log10(axis.low), math.log10(axis.high)
                values[name] = float(10 ** (low + (high - low) * ((i * 0.618 + random.uniform(0, 0.1)) % 1)))
            cell = plan.surveyor.cell(arm, study.sampled(arm, values))
            plan.add(cell, values)


def _fate(fates, arm, facts):
    key = (arm, facts.get("gamma"), facts.get("eta"))
    return fates.get((*key, facts.get("label_noise")), fates.get(key, ("decide",) * len(SEEDS)))


def _random(*of):
    """A generator for these values: equal in each process, as `hash` is not."""
    return np.random.default_rng(zlib.crc32(repr(of).encode()))


def _curve(facts, arm, seed):
    """Validation accuracy by epoch: best around gamma 0.15 and eta 0.3; seeds share their luck over the cells."""
    gamma, eta, lr = facts.get("gamma"), facts.get("eta"), facts.get("lr") or 0.05
    level = 0.950 - 0.25 * (facts.get("label_noise") or 0.0) - 0.01 * (math.log10(lr) + 1.2) ** 2
    if gamma is not None:
        level += 0.020 * math.exp(-((math.log10(gamma) + 0.8) ** 2)) - (0.3 if gamma >= 1 else 0.0)
    if eta is not None:
        level += 0.008 * math.exp(-((math.log10(eta) + 0.5) ** 2) / 2)
    luck = _random("luck", seed).normal(0, 0.004) + _random(arm, gamma, eta, lr, seed, facts.get("label_noise")).normal(
        0, 0.002
    )
    return (level + luck) * (1 - 0.8 * np.exp(-np.arange(1, EPOCHS + 1) / 2.5))


def _epoch(facts, seed, epoch, accuracy, broken):
    steps = 7 * epoch
    row = {"seed": seed, "epoch": epoch, "lr": facts["lr"] * (1 + math.cos(math.pi * (epoch - 1) / EPOCHS)) / 2}
    row |= {
        "train_loss": math.nan if broken else 2.3 * math.exp(-epoch / 3),
        "train_accuracy": min(1.0, accuracy + 0.03),
    }
    row |= {"validation_loss": 2.3 * math.exp(-epoch / 4), "validation_accuracy": float(accuracy)}
    gradients = 1 if facts["optimiser"] == "sgd" else 2
    row |= {
        "images_seen": 200 * epoch,
        "gradient_evaluations": gradients * steps,
        "train_seconds": 0.05 * gradients * epoch,
    }
    if facts["optimiser"] != "sgd":
        cosine = 1.0 if facts.get("eta") is None else 1 - 0.3 * math.exp(-epoch / 4)
        row |= {"eps_norm": facts["gamma"], "cosine_to_sam": cosine, "eta_vanished": 0.0, "skipped_steps": 0.0}
    return row


def _end(cell, facts, last, status, diverged, rung):
    reason = {"diverged": f"diverged at epoch {last['epoch']}", "failed": FAILURE}.get(status)
    scheduler = SCHEDULER if rung is not None else None
    if status == "stopped":
        here = last["epoch"]
        reason = f"another seed diverged at epoch {here}" if diverged else f"stopped by {SCHEDULER} at epoch {here}"
    row = {
        "cell": cell,
        "run": RUN,
        "scheduler": scheduler,
        **last,
        "status": status,
        "reason": reason,
        "device": "CPU",
    }
    if status == "failed":
        return {
            "cell": cell,
            "run": RUN,
            "scheduler": None,
            "seed": last["seed"],
            "status": status,
            "epoch": None,
            "reason": reason,
        }
    row["label_hash"] = "0123456789abcdef"
    if status == "complete":
        accuracy = last["validation_accuracy"] - 0.006 + _random(cell, last["seed"]).normal(0, 0.002)
        row |= {"test_accuracy": float(accuracy), "test_loss": 0.3, "test_top5_accuracy": 0.999}
        if facts.get("label_noise"):
            row |= {"memorised": 0.3 * facts["label_noise"] + 0.01 * last["seed"], "recovered": 0.6}
    return row


def _measure(folder, study, trial, cell, facts):
    for tag, (name, settings) in tags(study.model_dump(mode="json")["measures"]).items():
        rows = []
        for seed in SEEDS:
            noise = _random(name, cell.id, seed)
            if name == "perturbation":
                rows += _perturbed(cell, facts, seed, settings, noise)
            elif name == "curvature":
                trace, top = 90 * noise.uniform(0.8, 1.2), 12 * noise.uniform(0.8, 1.2)
                row = {"cell": cell.id, "seed": seed, "hessian_trace": trace, "top_eigenvalue": top}
                rows.append({**row, "largest_magnitude": top, "converged": True})
            else:
                for gamma in settings["gamma"]:
                    row = {
                        "cell": cell.id,
                        "seed": seed,
                        "metric": "sam",
                        "gamma": gamma,
                        "eta": None,
                        "per_batch": False,
                    }
                    rows.append({**row, "sharpness": gamma * noise.uniform(0.8, 1.2), "loss": 0.1})
        folder.save_measure(trial, tag, rows)


def _perturbed(cell, facts, seed, settings, noise):
    own = float(_curve(facts, cell.arm, seed)[-1])
    rows = []
    for direction, draws in (("adversarial", 1), ("random", settings["random_draws"])):
        for draw in range(draws):
            for alpha in (0.0, *settings["alpha"]):
                lost = alpha * (0.3 if direction == "adversarial" else 0.05) * noise.uniform(0.95, 1.05)
                row = {"cell": cell.id, "seed": seed, "direction": direction, "draw": draw, "alpha": alpha}
                row |= {"batch_norm": "kept", "test_accuracy": max(0.1, own - lost), "test_loss": 1.0, "grad_norm": 0.5}
                rows.append(row)
    return rows


def _yaml(content):
    import yaml

    return yaml.safe_dump(content, sort_keys=False)


def large(uri, side=100, seeds=2, epochs=10, missing=0.02):
    """A gamma x eta grid of `side` x `side` cells of Fisher SAM; a share of them is missing, the rest is complete.

    Written in a few seconds: whole columns, in the pieces that a run leaves behind.
    """
    axis = [float(f"{v:.4g}") for v in np.geomspace(1e-3, 1, side)]
    content = {**CONTENT, "name": "large", "arms": {"fsam": {"optimiser": "fsam"}}, "measures": {}, "scheduler": "fifo"}
    content |= {"grid": {"gamma": axis, "eta": axis}, "seeds": list(range(seeds))}
    content["recipe"] = {**CONTENT["recipe"], "epochs": epochs}
    study = Study.of(content)
    folder = StudyFolder(str(uri))
    first = study.points[0][1].columns()
    columns = {k: v for k, v in first.items() if k not in ("device", "loader_workers")}
    plan, ends, gone = [], [], set()
    random = np.random.default_rng(0)
    for gamma in axis:
        for eta in axis:
            cell = digest("large", gamma, eta)
            if random.uniform() < missing:
                gone.add(cell)
            level = (
                0.95 + 0.02 * math.exp(-((math.log10(gamma) + 1) ** 2)) + 0.01 * math.exp(-((math.log10(eta) + 1) ** 2))
            )
            for seed in range(seeds):
                plan.append({"cell": cell, "arm": "fsam", "seed": seed, **columns, "gamma": gamma, "eta": eta})
                if cell in gone:
                    continue
                accuracy = level + random.normal(0, 0.003)
                row = {
                    "trial": f"t{cell[1:]}",
                    "cell": cell,
                    "seed": seed,
                    "epoch": epochs,
                    "status": "complete",
                    "reason": None,
                }
                row |= {"scheduler": None, "run": RUN, "device": "CPU", "train_loss": 0.1, "validation_loss": 0.2}
                row |= {"validation_accuracy": accuracy, "test_accuracy": accuracy - 0.005, "test_loss": 0.2}
                ends.append(
                    {**row, "gradient_evaluations": 14 * epochs, "train_seconds": 1.0, "images_seen": 200 * epochs}
                )
    folder.save_study(study.model_dump(mode="json"), "", plan)
    folder.save_run(RUN, {"run": RUN, "started": "2026-11-25T07:00:00.000+00:00", "ended": None})
    folder.write(to_parquet(ends), records.FOLDER, RUN, Piece(RUN, "ends", 1, 1).name)
    count = len(ends)
    final = np.repeat([row["validation_accuracy"] for row in ends], epochs)
    epoch = np.tile(np.arange(1, epochs + 1), count)
    history = {name: np.repeat([row[name] for row in ends], epochs) for name in ("trial", "cell", "seed")}
    history |= {
        "epoch": epoch,
        "lr": np.full(count * epochs, 0.05),
        "validation_accuracy": final * (1 - 0.8 * np.exp(-epoch / 2.5)),
    }
    history |= {
        name: random.random(count * epochs) for name in ("train_loss", "validation_loss", "eps_norm", "cosine_to_sam")
    }
    history |= {"gradient_evaluations": 14 * epoch, "train_seconds": 0.1 * epoch}
    folder.write(to_parquet(pa.table(history)), records.FOLDER, RUN, Piece(RUN, "history", 1, 1).name)
    return folder
