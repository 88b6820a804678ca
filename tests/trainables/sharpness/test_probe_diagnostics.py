"""The numbers by which a reader sees whether eta did anything."""

import math

import pytest
import torch
from sharpness_reference import SETTINGS, Problem

from trainables.sharpness import METRICS, SharpnessAware, probe

KEYS = {"eps_norm", "cosine_to_sam", "eta_vanished", "skipped_steps"}


def build(problem, metric, **more):
    return SharpnessAware(problem.params, metric=metric, module=problem.net, lr=0.1, **{**SETTINGS[metric], **more})


def flat(tensors):
    return torch.cat([t.detach().reshape(-1).double() for t in tensors])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", METRICS)
def test_diagnostics_are_those_of_the_probe(metric, dtype):
    problem = Problem(dtype=dtype)
    optimiser = build(problem, metric)
    problem.backward()
    grads = [p.grad for p in problem.params]
    scaled = {"scaled": problem.scaled()} if metric == "asam_official" else {}
    eps = flat(probe(problem.params, grads, metric=metric, **SETTINGS[metric], **scaled))
    sam = flat(probe(problem.params, grads, metric="sam", gamma=1.0))
    optimiser.watch = True
    optimiser.first_step()
    seen = optimiser.diagnostics()
    assert set(seen) == KEYS
    assert seen["eps_norm"] == pytest.approx(eps.norm().item(), rel=1e-6)
    assert seen["cosine_to_sam"] == pytest.approx((eps @ sam / eps.norm() / sam.norm()).item(), rel=1e-6)
    if metric == "fsam":
        g = flat(grads).float()
        assert seen["eta_vanished"] == ((1 + 50.0 * g * g) == 1).double().mean().item()
    else:
        assert math.isnan(seen["eta_vanished"])


@pytest.mark.parametrize(("eta", "vanished", "cosine"), [(1e-12, 1.0, 1.0), (1e12, 0.0, 0.7)])
def test_vanished_share_and_cosine_tell_whether_eta_acts(eta, vanished, cosine):
    problem = Problem(dtype=torch.float32)
    optimiser = build(problem, "fsam", eta=eta)
    optimiser.watch = True
    optimiser.step(problem.backward)
    seen = optimiser.diagnostics()
    assert seen["eta_vanished"] == vanished
    assert seen["cosine_to_sam"] == pytest.approx(1.0, abs=1e-6) if cosine == 1.0 else seen["cosine_to_sam"] < 0.95


def test_only_watched_steps_count_and_a_summary_starts_afresh():
    problem = Problem()
    optimiser = build(problem, "sam")
    optimiser.step(problem.backward)
    assert math.isnan(optimiser.diagnostics()["eps_norm"])
    for gamma, watch in ((0.1, True), (9.0, False), (0.3, True)):
        optimiser.param_groups[0]["gamma"] = gamma
        optimiser.watch = watch
        optimiser.step(problem.backward)
        assert optimiser.watch is False
    assert optimiser.diagnostics()["eps_norm"] == pytest.approx(0.2)
    assert math.isnan(optimiser.diagnostics()["eps_norm"])


def test_without_a_metric_there_is_nothing_to_measure():
    problem = Problem()
    optimiser = SharpnessAware(problem.params, metric=None, lr=0.1)
    optimiser.watch = True
    optimiser.step(problem.backward)
    seen = optimiser.diagnostics()
    assert set(seen) == KEYS
    assert all(math.isnan(seen[k]) for k in KEYS - {"skipped_steps"})
    assert seen["skipped_steps"] == 0


def test_watching_changes_no_bit_of_the_training():
    watched, blind = Problem(), Problem()
    a, b = build(watched, "fsam"), build(blind, "fsam")
    for _ in range(3):
        a.watch = True
        a.step(watched.backward)
        b.step(blind.backward)
    assert all(torch.equal(p, q) for p, q in zip(watched.params, blind.params, strict=True))


def test_watched_step_that_is_skipped_does_not_spoil_the_means():
    problem = Problem()
    optimiser = build(problem, "sam")
    problem.backward()
    problem.params[0].grad[0, 0] = math.nan
    optimiser.watch = True
    optimiser.first_step()
    optimiser.second_step()
    optimiser.watch = True
    optimiser.step(problem.backward)
    seen = optimiser.diagnostics()
    assert seen["eps_norm"] == pytest.approx(0.3)
    assert seen["skipped_steps"] == 1
