"""Several studies beside each other: what is compared, what is not, and what the page and the command say."""

import numpy as np
import pandas as pd
import pytest
from golden_study import golden, golden_noise, golden_search
from made_study import FakeReader, figure_five
from scipy import stats
from test_report import read as read_page

from analysis.findings import read
from analysis.report import write_comparison
from analysis.studies import beside, compare, labels
from study.cli import main


def grid(epochs=12, shift=0.0, name="a", runs=None, cells=None, **spec):
    frame = figure_five(gammas=(0.1, 0.5), etas=(0.1, 1.0))
    frame = frame.assign(epochs=epochs, test_accuracy=frame["test_accuracy"] + shift, cell=name + frame["cell"])
    spec = {"name": name, "grid": {"gamma": [0.1, 0.5], "eta": [0.1, 1.0]}} | spec
    return FakeReader(frame, spec=spec, runs=runs)


def compared(**readers):
    return compare({label: read(reader, curves_too=False) for label, reader in readers.items()})


def test_equal_conditions_share_a_row_and_are_paired_over_their_seeds():
    a, b = grid(name="a"), grid(name="b", shift=0.01)
    noise = np.array([0.0, 0.001, -0.001] * 7)
    b._replicates["test_accuracy"] += noise[: len(b._replicates)]
    out = compared(a=a, b=b)
    assert out.warnings == ()
    assert out.conditions == ()
    assert set(out.arms["row"]) == {0}
    assert list(out.differences["arm"]) == ["fsam", "sam", "sgd"]
    for row in out.differences.itertuples():
        x, y = (
            reader.replicates()
            .set_index("cell")
            .loc[cell, ["seed", "test_accuracy"]]
            .set_index("seed")["test_accuracy"]
            for reader, cell in ((b, row.cell_a), (a, row.cell_b))
        )
        assert (row.study_a, row.study_b, row.n) == ("b", "a", 3)
        assert row.difference == pytest.approx((x - y).mean())
        assert row.p == pytest.approx(stats.ttest_rel(x, y).pvalue)


def test_other_epochs_stand_in_other_rows_are_not_subtracted_and_are_warned_of():
    out = compared(short=grid(epochs=12, name="a"), long=grid(epochs=40, name="b"))
    assert out.conditions == ("epochs",)
    assert out.arms.groupby("row")["epochs"].unique().map(list).tolist() == [[12], [40]]
    assert out.differences.empty
    assert out.warnings == ("epochs differs: short 12; long 40",)
    assert out.settings.set_index("setting").loc["epochs"].tolist() == ["12", "40"]


@pytest.mark.parametrize("field", ["model", "dataset"])
def test_another_model_or_data_set_is_warned_of_and_in_rows_of_its_own(field):
    b = grid(name="b")
    b._replicates[field] = "other"
    out = compared(a=grid(), b=b)
    assert out.arms.groupby("row")["study"].nunique().max() == 1
    assert len(out.warnings) == 1
    assert out.warnings[0].startswith(f"{field} differs: ")


def test_what_a_study_tunes_is_no_condition():
    """Grids of other gammas: each arm stands at its own choice."""
    b = grid(name="b")
    b._replicates["gamma"] = b._replicates["gamma"] * 2
    out = compared(a=grid(), b=b)
    assert out.warnings == ()
    assert set(out.arms["row"]) == {0}
    assert list(out.settings["setting"]) == ["gamma"]


def test_an_arm_of_one_name_that_is_another_method_is_not_subtracted():
    b = grid(name="b")
    b._replicates["optimiser"] = b._replicates["optimiser"].replace({"sam": "asam"})
    out = compared(a=grid(), b=b)
    assert out.warnings == ("arm sam is not one method: a sam; b asam",)
    assert "sam" not in set(out.differences["arm"])


def test_another_fingerprint_of_one_data_set_is_warned_of():
    runs = [[{"run": "r", "data_fingerprints": {"digits": mark}}] for mark in ("1", "2")]
    out = compared(a=grid(runs=runs[0]), b=grid(name="b", runs=runs[1]))
    assert out.warnings == ("digits was not the same data: it has another fingerprint in a and b",)


def test_a_cell_that_two_studies_share_is_one_training():
    assert compared(a=grid(), b=grid()).differences.empty


def test_studies_without_a_common_arm_and_one_without_a_plan():
    b = grid(name="b")
    b._replicates = b._replicates[b._replicates["arm"] == "sgd"].assign(arm="plain")
    empty = FakeReader(pd.DataFrame(columns=["cell", "seed", "status"]))
    out = compared(a=grid(), b=b, empty=empty)
    assert out.warnings == ("the studies have no arm of one name",)
    assert set(out.arms["study"]) == {"a", "b"}


