"""Every network of the registry trains an epoch under every optimiser, on a few images made as large as it needs."""

import math

import pytest

from trainables.models import MODELS
from trainables.recipe import Recipe
from trainables.replicate import Replicate

OPTIMISERS = ("sgd", "sam", "asam", "fsam")

#: Networks that take seconds for a step on one core: two images are enough to see them train.
LARGE = {"wrn28_10", "pyramidnet272", "vit_b16", "deit_b"}


@pytest.mark.parametrize("model", MODELS)
def test_a_network_trains_an_epoch_under_every_optimiser(model):
    losses = {}
    side = max(32 if model in LARGE else 16, MODELS[model].least_side)
    for optimiser in OPTIMISERS:
        recipe = Recipe.of(
            {
                "dataset": "synthetic",
                "image_side": side,
                "model": model,
                "optimiser": optimiser,
                "train_size": 2 if model in LARGE else 8,
                "validation_size": 2,
                "batch_size": 2 if model in LARGE else 4,
                "epochs": 1,
                "lr": 0.01,
                "device": "cpu",
            }
        )
        replicate = Replicate(recipe, seed=0)
        before = [p.detach().clone() for p in replicate.model.parameters()]
        row = replicate.train_epoch()
        assert math.isfinite(row["train_loss"])
        assert math.isfinite(row["validation_loss"])
        assert not row["diverged"]
        assert row["skipped_steps"] == 0
        assert row["gradient_evaluations"] == (1 if model in LARGE else 2) * (1 if optimiser == "sgd" else 2)
        moved = [bool((p != q).any()) for p, q in zip(replicate.model.parameters(), before, strict=True)]
        assert sum(moved) > 0.9 * len(moved)
        losses[optimiser] = row["train_loss"]
    if model in LARGE:
        # The first pass of the first step has the same weights and images whatever the optimiser.
        assert len(set(losses.values())) == 1
