import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_study import figure_five, replicate
from scipy import stats

from analysis.compare import difference, indistinguishable, marked, paired_at_matched_gamma, shared_conditions
from analysis.tables import best_cell, cells


def arm(name, values, gamma=0.1, eta=None, statuses=None, **more):
    """Replicates of one cell with these test accuracies, seeds 0, 1, ..."""
    optimiser = name.split("_")[0]
    statuses = statuses or ["complete"] * len(values)
    cell = f"{name}-{gamma}-{eta}"
    settings_ = {"arm": name, "optimiser": optimiser, "gamma": gamma, "eta": eta} | more
    return [
        replicate(cell, seed, status, **settings_, **({"test_accuracy": v} if status == "complete" else {}))
        for seed, (v, status) in enumerate(zip(values, statuses, strict=True))
    ]


pairs = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6)


@settings(max_examples=50, deadline=None)
@given(pairs.filter(lambda v: np.std([a - b for a, b in v]) > 1e-6))
def test_difference_is_scipys_paired_t_test(values):
    a, b = np.array(values).T
    frame = pd.DataFrame(arm("fsam", a, eta=1.0) + arm("sam", b))
    row = difference(frame, "fsam", "sam").iloc[0]
    test = stats.ttest_rel(a, b)
    expected = test.confidence_interval(0.95)
    assert row["difference"] == pytest.approx(np.mean(a - b))
    assert (row["low"], row["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert row["p"] == pytest.approx(test.pvalue, rel=1e-6, abs=1e-12)
    assert row["n"] == len(a)
    assert row["effect"] == pytest.approx(np.mean(a - b) / np.std(a - b, ddof=1))


def test_difference_is_taken_at_the_same_gamma_over_shared_seeds_only():
    rows = arm("fsam", [0.9, 0.8, 0.7], 0.1, 1.0) + arm("fsam", [0.6, 0.6, 0.6], 0.5, 1.0)
    rows += arm("sam", [0.8, 0.9], 0.1) + arm("sam", [0.5, 0.5, 0.5], 0.5, statuses=["complete", "missing", "stopped"])
    out = difference(pd.DataFrame(rows), "fsam", "sam").set_index("gamma")
    assert out.loc[0.1, ["n", "mean_a", "mean_b"]].tolist() == [2, pytest.approx(0.85), pytest.approx(0.85)]
    assert out.loc[0.5, "n"] == 1
    assert np.isnan(out.loc[0.5, "low"])


def test_an_arm_without_gamma_has_no_partner_at_a_gamma_and_many_without():
    rows = arm("fsam", [0.9, 0.9], 0.1, 1.0) + arm("fsam", [0.8, 0.8], 0.5, 1.0) + arm("sgd", [0.7, 0.7], None)
    frame = pd.DataFrame(rows)
    assert difference(frame, "fsam", "sgd").empty
    against = difference(frame, "fsam", "sgd", on=())
    assert against["difference"].round(6).tolist() == [0.2, 0.1]


def test_difference_says_the_etas_of_its_cells_and_an_unknown_field_by_name():
    frame = figure_five()
    out = difference(frame, "fsam", "sam")
    assert len(out) == 30
    assert set(out["eta"]) == {1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0}
    with pytest.raises(ValueError, match="gama"):
        difference(frame, "fsam", "sam", on=("gama",))


def test_seeds_that_share_their_luck_are_told_apart_where_unpaired_intervals_overlap():
    luck = np.array([0.0, 0.05, 0.10])
    frame = pd.DataFrame(arm("fsam", 0.80 + luck, eta=1.0) + arm("sam", 0.79 + luck + [0, 0.001, -0.001]))
    table = cells(frame).set_index("arm")
    assert table.loc["sam", "high"] > table.loc["fsam", "low"]
    assert not indistinguishable(frame, "fsam-0.1-1.0")["indistinguishable"].item()


def test_indistinguishable_means_that_the_paired_interval_contains_zero():
    frame = figure_five()
    best = best_cell(frame)
    out = indistinguishable(frame, best)
    assert len(out) == 35
    assert best["cell"] not in set(out["cell"])
    wide = frame.pivot(index="seed", columns="cell", values="test_accuracy")
    for row in out.itertuples():
        test = stats.ttest_rel(wide[row.cell], wide[best["cell"]])
        assert row.indistinguishable == (test.pvalue >= 0.05), row.cell
    assert out["indistinguishable"].any()
    assert not out["indistinguishable"].all()


def test_holm_tells_apart_no_more_than_the_uncorrected_interval():
    frame = figure_five(seeds=5)
    best = best_cell(frame)
    plain = indistinguishable(frame, best)["indistinguishable"]
    corrected = indistinguishable(frame, best, correction="holm")["indistinguishable"]
    assert (corrected | ~plain).all()
    assert corrected.sum() > plain.sum()


def test_one_shared_seed_cannot_make_cells_indistinguishable():
    frame = pd.DataFrame(arm("fsam", [0.9], eta=1.0) + arm("sam", [0.9]))
    out = indistinguishable(frame, "fsam-0.1-1.0")
    assert out["n"].tolist() == [1]
    assert not out["indistinguishable"].any()


def test_incomplete_cells_are_never_called_indistinguishable(golden):
    table = marked(golden)
    assert table["best"].sum() == 1
    assert (table.loc[table["best"] | table["indistinguishable"], "status"] == "complete").all()


def test_marked_of_a_study_without_a_complete_cell_marks_nothing():
    table = marked(pd.DataFrame([replicate("a", 0, "running")]))
    assert not table["best"].any()
    assert not table["indistinguishable"].any()


def test_matched_pairs_take_at_each_gamma_the_eta_that_validation_chooses():
    frame = figure_five()
    table = cells(frame)
    out = paired_at_matched_gamma(frame, table)
    assert out["gamma"].tolist() == [0.01, 0.05, 0.1, 0.5, 1.0]
    fsam = table[table["arm"] == "fsam"]
    for row in out.itertuples():
        here = fsam[fsam["gamma"] == row.gamma]
        assert row.cell_a == here.loc[here["validation_mean"].idxmax(), "cell"]
        assert row.cell_b == f"sam-{row.gamma}-None"


def test_matched_pairs_agree_in_every_other_condition_that_varies():
    rows = []
    for noise in (0.0, 0.4):
        rows += arm(f"fsam_{noise}", [0.9 - noise, 0.9 - noise], 0.1, 1.0, label_noise=noise)
        rows += arm(f"sam_{noise}", [0.8 - noise, 0.8 - noise], 0.1, label_noise=noise)
    frame = pd.DataFrame(rows)
    table = cells(frame)
    assert shared_conditions(table, "fsam", "sam") == ["gamma", "label_noise"]
    out = paired_at_matched_gamma(frame, table)
    assert out["difference"].round(6).tolist() == [0.1, 0.1]


def test_matched_pairs_of_a_study_without_sam_are_empty():
    frame = pd.DataFrame(arm("fsam", [0.9, 0.9], eta=1.0))
    assert paired_at_matched_gamma(frame, cells(frame)).empty


def test_equal_differences_have_no_effect_size_and_nothing_tells_the_cells_apart():
    frame = pd.DataFrame(arm("fsam", [0.911, 0.933, 0.957], eta=1.0) + arm("sam", [0.711, 0.733, 0.757]))
    row = difference(frame, "fsam", "sam").iloc[0]
    assert row["difference"] == pytest.approx(0.2)
    assert np.isnan(row[["low", "high", "p", "effect"]].astype(float)).all()
    assert indistinguishable(frame, "fsam-0.1-1.0")["indistinguishable"].tolist() == [True]
