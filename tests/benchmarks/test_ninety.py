"""The benchmark of ninety replicates trains the same on both sides."""

import json

import pytest

from benchmarks import ninety
from benchmarks.__main__ import main
from benchmarks.processes import fresh
from trainables.recipe import Recipe

SMALLEST = ninety.Scale((0.05,), (0.1, 1.0), (0, 1), epochs=4, train_size=400, rounds=1)


def test_the_full_study_has_ninety_replicates():
    assert ninety.FULL.replicates == 90


def test_the_peer_trains_every_replicate_of_the_grid_and_learns(tmp_path, monkeypatch):
    # What this project's runs leave in the environment is not the peer's.
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    recipe = {**ninety.RECIPE, "epochs": 5, "device": "cpu"}
    given = {"recipe": recipe, "gamma": [0.05], "eta": [0.1, 1.0], "seeds": [3], "cpus": 2, "storage": str(tmp_path)}
    found, ended = fresh("benchmarks.tuned_loop", "run", **given)
    assert found["epochs"] == [5, 5]
    assert min(found["test_accuracy"]) > 0.9
    assert 0 < sum(found["training"]) < 2 * found["fit"] < 2 * ended.seconds
    results = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(tmp_path.rglob("result.json"))
    ]
    assert [len(reports) for reports in results] == [5, 5]
    assert sorted(reports[-1]["config"]["eta"] for reports in results) == [0.1, 1.0]
    for reports in results:
        assert reports[-1]["train_loss"] < reports[0]["train_loss"]


def test_sides_that_did_not_train_the_same_are_refused():
    scale, accuracies = SMALLEST, [0.9] * 4
    peer = {"epochs": [4] * 4, "test_accuracy": [0.9, 0.92, 0.88, 0.9]}
    ninety._check_same(scale, [4] * 4, accuracies, peer)
    for epochs, other in (([4, 4, 4, 3], peer), ([4] * 4, {**peer, "epochs": [4] * 3})):
        with pytest.raises(RuntimeError, match="not every replicate trained 4 epochs"):
            ninety._check_same(scale, epochs, accuracies, other)
    for bad in (0.5, float("nan")):
        with pytest.raises(RuntimeError, match="do not learn alike"):
            ninety._check_same(scale, [4] * 4, accuracies, {**peer, "test_accuracy": [bad] * 4})


def test_the_study_has_the_cells_that_the_peer_is_given(tmp_path):
    from study.plan import make_plan
    from study.spec import Study
    from study.store import StudyFolder

    recipe = {**ninety.RECIPE, "epochs": 4, "train_size": 400, "device": "cpu"}
    plan = make_plan(
        Study.load(ninety._study_file(tmp_path, SMALLEST, recipe), ()), StudyFolder(str(tmp_path / "none"))
    )
    ours = {(trial.cell.recipe.gamma, trial.cell.recipe.eta, seed) for trial in plan.todo for seed in trial.seeds}
    assert ours == {(gamma, eta, seed) for gamma in SMALLEST.gamma for eta in SMALLEST.eta for seed in SMALLEST.seeds}
    assert plan.todo[0].cell.recipe == Recipe.of({**recipe, "gamma": 0.05, "eta": plan.todo[0].cell.recipe.eta})


@pytest.mark.long
def test_a_record_has_both_sides_and_their_goals(tmp_path, monkeypatch):
    monkeypatch.setattr(ninety, "QUICK", SMALLEST)
    assert main(["--quick", "--record", "--folder", str(tmp_path), "ninety"]) == 0
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert set(record["settings"]["goals"]) <= set(record["ratios"])
    assert record["ratios"][ninety.PACKED]["median"] > 1
    assert record["counts"]["ours: epochs"] == record["counts"]["plain Ray Tune: epochs"] == 16
    assert record["counts"]["ours: trials"] == 2
    assert record["counts"]["plain Ray Tune: trials"] == 4
