"""The peer's loop trains as ours does: the same probes, and in float64 the same epochs from the same order."""

import copy

import pytest
import torch
from torch.nn import functional as F

from benchmarks import davda54
from benchmarks.published_loop import Loop, Settings, held
from trainables.models import build
from trainables.randomness import stream
from trainables.recipe import Recipe
from trainables.replicate import Replicate
from trainables.sharpness import probe

BASE = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}


def recipe(optimiser, **settings):
    knobs = {"sgd": {}, "sam": {"gamma": 0.1}, "fsam": {"gamma": 0.1, "eta": 10.0}}[optimiser]
    shared = {"dataset": "digits", "model": "digits_cnn", "batch_size": 32, "lr": 0.05, "device": "cpu", "epochs": 3}
    return Recipe.of({**shared, "optimiser": optimiser, **knobs, **settings})


class InOurOrder(Loop):
    """Takes the images in the order of a replicate of seed 0."""

    epoch = -1

    def order(self):
        self.epoch += 1
        return torch.randperm(len(self.data["train"][1]), generator=stream(0, "data order", self.epoch))


def beside(ours, network=None):
    network = network or copy.deepcopy(ours.model)
    return InOurOrder(network, Settings.of(ours.recipe), held(ours.data), ours.data.mean, ours.data.std, seed=0)


@pytest.mark.parametrize("metric", ["sam", "fsam"])
def test_a_davda54_style_probe_is_our_metrics(metric):
    torch.manual_seed(0)
    network = build("resnet20", classes=10, channels=3, side=16).double()
    if metric == "sam":
        eta, optimiser = None, davda54.SAM(network.parameters(), torch.optim.SGD, rho=0.1, **BASE)
    else:
        # Large enough that the Fisher's ellipsoid is far from SAM's ball.
        eta = 1e4
        optimiser = davda54.FisherSAM(network.parameters(), torch.optim.SGD, rho=0.1, eta=eta, **BASE)
    x, y = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.randint(10, (8,))
    F.cross_entropy(network(x), y).backward()
    parameters = list(network.parameters())
    before = [p.detach().clone() for p in parameters]
    gradients = [p.grad.clone() for p in parameters]
    expected = probe(before, gradients, metric=metric, gamma=0.1, eta=eta)
    optimiser.first_step(zero_grad=True)
    for p, theta, eps in zip(parameters, before, expected, strict=True):
        torch.testing.assert_close(p.detach() - theta, eps, rtol=1e-10, atol=1e-10)
    if metric == "fsam":
        sam = torch.cat([e.flatten() for e in probe(before, gradients, metric="sam", gamma=0.1)])
        fsam = torch.cat([e.flatten() for e in expected])
        assert torch.cosine_similarity(sam, fsam, dim=0) < 0.99


@pytest.mark.parametrize("optimiser", ["sgd", "sam", "fsam"])
def test_in_float64_the_loop_trains_the_epochs_that_a_replicate_trains(optimiser):
    ours = Replicate(recipe(optimiser, precision="float64", train_size=96), seed=0)
    peer = beside(ours)
    for _ in range(3):
        row = ours.train_epoch()
        assert peer.train_epoch() == pytest.approx(row["train_loss"], rel=1e-9)
        loss, accuracy = peer.evaluate("validation")
        assert loss == pytest.approx(row["validation_loss"], rel=1e-9)
        assert accuracy == row["validation_accuracy"]
    assert peer.evaluate("test")[1] == ours.final()["test_accuracy"]


def test_the_loop_learns_and_its_cosine_ends_at_zero():
    ours = Replicate(recipe("fsam", epochs=3), seed=0)
    torch.manual_seed(1)
    peer = beside(ours, build("digits_cnn", classes=10, channels=1, side=8))
    losses = [peer.train_epoch() for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    assert peer.evaluate("test")[1] > 0.9
    assert peer.optimiser.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_the_loop_is_given_our_layout_and_our_augmentation():
    ours = Replicate(recipe("sam", train_size=64, augmentation=["crop", "flip"]), seed=0)
    peer = beside(ours)
    assert peer.augment.names == ("crop", "flip")
    seen = []
    peer.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    peer.train_epoch()
    assert len(seen) == 4  # two batches, two passes
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in peer.network.parameters() if p.ndim == 4)


@pytest.mark.parametrize(
    ("optimiser", "settings", "named"),
    [
        ("sam", {"m": 8}, "m"),
        ("fsam", {"fisher": "per_example"}, "fisher"),
        ("sgd", {"label_noise": 0.2}, "label_noise"),
        ("sgd", {"precision": "bfloat16"}, "precision"),
        ("sam", {"schedule": "constant"}, "schedule"),
    ],
)
def test_what_the_loop_cannot_train_is_refused_by_name(optimiser, settings, named):
    with pytest.raises(ValueError, match=f"lacks {named}$"):
        Settings.of(recipe(optimiser, **settings))
