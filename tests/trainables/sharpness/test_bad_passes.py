"""Where public implementations fail: gradients absent, not finite or zero, exceptions, layers' own state."""

import math

import pytest
import torch
from sharpness_reference import SETTINGS, Problem
from torch import nn

from trainables.sharpness import METRICS, SharpnessAware
from trainables.sharpness.randomness import SameDraws, same_draws


def build(problem, metric="fsam", **more):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-2, **SETTINGS.get(metric, {}), **more}
    return SharpnessAware(problem.params, metric=metric, module=problem.net, **settings)


def everything(problem, optimiser):
    momentum = [optimiser.state[p]["momentum_buffer"].clone() for p in problem.params]
    return [p.detach().clone() for p in problem.params] + momentum


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("fused", [{}, {"fused": True}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("metric", METRICS)
def test_gradient_that_is_not_finite_touches_nothing_and_is_counted(metric, which, bad, fused):
    problem = Problem()
    optimiser = build(problem, metric, **fused)
    optimiser.step(problem.backward)
    before = everything(problem, optimiser)
    passes = 0

    def closure():
        nonlocal passes
        passes += 1
        loss = problem.backward()
        if passes == which:
            problem.params[1].grad[2] = bad
        return loss

    optimiser.step(closure)
    assert passes == 2
    assert same(everything(problem, optimiser), before)
    assert optimiser.skipped == 1
    assert optimiser.diagnostics()["skipped_steps"] == 1
    assert optimiser.diagnostics()["skipped_steps"] == 0
    optimiser.step(problem.backward)
    assert not same(everything(problem, optimiser), before)
    assert optimiser.skipped == 1


@pytest.mark.parametrize("metric", METRICS)
def test_first_gradient_that_is_not_finite_skips_even_if_the_second_is(metric):
    problem = Problem()
    optimiser = build(problem, metric)
    before = [p.detach().clone() for p in problem.params]
    problem.backward()
    good = [p.grad.clone() for p in problem.params]
    problem.params[0].grad[0, 0] = math.nan
    optimiser.first_step(zero_grad=True)
    for p, g in zip(problem.params, good, strict=True):
        p.grad = g
    optimiser.second_step()
    assert same(problem.params, before)
    assert optimiser.skipped == 1


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_a_fused_base_skips_the_very_first_step_and_goes_on_as_if_it_had_not_been(base):
    """torch's fused SGD makes its momentum of whatever the memory holds, and a skipped step leaves it so."""
    settings = {"lr": 0.1, "weight_decay": 5e-2} | ({"momentum": 0.9} if base is torch.optim.SGD else {})
    skipping, plain = Problem(), Problem()
    a = SharpnessAware(skipping.params, base, metric="sam", gamma=0.3, fused=True, **settings)
    b = SharpnessAware(plain.params, base, metric="sam", gamma=0.3, foreach=True, **settings)

    def spoilt():
        loss = skipping.backward()
        skipping.params[0].grad[0, 0] = math.nan
        return loss

    before = [p.detach().clone() for p in skipping.params]
    a.step(spoilt)
    assert same(skipping.params, before)
    assert a.skipped == 1
    for _ in range(10):
        a.step(skipping.backward)
        b.step(plain.backward)
    for p, q in zip(skipping.params, plain.params, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
    assert (a.skipped, b.skipped) == (1, 0)


def test_a_fused_base_never_asks_the_device_and_another_does(monkeypatch):
    problem = Problem()
    optimiser, other = build(problem, "fsam", fused=True), build(problem, "fsam")

    def asked(*_):
        raise AssertionError("a number was read back")

    for name in ("item", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, asked)
    for _ in range(3):
        optimiser.step(problem.backward)
    with pytest.raises(AssertionError, match="read back"):
        other.step(problem.backward)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_a_gradient_laid_out_otherwise_than_its_parameter_is_the_same_gradient(base):
    """torch's fused optimisers take it in the order of its memory (on the CPU without a word)."""
    start, gradient = torch.randn(4, 3, 3, 3, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    settings = {"lr": 0.1, "metric": None} | ({"momentum": 0.9} if base is torch.optim.SGD else {})
    found = []
    for fused, layout in ((False, torch.contiguous_format), (True, torch.channels_last)):
        p = nn.Parameter(start.clone(memory_format=layout))
        first = SharpnessAware([p], base, **settings)  # whose momentum is laid out as the gradient is
        p.grad = gradient.clone()
        first.step()
        second = SharpnessAware([p], base, **settings, **({"fused": True} if fused else {}))
        second.load_state_dict(first.state_dict())
        for _ in range(3):
            p.grad = gradient.clone()
            second.step()
        found.append(p.detach())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)


def test_plain_base_optimiser_skips_too():
    problem = Problem()
    optimiser = build(problem, None)
    optimiser.step(problem.backward)
    before = everything(problem, optimiser)
    problem.backward()
    problem.params[0].grad[0, 0] = math.nan
    optimiser.step()
    assert same(everything(problem, optimiser), before)
    assert optimiser.skipped == 1


@pytest.mark.parametrize("metric", METRICS)
def test_zero_first_gradient_steps_at_theta(metric):
    problem, plain = Problem(), Problem()
    optimiser = build(problem, metric)
    sgd = torch.optim.SGD(plain.params, lr=0.1, momentum=0.9, weight_decay=5e-2)
    for p in problem.params:
        p.grad = torch.zeros_like(p)
    optimiser.first_step(zero_grad=True)
    problem.backward()
    optimiser.second_step()
    plain.backward()
    sgd.step()
    assert all(torch.equal(p, q) for p, q in zip(problem.params, plain.params, strict=True))


@pytest.mark.parametrize("metric", METRICS)
def test_parameter_with_a_gradient_in_the_first_pass_only_is_restored(metric):
    problem = Problem()
    optimiser = build(problem, metric, weight_decay=0.0)
    lonely = problem.params[0]
    before = lonely.detach().clone()
    problem.backward()
    optimiser.first_step(zero_grad=True)
    assert not torch.equal(lonely, before)
    problem.backward()
    lonely.grad = None
    optimiser.second_step()
    assert torch.equal(lonely, before)


@pytest.mark.parametrize("metric", METRICS)
def test_parameter_with_a_gradient_in_the_second_pass_only_steps_from_theta(metric):
    problem = Problem()
    optimiser = build(problem, metric, weight_decay=0.0, momentum=0.0)
    late = problem.params[3]
    before = late.detach().clone()
    problem.backward()
    late.grad = None
    optimiser.first_step(zero_grad=True)
    assert torch.equal(late, before)
    problem.backward()
    g = late.grad.clone()
    optimiser.second_step()
    torch.testing.assert_close(late.detach(), before - 0.1 * g)


class Interrupted(BaseException):  # like KeyboardInterrupt, which an `except Exception` would let through
    pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Interrupted])
@pytest.mark.parametrize("which", [1, 2])
def test_exception_in_either_pass_restores_everything_and_goes_on_up(which, error):
    problem = Problem(norm=True)
    optimiser = build(problem)
    optimiser.step(problem.backward)
    before = everything(problem, optimiser)
    passes = 0

    def closure():
        nonlocal passes
        passes += 1
        loss = problem.backward()
        if passes == which:
            raise error("no more memory")
        return loss

    with pytest.raises(error):
        optimiser.step(closure)
    assert same(everything(problem, optimiser), before)
    assert problem.net[1].num_batches_tracked == 2  # the first pass was seen, the second was not
    optimiser.step(problem.backward)
    assert not same(everything(problem, optimiser), before)


def test_sparse_gradient_is_a_clear_error_and_moves_nothing():
    table = nn.Embedding(5, 3, sparse=True)
    optimiser = SharpnessAware(table.parameters(), metric="sam", gamma=0.1, lr=0.1)
    before = table.weight.detach().clone()

    def closure():
        optimiser.zero_grad()
        loss = table(torch.tensor([1, 2])).square().sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="dense"):
        optimiser.step(closure)
    assert torch.equal(table.weight, before)


