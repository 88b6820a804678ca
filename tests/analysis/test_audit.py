"""The audit replays what the study's own ASHA and Ray's decide, and counts what that would have saved and lost."""

import heapq
import math
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_study import FakeReader, by_condition, figure_five, history_of
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from scipy import stats

from analysis import audit as audit_module
from analysis.audit import (
    AuditError,
    audit,
    correlations,
    decisions,
    orders_within,
    own_setting,
    recorded,
    recorded_of,
    settings_to_try,
    survival,
)
from analysis.audited import advice, caveats, table_of
from analysis.compare import marked
from analysis.findings import read
from analysis.replay import Decided, Setting, expected, replay
from study.asha import Asha


class RayTrial:
    def __init__(self, trial_id):
        self.trial_id = trial_id


def reports(lengths, order, at_once, clock, stop):
    """Every report of every epoch in the order of their moments; `stop(cell)` is asked before the next one is due."""
    waiting, due = list(enumerate(order)), []

    def launch(now):
        number, cell = waiting.pop(0)
        heapq.heappush(due, (now + clock(cell, 1), number, cell, 1, now))

    while waiting and len(due) < at_once:
        launch(0)
    while due:
        now, number, cell, epoch, began = heapq.heappop(due)
        yield cell, epoch
        if epoch == lengths[cell] or stop(cell):
            if waiting:
                launch(now)
        else:
            heapq.heappush(due, (began + clock(cell, epoch + 1), number, cell, epoch + 1, began))


def by_asha(curves, arms, max_t, setting, order, at_once, clock):
    """What `study.asha.Asha`, told of every epoch, decides."""
    ashas = {}
    for arm, epochs in enumerate(max_t):
        end = min(epochs, setting.max_t or epochs)
        ashas[arm] = Asha(end, setting.grace_period, setting.reduction_factor) if setting.grace_period < end else None
    stopped, found = {}, []
    lengths = [len(c) for c in curves]
    for cell, epoch in reports(lengths, order, at_once, clock, stopped.__contains__):
        asha = ashas[arms[cell]]
        if asha is None or epoch == lengths[cell]:
            continue
        made = asha.report(str(cell), epoch, curves[cell][epoch - 1])
        if made is not None:
            found.append(Decided(cell, made.rung, made.value, made.cutoff, made.stop))
            if made.stop:
                stopped[cell] = epoch
    return found, [stopped.get(i, 0) for i in range(len(curves))]


def by_ray(curves, arms, max_t, setting, order, at_once, clock):
    """The epochs at which Ray's scheduler, one for each arm, stops."""
    rays = [
        AsyncHyperBandScheduler(
            time_attr="epoch",
            metric="value",
            mode="max",
            max_t=epochs,
            grace_period=setting.grace_period,
            reduction_factor=setting.reduction_factor,
        )
        for epochs in max_t
    ]
    trials, stopped = [RayTrial(str(i)) for i in range(len(curves))], {}
    for cell, trial in enumerate(trials):
        rays[arms[cell]].on_trial_add(None, trial)
    lengths = [len(c) for c in curves]
    for cell, epoch in reports(lengths, order, at_once, clock, stopped.__contains__):
        if epoch == lengths[cell]:
            continue
        result = {"epoch": epoch, "value": curves[cell][epoch - 1]}
        if rays[arms[cell]].on_trial_result(None, trials[cell], result) == TrialScheduler.STOP:
            stopped[cell] = epoch
    return [stopped.get(i, 0) for i in range(len(curves))]


