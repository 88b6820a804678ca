"""Real studies on real Ray: what they store is what a plain loop trains, and no interruption changes it."""

import io
import json
import os
import signal

import pandas as pd
import pytest
import torch
from processes import descendants, end, start_study, study, trial_workers, wait_for

from study.asha import Asha
from study.plan import as_decision, make_plan
from study.reader import open_study
from study.spec import Study
from study.store import StudyFolder
from trainables.recipe import Recipe
from trainables.replicate import Replicate

STUDY = """\
name: tiny
question: Do interruptions matter?
recipe: {dataset: synthetic, model: mlp, batch_size: 32, epochs: EPOCHS, lr: 0.05}
arms:
  fsam: {optimiser: fsam}
  sgd: {optimiser: sgd}
grid: {gamma: [0.05, 0.5], eta: [1, 1e+4]}
seeds: [0, 1]
checkpoints: {every: 1}
"""

#: Columns that tell when and where, and not what.
ELSEWHERE = ["run", "train_seconds", "device", "steps"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


def write(path, epochs, extra=""):
    file = path / "tiny.yaml"
    file.write_text(STUDY.replace("EPOCHS", str(epochs)) + extra)
    return file


def table(uri):
    frame = open_study(uri).replicates().drop(columns=ELSEWHERE)
    return frame.sort_values(["cell", "seed"]).reset_index(drop=True)


def history(uri):
    frame = open_study(uri).history().drop(columns=["train_seconds", "trial"])
    return frame.sort_values(["cell", "seed", "epoch"]).reset_index(drop=True)


def ends(folder):
    return StudyFolder(folder).rows("ends")


EPOCHS = 30


@pytest.fixture(scope="module")
def undisturbed(shared):
    """A study of five cells that nothing disturbs: its command's output and its folder."""
    file = write(shared, EPOCHS)
    done = study("run", file, "--storage", shared / "calm", "--cpus", 2)
    assert done.returncode == 0, done.stderr
    return done, str(shared / "calm" / "tiny")


def test_a_run_ends_with_the_heatmap_and_the_best_cell_with_its_interval(undisturbed):
    done, folder = undisturbed
    assert "5 cells x 2 seeds = 10 replicates" in done.stdout
    assert "5 trials in" in done.stdout
    assert "5 complete" in done.stdout
    assert "best cell" in done.stdout
    assert "(n=2" in done.stdout
    assert f"{folder}/report/heatmap.png" in done.stdout
    assert os.path.getsize(f"{folder}/report/heatmap.png") > 10_000
    assert "Traceback" not in done.stderr
    assert done.stderr == ""


def test_what_is_stored_is_what_a_plain_loop_trains(undisturbed):
    frame = table(undisturbed[1])
    assert set(frame["status"]) == {"complete"}
    row = frame[(frame["arm"] == "fsam") & (frame["gamma"] == 0.5) & (frame["eta"] == 1e4) & (frame["seed"] == 1)].iloc[
        0
    ]
    recipe = Recipe.of(
        {"dataset": "synthetic", "model": "mlp", "batch_size": 32, "epochs": EPOCHS, "lr": 0.05, "optimiser": "fsam",
         "gamma": 0.5, "eta": 1e4}
    )  # fmt: skip
    replicate = Replicate(recipe, 1)
    while replicate.epoch < EPOCHS:
        last = replicate.train_epoch()
    test = replicate.evaluate("test")
    loss, accuracy = test.loss, test.accuracy
    assert (row["test_loss"], row["test_accuracy"]) == (loss, accuracy)
    for key in ("train_loss", "validation_loss", "validation_accuracy", "cosine_to_sam", "gradient_evaluations"):
        assert row[key] == last[key], key


def test_every_epoch_of_every_seed_is_in_the_history_once(undisturbed):
    frame = history(undisturbed[1])
    assert len(frame) == 10 * EPOCHS
    assert not frame.duplicated(["cell", "seed", "epoch"]).any()


def test_the_run_is_on_record(undisturbed):
    (run,) = open_study(undisturbed[1]).runs()
    assert run["trials"] == {"complete": 5}
    assert run["interrupted"] is False
    assert run["data_fingerprints"].keys() == {"synthetic"}
    assert run["versions"]["ray"]
    assert run["machine"]["cpus"]
    assert run["seconds"] > 0


def test_running_it_again_finds_nothing_missing_and_starts_no_ray(undisturbed, shared):
    done = study("run", shared / "tiny.yaml", "--storage", shared / "calm")
    assert done.returncode == 0
    assert "nothing is missing" in done.stdout
    assert len(open_study(undisturbed[1]).runs()) == 1


def test_another_seed_trains_only_that_seed(undisturbed, shared):
    before = table(undisturbed[1])
    done = study("run", shared / "tiny.yaml", "--storage", shared / "calm", "--set", "seeds=[0,1,2]",
                 "--set", "arms={sgd: {optimiser: sgd}}", "--set", "grid={}", "--no-report")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 trial to train" in done.stdout
    frame = table(undisturbed[1])
    assert list(frame["seed"]) == [0, 1, 2]
    both = before[before["arm"] == "sgd"].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame[frame["seed"] < 2][["seed", "test_loss"]], both[["seed", "test_loss"]])
    # The narrower study is what the folder shows now; the wide one finds its own results again.
    again = study("run", shared / "tiny.yaml", "--storage", shared / "calm", "--no-report")
    assert "nothing is missing" in again.stdout


