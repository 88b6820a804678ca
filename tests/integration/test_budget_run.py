"""A real run that its budget stops loses no epoch, says so, and goes on with more."""

import json

import pytest
from processes import study

from study.reader import open_study
from trainables.recipe import Recipe
from trainables.replicate import Replicate

#: More epochs than any of these runs can train: each ends by its budget and by nothing else.
RECIPE = {"dataset": "synthetic", "model": "mlp", "batch_size": 8, "epochs": 20_000, "lr": 0.05, "optimiser": "sam"}
STUDY = {
    "name": "bound",
    "question": "Does a budget change what is trained?",
    "recipe": RECIPE,
    "grid": {"gamma": [0.05, 0.5]},
    "resources": {"cpu": 1, "gpu": 0},
    "price": "3600 EUR",
    # The only checkpoints are those that workers write when they are told to end.
    "checkpoints": {"every": 100_000},
}


def test_a_run_of_no_time_is_stopped_at_once(tmp_path):
    file = tmp_path / "bound.yaml"
    file.write_text(json.dumps({**STUDY, "budget": {"wall": "0.5 s"}}))
    done = study("run", file, "--storage", tmp_path, "--cpus", 1, "--no-report")
    assert done.returncode == 3, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("study: stopped by its budget (budget.wall: ")


def kept(folder):
    """The epochs of the newest checkpoints, by trial."""
    trials = sorted(folder.glob("trials/*"))
    return {t.name: max((int(p.stem) for p in t.glob("checkpoints/*.pt")), default=0) for t in trials}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Stopped by its budget, looked at, asked again, given more, and stopped by that."""
    path = tmp_path_factory.mktemp("bound")
    file, folder = path / "bound.yaml", path / "bound"
    file.write_text(json.dumps(STUDY))
    command = ("run", file, "--storage", path, "--cpus", 2, "--no-report")
    # What workers take to start depends on the machine; the budget leaves seconds of training beyond that.
    trial = study("run", file, "--storage", path / "trial", "--cpus", 2, "--no-report", "--set", "epochs=1")
    assert trial.returncode == 0, trial.stderr
    (run,) = open_study(str(path / "trial" / "bound")).runs()
    budget = round(2 * run["usage"]["cpu"] + 6, 1)
    found = {"folder": folder, "budget": budget, "stopped": study(*command, "--set", f"budget.cost={budget}")}
    found |= {"status": study("status", folder, "--json"), "said": study("status", folder), "kept": kept(folder)}
    found |= {"before": open_study(str(folder)).replicates(), "runs": open_study(str(folder)).runs()}
    found["refused"] = study(*command, "--set", f"budget.cost={budget}")
    found["runs_then"] = open_study(str(folder)).runs()
    spent = json.loads(found["status"].stdout)["balance"]["cost"]
    found["more"] = study(*command, "--set", f"budget.cost={spent + budget}")
    return found


@pytest.mark.long
def test_it_is_stopped_with_its_own_exit_code_and_one_clear_line(runs):
    stopped = runs["stopped"]
    assert stopped.returncode == 3, stopped.stdout + stopped.stderr
    (line,) = stopped.stderr.splitlines()
    assert line.startswith("study: stopped by its budget (budget.cost: ")
    assert "--set budget.cost=" in line
    (run,) = runs["runs"]
    assert run["interrupted"]
    assert run["reason"].startswith("stopped by its budget (budget.cost")


@pytest.mark.long
def test_status_shows_what_is_used_and_left(runs):
    balance = json.loads(runs["status"].stdout)["balance"]
    # A second of a CPU costs one: two trials go over the budget by what they take to end.
    assert runs["budget"] <= balance["cost"] < runs["budget"] + 30
    assert balance["cpu_hours"] * 3600 == pytest.approx(balance["cost"])
    assert balance["left"] == {"cost": 0.0}
    assert "stopped by its budget" in runs["said"].stdout


@pytest.mark.long
def test_while_nothing_is_left_no_run_begins(runs):
    assert runs["refused"].returncode == 3
    assert "stopped by its budget" in runs["refused"].stderr
    assert runs["runs_then"] == runs["runs"]


@pytest.mark.long
def test_running_trials_keep_every_epoch_that_they_have(runs):
    assert set(runs["before"]["status"]) == {"running"}
    for trial, epoch in zip(runs["before"]["trial"], runs["before"]["epoch"], strict=True):
        # Those on record, and those that it reported to nobody while it ended.
        assert 1 <= epoch <= runs["kept"][trial]


@pytest.mark.long
def test_with_more_it_goes_on_and_trains_what_a_plain_loop_trains(runs):
    assert runs["more"].returncode == 3, runs["more"].stdout + runs["more"].stderr
    now = kept(runs["folder"])
    assert all(now[trial] > epoch for trial, epoch in runs["kept"].items())
    history = open_study(str(runs["folder"])).history()
    trial, before = min(runs["kept"].items(), key=lambda item: item[1])
    rows = history[history["trial"] == trial].sort_values("epoch")
    assert list(rows["epoch"]) == list(range(1, len(rows) + 1))
    assert len(rows) >= before
    frame = runs["before"].set_index("trial")
    replicate = Replicate(Recipe.of({**RECIPE, "gamma": float(frame.loc[trial, "gamma"])}), 0)
    # Some way beyond where it was stopped.
    for _, row in rows.head(before + 10).iterrows():
        assert replicate.train_epoch()["train_loss"] == row["train_loss"]
