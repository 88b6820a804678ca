from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from made_study import ETAS, GAMMAS, figure_five, history_of, replicate
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from analysis.compare import marked
from analysis.figures import heatmap, learning_curves, save, sensitivity
from analysis.figures.style import COLOURMAP, STATUS_STYLE, banded, ink_on, new_axes
from analysis.layout import layout
from analysis.tables import cells, curves


def collection(ax, gid):
    return next((c for c in ax.collections if c.get_gid() == gid), None)


def boxes(ax, gid):
    """(left, bottom, width, height) of a collection's pixels."""
    found = collection(ax, gid)
    corners = [p.vertices for p in found.get_paths()] if found is not None else []
    return [(*v.min(axis=0), *(v.max(axis=0) - v.min(axis=0))) for v in corners]


def label(ax, cell):
    return next((t.get_text() for t in ax.texts if t.get_gid() == f"label:{cell}"), None)


def ticks(axis):
    return dict(zip([t.get_text() for t in axis.get_ticklabels()], axis.get_ticklocs(), strict=True))


def legend(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


def test_every_pixel_stands_at_its_labelled_gamma_and_eta_with_its_mean():
    table = marked(figure_five())
    ax = heatmap(table)
    x, y = ticks(ax.xaxis), ticks(ax.yaxis)
    pixels = collection(ax, "measured")
    value_at = {
        (round(left + width / 2, 6), round(bottom + height / 2, 6)): value
        for (left, bottom, width, height), value in zip(boxes(ax, "measured"), pixels.get_array(), strict=True)
    }
    assert len(value_at) == 36
    for row in table[table["arm"] == "fsam"].itertuples():
        at = (x[f"{row.eta:g}"], y[f"{row.gamma:g}"])
        assert value_at[at] == pytest.approx(100 * row.mean)
    for row in table[table["arm"] == "sam"].itertuples():
        assert value_at[(round(x["0\n(sam)"], 6), y[f"{row.gamma:g}"])] == pytest.approx(100 * row.mean)
    assert list(x) == ["0\n(sam)", "0.0001", "0.001", "0.01", "0.1", "1", "10"]
    assert list(y) == ["sgd", "0.01", "0.05", "0.1", "0.5", "1"]


def test_references_stand_clear_of_the_grid_and_sgd_spans_it():
    ax = heatmap(marked(figure_five()))
    x, y = ticks(ax.xaxis), ticks(ax.yaxis)
    assert x["0\n(sam)"] < -0.5
    assert y["sgd"] < -0.5
    widths = sorted(width for _, _, width, _ in boxes(ax, "measured"))
    assert widths[-1] > len(ETAS)
    assert widths[-2] == 1


def test_every_status_has_its_own_hatch_label_and_legend_entry(golden):
    table = marked(golden)
    ax = heatmap(table)
    for status, count in {"stopped": 1, "diverged": 2, "failed": 1, "running": 1, "missing": 1}.items():
        assert len(boxes(ax, status)) == count
        assert collection(ax, status).get_hatch() == STATUS_STYLE[status]["hatch"]
        assert any(text.startswith(status) and text.endswith(f": {count}") for text in legend(ax)), status
    assert len({s["hatch"] for s in STATUS_STYLE.values()}) == len(STATUS_STYLE)
    assert label(ax, "fsam-1.0-0.0001") == "stopped\ne3"
    assert label(ax, "fsam-1.0-10.0") == "diverged"
    assert label(ax, "fsam-1.0-1.0") == "diverged\n1 of 3"
    assert label(ax, "fsam-0.01-0.0001") == "failed"
    assert label(ax, "fsam-0.01-0.001") == "missing"
    assert label(ax, "fsam-0.05-10.0") == "running\ne3"
    assert label(ax, "fsam-0.5-10.0").endswith("n=2 of 3")


def test_labels_say_mean_and_n_in_an_ink_that_can_be_read(golden):
    table = marked(golden).set_index("cell")
    ax = heatmap(table.reset_index())
    mean = table.loc["fsam-0.1-1.0", "mean"]
    assert label(ax, "fsam-0.1-1.0") == f"{100 * mean:.1f}\nn=3"
    assert ink_on((1.0, 1.0, 1.0, 1.0)) == "#000000"
    assert ink_on((0.0, 0.1, 0.3, 1.0)) == "#ffffff"


def test_no_ink_on_the_map_has_less_contrast_than_wcag_asks():
    from matplotlib import colormaps

    def luminance(colour):
        c = np.asarray(colour[:3])
        c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return c @ [0.2126, 0.7152, 0.0722]

    for colour in colormaps[COLOURMAP](np.linspace(0, 1, 101)):
        light = luminance(colour)
        ratio = 1.05 / (light + 0.05) if ink_on(colour) == "#ffffff" else (light + 0.05) / 0.05
        assert ratio >= 4.5


def test_the_map_stays_in_order_in_grey():
    from matplotlib import colormaps

    grey = colormaps[COLOURMAP](np.linspace(0, 1, 64))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) > 0).all()


