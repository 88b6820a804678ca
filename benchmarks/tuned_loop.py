"""The peer of a whole study: the same replicates as one writes them for Ray Tune, around the published loop.

A function trainable as Tune's manual has it: a grid of gamma, eta and seed, one CPU a trial, `tune.report` after each
epoch, the loggers that Tune brings, nothing printed, no checkpoints. The images come once to each node, through Ray's
object store. `run` is for a process of its own, since Tune reads its environment when it is imported.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.plain_tune import tunes_environment

#: What `run` calls the experiment.
NAME = "loop"


def run(
    recipe: Mapping[str, Any],
    gamma: Sequence[float],
    eta: Sequence[float],
    seeds: Sequence[int],
    cpus: int,
    storage: str,
) -> dict[str, Any]:
    """Train every gamma with every eta and seed.

    Args:
        recipe: what all share, as `trainables.recipe.Recipe` has it.
        gamma: values of the grid.
        eta: likewise.
        seeds: likewise.
        cpus: trials at a time.
        storage: where the experiment's folder goes.

    Returns:
        `fit`: its wall seconds; and, a value for each replicate, `epochs`, the seconds of `training` and the
        `test_accuracy`.

    Raises:
        RuntimeError: a trial did not end well.
    """
    tunes_environment()
    import ray
    import torch
    from ray import tune

    from benchmarks.published_loop import Settings, held
    from trainables.data.opened import opened
    from trainables.recipe import Recipe

    shared = Recipe.of({**recipe, "gamma": gamma[0], "eta": eta[0]})
    splits = opened(shared, None, torch.device("cpu"))
    bound = {
        "settings": Settings.of(shared),
        "model": shared.model,
        "data": held(splits),
        "classes": splits.classes,
        "mean": splits.mean,
        "std": splits.std,
    }
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        began = time.perf_counter()
        found = tune.Tuner(
            tune.with_resources(tune.with_parameters(train, **bound), {"cpu": 1}),
            param_space={name: tune.grid_search(list(of)) for name, of in _axes(gamma, eta, seeds).items()},
            run_config=tune.RunConfig(name=NAME, storage_path=storage, verbose=0),
        ).fit()
        fit = time.perf_counter() - began
        last = [found[i].metrics or {} for i in range(len(found))]
        if found.num_errors or len(last) != len(gamma) * len(eta) * len(seeds):
            raise RuntimeError(f"{len(last)} trials, {found.num_errors} with an error: {found.errors[:1]}")
        return {
            "fit": fit,
            "epochs": [metrics["training_iteration"] for metrics in last],
            "training": [metrics["train_seconds"] for metrics in last],
            "test_accuracy": [metrics["test_accuracy"] for metrics in last],
        }
    finally:
        ray.shutdown()


def _axes(gamma: Sequence[float], eta: Sequence[float], seeds: Sequence[int]) -> dict[str, Sequence[float]]:
    return {"gamma": gamma, "eta": eta, "seed": seeds}


def train(config: dict[str, Any], settings: Any, model: str, data: Any, classes: int, mean: Any, std: Any) -> None:
    """One replicate, reporting each epoch.

    Args:
        config: `gamma`, `eta` and `seed`.
        settings: of `benchmarks.published_loop`; gamma and eta come from the configuration.
        model: the network's name.
        data: the images.
        classes: of the images.
        mean: to normalise them with.
        std: likewise.
    """
    from dataclasses import replace

    import torch
    from ray import tune

    from benchmarks.published_loop import Loop
    from trainables.models import build

    torch.manual_seed(config["seed"])
    pixels, _ = data["train"]
    network = build(model, classes=classes, channels=pixels.shape[1], side=pixels.shape[2])
    settings = replace(settings, gamma=config["gamma"], eta=config["eta"])
    loop = Loop(network, settings, data, mean, std, seed=config["seed"])
    seconds = 0.0
    for epoch in range(1, settings.epochs + 1):
        began = time.perf_counter()
        loss = loop.train_epoch()
        seconds += time.perf_counter() - began
        validation_loss, validation_accuracy = loop.evaluate("validation")
        report = {
            "epoch": epoch,
            "train_loss": loss,
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "train_seconds": seconds,
        }
        if epoch == settings.epochs:
            report["test_loss"], report["test_accuracy"] = loop.evaluate("test")
        tune.report(report)
