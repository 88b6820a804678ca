"""Section 5.4's perturbation: against a loop by hand, and what directions and BatchNorm do."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_subjects import blobs, flat, mlp, norm_net, quadratic, subject_of, trained
from torch import nn
from torch.nn import functional as F

from trainables.measures import check, run
from trainables.measures.passes import evaluate
from trainables.measures.perturbation import random_direction

SMOOTHED = {"label_smoothing": 0.1}


def perturbation(subject, **written):
    return run("perturbation", subject, check({"perturbation": written})["perturbation"])


def curve(rows, direction, draw=0):
    return [row for row in rows if (row["direction"], row["draw"]) == (direction, draw)]


def smooth_loss(logits, y):
    return F.cross_entropy(logits, y, **SMOOTHED)


def test_the_adversarial_curve_is_the_papers_loop():
    train, test = blobs(70), blobs(50, seed=5)
    model = trained(mlp(), train)
    subject = subject_of(model, train, test, size=16, loss=smooth_loss)
    rows = perturbation(subject, alpha=[0.5, 3.0], directions=["adversarial"])

    by_hand = copy.deepcopy(model).eval()
    smooth_loss(by_hand(train[0]), train[1]).backward()
    g = [p.grad.numpy().copy() for p in by_hand.parameters()]
    norm = math.sqrt(sum(float((x**2).sum()) for x in g))
    theta = [p.detach().numpy().copy() for p in by_hand.parameters()]
    assert [row["alpha"] for row in rows] == [0, 0.5, 3.0]
    for row in rows:
        moved = [t + row["alpha"] * x / norm for t, x in zip(theta, g, strict=True)]
        hidden = np.tanh(test[0].numpy() @ moved[0].T + moved[1])
        logits = hidden @ moved[2].T + moved[3]
        shifted = logits - logits.max(1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(50), test[1].numpy()]
        assert row["test_loss"] == pytest.approx(losses.mean(), rel=1e-11)
        assert row["test_accuracy"] == (logits.argmax(1) == test[1].numpy()).mean()
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-12)
        assert (row["direction"], row["draw"], row["batch_norm"]) == ("adversarial", 0, "none")


def test_alpha_zero_is_the_plain_evaluation_in_every_curve():
    train, test = blobs(60, dtype=torch.float32), blobs(45, seed=5, dtype=torch.float32)
    model = trained(norm_net(), train)
    rows = perturbation(subject_of(model, train, test), alpha=[1.0], random_draws=2)
    model.eval()
    with torch.no_grad():
        logits = model(test[0])
    zero = [row for row in rows if row["alpha"] == 0]
    assert [(row["direction"], row["draw"]) for row in zero] == [("adversarial", 0), ("random", 0), ("random", 1)]
    for row in zero:
        assert row["test_accuracy"] == float((logits.argmax(1) == test[1]).double().mean())
        assert row["test_loss"] == pytest.approx(float(F.cross_entropy(logits, test[1])), rel=1e-6)
        assert row["batch_norm"] == "kept"


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**62), st.integers(0, 9), st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_a_random_direction_has_length_one(seed, draw, widths):
    params = [torch.zeros(w, 3) for w in (*widths, 1)]
    drawn = random_direction(params, seed, draw)
    assert [v.shape for v in drawn] == [p.shape for p in params]
    assert float(flat(drawn).norm()) == pytest.approx(1, rel=1e-14)
    assert torch.equal(flat(drawn), flat(random_direction(params, seed, draw)))


def test_random_directions_are_isotropic_across_parameters():
    params = [torch.zeros(3), torch.zeros(2, 1), torch.zeros(())]
    drawn = torch.stack([flat(random_direction(params, 7, k)) for k in range(2000)])
    # Uniform on the sphere in 6 dimensions: mean 0, covariance 1/6, fourth moment 3/48
    assert drawn.mean(0).abs().max() < 5 / math.sqrt(6 * 2000)
    assert (drawn.T @ drawn / 2000 - torch.eye(6) / 6).abs().max() < 6 * math.sqrt(1 / 48 / 2000)
    assert float((drawn**4).mean()) == pytest.approx(3 / 48, rel=0.1)


def test_a_random_perturbation_moves_the_parameters_by_alpha():
    theta = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    subject = quadratic(torch.eye(4, dtype=torch.float64), theta)
    seen = []

    def forward(x):
        seen.append(flat(subject.model.parameters()))
        return subject.model(x)

    spied = subject_of(subject.model, next(iter(subject.batches("train", 1))), loss=subject.loss, forward=forward)
    perturbation(spied, alpha=[0.25, 4.0], directions=["random"], random_draws=2)
    lengths = [float((t - theta).norm()) for t in seen]
    assert lengths == pytest.approx([0, 0.25, 4.0, 0.25, 4.0], rel=1e-14)
    assert not torch.equal(seen[1], seen[3])


def test_draws_are_a_function_of_the_seed():
    data = blobs(40)
    first, again, other = (
        perturbation(subject_of(mlp(), data, seed=seed), alpha=[2.0], directions=["random"]) for seed in (1, 1, 2)
    )
    assert first == again
    assert [r["test_loss"] for r in first if r["alpha"]] != [r["test_loss"] for r in other if r["alpha"]]


def test_more_draws_keep_the_first_ones():
    data = blobs(40)
    few, many = (
        perturbation(subject_of(mlp(), data), alpha=[2.0], directions=["random"], random_draws=n) for n in (1, 3)
    )
    assert curve(few, "random") == curve(many, "random")


def test_the_gradient_hurts_more_than_chance_in_a_trained_model():
    data = blobs(80)
    model = trained(mlp(), data)
    # Test and training data are the same, so that the gradient is that of the loss which is measured.
    rows = perturbation(subject_of(model, data), alpha=[0.01, 0.05, 0.2, 1.0], random_draws=5)
    for one, *others in zip(curve(rows, "adversarial"), *(curve(rows, "random", k) for k in range(5)), strict=True):
        assert all(one["test_loss"] >= other["test_loss"] for other in others)
    losses = [row["test_loss"] for row in curve(rows, "adversarial")]
    assert losses == sorted(losses)


def test_the_gradient_is_that_of_the_given_number_of_batches():
    data = blobs(80)
    model = mlp()
    subject = subject_of(model, data, size=16)
    row = perturbation(subject, alpha=[1.0], directions=["adversarial"], batches=2)[0]
    x, y = (torch.cat(parts) for parts in zip(*subject.batches("train", 2), strict=True))
    assert len(x) == 32
    model.eval()
    grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    assert row["grad_norm"] == pytest.approx(float(flat(grads).norm()), rel=1e-12)


def test_the_gradient_is_taken_with_batchnorms_statistics_as_they_were():
    data = blobs(60, dtype=torch.float32)
    model = trained(norm_net(), data)
    kept, recomputed = (
        perturbation(subject_of(model, data), alpha=[1.0], directions=["adversarial"], batch_norm=how)
        for how in ("kept", "recomputed")
    )
    assert kept[0]["grad_norm"] == recomputed[0]["grad_norm"]


def test_recomputed_statistics_are_the_mean_over_batches_at_each_perturbed_theta():
    train, test = blobs(64), blobs(45, seed=5)
    model = trained(norm_net(torch.float64), train)
    subject = subject_of(model, train, test, size=16)
    rows = perturbation(
        subject, alpha=[0.8], directions=["random"], random_draws=1, batch_norm="recomputed", recompute_batches=3
    )
    unit = random_direction(list(model.parameters()), subject.seed, 0)
    for row in rows:
        by_hand = copy.deepcopy(model).eval()
        with torch.no_grad():
            for p, v in zip(by_hand.parameters(), unit, strict=True):
                p += row["alpha"] * v
            maps = [by_hand[1](by_hand[0](x)) for x, _ in subject.batches("train", 3)]
            by_hand[2].running_mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
            by_hand[2].running_var = torch.stack([m.var((0, 2, 3), correction=1) for m in maps]).mean(0)
            logits = by_hand(test[0])
        assert row["batch_norm"] == "recomputed"
        assert row["test_loss"] == pytest.approx(float(F.cross_entropy(logits, test[1])), rel=1e-10)
        assert row["test_accuracy"] == float((logits.argmax(1) == test[1]).double().mean())


def test_recomputing_undoes_a_shift_that_batchnorm_takes_away():
    """A bias before BatchNorm has no effect in training mode; kept statistics let it pass."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(4, dtype=torch.float64))
            self.norm = nn.BatchNorm1d(4, affine=False).double()

        def forward(self, x):
            return self.norm(x + self.shift)

    x, y = blobs(64, classes=4)
    model = Shifted()
    model.norm.momentum = None
    model(x)
    model.norm.momentum = 0.1
    kept, recomputed = (
        curve(
            perturbation(subject_of(model, (x, y), size=64), alpha=[3.0], directions=["random"], batch_norm=how),
            "random",
        )
        for how in ("kept", "recomputed")
    )
    assert abs(kept[1]["test_loss"] - kept[0]["test_loss"]) > 0.1
    assert recomputed[1]["test_loss"] == pytest.approx(recomputed[0]["test_loss"], abs=1e-12)