def enough_epochs(folder, least=8):
    """Some trial has trained a few epochs and the study is far from done."""
    uri = StudyFolder(folder)
    return sum(len(uri.names("trials", t, "checkpoints")) > 0 for t in uri.names("trials")) >= 1


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_a_driver_that_is_stopped_loses_nothing(undisturbed, shared, tmp_path, how):
    folder = str(tmp_path / "tiny")
    arguments = ("run", shared / "tiny.yaml", "--storage", tmp_path, "--cpus", 2, "--no-report")
    process = start_study(*arguments)
    family = []
    try:
        wait_for(lambda: ends(folder) and trial_workers(process.pid))
        family = descendants(process.pid)
        if how == "terminate":
            process.send_signal(signal.SIGTERM)  # which the command turns into the keyboard's SIGINT
            out, _ = process.communicate(timeout=90)
            assert process.returncode == 130, out
            assert "the same command goes on" in out
            assert "Traceback" not in out
        else:
            process.kill()
    finally:
        end(process, family)
    ended = {row["trial"] for row in ends(folder)}
    assert 1 <= len(ended) < 5
    done = study(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"{5 - len(ended)} trial" in done.stdout, "what is finished is not trained again"
    pd.testing.assert_frame_equal(table(folder), table(undisturbed[1]))
    pd.testing.assert_frame_equal(history(folder), history(undisturbed[1]))


def test_a_killed_worker_is_replaced_and_goes_on_from_its_checkpoint(undisturbed, shared, tmp_path):
    folder = str(tmp_path / "tiny")
    process = start_study("run", shared / "tiny.yaml", "--storage", tmp_path, "--cpus", 2, "--no-report")
    try:
        wait_for(lambda: enough_epochs(folder))
        victim = wait_for(lambda: trial_workers(process.pid))[0]
        os.kill(victim, signal.SIGKILL)
        out, _ = process.communicate(timeout=180)
        assert process.returncode == 0, out
    finally:
        end(process, descendants(process.pid))
    pd.testing.assert_frame_equal(table(folder), table(undisturbed[1]))
    pd.testing.assert_frame_equal(history(folder), history(undisturbed[1]))


def test_asha_stops_cells_and_its_ledger_replays(shared, tmp_path):
    file = write(tmp_path, 9, "scheduler: {name: asha, grace_period: 1, reduction_factor: 2}\n")
    wide = ("--set", "gamma=[0.01, 0.05, 0.5, 2.0, 20.0]")
    done = study("run", file, "--storage", tmp_path, "--cpus", 2, *wide)
    assert done.returncode == 0, done.stderr
    reader = open_study(str(tmp_path / "tiny"))
    frame, decisions = reader.replicates(), reader.decisions()
    stopped = frame[frame["status"] == "stopped"]
    assert 0 < len(stopped) < len(frame)
    assert stopped["test_accuracy"].isna().all(), "the test set is for cells that are trained to the end"
    assert frame[frame["status"] == "complete"]["test_accuracy"].notna().all()
    assert (stopped["epoch"] < 9).all()
    assert stopped["reason"].str.contains("asha").all()
    # The order of the ledger is the order of the decisions: replayed, it decides the same.
    arm_of = dict(zip(frame["cell"], frame["arm"], strict=True))
    replayed = {arm: Asha(9, 1, 2) for arm in frame["arm"].unique()}
    for row in reader.folder.decisions_rows():
        recorded = as_decision(row)
        assert replayed[arm_of[recorded.cell]].report(recorded.cell, recorded.epoch, recorded.value) == recorded
    assert set(frame.loc[frame["arm"] == "sgd", "status"]) == {"complete"}, "a reference has no rivals in its arm"
    assert set(decisions[decisions["stop"]]["cell"]) == set(stopped["cell"])
    # A cell's decision is on its mean over the seeds.
    last = stopped.groupby("cell")["validation_accuracy"].mean()
    for row in decisions[decisions["stop"]].itertuples():
        assert row.value == pytest.approx(last[row.cell])
    assert make_plan(Study.load(file, ["gamma=[0.01, 0.05, 0.5, 2.0, 20.0]"]), reader.folder).todo == []


def test_a_trial_that_cannot_be_trained_is_recorded_with_its_reason_and_the_rest_goes_on(tmp_path):
    file = write(tmp_path, 2, "max_failures: 0\n")
    uri = StudyFolder(str(tmp_path / "tiny"))
    plan = make_plan(Study.load(file), uri)
    broken = plan.todo[0]
    # Its checkpoint is whole, and another recipe's.
    uri.save_study(plan.study.model_dump(mode="json"), "", plan.rows())
    other = Replicate(broken.cell.recipe.model_copy(update={"lr": 0.5}), 0).state_dict()
    payload = io.BytesIO()
    torch.save({"epoch": 1, "history": [], "replicates": [other, other]}, payload)
    uri.save_checkpoint(broken.id, 1, payload.getvalue(), keep=1)
    done = study("run", file, "--storage", tmp_path, "--cpus", 2, "--no-report")
    assert done.returncode == 1, done.stderr
    assert "1 trials failed" in done.stderr
    frame = open_study(uri.uri).replicates()
    failed = frame[frame["status"] == "failed"]
    assert set(failed["cell"]) == {broken.cell.id}
    assert failed["reason"].str.contains("the state is of another recipe; it differs in lr").all()
    assert (frame[frame["cell"] != broken.cell.id]["status"] == "complete").all()
    uri.delete_checkpoints(broken.id)
    assert study("run", file, "--storage", tmp_path, "--cpus", 2, "--no-report").returncode == 0
    assert (open_study(uri.uri).replicates()["status"] == "complete").all()


def test_a_store_that_breaks_in_the_middle_ends_the_run_in_one_line(tmp_path):
    file = write(tmp_path, 2)
    uri = StudyFolder(str(tmp_path / "tiny"))
    plan = make_plan(Study.load(file), uri)
    # A file stands where the last trial's checkpoints should be written.
    uri.write(b"", "trials", plan.todo[-1].id, "checkpoints")
    done = study("run", file, "--storage", tmp_path, "--cpus", 1, "--no-report")
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    assert "Not a directory" in done.stderr.splitlines()[-1]
    (run,) = uri.runs()
    assert "Not a directory" in run["reason"]
    assert run["ended"]
    assert len(ends(uri.uri)) == 8, "what had ended before is on record"


def test_a_cell_that_diverges_is_an_outcome_with_its_epoch(tmp_path):
    file = write(tmp_path, 3)
    one = ("--set", "arms={sgd: {optimiser: sgd, lr: 1.0e+12, momentum: 0.0}}", "--set", "grid={}")
    done = study("run", file, "--storage", tmp_path, "--cpus", 1, *one)
    assert done.returncode == 0, done.stderr
    assert "1 diverged" in done.stdout
    frame = open_study(str(tmp_path / "tiny")).replicates()
    assert "diverged" in set(frame["status"])
    assert frame[frame["status"] == "diverged"]["reason"].str.contains("diverged at epoch").all()


def test_the_plan_as_json_is_machine_readable(shared):
    done = study("plan", shared / "tiny.yaml", "--storage", shared / "nowhere", "--json")
    plan = json.loads(done.stdout)
    assert (plan["cells"], plan["replicates"], len(plan["trials"])) == (5, 10, 5)
    assert not (shared / "nowhere").exists()
