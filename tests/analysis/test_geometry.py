import numpy as np
import pandas as pd
import pytest
from made_study import FakeReader, by_condition, replicate
from scipy import stats

from analysis.geometry import over_seeds
from analysis.report import write_report
from analysis.tables import cells


def curvature_of(frame):
    random = np.random.default_rng(0)
    done = frame[frame["status"] == "complete"]
    rows = [
        {"cell": r.cell, "trial": r.trial, "arm": r.arm, "seed": r.seed, "hessian_trace": 100 + random.normal(0, 9),
         "hessian_trace_se": 1.0, "top_eigenvalue": 0.012, "largest_magnitude": 0.012, "converged": r.seed != 1}
        for r in done.itertuples()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def sharpness_of(frame, probes=(("sam", 0.05, np.nan), ("sam", 0.1, np.nan), ("fsam", 0.1, 1.0))):
    done = frame[frame["status"] == "complete"]
    rows = [
        {"cell": r.cell, "trial": r.trial, "arm": r.arm, "seed": r.seed, "metric": metric, "gamma": gamma, "eta": eta,
         "per_batch": False, "loss": 0.5, "perturbed_loss": 0.5 + gamma, "sharpness": gamma + 0.001 * r.seed}
        for r in done.itertuples()
        for metric, gamma, eta in probes
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_measures_interval_is_students_over_seeds():
    frame = by_condition("model", ("resnet20",))
    measured = curvature_of(frame)
    out = over_seeds(measured, cells(frame), "curvature").set_index(["cell", "quantity"])
    for cell, rows in measured.groupby("cell"):
        row = out.loc[(cell, "hessian_trace")]
        low, high = stats.t.interval(0.95, 2, rows["hessian_trace"].mean(), stats.sem(rows["hessian_trace"]))
        assert (row["low"], row["high"], row["n"]) == (pytest.approx(low), pytest.approx(high), 3)
        assert row["converged"] == 2


def test_a_probes_gamma_is_not_the_cells():
    frame = by_condition("model", ("resnet20",))
    out = over_seeds(sharpness_of(frame), cells(frame), "sharpness")
    mine = out[(out["cell"] == "asam-resnet20") & (out["quantity"] == "sharpness")]
    assert mine["probe_gamma"].tolist() == [0.05, 0.1, 0.1]
    assert mine["mean"].tolist() == pytest.approx([0.051, 0.101, 0.101])
    assert mine["n"].tolist() == [3, 3, 3]


def test_what_is_not_finite_is_not_averaged_and_incomplete_cells_have_no_curvature():
    frame = pd.DataFrame([replicate("a", 0), replicate("a", 1), replicate("b", 0), replicate("b", 1, "diverged")])
    measured = curvature_of(frame)
    measured.loc[0, "hessian_trace"] = np.nan
    out = over_seeds(measured, cells(frame), "curvature")
    assert set(out["cell"]) == {"a"}
    assert out.set_index("quantity").loc["hessian_trace", "n"] == 1


def test_the_report_has_a_row_an_arm_for_curvature_and_for_each_neighbourhood(tmp_path):
    frame = by_condition("model", ("resnet20",))
    spec = {"grid": {}, "measures": {"curvature": {}, "sharpness": {}}}
    measures = {"curvature": curvature_of(frame), "sharpness": sharpness_of(frame)}
    report = write_report(FakeReader(frame, spec=spec, measures=measures), tmp_path)
    text = report.html.read_text()
    section = text[text.index('id="geometry"') : text.index('id="curves"')]
    assert section.count("<tr>") == 3 + 3 * 5  # a head and five arms in each of three tables
    assert "2 of 3" in section
    assert "fsam&#x27;s neighbourhood, eta 1" in section
    assert {"curvature.csv", "sharpness.csv"} <= set(report.tables)
