"""Random studies against plain pandas and SciPy: holes, one seed, equal values, unused settings, mixed statuses."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_study import replicate
from scipy import stats

from analysis.compare import difference, marked
from analysis.intervals import holm
from analysis.tables import best_cells, cells, curves

STATUSES = ["complete", "complete", "complete", "stopped", "diverged", "failed", "running", "missing"]
# Steps of one image in 40, so that equal values and ties are common; some are missing.
ACCURACY = st.one_of(st.integers(0, 40).map(lambda v: v / 40), st.just(np.nan))
SEED = st.tuples(st.sampled_from(STATUSES), st.integers(1, 9), ACCURACY, ACCURACY)
ARMS = {"fsam": ("fsam", (0.1, 0.5), (0.1, 1.0)), "sam": ("sam", (0.1, 0.5), (None,)), "sgd": ("sgd", (None,), (None,))}


@st.composite
def studies(draw):
    """Rows of a small grid in any order; a cell may lack seeds that others have."""
    rows = []
    for arm, (optimiser, gammas, etas) in ARMS.items():
        for gamma, eta in itertools.product(gammas, etas):
            seeds = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True))
            for seed in seeds:
                status, epoch, validation, test = draw(SEED)
                own = {"arm": arm, "optimiser": optimiser, "gamma": gamma, "eta": eta}
                own |= {"validation_accuracy": np.nan if status in ("missing", "failed") else validation}
                own |= {"test_accuracy": test if status == "complete" else np.nan}
                own |= {"epoch": {"complete": 12.0, "missing": np.nan}.get(status, float(epoch))}
                rows.append(replicate(f"{arm}-{gamma}-{eta}", seed, status, **own))
    frame = pd.DataFrame(draw(st.permutations(rows)))
    return frame.astype({"gamma": float, "eta": float})


def status_of(states):
    """The rules of the module's docstring, one after the other."""
    for rule in ("diverged", "failed"):
        if rule in states:
            return rule
    if set(states) == {"complete"}:
        return "complete"
    for rule in ("stopped", "running"):
        if rule in states:
            return rule
    return "partial" if "complete" in states else "missing"


def t_interval(values):
    if len(values) < 2 or np.ptp(values) < 1e-9:
        return np.nan, np.nan
    return stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))


