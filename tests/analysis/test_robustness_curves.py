import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_study import FakeReader, by_condition, perturbation_of, replicate
from scipy import stats

from analysis.compare import marked
from analysis.figures import robustness, save
from analysis.report import write_report
from analysis.robustness import chance, curves_of, half_lost
from analysis.tables import cells

SPEC = {"grid": {}, "measures": {"perturbation": {}}}


def measured(cell, seed, alpha, accuracy, direction="random", draw=0):
    row = {"cell": cell, "arm": "fsam", "seed": seed, "direction": direction, "draw": draw, "alpha": alpha}
    return row | {"batch_norm": "kept", "test_accuracy": accuracy}


ACCURACIES = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=3), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(ACCURACIES)
def test_seeds_are_averaged_after_their_draws_and_n_counts_seeds(seeds):
    table = cells(pd.DataFrame([replicate("a", s) for s in range(len(seeds))]))
    rows = [measured("a", s, 1.0, v, draw=d) for s, draws in enumerate(seeds) for d, v in enumerate(draws)]
    row = curves_of(pd.DataFrame(rows), table).iloc[0]
    means = [np.mean(draws) for draws in seeds]
    assert row["mean"] == pytest.approx(np.mean(means))
    assert (row["n"], row["draws"]) == (len(seeds), max(map(len, seeds)))
    assert np.isnan(row["lost"])
    if len(means) > 1 and np.std(means) > 1e-9:
        low, high = stats.t.interval(0.95, len(means) - 1, np.mean(means), stats.sem(means))
        assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))
    else:
        assert np.isnan([row["low"], row["high"]]).all()


def test_the_accuracy_lost_is_paired_within_each_seed():
    table = cells(pd.DataFrame([replicate("a", s) for s in range(3)]))
    start = [0.9, 0.7, 0.8]
    rows = [measured("a", s, 0.0, v, "adversarial") for s, v in enumerate(start)]
    rows += [measured("a", s, 1.0, v - 0.2 - 0.01 * s, "adversarial") for s, v in enumerate(start)]
    out = curves_of(pd.DataFrame(rows), table).set_index("alpha")
    expected = stats.t.interval(0.95, 2, 0.21, stats.sem([0.20, 0.21, 0.22]))
    assert out.loc[1.0, "lost"] == pytest.approx(0.21)
    assert out.loc[1.0, ["lost_low", "lost_high"]].tolist() == pytest.approx(expected)
    assert out.loc[1.0, "high"] - out.loc[1.0, "low"] > 5 * (expected[1] - expected[0])
    assert out.loc[0.0, "lost"] == 0


@pytest.mark.parametrize("status", ["stopped", "diverged", "failed", "running", "missing"])
def test_a_cell_that_is_not_complete_has_no_curve(status):
    frame = pd.DataFrame([replicate("a", 0), replicate("a", 1, status), replicate("b", 0)])
    rows = pd.DataFrame([measured("a", 0, 1.0, 0.5), measured("b", 0, 1.0, 0.6)])
    assert set(curves_of(rows, cells(frame))["cell"]) == {"b"}


def test_nothing_measured_is_an_empty_frame_with_its_columns():
    table = cells(pd.DataFrame([replicate("a", 0)]))
    nothing = curves_of(pd.DataFrame(columns=["cell", "trial", "arm", "seed"]), table)
    some = curves_of(pd.DataFrame([measured("a", 0, 1.0, 0.5)]), table)
    assert nothing.empty
    assert list(nothing) == list(some)


def test_curves_stand_in_the_order_of_the_cells():
    frame = by_condition("model", ("resnet20", "vgg19_bn"))
    table = cells(frame)
    out = curves_of(perturbation_of(frame), table)
    assert list(dict.fromkeys(out["cell"])) == list(table["cell"])
    assert (out.groupby(["cell", "direction"])["alpha"].apply(lambda a: a.is_monotonic_increasing)).all()


def test_half_of_the_accuracy_is_lost_at_the_first_alpha_that_leaves_less():
    table = cells(pd.DataFrame([replicate("a", 0)]))
    rows = [measured("a", 0, alpha, v) for alpha, v in ((0.0, 0.9), (0.5, 0.46), (1.0, 0.44), (2.0, 0.1))]
    assert half_lost(curves_of(pd.DataFrame(rows), table)) == 1.0
    assert half_lost(curves_of(pd.DataFrame(rows[:2]), table)) is None


