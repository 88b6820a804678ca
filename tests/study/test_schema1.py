"""A folder of the first schema is taken over whole, however often that is cut short, and refused until then."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from memory_folder import MOMENTS, Crash, MemoryFolder
from pandas.testing import assert_frame_equal

from study.cli import main
from study.measured import tags
from study.plan import make_plan
from study.reader import StudyReader
from study.schema1 import take_over
from study.spec import Study
from study.store import StoreError, StudyFolder

CONTENT = {
    "name": "old",
    "question": "What did the version before leave?",
    "recipe": {"epochs": 9},
    "arms": {"fsam": {"optimiser": "fsam"}, "sgd": {"optimiser": "sgd"}},
    "grid": {"gamma": [0.05, 0.1], "eta": [0.1, 1.0]},
    "seeds": [0, 1],
    "scheduler": {"name": "asha", "grace_period": 1, "reduction_factor": 3},
    "measures": {"perturbation": {}},
}

#: Of the study's five cells: three have ended, one is running, one was never begun.
ENDS = [("complete", 9), ("stopped", 1), ("diverged", 4), (None, 5), (None, 0)]

RUNS = ["20250101T000000-aaaa", "20250102T000000-bbbb"]


def study():
    return Study.of(CONTENT)


def past():
    """What two runs of the old version knew: of each trial its ends, decisions and history; and the last's measures."""
    found, scheduler = {}, str(study().scheduler)
    trials = make_plan(study(), MemoryFolder()).todo
    for n, (trial, (status, last)) in enumerate(zip(trials, ENDS, strict=True)):
        history = [
            {"cell": trial.cell.id, "seed": s, "epoch": e, "validation_accuracy": (s + e + n) / 20, "lr": 0.1}
            for e in range(1, last + 1)
            for s in trial.seeds
        ]
        ends = [
            {
                **row, "run": RUNS[n % 2], "status": status, "scheduler": scheduler if status == "stopped" else None,
                "reason": None if status == "complete" else f"{status} at epoch {last}", "device": "CPU",
                "test_accuracy": 0.5 if status == "complete" else None, "label_hash": "f" * 8,
            }
            for row in history
            if status and row["epoch"] == last
        ]  # fmt: skip
        decisions = [
            {
                "cell": trial.cell.id, "rung": rung, "epoch": rung, "value": (1 + 2 * rung + 2 * n) / 40,
                "cutoff": None if n == 0 else 0.3, "rank": 1, "n": n + 1, "stop": status == "stopped",
                "scheduler": scheduler, "run": RUNS[n % 2], "started": f"2025-01-0{1 + n % 2}", "sequence": n + 1,
            }
            for rung in (1, 3)
            if last >= rung
        ]  # fmt: skip
        measures = [{"cell": trial.cell.id, "seed": s, "radius": 0.1, "accuracy": 0.4} for s in trial.seeds]
        found[trial.id] = {
            "replicates": ends,
            "decisions": decisions,
            "history": history,
            f"measures/{next(iter(tags(study().measures)))}": measures if status == "complete" else [],
        }
    return found


PAST = past()


def old_parquet(rows):
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def old_folder(folder):
    """As the version before wrote it."""
    plan = make_plan(study(), folder)
    for trial, files in PAST.items():
        for file, rows in files.items():
            if rows:
                folder.write(old_parquet(rows), "trials", trial, f"{file}.parquet")
        if files["history"]:
            folder.save_checkpoint(trial, 1, b"weights", keep=1)
    for run in RUNS:
        folder.save_run(run, {"run": run, "started": run, "ended": run})
    folder.write(old_parquet(plan.rows()), "plan.parquet")
    content = {"schema": 1, "study": plan.study.model_dump(mode="json")}
    folder.write((json.dumps(content, indent=1) + "\n").encode(), "study.json")
    return folder


def new_folder(folder):
    """The same past, as this version writes it."""
    plan = make_plan(study(), folder)
    folder.save_study(plan.study.model_dump(mode="json"), "", plan.rows())
    recording, decisions = folder.recording("r"), []
    for trial, files in PAST.items():
        recording.history(trial, files["history"])
        recording.end(trial, files["replicates"])
        decisions += [(row["started"], row["sequence"], trial, row) for row in files["decisions"]]
        for file, rows in files.items():
            if file.startswith("measures/") and rows:
                folder.save_measure(trial, file.removeprefix("measures/"), rows)
        if files["history"]:
            folder.save_checkpoint(trial, 1, b"weights", keep=1)
    for n, (_, _, trial, row) in enumerate(sorted(decisions, key=lambda d: d[:3]), start=1):
        recording.decide(trial, {**{k: v for k, v in row.items() if k != "started"}, "sequence": n})
    recording.close()
    for run in RUNS:
        folder.save_run(run, {"run": run, "started": run, "ended": run})
    return folder


