"""Diagnostics over epochs, and sharpness against accuracy."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_study import FakeReader, figure_five, history_of
from scipy import stats

from analysis import diagnostics as computed
from analysis.compare import marked
from analysis.conditions import chosen
from analysis.figures import diagnostics, save, sharpness_against_accuracy
from analysis.findings import read
from analysis.geometry import over_seeds
from analysis.sections.diagnostics import section
from analysis.sections.trained import geometry
from analysis.sharpness import against_accuracy, rank_correlation


def watched(frame, skipped=0.0):
    """A history whose probe leaves SAM's direction with eta, as in training on the digits."""
    history = history_of(frame)
    of_cell = frame.drop_duplicates("cell").set_index("cell")
    eta, gamma = history["cell"].map(of_cell["eta"]), history["cell"].map(of_cell["gamma"])
    wobble = 1 + 0.01 * history["seed"]
    history["cosine_to_sam"] = np.where(gamma.isna(), np.nan, 1 - 5e-4 * eta.fillna(0) * wobble / history["epoch"])
    history["eps_norm"] = gamma * wobble
    history["eta_vanished"] = (1 / (1 + eta)).where(eta.notna())
    history["skipped_steps"] = skipped
    return history


def test_each_diagnostic_is_the_mean_over_the_seeds_and_only_of_arms_that_have_it():
    frame = figure_five()
    history, table = watched(frame), marked(frame)
    choice = chosen(table, [])
    out = computed.diagnostics(history, choice)
    assert list(dict.fromkeys(out["metric"])) == ["cosine_to_sam", "eps_norm", "eta_vanished", "skipped_steps", "lr"]
    for metric, arms in {
        "cosine_to_sam": {"fsam", "sam"},
        "eta_vanished": {"fsam"},
        "lr": {"fsam", "sam", "sgd"},
    }.items():
        assert set(out.loc[out["metric"] == metric, "arm"]) == arms
    for (cell, metric), rows in out.groupby(["cell", "metric"]):
        plain = history[history["cell"] == cell].groupby("epoch")[metric].mean()
        np.testing.assert_allclose(rows["mean"], plain)
        assert (rows["n"] == 3).all()


def test_the_direction_is_sams_only_where_every_seed_and_epoch_is():
    frame = figure_five()
    history, table = watched(frame), marked(frame)
    out = computed.direction(history, table).set_index("cell")
    assert len(out) == 30
    for cell, row in out.iterrows():
        own = history.loc[history["cell"] == cell, "cosine_to_sam"]
        assert row["least"] == own.min()
        assert row["same"] == bool((own > 0.999).all())
    assert set(out.loc[~out["same"], "eta"]) == {10.0}
    one = history["cell"].eq("fsam-0.1-0.1") & history["seed"].eq(2) & history["epoch"].eq(7)
    history.loc[one, "cosine_to_sam"] = 0.5
    assert not computed.direction(history, table).set_index("cell").loc["fsam-0.1-0.1", "same"]


def test_cells_that_did_not_end_and_studies_without_a_probe_have_no_direction():
    frame = figure_five({(0.1, 1.0): "stopped"})
    assert "fsam-0.1-1.0" not in set(computed.direction(watched(frame), marked(frame))["cell"])
    assert computed.direction(history_of(frame), marked(frame)).empty


def test_the_figure_has_a_panel_a_diagnostic_and_lines_that_differ_without_colour(tmp_path):
    frame = figure_five()
    out = computed.diagnostics(watched(frame), chosen(marked(frame), []))
    figure = diagnostics(out)
    assert len(figure.axes) == 5
    for ax, (metric, rows) in zip(figure.axes, out.groupby("metric", sort=False), strict=True):
        lines = {line.get_gid(): line for line in ax.lines}
        assert set(lines) == {f"{metric}:{cell}" for cell in rows["cell"]}
        for cell, own in rows.groupby("cell"):
            np.testing.assert_allclose(lines[f"{metric}:{cell}"].get_ydata(), own["mean"])
        looks = {(line.get_linestyle(), line.get_marker()) for line in ax.lines}
        assert len(looks) == len(lines)
        # Equal lines lie on each other: their marks must not.
        assert len({line.get_markevery()[0] for line in ax.lines}) == len(lines)
    assert figure.axes[0].get_ylim()[1] < 1.001
    assert save(figure, tmp_path / "d")[1].read_text().count("<svg") == 1


def test_the_report_says_where_the_direction_is_sams_and_that_no_step_was_skipped(tmp_path):
    frame = figure_five()
    figures = {}
    text = section(read(FakeReader(frame, watched(frame))), tmp_path, figures)
    assert list(figures) == ["diagnostics"]
    assert "fsam: in 25 of 30 complete cells the probe points where SAM&#x27;s does" in text
    assert "All cells at eta 0.0001, 0.001, 0.01, 0.1, 1 keep it." in text
    assert "No step of these cells was skipped." in text
    again = section(read(FakeReader(frame, watched(frame, skipped=2.0))), tmp_path, {})
    assert "No step of these cells was skipped." not in again
    plain = section(read(FakeReader(frame, history_of(frame))), tmp_path, {})
    assert plain == "", "a learning rate alone is no section"