def test_chance_is_known_of_one_data_set_only():
    table = cells(pd.DataFrame([replicate("a", 0, dataset="cifar100")]))
    assert chance(table) == 0.01
    assert chance(table.assign(dataset="image_folder")) is None
    assert chance(pd.concat([table, table.assign(dataset="cifar10")])) is None


def test_the_gradients_line_is_solid_the_random_one_dashed_and_chance_is_drawn():
    frame = by_condition("model", ("resnet20",))
    table = marked(frame, within=["model"])
    curves = curves_of(perturbation_of(frame), table)
    figure = robustness(curves, chance=0.1)
    (ax,) = figure.axes
    lines = {line.get_gid(): line for line in ax.lines}
    for (cell, direction), rows in curves.groupby(["cell", "direction"]):
        line = lines[f"{cell}:{direction}"]
        np.testing.assert_allclose(line.get_ydata(), 100 * rows["mean"])
        assert line.get_linestyle() == {"adversarial": "-", "random": "--"}[direction]
    assert lines["sam-resnet20:random"].get_color() == lines["sam-resnet20:adversarial"].get_color()
    assert lines["sam-resnet20:random"].get_color() != lines["sgd-resnet20:random"].get_color()
    assert lines["chance"].get_ydata()[0] == 10
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    assert "fsam (n=3)" in words
    assert "guessing (10 %)" in words


def test_small_multiples_stand_one_for_each_condition(tmp_path):
    frame = by_condition("model", ("resnet20", "resnet56", "wrn28_2"))
    curves = curves_of(perturbation_of(frame), cells(frame))
    titles = {cell: f"model {cell.split('-')[1]}" for cell in curves["cell"]}
    figure = robustness(curves, titles)
    assert [ax.get_title("left") for ax in figure.axes] == ["model resnet20", "model resnet56", "model wrn28_2"]
    assert all(len(ax.lines) == 10 for ax in figure.axes)
    assert save(figure, tmp_path / "r")[0].stat().st_size > 5000


def test_the_report_shows_the_curve_of_the_cell_that_validation_chooses(tmp_path):
    rows = [
        replicate(f"g{g}", s, gamma=g, validation_accuracy=v, test_accuracy=t)
        for g, v, t in ((0.1, 0.95, 0.90), (0.5, 0.90, 0.99))
        for s in range(2)
    ]
    frame = pd.DataFrame(rows)
    reader = FakeReader(
        frame, spec=SPEC | {"grid": {"gamma": [0.1, 0.5]}}, measures={"perturbation": perturbation_of(frame)}
    )
    report = write_report(reader, tmp_path)
    assert "robustness" in report.figures
    text = report.html.read_text()
    section = text[text.index('<section id="robustness"') :].split("</section>")[0]
    assert "gamma 0.1" in section
    assert "gamma 0.5" not in section
    kept = pd.read_csv(tmp_path / "tables" / "robustness.csv")
    assert set(kept["cell"]) == {"g0.1", "g0.5"}


def test_a_declared_measure_that_is_not_there_yet_is_said(tmp_path):
    frame = by_condition("model", ("resnet20",))
    report = write_report(FakeReader(frame, spec=SPEC), tmp_path)
    assert "No complete cell has been perturbed yet." in report.html.read_text()
    assert "robustness" not in report.figures


def test_statistics_kept_and_recomputed_are_two_figures_and_are_never_joined(tmp_path):
    frame = pd.DataFrame([replicate("a", s, validation_accuracy=0.9, test_accuracy=0.9) for s in range(2)])
    kept = perturbation_of(frame)
    recomputed = kept.assign(batch_norm="recomputed", test_accuracy=0.5)
    reader = FakeReader(frame, spec=SPEC, measures={"perturbation": pd.concat([kept, recomputed])})
    report = write_report(reader, tmp_path)
    assert {"robustness_kept", "robustness_recomputed"} <= set(report.figures)
    assert "robustness" not in report.figures
    curves = pd.read_csv(tmp_path / "tables" / "robustness.csv")
    assert set(curves.loc[curves["batch_norm"] == "recomputed", "mean"]) == {0.5}
    figure = robustness(curves_of(recomputed, cells(frame)))
    lines = [line for line in figure.axes[0].get_lines() if line.get_gid() != "chance"]
    assert all((line.get_ydata() == 50).all() for line in lines)
    text = report.html.read_text()
    assert "along the gradient, kept" in text
    assert "along the gradient, recomputed" in text