def test_best_is_outlined_and_its_equals_are_dotted():
    table = marked(figure_five())
    ax = heatmap(table)
    best = table[table["best"]].iloc[0]
    outline = next(p for p in ax.patches if p.get_gid() == "best")
    at = (ETAS.index(best["eta"]), GAMMAS.index(best["gamma"]))
    assert outline.get_xy() == at
    dots = collection(ax, "indistinguishable").get_offsets()
    assert len(dots) == table["indistinguishable"].sum()
    where = {(int(np.floor(x)), int(np.floor(y))) for x, y in dots if x > 0}
    pixels = boxes(ax, "measured")
    assert all(any(x0 < x < x0 + w and y0 < y < y0 + h for x0, y0, w, h in pixels) for x, y in dots)
    same = table[table["indistinguishable"] & (table["arm"] == "fsam")]
    assert where == {(ETAS.index(e), GAMMAS.index(g)) for e, g in zip(same["eta"], same["gamma"], strict=True)}
    assert {"best by validation", "not distinguishable from it (paired 95 % t)"} <= set(legend(ax))


def test_a_bad_row_does_not_flatten_the_others_and_is_shown_as_below_the_scale():
    table = marked(figure_five())  # gamma 1 is thirty points worse
    pixels = collection(heatmap(table), "measured")
    assert pixels.norm.vmin > 90
    colours = pixels.to_rgba(np.array([66.0, pixels.norm.vmin]))
    assert to_hex(colours[0]) == "#000000" != to_hex(colours[1])


def test_colour_bar_says_metric_unit_and_that_it_is_a_mean():
    figure = heatmap(marked(figure_five())).get_figure()
    assert [a.get_ylabel() for a in figure.axes][1] == "test accuracy (%)\nmean over n seeds"


def test_one_cell_and_ten_thousand_are_drawn_and_small_pixels_go_without_text(tmp_path):
    single = heatmap(marked(pd.DataFrame([replicate("a", s) for s in range(2)])))
    assert label(single, "a") == "94.0\nn=2"
    save(single, tmp_path / "one")
    grid = tuple(np.geomspace(1e-3, 1, 100))
    ax = heatmap(marked(figure_five(seeds=2, gammas=grid, etas=grid)))
    assert len(boxes(ax, "measured")) == 100 * 100 + 100 + 1
    assert not ax.texts
    save(ax, tmp_path / "many", formats=("png",))
    FigureCanvasAgg(ax.get_figure()).draw()
    drawn = [t.get_window_extent() for t in ax.get_xticklabels()]
    assert len(drawn) > 8
    assert all(a.x1 <= b.x0 for a, b in pairwise(drawn)), "tick labels overlap"


def test_two_cells_on_one_pixel_are_refused_with_the_setting_they_differ_in():
    rows = [replicate("a", 0, lr=0.1), replicate("b", 0, lr=0.2)]
    with pytest.raises(ValueError, match=r"a and b share one pixel.*differ in lr"):
        heatmap(cells(pd.DataFrame(rows)))


def test_a_study_of_only_missing_cells_is_drawn_without_a_colour_bar(tmp_path):
    frame = figure_five({(g, e): "missing" for g in GAMMAS for e in (*ETAS, None)} | {(None, None): "missing"})
    ax = heatmap(marked(frame))
    assert len(ax.get_figure().axes) == 1
    assert len(boxes(ax, "missing")) == 36
    assert save(ax, tmp_path / "m")[0].stat().st_size > 1000


def test_a_complete_cell_without_the_value_is_not_coloured():
    ax = heatmap(cells(pd.DataFrame([replicate("a", 0, test_accuracy=np.nan)])))
    assert (len(boxes(ax, "unmeasured")), label(ax, "a")) == (1, "n=0")


def test_layout_of_figure_five_is_one_map_of_eta_by_gamma():
    shape = layout(cells(figure_five()))
    assert (shape.kind, shape.x, shape.y, len(shape.panels), shape.factors) == (
        "heatmap",
        "eta",
        "gamma",
        1,
        ("gamma", "eta"),
    )
    assert len(shape.panels[0].cells) == 36


def test_layout_makes_a_panel_of_each_value_of_a_third_setting_with_its_references():
    parts = []
    for noise in (0.0, 0.4):
        part = figure_five(seeds=1)
        parts.append(part.assign(label_noise=noise, cell=part["cell"] + f"-{noise}"))
    shape = layout(cells(pd.concat(parts, ignore_index=True)))
    assert [p.title for p in shape.panels] == ["label_noise 0", "label_noise 0.4"]
    for panel in shape.panels:
        assert len(panel.cells) == 36
        assert panel.cells["label_noise"].nunique() == 1
        heatmap(panel.cells)