def drawn(seed, cells, epochs, arms=1, digits=1):
    """Curves with many ties, cells of several arms of unequal length, an order, and when each epoch is reported."""
    draw = random.Random(seed)
    of = [draw.randrange(arms) for _ in range(cells)]
    lengths = [max(2, epochs - 3 * arm) for arm in range(arms)]
    curves = [[round(draw.random(), digits) for _ in range(lengths[arm])] for arm in of]
    times = [np.cumsum([draw.choice((1, 2, 5)) for _ in curve]).tolist() for curve in curves]
    return curves, of, lengths, draw.sample(range(cells), cells), times


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    cells=st.integers(1, 25),
    epochs=st.integers(2, 30),
    arms=st.integers(1, 3),
    grace=st.integers(1, 6),
    factor=st.integers(2, 16),
    most=st.none() | st.integers(2, 30),
    at_once=st.integers(1, 8),
    timed=st.booleans(),
    digits=st.integers(1, 17),
)
def test_it_decides_as_the_studys_asha_decision_for_decision(
    seed, cells, epochs, arms, grace, factor, most, at_once, timed, digits
):
    curves, of, lengths, order, times = drawn(seed, cells, epochs, arms, digits)
    setting, ledger = Setting(grace, factor, most), []
    clock = (lambda cell, epoch: times[cell][epoch - 1]) if timed else (lambda cell, epoch: epoch)
    ends = replay(curves, of, lengths, setting, order, at_once, times if timed else None, ledger)
    theirs, stopped = by_asha(curves, of, lengths, setting, order, at_once, clock)
    assert ledger == theirs
    assert ends == stopped


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    cells=st.integers(1, 20),
    epochs=st.integers(4, 30),
    arms=st.integers(1, 2),
    # With 6, 12, 13, ... a quantile that does not come by way of the percentile differs in its last bit.
    factor=st.integers(2, 16),
    at_once=st.integers(1, 8),
    digits=st.integers(1, 3),
)
def test_it_stops_what_rays_scheduler_stops(seed, cells, epochs, arms, factor, at_once, digits):
    curves, of, lengths, order, _ = drawn(seed, cells, epochs, arms, digits)
    setting = Setting(1, factor)
    ends = replay(curves, of, lengths, setting, order, at_once)
    assert ends == by_ray(curves, of, lengths, setting, order, at_once, lambda cell, epoch: epoch)


def test_a_value_that_is_no_number_is_stopped_and_moves_no_cutoff():
    ledger = []
    curves = [[0.5, 0.5], [math.nan, 0.9], [0.6, 0.6], [math.inf, 0.6]]
    ends = replay(curves, [0] * 4, [2], Setting(1, 2), range(4), 1, None, ledger)
    assert ends == [0, 1, 0, 1]
    assert [d.cutoff for d in ledger] == [None, 0.5, 0.5, pytest.approx(0.55)]


def test_only_cells_of_the_order_are_trained_and_at_most_so_many_at_once():
    curves = [[0.1] * 4, [0.9] * 4, [0.5] * 4]
    first, last = [], []
    replay(curves, [0] * 3, [4], Setting(2, 2), [1, 0], 1, None, first)
    assert [(d.cell, d.rung, d.stop) for d in first] == [(1, 2, False), (0, 2, True)]
    replay(curves, [0] * 3, [4], Setting(1, 2), [0, 1, 2], 2, [[1, 2, 3, 9], [2, 4, 6, 8], [1, 2, 3, 4]], last)
    # Both report at 2: in the order of their launches. The third begins at 8, when the second has ended.
    assert [(d.cell, d.rung) for d in last] == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]


@pytest.mark.parametrize("bad", [(0, 2), (1, 1), (1, 2, 0)])
def test_a_setting_that_means_nothing_is_refused(bad):
    with pytest.raises(ValueError, match="needs"):
        Setting(*bad)


def study(cells=12, epochs=9, seeds=3, arms=("fsam", "sam"), seed=0, **more):
    """Replicates and history of a study whose curves cross."""
    draw = np.random.default_rng(seed)
    replicates = figure_five(seeds=seeds)
    keep = list(dict.fromkeys(replicates.loc[replicates["arm"].isin(arms), "cell"]))[:cells]
    replicates = replicates[replicates["cell"].isin(keep)].assign(epochs=epochs, epoch=float(epochs), **more)
    history = history_of(replicates)
    noise = draw.normal(0, 0.02, len(history)) * (1 - history["epoch"] / epochs)
    history["validation_accuracy"] += noise
    history["train_seconds"] = history["epoch"] * draw.uniform(1, 2, len(history))
    last = history[history["epoch"] == epochs].set_index(["cell", "seed"])["validation_accuracy"]
    return replicates.set_index(["cell", "seed"]).assign(validation_accuracy=last).reset_index(), history


def taken(replicates, history, within=()):
    return recorded(history, marked(replicates, within=within), within)


