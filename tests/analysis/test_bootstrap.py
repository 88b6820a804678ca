import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_study import figure_five, replicate
from scipy import stats

from analysis.intervals import interval, interval_of
from analysis.tables import cells

values_ = st.lists(st.floats(0, 1), min_size=2, max_size=12).filter(lambda v: np.std(v) > 1e-6)


@settings(max_examples=25, deadline=None)
@given(values_)
def test_by_t_it_is_interval_of_the_values_moments(values):
    low, high = interval(np.mean(values), np.std(values, ddof=1), len(values))
    assert interval_of(values) == (pytest.approx(float(low)), pytest.approx(float(high)))


@settings(max_examples=30, deadline=None)
@given(values_, st.randoms())
def test_bootstrap_is_within_the_values_and_does_not_depend_on_their_order(values, random):
    low, high = interval_of(values, "bootstrap", resamples=999)
    # Of a few values that differ in almost nothing BCa has no acceleration, and says so with NaN.
    assert np.isnan([low, high]).any() or min(values) - 1e-12 <= low <= high <= max(values) + 1e-12
    shuffled = list(values)
    random.shuffle(shuffled)
    np.testing.assert_equal(interval_of(shuffled, "bootstrap", resamples=999), (low, high))


def test_with_many_values_both_agree():
    values = np.random.default_rng(0).normal(0.9, 0.01, 400)
    t, boot = interval_of(values), interval_of(values, "bootstrap")
    np.testing.assert_allclose(boot, t, atol=0.1 * (t[1] - t[0]))


def test_skewed_values_get_an_interval_that_leans_to_their_tail():
    values = np.random.default_rng(1).lognormal(0, 1, 30)
    low, high = interval_of(values, "bootstrap")
    assert high - np.mean(values) > 1.2 * (np.mean(values) - low)


def test_three_seeds_bootstrapped_miss_the_mean_more_often_than_they_say_and_t_does_not():
    """Why t is what everything shows."""
    random = np.random.default_rng(2)
    samples = [random.normal(0, 1, 3) for _ in range(200)]
    held = {m: np.mean([low <= 0 <= high for low, high in (interval_of(s, m, resamples=299) for s in samples)])
            for m in ("t", "bootstrap")}  # fmt: skip
    assert held["t"] > 0.92
    assert held["bootstrap"] < 0.85


def test_equal_values_one_value_and_infinite_ones():
    for method in ("t", "bootstrap"):
        assert np.isnan(interval_of([0.5, 0.5, 0.5], method)).all()
        assert np.isnan(interval_of([0.5], method)).all()
        assert np.isnan(interval_of([], method)).all()
        assert interval_of([0.1, np.inf, 0.4, np.nan], method) == interval_of([0.1, 0.4], method)


def test_another_method_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'normal'.*t, bootstrap"):
        interval_of([0.1, 0.2], "normal")


def test_cells_can_be_bootstrapped_and_nothing_else_of_them_changes():
    frame = figure_five(seeds=6, gammas=(0.1, 0.5), etas=(1.0,))
    t, boot = cells(frame), cells(frame, intervals="bootstrap")
    ends = ["low", "high", "validation_low", "validation_high"]
    pd.testing.assert_frame_equal(t.drop(columns=ends), boot.drop(columns=ends))
    for row in boot.itertuples():
        own = frame.loc[frame["cell"] == row.cell, "test_accuracy"]
        ours = stats.bootstrap((np.sort(own),), np.mean, method="BCa", rng=np.random.default_rng(0))
        assert (row.low, row.high) == (ours.confidence_interval.low, ours.confidence_interval.high)
    assert ((boot["high"] - boot["low"]) < (t["high"] - t["low"])).all()


def test_cells_without_values_have_no_bootstrap_either():
    frame = pd.DataFrame([replicate("a", 0, "missing"), replicate("b", 0), replicate("b", 1, test_accuracy=0.9)])
    table = cells(frame, intervals="bootstrap").set_index("cell")
    assert np.isnan(table.loc["a", "low"])
    assert table.loc["b", "low"] >= 0.9
