"""Equal compute, against loops in plain Python."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_study import FakeReader, figure_five, history_of, replicate
from scipy import stats

from analysis.compare import marked
from analysis.conditions import chosen
from analysis.cost import at_equal_cost, equal_cost, reached
from analysis.figures import accuracy_against_cost
from analysis.findings import read
from analysis.report import write_report
from analysis.sections.cost import section
from analysis.tables import cells

GRADIENTS = {"sgd": 1, "sam": 2, "fsam": 2}


def costed(frame, seconds=None, steps=10):
    """A history with cumulative costs: `steps` an epoch, SGD one gradient each, and seconds by (arm, seed)."""
    history = history_of(frame)
    history["gradient_evaluations"] = steps * history["epoch"] * history["arm"].map(GRADIENTS)
    pace = seconds or (lambda arm, seed: GRADIENTS[arm] * (0.1 + 0.01 * seed))
    history["train_seconds"] = [
        e * pace(a, s) for e, a, s in zip(history["epoch"], history["arm"], history["seed"], strict=True)
    ]
    return history


def of_each_arm(frame):
    return chosen(marked(frame), [])


def test_a_step_of_sam_costs_two_gradients_so_that_at_sgds_end_sam_stands_at_half_its_epochs():
    frame = figure_five()
    history, choice = costed(frame), of_each_arm(frame)
    out = reached(history, choice).set_index("arm")
    assert out["budget"].unique().tolist() == [120.0]
    assert out["epoch"].to_dict() == {"fsam": 6.0, "sam": 6.0, "sgd": 12.0}
    assert out["total"].to_dict() == {"fsam": 240.0, "sam": 240.0, "sgd": 120.0}
    for arm, row in out.iterrows():
        mine = history[(history["cell"] == row["cell"]) & (history["epoch"] == row["epoch"])]["validation_accuracy"]
        low, high = stats.t.interval(0.95, 2, mine.mean(), mine.sem())
        assert (row["mean"], row["low"], row["high"], row["n"]) == pytest.approx((mine.mean(), low, high, 3)), arm


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 1)), min_size=1, max_size=8), min_size=1, max_size=4)
)
def test_at_each_common_cost_every_seed_stands_where_its_last_finished_epoch_left_it(seeds):
    rows, replicates = [], []
    for seed, epochs in enumerate(seeds):
        cost = 0.0
        for epoch, (step, accuracy) in enumerate(epochs, 1):
            cost += step
            rows.append(
                {"cell": "a", "seed": seed, "epoch": epoch, "train_seconds": cost, "validation_accuracy": accuracy}
            )
        replicates.append(replicate("a", seed))
    history, table = pd.DataFrame(rows), cells(pd.DataFrame(replicates))
    out = at_equal_cost(history, table, "train_seconds")
    ends = history.groupby("seed")["train_seconds"].agg(["min", "max"])
    if ends["min"].max() > ends["max"].min():
        assert out.empty
        return
    assert out["cost"].min() >= ends["min"].max() - 1e-9
    assert out["cost"].max() == pytest.approx(ends["max"].min())
    for row in out.itertuples():
        stand = []
        for _, own in history.groupby("seed"):
            stand.append(own[own["train_seconds"] <= row.cost * (1 + 1e-9)].iloc[-1]["validation_accuracy"])
        assert row.n == row.n_started == len(seeds)
        assert row.mean == pytest.approx(np.mean(stand))
        if len(stand) > 1 and np.std(stand) > 1e-9:
            half = stats.t.ppf(0.975, len(stand) - 1) * np.std(stand, ddof=1) / np.sqrt(len(stand))
            assert row.high - row.mean == pytest.approx(half)


def test_gradients_are_compared_at_the_epochs_themselves():
    frame = figure_five()
    out = at_equal_cost(costed(frame), of_each_arm(frame))
    sam = out[out["arm"] == "sam"]
    assert sam["cost"].tolist() == [20.0 * e for e in range(1, 13)]
    assert sam["epoch"].tolist() == list(range(1, 13))


def test_where_a_first_epoch_cost_more_than_the_budget_nothing_stands_there():
    frame = figure_five(seeds=2)
    history = costed(frame, seconds=lambda arm, seed: {"sgd": 0.01, "sam": 0.05, "fsam": 1.0}[arm])
    out = reached(history, of_each_arm(frame), "train_seconds").set_index("arm")
    assert out["budget"].iloc[0] == pytest.approx(0.12)
    assert out.loc["fsam", "n"] == 0
    assert np.isnan(out.loc["fsam", "mean"])
    assert out.loc["sam", "epoch"] == 2
    slow = costed(frame, seconds=lambda arm, seed: 0.01 if arm != "fsam" else (0.01, 1.0)[seed])
    quick_only = reached(slow, of_each_arm(frame), "train_seconds").set_index("arm").loc["fsam"]
    assert (quick_only["n"], np.isnan(quick_only["mean"])) == (0, True), "a quick seed does not stand for both"


def test_cells_that_did_not_end_set_no_budget():
    frame = figure_five({(None, None): "stopped"})
    out = reached(costed(frame), of_each_arm(frame))
    assert set(out["arm"]) == {"fsam", "sam"}
    assert out["budget"].iloc[0] == 240


def test_a_resumed_epoch_counts_once_and_an_unknown_column_is_refused():
    frame = figure_five()
    history, choice = costed(frame), of_each_arm(frame)
    again = pd.concat([history, history[history["epoch"] == 5]], ignore_index=True)
    pd.testing.assert_frame_equal(reached(history, choice), reached(again, choice))
    with pytest.raises(ValueError, match="'joules' is not in the history"):
        at_equal_cost(history, choice, "joules")


def test_each_condition_has_a_budget_of_its_own():
    parts = []
    for noise, fewer in ((0.0, 1), (0.4, 2)):
        part = figure_five(seeds=2)
        part["cell"] += f"-{noise}"
        parts.append(part.assign(label_noise=noise, epoch=part["epoch"] // fewer))
    frame = pd.concat(parts, ignore_index=True)
    choice = chosen(marked(frame, within=["label_noise"]), ["label_noise"])
    out = equal_cost(costed(frame), choice, ["label_noise"])
    found = out[out["by"] == "gradient_evaluations"].groupby("label_noise")["budget"].unique()
    assert {k: list(v) for k, v in found.items()} == {0.0: [120.0], 0.4: [60.0]}
    assert set(out["by"]) == {"gradient_evaluations", "train_seconds"}


def both(frame):
    history, choice = costed(frame), of_each_arm(frame)
    return pd.concat([at_equal_cost(history, choice, by) for by in ("gradient_evaluations", "train_seconds")])


def test_the_figure_has_a_panel_a_cost_and_draws_the_means_over_them():
    frame = both(figure_five())
    figure = accuracy_against_cost(frame, budgets={("", "gradient_evaluations"): 120.0})
    assert [ax.get_xlabel() for ax in figure.axes] == ["minibatch gradients of a seed", "seconds of training of a seed"]
    for ax, (_, rows) in zip(figure.axes, frame.groupby("by", sort=False), strict=True):
        lines = {line.get_gid(): line for line in ax.lines}
        for cell, own in rows.groupby("cell"):
            np.testing.assert_allclose(lines[f"cost:{cell}"].get_xdata(), own["cost"])
            np.testing.assert_allclose(lines[f"cost:{cell}"].get_ydata(), 100 * own["mean"])
            assert lines[f"cost:{cell}"].get_drawstyle() == "steps-post"
            assert lines[f"end:{cell}"].get_xdata()[0] == own["cost"].iloc[-1]
    assert (
        next(line for line in figure.axes[0].lines if line.get_gid() == "budget:gradient_evaluations").get_xdata()[0]
        == 120
    )
    assert not any(str(line.get_gid()).startswith("budget") for line in figure.axes[1].lines)


def test_arms_are_told_apart_without_colour():
    figure = accuracy_against_cost(both(figure_five()))
    lines = [line for line in figure.axes[0].lines if str(line.get_gid()).startswith("cost:")]
    ends = [line for line in figure.axes[0].lines if str(line.get_gid()).startswith("end:")]
    assert len({line.get_linestyle() for line in lines}) == len(lines) == 3
    assert len({line.get_marker() for line in ends}) == 3
    handles = figure.legends[0].get_lines()
    assert len({(h.get_linestyle(), h.get_marker()) for h in handles}) == len(handles)


def test_a_report_says_what_stood_at_equal_cost_and_how_long_a_gradient_took(tmp_path):
    frame = figure_five()
    spec = {"grid": {"gamma": [0.01, 0.1], "eta": [0.1, 1.0]}}
    report = write_report(FakeReader(frame, costed(frame), spec=spec), tmp_path)
    text = report.html.read_text()
    assert "cost" in report.figures
    assert 'id="cost"' in text
    assert "120 gradients" in text
    assert "6 of 12" in text
    assert "A gradient took 8.33 ms" in text
    table = pd.read_parquet(report.tables["equal_cost.parquet"])
    assert set(table["arm"]) == {"fsam", "sam", "sgd"}


def test_one_arm_is_nothing_to_compare(tmp_path):
    frame = figure_five()
    frame = frame[frame["arm"] == "fsam"]
    assert section(read(FakeReader(frame, costed(frame))), tmp_path, {}) == ""