def test_curves_are_the_means_that_the_scheduler_makes_to_the_last_bit():
    replicates, history = study(cells=35)
    found = taken(replicates, history.sample(frac=1, random_state=1))  # a history may be in any order
    for cell, curve in zip(found.cells["cell"], found.curves, strict=True):
        own = history[history["cell"] == cell].sort_values("seed")
        values = [list(rows["validation_accuracy"]) for _, rows in own.groupby("epoch")]
        assert curve == [sum(v) / len(v) for v in values]
    plain = replicates.groupby("cell")["validation_accuracy"].mean()
    assert np.allclose(found.cells.set_index("cell")["final"], plain.loc[found.cells["cell"]])
    assert found.max_t == {"fsam": 9, "sam": 9}
    assert sorted(found.cells["place"]) == list(range(1, 36))
    assert found.cells.loc[found.cells["final"].idxmax(), "place"] == 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), grace=st.integers(1, 4), factor=st.integers(2, 4), at_once=st.integers(1, 6))
def test_regret_and_loss_are_those_of_a_plain_count(seed, grace, factor, at_once):
    replicates, history = study(cells=33, seed=seed)
    found = taken(replicates, history)
    setting = Setting(grace, factor)
    done = audit(found, [setting], orders=4, at_once=at_once, seed=seed)
    table, rng = found.cells.set_index("cell"), random.Random(seed)
    stops = []
    for i in range(4):
        order = rng.sample(range(len(table)), len(table))
        ledger = decisions(found, setting, order, at_once)
        gone = dict(ledger.loc[ledger["stop"], ["cell", "rung"]].itertuples(index=False))
        stops.append(gone)
        left = table[~table.index.isin(list(gone))]
        row = done.runs.iloc[i]
        assert row["regret"] == pytest.approx(table["final"].max() - left["final"].max(), abs=1e-12)
        arms = [
            table.loc[table["arm"] == a, "final"].max() - left.loc[left["arm"] == a, "final"].max() for a in found.max_t
        ]
        assert row["arm_regret"] == pytest.approx(max(arms), abs=1e-12)
        assert row["arm_regret"] >= row["regret"]
        assert row["saved"] == pytest.approx(sum(9 - rung for rung in gone.values()) / (9 * len(table)))
        assert row["stopped"] == len(gone)
        best = table["final"].sort_values(ascending=False).index
        for k in (1, 3, 5):
            assert row[f"lost_{k}"] == len(set(best[:k]) & set(gone))
        assert row["lost_same"] == len(set(table.index[table["same"]]) & set(gone))
    for row in done.lost.itertuples():
        rungs = [gone[row.cell] for gone in stops if row.cell in gone]
        assert row.stops == len(rungs)
        assert math.isnan(row.rung) if not rungs else rungs.count(row.rung) == max(map(rungs.count, rungs))
    assert set(done.lost["cell"]) == set(table.index[table["same"] | (table["place"] <= 5)])


def test_a_summary_is_median_and_range_over_the_orders_and_the_same_again():
    found = taken(*study(cells=30))
    tried = settings_to_try(found, Setting(2, 5))
    assert tried[0] == Setting(2, 5)
    assert {(s.grace_period, s.reduction_factor) for s in tried[1:]} == {(g, r) for g in (1, 3) for r in (2, 3, 4)}
    done = audit(found, tried, orders=7)
    pd.testing.assert_frame_equal(done.runs, audit(found, tried, orders=7).runs)
    summary = done.summary()
    assert list(summary["grace_period"]) == [s.grace_period for s in tried]
    for row in summary.itertuples():
        own = done.runs[
            (done.runs["grace_period"] == row.grace_period) & (done.runs["reduction_factor"] == row.reduction_factor)
        ]
        assert (row.saved, row.saved_low, row.saved_high) == (
            own["saved"].median(),
            own["saved"].min(),
            own["saved"].max(),
        )
        assert row.orders == 7
    assert done.runs.groupby("order")["saved"].nunique().max() > 1
    assert (
        audit(found, tried, orders=3, seed=1).runs["saved"].tolist()
        != audit(found, tried, orders=3).runs["saved"].tolist()
    )


def test_rank_correlations_are_scipys():
    found = taken(*study(cells=33))
    ranks = correlations(found)
    assert set(ranks["n"]) == {30, 3}
    for row in ranks.itertuples():
        mine = [c for c, arm in zip(found.curves, found.cells["arm"], strict=True) if arm == row.arm]
        now, last = [c[row.epoch - 1] for c in mine], [c[-1] for c in mine]
        assert row.spearman == pytest.approx(stats.spearmanr(now, last).statistic)
        assert row.kendall == pytest.approx(stats.kendalltau(now, last).statistic)
    assert ranks.loc[ranks["epoch"] == 9, "spearman"].tolist() == pytest.approx([1, 1])
    assert ranks.loc[ranks["epoch"] == 1, "spearman"].min() < 0.99
    assert list(correlations(found, [2, 40])["epoch"].unique()) == [2]


