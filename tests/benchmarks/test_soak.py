"""The soak counts what it says: epochs begun, cells unlike, rows twice, and growth by the line through the memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from recorded import ended, trained

from benchmarks import soak
from benchmarks.processes import ROOT
from study.plan import make_plan
from study.reader import open_study
from study.spec import Study
from study.store import StudyFolder
from trainables.replicate import Replicate

SCALE = soak.Scale(trials=3, seeds=2, epochs=2, every=2, pause=(1.0, 2.0), drivers=(), looped=2)


@pytest.fixture(scope="module")
def rows():
    """Ends and epochs of the little study, as a plain loop trains them: {gamma: (ends, epochs)}."""
    torch.set_num_threads(1)  # the last bits depend on it
    study = Study.of({"storage": "nowhere", **_spec()})
    found = {}
    for _, recipe in study.points:
        ends, epochs = [], []
        for seed in study.seeds:
            replicate = Replicate(recipe, seed)
            history = [{"cell": None, **replicate.train_epoch()} for _ in range(recipe.epochs)]
            epochs += history
            ends.append({**history[-1], **replicate.final(), "status": "complete", "scheduler": None, "run": "r"})
        found[recipe.gamma] = ends, epochs
    return found


def _spec():
    with TemporaryDirectory() as scratch:
        return json.loads(Path(soak._study_file(Path(scratch), SCALE)).read_text())


def recorded(tmp_path, rows, change=lambda gamma, ends, epochs: None):
    """The reader of a folder with these rows, after `change` has had its way with a copy of them."""
    study = Study.of({**_spec(), "storage": str(tmp_path)})
    folder = StudyFolder(str(tmp_path / "soak"))
    plan = make_plan(study, folder)
    folder.save_study(study.model_dump(mode="json"), "", plan.rows())
    for trial in plan.todo:
        ends, epochs = ([dict(row, cell=trial.cell.id) for row in part] for part in rows[trial.cell.recipe.gamma])
        change(trial.cell.recipe.gamma, ends, epochs)
        trained(folder, trial.id, epochs)
        ended(folder, trial.id, ends)
    return open_study(folder.uri)


def begun(*twice):
    every = [(str(g), str(s), str(e)) for g in (0.0005, 0.001, 0.0015) for s in (0, 1) for e in (1, 2)]
    return soak.Counter([*every, *twice])


def counts(reader, ran=None, log=None):
    return soak._counts(SCALE, ran or soak.Run(), reader, {"calm": begun(), "disturbed": log or begun()})


def test_a_whole_study_has_lost_and_doubled_nothing(tmp_path, rows):
    found = counts(recorded(tmp_path, rows))
    assert found["replicate epochs"] == 12
    for what in ("lost", "duplicated", "more than once", "again", "twice, calm", "twice, disturbed"):
        assert [value for name, value in found.items() if what in name], what
        assert not any(value for name, value in found.items() if what in name), what


def test_what_is_missing_or_recorded_again_is_counted(tmp_path, rows):
    def change(gamma, ends, epochs):
        if gamma == 0.001:
            ends.pop()
            epochs.pop(0)
            epochs.append(dict(epochs[-1]))
            ends.append(dict(ends[-1]))

    found = counts(recorded(tmp_path, rows, change))
    assert found["replicates lost"] == 1
    assert found["ends recorded again"] == 1
    assert found["rows of history lost"] == 1
    assert found["rows of history recorded again"] == 1
    assert found["rows of history duplicated"] == 0


def test_epochs_begun_twice_are_held_against_the_bound(tmp_path, rows):
    ran = soak.Run(workers_killed=2, drivers_killed=1)
    found = counts(recorded(tmp_path, rows), ran, begun(("0.001", "0", "1"), ("0.001", "0", "1"), ("0.001", "1", "1")))
    assert found["replicate epochs trained twice, disturbed"] == 3
    # Two epochs of two seeds for each killed worker, and for each of the driver's.
    assert found["replicate epochs trained twice, at most"] == 2 * 2 * (2 + soak.usable_cpus())


@pytest.mark.parametrize("what", ["an end", "an epoch", "a missing epoch", "when and where"])
def test_cells_that_differ_in_what_was_trained_are_counted(tmp_path, rows, what):
    def change(gamma, ends, epochs):
        if gamma != 0.001:
            return
        if what == "an end":
            ends[0]["test_loss"] += 1e-9
        elif what == "an epoch":
            epochs[1]["train_loss"] += 1e-9
        elif what == "a missing epoch":
            epochs.pop()
        else:
            ends[0] |= {"train_seconds": 99.0, "run": "another", "device": "CPU"}
            epochs[0]["train_seconds"] = 99.0

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, changed = recorded(tmp_path / "a", rows), recorded(tmp_path / "b", rows, change)
    assert soak._unlike(whole, whole) == 0
    assert soak._unlike(whole, changed) == soak._unlike(changed, whole) == (0 if what == "when and where" else 1)


def test_a_plain_loop_tells_a_cell_that_was_trained_otherwise(tmp_path, rows):
    def change(gamma, ends, epochs):
        if gamma == 0.0005:
            epochs[0]["validation_loss"] += 1e-9

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert soak._unlike_a_loop(recorded(tmp_path / "a", rows), SCALE) == 0
    assert soak._unlike_a_loop(recorded(tmp_path / "b", rows, change), SCALE) == 1


def test_growth_is_the_slope_of_the_line_through_memory_over_trials():
    scale = soak.Scale(100, 1, 1, 1, (1, 2), (), 1)
    points = [(n, 500 * soak.MIB + 2048 * n) for n in range(20, 80)]
    assert soak._slope([*points, (80, 0)], scale) == pytest.approx(2.0)  # the last one is of a dying process
    assert soak._slope(points[:5], scale) is None
    stepped = [(n, size + (30 * soak.MIB if n > 60 else 0)) for n, size in points]
    assert soak._slope(stepped, scale) == pytest.approx(2.0, rel=0.1), "one step is no growth"


def test_each_life_of_a_driver_and_each_worker_has_its_own_growth():
    scale = soak.Scale(100, 1, 1, 1, (1, 2), (), 1)

    def sample(n):
        life = int(n > 60)
        worker = {7 + life: 400 * soak.MIB + (1024 if life else 0) * n}
        return soak.Sample(float(n), life, n, (600 - 100 * life) * soak.MIB + 4096 * n, 40, worker)

    ran = soak.Run(drivers_killed=1, samples=[sample(n) for n in range(101)])
    found = soak._memory("x", ran, scale)
    assert found["x: driver's growth a trial"].n == 2
    assert found["x: driver's growth a trial"].median == pytest.approx(4.0)
    assert found["x: driver's largest step in a second"].max == pytest.approx(4096 / soak.MIB)
    workers = found["x: a worker's growth a trial"]
    assert (workers.min, workers.max) == (pytest.approx(0.0), pytest.approx(1.0))
    assert found["x: driver's open files"].max == 40
    series = soak._series(ran)
    assert {len(column) for column in series.values()} == {101}
    assert series["driver_number"][-1] == 1


def test_every_epoch_that_a_process_begins_is_a_line_and_another_sitecustomize_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.also = 'here'\n")
    script = (
        "import sys; from trainables.recipe import Recipe; from trainables.replicate import Replicate; "
        "r = Replicate(Recipe.of({'dataset': 'synthetic', 'model': 'mlp', 'optimiser': 'sam', 'gamma': 0.0005, "
        "'epochs': 2}), seed=3); r.train_epoch(); r.train_epoch(); print(sys.also)"
    )
    path = os.pathsep.join([str(soak.COUNTED), str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path, "COUNTED_EPOCHS": str(tmp_path / "epochs")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "here\n", done.stderr
    assert soak._begun(tmp_path / "epochs") == {("0.0005", "3", "1"): 1, ("0.0005", "3", "2"): 1}
