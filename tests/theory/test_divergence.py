"""Appendix B states KL(theta + eps || theta) = eps' F eps for small eps. The true factor is one half.

(37) to (39) expand p and log p to first order each, and so lose the second-order term of log p: its expectation is
-1/2 eps' F eps (E[hessian of log p] = -F). Where eq 6 says d <= gamma^2 and eq 8 eps' F eps <= gamma^2, the latter is
the smaller set: gamma in eq 8 corresponds to gamma / sqrt(2) in eq 6.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.landscape2d import divergence, fisher

angles = st.floats(0, 2 * np.pi)


@given(mu=st.floats(-50, 50), sigma=st.floats(0.1, 60), angle=angles)
def test_divergence_of_gaussians_is_half_the_fisher_quadratic(mu, sigma, angle):
    """Section 3.1's model, eps in units of sigma; the ratio tends to 1/2 linearly in |eps|."""
    for size in (1e-2, 1e-3):
        eps = size * sigma * np.array([np.cos(angle), np.sin(angle)])
        theta = np.array([mu, sigma])
        quadratic = (eps * fisher(theta) * eps).sum()
        assert divergence(theta + eps, theta) / quadratic == pytest.approx(0.5, abs=2 * size)


@given(mu=st.floats(-5, 5), sigma=st.floats(0.5, 5), angle=angles)
def test_symmetric_divergence_of_footnote_1_has_the_same_factor(mu, sigma, angle):
    """0.5 (KL(a || b) + KL(b || a)): its second KL term does not vanish, as the footnote says; it is as large."""
    theta, eps = np.array([mu, sigma]), 1e-3 * sigma * np.array([np.cos(angle), np.sin(angle)])
    there, back = divergence(theta + eps, theta), divergence(theta, theta + eps)
    quadratic = (eps * fisher(theta) * eps).sum()
    assert back / there == pytest.approx(1, abs=1e-2)
    assert 0.5 * (there + back) / quadratic == pytest.approx(0.5, abs=1e-3)


def softmax_model(seed):
    """Logits W x of 4 classes over 6 inputs: parameters, inputs, and the exact Fisher averaged over the inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    p = (x @ weight.T).softmax(1)
    fisher_matrix = torch.zeros(12, 12, dtype=torch.float64)
    for xi, pi in zip(x, p, strict=True):
        for y in range(4):
            score = torch.outer(torch.eye(4, dtype=torch.float64)[y] - pi, xi).flatten()
            fisher_matrix += pi[y] * torch.outer(score, score) / len(x)
    return weight, x, fisher_matrix


def mean_divergence(x, weight, other):
    log_p, log_q = (x @ weight.T).log_softmax(1), (x @ other.T).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_divergence_of_a_softmax_model_is_half_the_fisher_quadratic(seed):
    weight, x, fisher_matrix = softmax_model(seed)
    direction = torch.randn(12, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    direction /= direction.norm()
    for size in (1e-2, 1e-3):
        eps = size * direction
        quadratic = (eps @ fisher_matrix @ eps).item()
        ratio = mean_divergence(x, weight + eps.view(4, 3), weight).item() / quadratic
        assert ratio == pytest.approx(0.5, abs=5 * size)


def test_the_dropped_term_is_minus_half_of_what_is_kept():
    """E[log p(theta + eps) - log p] under p(theta + eps), expanded: eps' F eps (kept) - 1/2 eps' F eps (dropped)."""
    weight, x, fisher_matrix = softmax_model(3)

    p = (x @ weight.T).softmax(1)  # the expectation is under the model at theta, which the derivative does not move

    def mean_log_p(w):
        return (p * (x @ w.view(4, 3).T).log_softmax(1)).sum(1).mean()

    mean_hessian = torch.autograd.functional.hessian(mean_log_p, weight.flatten())
    np.testing.assert_allclose(mean_hessian.numpy(), -fisher_matrix.numpy(), rtol=1e-8, atol=1e-10)


def test_a_probe_on_eq_8s_ellipsoid_is_at_half_the_divergence_that_eq_6_allows():
    theta, gamma = np.array([5.0, 20.0]), 1e-3
    eps = gamma * np.array([20.0 * np.cos(1.0), 20.0 / np.sqrt(2) * np.sin(1.0)])
    assert (eps * fisher(theta) * eps).sum() == pytest.approx(gamma**2, rel=1e-9)
    assert divergence(theta + eps, theta) == pytest.approx(gamma**2 / 2, rel=1e-2)
