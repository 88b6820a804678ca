"""Searches on real Ray: killed or not, every cell is sampled once, trained once and told to Optuna as what it was."""

import optuna
import pytest
from optuna.trial import TrialState
from processes import descendants, end, start_study, study, trial_workers, wait_for

from study.reader import open_study
from study.store import StudyFolder

STUDY = """\
name: hunt
question: Which gamma?
recipe: {dataset: synthetic, model: mlp, batch_size: 32, epochs: 24}
arms:
  fsam: {optimiser: fsam}
  sgd: {optimiser: sgd}
search:
  space:
    gamma: {low: 0.01, high: 1.0, log: true}
    eta: {low: 0.1, high: 1e+4, log: true}
    lr: {low: 0.01, high: 0.2, log: true}
  cells: 5
  startup: 3
  enqueue: [{gamma: 0.1, eta: 1.0, lr: 0.1}]
seeds: [0, 1]
scheduler: {name: asha, grace_period: 4, reduction_factor: 2}
checkpoints: {every: 1}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("hunt") / "hunt.yaml"
    file.write_text(STUDY)
    return file


def told(folder, arm):
    return optuna.load_study(study_name=f"hunt.{arm}", storage=f"sqlite:///{folder}/search.db").trials


@pytest.fixture(scope="module")
def killed(file, tmp_path_factory):
    """A search whose driver was killed with SIGKILL while it trained, and which the same command ended."""
    storage = tmp_path_factory.mktemp("killed")
    folder = storage / "hunt"
    process = start_study("run", file, "--storage", storage, "--cpus", 2, "--no-report")
    try:
        # Some cells have ended, and others are in training.
        wait_for(lambda: len(StudyFolder(str(folder)).rows("ends", ["seed"])) >= 4)
        wait_for(lambda: trial_workers(process.pid))
    finally:
        family = descendants(process.pid)
        end(process, family)
    chosen = {row["cell"] for row in StudyFolder(str(folder)).chosen()}
    done = study("run", file, "--storage", storage, "--cpus", 2)
    assert done.returncode == 0, done.stderr
    return folder, chosen, done


def test_what_a_killed_driver_had_chosen_is_trained_and_nothing_is_sampled_instead(killed):
    folder, chosen, _ = killed
    frame = open_study(str(folder)).replicates()
    assert chosen <= set(frame["cell"])
    assert frame.groupby("arm")["cell"].nunique().to_dict() == {"fsam": 5, "sgd": 5}
    assert set(frame["status"]) <= {"complete", "stopped"}
    assert len(frame) == 20
    assert not frame.duplicated(["cell", "seed"]).any()


def test_optuna_is_told_what_the_folder_says(killed):
    folder = killed[0]
    frame = open_study(str(folder)).replicates()
    for arm in ("fsam", "sgd"):
        by_cell = {t.user_attrs["cell"]: t for t in told(folder, arm)}
        assert len(by_cell) == 5
        for cell, rows in frame[frame["arm"] == arm].groupby("cell"):
            trial = by_cell[cell]
            if set(rows["status"]) == {"complete"}:
                assert trial.state == TrialState.COMPLETE
                assert trial.value == pytest.approx(rows["validation_accuracy"].mean(), abs=1e-12)
            else:
                assert trial.state == TrialState.PRUNED, "a stopped cell is not a complete one"
                assert trial.user_attrs["epoch"] == rows["epoch"].max()
            for key, value in trial.params.items():
                assert set(rows[key]) == {value}


def test_the_papers_setting_is_tried_first(killed):
    first = told(killed[0], "fsam")[0]
    assert first.params == {"gamma": 0.1, "eta": 1.0, "lr": 0.1}


def test_an_arm_searches_only_what_its_optimiser_reads(killed):
    assert all(set(t.params) == {"lr"} for t in told(killed[0], "sgd"))


def test_a_finished_search_trains_nothing_more(file, killed):
    folder = killed[0]
    before = StudyFolder(str(folder)).names("trials")
    again = study("run", file, "--storage", folder.parent, "--no-report")
    assert "nothing is missing" in again.stdout
    assert StudyFolder(str(folder)).names("trials") == before


def test_more_cells_are_added_to_the_ones_that_are_there(file, killed):
    folder = killed[0]
    before = {arm: [t.params for t in told(folder, arm)] for arm in ("fsam", "sgd")}
    plan = study("plan", file, "--storage", folder.parent, "--set", "search.cells=6")
    assert "fsam: 6 cells by tpe over gamma, eta, lr, 1 still to be chosen" in plan.stdout
    # The database is a record beside the folder: lost, it is made again.
    (folder / "search.db").unlink()
    done = study("run", file, "--storage", folder.parent, "--set", "search.cells=6", "--no-report")
    assert done.returncode == 0, done.stderr
    frame = open_study(str(folder)).replicates()
    assert frame.groupby("arm")["cell"].nunique().to_dict() == {"fsam": 6, "sgd": 6}
    for arm, params in before.items():
        now = [t.params for t in told(folder, arm)]
        assert all(p in now for p in params)
