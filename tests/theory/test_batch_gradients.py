"""Theorem 3.1, whose factor alpha relates the square of a batch's mean gradient (eq 12) to the mean square (eq 11).

What is found here and is not in the paper: its alpha = M (N - 1) / (N - M) is that of batches drawn *without*
replacement (that is what Cochran's Theorem 2.2 is about); the theorem says "w/ replacement", for which alpha is M.
Either way alpha is at least M, and eq 12, which leaves it out, understates eq 11 by about |B| where the gradients are
mostly noise.
"""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

vectors = st.integers(2, 5).flatmap(
    lambda n: st.lists(st.lists(st.floats(-3, 3), min_size=2, max_size=2), min_size=n, max_size=n)
)


def second_moment(v):
    """(1 / N) sum v v', the left side of eq 13."""
    return v.T @ v / len(v)


def batch_moment(v, batches):
    """E_B[mean(B) mean(B)'] over equally likely batches of indices."""
    means = np.array([v[list(batch)].mean(0) for batch in batches])
    return means.T @ means / len(means)


def right_side(alpha, moment, v):
    mean = v.mean(0)
    return alpha * moment + (1 - alpha) * np.outer(mean, mean)


def without_replacement(n, m):
    return m * (n - 1) / (n - m)


@given(v=vectors, data=st.data())
@settings(max_examples=60, deadline=None)
def test_theorem_holds_without_replacement_with_the_papers_alpha(v, data):
    v = np.array(v)
    m = data.draw(st.integers(1, len(v) - 1))
    moment = batch_moment(v, combinations(range(len(v)), m))
    np.testing.assert_allclose(right_side(without_replacement(len(v), m), moment, v), second_moment(v), atol=1e-10)


@given(v=vectors, data=st.data())
@settings(max_examples=40, deadline=None)
def test_theorem_holds_with_replacement_with_alpha_equal_to_the_batchs_size(v, data):
    v = np.array(v)
    m = data.draw(st.integers(1, 4))
    moment = batch_moment(v, product(range(len(v)), repeat=m))
    np.testing.assert_allclose(right_side(m, moment, v), second_moment(v), atol=1e-10)


@given(v=vectors, data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_papers_alpha_is_wrong_with_replacement_unless_the_batch_is_one_example(v, data):
    v = np.array(v)
    assume(len(v) > 2 and np.trace(np.cov(v.T)) > 0.1)
    m = data.draw(st.integers(2, len(v) - 1))
    moment = batch_moment(v, product(range(len(v)), repeat=m))
    gap = np.trace(right_side(without_replacement(len(v), m), moment, v) - second_moment(v))
    # (alpha / M - 1) times the variance, exactly: the theorem as stated overstates the left side
    variance = np.trace(second_moment(v)) - (v.mean(0) ** 2).sum()
    assert gap == pytest.approx((without_replacement(len(v), m) / m - 1) * variance, abs=1e-9)
    assert gap > 0


def test_the_two_alphas_agree_for_a_batch_of_one_and_in_a_large_population():
    assert without_replacement(10, 1) == 1
    assert without_replacement(50_000, 128) == pytest.approx(128, rel=0.003)  # CIFAR-10, the paper's batch
    assert without_replacement(2_040, 128) == pytest.approx(136.5, rel=1e-3)  # Flowers: 7 % more


@pytest.mark.parametrize("replace", [False, True])
def test_simulated_batches_give_the_alpha_of_their_own_sampling(replace):
    generator = np.random.default_rng(0)
    n, m, draws = 60, 20, 40_000
    v = generator.normal(size=(n, 2)) + 0.3
    keys = generator.integers(n, size=(draws, m)) if replace else generator.random((draws, n)).argsort(1)[:, :m]
    means = v[keys].mean(1)
    variance = ((means - v.mean(0)) ** 2).sum(1).mean()
    alpha = (second_moment(v).trace() - (v.mean(0) ** 2).sum()) / variance
    assert alpha == pytest.approx(m if replace else without_replacement(n, m), rel=0.03)  # 20 against 29.5


@pytest.mark.parametrize(("signal", "size"), [(0.0, 16), (0.3, 16), (1.0, 16), (0.3, 64)])
def test_eq_12_sees_the_share_that_signal_and_batch_size_give(signal, size):
    """E|mean g|^2 / E|g|^2 = 1 / M + (1 - 1 / M) s with s = |E g|^2 / E|g|^2, the signal's share."""
    generator = np.random.default_rng(1)
    g = generator.normal(size=(4_000, size, 5)) + signal
    seen = (g.mean(1) ** 2).sum(-1).mean() / (g**2).sum(-1).mean()
    share = signal**2 / (1 + signal**2)
    assert seen == pytest.approx(1 / size + (1 - 1 / size) * share, rel=0.03)


def test_eq_12_understates_eq_11_by_the_batchs_size_where_all_is_noise():
    generator = np.random.default_rng(2)
    g = generator.normal(size=(4_000, 128, 5))
    understated = (g**2).sum(-1).mean() / (g.mean(1) ** 2).sum(-1).mean()
    assert understated == pytest.approx(128, rel=0.03)