def measures_of(frame, seed=0):
    random = np.random.default_rng(seed)
    first = [{"cell": r.cell, "trial": r.trial, "arm": r.arm, "seed": r.seed} for r in frame.itertuples()]
    sharp = [
        row
        | {"metric": "sam", "gamma": g, "eta": np.nan, "per_batch": False}
        | {"sharpness": g * (1.1 - r.test_accuracy) * np.exp(random.normal(0, 0.1)), "loss": 1.0}
        for row, r in zip(first, frame.itertuples(), strict=True)
        for g in (0.05, 0.2)
    ]
    curved = [
        row | {"hessian_trace": 10 ** random.uniform(0, 3), "top_eigenvalue": 5.0, "converged": True} for row in first
    ]
    return pd.DataFrame(sharp), pd.DataFrame(curved)


def test_points_are_the_means_over_seeds_of_both_sides_and_the_gap_is_taken_within_a_seed():
    frame = figure_five()
    frame["train_accuracy"] = frame["test_accuracy"] + 0.01 * (1 + frame["seed"])
    sharp, curved = measures_of(frame)
    table = marked(frame)
    found = {"sharpness": over_seeds(sharp, table, "sharpness"), "curvature": over_seeds(curved, table, "curvature")}
    out = against_accuracy(found, frame, table)
    assert list(dict.fromkeys(out["quantity"])) == [
        "sharpness (sam, gamma 0.05)",
        "sharpness (sam, gamma 0.2)",
        "hessian trace",
        "top eigenvalue",
    ]
    row = out[(out["cell"] == "fsam-0.1-1.0") & (out["quantity"] == "sharpness (sam, gamma 0.2)")].iloc[0]
    mine = sharp[(sharp["cell"] == "fsam-0.1-1.0") & (sharp["gamma"] == 0.2)]["sharpness"]
    assert (row["x"], row["x_n"]) == (pytest.approx(mine.mean()), 3)
    assert row["y"] == pytest.approx(frame.loc[frame["cell"] == "fsam-0.1-1.0", "test_accuracy"].mean())
    gap = against_accuracy(found, frame, table, "generalisation_gap")
    assert gap["y"].to_numpy() == pytest.approx(0.02)
    with pytest.raises(ValueError, match="train_accuracy"):
        against_accuracy(found, frame.drop(columns="train_accuracy"), table, "generalisation_gap")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.floats(-1, 1)), min_size=8, max_size=30))
def test_the_rank_correlation_is_scipys_and_its_interval_lies_in_range(points):
    x, y = map(np.asarray, zip(*points, strict=True))
    found = rank_correlation(x, y, resamples=200)
    assert found.n == len(points)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert np.isnan(found.rho)
        return
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    assert -1 - 1e-9 <= found.low <= found.high <= 1 + 1e-9


def test_the_bootstrap_of_the_rank_correlation_covers_a_known_one():
    random = np.random.default_rng(0)
    rho = 0.6
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's of a bivariate normal
    held = 0
    for trial in range(60):
        x, noise = random.normal(size=(2, 40))
        found = rank_correlation(x, rho * x + np.sqrt(1 - rho**2) * noise, resamples=300, seed=trial)
        held += found.low <= truth <= found.high
    assert 50 <= held <= 60


def test_seven_points_have_no_rank_correlation():
    found = rank_correlation(range(7), range(7))
    assert (found.n, np.isnan(found.rho)) == (7, True)


def test_the_scatter_has_a_mark_a_cell_at_its_means_and_arms_of_different_shapes():
    frame = figure_five()
    sharp, curved = measures_of(frame)
    table = marked(frame)
    found = {"sharpness": over_seeds(sharp, table, "sharpness"), "curvature": over_seeds(curved, table, "curvature")}
    points = against_accuracy(found, frame, table)
    figure = sharpness_against_accuracy(points, notes={"hessian trace": "a note"})
    by_name = {ax.get_xlabel(): ax for ax in figure.axes}
    assert by_name["hessian trace"].get_xscale() == "log"
    assert by_name["hessian trace"].get_title(loc="left") == "a note"
    assert by_name["sharpness (sam, gamma 0.05)"].get_xscale() == "linear"
    for (name, arm), rows in points.groupby(["quantity", "arm"]):
        marks = next(c for c in by_name[name].collections if c.get_gid() == f"{name}:{arm}")
        np.testing.assert_allclose(marks.get_offsets(), np.column_stack([rows["x"], 100 * rows["y"]]))
    marks = [h.get_marker() for h in figure.legends[0].get_lines()]
    assert len(set(marks)) == len(marks) == 3


def test_the_report_gives_the_rank_correlation_with_its_n_and_claims_no_cause(tmp_path):
    frame = figure_five()
    sharp, curved = measures_of(frame)
    reader = FakeReader(
        frame,
        history_of(frame),
        spec={"measures": {"sharpness": {}, "curvature": {}}},
        measures={"sharpness": sharp, "curvature": curved},
    )
    figures = {}
    text = geometry(read(reader), tmp_path, figures)
    assert list(figures) == ["sharpness"]
    assert "sharpness (sam, gamma 0.05): Spearman -0." in text
    assert "], 36 cells" in text
    assert "not a cause" in text
    assert "top eigenvalue: 36 cells: no rank correlation" in text
