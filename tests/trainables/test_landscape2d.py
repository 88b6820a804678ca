"""The toy of section 3.1: eq 15's minima, its derivatives against independent ones, the probes of eqs 2, 5 and 10."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.landscape2d import (
    ARRIVED,
    EQ15,
    PRINTED,
    SMALLEST_SIGMA,
    basin,
    descend,
    diagonal,
    divergence,
    fisher,
    minima,
    probe,
    semi_axes,
    shares,
)
from trainables.sharpness import probe as torch_probe

PROBING = ("sam", "asam_eq5", "fsam")
points = st.tuples(st.floats(-60, 60), st.floats(1, 80)).map(np.array)
gammas = st.floats(0.01, 1.2)


@pytest.fixture(scope="module")
def printed():
    return minima(PRINTED)


def test_printed_minima_losses_and_traces_are_the_papers_to_every_digit(printed):
    """Figure 1 and section 3.1."""
    flat, sharp = printed
    assert flat.theta.round(2).tolist() == [19.85, 29.95]
    assert sharp.theta.round(2).tolist() == [-15.94, 13.46]
    assert [round(flat.loss, 2), round(sharp.loss, 2)] == [0.51, 0.49]
    assert [round(flat.trace, 3), round(sharp.trace, 3)] == [0.001, 0.006]


def test_eq_15_with_the_true_divergence_has_other_minima_than_the_printed_ones():
    """The paper's numbers leave the divergence's -1/2 out; with it, no printed digit of the sharp minimum is met."""
    flat, sharp = minima(EQ15)
    assert flat.theta.round(2).tolist() == [19.81, 29.94]
    assert sharp.theta.round(2).tolist() == [-16.80, 12.80]
    assert [round(flat.loss, 2), round(sharp.loss, 2)] == [0.36, 0.28]
    assert round(sharp.trace, 3) == 0.007


def test_the_missing_half_only_rescales_the_mixtures_weights():
    theta = np.random.default_rng(0).uniform((-40, 2), (40, 60), size=(50, 2))
    weights = [a * np.exp(-0.5 / b**2) for a, b in zip(EQ15.weights, EQ15.beta, strict=True)]
    rescaled = type(EQ15)(weights=tuple(weights))
    np.testing.assert_allclose(rescaled.loss(theta), PRINTED.loss(theta), rtol=1e-13)


@pytest.mark.parametrize("landscape", [EQ15, PRINTED])
def test_both_minima_are_minima(landscape):
    found = minima(landscape)
    assert len(found) == 2
    for place in found:
        assert np.abs(landscape.gradient(place.theta)).max() < 1e-12
        assert (place.eigenvalues > 0).all()
        assert place.trace == pytest.approx(place.eigenvalues.sum(), rel=1e-12)
    assert found[0].trace < found[1].trace
    assert found[0].loss > found[1].loss  # the flat one is the worse of the two


@given(points, points)
def test_divergence_is_torchs(theta, other):
    there, here = (torch.distributions.Normal(*torch.tensor(t, dtype=torch.float64)) for t in (theta, other))
    expected = torch.distributions.kl_divergence(there, here).item()
    assert divergence(theta, other) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_divergence_is_the_integral_that_defines_it():
    mu, sigma, m, s = 1.5, 2.0, -0.5, 3.0

    def integrand(x):
        log_p = -((x - mu) ** 2) / (2 * sigma**2) - mpmath.log(sigma)
        log_q = -((x - m) ** 2) / (2 * s**2) - mpmath.log(s)
        return mpmath.exp(log_p) / mpmath.sqrt(2 * mpmath.pi) * (log_p - log_q)

    integral = float(mpmath.quad(integrand, [-40, -10, 0, 10, 40]))
    assert divergence((mu, sigma), (m, s)) == pytest.approx(integral, rel=1e-9)


def torch_loss(landscape, theta):
    logs = []
    for m, s, a, b in zip(landscape.m, landscape.s, landscape.weights, landscape.beta, strict=True):
        there = torch.distributions.Normal(theta[0], theta[1])
        energy = torch.distributions.kl_divergence(there, torch.distributions.Normal(m, s)) + landscape.offset
        logs.append(np.log(a) - energy / b**2)
    return -torch.logsumexp(torch.stack(logs), 0)


@pytest.mark.parametrize("landscape", [EQ15, PRINTED])
@given(theta=points)
@settings(max_examples=40, deadline=None)
def test_loss_gradient_and_hessian_are_autograds(landscape, theta):
    at = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    value = torch_loss(landscape, at)
    (slope,) = torch.autograd.grad(value, at)
    curvature = torch.autograd.functional.hessian(lambda t: torch_loss(landscape, t), at)
    assert landscape.loss(theta) == pytest.approx(value.item(), rel=1e-10)
    np.testing.assert_allclose(landscape.gradient(theta), slope.numpy(), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(landscape.hessian(theta), curvature.numpy(), rtol=1e-7, atol=1e-11)


def test_derivatives_are_mpmaths_in_fifty_digits():
    with mpmath.workdps(50):
        theta = (mpmath.mpf(-7), mpmath.mpf(18))

        def loss(mu, sigma):
            parts = zip(PRINTED.m, PRINTED.s, PRINTED.weights, PRINTED.beta, strict=True)
            return -mpmath.log(
                sum(
                    a * mpmath.exp(-(mpmath.log(s / sigma) + (sigma**2 + (mu - m) ** 2) / (2 * s**2)) / b**2)
                    for m, s, a, b in parts
                )
            )

        slope = [float(mpmath.diff(loss, theta, n)) for n in ((1, 0), (0, 1))]
        second = [float(mpmath.diff(loss, theta, n)) for n in ((2, 0), (1, 1), (1, 1), (0, 2))]
    np.testing.assert_allclose(PRINTED.gradient((-7, 18)), slope, rtol=1e-12)
    np.testing.assert_allclose(PRINTED.hessian((-7, 18)).ravel(), second, rtol=1e-11)


def test_fisher_is_the_expected_outer_product_of_the_score():
    """Gauss-Hermite quadrature is exact for these polynomials."""
    mu, sigma = 3.0, 2.5
    nodes, weights = np.polynomial.hermite_e.hermegauss(10)
    x = mu + sigma * nodes
    score = np.stack([(x - mu) / sigma**2, (x - mu) ** 2 / sigma**3 - 1 / sigma])
    expected = (weights / weights.sum() * score) @ score.T
    np.testing.assert_allclose(np.diag(fisher((mu, sigma))), expected, atol=1e-12)


@pytest.mark.parametrize("optimiser", PROBING)
@given(theta=points, gamma=gammas)
def test_probe_lies_on_the_ellipse_and_no_other_point_of_it_is_higher_to_first_order(optimiser, theta, gamma):
    theta = np.where(np.abs(theta) < 1e-3, 1e-3, theta)
    g = PRINTED.gradient(theta)
    axes = semi_axes(optimiser, theta, gamma)
    eps = probe(optimiser, theta, g, gamma)
    assert ((eps / axes) ** 2).sum() == pytest.approx(1, rel=1e-9)
    angle = np.linspace(0, 2 * np.pi, 721)
    rim = axes * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    assert (rim @ g).max() <= g @ eps * (1 + 1e-12)


@pytest.mark.parametrize("optimiser", ["sam", "asam_eq5"])
@given(theta=points, gamma=gammas)
def test_probe_is_that_of_the_optimiser_that_trains_networks(optimiser, theta, gamma):
    g = PRINTED.gradient(theta)
    (expected,) = torch_probe([torch.tensor(theta)], [torch.tensor(g)], metric=optimiser, gamma=gamma)
    np.testing.assert_allclose(probe(optimiser, theta, g, gamma), expected.numpy(), rtol=1e-8, atol=1e-12)


@given(theta=points, gamma=gammas)
def test_fisher_probe_is_the_networks_for_a_large_eta_with_the_exact_fisher(theta, gamma):
    """1 / (1 + eta f) tends to 1 / (eta f), so that gamma sqrt(eta) takes eta out again."""
    g, eta = PRINTED.gradient(theta), 1e12
    (expected,) = torch_probe(
        [torch.tensor(theta)],
        [torch.tensor(g)],
        metric="fsam",
        gamma=gamma * np.sqrt(eta),
        eta=eta,
        fisher=[torch.tensor(fisher(theta))],
    )
    np.testing.assert_allclose(probe("fsam", theta, g, gamma), expected.numpy(), rtol=1e-6, atol=1e-12)


@given(theta=points)
def test_fishers_ellipse_is_as_wide_as_sigma_and_flatter_by_the_root_of_two(theta):
    """Section 3.1: {eps_1^2 / sigma^2 + eps_2^2 / (sigma^2 / 2) <= gamma^2}."""
    sigma = theta[1]
    np.testing.assert_allclose(semi_axes("fsam", theta, 0.5), [0.5 * sigma, 0.5 * sigma / np.sqrt(2)], rtol=1e-12)
    np.testing.assert_allclose(semi_axes("asam_eq5", theta, 0.5), 0.5 * np.abs(theta), rtol=1e-12, atol=1e-100)


@pytest.mark.parametrize("optimiser", PROBING)
def test_descent_of_many_starts_is_each_starts_own(optimiser):
    starts = np.array([[-40.0, 45.0], [5.0, 10.0], [0.3, 2.0]])
    gamma = np.array([0.2, 0.5, 1.1])
    together = descend(PRINTED, starts, optimiser=optimiser, gamma=gamma, lr=20, steps=30)
    for i, start in enumerate(starts):
        theta = start
        for t in range(30):  # Algorithm 1, written out
            d = diagonal(optimiser, theta)
            g = PRINTED.gradient(theta)
            eps = gamma[i] * d * g / np.sqrt((d * g * g).sum())
            at = np.array([(theta + eps)[0], max((theta + eps)[1], SMALLEST_SIGMA)])
            np.testing.assert_allclose(together.theta[t, i], theta, rtol=1e-9)
            theta = theta - 20 * PRINTED.gradient(at)
            theta[1] = max(theta[1], SMALLEST_SIGMA)


@given(points, st.sampled_from(PROBING), st.floats(0.01, 30), st.floats(1, 300))
@settings(max_examples=50, deadline=None)
def test_no_descent_leaves_the_half_plane_of_positive_sigma(start, optimiser, gamma, lr):
    path = descend(PRINTED, start, optimiser=optimiser, gamma=gamma, lr=lr, steps=40)
    assert np.isfinite(path.theta).all()
    assert path.theta[:, 1].min() >= SMALLEST_SIGMA
    assert (path.theta[:-1] + path.eps)[:, 1].min() >= SMALLEST_SIGMA - 1e-12
    cut = ((path.theta[:-1] + path.eps)[:, 1] <= SMALLEST_SIGMA) | (path.theta[1:, 1] <= SMALLEST_SIGMA)
    assert (cut == path.cut).all()


def test_fisher_probes_below_the_root_of_two_are_never_cut_off():
    path = descend(PRINTED, (-30.0, 40.0), optimiser="fsam", gamma=1.35, lr=20, steps=200)
    assert not path.cut.any()


def test_a_vanishing_gradient_gives_no_probe_and_no_nan(printed):
    assert (probe("fsam", (1.0, 2.0), (0.0, 0.0), 0.5) == 0).all()
    assert (probe("asam_eq5", (0.0, 2.0), (1.0, 0.0), 0.5) == 0).all()  # the whole gradient along an axis of width 0


def test_each_minimum_lies_in_its_own_basin_and_small_probes_change_nothing(printed):
    starts = np.array([printed[0].theta + 3, printed[1].theta + 3, (-60.0, 20.0), (60.0, 60.0)])
    assert basin(PRINTED, starts, printed).tolist() == [0, 1, 1, 0]
    for optimiser in PROBING:
        path = descend(PRINTED, starts, optimiser=optimiser, gamma=1e-3, lr=20, steps=1500)
        assert basin(PRINTED, path.theta[-1], printed).tolist() == [0, 1, 1, 0]


def test_fisher_sam_leaves_the_sharp_basin_where_sam_with_the_same_gamma_does_not(printed):
    """Figure 2's claim, as far as it can be had: it rests in the flat basin, and not at the flat minimum."""
    start = (-40.0, 45.0)
    ends = {o: descend(PRINTED, start, optimiser=o, gamma=1.1, lr=20, steps=1500).theta[-1] for o in ("sam", "fsam")}
    assert np.linalg.norm(ends["sam"] - printed[1].theta) < ARRIVED
    assert basin(PRINTED, ends["fsam"], printed) == 0
    assert np.linalg.norm(ends["fsam"] - printed[0].theta) > ARRIVED


