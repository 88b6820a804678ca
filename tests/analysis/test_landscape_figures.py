"""The toy's figures show the numbers they are given, and `study toy` writes them with the tables behind them."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Ellipse

from analysis.figures.landscape import Descent, Surface, contour_map, descents, flat_shares


@pytest.fixture
def surface():
    mu, sigma = np.linspace(-10, 10, 41), np.linspace(1, 9, 33)
    loss = (mu[None] - 3) ** 2 + (sigma[:, None] - 5) ** 2
    return Surface(mu, sigma, loss, flat=(3.0, 5.0, 0.512, 0.0012), sharp=(-4.0, 2.0, 0.491, 0.0061))


def descent(**changes):
    theta = np.array([[8.0, 8.0], [6.0, 7.0], [4.0, 6.0], [3.0, 5.0]])
    given = {
        "title": "SAM, gamma 1.1",
        "theta": theta,
        "eps": np.tile([0.5, 0.25], (3, 1)),
        "semi_axes": np.tile([2.0, 1.0], (3, 1)),
        "step": np.diff(theta, axis=0),
        "tail": np.array([[3.0, 5.0], [2.0, 4.0]]),
        **changes,
    }
    return Descent(**given)


def lines(ax, gid):
    return [line for line in ax.get_lines() if line.get_gid() == gid]


def test_contour_map_marks_both_minima_with_their_printed_numbers(surface):
    ax = contour_map(surface)
    assert [lines(ax, "flat")[0].get_xydata().tolist(), lines(ax, "sharp")[0].get_xydata().tolist()] == [
        [[3.0, 5.0]],
        [[-4.0, 2.0]],
    ]
    words = [t.get_text() for t in ax.texts]
    assert any("flat (3.00, 5.00)\nl = 0.51, tr H = 0.001" in w for w in words)
    assert any("sharp (-4.00, 2.00)\nl = 0.49, tr H = 0.006" in w for w in words)


def test_a_panel_shows_path_start_end_and_what_follows_without_a_probe(surface):
    one = descent()
    (ax,) = descents(surface, [one]).axes
    np.testing.assert_array_equal(lines(ax, "path")[0].get_xydata(), one.theta)
    np.testing.assert_array_equal(lines(ax, "tail")[0].get_xydata(), one.tail)
    assert lines(ax, "start")[0].get_xydata().tolist() == [[8.0, 8.0]]
    assert lines(ax, "end")[0].get_xydata().tolist() == [[3.0, 5.0]]
    assert ax.get_title(loc="left") == "SAM, gamma 1.1"


@pytest.mark.parametrize(("enlarged", "words"), [(1.0, "true size"), (5.0, "drawn ×5")])
def test_neighbourhoods_and_probes_have_their_size_and_a_change_of_it_is_said(surface, enlarged, words):
    (ax,) = descents(surface, [descent(enlarged=enlarged)]).axes
    rims = [p for p in ax.patches if isinstance(p, Ellipse)]
    assert {(r.width, r.height) for r in rims} == {(4 * enlarged, 2 * enlarged)}
    probes = [t for t in ax.texts if t.get_gid() == "probe"]
    assert len(probes) == len(rims)
    for arrow in probes:
        np.testing.assert_allclose(np.subtract(arrow.xy, arrow.xyann), [0.5 * enlarged, 0.25 * enlarged])
    assert [t.get_text() for t in ax.texts if t.get_gid() == "size"] == [f"neighbourhood, probe: {words}"]


def test_step_arrows_are_directions_of_one_length(surface):
    (ax,) = descents(surface, [descent()]).axes
    steps = np.array([np.subtract(t.xy, t.xyann) for t in ax.texts if t.get_gid() == "step"])
    lengths = np.linalg.norm(steps, axis=1)
    np.testing.assert_allclose(lengths, lengths[0])
    np.testing.assert_allclose(steps[0] / lengths[0], np.array([-2, -1]) / np.sqrt(5))


def test_a_path_that_circles_its_end_has_no_heap_of_neighbourhoods_there(surface):
    angle = np.linspace(0, 60, 400)
    circling = np.stack([3 + 0.3 * np.cos(angle), 5 + 0.3 * np.sin(angle)], axis=-1)
    theta = np.concatenate([np.linspace([8.0, 8.0], [3.5, 5.2], 50), circling])
    many = descent(
        theta=theta,
        eps=np.tile([0.5, 0.25], (449, 1)),
        semi_axes=np.tile([2.0, 1.0], (449, 1)),
        step=np.diff(theta, axis=0),
    )
    (ax,) = descents(surface, [many], shown=4).axes
    centres = np.array([p.center for p in ax.patches if isinstance(p, Ellipse)])
    assert 2 <= len(centres) <= 4
    assert min(np.linalg.norm(a - b) for i, a in enumerate(centres) for b in centres[:i]) > 0.5


def test_panels_without_a_step_are_refused(surface):
    with pytest.raises(ValueError, match="at least one step"):
        descents(surface, [descent(step=np.zeros((0, 2)))])
    with pytest.raises(ValueError, match="at least one"):
        descents(surface, [])


def test_shares_stand_at_their_gamma_on_the_left_and_at_their_length_on_the_right():
    frame = pd.DataFrame(
        {
            "optimiser": ["sam", "sam", "fsam", "fsam"],
            "gamma": [1.0, 10.0, 0.1, 1.0],
            "length": [1.0, 10.0, 2.0, 20.0],
            "flat": [0.5, 0.9, 0.6, 0.8],
            "arrived": [0.5, 0.4, 0.6, 0.2],
            "sgd_flat": 0.68,
            "starts": 273,
        }
    )
    left, right = flat_shares(frame).axes
    assert lines(left, "arrived:fsam")[0].get_xydata().tolist() == [[0.1, 60.0], [1.0, 20.0]]
    assert lines(right, "arrived:fsam")[0].get_xydata().tolist() == [[2.0, 60.0], [20.0, 20.0]]
    assert lines(right, "basin:sam")[0].get_xydata().tolist() == [[1.0, 50.0], [10.0, 90.0]]
    assert "273 starts" in right.get_title(loc="right")
    assert [t.get_text() for t in right.get_legend().get_texts()] == ["SAM", "Fisher SAM"]


def test_the_verb_writes_figures_and_tables_and_says_what_is_not_reproduced(tmp_path, monkeypatch):
    from analysis import toy

    monkeypatch.setattr(toy, "STEPS", 300)
    monkeypatch.setattr(toy, "GAMMAS", {"sam": (1.0, 13.0), "fsam": (0.5,)})
    monkeypatch.setattr(toy, "starts", lambda: np.array([[-40.0, 45.0], [30.0, 40.0], [-30.0, 10.0]]))
    said = toy.toy(str(tmp_path / "new" / "out"))
    names = {p.name for p in (tmp_path / "new" / "out").iterdir()}
    figures = ("toy_loss", "toy_sam_fsam", "toy_asam_fsam", "toy_shares")
    tables = ("toy_minima", "toy_trajectories", "toy_shares")
    assert names == {f"{f}.{kind}" for f in figures for kind in ("png", "svg")} | {f"{t}.csv" for t in tables}
    text = "\n".join(said)
    assert "flat  (19.85, 29.95)  loss 0.51  Hessian trace 0.001" in text
    assert "sharp (-16.80, 12.80)  loss 0.28  Hessian trace 0.007" in text
    assert "of a grid of 3 starts" in text
    paths = pd.read_csv(tmp_path / "new" / "out" / "toy_trajectories.csv")
    assert len(paths) == 6 * 300
    first = paths.groupby(["figure", "optimiser", "gamma"], sort=False).first()
    assert set(zip(first["theta_mu"], first["theta_sigma"], strict=True)) == {(-40.0, 45.0), (-5.0, 14.0)}
    # a step is lr times the gradient that the table's own next row shows the effect of
    one = paths[paths["gamma"] == 20]
    np.testing.assert_allclose(np.diff(one["theta_mu"]), one["step_mu"][:-1], atol=1e-9)


def test_numbers_of_the_figures_are_those_that_the_docstring_tells():
    from analysis.toy import FIGURES, LR, STEPS
    from trainables.landscape2d import ARRIVED, PRINTED, basin, descend, minima

    places = minima(PRINTED)
    ends = {}
    for name, (start, runs) in FIGURES.items():
        for optimiser, gamma in runs:
            last = descend(PRINTED, start, optimiser=optimiser, gamma=gamma, lr=LR, steps=STEPS).theta[-1]
            index = int(basin(PRINTED, last, places))
            ends[name, optimiser, gamma] = (index, bool(np.linalg.norm(last - places[index].theta) < ARRIVED))
    assert ends == {
        ("toy_sam_fsam", "sam", 1.1): (1, True),
        ("toy_sam_fsam", "fsam", 1.1): (0, False),
        ("toy_sam_fsam", "sam", 20.0): (0, False),
        ("toy_asam_fsam", "asam_eq5", 0.6): (1, True),
        ("toy_asam_fsam", "fsam", 1.1): (0, False),
        ("toy_asam_fsam", "asam_eq5", 0.9): (0, True),
    }
