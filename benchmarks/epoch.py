"""An epoch of ResNet-20 on one core: ours beside a davda54-style loop that is given ours' data and memory layout.

Ours is `trainables.replicate.Replicate.train_epoch` as a worker has it, with its diagnostics, its checks and its
validation; the peer is `benchmarks.published_loop`. Same network, images, batches, precision, augmentation and number
of threads. Each contender has a process of its own, since what ours does to its process's memory allocator is part of
ours; they train in turn.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.in_turn import contenders, in_turn
from benchmarks.measure import Summary, ratio
from benchmarks.published_loop import Loop, Settings, held
from benchmarks.record import Result
from study.spec import DATA_VARIABLE
from trainables import replicate
from trainables.data import DATASETS, DataError, fingerprint
from trainables.data.datasets import Source
from trainables.data.images import Resident
from trainables.data.opened import opened
from trainables.data.splits import Splits, split
from trainables.models import build
from trainables.process import prepare
from trainables.randomness import global_stream
from trainables.recipe import Recipe

#: The last is what the others are compared with.
OPTIMISERS = ("sam", "fsam", "sgd")

#: What the project asks of a SAM epoch: the peer's seconds over ours.
GOALS = {"sam: an epoch's training, davda54 / ours": 1.05}

THREADS = 1


@dataclass(frozen=True)
class Scale:
    """How much is trained and how often.

    Attributes:
        train: images of an epoch.
        validation: images after each.
        test: images of the evaluation that is timed alone.
        rounds: epochs of each contender that are timed, after one that is not.
        batch: images of a batch.
    """

    train: int
    validation: int
    test: int
    rounds: int
    batch: int = 128


FULL = Scale(train=1280, validation=500, test=2000, rounds=7)
QUICK = Scale(train=512, validation=128, test=512, rounds=2)


def run(quick: bool) -> Result:
    """Measure, on one thread; on the real CIFAR-10 where `SHARPNESS_STUDY_DATA` has it."""
    return measure(QUICK if quick else FULL, os.environ.get(DATA_VARIABLE))


def measure(scale: Scale, data_root: str | None) -> Result:
    """Train and evaluate every contender in turn.

    Args:
        scale: how much.
        data_root: folder of CIFAR-10's files; random pixels of their shape are used where they are not.

    Raises:
        RuntimeError: a contender failed, or its training broke down.
    """
    root = _with_cifar10(data_root)
    given = {"scale": asdict(scale), "data_root": root}
    rows = {(o, who): f"{o}, {who}" for o in OPTIMISERS for who in ("ours", _peer(o))}
    makers = {row: (Ours if who == "ours" else Published, {"optimiser": o, **given}) for (o, who), row in rows.items()}
    with contenders(makers) as alive:
        in_turn(alive, "epoch", 1)  # makes what is made once: momentum, the allocator's memory
        epochs = in_turn(alive, "epoch", scale.rounds)
        judged = {row: alive[row] for (o, _), row in rows.items() if o == "sam"}
        evaluations = in_turn(judged, "evaluation", scale.rounds)
    training = {row: [answer["training"] for answer in answers] for row, answers in epochs.items()}
    whole = {row: [answer["whole"] for answer in answers] for row, answers in epochs.items()}
    ratios = {}
    for o in OPTIMISERS:
        ours, peers = rows[o, "ours"], rows[o, _peer(o)]
        ratios[f"{o}: an epoch's training, {_peer(o)} / ours"] = ratio(training[peers], training[ours])
        ratios[f"{o}: an epoch and its validation, {_peer(o)} / ours"] = ratio(whole[peers], whole[ours])
    ours, peers = judged
    ratios[f"evaluation: {_peer('sam')} / ours"] = ratio(evaluations[peers], evaluations[ours])
    for o in OPTIMISERS[:-1]:
        ratios[f"ours: an epoch's training, {o} / sgd"] = ratio(
            training[rows[o, "ours"]], training[rows["sgd", "ours"]]
        )
    return Result(
        settings={
            **asdict(scale),
            "recipe": _recipe("sam", scale).settings(),
            "data": "random pixels of CIFAR-10's shape" if root is None else "CIFAR-10",
            "threads": THREADS,
            "goals": GOALS,
        },
        ratios=ratios,
        samples={
            **{f"{row}: an epoch's training": Summary.of(values) for row, values in training.items()},
            **{f"{row}: an epoch and its validation": Summary.of(values) for row, values in whole.items()},
            **{
                f"{row}: training, an image": Summary.of([seconds / scale.train for seconds in values])
                for row, values in training.items()
            },
            **{
                f"{row}: evaluation": Summary.of([scale.test / seconds for seconds in values], "images/s")
                for row, values in evaluations.items()
            },
        },
        counts={"images of an epoch": scale.train, "steps of an epoch": math.ceil(scale.train / scale.batch)},
        notes=(
            "A process for each row, all alive, one epoch at a time in turn; ratios are of neighbouring epochs and are "
            "the peer's seconds over ours: above 1 ours is faster. One epoch before is not timed.",
            "The peer is given channels last, float32, uint8 images in memory and our batched crop, flip and "
            "normalisation. Its optimiser is as published (a loop over the parameters, torch's default SGD); Fisher "
            "SAM is written in that loop's style. It keeps neither diagnostics nor training accuracy, ours does.",
            "Ours is Replicate.train_epoch in a process set up as a worker's. Training leaves the validation out.",
        ),
    )


class Ours:
    """`Replicate` as a worker trains it."""

    def __init__(self, optimiser: str, scale: dict[str, Any], data_root: str | None) -> None:
        prepare(THREADS)
        sizes = Scale(**scale)
        recipe = _recipe(optimiser, sizes)
        if data_root is None:
            with patch.object(replicate, "opened", lambda *_: random_pixels(sizes)):
                self.replicate = replicate.Replicate(recipe, seed=0)
        else:
            self.replicate = replicate.Replicate(recipe, seed=0, data_root=data_root)

    def epoch(self) -> dict[str, float]:
        """Seconds of one epoch's `training`, and of the `whole` with its validation."""
        before, began = self.replicate.train_seconds, time.perf_counter()
        row = self.replicate.train_epoch()
        whole = time.perf_counter() - began
        if row["diverged"] or row["skipped_steps"]:
            raise FloatingPointError(f"ours: the training broke down: {row}")
        return {"training": self.replicate.train_seconds - before, "whole": whole}

    def evaluation(self) -> float:
        """Seconds of one evaluation of the test images."""
        began = time.perf_counter()
        self.replicate.evaluate("test")
        return time.perf_counter() - began