def close(got, expected):
    np.testing.assert_allclose(np.array(got, dtype=float), np.array(expected, dtype=float), rtol=1e-7, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(studies())
def test_cells_are_what_plain_loops_over_the_rows_give(frame):
    table = cells(frame)
    assert list(table["cell"]) == list(dict.fromkeys(frame["cell"]))
    for row in table.to_dict("records"):
        own = [r for r in frame.to_dict("records") if r["cell"] == row["cell"]]
        states = [r["status"] for r in own]
        assert row["status"] == status_of(states)
        assert row["n_planned"] == len(own)
        assert [row[f"n_{s}"] for s in ("complete", "diverged", "failed")] == [
            states.count(s) for s in ("complete", "diverged", "failed")
        ]
        test = [r["test_accuracy"] for r in own if r["status"] == "complete" and np.isfinite(r["test_accuracy"])]
        assert row["n"] == len(test)
        close(row["mean"], np.mean(test) if test else np.nan)
        close((row["low"], row["high"]), t_interval(test))
        use = [r for r in own if r["status"] == "complete"]
        if row["status"] in ("stopped", "running"):
            mine = [r for r in own if r["status"] == row["status"]]
            deepest = max(r["epoch"] for r in mine)
            assert row["epoch"] == deepest
            use = [r for r in mine if r["epoch"] == deepest]
        validation = [r["validation_accuracy"] for r in use if np.isfinite(r["validation_accuracy"])]
        assert row["validation_n"] == len(validation)
        close(row["validation_mean"], np.mean(validation) if validation else np.nan)
        close((row["validation_low"], row["validation_high"]), t_interval(validation))
        assert row["gradient_evaluations"] == sum(r["gradient_evaluations"] for r in own)


@settings(max_examples=30, deadline=None)
@given(studies())
def test_a_difference_is_scipys_paired_test_over_the_seeds_that_both_cells_have(frame):
    out = difference(frame, "fsam", "sam")
    done = frame[(frame["status"] == "complete") & frame["test_accuracy"].notna()]
    wide = {c: rows.set_index("seed")["test_accuracy"] for c, rows in done.groupby("cell")}
    expected = set()
    for gamma, eta in itertools.product((0.1, 0.5), (0.1, 1.0)):
        a, b = wide.get(f"fsam-{gamma}-{eta}"), wide.get(f"sam-{gamma}-None")
        if a is not None and b is not None and set(a.index) & set(b.index):
            expected.add((f"fsam-{gamma}-{eta}", f"sam-{gamma}-None"))
    assert set(zip(out["cell_a"], out["cell_b"], strict=True)) == expected
    for row in out.to_dict("records"):
        both = pd.concat([wide[row["cell_a"]], wide[row["cell_b"]]], axis=1, keys=["a", "b"]).dropna()
        d = (both["a"] - both["b"]).to_numpy()
        assert row["n"] == len(d)
        close([row["difference"], row["mean_a"], row["mean_b"]], [d.mean(), both["a"].mean(), both["b"].mean()])
        close((row["low"], row["high"]), t_interval(d))
        if len(d) > 1 and np.ptp(d) > 1e-9:
            close(row["p"], stats.ttest_rel(both["a"], both["b"]).pvalue)
            close(row["effect"], d.mean() / d.std(ddof=1))
    if len(out):
        close(out["p_holm"], holm(out["p"]))


@settings(max_examples=30, deadline=None)
@given(studies())
def test_the_best_cell_is_a_maximum_of_validation_among_complete_ones_and_marks_follow_from_pairs(frame):
    table = marked(frame)
    done = table[(table["status"] == "complete") & table["validation_mean"].notna()]
    assert table["best"].sum() == (1 if len(done) else 0)
    if done.empty:
        assert not table["indistinguishable"].any()
        return
    best = table[table["best"]].iloc[0]
    assert best["status"] == "complete"
    assert best["validation_mean"] == pytest.approx(done["validation_mean"].max())
    own = frame[frame["cell"] == best["cell"]].set_index("seed")["test_accuracy"]
    for row in table[~table["best"]].itertuples():
        other = frame[frame["cell"] == row.cell].set_index("seed")["test_accuracy"]
        d = (other - own).dropna()
        low, high = t_interval(d.to_numpy())
        same = row.status == "complete" and len(d) > 1 and not (low > 0 or high < 0)
        assert row.indistinguishable == same


@settings(max_examples=30, deadline=None)
@given(studies())
def test_no_row_order_changes_what_is_chosen(frame):
    chosen = [set(best_cells(cells(f), ["arm"])["cell"]) for f in (frame, frame.iloc[::-1])]
    assert chosen[0] == chosen[1]


LINE = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(1, 4), ACCURACY)


@settings(max_examples=30, deadline=None)
@given(st.lists(LINE, max_size=40))
def test_curves_average_what_plain_loops_average(lines):
    """Repeated epochs, holes and cells without any history."""
    frame = pd.DataFrame([replicate(f"c{i}", s, gamma=0.1 * (i + 1)) for i in range(4) for s in range(3)])
    table = cells(frame)
    columns = ["cell", "seed", "epoch", "validation_accuracy"]
    history = pd.DataFrame([(f"c{c}", s, e, v) for c, s, e, v in lines], columns=columns)
    history = history.astype({"validation_accuracy": float, "epoch": int, "seed": int})
    out = curves(history, table)
    last = {(f"c{c}", s, e): v for c, s, e, v in lines}  # the later line of an epoch counts
    spots = {(cell, epoch) for cell, _, epoch in last}
    assert sorted(spots) == sorted(zip(out["cell"], out["epoch"], strict=True))
    for row in out.to_dict("records"):
        values = [v for (c, _, e), v in last.items() if (c, e) == (row["cell"], row["epoch"]) and np.isfinite(v)]
        assert row["n"] == len(values)
        assert row["n_started"] == len({s for c, s, _ in last if c == row["cell"]})
        close(row["mean"], np.mean(values) if values else np.nan)
        close((row["low"], row["high"]), t_interval(values))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.floats(0, 1), st.just(np.nan)), max_size=12))
def test_holm_is_the_step_down_rule_written_as_a_loop(p):
    adjusted = holm(p)
    known = sorted((v, i) for i, v in enumerate(p) if np.isfinite(v))
    running = 0.0
    for place, (value, i) in enumerate(known):
        running = max(running, min(1.0, value * (len(known) - place)))
        assert adjusted[i] == pytest.approx(running)
    assert np.isnan(adjusted).sum() == len(p) - len(known)
