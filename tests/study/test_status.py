"""What `study status` says is what the folder holds, also of ten thousand trials."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from study import records
from study.asha import Asha
from study.files import Files
from study.lock import hold
from study.plan import make_plan
from study.reader import StudyReader
from study.records import Piece, to_parquet
from study.spec import Study
from study.status import explain, status
from study.status_lines import lines
from study.store import StoreError, StudyFolder

EPOCHS = 8
SCHEDULER = "asha(grace_period=2, reduction_factor=2)"
NOW = datetime(2026, 11, 25, 9, 0, 0, tzinfo=UTC)


def spec(**more):
    asha = {"name": "asha", "grace_period": 2, "reduction_factor": 2}
    study = {"name": "n", "question": "Does it\nmatter?", "scheduler": asha, "seeds": [0, 1]}
    return {**study, "arms": {"fsam": {}, "sgd": {}}, "grid": {"gamma": [0.1, 0.2, 0.4]}, **more}


def planned(cells, seeds=(0, 1), **more):
    rows = []
    for n, cell in enumerate(cells):
        arm = "sgd" if cell.startswith("5") else "fsam"
        gamma = None if arm == "sgd" else [0.1, 0.2, 0.4, 0.8][n]
        rows += [{"cell": cell, "arm": arm, "seed": s, "gamma": gamma, "epochs": EPOCHS, **more} for s in seeds]
    return rows


#: Complete, stopped, in training, failed and not begun.
CELLS = ["c1aa", "c2aa", "c3aa", "c3bb", "5abc"]


def end(cell, seed, trial, state, epoch=EPOCHS, **more):
    row = {"cell": cell, "seed": seed, "trial": trial, "status": state, "epoch": epoch, "scheduler": None}
    row |= {
        "reason": None,
        "run": "r1",
        "device": "CPU",
        "train_seconds": 1.0,
        "test_accuracy": None,
        "validation_accuracy": None,
    }
    return {**row, **more}


@pytest.fixture
def folder(tmp_path):
    folder = StudyFolder(str(tmp_path / "n"))
    folder.save_study(spec(), "", planned(CELLS))
    folder.save_run("r0", {"run": "r0", "started": "2026-11-24T06:00:00.000+00:00", "ended": None})
    started = {"run": "r1", "started": "2026-11-25T07:00:00.000+00:00"}
    over = {"ended": "2026-11-25T08:00:00.000+00:00", "seconds": 3600.0, "trials": {"complete": 1, "stopped": 1}}
    folder.save_run("r1", {**started, **over, "interrupted": False})
    recording, asha = folder.recording("r1"), Asha(EPOCHS, 2, 2)
    told = [("t1", "c1aa", 2, 0.5), ("t2", "c2aa", 2, 0.6), ("t1", "c1aa", 4, 0.7), ("t2", "c2aa", 4, 0.4)]
    for number, (trial, cell, epoch, value) in enumerate([*told, ("t3", "c3aa", 2, 0.55)], start=1):
        decision = vars(asha.report(cell, epoch, value))
        recording.decide(trial, {**decision, "scheduler": SCHEDULER, "run": "r1", "sequence": number})
    values = dict(zip((0, 1), (0.75, 0.875), strict=True))
    for trial, cell, reached in (("t1", "c1aa", 8), ("t2", "c2aa", 4), ("t3", "c3aa", 3)):
        rows = [{"cell": cell, "seed": s, "epoch": e, "loss": 1.0} for e in range(1, reached + 1) for s in (0, 1)]
        recording.history(trial, rows if trial != "t3" else rows[:-1])
    for seed, value in values.items():
        recording.end("t1", [end("c1aa", seed, "t1", "complete", validation_accuracy=value, test_accuracy=0.5)])
        stop = {"scheduler": SCHEDULER, "validation_accuracy": 0.4, "reason": f"stopped by {SCHEDULER} at epoch 4"}
        recording.end("t2", [end("c2aa", seed, "t2", "stopped", 4, **stop)])
        recording.end("t4", [end("c3bb", seed, "t4", "failed", None, reason="the data set is gone")])
    recording.flush()
    return folder


def test_a_status_counts_cells_replicates_and_epochs(folder):
    found = status(StudyReader(folder), NOW)
    assert found.cells == {"fsam": {"complete": 1, "running": 1, "stopped": 1, "failed": 1}, "sgd": {"missing": 1}}
    assert found.replicates == {
        "planned": 10, "missing": 2, "complete": 2, "stopped": 2, "running": 2, "failed": 2,
    }  # fmt: skip
    assert found.epochs_done == 2 * 8 + 2 * 4 + 3 + 2
    assert found.epochs_planned == 2 * 8 + 2 * 4 + 6 * 8, "what was stopped is trained no further"
    assert found.at_most
    (begun,) = found.begun
    assert (begun.trial, begun.name, begun.seeds, begun.epoch, begun.epochs) == ("t3", "fsam, gamma 0.4", [0, 1], 2, 8)
    (failed,) = found.failed
    assert (failed.reason, failed.replicates, failed.trials) == ("the data set is gone", 2, ["t4"])
    assert [run.state for run in found.runs] == ["cut off", "ended"]
    assert found.ledger.decisions == 5
    assert found.ledger.mismatches == []


def test_what_is_left_is_told_by_the_speed_of_what_has_ended(folder):
    # Two complete and two stopped replicates took a second each for 8 and 4 epochs; 11, 16 and 16 epochs are missing.
    found = status(StudyReader(folder), NOW)
    assert found.left.seconds == pytest.approx((11 + 16 + 16) * 4 / 24)
    assert found.left.cost is None
    assert "  left: at most 7 s of training on one trial's resources, at the speed of what has ended" in lines(found)
    priced = spec(price={"gpu": 36.0, "cpu": 0.0, "currency": "EUR"})
    folder.save_study(priced, "", planned(CELLS))
    folder.save_run("r2", {"run": "r2", "started": "2026-11-25T08:30:00.000+00:00", "resources": {"gpu": 0.5}})
    assert status(StudyReader(folder), NOW).left.cost == pytest.approx(43 / 6 * 0.5 * 36 / 3600)


def test_an_arm_of_which_something_has_ended_goes_by_its_own_speed(folder):
    recording = folder.recording("r2")
    recording.end("t5", [end("5abc", 0, "t5", "complete", validation_accuracy=0.5, train_seconds=80.0)])
    recording.flush()
    # Of SGD 8 epochs are missing at 10 s each.
    assert status(StudyReader(folder), NOW).left.seconds == pytest.approx((11 + 16) * 4 / 24 + 80)


def test_the_best_cell_is_chosen_by_validation_and_has_its_n_and_interval(folder):
    best = status(StudyReader(folder), NOW).best
    assert (best.cell, best.name, best.validation_accuracy, best.n) == ("c1aa", "fsam, gamma 0.1", 0.8125, 2)
    assert best.low < 0.8125 < best.high


def test_a_status_is_said_in_lines(folder):
    said = lines(status(StudyReader(folder), NOW))
    for line in [
        "n: Does it matter?",
        "  nobody runs it now",
        "  fsam: 4 cells (1 complete, 1 running, 1 stopped, 1 failed)",
        "  sgd: 1 cell (1 missing)",
        "  4 of 10 replicates ended, 29 of at most 72 epochs trained",
        "begun and not ended; the next run goes on with them:",
        "  trial t3 (fsam, gamma 0.4), 2 seeds: epoch 2 of 8",
        "failed, tried again by the next run:",
        "  2 replicates: the data set is gone (trial t4)",
        "  r0 cut off, begun 2026-11-24 06:00:00 UTC",
        "  r1 ended 2026-11-25 08:00:00 UTC after 1 h 0 min; trials: 1 complete, 1 stopped",
        "ledger: 5 decisions; replayed, each follows from those before it",
    ]:
        assert line in said
    (best,) = (line for line in said if line.startswith("best"))
    assert best.startswith("best complete cell so far, by validation: fsam, gamma 0.1: 81.2 +- ")
    assert best.endswith("% (n=2) (cell c1aa)")


def test_json_holds_everything_and_no_number_that_is_none(folder):
    found = json.loads(status(StudyReader(folder), NOW).to_json(), parse_constant=pytest.fail)
    assert found["begun"][0]["epoch"] == 2
    assert found["ledger"] == {"decisions": 5, "unplanned": 0, "mismatches": []}
    assert found["driver"] is None


def test_whoever_runs_it_is_named_with_the_run(folder):
    folder.save_run("r2", {"run": "r2", "started": "2026-11-25T08:58:00.000+00:00", "ended": None})
    with hold(folder, "r2"):
        found = status(StudyReader(folder), NOW)
    assert (found.driver.state, found.driver.run) == ("alive", "r2")
    assert (found.runs[-1].state, found.runs[-1].seconds) == ("running", 120.0)
    said = lines(found)
    assert "in training:" in said
    assert any(line.startswith("  run by ") for line in said)
    assert "  r2 running since 2026-11-25 08:58:00 UTC (2 min 0 s)" in said


def test_a_merge_is_told_among_the_runs(folder):
    record = {"run": "r2", "started": "2026-11-25T08:58:00.000+00:00", "ended": "2026-11-25T08:58:01.000+00:00"}
    folder.save_run("r2", {**record, "merge": {"from": "elsewhere/n", "here": ["r1"], "there": []}})
    said = lines(status(StudyReader(folder), NOW))
    assert "  r2 ended 2026-11-25 08:58:01 UTC after 1 s; merged from elsewhere/n" in said


def test_a_decision_that_does_not_follow_is_said(folder):
    recording = folder.recording("r2")
    wrong = {"cell": "c3bb", "rung": 2, "epoch": 2, "value": 0.1, "cutoff": 0.55, "rank": 1, "n": 4, "stop": False}
    recording.decide("t4", {**wrong, "scheduler": SCHEDULER, "run": "r2", "sequence": 6})
    found = status(StudyReader(folder), NOW)
    assert len(found.ledger.mismatches) == 1
    head, line = lines(found)[-2:]
    assert head == "ledger: 6 decisions; replayed, 1 do not follow from those before them:"
    assert line.startswith("  decision 6 of run r2 (trial t4): recorded went on at epoch 2")


def test_a_study_of_which_nothing_is_trained_has_a_status(tmp_path):
    folder = StudyFolder(str(tmp_path / "n"))
    folder.save_study(spec(scheduler={"name": "fifo"}), "", planned(CELLS))
    found = status(StudyReader(folder))
    assert (found.best, found.ledger, found.begun, found.at_most) == (None, None, [], False)
    assert "  0 of 10 replicates ended, 0 of 80 epochs trained" in lines(found)


def test_cells_that_a_search_has_still_to_choose_count_as_planned(tmp_path):
    folder = StudyFolder(str(tmp_path / "n"))
    search = {"cells": 3, "space": {"gamma": {"low": 0.1, "high": 1.0, "log": True}}}
    asked = spec(search=search, grid={}, recipe={"epochs": 5}, scheduler={"name": "fifo"})
    folder.save_study(asked, "", [])
    found = status(StudyReader(folder))
    assert found.unsampled == {"fsam": 3, "sgd": 3}
    assert (found.replicates["planned"], found.epochs_planned) == (12, 60)
    assert "  fsam: 3 cells (3 still to be chosen)" in lines(found)
    folder.save_plan(planned(["c1aa"]))
    found = status(StudyReader(folder))
    assert found.unsampled == {"fsam": 2, "sgd": 3}
    assert found.epochs_planned == 2 * EPOCHS + 2 * 2 * EPOCHS + 3 * 2 * 5


def test_cells_under_different_conditions_have_no_best_one(folder):
    rows = planned(CELLS)
    for row in rows:
        row["label_noise"] = 0.2 if row["cell"] == "c1aa" else 0.0
    folder.save_study(spec(grid={"gamma": [0.1], "label_noise": [0.0, 0.2]}), "", rows)
    assert status(StudyReader(folder)).best is None


# Why


def test_a_trial_is_explained_by_its_decisions(folder):
    assert explain(StudyReader(folder), "t2") == [
        "trial t2, seeds 0, 1 of cell c2aa (fsam, gamma 0.2)",
        "  went on at epoch 2, rung 2, ranked 1 of 2, cutoff 0.500, value 0.600",
        "  stopped at epoch 4, rung 4, ranked 2 of 2, cutoff 0.700, value 0.400",
    ]


def test_a_cell_or_the_beginning_of_an_id_is_enough(folder):
    reader = StudyReader(folder)
    assert explain(reader, "c2") == explain(reader, "c2aa") == explain(reader, "t2")


def test_a_trial_without_an_end_says_how_far_it_is(folder):
    said = explain(StudyReader(folder), "c3aa")
    assert said[0].startswith("trial t3, seeds 0, 1 of cell c3aa")
    assert said[2] == "  at epoch 3; nobody runs the study now, the next run trains it to epoch 8"


@pytest.mark.parametrize(
    ("name", "words"), [("c3", "cell c3aa, cell c3bb"), ("t9", "no trial and no cell"), ("", "no")]
)
def test_a_name_that_means_nothing_or_several_things_is_refused(folder, name, words):
    with pytest.raises(StoreError, match=words):
        explain(StudyReader(folder), name)


def test_a_trial_that_nobody_has_begun_has_the_id_that_the_plan_gives_it(tmp_path):
    recipe = {"dataset": "synthetic", "model": "mlp", "epochs": EPOCHS, "train_size": 64, "batch_size": 32}
    content = {"name": "n", "question": "q", "recipe": recipe, "arms": {"sgd": {"optimiser": "sgd"}}, "seeds": [0, 1]}
    study, folder = Study.of(content), StudyFolder(str(tmp_path / "n"))
    made = make_plan(study, folder)
    folder.save_study(study.model_dump(mode="json"), "", made.rows())
    (trial,) = made.todo
    recording = folder.recording("r")
    recording.end("t0", [end(trial.cell.id, 0, "t0", "complete")])
    recording.flush()
    (trial,) = make_plan(study, folder).todo
    assert trial.seeds == (1,)
    said = explain(StudyReader(folder), trial.id)
    assert said[0] == f"trial {trial.id}, seed 1 of cell {trial.cell.id} (sgd)"
    assert "not begun" in said[1]


# Scale

TRIALS, LONG = 1000, 200


@pytest.fixture
def large(tmp_path):
    """A tenth of ten thousand trials of 200 epochs each: all are complete but ten."""
    folder = StudyFolder(str(tmp_path / "n"))
    cells = [f"{n:012x}" for n in range(TRIALS)]
    rows = [{"cell": c, "arm": "fsam", "seed": 0, "gamma": float(n), "epochs": LONG} for n, c in enumerate(cells)]
    folder.save_study(spec(seeds=[0]), "", rows)
    generator, asha, decisions = np.random.default_rng(0), Asha(LONG, 2, 2), []
    for n, cell in enumerate(cells):
        decision = vars(asha.report(cell, 2, 1.0 + n))
        about = {"scheduler": SCHEDULER, "run": "r", "sequence": n + 1, "trial": f"t{cell}"}
        decisions.append({**decision, **about})
    ends = [end(c, 0, f"t{c}", "complete", LONG, validation_accuracy=0.5, run="r") for c in cells[:-10]]
    history = pa.table(
        {
            "trial": np.repeat([f"t{c}" for c in cells], LONG),
            "cell": np.repeat(cells, LONG),
            "seed": np.zeros(TRIALS * LONG, dtype=np.int64),
            "epoch": np.tile(np.arange(1, LONG + 1), TRIALS),
            **{f"metric_{n}": generator.random(TRIALS * LONG) for n in range(8)},
        }
    ).slice(0, TRIALS * LONG - 100)
    folder.save_run("r", {"run": "r", "started": "2026-11-25T07:00:00.000+00:00", "ended": None})
    for kind, table in (("decisions", decisions), ("ends", ends), ("history", history)):
        folder.write(to_parquet(table), records.FOLDER, "r", Piece("r", kind, 1, 1).name)
    return folder


def test_a_large_study_is_read_once_and_of_its_epochs_only_what_has_not_ended(large, monkeypatch):
    read, decoded, rows = [], [], []
    files_read, from_parquet, unfinished = Files.read, records.from_parquet, StudyFolder.unfinished

    def counted_read(self, *parts):
        read.append("/".join(parts))
        return files_read(self, *parts)

    def counted_decoding(data, path, columns=None, **more):
        decoded.append((path.rpartition("/")[2].partition("-")[0], columns))
        return from_parquet(data, path, columns, **more)

    def counted_rows(self, ended, columns):
        found = unfinished(self, ended, columns)
        rows.append(len(found))
        return found

    monkeypatch.setattr(Files, "read", counted_read)
    monkeypatch.setattr(records, "from_parquet", counted_decoding)
    monkeypatch.setattr(StudyFolder, "unfinished", counted_rows)
    decided = []
    decide = Asha.decide
    monkeypatch.setattr(Asha, "decide", lambda *arguments: decided.append(1) or decide(*arguments))
    found = status(StudyReader(large))
    assert found.replicates == {"planned": TRIALS, "complete": TRIALS - 10, "running": 10}
    assert found.begun[-1].epoch == LONG - 100
    assert found.ledger.decisions == len(decided) == TRIALS
    assert found.ledger.mismatches == []
    assert len(read) == len(set(read)) <= 12, "each file once"
    assert [kind for kind, _ in decoded if kind != "plan.parquet"].count("history") == 1
    assert set(dict(decoded)["history"]) == {"trial", "cell", "seed", "epoch"}
    assert rows == [10 * LONG - 100]


def test_one_trial_of_a_large_study_is_explained_without_reading_all_epochs(large, monkeypatch):
    decoded = []
    from_parquet = records.from_parquet

    def counted(data, path, columns=None, **more):
        decoded.append((path.rpartition("/")[2].partition("-")[0], columns))
        return from_parquet(data, path, columns, **more)

    monkeypatch.setattr(records, "from_parquet", counted)
    said = explain(StudyReader(large), f"t{999:012x}")
    assert said[-1].startswith(f"  at epoch {LONG - 100}; nobody runs the study now")
    assert [set(columns) for kind, columns in decoded if kind == "history"] == [{"trial", "cell", "seed", "epoch"}]


def test_a_status_needs_neither_ray_nor_torch(folder):
    code = (
        "import sys; from study.cli import main; code = main(['status', sys.argv[1]]);"
        "assert not {'ray', 'torch'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder.uri], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "ledger: 5 decisions" in done.stdout
