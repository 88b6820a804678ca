"""Maps of several panels and the difference map: by what is drawn."""

import time

import numpy as np
import pandas as pd
import pytest
from made_study import ETAS, EVERY_STATUS, GAMMAS, FakeReader, figure_five, history_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats

from analysis.compare import marked
from analysis.figures import difference_map, heatmap, heatmaps, save
from analysis.figures.differences import DIVERGING
from analysis.figures.heatmaps import one_scale
from analysis.intervals import holm
from analysis.matched import matched_differences
from analysis.report import write_report


def over_noise(rates=(0.0, 0.4), fall=0.02, statuses=None, seeds=3):
    """Figure 5's grid at several rates of label noise, each `fall` lower; `statuses` at the last rate."""
    parts = []
    for i, rate in enumerate(rates):
        part = figure_five(statuses if i == len(rates) - 1 else None, seeds=seeds)
        part["test_accuracy"] -= fall * i
        parts.append(part.assign(label_noise=rate, cell=part["cell"] + f"-{rate}"))
    return pd.concat(parts, ignore_index=True)


def maps_of(figure):
    return [ax for ax in figure.axes if any(c.get_gid() for c in ax.collections)]


def measured(ax):
    return next(c for c in ax.collections if c.get_gid() == "measured")


def drawn(figure):
    FigureCanvasAgg(figure).draw()
    return figure


def places(ax, gid):
    """(x, y, value) of the pixels' middles."""
    pixels = next(c for c in ax.collections if c.get_gid() == gid)
    middles = [(p.vertices[:4].min(axis=0) + p.vertices[:4].max(axis=0)) / 2 for p in pixels.get_paths()]
    return [(round(x, 6), round(y, 6), v) for (x, y), v in zip(middles, pixels.get_array(), strict=True)]


def ticks(axis):
    return dict(zip([t.get_text() for t in axis.get_ticklabels()], axis.get_ticklocs(), strict=True))


def test_panels_are_in_order_have_one_scale_and_hold_what_single_maps_hold():
    table = marked(over_noise((0.4, 0.0), statuses=None), within=["label_noise"])
    figure = heatmaps(table, "label_noise")
    axes = maps_of(figure)
    assert [ax.get_title(loc="left") for ax in axes] == ["label_noise 0", "label_noise 0.4"]
    scales = {(measured(ax).norm.vmin, measured(ax).norm.vmax) for ax in axes}
    assert len(scales) == 1
    assert len(figure.axes) == len(axes) + 1, "one colour bar"
    for ax, rate in zip(axes, (0.0, 0.4), strict=True):
        alone = heatmap(table[table["label_noise"] == rate])
        assert places(ax, "measured") == places(alone, "measured")
        best = table[table["best"] & (table["label_noise"] == rate)].iloc[0]
        outline = next(p for p in ax.patches if p.get_gid() == "best")
        assert outline.get_xy() == (ETAS.index(best["eta"]), GAMMAS.index(best["gamma"]))


def test_panels_may_have_scales_of_their_own():
    table = marked(over_noise(fall=0.3), within=["label_noise"])
    figure = heatmaps(table, "label_noise", shared=False)
    first, second = (measured(ax).norm for ax in maps_of(figure))
    assert first.vmin > second.vmax
    assert len(figure.axes) == 4


def test_panels_share_places_where_a_value_is_missing_from_one():
    frame = over_noise()
    frame = frame[~((frame["label_noise"] == 0.4) & (frame["eta"] == 1e-4))]
    axes = maps_of(heatmaps(marked(frame, within=["label_noise"]), "label_noise"))
    assert axes[0].get_xlim() == axes[1].get_xlim()
    lefts = [{x for x, _, _ in places(ax, "measured")} for ax in axes]
    assert lefts[0] - lefts[1] == {0.5}


def test_a_reference_without_the_third_factor_stands_in_every_panel():
    frame = over_noise()
    sgd = frame["arm"] == "sgd"
    frame = pd.concat([frame[~sgd], frame[sgd & (frame["label_noise"] == 0.0)].assign(label_noise=np.nan)])
    for ax in maps_of(heatmaps(marked(frame), "label_noise")):
        assert "sgd" in ticks(ax.yaxis)
        assert len(places(ax, "measured")) == 36


