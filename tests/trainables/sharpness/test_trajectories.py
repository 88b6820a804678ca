"""Many steps against independent implementations: the formulas in NumPy, and pytorch-optimizer."""

import numpy as np
import pytest
import sharpness_reference as reference
import torch
from sharpness_reference import SETTINGS, Problem

from trainables.sharpness import METRICS, SharpnessAware

SGD = [
    {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-2, "nesterov": False},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-2, "nesterov": True},
]


@pytest.mark.parametrize("fused", [{}, {"fused": True}])
@pytest.mark.parametrize("sgd", SGD)
@pytest.mark.parametrize("metric", [None, *METRICS])
def test_trajectory_is_algorithm_1(metric, sgd, fused):
    problem = Problem()
    theta, settings = problem.values(), SETTINGS.get(metric, {})
    expected = reference.trajectory(
        theta, problem.gradient, 15, metric=metric, scaled=problem.scaled(), **settings, **sgd
    )
    optimiser = SharpnessAware(problem.params, metric=metric, module=problem.net, **settings, **sgd, **fused)
    for _ in range(15):
        optimiser.step(problem.backward)
    for p, x in zip(problem.values(), expected, strict=True):
        np.testing.assert_allclose(p, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", [None, "sam", "fsam"])
def test_natural_gradient_multiplies_the_update_by_the_inverse_fisher_at_theta(metric):
    problem = Problem()
    settings = {} if metric is None else {"gamma": 0.3}
    settings = {**settings, "eta": 50.0, "natural_gradient": True}
    theta = problem.values()
    expected = reference.trajectory(
        theta, problem.gradient, 10, metric=metric, scaled=problem.scaled(), **settings, **SGD[1]
    )
    optimiser = SharpnessAware(problem.params, metric=metric, **settings, **SGD[1])
    for _ in range(10):
        optimiser.step(problem.backward)
    for p, x in zip(problem.values(), expected, strict=True):
        np.testing.assert_allclose(p, x, rtol=0, atol=1e-12)


def test_natural_gradient_is_refused_for_asam():
    with pytest.raises(ValueError, match="natural_gradient"):
        SharpnessAware(Problem().params, metric="asam_official", gamma=0.5, eta=0.01, natural_gradient=True)


@pytest.mark.parametrize(("metric", "adaptive"), [("sam", False), ("asam_eq5", True)])
def test_twenty_steps_agree_with_pytorch_optimizer(metric, adaptive):
    package = pytest.importorskip("pytorch_optimizer")
    ours, theirs = Problem(), Problem()
    a = SharpnessAware(ours.params, metric=metric, gamma=0.3, **SGD[1])
    b = package.SAM(theirs.params, torch.optim.SGD, rho=0.3, adaptive=adaptive, **SGD[1])
    for _ in range(20):
        a.step(ours.backward)
        theirs.backward()
        b.first_step(zero_grad=True)
        theirs.backward()
        b.second_step(zero_grad=True)
    moved = max(np.abs(x - y).max() for x, y in zip(ours.values(), Problem().values(), strict=True))
    assert moved > 0.1
    for x, y in zip(ours.values(), theirs.values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)  # its norm is taken in float32


def test_the_two_asam_conventions_differ():
    end = {}
    for metric in ("asam_official", "asam_eq5"):
        problem = Problem()
        eta = {"eta": 0.01} if metric == "asam_official" else {}
        optimiser = SharpnessAware(problem.params, metric=metric, gamma=0.5, module=problem.net, lr=0.1, **eta)
        for _ in range(20):
            optimiser.step(problem.backward)
        end[metric] = np.concatenate([v.ravel() for v in problem.values()])
    difference = np.linalg.norm(end["asam_official"] - end["asam_eq5"]) / np.linalg.norm(end["asam_eq5"])
    assert difference > 1e-3


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_without_a_metric_it_is_the_base_optimiser_bit_for_bit(base):
    ours, plain = Problem(), Problem()
    settings = {"lr": 0.01, "weight_decay": 0.1}
    a, b = SharpnessAware(ours.params, base, metric=None, **settings), base(plain.params, **settings)
    for _ in range(10):
        a.step(ours.backward)
        b.step(plain.backward)
    assert all(torch.equal(x, y) for x, y in zip(ours.params, plain.params, strict=True))


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("metric", METRICS)
def test_any_base_steps_on_the_second_gradient_at_the_first_point(metric, base):
    ours, plain = Problem(), Problem()
    settings = {"lr": 0.01, "weight_decay": 0.1}
    a = SharpnessAware(ours.params, base, metric=metric, module=ours.net, **SETTINGS[metric], **settings)
    b = base(plain.params, **settings)
    for _ in range(5):
        a.step(ours.backward)
        theta = plain.values()
        eps = reference.probe(
            metric,
            theta,
            plain.gradient(theta),
            SETTINGS[metric]["gamma"],
            SETTINGS[metric].get("eta"),
            plain.scaled(),
        )
        there = plain.gradient([x + e for x, e in zip(theta, eps, strict=True)])
        for p, g in zip(plain.params, there, strict=True):
            p.grad = torch.from_numpy(g)
        b.step()
    for x, y in zip(ours.values(), plain.values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_bfloat16_parameters_train_and_come_back_exactly(metric):
    problem = Problem(dtype=torch.bfloat16)
    optimiser = SharpnessAware(problem.params, metric=metric, module=problem.net, lr=0.1, **SETTINGS[metric])
    first = optimiser.step(problem.backward)
    for _ in range(30):
        before = [p.detach().clone() for p in problem.params]
        problem.backward()
        optimiser.first_step()
        assert any(not torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
        problem.backward()
        optimiser.restore()
        assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
        last = optimiser.step(problem.backward)
    assert all(p.dtype == torch.bfloat16 for p in problem.params)
    assert last < first
