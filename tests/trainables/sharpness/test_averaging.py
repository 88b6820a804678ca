"""Accumulation inside a pass is the big batch; several closures are m-sharpness."""

import numpy as np
import pytest
import sharpness_reference as reference
import torch
from sharpness_reference import SETTINGS, Problem
from torch import nn

from trainables.sharpness import METRICS, SharpnessAware, per_example_squares


def build(problem, metric="fsam", **more):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-2, **SETTINGS.get(metric, {}), **more}
    return SharpnessAware(problem.params, metric=metric, module=problem.net, **settings)


def loss_on(problem, rows):
    return nn.functional.cross_entropy(problem.net(problem.x[rows]), problem.y[rows])


def closures(problem, parts):
    def one(rows):
        def closure():
            problem.net.zero_grad()
            loss = loss_on(problem, rows)
            loss.backward()
            return loss

        return closure

    return [one(rows) for rows in parts]


@pytest.mark.parametrize("metric", [None, *METRICS])
def test_accumulated_average_is_the_big_batch(metric):
    big, parts = Problem(), Problem()
    a, b = build(big, metric), build(parts, metric)

    def accumulate():
        parts.net.zero_grad()
        total = 0.0
        for rows in (slice(0, 3), slice(3, 12)):
            loss = loss_on(parts, rows) * (rows.stop - rows.start) / 12
            loss.backward()
            total = total + loss.detach()
        return total

    for _ in range(4):
        torch.testing.assert_close(a.step(big.backward), b.step(accumulate))
    for p, q in zip(big.params, parts.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("weights", [None, [3, 9], [0.25, 0.75]])
@pytest.mark.parametrize("metric", METRICS)
def test_several_closures_are_one_probe_each_and_one_step_on_the_average(metric, weights):
    problem, plain = Problem(), Problem()
    parts = [slice(0, 6), slice(6, 12)] if weights is None else [slice(0, 3), slice(3, 12)]
    shares = [0.5, 0.5] if weights is None else [0.25, 0.75]
    optimiser = build(problem, metric)
    sgd = torch.optim.SGD(plain.params, lr=0.1, momentum=0.9, weight_decay=5e-2)
    for _ in range(4):
        loss = optimiser.step(closures(problem, parts), weights=weights)
        theta, average, mean_loss = plain.values(), None, 0.0
        for rows, share in zip(parts, shares, strict=True):
            part = Problem()
            part.net, part.x, part.y = plain.net, plain.x[rows], plain.y[rows]
            mean_loss += share * part.backward().item()
            setting = SETTINGS[metric]
            eps = reference.probe(
                metric, theta, part.gradient(theta), setting["gamma"], setting.get("eta"), plain.scaled()
            )
            g = part.gradient([t + e for t, e in zip(theta, eps, strict=True)])
            average = (
                [share * x for x in g] if average is None else [a + share * x for a, x in zip(average, g, strict=True)]
            )
        for p, g in zip(plain.params, average, strict=True):
            p.grad = torch.from_numpy(g)
        sgd.step()
        assert loss.item() == pytest.approx(mean_loss, rel=1e-12)
    for x, y in zip(problem.values(), plain.values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)


def test_one_closure_in_a_list_is_the_closure():
    a, b = Problem(), Problem()
    build(a).step([a.backward])
    build(b).step(b.backward)
    assert all(torch.equal(p, q) for p, q in zip(a.params, b.params, strict=True))


def test_several_closures_without_a_metric_are_the_big_batch():
    big, parts = Problem(), Problem()
    a, b = build(big, None), build(parts, None)
    for _ in range(3):
        a.step(big.backward)
        b.step(closures(parts, [slice(0, 3), slice(3, 12)]), weights=[3, 9])
    for p, q in zip(big.params, parts.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_m_sharpness_is_not_the_big_batch():
    a, b = Problem(), Problem()
    build(a).step(closures(a, [slice(0, 6), slice(6, 12)]))
    build(b).step(b.backward)
    assert not all(torch.allclose(p, q) for p, q in zip(a.params, b.params, strict=True))


def test_closures_with_different_parameters_share_one_step():
    a = [nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))]
    optimiser = SharpnessAware(a, metric="sam", gamma=0.5, lr=1.0)

    def only(i):
        def closure():
            optimiser.zero_grad()
            loss = a[i] ** 2 / 2
            loss.backward()
            return loss

        return closure

    optimiser.step([only(0), only(1)])
    assert [p.item() for p in a] == [1.0 - 0.5 * 1.5, 2.0 - 0.5 * 2.5]


def test_exception_in_a_later_closure_restores_and_steps_nothing():
    problem = Problem()
    optimiser = build(problem)
    before = [p.detach().clone() for p in problem.params]
    good = closures(problem, [slice(0, 6)])[0]
    calls = 0

    def failing():
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("second pass")
        return good()

    with pytest.raises(RuntimeError, match="second pass"):
        optimiser.step([good, failing])
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
    assert not optimiser.state


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"closure": []}, "empty"),
        ({"weights": [1.0]}, "weights"),
        ({"weights": [1.0, -1.0]}, "weights"),
        ({"weights": [0.0, 0.0]}, "weights"),
        ({"weights": [1.0, float("nan")]}, "weights"),
        ({"fisher": [list]}, "fisher: 1 given for 2"),
        ({"closure": None, "same_draws": True}, "need a closure"),
    ],
)
def test_arguments_that_do_not_match_the_closures_are_refused(arguments, message):
    problem = Problem()
    both = closures(problem, [slice(0, 6), slice(6, 12)])
    before = [p.detach().clone() for p in problem.params]
    with pytest.raises(ValueError, match=message):
        build(problem).step(**{"closure": both, **arguments})
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))


def test_fisher_is_asked_for_after_the_first_backward_at_theta():
    problem, by_hand = Problem(), Problem()
    optimiser, other = build(problem), build(by_hand)
    loss = nn.CrossEntropyLoss()
    optimiser.step(problem.backward, fisher=lambda: per_example_squares(problem.net, loss, problem.x, problem.y))
    by_hand.backward()
    squares = per_example_squares(by_hand.net, loss, by_hand.x, by_hand.y)
    other.first_step(zero_grad=True, fisher=squares)
    by_hand.backward()
    other.second_step()
    assert all(torch.equal(p, q) for p, q in zip(problem.params, by_hand.params, strict=True))


def test_fisher_lists_follow_the_module_even_when_groups_do_not():
    problem, grouped = Problem(), Problem()
    a = build(problem)
    groups = [{"params": grouped.params[2:]}, {"params": grouped.params[:2]}]
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-2, **SETTINGS["fsam"]}
    b = SharpnessAware(groups, metric="fsam", module=grouped.net, **settings)
    for p, o in ((problem, a), (grouped, b)):
        squares = [torch.full_like(q, float(i)) for i, q in enumerate(p.params)]
        p.backward()
        o.first_step(fisher=squares)
    for p, q in zip(problem.params, grouped.params, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    ("metric", "fisher", "message"),
    [
        ("sam", "own", "nothing uses it"),
        ("fsam", "short", "3 given for 4"),
        ("fsam", "wrong", "shape"),
    ],
)
def test_fisher_that_does_not_fit_is_refused_before_anything_moves(metric, fisher, message):
    problem = Problem()
    optimiser = build(problem, metric)
    before = [p.detach().clone() for p in problem.params]
    squares = [torch.ones_like(p) for p in problem.params]
    squares = {"own": squares, "short": squares[1:], "wrong": squares[::-1]}[fisher]
    problem.backward()
    with pytest.raises(ValueError, match=message):
        optimiser.first_step(fisher=squares)
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