def test_only_full_curves_are_replayed_and_the_rest_is_named_with_its_reason():
    replicates, history = study(cells=12)
    cells = list(dict.fromkeys(replicates["cell"]))
    for cell, status in zip(cells, ("stopped", "diverged", "failed", "running", "missing"), strict=False):
        replicates.loc[replicates["cell"] == cell, "status"] = status
    replicates.loc[(replicates["cell"] == cells[5]) & (replicates["seed"] == 0), "status"] = "missing"
    history = history[~((history["cell"] == cells[6]) & (history["seed"] == 1) & (history["epoch"] == 4))]
    history.loc[(history["cell"] == cells[7]) & (history["epoch"] == 2), "validation_accuracy"] = np.nan
    found = taken(replicates, history)
    assert list(found.cells["cell"]) == cells[8:]
    assert found.left_out.set_index("cell")["status"].to_dict() == dict(
        zip(
            cells[:8],
            ("stopped", "diverged", "failed", "running", "missing", "partial", "complete", "complete"),
            strict=True,
        )
    )
    assert found.survivors_only
    text = " ".join(caveats(found))
    assert "Left out, 2 cells: epochs are missing from its record" in text
    assert "stopped cells itself" in text
    assert advice(found, audit(found, [Setting(1, 2)], orders=2)) == []


def test_nothing_to_audit_is_said_in_a_line():
    replicates, history = study(cells=3, arms=("sam",))
    first = replicates["cell"].iloc[0]
    replicates.loc[replicates["cell"] != first, "status"] = "stopped"
    with pytest.raises(AuditError, match=r"1 cell of 3 trained in full.*\(2 cells stopped\)"):
        taken(replicates, history)
    # One cell an arm: they are never compared with each other.
    table = by_condition("label_noise", [0.0])
    with pytest.raises(AuditError, match="no arm has two"):
        taken(table, history_of(table))
    replicates, history = study(epochs=1)
    with pytest.raises(AuditError, match="with one epoch"):
        taken(replicates, history)
    found = taken(*study())
    with pytest.raises(AuditError, match="no setting has a rung below the last of 9 epochs"):
        audit(found, [Setting(9, 2)])
    with pytest.raises(AuditError, match="seconds"):
        audit(taken(study()[0], study()[1].drop(columns="train_seconds")), [Setting(1, 2)], clock="seconds")
    with pytest.raises(ValueError, match="at least 1"):
        audit(found, [Setting(1, 2)], orders=0)
    with pytest.raises(AuditError, match="no epoch has been recorded"):
        recorded_of(read(FakeReader(figure_five().assign(status="missing"))))


def test_conditions_are_no_rivals_and_an_arm_that_lost_one_is_counted():
    frame = by_condition("label_noise", [0.0, 0.4, 0.8])
    found = taken(frame, history_of(frame), ["label_noise"])
    assert sorted(found.cells["rivals"].unique()) == [0, 1, 2]
    assert found.cells.groupby("rivals")["place"].min().tolist() == [1, 1, 1]
    done = audit(found, [Setting(1, 2)], orders=10, at_once=1)
    # An arm has one cell under each condition: whatever is stopped leaves its condition without one.
    assert (done.runs["unanswered"] == done.runs["stopped"]).all()
    assert done.runs["unanswered"].max() > 0
    text = " ".join(advice(found, done))
    assert "of 15 pairs of arm and condition" in text
    assert text.startswith("None of the 1 setting kept")


