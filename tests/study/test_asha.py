"""ASHA decides as Ray's scheduler does, says why, and goes on after an interruption as if there had been none."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from study.asha import Asha


class RayTrial:
    def __init__(self, trial_id):
        self.trial_id = trial_id


def random_reports(seed, trials, epochs):
    """Reports in a random interleaving; a trial's epochs come in order."""
    draw = random.Random(seed)
    left = {f"t{i}": 1 for i in range(trials)}
    while left:
        name = draw.choice(sorted(left))
        yield name, left[name], round(draw.random(), 2)  # rounded: ties happen
        left[name] += 1
        if left[name] > epochs:
            del left[name]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    trials=st.integers(1, 15),
    epochs=st.integers(2, 30),
    grace=st.integers(1, 5),
    factor=st.integers(2, 16),
)
def test_it_decides_as_rays_scheduler(seed, trials, epochs, grace, factor):
    grace = min(grace, epochs - 1)
    ours = Asha(epochs, grace, factor)
    rays = AsyncHyperBandScheduler(
        time_attr="epoch", metric="value", mode="max", max_t=epochs, grace_period=grace, reduction_factor=factor
    )
    ray_trials = {}
    stopped = set()
    for name, epoch, value in random_reports(seed, trials, epochs):
        if name in stopped or epoch == epochs:
            continue
        if name not in ray_trials:
            ray_trials[name] = RayTrial(name)
            rays.on_trial_add(None, ray_trials[name])
        theirs = rays.on_trial_result(None, ray_trials[name], {"epoch": epoch, "value": value})
        decision = ours.report(name, epoch, value)
        assert (decision is not None and decision.stop) == (theirs == TrialScheduler.STOP)
        if theirs == TrialScheduler.STOP:
            stopped.add(name)


def play(asha, reports, stopped):
    decisions = []
    for name, epoch, value in reports:
        if name not in stopped and (decision := asha.report(name, epoch, value)):
            decisions.append(decision)
            if decision.stop:
                stopped.add(name)
    return decisions


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 200))
def test_rebuilt_from_its_ledger_it_decides_as_if_never_interrupted(seed, cut):
    reports = list(random_reports(seed, 10, 20))
    whole = play(Asha(20, 1, 3), reports, set())
    stopped = set()
    before = play(Asha(20, 1, 3), reports[:cut], stopped)
    resumed = Asha(20, 1, 3)
    resumed.rebuild(before)
    assert before + play(resumed, reports[cut:], stopped) == whole


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_decision_says_its_grounds(seed):
    seen = {}
    asha = Asha(16, 1, 2)
    for name, epoch, value in random_reports(seed, 8, 16):
        decision = asha.report(name, epoch, value)
        if decision is None:
            continue
        before = seen.setdefault(decision.rung, [])
        if before:
            assert decision.cutoff == np.quantile(before, 0.5)
            assert decision.stop == (value < decision.cutoff)
        else:
            assert decision.cutoff is None
            assert not decision.stop
        assert decision.rank == 1 + sum(v > value for v in before)
        assert decision.n == len(before) + 1
        before.append(value)


def test_a_value_that_is_not_a_number_is_stopped_and_moves_no_cutoff():
    asha = Asha(9, 1, 3)
    assert not asha.report("a", 1, 0.5).stop
    assert asha.report("b", 1, math.nan).stop
    assert asha.report("c", 1, 0.6).cutoff == 0.5


def test_the_last_report_is_no_decision():
    assert Asha(9, 1, 3).report("a", 9, 0.5) is None


@pytest.mark.parametrize(("max_t", "grace", "factor"), [(4, 4, 2), (4, 0, 2), (4, 1, 1)])
def test_settings_that_leave_nothing_to_decide_are_refused(max_t, grace, factor):
    with pytest.raises(ValueError, match="needs"):
        Asha(max_t, grace, factor)
