import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.intervals import holm, interval, p_value

samples = st.lists(st.floats(-100, 100), min_size=2, max_size=8).filter(lambda v: np.std(v) > 1e-6)


@settings(max_examples=60, deadline=None)
@given(samples)
def test_interval_and_p_are_those_of_scipys_one_sample_t_test(values):
    test = stats.ttest_1samp(values, 0.0)
    expected = test.confidence_interval(0.95)
    mean, std = np.mean(values), np.std(values, ddof=1)
    low, high = interval(mean, std, len(values))
    assert low == pytest.approx(expected.low, rel=1e-9, abs=1e-9)
    assert high == pytest.approx(expected.high, rel=1e-9, abs=1e-9)
    assert p_value(mean, std, len(values)) == pytest.approx(test.pvalue, rel=1e-7, abs=1e-12)


def test_one_value_has_no_interval_and_no_p():
    low, high = interval([0.5, 0.5], [np.nan, 0.1], [1, 3])
    assert np.isnan(low[0])
    assert np.isnan(high[0])
    assert low[1] < 0.5 < high[1]
    assert np.isnan(p_value(0.5, np.nan, 1))


def test_equal_values_give_no_interval_and_no_certainty():
    """Accuracies come in steps of one image: three equal ones do not make a mean exact."""
    assert np.isnan(interval(0.9, 0.0, 3)).all()
    assert np.isnan(interval(0.9, 1e-17, 3)).all()
    assert p_value(0.0, 0.0, 3) == 1
    assert np.isnan(p_value(0.1, 0.0, 3))


def test_holm_is_the_textbook_example_and_leaves_nan_uncounted():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, then made monotone.
    adjusted = holm([0.01, 0.04, np.nan, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, np.nan, 0.06, 0.02])