def test_advice_and_table_say_the_numbers_of_the_summary():
    found = taken(*study(cells=33))
    done = audit(found, settings_to_try(found), orders=5)
    columns, rows = table_of(found, done)
    summary = done.summary()
    assert len(rows) == len(summary)
    for row, of in zip(rows, summary.itertuples(), strict=True):
        said = dict(zip(columns, row, strict=True))
        assert said["grace"] == str(of.grace_period)
        assert said["saved (%)"].startswith(f"{100 * of.saved:.0f}")
        assert said["regret (points)"].startswith(f"{100 * of.regret:.2f}")
        assert said["rungs"].split() == [str(r) for r in Setting(of.grace_period, of.reduction_factor).rungs(9)]
    safe = summary[(summary["arm_regret_high"] <= found.chance) & (summary["unanswered"] == 0)]
    text = " ".join(advice(found, done))
    assert "n=3 seeds" in text
    if len(safe):
        assert text.startswith(f"{len(safe)} of {len(summary)} settings kept each arm's best cell")
        assert f"saves most: {safe['saved'].max() * 100:.0f}" in text
    else:
        assert text.startswith("None of")


def test_what_seeds_alone_move_is_a_standard_error_of_a_difference():
    replicates, history = study(cells=10)
    found = taken(replicates, history)
    near = found.cells.loc[found.cells["same"] | (found.cells["place"] <= 5), "cell"]
    spread = replicates[replicates["cell"].isin(near)].groupby("cell")["validation_accuracy"].var()
    assert found.chance == pytest.approx(math.sqrt(spread.mean() * 2 / 3))
    single = replicates[replicates["seed"] == 0], history[history["seed"] == 0]
    assert math.isnan(taken(*single).chance)
    said = advice(taken(*single), audit(taken(*single), [Setting(8, 9)], orders=1))
    assert "best cell in the one order" in said[0]
    assert "points of it" not in said[0]


def test_survival_counts_cells_and_not_decisions():
    table = marked(figure_five())
    fsam = [c for c in table["cell"] if c.startswith("fsam")]
    rows = [(fsam[0], 1, False), (fsam[1], 1, True), (fsam[2], 1, False), (fsam[0], 3, True), (fsam[0], 3, True)]
    rows += [("not-planned-any-more", 1, True)]
    stages = survival(pd.DataFrame(rows, columns=["cell", "rung", "stop"]), table)
    own = stages[stages["arm"] == "fsam"].set_index("stage")
    assert own.loc[1.0, ["reached", "stopped", "went_on", "cells"]].tolist() == [3, 1, 2, 30]
    assert own.loc[3.0, ["reached", "stopped", "went_on"]].tolist() == [1, 1, 0]
    assert own.iloc[-1]["went_on"] == 30
    assert list(dict.fromkeys(stages["arm"])) == ["fsam", "sam", "sgd"]


@settings(max_examples=30, deadline=None)
@given(cells=st.integers(1, 40), epochs=st.integers(1, 25), grace=st.integers(1, 5), factor=st.integers(2, 5))
def test_the_expected_saving_is_a_share_and_leaves_a_cell(cells, epochs, grace, factor):
    setting = Setting(grace, factor)
    found = expected([(cells, epochs)], setting)
    assert 0 <= found.saved < 1
    assert 1 <= found.complete <= cells
    if cells == 1 or not setting.rungs(epochs):
        assert found == (0.0, cells)
    # Nothing is saved before the first rung.
    assert found.saved <= 1 - min(grace, epochs) / epochs + 1e-12


def test_the_expected_saving_is_that_of_an_exact_count_for_two_cells():
    # Of two cells in random order the second is stopped at epoch 1 with probability 1/2: a quarter of 9/10 ... of all.
    found = expected([(2, 10)], Setting(1, 10), seed=3)
    assert found.saved == pytest.approx(0.5 * 9 / 20, abs=0.2)
    many = [expected([(2, 10)], Setting(1, 10), seed=s).saved for s in range(60)]
    assert np.mean(many) == pytest.approx(0.5 * 9 / 20, abs=0.02)


def test_a_study_of_ten_thousand_cells_gets_fewer_orders():
    found = taken(*study(cells=12))
    assert orders_within(found, settings_to_try(found), 10) == audit_module.ORDERS
    many = audit_module.Recorded(found.cells, found.curves * 1000, [], found.max_t, found.left_out)
    assert 3 <= orders_within(many, settings_to_try(found), 10) < audit_module.ORDERS


def test_own_setting_is_the_specs():
    assert own_setting({"scheduler": {"name": "fifo"}}) is None
    assert own_setting({"scheduler": {"name": "asha", "grace_period": 3, "reduction_factor": 5}}) == Setting(3, 5)


def test_the_replay_needs_neither_numpy_nor_pandas():
    code = "import sys, analysis.replay; print([m for m in ('numpy', 'pandas', 'ray', 'torch') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