class Published:
    """`benchmarks.published_loop.Loop` on the same images from the same weights."""

    def __init__(self, optimiser: str, scale: dict[str, Any], data_root: str | None) -> None:
        torch.set_num_threads(THREADS)
        sizes = Scale(**scale)
        recipe = _recipe(optimiser, sizes)
        splits = random_pixels(sizes) if data_root is None else opened(recipe, data_root, torch.device("cpu"))
        # The weights that ours begins with.
        with global_stream(0, "initial weights", 0, torch.device("cpu")):
            network = build(
                recipe.model, classes=splits.classes, channels=splits.train.channels, side=splits.train.side
            )
        self.loop = Loop(network, Settings.of(recipe), held(splits), splits.mean, splits.std, seed=0)

    def epoch(self) -> dict[str, float]:
        """As `Ours.epoch`."""
        began = time.perf_counter()
        loss = self.loop.train_epoch()
        trained = time.perf_counter()
        self.loop.evaluate("validation")
        whole = time.perf_counter()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loop's training broke down: loss {loss}")
        return {"training": trained - began, "whole": whole - began}

    def evaluation(self) -> float:
        """As `Ours.evaluation`."""
        began = time.perf_counter()
        self.loop.evaluate("test")
        return time.perf_counter() - began


def _peer(optimiser: str) -> str:
    """What the loop beside ours is called: there is nothing of davda54's in a plain SGD step."""
    return "plain loop" if optimiser == "sgd" else "davda54"


def _recipe(optimiser: str, scale: Scale) -> Recipe:
    return Recipe.of(
        {
            "dataset": "cifar10",
            "model": "resnet20",
            "optimiser": optimiser,
            "augmentation": ["crop", "flip"],
            "batch_size": scale.batch,
            "train_size": scale.train,
            "validation_size": scale.validation,
            "test_size": scale.test,
            "device": "cpu",
        }
    )


def _with_cifar10(data_root: str | None) -> str | None:
    """The folder if CIFAR-10's published files are in it."""
    try:
        fingerprint("cifar10", data_root)
    except DataError:
        return None
    return data_root


def random_pixels(scale: Scale) -> Splits:
    """Noise in CIFAR-10's shape: nothing can be learned from it, and it takes as long."""
    facts, generator = DATASETS["cifar10"], torch.Generator().manual_seed(0)
    side, classes = int(facts.side or 0), int(facts.classes or 0)

    def noise(count: int) -> Resident:
        x = torch.randint(256, (count, facts.channels, side, side), generator=generator, dtype=torch.uint8)
        return Resident(x, torch.arange(count) % classes)

    source = Source("noise", classes, noise(scale.train + scale.validation), noise(scale.test), "")
    return split(source, validation_size=scale.validation, split_seed=0)
