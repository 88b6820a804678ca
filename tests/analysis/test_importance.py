"""Importance of a search's settings: by functions of which it is known."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from made_study import SEARCH_SPEC, FakeReader, history_of, replicate, searched

from analysis.compare import marked
from analysis.figures import importances, save
from analysis.findings import read
from analysis.importance import FEWEST, importance
from analysis.sections.searched import search

AXES = {"gamma": True, "lr": True}


def answered(accuracy, cells=60, arm="fsam", seed=0):
    """Complete cells with log-uniform gamma and lr in [0.01, 1] whose validation accuracy is `accuracy(u, v)`, where u
    and v in [0, 1] are the places of gamma and lr on their logarithmic axes.
    """
    random = np.random.default_rng(seed)
    rows = []
    for i in range(cells):
        u, v = random.uniform(size=2)
        own = {"gamma": 10 ** (2 * u - 2), "lr": 10 ** (2 * v - 2), "eta": None, "optimiser": "sam", "arm": arm}
        rows.append(replicate(f"{arm}{i}", 0, validation_accuracy=accuracy(u, v), **own))
    return marked(pd.DataFrame(rows).astype({"gamma": float, "eta": float}))


def shares(table, **options):
    return importance(table, AXES, **options).set_index("setting")


def test_an_additive_function_is_shared_out_as_its_variance_is_on_logarithmic_axes():
    # Var(2u) : Var(v) = 4 : 1, on uniform u and v. Without the logarithm gamma's mass would lie near its lower end.
    found = shares(answered(lambda u, v: 0.5 + 0.2 * u + 0.1 * v, cells=100), resamples=2)
    assert found.loc["gamma", "importance"] == pytest.approx(0.8, abs=0.1)
    assert found.loc["lr", "importance"] == pytest.approx(0.2, abs=0.1)
    assert (found["n"] == 100).all()


def test_what_two_settings_explain_only_together_is_in_neither():
    found = shares(answered(lambda u, v: 0.5 + 0.3 * ((u > 0.5) ^ (v > 0.5)), cells=120), resamples=3)
    assert found["importance"].sum() < 0.5


def test_the_interval_is_a_bootstrap_over_cells_that_narrows_with_them_and_holds_the_truth():
    def truth(u, v):
        return 0.5 + 0.1 * u + 0.1 * v

    few, many = (shares(answered(truth, cells=n)) for n in (12, 120))
    assert ((few["high"] - few["low"]) > (many["high"] - many["low"])).all()
    assert (few["low"] < 0.5).all()
    assert (few["high"] > 0.5).all()
    assert ((many["low"] <= many["high"]) & (many["low"] >= 0) & (many["high"] <= 1)).all()


def test_the_same_seed_gives_the_same_numbers_and_the_arms_do_not_disturb_each_other():
    table = answered(lambda u, v: 0.5 + 0.1 * u, cells=20)
    pd.testing.assert_frame_equal(importance(table, AXES, resamples=3), importance(table, AXES, resamples=3))


def test_only_complete_cells_count_and_too_few_of_them_are_refused_with_their_number():
    table = answered(lambda u, v: 0.5 + 0.1 * u, cells=20)
    lost = table.index[FEWEST - 1 :]
    table.loc[lost, "status"], table.loc[lost, "validation_mean"] = "stopped", 0.999
    found = shares(table)
    assert found["importance"].isna().all()
    assert (found["n"] == FEWEST - 1).all()
    enough = table.copy()
    enough.loc[lost[0], ["status", "validation_mean"]] = ["complete", 0.5]
    assert shares(enough, resamples=2)["importance"].notna().all()


def test_cells_of_one_accuracy_and_an_arm_with_one_setting_have_none():
    assert shares(answered(lambda u, v: 0.5, cells=15))["importance"].isna().all()
    table = marked(searched(cells=15, arms=("sgd",)))  # it has no gamma
    assert importance(table, AXES).empty


def test_names_are_a_setting_like_any_other():
    random = np.random.default_rng(1)
    rows = [
        replicate(f"c{i}", 0, model=model, lr=10 ** random.uniform(-2, 0), validation_accuracy=level)
        for i in range(40)
        for model, level in [[("a", 0.5), ("b", 0.7), ("c", 0.9)][i % 3]]
    ]
    found = importance(marked(pd.DataFrame(rows)), {"model": False, "lr": True}, resamples=3).set_index("setting")
    assert found.loc["model", "importance"] > 0.9
    assert found.loc["lr", "importance"] < 0.1


def test_the_figure_has_a_bar_a_number_with_its_interval_and_arms_of_different_hatches(tmp_path):
    frame = pd.DataFrame(
        [
            ("sam", "gamma", 0.2, 0.1, 0.4, 30),
            ("sam", "lr", 0.7, 0.5, 0.8, 30),
            ("fsam", "gamma", 0.3, 0.2, 0.5, 25),
            ("fsam", "lr", np.nan, np.nan, np.nan, 4),
        ],
        columns=["arm", "setting", "importance", "low", "high", "n"],
    )
    ax = importances(frame)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["lr", "gamma"]
    bars = {arm: [p.get_width() for p in ax.patches if p.get_gid() == f"importance:{arm}"] for arm in ("sam", "fsam")}
    assert bars == {"sam": pytest.approx([70, 20]), "fsam": pytest.approx([0, 30])}
    hatches = {p.get_gid(): p.get_hatch() for p in ax.patches}
    assert len(set(hatches.values())) == 2
    lines = next(c for c in ax.collections if c.get_gid() == "interval:sam").get_segments()
    assert [tuple(s[:, 0]) for s in lines] == [pytest.approx((50, 80)), pytest.approx((10, 40))]
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts == ["sam (n=30 complete cells)", "fsam (n=25 complete cells)"]
    assert [p.suffix for p in save(ax, tmp_path / "i")] == [".png", ".svg"]


def test_the_report_draws_it_and_says_which_arms_have_too_few(tmp_path):
    table = searched(cells=22, arms=("sam",), seeds=1)
    few = searched(cells=4, arms=("fsam",), seeds=1)
    frame = pd.concat([table, few], ignore_index=True)
    figures = {}
    text = search(read(FakeReader(frame, history_of(frame), spec=SEARCH_SPEC)), tmp_path, figures)
    assert {"parallel", "importance"} <= set(figures)
    assert "Importance of the settings: sam gamma" in text
    assert "The importance of settings takes 10 complete cells of an arm that differ: fsam has" in text


def test_nothing_heavy_is_imported_before_it_is_asked_for():
    code = (
        "import sys, analysis.importance, analysis.sharpness, analysis.cost, analysis.figures, analysis.sections; "
        "print([m for m in ('optuna', 'sklearn', 'scipy.stats', 'torch', 'ray') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
