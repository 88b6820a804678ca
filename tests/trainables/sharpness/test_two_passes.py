"""The optimiser as an object: restoring, stable addresses, its cost, its state, its groups."""

import copy
import io

import pytest
import torch
from sharpness_reference import SETTINGS, Problem
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainables.sharpness import METRICS, SharpnessAware


def build(problem, metric="fsam", **more):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-2, **SETTINGS.get(metric, {}), **more}
    return SharpnessAware(problem.params, metric=metric, module=problem.net, **settings)


def snapshot(params):
    return [p.detach().clone() for p in params]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- theta and back


@pytest.mark.parametrize("metric", METRICS)
def test_thousand_float32_probes_leave_theta_bit_for_bit(metric):
    problem = Problem(dtype=torch.float32)
    optimiser = build(problem, metric)
    before = snapshot(problem.params)
    problem.backward()
    for _ in range(1000):
        optimiser.first_step()
        optimiser.restore()
    assert same(problem.params, before)


def test_subtracting_eps_would_not_have_come_back():  # so that the test above could have failed
    params = [torch.randn(1000, generator=torch.Generator().manual_seed(0))]
    eps = 0.37 * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert not torch.equal((params[0] + eps) - eps, params[0])


def test_first_step_adds_the_probe():
    from trainables.sharpness import probe

    problem = Problem()
    optimiser = build(problem)
    problem.backward()
    eps = probe(problem.params, [p.grad for p in problem.params], metric="fsam", **SETTINGS["fsam"])
    before = snapshot(problem.params)
    optimiser.first_step()
    torch.testing.assert_close(snapshot(problem.params), [p + e for p, e in zip(before, eps, strict=True)])


def test_by_hand_is_the_same_as_with_a_closure():
    closed, by_hand = Problem(), Problem()
    a, b = build(closed), build(by_hand)
    for _ in range(5):
        loss = a.step(closed.backward)
        first = by_hand.backward()
        b.first_step(zero_grad=True)
        assert all(p.grad is None for p in by_hand.params)
        by_hand.backward()
        b.second_step(zero_grad=True)
        assert loss == first.detach()
    assert same(closed.params, by_hand.params)


def test_step_returns_the_loss_at_theta_not_at_theta_prime():
    problem = Problem()
    at_theta = problem.backward().item()
    losses = []

    def closure():
        losses.append(problem.backward())
        return losses[-1]

    assert build(problem).step(closure).item() == at_theta
    assert losses[1].item() > at_theta  # the probe climbs


def test_parameters_and_copies_keep_their_addresses():
    problem = Problem()
    optimiser = build(problem)
    addresses = [p.data_ptr() for p in problem.params]
    for _ in range(3):
        optimiser.step(problem.backward)
        assert [p.data_ptr() for p in problem.params] == addresses
    kept = {p: c.data_ptr() for p, c in optimiser._theta._copies.items()}
    optimiser.step(problem.backward)
    assert {p: c.data_ptr() for p, c in optimiser._theta._copies.items()} == kept


def test_a_pass_left_open_is_an_error_not_a_lost_theta():
    problem = Problem()
    optimiser = build(problem)
    problem.backward()
    optimiser.first_step()
    with pytest.raises(RuntimeError, match="already perturbed"):
        optimiser.first_step()
    with pytest.raises(RuntimeError, match="already perturbed"):
        optimiser.step(problem.backward)
    optimiser.restore()
    optimiser.restore()
    with pytest.raises(RuntimeError, match="no first_step"):
        optimiser.step()


# -- its cost


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "profiler":  # torch's own marks around a step
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def deep_net(layers):
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(layers)))