# -- layers' own state


class OwnNorm(nn.Module):
    """Keeps a running mean in place, another by replacing the tensor, and a counter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("in_place", torch.zeros(6, dtype=torch.float64))
        self.register_buffer("replaced", torch.zeros(6, dtype=torch.float64))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.in_place.lerp_(x.detach().mean(0), 0.1)
        self.replaced = 0.9 * self.replaced + 0.1 * x.detach().mean(0)
        self.calls += 1
        return x - self.in_place


@pytest.mark.parametrize("layer", [lambda: nn.BatchNorm1d(6).double(), OwnNorm])
@pytest.mark.parametrize("metric", METRICS)
def test_statistics_come_from_the_first_pass_only(metric, layer):
    problem, once = Problem(), Problem()
    for p in (problem, once):
        p.net.insert(1, layer())
    optimiser = build(problem, metric)
    for _ in range(3):
        for a, b in zip(once.net.parameters(), problem.net.parameters(), strict=True):
            a.data.copy_(b)
        once.net(once.x)  # one forward pass at theta, nothing else
        optimiser.step(problem.backward)
        expected = dict(once.net.named_buffers())
        for name, buffer in problem.net.named_buffers():
            assert torch.equal(buffer, expected[name]), name


def test_without_the_module_statistics_see_both_passes():  # as documented, and so that the test above can fail
    problem = Problem(norm=True)
    optimiser = SharpnessAware(problem.params, metric="sam", gamma=0.1, lr=0.1)
    optimiser.step(problem.backward)
    assert problem.net[1].num_batches_tracked == 2


def test_layers_are_never_frozen_and_buffers_keep_their_addresses():
    problem = Problem(norm=True)
    optimiser = build(problem)
    addresses = [b.data_ptr() for b in problem.net.buffers()]
    for _ in range(3):
        optimiser.step(problem.backward)
        optimiser.restore()
        optimiser.restore()
    norm = problem.net[1]
    assert (norm.training, norm.momentum, norm.track_running_stats) == (True, 0.1, True)
    assert norm.num_batches_tracked == 3
    assert [b.data_ptr() for b in problem.net.buffers()] == addresses
    problem.net(problem.x)  # a pass of the caller's own counts again
    assert norm.num_batches_tracked == 4


# -- random draws


def masks_of_both_passes(same_draws):
    problem = Problem()
    problem.net.insert(2, nn.Dropout(0.5))
    masks = []
    problem.net[2].register_forward_hook(lambda m, x, y: masks.append(y == 0))
    torch.manual_seed(0)
    build(problem).step(problem.backward, same_draws=same_draws)
    after = torch.rand(())
    torch.manual_seed(0)
    for _ in range(1 if same_draws else 2):
        problem.net(problem.x)
    return masks[:2], after, torch.rand(())


def test_dropout_mask_is_the_same_in_both_passes_if_asked():
    masks, after, expected = masks_of_both_passes(True)
    assert torch.equal(*masks)
    assert after == expected  # the generator goes on from where the first pass left it


def test_dropout_mask_is_drawn_anew_otherwise():
    masks, after, expected = masks_of_both_passes(False)
    assert not torch.equal(*masks)
    assert after == expected


@pytest.mark.parametrize("device", [None, "cpu"])
def test_draws_of_the_default_generator_are_replayed(device):
    draws = same_draws(device)
    first = torch.rand(4)
    with draws.again():
        assert torch.equal(torch.rand(4), first)
    assert not torch.equal(torch.rand(4), first)


def test_own_generators_are_replayed_and_then_go_on():
    generator = torch.Generator().manual_seed(3)
    draws = SameDraws(generators=[generator])
    first = torch.rand(4, generator=generator)
    with draws.again():
        assert torch.equal(torch.rand(4, generator=generator), first)
        torch.rand(100, generator=generator)
    expected = torch.rand(8, generator=torch.Generator().manual_seed(3))[4:]
    assert torch.equal(torch.rand(4, generator=generator), expected)