def test_a_large_probe_rests_where_it_meets_the_other_minimum(printed):
    path = descend(PRINTED, (-40.0, 45.0), optimiser="fsam", gamma=1.1, lr=20, steps=1500)
    assert np.abs(path.step[-1]).max() < 1e-6
    np.testing.assert_allclose(path.theta[-1] + path.eps[-1], printed[1].theta, atol=1e-3)


def test_moderate_probes_rest_about_the_saddle(printed):
    saddle = np.array([-1.6, 21.6])
    for _ in range(6):
        saddle = saddle - np.linalg.solve(PRINTED.hessian(saddle), PRINTED.gradient(saddle))
    low, high = np.linalg.eigvalsh(PRINTED.hessian(saddle))
    assert low < 0 < high
    for optimiser, gamma in (("sam", 12.0), ("fsam", 0.6)):
        last = descend(PRINTED, (-40.0, 45.0), optimiser=optimiser, gamma=gamma, lr=20, steps=1500).theta[-1]
        assert np.linalg.norm(last - saddle) < 1


def test_asam_fails_near_mu_zero_with_one_gamma_and_arrives_with_a_larger_one(printed):
    """Figure 3's claim, and what it leaves out."""
    start, gamma = (-5.0, 14.0), np.array([0.6, 0.9])
    last = descend(PRINTED, start, optimiser="asam_eq5", gamma=gamma, lr=20, steps=1500).theta[-1]
    assert np.linalg.norm(last[0] - printed[1].theta) < ARRIVED
    assert np.linalg.norm(last[1] - printed[0].theta) < ARRIVED


