"""A GradScaler in both passes. Its arithmetic runs on the CPU too, so nothing here needs a GPU."""

import math

import pytest
import torch
from sharpness_reference import SETTINGS, Problem

from trainables.sharpness import METRICS, SharpnessAware

ALL = [None, *METRICS]


def build(problem, metric="fsam", **more):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-2, **SETTINGS.get(metric, {}), **more}
    return SharpnessAware(problem.params, metric=metric, module=problem.net, **settings)


def make_scaler(**more):
    return torch.amp.GradScaler(device="cpu", init_scale=1024.0, **more)


def scaled_backward(problem, scaler):
    problem.net.zero_grad()
    loss = torch.nn.functional.cross_entropy(problem.net(problem.x), problem.y)
    scaler.scale(loss).backward()
    return loss


def by_hand(problem, optimiser, scaler, spoil=None):
    scaled_backward(problem, scaler)
    if spoil == 1:
        problem.params[0].grad[0, 0] = math.inf
    if optimiser.metric is not None:
        scaler.unscale_(optimiser.ascent)
        optimiser.first_step(zero_grad=True)
        scaled_backward(problem, scaler)
        if spoil == 2:
            problem.params[0].grad[0, 0] = math.inf
    scaler.step(optimiser)
    scaler.update()


def with_closure(problem, optimiser, scaler, spoil=None):
    passes = 0

    def closure():
        nonlocal passes
        passes += 1
        loss = scaled_backward(problem, scaler)
        if passes == spoil:
            problem.params[0].grad[0, 0] = math.inf
        return loss

    optimiser.step(closure, scaler=scaler)
    scaler.update()


DRIVERS = [by_hand, with_closure]


@pytest.mark.parametrize("drive", DRIVERS)
@pytest.mark.parametrize("metric", ALL)
def test_scaled_steps_are_the_unscaled_ones(metric, drive):
    scaled, plain = Problem(), Problem()
    a, b = build(scaled, metric), build(plain, metric)
    scaler = make_scaler()
    for _ in range(4):
        drive(scaled, a, scaler)
        b.step(plain.backward)
    for p, q in zip(scaled.params, plain.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    assert scaler.get_scale() == 1024.0


@pytest.mark.parametrize("drive", DRIVERS)
def test_disabled_scaler_changes_nothing(drive):
    scaled, plain = Problem(), Problem()
    a, b = build(scaled), build(plain)
    drive(scaled, a, make_scaler(enabled=False)) if drive is with_closure else by_hand(
        scaled, a, make_scaler(enabled=False)
    )
    b.step(plain.backward)
    assert all(torch.equal(p, q) for p, q in zip(scaled.params, plain.params, strict=True))


@pytest.mark.parametrize("drive", DRIVERS)
@pytest.mark.parametrize("spoil", [1, 2])
@pytest.mark.parametrize("metric", METRICS)
def test_overflow_in_either_pass_skips_the_step_and_lowers_the_scale_once(metric, spoil, drive):
    problem = Problem(norm=True)
    optimiser, scaler = build(problem, metric), make_scaler()
    drive(problem, optimiser, scaler)
    before = [p.detach().clone() for p in problem.params]
    momentum = [optimiser.state[p]["momentum_buffer"].clone() for p in problem.params]
    drive(problem, optimiser, scaler, spoil)
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
    now = [optimiser.state[p]["momentum_buffer"] for p in problem.params]
    assert all(torch.equal(p, q) for p, q in zip(now, momentum, strict=True))
    assert scaler.get_scale() == 512.0
    assert optimiser.skipped == 1
    drive(problem, optimiser, scaler)
    assert optimiser.skipped == 1
    assert not any(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))


def test_overflow_without_a_metric_skips_and_lowers_the_scale():
    for drive in DRIVERS:
        problem = Problem()
        optimiser, scaler = build(problem, None), make_scaler()
        before = [p.detach().clone() for p in problem.params]
        drive(problem, optimiser, scaler, 1)
        assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
        assert (scaler.get_scale(), optimiser.skipped) == (512.0, 1)


def test_unscaling_the_second_gradient_oneself_is_not_done_twice():
    clipped, plain = Problem(), Problem()
    a, b = build(clipped), build(plain)
    scaler = make_scaler()
    scaled_backward(clipped, scaler)
    scaler.unscale_(a.ascent)
    a.first_step(zero_grad=True)
    scaled_backward(clipped, scaler)
    scaler.unscale_(a)
    torch.nn.utils.clip_grad_norm_(clipped.params, 1e9)
    scaler.step(a)
    scaler.update()
    b.step(plain.backward)
    for p, q in zip(clipped.params, plain.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize("spoil", [None, 3])
def test_several_probes_a_step_under_a_scaler(metric, spoil):
    scaled, plain = Problem(), Problem()
    a, b = build(scaled, metric), build(plain, metric)
    scaler = make_scaler()
    passes = 0

    def half(problem, rows, scale):
        def closure():
            nonlocal passes
            problem.net.zero_grad()
            loss = torch.nn.functional.cross_entropy(problem.net(problem.x[rows]), problem.y[rows])
            scale(loss).backward()
            if problem is scaled:
                passes += 1
                if passes == (2 if metric is None and spoil else spoil):
                    problem.params[0].grad[0, 0] = math.inf
            return loss

        return closure

    rows = [slice(0, 6), slice(6, 12)]
    a.step([half(scaled, r, scaler.scale) for r in rows], scaler=scaler)
    scaler.update()
    if spoil:
        assert (a.skipped, scaler.get_scale()) == (1, 512.0)
        assert all(torch.equal(p, q) for p, q in zip(scaled.params, plain.params, strict=True))
    else:
        b.step([half(plain, r, lambda loss: loss) for r in rows])
        for p, q in zip(scaled.params, plain.params, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_bf16_autocast_needs_no_scaler():
    problem = Problem(dtype=torch.float32)
    optimiser = build(problem)

    def closure():
        problem.net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(problem.net(problem.x), problem.y)
        loss.backward()
        return loss

    losses = [optimiser.step(closure).item() for _ in range(20)]
    assert losses[-1] < losses[0]
    assert optimiser.skipped == 0


def test_overflow_that_the_scaler_saw_skips_even_if_the_gradient_was_mended_since():
    problem = Problem()
    optimiser, scaler = build(problem), make_scaler()
    before = [p.detach().clone() for p in problem.params]
    scaled_backward(problem, scaler)
    scaler.unscale_(optimiser.ascent)
    optimiser.first_step(zero_grad=True)
    scaled_backward(problem, scaler)
    problem.params[0].grad[0, 0] = math.inf
    scaler.unscale_(optimiser)
    problem.params[0].grad.nan_to_num_(posinf=0.0)
    scaler.step(optimiser)
    scaler.update()
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
    assert (optimiser.skipped, scaler.get_scale()) == (1, 512.0)