def test_every_status_keeps_its_hatch_in_a_panel_and_is_counted_in_the_legend():
    table = marked(over_noise(statuses=EVERY_STATUS), within=["label_noise"])
    figure = heatmaps(table, "label_noise")
    hatches = {c.get_gid(): c.get_hatch() for ax in maps_of(figure) for c in ax.collections if c.get_hatch()}
    assert len(set(hatches.values())) == len(hatches) == 4
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert {"diverged: 2", "failed: 1", "missing: 1", "stopped early (epoch): 1"} <= set(texts)


def test_titles_are_the_value_itself_where_the_column_is_no_setting():
    table = marked(over_noise(), within=["label_noise"])
    table["panel"] = table["label_noise"].map({0.0: "clean", 0.4: "noisy, model a"})
    assert [ax.get_title(loc="left") for ax in maps_of(heatmaps(table, "panel"))] == ["clean", "noisy, model a"]
    with pytest.raises(ValueError, match="nothing is not a column"):
        heatmaps(table, "nothing")


def test_panels_far_apart_do_not_share_a_scale():
    near, far = (
        [rows for _, rows in marked(over_noise(fall=f), within=["label_noise"]).groupby("label_noise")]
        for f in (0.003, 0.3)
    )
    assert one_scale(near)
    assert not one_scale(far)
    assert one_scale(near[:1])


def test_every_pixel_of_the_difference_map_is_the_paired_difference_by_plain_pandas():
    frame = figure_five(seeds=4)
    pairs = matched_differences(frame, marked(frame))
    ax = difference_map(pairs)
    x, y = ticks(ax.xaxis), ticks(ax.yaxis)
    value_at = {(a, b): v for a, b, v in places(ax, "difference")}
    assert len(value_at) == len(GAMMAS) * len(ETAS)
    for (gamma, eta), rows in frame[frame["arm"] == "fsam"].groupby(["gamma", "eta"]):
        sam = frame[(frame["arm"] == "sam") & (frame["gamma"] == gamma)].set_index("seed")["test_accuracy"]
        d = rows.set_index("seed")["test_accuracy"] - sam
        at = (round(x[f"{eta:g}"], 6), round(y[f"{gamma:g}"], 6))
        assert value_at[at] == pytest.approx(100 * d.mean())
        row = pairs[(pairs["gamma"] == gamma) & (pairs["eta"] == eta)].iloc[0]
        low, high = stats.t.interval(0.95, 3, d.mean(), d.sem())
        assert (row["low"], row["high"]) == pytest.approx((low, high))
        assert row["excludes_zero"] == (low > 0 or high < 0)
        text = next(t.get_text() for t in ax.texts if t.get_gid() == f"label:{row['cell_a']}")
        assert text == f"{100 * d.mean():+.2f}\nn=4"
    np.testing.assert_allclose(pairs["p_holm"], holm(pairs["p"]))


def test_marks_of_the_difference_map_stand_on_the_cells_that_have_them():
    frame = figure_five(seeds=5)
    strong = (frame["gamma"] == 0.1) & (frame["eta"] == 1.0)
    sam = frame[(frame["arm"] == "sam") & (frame["gamma"] == 0.1)].set_index("seed")["test_accuracy"]
    frame.loc[strong, "test_accuracy"] = (
        frame.loc[strong, "seed"].map(sam) + 0.05 + 1e-6 * frame.loc[strong, "seed"].to_numpy()
    )
    pairs = matched_differences(frame, marked(frame))
    ax = difference_map(pairs)
    marks = {c.get_gid(): c.get_offsets() for c in ax.collections if c.get_gid() in ("interval", "holm")}
    assert (ETAS.index(1.0), GAMMAS.index(0.1)) in {(int(x), int(y)) for x, y in marks["holm"]}
    after = pairs["p_holm"] < 0.05
    for gid, rows in (("holm", pairs[after]), ("interval", pairs[((pairs["low"] > 0) | (pairs["high"] < 0)) & ~after])):
        expected = {(ETAS.index(e), GAMMAS.index(g)) for e, g in zip(rows["eta"], rows["gamma"], strict=True)}
        assert expected
        assert {(int(x), int(y)) for x, y in marks[gid]} == expected
    hollow = [c for c in ax.collections if c.get_gid() == "interval"]
    assert all(not len(c.get_facecolor()) for c in hollow), "a ring and a disc differ without colour"
    words = [t.get_text() for t in ax.get_figure().legends[0].get_texts()]
    assert words[0].startswith(
        f"95 % interval excludes 0: {int(pairs['excludes_zero'].sum())} of 30 that have one (n=5;"
    )
    assert words[1] == f"so after Holm over 30 pairs: {int(after.sum())}"


