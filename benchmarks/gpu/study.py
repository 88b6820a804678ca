"""A study of real images on one GPU, as much of it as the time allows, in a plain loop over its cells: no Ray."""

from __future__ import annotations

import gc
import math
import time
from typing import Any

from benchmarks.gpu.suite import Suite
from trainables.recipe import Recipe
from trainables.replicate import Replicate, Row
from trainables.side_by_side import SideBySide

GAMMAS = (0.02, 0.05, 0.1, 0.2, 0.5)
ETAS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
SEEDS = (0, 1, 2)

#: Of the time that is left, what the study may take.
SHARE = 0.9


def run(suite: Suite) -> None:
    """Fisher SAM's gamma x eta on ResNet-20: every cell in full, for as many epochs as there is time for.

    The schedule is that of so many epochs; a recipe with fewer epochs is another one, so nothing here is comparable
    with the paper's 200.
    """
    gammas, etas = (GAMMAS[:2], ETAS[:2]) if suite.small else (GAMMAS, ETAS)
    seeds = SEEDS[:2] if suite.small else SEEDS
    cells = [(gamma, eta) for gamma in gammas for eta in etas]
    seconds = _of_an_epoch(suite, len(seeds))
    epochs = int(SHARE * suite.left / (len(cells) * seconds))
    if suite.small:
        epochs = min(epochs, 2)
    if epochs < 1:
        suite.skip("study", f"an epoch of every cell takes {len(cells) * seconds:.0f} s, {suite.left:.0f} s left")
        return
    found: list[dict[str, Any]] = []
    told: dict[str, None] = {}
    begun = time.perf_counter()
    for gamma, eta in cells:
        if suite.left < seconds * epochs:
            suite.skip("study", f"cells from gamma {gamma}, eta {eta} on: no time left")
            break
        made, group = _cell(suite, Recipe.of(_settings(suite, epochs=epochs, gamma=gamma, eta=eta)), seeds)
        rows: list[Row] = []
        remarks: list[str] = []
        for _ in range(epochs):
            rows = group.train_epoch()
            remarks += group.take_remarks()
            if any(replicate.diverged for replicate in made):
                break
        told |= {f"gamma {gamma}, eta {eta}: {line}": None for line in remarks}
        steps = group.steps
        for replicate, row in zip(made, rows, strict=True):
            ended = {} if replicate.diverged else replicate.final()
            found.append({"gamma": gamma, "eta": eta, "steps": steps, **row, **ended})
    suite.study = {
        "question": "How do validation and test accuracy depend on gamma and eta?",
        "recipe": Recipe.of(_settings(suite, epochs=epochs)).settings(),
        "grid": {"gamma": list(gammas), "eta": list(etas)},
        "seeds": list(seeds),
        "remarks": list(told),
        "seconds": round(time.perf_counter() - begun, 1),
        "replicates": [{k: _plain(v) for k, v in row.items()} for row in found],
    }
    suite.row(f"study: {len(found)} replicates of {epochs} epochs", suite.study["seconds"], "s")
    _say(found)


def _settings(suite: Suite, **more: Any) -> dict[str, Any]:
    if suite.small:
        base: dict[str, Any] = {"dataset": "digits", "model": "digits_cnn", "train_size": 320, "batch_size": 32}
    else:
        base = {"dataset": "cifar10", "model": "resnet20", "augmentation": ["crop", "flip"], "precision": "bfloat16"}
    return {**base, "optimiser": "fsam", "device": str(suite.device), **more}


def _cell(suite: Suite, recipe: Recipe, seeds: tuple[int, ...]) -> tuple[list[Replicate], SideBySide]:
    gc.collect()  # whatever holds the last cell's
    recorder = suite.recorder()
    made = [Replicate(recipe, seed, suite.data_root, recorder=recorder) for seed in seeds]
    return made, SideBySide(made, "on", suite.recorder())


def _of_an_epoch(suite: Suite, seeds: int) -> float:
    """Seconds of one epoch of a cell, its evaluation included, once its steps are recorded."""
    _, group = _cell(suite, Recipe.of(_settings(suite, epochs=3)), SEEDS[:seeds])
    group.train_epoch()
    group.train_epoch()
    suite.wait()
    begun = time.perf_counter()
    group.train_epoch()
    suite.wait()
    return time.perf_counter() - begun


def _plain(value: Any) -> Any:
    """A value as JSON has it: what is no number is None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say(found: list[dict[str, Any]]) -> None:
    """The grid of mean test accuracies."""
    etas = sorted({row["eta"] for row in found})
    print("     mean test accuracy, %; rows gamma, columns eta " + " ".join(f"{eta:>8g}" for eta in etas))
    for gamma in sorted({row["gamma"] for row in found}):
        cells = []
        for eta in etas:
            values = [row.get("test_accuracy") for row in found if (row["gamma"], row["eta"]) == (gamma, eta)]
            right = [v for v in values if v is not None]
            whole = values and len(right) == len(values)
            cells.append(f"{100 * sum(right) / len(right):8.2f}" if whole else f"{'diverged' if values else '-':>8}")
        print(f"     gamma {gamma:<8g}" + " " * 35 + " ".join(cells))
