"""The benchmark of bookkeeping drives the product's own code with results like the real ones, and the peer fairly."""

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import bookkeeping, made_up, plain_tune, resume, without_ray
from benchmarks.__main__ import main
from benchmarks.made_up import AVERAGED, MadeUp, grid
from benchmarks.processes import fresh, memory, watched
from benchmarks.stopwatch import Stopwatch
from study.reader import open_study
from trainables.trial import Trial

MIB = 2**20


@pytest.fixture(scope="module")
def template():
    return made_up.template()


def driven(tmp_path, template, leave, cells=12, epochs=6, checkpoints=True):
    file = made_up.study_file(tmp_path, "large", cells, epochs, asha=True)
    given = {"file": file, "storage": str(tmp_path), "template": template, "at_once": 4, "leave": leave}
    return without_ray.drive(**given, checkpoints=checkpoints, called=0.0)


def test_a_made_up_report_has_the_keys_and_kinds_of_a_trials_own(template):
    class Nowhere:
        def load_checkpoint(self, trial):
            return None, []

        def save_checkpoint(self, *arguments):
            pass

        def measured(self, trial):
            return set()

    recipe = {**made_up.RECIPE, "gamma": 0.1, "eta": 0.1, "epochs": 2, "device": "cpu"}

    class Bound(Trial):
        def setup(self, config):
            jobs = {"t": {"cell": "c", "recipe": recipe, "seeds": [0], "until": None}}
            super().setup(config, keeper=Nowhere(), jobs=jobs, threads=1, checkpoint_every=1)

    def shape(value):
        if isinstance(value, dict):
            return {key: shape(of) for key, of in value.items()}
        return [shape(of) for of in value] if isinstance(value, list) else type(value)

    trial, results = Bound(config={"trial": "t"}), MadeUp(template)
    for last in (False, True):
        real = trial.step()
        made = results.report("c", results.row(0, real["epoch"]), last=last)
        assert shape(made) == {key: shape(value) for key, value in real.items() if key in made}
        # What Ray itself adds to a report is not ours.
        assert set(real) - set(made) == set()
        assert set(AVERAGED) <= set(made)


def test_made_up_rows_do_not_repeat(template):
    results = MadeUp(template)
    first, second = results.row(0, 1), results.row(0, 1)
    assert first["train_loss"] != second["train_loss"]
    assert MadeUp(template).row(0, 1) == first


