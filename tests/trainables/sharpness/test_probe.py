"""The probe alone: what the paper's formulas say of it."""

import math

import numpy as np
import pytest
import sharpness_reference as reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sharpness_reference import SETTINGS
from torch import nn

from trainables.sharpness import METRICS, probe, scaled_by_role

SHAPES = [(3, 4), (4,), (), (0,), (2, 1, 3)]


def draw(seed=0, shapes=SHAPES, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    grads = [(scale * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for s in shapes]
    return params, grads


def arguments(metric, n):
    return {**SETTINGS[metric], **({"scaled": [i % 2 == 0 for i in range(n)]} if metric == "asam_official" else {})}


def flat(tensors):
    return torch.cat([t.reshape(-1).double() for t in tensors])


def diagonal(metric, params, grads, kw):
    d = reference.diagonal(
        metric,
        [p.double().numpy() for p in params],
        [g.double().numpy() for g in grads],
        kw.get("eta"),
        kw.get("scaled", [True] * len(params)),
    )
    return flat([torch.from_numpy(np.asarray(x)) for x in d])


@pytest.mark.parametrize("metric", METRICS)
def test_probe_is_the_papers_formula(metric):
    params, grads = draw()
    kw = arguments(metric, len(params))
    expected = reference.probe(
        metric,
        [p.numpy() for p in params],
        [g.numpy() for g in grads],
        kw["gamma"],
        kw.get("eta"),
        kw.get("scaled", [True] * len(params)),
    )
    for e, x in zip(probe(params, grads, metric=metric, **kw), expected, strict=True):
        assert e.dtype == torch.float64
        np.testing.assert_allclose(e.numpy(), x, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5),
    exponent=st.integers(-20, 12),
    gamma=st.floats(1e-3, 10),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_probe_lies_on_the_ellipsoid_and_climbs(metric, seed, shapes, exponent, gamma, dtype):
    params, grads = draw(seed, shapes, 10.0**exponent, dtype)
    kw = {**arguments(metric, len(params)), "gamma": gamma}
    d, g = diagonal(metric, params, grads, kw), flat(grads)
    assume(len(g) > 0)
    # where D spans more than float32 can hold, the identity cannot be evaluated, only approximated
    assume(metric != "fsam" or exponent < 6)
    assume(d.min() > 1e-12)
    eps = probe(params, grads, metric=metric, **kw)
    assert [e.shape for e in eps] == [p.shape for p in params]
    e = flat(eps)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    assert (e * e / d).sum().item() == pytest.approx(gamma**2, rel=tolerance)
    assert (g @ e).item() == pytest.approx(gamma * math.sqrt((g * d * g).sum()), rel=tolerance)
    assert (g @ e).item() > 0


def test_fisher_with_zero_eta_is_sam_bit_for_bit():
    params, grads = draw(dtype=torch.float32)
    for e, x in zip(
        probe(params, grads, metric="fsam", gamma=0.1, eta=0.0),
        probe(params, grads, metric="sam", gamma=0.1),
        strict=True,
    ):
        assert torch.equal(e, x)


def test_official_asam_with_zero_eta_on_every_tensor_is_eq5():
    params, grads = draw()
    a = probe(params, grads, metric="asam_official", gamma=0.5, eta=0.0, scaled=[True] * len(params))
    b = probe(params, grads, metric="asam_eq5", gamma=0.5)
    torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


def test_official_asam_that_scales_nothing_is_sam():
    params, grads = draw()
    a = probe(params, grads, metric="asam_official", gamma=0.5, eta=0.01, scaled=[False] * len(params))
    torch.testing.assert_close(a, probe(params, grads, metric="sam", gamma=0.5), rtol=0, atol=0)


@pytest.mark.parametrize("metric", ["sam", "asam_eq5", "asam_official"])
@pytest.mark.parametrize("c", [1e-6, 1024.0])
def test_sam_and_asam_ignore_the_gradients_scale(metric, c):
    params, grads = draw()
    kw = arguments(metric, len(params))
    a = probe(params, [c * g for g in grads], metric=metric, **kw)
    torch.testing.assert_close(a, probe(params, grads, metric=metric, **kw), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("c", [1e-3, 2.0, 1024.0])
def test_fisher_sees_the_gradients_scale_as_c_squared_eta(c):
    params, grads = draw()
    scaled = probe(params, [c * g for g in grads], metric="fsam", gamma=0.1, eta=0.5)
    equivalent = probe(params, grads, metric="fsam", gamma=0.1, eta=0.5 * c * c)
    torch.testing.assert_close(scaled, equivalent, rtol=1e-12, atol=1e-15)
    if c > 1:  # so an unaveraged sum over a batch is another eta
        assert not torch.allclose(flat(scaled), flat(probe(params, grads, metric="fsam", gamma=0.1, eta=0.5)))


def test_additive_regulariser_is_the_papers_form_with_another_gamma():
    params, grads = draw()
    eta, gamma = 30.0, 0.2
    g = flat(grads)
    d = 1 / (g**2 + 1 / eta)  # delta = 1 / eta
    additive = gamma * d * g / torch.sqrt((g * d * g).sum())
    papers = probe(params, grads, metric="fsam", gamma=gamma * math.sqrt(eta), eta=eta)
    # D is eta times as large there, and eps grows with its square root
    torch.testing.assert_close(flat(papers), additive, rtol=1e-12, atol=1e-15)


def test_given_fisher_replaces_the_squared_gradient():
    params, grads = draw()
    kw = {"metric": "fsam", "gamma": 0.1, "eta": 5.0}
    own = probe(params, grads, **kw)
    torch.testing.assert_close(probe(params, grads, fisher=[g**2 for g in grads], **kw), own, rtol=1e-13, atol=0)
    larger = probe(params, grads, fisher=[40 * g**2 for g in grads], **kw)
    torch.testing.assert_close(larger, probe(params, grads, metric="fsam", gamma=0.1, eta=200.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("metric", METRICS)
def test_zero_gradient_gives_zero(metric):
    params, grads = draw()
    kw = arguments(metric, len(params))
    for e in probe(params, [torch.zeros_like(g) for g in grads], metric=metric, **kw):
        assert torch.equal(e, torch.zeros_like(e))


@pytest.mark.parametrize("metric", METRICS)
def test_absent_gradient_gives_zero_and_leaves_the_norm_to_the_others(metric):
    params, grads = draw()
    kw = arguments(metric, len(params))
    part = probe(params, [None, *grads[1:]], metric=metric, **kw)
    assert torch.equal(part[0], torch.zeros_like(params[0]))
    same = probe(params, [torch.zeros_like(grads[0]), *grads[1:]], metric=metric, **kw)
    torch.testing.assert_close(part, same, rtol=1e-14, atol=0)
    nothing = probe(params, [None] * len(params), metric=metric, **kw)
    assert all(torch.equal(e, torch.zeros_like(p)) for e, p in zip(nothing, params, strict=True))


@pytest.mark.parametrize("exponent", [-30, -25, -12, 12, 25, 30])
def test_norm_neither_underflows_nor_overflows_in_float32(exponent):
    params, grads = draw(scale=10.0**exponent, dtype=torch.float32)
    eps = probe(params, grads, metric="sam", gamma=0.1)
    assert flat(eps).norm().item() == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
def test_half_precision_is_computed_in_float32(metric, dtype):
    params, grads = draw(dtype=dtype)
    kw = arguments(metric, len(params))
    eps = probe(params, grads, metric=metric, **kw)
    exact = probe([p.float() for p in params], [g.float() for g in grads], metric=metric, **kw)
    assert all(e.dtype == torch.float32 for e in eps)
    torch.testing.assert_close(eps, exact, rtol=0, atol=0)


def test_mixed_dtypes_share_one_norm():
    params, grads = draw()
    mixed = (
        [t.float() if i % 2 else t for i, t in enumerate(params)],
        [t.float() if i % 2 else t for i, t in enumerate(grads)],
    )
    eps = probe(*mixed, metric="fsam", gamma=0.1, eta=10.0)
    torch.testing.assert_close(
        flat(eps), flat(probe(params, grads, metric="fsam", gamma=0.1, eta=10.0)), rtol=1e-5, atol=1e-7
    )


def test_probe_changes_neither_parameters_nor_gradients():
    params, grads = draw()
    before = [t.clone() for t in (*params, *grads)]
    for metric in METRICS:
        probe(params, grads, metric=metric, **arguments(metric, len(params)))
    assert all(torch.equal(a, b) for a, b in zip((*params, *grads), before, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_gradient_that_is_not_finite_is_refused(metric, bad):
    params, grads = draw()
    grads[0][0, 0] = bad
    with pytest.raises(ValueError, match="not finite"):
        probe(params, grads, metric=metric, **arguments(metric, len(params)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "fisher"}, "metric: 'fisher' is unknown"),
        ({"gamma": 0.0}, "gamma: must be a finite number > 0"),
        ({"gamma": -1.0}, "gamma: must be a finite number > 0"),
        ({"gamma": math.nan}, "gamma: must be a finite number > 0"),
        ({"gamma": math.inf}, "gamma: must be a finite number > 0"),
        ({"gamma": "0.1"}, "gamma: must be a finite number > 0"),
        ({"gamma": None}, "gamma: must be a finite number > 0"),
        ({"eta": 1.0}, "eta: 1.0 given, but metric 'sam' does not use it"),
        ({"metric": "asam_eq5", "eta": 0.01}, "does not use it"),
        ({"metric": "fsam"}, "eta: metric 'fsam' needs"),
        ({"metric": "fsam", "eta": -1.0}, "eta: metric 'fsam' needs a finite number >= 0"),
        ({"metric": "fsam", "eta": math.inf}, "eta: metric 'fsam' needs"),
        ({"metric": "asam_official", "eta": 0.01}, "scaled"),
        ({"scaled": [True] * 5}, "scaled: given, but"),
        ({"fisher": [torch.zeros(())] * 5}, "fisher: given, but"),
        ({"metric": "fsam", "eta": 1.0, "fisher": []}, "fisher: 0 given for 5"),
        ({"metric": "fsam", "eta": 1.0, "fisher": [torch.zeros(7)] * 5}, r"fisher\[0\]: shape \(7,\)"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_in_one_line(change, message):
    params, grads = draw()
    with pytest.raises(ValueError, match=message) as caught:
        probe(params, grads, **{"metric": "sam", "gamma": 0.1, **change})
    assert "\n" not in str(caught.value)


def test_lengths_and_shapes_must_match():
    params, grads = draw()
    with pytest.raises(ValueError, match="4 given for 5"):
        probe(params, grads[1:], metric="sam", gamma=0.1)
    with pytest.raises(ValueError, match=r"grads\[0\]: shape"):
        probe(params, [grads[1], *grads[1:]], metric="sam", gamma=0.1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))  # a name that holds "weight"
        self.attention = nn.MultiheadAttention(4, 2)
        self.memory = nn.LSTM(4, 4)
        self.norm = nn.LayerNorm(4)
        self.plain = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.position_weights = nn.Parameter(torch.zeros(1, 4))


def test_scaled_by_role_takes_weights_and_norm_gains_and_no_bias():
    net = Block()
    scaled = scaled_by_role(net)
    names = {name for name, p in net.named_parameters() if p in scaled}
    assert names == {
        "weights.0.weight",
        "weights.1.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "memory.weight_ih_l0",
        "memory.weight_hh_l0",
        "norm.weight",
        "plain.parametrizations.weight.original0",
        "plain.parametrizations.weight.original1",
    }