def test_arms_of_one_figure_are_not_pooled():
    out = beside(compared(a=grid(), b=grid(name="b")))
    assert set(out["arm"]) == {f"{s}: {a}" for s in "ab" for a in ("fsam", "sam", "sgd")}
    assert "best" not in out


def test_labels_are_names_and_where_these_repeat_as_much_of_the_place_as_tells_apart():
    assert labels(["x", "y"], ["/a/x", "/a/y"]) == ["x", "y"]
    assert labels(["x", "x", "y"], ["/a/x", "/b/x", "/b/y"]) == ["x (a/x)", "x (b/x)", "y"]
    assert labels(["x", "x"], ["/a/one", "s3://b/a/two?region=z"]) == ["x (one)", "x (two)"]
    assert labels(["x", "x"], ["/r/x", "s3://r/x"]) == ["x (r/x)", "x (s3:/r/x)"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("studies")
    made = {"golden": golden(place / "golden"), "noise": golden_noise(place / "noise")}
    made |= {"search": golden_search(place / "search"), "longer": golden_noise(place / "longer", "longer", lr=0.1)}
    return {name: folder.uri for name, folder in made.items()}


def test_the_command_compares_folders_on_one_page(folders, tmp_path, capsys):
    assert main(["report", folders["golden"], folders["noise"], folders["search"], "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "golden:"
    assert said.rstrip().endswith(f"report:  {tmp_path / 'report.html'}")

    class Made:
        html = tmp_path / "report.html"

    page, text = read_page(Made)
    assert {"studies", "arms", "differences", "figures", "settings", "provenance", "reproduce"} <= page.anchors
    assert "3 studies beside each other" in text
    assert "vary different things" in text
    assert "Which optimiser keeps its accuracy" in text
    arms = pd.read_csv(tmp_path / "tables" / "arms.csv")
    # The cells are those of the studies' own tables, and the row says under which noise.
    assert set(arms["study"]) == {"golden", "golden_noise", "golden_search"}
    assert (arms.groupby("row")["label_noise"].nunique() == 1).all()


def test_maps_of_one_form_stand_side_by_side(folders, tmp_path, capsys):
    report = write_comparison({"a": grid(), "b": grid(name="b")}, tmp_path)
    page, text = read_page(report)
    assert len(page.images) == 1
    assert "One colour scale for all" in text
    assert "a, 7 cells; b, 7 cells" in page.images[0]["alt"]
    other = write_comparison({"a": grid(), "b": grid(name="b", epochs=40)}, tmp_path)
    text = read_page(other)[1]
    assert "not comparable as they stand: epochs differs: a 12; b 40" in text
    assert "a scale of its own" in text


def test_rates_of_label_noise_stand_side_by_side(folders, tmp_path, capsys):
    assert main(["report", folders["noise"], folders["longer"], "--out", str(tmp_path)]) == 0
    assert "lr differs: golden_noise 0.05; longer 0.1" in capsys.readouterr().out
    assert (tmp_path / "label_noise_2.png").exists()


def test_folders_that_cannot_be_read_are_left_out_with_a_line_each(folders, tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    asked = [folders["golden"], str(nowhere), folders["noise"]]
    assert main(["report", *asked, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"study: left out: {nowhere} holds no study (no study.json)"]
    text = (tmp_path / "out" / "report.html").read_text()
    assert f"{nowhere} holds no study" in text
    assert "2 studies beside each other" in text


def test_where_none_can_be_read_nothing_is_written(tmp_path, capsys):
    asked = [str(tmp_path / name) for name in "ab"]
    assert main(["report", *asked, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines() == [f"study: {a} holds no study (no study.json)" for a in asked]
    assert not (tmp_path / "out").exists()


def test_a_remote_place_to_write_to_is_refused(folders, capsys):
    assert main(["report", folders["golden"], folders["noise"], "--out", "s3://bucket/x"]) == 2
    assert "written to a folder of this machine" in capsys.readouterr().err


def test_epochs_that_one_study_crosses_are_no_less_another_fidelity():
    """Of a study that crosses them, validation may choose the longer training; what the other trained stays apart."""
    short, long = (grid(epochs=e, name=f"b{e}") for e in (4, 12))
    crossed = pd.concat([short._replicates, long._replicates], ignore_index=True)
    spec = {"name": "b", "grid": {"gamma": [0.1, 0.5], "eta": [0.1, 1.0], "epochs": [4, 12]}}
    out = compared(a=grid(epochs=40), b=FakeReader(crossed, spec=spec))
    assert out.arms.groupby("row")["epochs"].nunique().max() == 1
    assert out.differences.empty
    assert out.warnings == ("epochs differs: a 40; b 4, 12",)


def test_a_page_that_was_not_made_here_stays(tmp_path, folders, capsys):
    (tmp_path / "report.html").write_text("mine")
    assert main(["report", str(next(iter(folders.values()))), "--out", str(tmp_path)]) == 2
    assert "report.html is there and is no report of a study" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "mine"
