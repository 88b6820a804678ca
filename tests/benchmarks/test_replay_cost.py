"""The replay's benchmark times what decides alike, and the audit is far above what it promises."""

import pytest

from analysis.replay import Setting
from benchmarks import replay

PLAN = replay.Plan(cells=60, large=200, epochs=30, grace_period=1, reduction_factor=3, rounds=2)


def test_every_contender_stops_the_same_cells_at_the_same_epochs():
    curves = replay.drawn(PLAN.cells, PLAN.epochs)
    runs = replay.contenders(PLAN, Setting(1, 3), curves)
    ends = [run() for run in runs.values()]
    assert ends[0] == ends[1] == ends[2]
    assert 0 < sum(end > 0 for end in ends[0]) < PLAN.cells


def test_contenders_that_decide_otherwise_are_not_timed(monkeypatch):
    honest = replay.contenders

    def cheating(*arguments):
        return honest(*arguments) | {"ray": lambda: [0] * PLAN.cells}

    monkeypatch.setattr(replay, "contenders", cheating)
    with pytest.raises(RuntimeError, match="same cells"):
        replay.measure(PLAN)


def test_at_least_twenty_thousand_decisions_a_second():
    found = replay.measure(PLAN)
    ours = found.samples["the audit's replay, decisions a second"]
    assert ours.n == 2
    # The best of the rounds: another process may have had the core in one of them.
    assert ours.max > 20_000
    assert found.ratios["a decision: Ray's scheduler / replay"].median > 1