@pytest.mark.parametrize(("metric", "most"), [("sam", 20), ("asam_eq5", 24), ("asam_official", 28), ("fsam", 26)])
def test_step_issues_few_operations_however_many_tensors(metric, most):
    counts = []
    for layers in (3, 6):
        net = deep_net(layers)
        settings = {**SETTINGS[metric], "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
        optimiser = SharpnessAware(net.parameters(), metric=metric, module=net, **settings)
        x = torch.randn(4, 3, 2, 2)
        for _ in range(2):  # the first step also creates the momentum
            net(x).square().mean().backward()
            with Count() as first:
                optimiser.first_step()
            net.zero_grad()
            net(x).square().mean().backward()
            with Count() as second:
                optimiser.second_step()
            net.zero_grad()
        counts.append(len(first.names) + len(second.names))
    assert counts[0] == counts[1]
    assert counts[0] <= most, first.names + second.names


def test_step_reads_one_number_from_the_device():
    problem = Problem(norm=True)
    optimiser = build(problem)
    optimiser.watch = True
    with Count() as count:
        optimiser.step(problem.backward)
    assert count.names.count("aten._local_scalar_dense.default") == 1


# -- state


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("metric", [None, *METRICS])
def test_resumed_run_is_bit_identical(metric, base):
    settings = {"lr": 0.01, "weight_decay": 0.05, **SETTINGS.get(metric, {})}
    settings |= {"momentum": 0.9} if base is torch.optim.SGD else {}

    def start(seed):
        problem = Problem(seed=seed)
        return problem, SharpnessAware(problem.params, base, metric=metric, module=problem.net, **settings)

    straight, a = start(0)
    for _ in range(4):
        a.step(straight.backward)
    if metric is not None:
        a.param_groups[0]["gamma"] = 0.123
    saved = through_a_file({"net": straight.net.state_dict(), "optimiser": a.state_dict()})
    for _ in range(4):
        a.step(straight.backward)

    resumed, b = start(1)
    resumed.x, resumed.y = straight.x, straight.y
    resumed.net.load_state_dict(saved["net"])
    b.load_state_dict(saved["optimiser"])
    if metric is not None:
        assert b.param_groups[0]["gamma"] == 0.123
    for _ in range(4):
        b.step(resumed.backward)
    assert same(straight.params, resumed.params)


def test_changes_after_loading_take_effect():
    problem = Problem()
    optimiser = build(problem, "fsam")
    optimiser.load_state_dict(through_a_file(optimiser.state_dict()))
    optimiser.param_groups[0].update(gamma=0.5, eta=0.0)
    problem.backward()
    optimiser.watch = True
    optimiser.first_step()
    assert optimiser.diagnostics()["eps_norm"] == pytest.approx(0.5)  # eta 0: SAM, whose probe is as long as gamma


def test_base_and_optimiser_are_one_also_after_loading():
    problem = Problem()
    optimiser = build(problem)
    for _ in range(2):
        assert optimiser.param_groups is optimiser.base.param_groups
        assert optimiser.state is optimiser.base.state
        optimiser.step(problem.backward)
        optimiser.load_state_dict(optimiser.state_dict())
    before = snapshot(problem.params)
    optimiser.param_groups[0]["lr"] = 0.0
    optimiser.step(problem.backward)
    assert same(problem.params, before)


def test_state_holds_momentum_gamma_eta_and_skips():
    problem = Problem()
    optimiser = build(problem)
    optimiser.step(problem.backward)
    optimiser.skipped = 3
    state = optimiser.state_dict()
    assert all("momentum_buffer" in state["state"][i] for i in range(len(problem.params)))
    assert (state["param_groups"][0]["gamma"], state["param_groups"][0]["eta"]) == (0.3, 50.0)
    other = build(Problem())
    other.load_state_dict(state)
    assert other.skipped == 3
    assert other.diagnostics()["skipped_steps"] == 0


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_a_state_goes_on_where_steps_are_computed_in_another_way(base):
    problem, through = Problem(), Problem()
    settings = {"metric": "sam", "gamma": 0.3, "lr": 0.1}
    settings |= {"momentum": 0.9} if base is torch.optim.SGD else {}
    a = SharpnessAware(problem.params, base, **settings)
    b = SharpnessAware(through.params, base, fused=True, **settings)
    for _ in range(3):
        a.step(problem.backward)
        b.step(through.backward)
    c = SharpnessAware(through.params, base, **settings)
    c.load_state_dict(b.state_dict())
    assert not c.param_groups[0].get("fused")
    assert c.param_groups[0]["foreach"] is True
    for _ in range(3):
        a.step(problem.backward)
        c.step(through.backward)
    for p, q in zip(problem.params, through.params, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_state_of_the_plain_base_loads_and_leaves_gamma():
    problem = Problem()
    plain = torch.optim.SGD(problem.params, lr=0.25, momentum=0.5)
    problem.backward()
    plain.step()
    optimiser = build(problem)
    optimiser.load_state_dict(plain.state_dict())
    assert optimiser.param_groups[0]["lr"] == 0.25
    assert optimiser.param_groups[0]["gamma"] == 0.3
    optimiser.step(problem.backward)


def test_a_deep_copy_goes_its_own_way():
    problem = Problem()
    optimiser = build(problem)
    optimiser.step(problem.backward)
    before = snapshot(problem.params)
    problem2, optimiser2 = copy.deepcopy((problem, optimiser))
    assert optimiser2.param_groups is optimiser2.base.param_groups
    optimiser2.step(problem2.backward)
    assert same(problem.params, before)
    optimiser.step(problem.backward)
    assert same(problem.params, problem2.params)


# -- groups and schedulers


def test_gamma_may_warm_up_from_zero():
    problem, plain = Problem(), Problem()
    a, b = build(problem, "sam"), build(plain, None)
    a.param_groups[0]["gamma"] = 0.0
    for _ in range(2):
        a.step(problem.backward)
        b.step(plain.backward)
    assert same(problem.params, plain.params)
    a.param_groups[0]["gamma"] = 0.3
    a.step(problem.backward)
    b.step(plain.backward)
    assert not same(problem.params, plain.params)


def test_scheduler_sees_the_groups():
    problem = Problem()
    optimiser = build(problem)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=10)
    rates = []
    for _ in range(10):
        optimiser.step(problem.backward)
        rates.append(optimiser.base.param_groups[0]["lr"])
        scheduler.step()
    assert rates[0] == 0.1
    assert rates[5] == pytest.approx(0.05)
    before = snapshot(problem.params)
    optimiser.step(problem.backward)  # the rate is 0 now
    assert optimiser.base.param_groups[0]["lr"] == pytest.approx(0.0)
    assert same(problem.params, before)


def test_each_group_has_its_own_gamma_under_one_norm():
    problem = Problem()
    first, second = problem.params[:2], problem.params[2:]
    groups = [{"params": first, "gamma": 0.2}, {"params": []}, {"params": second}]
    optimiser = SharpnessAware(groups, metric="sam", gamma=0.1, lr=0.1)
    problem.backward()
    g = torch.cat([p.grad.reshape(-1) for p in problem.params])
    before = snapshot(problem.params)
    optimiser.first_step()
    for p, q in zip(problem.params, before, strict=True):
        gamma = 0.2 if any(p is f for f in first) else 0.1
        torch.testing.assert_close(p - q, gamma * p.grad / g.norm())


def test_added_group_is_perturbed_stepped_and_checked():
    problem = Problem()
    optimiser = SharpnessAware(problem.params[:2], metric="fsam", gamma=0.1, eta=1.0, lr=0.1)
    with pytest.raises(ValueError, match="gamma"):
        optimiser.add_param_group({"params": problem.params[2:], "gamma": -1.0})
    assert len(optimiser.param_groups) == 1
    optimiser.add_param_group({"params": problem.params[2:], "eta": 5.0})
    assert optimiser.base.param_groups[1]["eta"] == 5.0
    assert optimiser.base.param_groups[1]["gamma"] == 0.1
    before = snapshot(problem.params)
    optimiser.step(problem.backward)
    assert not any(torch.equal(a, b) for a, b in zip(problem.params, before, strict=True))


def test_official_asam_scales_by_role_with_a_module_by_dimensions_without_by_the_group_if_it_says():
    def perturbed(**how):
        problem = Problem(norm=True)
        params = problem.params
        groups = [{"params": params, **how.pop("group", {})}]
        module = problem.net if how.pop("with_module", False) else None
        optimiser = SharpnessAware(groups, metric="asam_official", gamma=0.5, eta=0.1, module=module, lr=0.1)
        before = snapshot(params)
        problem.backward()
        grads = snapshot([p.grad for p in params])
        optimiser.first_step()
        # eps / g tells D up to one common factor; biases of the last layer always have D = 1
        ratio = [((p - q) / g).mean().item() for p, q, g in zip(params, before, grads, strict=True)]
        return [r / ratio[-1] for r in ratio]

    gain = 2  # BatchNorm's weight is 1 at the start: D = (1 + 0.1)^2
    assert perturbed(with_module=True)[gain] == pytest.approx(1.21)
    assert perturbed()[gain] == pytest.approx(1.0)
    assert perturbed(group={"scaled": False}, with_module=True)[gain] == pytest.approx(1.0)


def test_frozen_empty_and_scalar_parameters_are_fine():
    scalar, empty = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.zeros(0, 3))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    groups = [{"params": [scalar, empty]}, {"params": []}, {"params": [frozen]}]
    optimiser = SharpnessAware(groups, metric="fsam", gamma=0.1, eta=1.0, lr=0.1)

    def closure():
        optimiser.zero_grad()
        loss = scalar**2 + empty.sum() + frozen.sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    # f = 16, eps = gamma sqrt(D) = 0.1 / sqrt(17); step 0.1 * 2 * (2 + eps)
    assert scalar.item() == pytest.approx(2.0 - 0.2 * (2.0 + 0.1 / 17**0.5))
    assert torch.equal(frozen, torch.ones(2))


def test_without_any_gradient_nothing_moves():
    problem = Problem()
    optimiser = build(problem)
    before = snapshot(problem.params)
    optimiser.first_step()
    optimiser.second_step()
    assert same(problem.params, before)
    assert optimiser.skipped == 0


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"metric": "sam"}, ValueError, "gamma"),
        ({"metric": "sam", "gamma": 0.1, "eta": 1.0}, ValueError, "does not use it"),
        ({"metric": None, "gamma": 0.1}, ValueError, "without a metric"),
        ({"metric": None, "eta": 0.1}, ValueError, "does not use it"),
        ({"metric": "sam", "gamma": 0.1, "natural_gradient": True}, ValueError, "eta"),
        ({"metric": "friendly", "gamma": 0.1}, ValueError, "unknown"),
        ({"metric": "sam", "gamma": 0.1, "rho": 0.05}, TypeError, "rho"),
        ({"metric": "sam", "gamma": 0.1, "maximize": True}, ValueError, "maximize"),
        ({"base": torch.optim.LBFGS, "metric": "sam", "gamma": 0.1}, ValueError, "closure"),
    ],
)
def test_setting_that_would_be_ignored_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        SharpnessAware(Problem().params, **settings)