def test_the_diverging_map_is_neutral_at_0_and_keeps_its_order_in_grey():
    colours = DIVERGING(np.linspace(0, 1, 129))[:, :3]
    assert (np.diff(colours @ [0.299, 0.587, 0.114]) > 0).all()
    assert np.ptp(DIVERGING(0.5)[:3]) < 0.02
    below, above = DIVERGING(0.1), DIVERGING(0.9)
    assert below[2] > below[0] + 0.2
    assert above[0] > above[2] + 0.2


def test_colours_of_the_difference_map_are_centred_and_one_collapse_does_not_turn_the_rest_grey():
    frame = figure_five(seeds=3)
    lost = (frame["gamma"] == 1.0) & (frame["eta"] == 10.0)
    frame.loc[lost, "test_accuracy"] -= 0.5
    norm = next(
        c for c in difference_map(matched_differences(frame, marked(frame))).collections if c.get_gid() == "difference"
    ).norm
    assert norm.vmin == -norm.vmax
    assert norm.vmax < 5


def test_cells_that_did_not_end_are_in_no_difference():
    frame = figure_five(EVERY_STATUS)
    pairs = matched_differences(frame, marked(frame))
    lost = {
        f"fsam-{g}-{e}"
        for (g, e), s in EVERY_STATUS.items()
        if s in ("diverged", "stopped", "failed", "missing", "running")
    }
    # One seed of three diverged: the other two would flatter it.
    lost.add("fsam-1.0-1.0")
    assert set(pairs["cell_a"]) == set(frame.loc[frame["arm"] == "fsam", "cell"]) - lost
    assert pairs.set_index("cell_a").loc["fsam-0.5-10.0", "n"] == 2


def test_equal_cells_have_no_sign_and_no_mark():
    frame = figure_five(seeds=2)
    # Accuracies that depend on gamma and seed only.
    frame["test_accuracy"] = 0.9 + 0.01 * frame["gamma"].fillna(0) + 0.001 * frame["seed"]
    ax = difference_map(matched_differences(frame, marked(frame)))
    assert {t.get_text() for t in ax.texts} == {"0\nn=2"}
    assert not [c for c in ax.collections if c.get_gid() in ("interval", "holm")]


def test_a_study_without_sam_or_without_shared_gammas_has_no_differences():
    frame = figure_five()
    assert matched_differences(frame[frame["arm"] != "sam"], marked(frame[frame["arm"] != "sam"])).empty
    moved = frame.assign(gamma=frame["gamma"].where(frame["arm"] != "sam", frame["gamma"] * 3))
    assert matched_differences(moved, marked(moved)).empty


def test_one_and_ten_thousand_differences_are_drawn_in_seconds_without_label_soup(tmp_path):
    one = figure_five(seeds=2, gammas=(0.1,), etas=(1.0,))
    ax = difference_map(matched_differences(one, marked(one)))
    assert len(ax.texts) == 1
    assert save(ax, tmp_path / "one")[0].stat().st_size > 1000
    grid = tuple(np.geomspace(1e-3, 1, 100))
    many = figure_five(seeds=2, gammas=grid, etas=grid)
    table = marked(many)
    start = time.process_time()
    ax = difference_map(matched_differences(many, table))
    save(ax, tmp_path / "many", formats=("png", "svg"))
    assert time.process_time() - start < 8
    assert len(places(ax, "difference")) == 10_000
    assert not ax.texts
    assert not [c for c in ax.collections if c.get_gid() in ("interval", "holm")]
    assert (tmp_path / "many.svg").stat().st_size < 2e6


def test_a_report_draws_several_panels_as_one_picture_and_the_differences(tmp_path):
    frame = over_noise((0.0, 0.2, 0.4), fall=0.002)
    spec = {"grid": {"gamma": list(GAMMAS), "eta": list(ETAS), "label_noise": [0.0, 0.2, 0.4]}}
    report = write_report(FakeReader(frame, history_of(frame), spec=spec), tmp_path)
    assert {"heatmap", "difference_1", "difference_2", "difference_3"} <= set(report.figures)
    text = report.html.read_text()
    assert "All panels have one colour scale." in text
    assert 'alt="Map of 30 differences, fsam minus sam, label_noise 0.2:' in text