@pytest.mark.parametrize(("cells", "rows"), [(10_100, 100), (7, 1), (24, 4)])
def test_a_grid_has_as_many_cells_as_asked(cells, rows):
    axes = grid(cells)
    assert [len(axes["gamma"]), len(axes["eta"])] == [rows, cells // rows]
    assert all(len(set(values)) == len(values) for values in axes.values())


def test_the_product_records_everything_that_it_is_handed_and_goes_on_where_it_was_left(
    tmp_path, template, monkeypatch
):
    monkeypatch.setattr(without_ray, "BAD_EVERY", 5)
    first = driven(tmp_path, template, leave=2)
    reader = open_study(str(tmp_path / "large"))
    ends = reader.replicates()["status"].value_counts().to_dict()
    # Trials 5 and 10 have bad values and are stopped at the first rung.
    assert ends == {"complete": 8, "stopped": 2, "missing": 2}
    assert first["results"] == len(reader.history()) == 8 * 6 + 2
    assert len(reader.decisions()) == 8 * 2 + 2  # rungs at epochs 1 and 4
    assert len(reader.folder.trial_files()) == 10  # a checkpoint each
    assert first["cpu"] > 0
    assert 0 < first["slowest"] < first["handling"]
    second = driven(tmp_path, template, leave=0, checkpoints=False)
    assert second["results"] == 2 * 6
    assert (reader.replicates()["status"] != "missing").all()
    assert [run["interrupted"] for run in reader.runs()] == [True, False]


def test_a_run_with_nothing_begun_leaves_the_study_as_it_is_and_says_when_ray_would_have_been_asked(tmp_path, template):
    driven(tmp_path, template, leave=1)
    found = driven(tmp_path, template, leave=1)
    assert found["results"] == 0
    assert found["reached"] > 0
    again = driven(tmp_path, template, leave=0)
    assert again["results"] == 6
    assert driven(tmp_path, template, leave=0)["reached"] is None


def test_what_a_report_reads_is_counted(tmp_path, template):
    made = driven(tmp_path, template, leave=1)
    read = bookkeeping.read_history(str(tmp_path / "large"))
    assert read["rows"] == made["results"]
    assert read["seconds"] > 0


def test_the_peers_loggers_write_each_result_of_each_trial(tmp_path, template):
    logged = plain_tune.log_alone(trials=3, epochs=4, at_once=2, storage=str(tmp_path), template=template)
    assert logged["results"] == 12
    assert logged["seconds"] > 0
    results = sorted(tmp_path.rglob("result.json"))
    assert [len(path.read_text().splitlines()) for path in results] == [4, 4, 4]
    assert [len(path.read_text().splitlines()) for path in tmp_path.rglob("progress.csv")] == [5, 5, 5]
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 3
    (row,) = {frozenset(json.loads(line)) for path in results for line in path.read_text().splitlines()}
    # Every column that ours has, and what Tune adds.
    assert set(template[0]) < row


def test_a_process_is_as_large_as_itself_and_not_as_whoever_starts_it():
    assert memory(os.getpid()) > 200 * MIB  # torch
    small = watched([sys.executable, "-c", "import time; time.sleep(0.3)"])
    large = watched([sys.executable, "-c", f"import time; x = bytearray({200 * MIB}); time.sleep(0.3)"])
    assert small.code == 0
    assert small.peak < 100 * MIB
    assert 200 * MIB < large.peak < 300 * MIB
    assert small.seconds > 0.3
    assert memory(2**22 + 1) == 0  # above the largest process id


def test_a_function_in_a_fresh_process_answers_or_its_error_is_told(tmp_path):
    value, ended = fresh("benchmarks.made_up", "grid", cells=4)
    assert value == grid(4)
    assert ended.code == 0
    with pytest.raises(RuntimeError, match=r"benchmarks.made_up.grid ended with 1: (?s:.*)unexpected keyword"):
        fresh("benchmarks.made_up", "grid", rows=4)


def test_a_stopwatch_counts_from_the_first_result_to_the_last():
    watch = Stopwatch()
    for _ in range(3):
        watch.result()
    found = watch.read()
    assert found["results"] == 3
    assert 0 <= found["seconds"] < 1


SMALLEST = bookkeeping.Scale(24, 6, 4, trials=2, reports=3, rounds=1)


@pytest.mark.long
def test_what_is_finished_is_found_finished_by_both():
    found = resume.measure(resume.Scale(trials=2, reports=3, at_once=2, rounds=1))
    assert found.counts == {"trials": 2, "rows": 6}
    assert found.ratios["asked again, ours / Tuner.restore and fit"].median > 0


@pytest.mark.long
def test_a_record_has_ours_beside_the_peer_and_what_it_was_measured_on(tmp_path, monkeypatch):
    monkeypatch.setattr(bookkeeping, "QUICK", SMALLEST)
    monkeypatch.setattr(without_ray, "BAD_EVERY", 5)
    assert main(["--quick", "--record", "--folder", str(tmp_path), "bookkeeping"]) == 0
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["settings"]["cells"] == 24
    assert record["counts"]["large: rows of history"] == record["counts"]["large: results"]
    assert record["ratios"]["large: results a second: ours / the goal"]["median"] > 1
    for what in ("plan", "status", "status --why", "resume, to Ray's first trial"):
        assert record["samples"][f"large: {what}"]["median"] > 0
        assert record["samples"][f"large: memory of {what}"]["max"] < 1
    assert {name for name in record["ratios"] if name.startswith("under Ray")}
    assert str(Path.home()) not in path.read_text()
