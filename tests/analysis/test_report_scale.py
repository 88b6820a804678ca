"""What a report of a large study costs. Counted, not timed, but for the one of ten thousand cells."""

import cProfile
import pstats

import numpy as np
import pandas as pd
import pytest
from golden_study import large
from matplotlib.collections import LineCollection

from analysis import figures as draw
from analysis import tables
from analysis.report import write_report
from analysis.tables import cells, curves, write_frames
from benchmarks.processes import study
from study.reader import StudyReader


def calls(function, *arguments):
    """Python calls that it takes."""
    profile = cProfile.Profile()
    profile.enable()
    function(*arguments)
    profile.disable()
    return pstats.Stats(profile).total_calls


def test_a_cell_more_costs_the_same_however_many_there_are(tmp_path):
    """Both sizes lie beyond what is drawn and written cell by cell; what is paid once cancels in the difference."""
    taken = {}
    for side in (25, 45):
        reader = StudyReader(large(tmp_path / str(side), side, seeds=2, epochs=3))
        if not taken:
            write_report(reader, tmp_path / "warm")  # imports and caches
        taken[side] = calls(write_report, reader, tmp_path / f"report-{side}")
    # A loop over the other cells would add 2,025 calls to each, a few at each of ten thousand minutes.
    assert (taken[45] - taken[25]) / (45**2 - 25**2) < 1_800, taken


def test_reading_a_study_that_has_just_begun_takes_no_call_a_replicate_more(tmp_path):
    taken = {}
    for side in (20, 40):
        folder = large(tmp_path / str(side), side, seeds=2, epochs=2, missing=0.0)
        folder.sweep("records")
        for name in folder.names("records", "20261125-070000-golden"):
            if name.startswith("ends"):
                folder.delete("records", "20261125-070000-golden", name)
        reader = StudyReader(folder)
        frame = reader.replicates()
        assert (frame["status"] == "running").all()
        assert (frame["epoch"] == 2).all()
        taken[side] = calls(reader.replicates)
    assert taken[40] < 4.2 * taken[20], taken
    assert taken[40] < 3_200 * 20, taken


def test_a_crowd_of_curves_is_drawn_as_one_collection_an_arm_with_their_values(tmp_path):
    reader = StudyReader(large(tmp_path / "n", 24, seeds=2, epochs=3))
    replicates, history = reader.replicates(), reader.history()
    # Some lines end early, one has fewer seeds at its end, one has a single epoch.
    names = list(dict.fromkeys(history["cell"]))
    stopped, fewer, single = names[3], names[5], names[7]
    replicates.loc[replicates["cell"] == stopped, ["status", "epoch"]] = "stopped", 2
    history = history[~((history["cell"] == stopped) & (history["epoch"] > 2))]
    history = history[~((history["cell"] == fewer) & (history["epoch"] > 2) & (history["seed"] == 1))]
    history = history[~((history["cell"] == single) & (history["epoch"] > 1))]
    table = cells(replicates)
    lines = curves(history, table)
    ax = draw.learning_curves(lines)
    crowd = {c.get_gid(): c for c in ax.collections if c.get_gid()}
    assert set(crowd) == {"crowd:fsam", "crowd:fewer", "ends:stopped"}
    assert isinstance(crowd["crowd:fsam"], LineCollection)
    leaders = set(lines.loc[lines["leader"], "cell"])
    order = sorted(set(lines["cell"]) - leaders)
    drawn = crowd["crowd:fsam"].get_segments()
    assert len(drawn) == len(order) > 500
    for cell, points in zip(order, drawn, strict=True):
        own = lines[lines["cell"] == cell].sort_values("epoch")
        expected = np.where(own["n"] == own["n_started"], 100 * own["mean"], np.nan)
        np.testing.assert_allclose(points[:, 1][np.isfinite(points[:, 1])], expected[np.isfinite(expected)])
    (dotted,) = crowd["crowd:fewer"].get_segments()
    assert len(dotted) == 3
    (end,) = crowd["ends:stopped"].get_offsets()
    own = lines[lines["cell"] == stopped].sort_values("epoch").iloc[-1]
    np.testing.assert_allclose(end, [2, 100 * own["mean"]])
    assert {line.get_gid() for line in ax.lines if str(line.get_gid()).startswith("curve:")} == {
        f"curve:{cell}" for cell in leaders
    }
    # Everything is within the axes.
    low, high = ax.get_ylim()
    assert low <= 100 * lines["mean"].min()
    assert high >= 100 * lines["mean"].max()


def test_the_page_of_a_large_study_stays_small(tmp_path):
    report = write_report(StudyReader(large(tmp_path / "n", 50, seeds=1, epochs=2)), tmp_path / "out")
    assert report.html.stat().st_size < 3_000_000
    assert sum(path.stat().st_size for name in report.figures.values() for path in name) < 3_000_000
    assert len(pd.read_parquet(report.tables["cells.parquet"])) == 2_500
    assert "The first 400 of 2500 cells" in report.html.read_text()


def test_a_long_table_has_the_same_values_as_csv_however_it_is_written(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"cell": [f'c{i}, "q"' for i in range(50)], "epoch": range(50), "flag": [True, False] * 25})
    frame["value"] = random.random(50)
    frame.loc[3, "value"] = np.nan
    frame.loc[4, "value"] = np.inf
    frame["note"] = [None if i % 3 else "stopped" for i in range(50)]
    (short,) = (write_frames({"t": frame}, tmp_path / "a", ["csv"])).values()
    monkeypatch.setattr(tables, "_MANY_ROWS", 10)
    (long,) = (write_frames({"t": frame}, tmp_path / "b", ["csv"])).values()
    assert short.read_bytes() != long.read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(short), pd.read_csv(long))
    np.testing.assert_array_equal(pd.read_csv(long)["value"], frame["value"])


@pytest.mark.long
def test_ten_thousand_cells_report_in_under_a_minute_and_two_gib(tmp_path):
    folder = large(tmp_path / "n", 100, seeds=3, epochs=30)
    ended = study("report", folder.uri)
    assert "cells: 10000" in ended.printed
    assert ended.seconds < 60
    assert ended.peak < 2 * 2**30
