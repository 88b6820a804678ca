"""Measures on real Ray: taken at the end or later from a checkpoint they say the same, and nothing is trained twice."""

import pandas as pd
import pytest
from processes import study

from study.reader import open_study
from study.store import StudyFolder

STUDY = """\
name: measured
question: How robust?
recipe: {dataset: synthetic, model: mlp, batch_size: 32, epochs: 3}
arms:
  sam: {optimiser: sam}
  sgd: {optimiser: sgd}
seeds: [0, 1]
"""
MEASURES = """\
measures:
  perturbation: {alpha: [0.5, 2], random_draws: 1}
  sharpness: {gamma: [0.05]}
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same study measured at the end of its trials, and measured in a later run."""
    place = tmp_path_factory.mktemp("measured")
    plain, asking = place / "plain.yaml", place / "asking.yaml"
    plain.write_text(STUDY)
    asking.write_text(STUDY + MEASURES)
    outputs = [
        study("run", asking, "--storage", place / "at_the_end"),
        study("run", plain, "--storage", place / "later", "--no-report"),
        study("run", asking, "--storage", place / "later"),
    ]
    for done in outputs:
        assert done.returncode == 0, done.stderr
    return place, asking, outputs


def test_a_later_run_measures_what_is_trained_and_trains_nothing(folders):
    _, _, (_, _, later) = folders
    assert "0 trials to train" in later.stdout
    assert "2 trained trials to measure" in later.stdout
    assert "2 measured; 0 s of training" in later.stdout


@pytest.mark.parametrize("name", ["perturbation", "sharpness"])
def test_measured_later_is_measured_the_same(folders, name):
    place = folders[0]
    tables = [open_study(f"{place}/{way}/measured").measures(name) for way in ("at_the_end", "later")]
    first, second = (t.sort_values(list(t.columns)).reset_index(drop=True) for t in tables)
    assert len(first) == {"perturbation": 4 * 2 * 3, "sharpness": 4}[name]
    pd.testing.assert_frame_equal(first, second)


def test_measuring_later_leaves_who_trained_what_as_it_was(folders):
    place = folders[0]
    reader = open_study(f"{place}/later/measured")
    trained = min(reader.runs(), key=lambda run: run["started"])["run"]
    assert set(reader.replicates()["run"]) == {trained}


def test_accuracy_at_rest_is_the_test_accuracy(folders):
    reader = open_study(f"{folders[0]}/at_the_end/measured")
    rest = reader.measures("perturbation").query("alpha == 0 and direction == 'adversarial'")
    both = rest.merge(reader.replicates()[["cell", "seed", "test_accuracy"]], on=["cell", "seed"])
    assert (both["test_accuracy_x"] == both["test_accuracy_y"]).all()
    assert len(both) == 4


def test_a_third_run_has_nothing_to_do(folders):
    place, asking, _ = folders
    assert "nothing is missing" in study("run", asking, "--storage", place / "later", "--no-report").stdout


def test_trials_without_a_checkpoint_are_said_to_be_out_of_reach(folders):
    place, asking, _ = folders
    folder = StudyFolder(f"{place}/later/measured")
    for trial in folder.names("trials"):
        folder.delete_checkpoints(trial)
    plan = study("plan", asking, "--storage", place / "later", "--set", "measures.perturbation.random_draws=2")
    assert "2 complete trials kept no checkpoint" in plan.stdout
    assert "nothing is missing" in plan.stdout


def test_the_weights_of_a_replicate_are_what_another_study_starts_from(folders, tmp_path):
    place = folders[0]
    out = tmp_path / "weights.safetensors"
    exported = study("export", f"{place}/at_the_end/measured", "--out", out, "--seed", 1)
    assert exported.returncode == 0, exported.stderr
    file = tmp_path / "again.yaml"
    file.write_text(
        "name: again\nquestion: q\n"
        f"recipe: {{dataset: synthetic, model: mlp, epochs: 0, optimiser: sgd, pretrained: {out}}}\n"
    )
    done = study("run", file, "--storage", tmp_path, "--no-report")
    assert done.returncode == 0, done.stderr
    row = open_study(str(tmp_path / "again")).replicates().iloc[0]
    assert (row["status"], row["epoch"]) == ("complete", 0)
    there = open_study(f"{place}/at_the_end/measured").replicates()
    assert row["test_accuracy"] in set(there[there["seed"] == 1]["test_accuracy"])
    assert f"test {100 * row['test_accuracy']:.1f} %" in exported.stdout
