"""Parallel coordinates, by what is drawn."""

import time

import numpy as np
import pandas as pd
import pytest
from made_study import searched
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.compare import marked
from analysis.figures import parallel, save

AXES = {"gamma": True, "lr": True, "model": False}
UNUSED = -0.13


def made(cells=12, **options):
    frame = searched(cells=cells, **options)
    frame["model"] = np.where(frame["cell"].str[-1].isin(list("02468")), "vgg", "resnet")
    return marked(frame)


def lines(ax, gid):
    found = next((c for c in ax.collections if c.get_gid() == gid), None)
    return [] if found is None else found.get_segments()


def expected(table, row):
    """Places of a cell on every axis, from the definition."""
    arms = list(dict.fromkeys(table["arm"]))
    out = [1 - arms.index(row["arm"]) / (len(arms) - 1)]
    for name in ("gamma", "lr"):
        known = np.log10(table[name].dropna())
        out.append((np.log10(row[name]) - known.min()) / np.ptp(known) if row[name] == row[name] else UNUSED)
    models = list(dict.fromkeys(table["model"]))
    return [*out, 1 - models.index(row["model"]) / (len(models) - 1)]


def test_every_complete_cell_is_a_line_at_its_settings_that_ends_at_its_accuracy_and_has_its_colour():
    table = made()
    ax = parallel(table, AXES)
    done = table[table["status"] == "complete"].sort_values("validation_mean", kind="stable")
    drawn = next(c for c in ax.collections if c.get_gid() == "complete")
    accuracy = 100 * done["validation_mean"]
    np.testing.assert_allclose(drawn.get_array(), accuracy)
    for segment, (_, row) in zip(drawn.get_segments(), done.iterrows(), strict=True):
        end = (100 * row["validation_mean"] - accuracy.min()) / np.ptp(accuracy)
        np.testing.assert_allclose(segment[:, 0], range(5))
        np.testing.assert_allclose(segment[:, 1], [*expected(table, row), end], atol=1e-9)
    assert (drawn.norm.vmin, drawn.norm.vmax) == pytest.approx((accuracy.min(), accuracy.max()))


def test_cells_that_did_not_end_are_dashed_grey_and_stop_before_the_accuracy():
    table = made(cells=20)
    ax = parallel(table, AXES)
    lost = table[table["status"] != "complete"]
    assert len(lost)
    found = lines(ax, "unfinished")
    assert len(found) == len(lost)
    for segment, (_, row) in zip(found, lost.iterrows(), strict=True):
        np.testing.assert_allclose(segment[:, 1], expected(table, row), atol=1e-9)
    dashed = next(c for c in ax.collections if c.get_gid() == "unfinished")
    assert dashed.get_linestyle()[0][1] is not None
    red, green, blue, _ = dashed.get_color()[0]
    assert red == green == blue
    solid = next(c for c in ax.collections if c.get_gid() == "complete")
    assert solid.get_linestyle()[0][1] is None
    texts = [t.get_text() for t in ax.get_figure().legends[0].get_texts()]
    assert f"not complete: {len(lost)} of 60 cells" in texts


def test_the_best_of_each_arm_is_highlighted_with_a_mark_of_its_own():
    table = made()
    ax = parallel(table, AXES)
    marks = {}
    for arm, rows in table[table["status"] == "complete"].groupby("arm"):
        best = rows.loc[rows["validation_mean"].idxmax()]
        line = next(line for line in ax.lines if line.get_gid() == f"best:{arm}")
        np.testing.assert_allclose(line.get_ydata()[:-1], expected(table, best), atol=1e-9)
        marks[arm] = line.get_marker()
    assert len(set(marks.values())) == 3
    led = table.assign(leader=table["cell"] == table.loc[table["status"] == "complete", "cell"].iloc[0])
    chosen = led[led["leader"]].iloc[0]
    line = next(line for line in parallel(led, AXES).lines if line.get_gid() == f"best:{chosen['arm']}")
    np.testing.assert_allclose(line.get_ydata()[:-1], expected(table, chosen), atol=1e-9)


def test_ticks_are_values_of_the_setting_and_an_unused_one_is_said():
    table = made()
    ax = parallel(table, AXES)
    gamma = {t.get_text(): t.get_position()[1] for t in ax.texts if t.get_gid() == "tick:gamma"}
    known = np.log10(table["gamma"].dropna())
    for text, at in gamma.items():
        assert np.log10(float(text)) == pytest.approx(known.min() + at * np.ptp(known), abs=0.01)
    assert {t.get_text() for t in ax.texts if t.get_gid() == "tick:model"} == {"vgg", "resnet"}
    assert "not used" in [t.get_text() for t in ax.texts]
    assert "not used" not in [t.get_text() for t in parallel(made(arms=("sam", "fsam")), AXES).texts]


def test_one_cell_none_complete_and_ten_thousand_are_drawn(tmp_path):
    one = made(cells=1, arms=("sam",))
    assert len(lines(parallel(one, AXES), "complete")) == 1
    none = made(cells=3)
    none["status"] = "stopped"
    ax = parallel(none, AXES)
    assert not lines(ax, "complete")
    assert len(ax.get_figure().axes) == 1, "no colour bar without a colour"
    many = pd.concat([made(cells=40)] * 84, ignore_index=True)
    start = time.process_time()
    save(parallel(many, AXES), tmp_path / "many", formats=("png", "svg"))
    assert time.process_time() - start < 12
    assert (tmp_path / "many.svg").stat().st_size < 4e6


@pytest.mark.parametrize("arms", [("sam",), ("sgd", "sam", "fsam")])
def test_nothing_of_the_legend_is_cut_off(arms):
    figure = parallel(made(arms=arms), {"gamma": True}).get_figure()
    FigureCanvasAgg(figure).draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