def test_layout_of_one_setting_is_a_line_and_of_none_a_table():
    one = cells(figure_five(seeds=1, etas=(1.0,)))
    assert (layout(one).kind, layout(one).x) == ("line", "gamma")
    none = cells(figure_five(seeds=1, gammas=(0.1,), etas=(1.0,)))
    assert layout(none).kind == "table"
    assert len(layout(none).panels[0].cells) == 3


def test_sensitivity_draws_means_with_half_intervals_and_names_what_has_none():
    table = marked(figure_five({(1.0, 1.0): "diverged"}, etas=(1.0,)))
    ax = sensitivity(table, "gamma")
    bars = {c.get_label(): c for c in ax.containers}
    line = bars["fsam (n=3)"].lines[0]
    fsam = table[(table["arm"] == "fsam") & (table["status"] == "complete")]
    np.testing.assert_allclose(line.get_ydata(), 100 * fsam["mean"])
    low = [segment[0][1] for segment in bars["fsam (n=3)"].lines[2][0].get_segments()]
    np.testing.assert_allclose(low, 100 * fsam["low"])
    assert "fsam: diverged e3" in [t.get_text() for t in ax.texts]
    assert "sgd (n=3)" in legend(ax)


def test_learning_curves_draw_each_cells_mean_and_name_the_best_of_each_arm(golden):
    table = marked(golden)
    lines = curves(history_of(golden), table)
    ax = learning_curves(lines)
    drawn = {line.get_gid(): line for line in ax.lines if line.get_gid()}
    for cell, rows in lines.groupby("cell"):
        y = drawn[f"curve:{cell}"].get_ydata()
        whole = (rows["n"] == rows["n_started"]).to_numpy()
        np.testing.assert_allclose(y[whole], 100 * rows["mean"].to_numpy()[whole])
        assert np.isnan(y[~whole]).all()
    assert "best fsam (gamma 0.1, eta 1)" in legend(ax)
    assert {"diverged", "failed", "running", "stopped"} <= set(legend(ax))
    # The one diverged seed of this cell ended at epoch 3; its survivors' curve is no longer the cell's.
    assert drawn["end:fsam-1.0-1.0"].get_xdata()[0] == 3


def test_the_curves_and_the_tables_name_the_same_best_cell_where_means_tie():
    rows = [
        replicate(f"g{g}", s, gamma=g, optimiser="sam", arm="sam", eta=None, validation_accuracy=0.9)
        for g in (0.1, 0.05, 0.5)
        for s in (0, 1, 2)
    ]
    frame = pd.DataFrame(rows)
    table = marked(frame)
    drawn = legend(learning_curves(curves(history_of(frame), table)))
    assert any(label.startswith("best sam (gamma 0.05") for label in drawn), drawn
    assert table.loc[table["best"], "gamma"].tolist() == [0.05]


@pytest.mark.parametrize("draw", ["learning", "line"])
def test_no_axis_of_accuracy_reaches_beyond_what_an_accuracy_can_be(draw):
    rows = [
        replicate(f"g{g}", s, gamma=g, test_accuracy=s * 0.45, validation_accuracy=s * 0.45)
        for g in (1, 2)
        for s in (0, 1, 2)
    ]
    frame = pd.DataFrame(rows)
    table = marked(frame)
    ax = sensitivity(table, "gamma") if draw == "line" else learning_curves(curves(history_of(frame), table))
    low, high = ax.get_ylim()
    assert -2 < low < high < 102


def test_saved_figures_are_the_same_bytes_each_time_and_keep_their_text(tmp_path):
    table = marked(figure_five())
    first = save(heatmap(table), tmp_path / "a", formats=("png", "svg", "pdf"))
    again = save(heatmap(table), tmp_path / "b", formats=("png", "svg", "pdf"))
    assert [p.name for p in first] == ["a.png", "a.svg", "a.pdf"]
    for one, two in zip(first, again, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.suffix
    assert ">gamma</text>" in first[1].read_text()
    assert len(list(tmp_path.iterdir())) == 6


def test_drawing_leaves_no_pyplot_figure_and_chooses_no_backend():
    import subprocess
    import sys

    code = (
        "import sys, matplotlib; before = dict.__getitem__(matplotlib.rcParams, 'backend'); import analysis.figures; "
        "print(dict.__getitem__(matplotlib.rcParams, 'backend') is before, 'matplotlib.pyplot' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["True", "False"]


@pytest.mark.parametrize(("n", "bands", "said"), [(3, 1, False), (2, 0, True)])
def test_an_interval_of_two_seeds_is_not_drawn_and_that_is_said(n, bands, said):
    rows = pd.DataFrame({"mean": [0.5, 0.6], "low": [0.1, 0.2], "high": [0.9, 1.0], "n": n})
    ax = new_axes(4, 3)
    banded(ax, [1, 2], rows, 100.0)
    banded(ax, [1, 2], rows, 100.0)
    drawn = [c for c in ax.collections if len(c.get_paths()) and len(c.get_paths()[0].vertices)]
    assert len(drawn) == 2 * bands
    assert [t.get_text() for t in ax.texts] == ["intervals of two seeds are not drawn"] * said
