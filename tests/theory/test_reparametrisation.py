"""What a change of units does to the probes: theta' = c theta, one factor a coordinate.

With the exact Fisher information (which becomes F / c^2), Fisher SAM's probe is the same point of the model whatever
the units, eps' = c eps. SAM's is not. ASAM's is too, for it measures in units of theta itself. Fisher SAM as it trains
networks, with 1 / (1 + eta f), lies between: it is SAM where eta f is small.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainables.landscape2d import PRINTED, descend, fisher, probe
from trainables.sharpness import probe as network_probe

points = st.tuples(st.floats(-40, 40), st.floats(1, 60)).map(np.array)
factors = st.floats(0.2, 5).map(lambda c: np.array([c, c])) | st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(
    np.array
)


def eq_10(inverse_fisher, gradient, gamma):
    return gamma * inverse_fisher * gradient / np.sqrt((gradient * inverse_fisher * gradient).sum())


@given(theta=points, c=factors)
def test_fisher_probe_is_the_same_model_in_other_units(theta, c):
    g, f = PRINTED.gradient(theta), fisher(theta)
    np.testing.assert_allclose(eq_10(c**2 / f, g / c, 0.4), c * probe("fsam", theta, g, 0.4), rtol=1e-9, atol=1e-12)


@given(mu=st.floats(-30, 30), sigma=st.floats(1, 50), c=st.floats(0.1, 10))
def test_fisher_of_the_toy_in_other_units_is_the_toys_own_formula(mu, sigma, c):
    """Data in other units, (mu, sigma) -> (c mu, c sigma): the Fisher information that the rule predicts."""
    np.testing.assert_allclose(fisher((c * mu, c * sigma)), fisher((mu, sigma)) / c**2, rtol=1e-9)


@given(theta=points, c=factors)
def test_asams_probe_is_the_same_model_in_other_units_too(theta, c):
    g = PRINTED.gradient(theta)
    np.testing.assert_allclose(
        eq_10((c * theta) ** 2, g / c, 0.4), c * probe("asam_eq5", theta, g, 0.4), rtol=1e-9, atol=1e-12
    )


def test_sams_probe_is_another_model_in_other_units():
    theta, c = np.array([-10.0, 20.0]), np.array([3.0, 1.0])
    g = PRINTED.gradient(theta)
    ours, theirs = probe("sam", theta, g, 0.4), probe("sam", theta, g / c, 0.4) / c
    assert np.abs(ours - theirs).max() > 0.1 * np.abs(ours).max()


@pytest.mark.parametrize(("eta", "cosine"), [(1e-6, 1.0), (1e8, None)])
def test_fisher_sam_with_eta_is_sam_where_eta_is_small_and_consistent_where_it_is_large(eta, cosine):
    """1 / (1 + eta f) with f = g^2: a factor on the units drops out only as eta f leaves 1 behind."""
    g = torch.tensor([0.3, -0.02, 1.1], dtype=torch.float64)
    theta, c = torch.ones_like(g), torch.tensor([4.0, 0.5, 1.0], dtype=torch.float64)
    (eps,) = network_probe([theta], [g], metric="fsam", gamma=0.1, eta=eta)
    (other,) = network_probe([c * theta], [g / c], metric="fsam", gamma=0.1, eta=eta)
    same = torch.allclose(other / c, eps, rtol=1e-3)
    if cosine is None:
        assert same
    else:
        (sam,) = network_probe([theta], [g], metric="sam", gamma=0.1)
        assert torch.cosine_similarity(eps, sam, dim=0).item() == pytest.approx(cosine, abs=1e-6)
        assert not same


@given(g=st.floats(-5, 5).filter(lambda g: abs(g) > 1e-3), f=st.floats(1e-3, 1e3), gamma=st.floats(0.01, 2))
def test_in_one_dimension_fisher_sam_probes_gamma_over_the_root_of_fisher_uphill(g, f, gamma):
    assert eq_10(np.array([1 / f]), np.array([g]), gamma)[0] == pytest.approx(np.sign(g) * gamma / np.sqrt(f))


@given(g=st.floats(-5, 5).filter(lambda g: abs(g) > 1e-3), gamma=st.floats(0.01, 2), eta=st.floats(0, 1e3))
def test_in_one_dimension_eq_12_makes_the_probe_shorter_the_steeper_the_loss(g, gamma, eta):
    """|eps| = gamma / sqrt(1 + eta g^2): SAM's gamma at eta = 0, gamma / (sqrt(eta) |g|) far from it."""
    slope = torch.tensor([g], dtype=torch.float64)
    (eps,) = network_probe([torch.zeros(1, dtype=torch.float64)], [slope], metric="fsam", gamma=gamma, eta=eta)
    assert eps.item() == pytest.approx(np.sign(g) * gamma / np.sqrt(1 + eta * g * g), rel=1e-9)


def test_a_constant_gamma_keeps_the_iterate_off_the_minimum_in_proportion():
    """Why the toy measures arrival with a distance: the gradient that steps is that of a point gamma away."""
    distance = []
    for gamma in (0.5, 2.0):
        path = descend(PRINTED, (25.0, 32.0), optimiser="sam", gamma=gamma, lr=100, steps=600)
        tail = path.theta[-50:] - path.theta[-50:].mean(0)
        distance.append(np.linalg.norm(tail, axis=-1).mean())
    assert distance[1] / distance[0] == pytest.approx(4, rel=0.5)
