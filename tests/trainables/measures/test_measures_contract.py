"""What holds of every measure: the model is untouched, the rows are tidy, and a seed fixes them."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from measured_subjects import blobs, mlp, norm_net, same, snapshot, subject_of, trained
from torch import nn

from trainables.measures import MEASURES, check, run
from trainables.measures.subject import batch_indices

WRITTEN = {
    "perturbation": {"alpha": [0.5, 2.0], "random_draws": 1, "batch_norm": "recomputed", "recompute_batches": 2},
    "curvature": {"batches": 2, "probes": 2, "max_iterations": 4},
    "sharpness": {"metrics": ["sam", "asam_official", "fsam"], "gamma": [0.1], "batches": 2, "per_batch": True},
}


def test_every_measure_has_a_contract():
    assert WRITTEN.keys() == MEASURES.keys()


def settings_of(name):
    return check({name: WRITTEN[name]})[name]


def subject():
    data = blobs(40, dtype=torch.float32)
    return subject_of(trained(norm_net(), data, steps=10), data)


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize("name", MEASURES)
def test_the_model_is_left_bit_for_bit_as_it_was(name, mode):
    measured = subject()
    model = measured.model.train(mode != "eval")
    if mode == "mixed":
        model[2].eval()
        model[1].weight.grad = torch.full_like(model[1].weight, 3.0)
        model[6].bias.requires_grad_(False)
    addresses = [p.data_ptr() for p in [*model.parameters(), *model.buffers()]]
    before = snapshot(model)
    numpy_state, python_state = np.random.get_state()[1].copy(), random.getstate()
    run(name, measured, settings_of(name))
    assert same(before, snapshot(model))
    assert addresses == [p.data_ptr() for p in [*model.parameters(), *model.buffers()]]
    assert (np.random.get_state()[1] == numpy_state).all()
    assert random.getstate() == python_state


@pytest.mark.parametrize("call", [1, 3, 5, 8])
@pytest.mark.parametrize("name", MEASURES)
def test_the_model_is_left_as_it_was_when_a_pass_fails(name, call):
    measured = subject()
    calls = 0

    def forward(x):
        nonlocal calls
        calls += 1
        if calls == call:
            raise RuntimeError("out of memory")
        return measured.model(x)

    before = snapshot(measured.model)
    failing = dataclasses.replace(measured, forward=forward)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(name, failing, settings_of(name))
    assert same(before, snapshot(measured.model))


@pytest.mark.parametrize("name", MEASURES)
def test_the_rows_are_a_function_of_model_settings_and_seed(name):
    first = run(name, subject(), settings_of(name))
    torch.manual_seed(123)
    assert run(name, subject(), settings_of(name)) == first


@pytest.mark.parametrize("name", MEASURES)
def test_the_mode_that_the_model_was_in_changes_nothing(name):
    one, other = subject(), subject()
    one.model.train()
    other.model.eval()
    assert run(name, one, settings_of(name)) == run(name, other, settings_of(name))


@pytest.mark.parametrize("name", MEASURES)
def test_a_layer_that_draws_and_counts_in_evaluation_does_the_same_each_time(name):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x + 0.1 * self.calls * torch.randn_like(x)

    measured = subject_of(nn.Sequential(mlp(), Noisy()), blobs(40))
    before = snapshot(measured.model)
    first = run(name, measured, settings_of(name))
    assert same(before, snapshot(measured.model))
    torch.manual_seed(5)
    assert run(name, measured, settings_of(name)) == first


@pytest.mark.parametrize("name", MEASURES)
def test_rows_are_tidy(name):
    rows = run(name, subject(), settings_of(name))
    assert rows
    for row in rows:
        assert row.keys() == rows[0].keys()
        assert all(value is None or type(value) in (float, int, str, bool) for value in row.values())


@pytest.mark.parametrize("name", MEASURES)
def test_a_model_of_shared_parameters_in_channels_last_can_be_measured(name):
    measured = subject()
    model = measured.model.to(memory_format=torch.channels_last)
    model[2].weight = model[2].bias
    before = snapshot(model)
    assert run(name, measured, settings_of(name))
    assert same(before, snapshot(model))


@pytest.mark.parametrize("name", MEASURES)
def test_bfloat16_forwards_give_finite_numbers(name):
    measured = subject()

    def forward(x):
        with torch.autocast("cpu", torch.bfloat16):
            logits = measured.model(x)
        return logits.float()

    rows = run(name, dataclasses.replace(measured, forward=forward), settings_of(name))
    assert all(math.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))


@pytest.mark.parametrize("name", MEASURES)
def test_a_model_without_trainable_parameters_is_refused_in_a_line(name):
    measured = subject()
    measured.model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        run(name, measured, settings_of(name))


@pytest.mark.parametrize("name", MEASURES)
def test_no_batches_are_refused_in_a_line(name):
    empty = dataclasses.replace(subject(), batches=lambda split, limit: iter(()))
    with pytest.raises(ValueError, match="batches: there are none"):
        run(name, empty, settings_of(name))


def test_an_unknown_measure_and_anothers_settings_are_refused():
    with pytest.raises(ValueError, match=r"unknown measure 'hessian' \(known: curvature, perturbation, sharpness\)"):
        run("hessian", subject(), settings_of("curvature"))
    with pytest.raises(ValueError, match="curvature: needs settings of type Curvature, not Sharpness"):
        run("curvature", subject(), settings_of("sharpness"))


def test_batches_are_a_seeded_permutation_and_a_limit_its_beginning():
    whole = list(batch_indices(50, 16, None, seed=3, split="train"))
    assert [len(b) for b in whole] == [16, 16, 16, 2]
    assert sorted(torch.cat(whole).tolist()) == list(range(50))
    some = list(batch_indices(50, 16, 2, seed=3, split="train"))
    assert all(torch.equal(a, b) for a, b in zip(whole, some, strict=False))
    assert len(some) == 2
    assert len(list(batch_indices(50, 16, 9, seed=3, split="train"))) == 4
    other = [list(batch_indices(50, 16, 2, seed=s, split=p)) for s, p in ((4, "train"), (3, "test"))]
    assert not any(torch.equal(some[0], o[0]) for o in other)