def assert_the_same_study(folder, other):
    reader, expected = StudyReader(folder), StudyReader(other)
    for table, order in [
        ("replicates", ["cell", "seed"]), ("history", ["cell", "seed", "epoch"]), ("decisions", ["sequence"]),
    ]:  # fmt: skip
        frames = (getattr(r, table)().sort_values(order, ignore_index=True) for r in (reader, expected))
        assert_frame_equal(*frames, check_like=True)
    assert_frame_equal(reader.measures("perturbation"), expected.measures("perturbation"))
    assert (reader.spec, reader.runs()) == (expected.spec, expected.runs())
    plan, other_plan = make_plan(study(), folder), make_plan(study(), other)
    assert (plan.todo, plan.ended.keys(), plan.decisions) == (
        other_plan.todo,
        other_plan.ended.keys(),
        other_plan.decisions,
    )
    for trial in PAST:
        assert folder.load_checkpoint(trial) == other.load_checkpoint(trial)


@pytest.fixture(scope="module")
def expected():
    return new_folder(MemoryFolder())


def test_a_folder_that_was_taken_over_is_the_one_that_this_version_would_have_made(expected):
    folder = old_folder(MemoryFolder())
    take_over(folder)
    assert_the_same_study(folder, expected)
    assert set(StudyReader(folder).replicates()["status"]) == {"complete", "stopped", "diverged", "running", "missing"}
    assert not [path for path in folder.kept if path.endswith(("replicates.parquet", "history.parquet"))]


@pytest.mark.parametrize("moment", MOMENTS)
def test_taking_over_may_be_cut_short_anywhere_and_is_ended_by_the_next_run(moment):
    made, cuts, at_once = old_folder(MemoryFolder()).kept, 0, old_folder(MemoryFolder())
    take_over(at_once)
    while True:
        folder = MemoryFolder(dict(made))
        folder.fail(cuts, moment)
        try:
            take_over(folder)
        except Crash:
            cuts += 1
        else:
            break
        folder.faults = []
        take_over(folder)
        assert {path: data for path, data in folder.kept.items() if not path.endswith(".tmp")} == at_once.kept
    assert cuts > 10


def test_an_older_version_may_have_gone_on_after_a_take_over_that_was_cut_short(expected):
    folder = old_folder(MemoryFolder())
    (path,) = [p for p in folder.kept if p.endswith("replicates.parquet") and "stopped" in str(folder.kept[p])]
    whole = folder.kept.pop(path)
    folder.fail(3)
    with pytest.raises(Crash):
        take_over(folder)
    assert folder.walk("records")
    folder.kept[path] = whole
    take_over(folder)
    assert_the_same_study(folder, expected)


def test_two_folders_that_were_taken_over_share_no_run():
    first, second = old_folder(MemoryFolder()), old_folder(MemoryFolder())
    for path in [p for p in second.kept if p.endswith("replicates.parquet")][:1]:
        second.delete(path)
    for folder in (first, second):
        take_over(folder)
    assert not set(first.names("records")) & set(second.names("records"))


def test_a_folder_of_this_version_or_of_none_is_left_alone(expected):
    for folder in (MemoryFolder(dict(expected.kept)), MemoryFolder()):
        before = dict(folder.kept)
        take_over(folder)
        assert folder.kept == before


@pytest.mark.parametrize("text", [b"{", b'{"schema": 1}', b'{"schema": 1, "study": 3}'])
def test_a_damaged_old_study_is_named(text):
    folder = old_folder(MemoryFolder())
    folder.write(text, "study.json")
    with pytest.raises(StoreError, match=r"^/memory/n/study\.json is damaged"):
        take_over(folder)


def test_a_damaged_old_file_is_named_and_nothing_is_touched():
    folder = old_folder(MemoryFolder())
    path = next(p for p in folder.kept if p.endswith("history.parquet"))
    folder.kept[path] = folder.kept[path][:-9]
    before = dict(folder.kept)
    with pytest.raises(StoreError, match=f"^/memory/n/{path} is damaged"):
        take_over(folder)
    assert folder.kept == before


def test_an_old_folder_is_refused_with_a_way_out_until_its_study_file_is_run(tmp_path, capsys):
    content = {**CONTENT, "grid": {"gamma": [0.05], "eta": [0.1]}, "scheduler": {"name": "fifo"}, "measures": {}}
    file = tmp_path / "old.yaml"
    file.write_text(json.dumps(content))
    folder = StudyFolder(str(tmp_path / "old"))
    plan = make_plan(Study.of(content), folder)
    for trial in plan.todo:
        rows = [
            {"cell": trial.cell.id, "seed": s, "status": "complete", "epoch": 9, "scheduler": None, "run": "r",
             "validation_accuracy": 0.5}
            for s in trial.seeds
        ]  # fmt: skip
        folder.write(old_parquet(rows), "trials", trial.id, "replicates.parquet")
    folder.write(old_parquet(plan.rows()), "plan.parquet")
    folder.write(json.dumps({"schema": 1, "study": plan.study.model_dump(mode="json")}).encode(), "study.json")
    before = folder.walk()
    arguments = [str(file), "--storage", str(tmp_path)]
    for verb in (["plan", *arguments], ["report", folder.uri]):
        assert main(verb) == 2
        assert "schema 1" in capsys.readouterr().err
    assert folder.walk() == before
    assert main(["run", *arguments, "--no-report"]) == 0
    assert "was of schema 1 and has been taken over" in capsys.readouterr().out
    assert list(StudyReader(folder).replicates()["status"]) == ["complete"] * 4
    assert main(["plan", *arguments]) == 0
    assert "nothing is missing" in capsys.readouterr().out