@pytest.mark.parametrize("gradient", ["zero", "not finite"])
def test_without_a_direction_there_are_no_points_but_the_first(gradient):
    model = mlp()
    with torch.no_grad():
        if gradient == "zero":
            for p in model.parameters():
                p.zero_()
        else:
            model[0].bias[0] = math.nan
    x, y = blobs(30)
    loss = (lambda logits, y: logits.square().sum()) if gradient == "zero" else F.cross_entropy
    rows = perturbation(subject_of(model, (x, y), loss=loss), alpha=[1.0], directions=["adversarial"])
    assert math.isnan(rows[1]["test_loss"])
    assert math.isnan(rows[1]["test_accuracy"])
    assert rows[0]["test_accuracy"] == (float((y == 0).double().mean()) if gradient == "zero" else 0)


def test_a_loss_that_overflows_is_reported_and_its_answers_counted():
    logits = torch.tensor([[3e38, -3e38], [-3e38, 3e38], [math.nan, 0.0], [0.0, 1.0]])
    y = torch.tensor([1, 1, 0, 1])
    loss, accuracy = evaluate(subject_of(mlp(), (logits[:2], y[:2]), forward=lambda x: x), [(logits[:2], y[:2])])
    assert loss == math.inf
    assert accuracy == 0.5
    loss, accuracy = evaluate(subject_of(mlp(), (logits, y), forward=lambda x: x), [(logits, y)])
    assert math.isnan(loss)
    assert accuracy == 0.5  # a NaN is no answer, though argmax would name it


def test_both_kinds_of_statistics_are_the_curves_of_each():
    data = blobs(64)
    subject = subject_of(trained(norm_net(torch.float64), data), data, size=16)
    both = perturbation(subject, alpha=[0.5, 1.0], random_draws=1, batch_norm=["kept", "recomputed"])
    for kind in ("kept", "recomputed"):
        assert [row for row in both if row["batch_norm"] == kind] == perturbation(
            subject, alpha=[0.5, 1.0], random_draws=1, batch_norm=kind
        )
