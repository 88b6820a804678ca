import numpy as np
import pandas as pd
import pytest
from made_study import SEARCH_SPEC, FakeReader, history_of, replicate, searched

from analysis.compare import marked
from analysis.figures import search_course, slices
from analysis.layout import layout
from analysis.report import write_report
from analysis.search import best_of_each, course, search_axes
from analysis.tables import cells


def test_sampled_cells_make_no_map():
    shape = layout(cells(searched()), ["gamma", "lr"], search=True)
    assert (shape.kind, shape.x, shape.factors) == ("search", None, ("gamma", "lr"))


def test_the_axes_of_a_search_say_which_are_logarithmic():
    assert search_axes(SEARCH_SPEC) == {"gamma": True, "lr": True}
    assert search_axes({"search": {"space": {"momentum": {"low": 0, "high": 1, "log": None}}}}) == {"momentum": False}
    assert search_axes({"grid": {"gamma": [1]}, "search": None}) == {}


def test_the_course_is_the_running_best_of_complete_cells_by_cells_ended():
    values = [("a", "complete", 0.5), ("b", "stopped", 0.9), ("c", "complete", 0.4), ("d", "missing", np.nan)]
    values += [("e", "complete", 0.7)]
    rows = [replicate(cell, s, status, validation_accuracy=v) for cell, status, v in values for s in range(2)]
    out = course(cells(pd.DataFrame(rows)))
    assert out["cell"].tolist() == ["a", "b", "c", "e"]
    assert out["ended"].tolist() == [1, 2, 3, 4]
    assert out["best_so_far"].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.7])
    assert np.isnan(out["validation_mean"][1])


def test_the_best_of_each_arm_are_complete_ranked_by_validation_and_not_by_test():
    table = cells(searched())
    out = best_of_each(table, 3)
    assert out["arm"].tolist() == [a for a in ("sgd", "sam", "fsam") for _ in range(3)]
    assert (out["status"] == "complete").all()
    for arm, rows in out.groupby("arm"):
        done = table[(table["arm"] == arm) & (table["status"] == "complete")]
        assert rows["validation_mean"].tolist() == sorted(done["validation_mean"], reverse=True)[:3]


def test_slices_draw_complete_cells_only_and_say_where_the_others_were():
    table = marked(searched())
    figure = slices(table, {"gamma": True, "lr": True, "dropout": False})
    assert [ax.get_xlabel() for ax in figure.axes] == ["gamma", "lr"]
    assert all(ax.get_xscale() == "log" for ax in figure.axes)
    drawn = {c.get_gid(): c for c in figure.axes[1].collections}
    for arm, rows in table.groupby("arm"):
        done = rows[rows["status"] == "complete"]
        np.testing.assert_allclose(drawn[f"lr:{arm}"].get_offsets(), done[["lr", "validation_mean"]] * [1, 100])
        stopped = sorted(rows.loc[rows["status"] == "stopped", "lr"])
        assert sorted(s[0][0] for s in drawn[f"stopped:lr:{arm}"].get_segments()) == pytest.approx(stopped)
    assert "gamma:sgd" not in {c.get_gid() for c in figure.axes[0].collections if len(c.get_offsets())}


def test_slices_of_names_stand_at_their_names():
    frame = searched().assign(base=lambda f: ["adam" if i % 3 else "sgd" for i in range(len(f))])
    frame["base"] = frame.groupby("cell")["base"].transform("first")
    (ax,) = slices(cells(frame), {"base": False}).axes
    assert [t.get_text() for t in ax.get_xticklabels()] == list(dict.fromkeys(cells(frame)["base"]))


def test_the_course_figure_steps_at_the_running_best():
    steps = course(cells(searched()))
    ax = search_course(steps)
    for arm, rows in steps.groupby("arm"):
        line = next(line for line in ax.lines if line.get_gid() == f"course:{arm}")
        np.testing.assert_allclose(line.get_ydata(), 100 * rows["best_so_far"])


def test_the_report_of_a_search_has_its_best_cells_slices_and_course_and_no_map(tmp_path):
    frame = searched()
    report = write_report(FakeReader(frame, history_of(frame), spec=SEARCH_SPEC), tmp_path)
    assert {"slices", "parallel", "course", "importance", "learning_curves"} <= set(report.figures)
    assert not any(name.startswith(("heatmap", "sensitivity")) for name in report.figures)
    assert report.heatmap is None
    text = report.html.read_text()
    assert "What the search found" in text
    assert "its course" not in text[: text.index("<main>")]


def test_a_search_that_has_chosen_nothing_or_completed_nothing_says_so(tmp_path):
    empty = pd.DataFrame(columns=["cell", "arm", "seed", "status"])
    assert "no planned replicates" in write_report(FakeReader(empty, spec=SEARCH_SPEC), tmp_path / "a").html.read_text()
    stopped = searched(cells=3).assign(status="stopped", test_accuracy=np.nan, epoch=3.0)
    text = write_report(FakeReader(stopped, spec=SEARCH_SPEC), tmp_path / "b").html.read_text()
    assert "No cell is complete yet." in text