def test_shares_count_what_descents_do():
    starts = np.array([(-60.0, 20.0), (60.0, 60.0), (-40.0, 45.0)])
    rows = shares(PRINTED, starts, {"sam": (0.5,), "fsam": (0.5, 1.1)}, lr=20, steps=300)
    assert [(r.optimiser, r.gamma, r.starts) for r in rows] == [("sam", 0.5, 3), ("fsam", 0.5, 3), ("fsam", 1.1, 3)]
    for row in rows:
        path = descend(PRINTED, starts, optimiser=row.optimiser, gamma=row.gamma, lr=20, steps=300)
        ends = basin(PRINTED, path.theta[-1], minima(PRINTED))
        assert row.flat == (ends == 0).mean()
        assert row.sharp == (ends == 1).mean()
        assert row.length == pytest.approx(np.linalg.norm(path.eps, axis=-1).mean())
        assert row.sgd_flat == pytest.approx(1 / 3)


def test_bad_arguments_are_refused_in_one_line():
    for bad in ((1.0, 0.0), (1.0, -2.0)):
        with pytest.raises(ValueError, match="sigma must be above 0"):
            PRINTED.loss(bad)
    with pytest.raises(ValueError, match="last axis"):
        PRINTED.gradient([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="one of sgd, sam"):
        diagonal("asam", (1.0, 2.0))
    for wrong, named in (
        ({"optimiser": "sgd", "gamma": 0.1}, "no probe"),
        ({"optimiser": "sam", "gamma": 0.0}, "gamma"),
        ({"optimiser": "sam", "gamma": 1.0, "lr": 0.0}, "lr"),
        ({"optimiser": "sam", "gamma": 1.0, "start": (0.0, 0.1)}, "start"),
    ):
        arguments = {"start": (0.0, 10.0), "lr": 1.0, "steps": 3, **wrong}
        with pytest.raises(ValueError, match=named):
            descend(PRINTED, **arguments)
