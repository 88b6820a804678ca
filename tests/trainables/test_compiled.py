"""A compiled network against the plain one, in float64."""

import shutil

import pytest
import torch

from trainables.devices import DeviceError, unshareable
from trainables.problems import RecipeError
from trainables.recipe import Recipe
from trainables.replicate import Replicate

BASE = {
    "dataset": "digits", "train_size": 100, "batch_size": 32, "epochs": 3, "precision": "float64", "optimiser": "fsam",
    "augmentation": ["crop"],
}  # fmt: skip


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_network_trains_as_the_plain_one():
    plain, compiled = (Replicate(Recipe.of({**BASE, "compile": compile}), 0) for compile in (False, True))
    rows = [[replicate.train_epoch() for _ in range(2)] for replicate in (plain, compiled)]
    for one, other in zip(*rows, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-10)
        assert other["eps_norm"] == pytest.approx(one["eps_norm"], rel=1e-8)
    for name, value in plain.model.state_dict().items():
        found = compiled.model.state_dict()[name]
        assert torch.allclose(value.double(), found.double(), rtol=1e-8, atol=1e-10), name
    assert (plain.steps, compiled.steps) == ("eager", "eager, compiled")
    # And what it saves is a plain network's.
    plain.load_state_dict(compiled.state_dict())


def test_without_a_compiler_it_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match="there is no no-such-compiler"):
        Replicate(Recipe.of({**BASE, "compile": True}), 0)


def test_what_does_not_go_with_it_is_refused():
    with pytest.raises(RecipeError, match="dropout"):
        Recipe.of({"dataset": "digits", "model": "mlp", "dropout": 0.1, "compile": True})
    assert "compile" in str(unshareable(Recipe.of({**BASE, "compile": True}), 2))


def test_it_is_no_part_of_the_identity():
    assert Recipe.of({**BASE, "compile": True}).essence() == Recipe.of(BASE).essence()
