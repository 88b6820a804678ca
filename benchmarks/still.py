"""`study run` on a real Ray whose trials train nothing: what is left is the control plane and the records.

The command, the controller, `trainables.trial.Trial` with its checkpoints, and everything that the driver does are the
product's. Only the replicate in a worker is another: it hands out made-up rows.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch

import trainables.trial
from benchmarks.made_up import MadeUp, Row
from benchmarks.stopwatch import Stopwatch
from study import recorder, runner
from study.cli import main
from trainables.recipe import Recipe


class Still:
    """In the place of `trainables.replicate.Replicate`: an epoch is over at once."""

    #: Of the rows, see `made_up.template`; set in each worker.
    template: list[Any]

    capturing, steps = False, "eager"

    def __init__(self, recipe: Recipe, seed: int, data_root: str | None = None, recorder: None = None) -> None:
        self.recipe, self.seed, self.device = recipe, seed, torch.device("cpu")
        self.epoch, self.diverged, self.train_seconds = 0, False, 0.0
        self._made_up = MadeUp(self.template, seed)
        self.label_hash = self._made_up.label_hash

    def train_epoch(self) -> Row:
        self.epoch += 1
        return self._made_up.row(self.seed, self.epoch)

    def take_remarks(self) -> list[str]:
        return []

    def final(self) -> Row:
        return self._made_up.final()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]


class StillTrial(trainables.trial.Trial):
    """The real trial around such replicates."""

    def setup(self, config: dict[str, Any], *bound: Any, template: list[Any] | None = None, **named: Any) -> None:
        Still.template = template or []
        # This process trains nothing else.
        trainables.trial.Replicate = Still  # type: ignore[misc, assignment]
        super().setup(config, *bound, **named)


def run(file: str, storage: str, cpus: int, template: list[Any]) -> dict[str, float]:
    """`study run FILE` with `cpus` trials at a time, without training.

    Returns:
        What `Stopwatch.read` says of the driver.
    """
    watch = Stopwatch()

    class Timed(recorder.Recorder):
        def on_trial_result(self, *arguments: Any, **named: Any) -> None:
            watch.result()
            super().on_trial_result(*arguments, **named)

    with_parameters = runner.tune.with_parameters

    with ExitStack() as patches:
        patches.enter_context(patch.object(runner, "Trial", StillTrial))
        patches.enter_context(patch.object(runner, "Recorder", Timed))
        patches.enter_context(
            patch.object(
                runner.tune,
                "with_parameters",
                lambda trainable, **bound: with_parameters(trainable, template=template, **bound),
            )
        )
        began = time.perf_counter()
        code = main(["run", file, "--storage", storage, "--cpus", str(cpus), "--no-report"])
    if code:
        raise RuntimeError(f"study run ended with {code}")
    return {**watch.read(), "command": time.perf_counter() - began}
