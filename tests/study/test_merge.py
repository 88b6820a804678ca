"""Two folders of a study make the one that it would have been, whatever each has; and what contradicts is named."""

import json
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_folder import MOMENTS, Crash, MemoryFolder

from study import merge as module
from study.asha import Asha
from study.lock import HeldError, hold, holder
from study.measured import tags
from study.merge import lines, merge
from study.plan import make_plan
from study.reader import StudyReader, open_study
from study.spec import Study
from study.status import check
from study.store import StoreError, StudyFolder

EPOCHS = 4
MEASURES = {"perturbation": {"steps": 3}}
(TAG,) = tags(MEASURES)
ASHA = {"name": "asha", "grace_period": 1, "reduction_factor": 2}
SCHEDULER = "asha(grace_period=1, reduction_factor=2)"
ARMS = {"c0": "fsam", "c1": "fsam", "c2": "fsam", "c3": "sgd", "c4": "sgd", "c5": "sgd"}


class Folder(MemoryFolder):
    def __init__(self, name="A", kept=None):
        super().__init__(kept)
        self.uri = f"/memory/{name}"

    def check_writable(self):
        """Memory always is."""


@pytest.fixture
def quick(monkeypatch):
    """Without the lock's files and git's answers, of which nothing here depends."""
    monkeypatch.setattr(module, "hold", lambda folder, run: nullcontext(SimpleNamespace(check=lambda: None)))
    monkeypatch.setattr(module, "provenance", dict)


HOW = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=25)


def spec(**more):
    return {"name": "n", "question": "q", "scheduler": ASHA, "arms": {"fsam": {}, "sgd": {}}, "seeds": [0, 1], **more}


def plan(cells=ARMS, seeds=(0, 1)):
    rows = [(cell, seed) for cell in cells for seed in seeds]
    return [{"cell": c, "arm": ARMS[c], "seed": s, "gamma": int(c[1]) / 10, "epochs": EPOCHS} for c, s in rows]


def begin(folder, rows=None, **more):
    folder.save_study(spec(**more), "name: n\n", plan() if rows is None else rows)
    return folder


def end(cell, seed, trial, status="complete", **more):
    row = {"cell": cell, "seed": seed, "status": status, "epoch": EPOCHS, "scheduler": None, "reason": None}
    row |= {"run": "r", "device": "CPU", "train_seconds": 1.0, "validation_accuracy": 0.5, "test_accuracy": 0.5}
    return {**row, "trial": trial, **more}


def add(folder, run, ends=(), history=(), decisions=()):
    recording = folder.recording(run)
    for row in decisions:
        recording.decide(row["trial"], row)
    for row in history:
        recording.history(row["trial"], [row])
    for row in ends:
        recording.end(row["trial"], [row])
    recording.flush()
    folder.save_run(run, {"run": run, "started": run, "ended": "later"})


def epochs(cell, trial, reached, seeds=(0, 1), first=1, **more):
    found = [(epoch, seed) for epoch in range(first, reached + 1) for seed in seeds]
    return [{"cell": cell, "trial": trial, "seed": s, "epoch": e, "loss": 1 / e, **more} for e, s in found]


# Any two parts


@st.composite
def pasts(draw):
    """What became of each trial of a study: its values by epoch, where it was cut off or ended, and who has it."""
    found = {}
    for cell in ARMS:
        found[f"t{cell}"] = {
            "cell": cell,
            "values": [draw(st.sampled_from([0.1, 0.2, 0.3, math.nan])) for _ in range(EPOCHS)],
            "fate": draw(st.sampled_from(["full", "full", "begun", "failed", "diverged"])),
            "reached": draw(st.integers(1, EPOCHS - 1)),
            "measured": draw(st.booleans()),
            "has": draw(st.sampled_from(["A", "B", "AB"])),
        }
    return found


def record(past):
    """Everything that one driver would have recorded of it, in the order of epochs."""
    ashas = {arm: Asha(EPOCHS, 1, 2) for arm in ARMS.values()}
    ends, history, decisions = [], [], []
    going = dict(past)
    for epoch in range(1, EPOCHS + 1):
        for trial, one in list(going.items()):
            cell, value = one["cell"], one["values"][epoch - 1]
            rows = epochs(cell, trial, epoch, first=epoch, validation_accuracy=value, train_seconds=1.0)
            history += rows
            over = dict.fromkeys(("status", "scheduler", "reason"))
            decision = ashas[ARMS[cell]].report(cell, epoch, value)
            if decision is not None:
                number = len(decisions) + 1
                about = {"trial": trial, "run": "r", "scheduler": SCHEDULER, "sequence": number}
                decisions.append({**vars(decision), **about})
            if one["fate"] in ("failed", "diverged") and epoch == one["reached"]:
                over |= {"status": one["fate"], "reason": f"{one['fate']} at epoch {epoch}"}
            elif decision is not None and decision.stop:
                over |= {"status": "stopped", "scheduler": SCHEDULER, "reason": "stopped"}
            elif epoch == EPOCHS:
                over |= {"status": "complete"}
            elif one["fate"] == "begun" and epoch == one["reached"]:
                del going[trial]
                continue
            if over["status"]:
                del going[trial]
                complete = over["status"] == "complete"
                ends += [{**row, **over, "run": "r", "test_accuracy": value if complete else None} for row in rows]
    return ends, history, decisions


def write(folder, past, who, **place):
    """The part of a study that a folder has."""
    mine = {trial: one for trial, one in past.items() if set(who) & set(one["has"])}
    begin(folder, plan([one["cell"] for one in mine.values()]), measures=MEASURES)
    ends, history, decisions = ([row for row in rows if row["trial"] in mine] for rows in record(past))
    add(folder, "r", [{**row, **place} for row in ends], history, decisions)
    for trial in mine:
        status = next((row["status"] for row in ends if row["trial"] == trial), "begun")
        reached = max(row["epoch"] for row in history if row["trial"] == trial)
        if status != "diverged":
            folder.save_checkpoint(trial, reached, f"{trial} at {reached}".encode(), keep=2)
        if status == "complete" and mine[trial]["measured"]:
            cell = mine[trial]["cell"]
            folder.save_measure(trial, TAG, [{"cell": cell, "seed": s, "alpha": 0.1, "loss": s / 3} for s in (0, 1)])
    return folder


def tables(folder):
    """What readers see, in one order; less where it was trained."""
    reader = StudyReader(folder)
    found = {
        "replicates": reader.replicates().drop(columns=["device", "train_seconds", "run"], errors="ignore"),
        "history": reader.history(),
        "measures": reader.measures("perturbation"),
        "decisions": reader.decisions(),
    }
    for name, frame in found.items():
        by = [key for key in ("sequence", "cell", "seed", "epoch") if key in frame]
        found[name] = frame.sort_values(by, ignore_index=True).reindex(columns=sorted(frame.columns)).astype(object)
    return found


def kept(folder):
    return {path: data for path, data in folder.kept.items() if path.startswith("trials/")}


def assert_equal(found, wanted):
    for name in wanted:
        pd.testing.assert_frame_equal(found[name], wanted[name], obj=name)


@HOW
@given(past=pasts(), turned=st.booleans())
def test_any_two_parts_of_a_study_make_the_whole_one(quick, past, turned):
    whole = write(Folder("whole"), past, "AB")
    a, b = write(Folder("A"), past, "A"), write(Folder("B"), past, "B", device="other", train_seconds=2.0)
    if turned:
        a, b = b, a
    before = dict(b.kept)
    merged = merge(a, [b])
    assert b.kept == before
    assert merged.conflicts == []
    assert_equal(tables(a), tables(whole))
    assert kept(a) == kept(whole)
    done = dict(a.kept)
    assert not any(any(taken.counts().values()) for taken in merge(a, [b]).taken)
    assert a.kept == done, "a second time there is nothing to do"
    reader = StudyReader(a)
    assert check(reader, reader.replicates(), reader.runs()).mismatches == []


@HOW
@given(past=pasts(), after=st.integers(0, 12), moment=st.sampled_from(MOMENTS), apart=st.booleans())
def test_a_merge_that_is_killed_leaves_a_readable_folder_and_is_ended_by_the_same_merge(
    quick, past, after, moment, apart
):
    a, b, out = write(Folder("A"), past, "A"), write(Folder("B"), past, "B"), Folder("out") if apart else None
    target = out or a
    before = tables(a)["replicates"]
    target.fail(after, moment)
    try:
        merge(a, [b], out)
    except Crash:
        if not apart:
            seen = tables(a)["replicates"].set_index(["cell", "seed"])["status"]
            for row in before.itertuples():
                assert row.status == seen[(row.cell, row.seed)] or row.status in ("missing", "running", "failed")
        for row in target.rows("ends"):
            assert row["status"] == "diverged" or target.load_checkpoint(row["trial"])[0], "a trial's files come first"
    target.faults = []
    merge(a, [b], out)
    whole = write(Folder("whole"), past, "AB")
    assert_equal(tables(target), tables(whole))
    assert kept(target) == kept(whole)


@HOW
@given(past=pasts())
def test_made_elsewhere_both_stay_as_they_are(quick, past):
    a, b, out = write(Folder("A"), past, "A"), write(Folder("B"), past, "B"), Folder("out")
    before = dict(a.kept), dict(b.kept)
    merged = merge(a, [b], out)
    assert (a.kept, b.kept) == before
    assert [taken.source for taken in merged.taken] == [a.uri, b.uri]
    assert_equal(tables(out), tables(write(Folder("whole"), past, "AB")))
    assert out.read("study.yaml") == a.read("study.yaml")
    done = dict(out.kept)
    merge(a, [b], out)
    assert out.kept == done


# What contradicts


def test_two_results_of_one_replicate_are_named_with_both_values_and_the_first_folders_stays(quick):
    a, b = begin(Folder("A")), begin(Folder("B"))
    add(a, "r1", [end("c0", 0, "t", test_accuracy=0.75), end("c0", 1, "t")])
    add(b, "r2", [end("c0", 0, "t", test_accuracy=0.625, device="H100"), end("c0", 1, "t", train_seconds=9.0)])
    merged = merge(a, [b])
    (conflict,) = merged.conflicts
    assert (conflict.cell, conflict.seed) == ("c0", 0)
    assert "test_accuracy 0.75 on CPU" in str(conflict)
    assert "test_accuracy 0.625 on H100" in str(conflict)
    rows = a.rows("ends")
    assert [row["test_accuracy"] for row in rows] == [0.75, 0.5], "equal ones are not counted twice"
    said = "\n".join(lines(merged))
    assert "1 conflict" in said
    assert str(conflict) in said
    assert merge(a, [b]).conflicts == merged.conflicts


def test_a_result_that_is_not_a_number_in_both_is_no_conflict(quick):
    a, b = begin(Folder("A")), begin(Folder("B"))
    lost = {"status": "diverged", "epoch": 2, "validation_accuracy": math.nan, "test_accuracy": None}
    add(a, "r1", [end("c0", 0, "t", **lost)])
    add(b, "r2", [end("c0", 0, "t", **lost)])
    assert merge(a, [b]).conflicts == []


def test_what_failed_in_one_and_is_complete_in_the_other_is_complete(quick):
    a, b = begin(Folder("A")), begin(Folder("B"))
    add(a, "r1", [end("c0", s, "t", "failed", epoch=None, reason="oom") for s in (0, 1)], epochs("c0", "t", 2))
    a.save_checkpoint("t", 2, b"two", keep=2)
    add(b, "r2", [end("c0", s, "t") for s in (0, 1)], epochs("c0", "t", 4))
    b.save_checkpoint("t", 4, b"four", keep=2)
    for one, other in ((a, b), (b, a)):
        merge(one, [other])
        frame = StudyReader(one).replicates()
        assert list(frame[frame["cell"] == "c0"]["status"]) == ["complete"] * 2
        assert one.load_checkpoint("t") == (b"four", [])
        assert len(StudyReader(one).history()) == 8


def test_a_cell_in_full_here_and_stopped_there_keeps_one_fidelity_and_what_was_trained_is_not_lost(quick):
    a, b = begin(Folder("A")), begin(Folder("B"))
    add(a, "r1", [end("c0", 0, "t0")], epochs("c0", "t0", 4, seeds=[0]))
    stopped = end("c0", 1, "t1", "stopped", epoch=2, scheduler=SCHEDULER)
    add(b, "r2", [stopped], epochs("c0", "t1", 2, seeds=[1]))
    b.save_checkpoint("t1", 2, b"two", keep=2)
    (conflict,) = merge(a, [b]).conflicts
    assert "complete" in conflict.here
    assert "stopped at epoch 2 (seed 1), which is left out" in conflict.there
    frame = StudyReader(a).replicates()
    assert list(frame[frame["cell"] == "c0"]["status"]) == ["complete", "running"]
    assert a.load_checkpoint("t1") == (b"two", [])


def test_a_stop_that_the_first_folder_has_decided_otherwise_is_left_out(quick):
    a, b = begin(Folder("A")), begin(Folder("B"))
    rule = {"cell": "c0", "rung": 1, "epoch": 1, "value": 0.3, "cutoff": None, "rank": 1, "n": 1, "stop": False}
    rule |= {"scheduler": SCHEDULER, "trial": "t", "sequence": 1}
    add(a, "r1", history=epochs("c0", "t", 1), decisions=[{**rule, "run": "r1"}])
    before = {**rule, "cell": "c1", "trial": "t1", "value": 0.5}
    stop = {**rule, "sequence": 2, "cutoff": 0.5, "rank": 2, "n": 2, "stop": True}
    ends = [end("c0", s, "t", "stopped", epoch=1, scheduler=SCHEDULER) for s in (0, 1)]
    add(b, "r2", ends, epochs("c0", "t", 1), [{**before, "run": "r2"}, {**stop, "run": "r2"}])
    merged = merge(a, [b])
    (conflict,) = merged.conflicts
    assert "went on at epoch 1" in conflict.here
    assert "stopped at epoch 1" in conflict.there
    assert {row["cell"]: row["run"] for row in a.decisions_rows()} == {"c0": "r1", "c1": "r2"}
    assert a.rows("ends") == []
    assert any("compared other rivals" in remark for remark in merged.taken[0].remarks)


def test_of_a_trial_whose_seeds_the_first_folder_has_in_part_the_others_are_taken(quick):
    a, b = begin(Folder("A"), measures=MEASURES), begin(Folder("B"), measures=MEASURES)
    add(a, "r1", [end("c0", 0, "t0")], epochs("c0", "t0", 4, seeds=[0]))
    a.save_measure("t0", TAG, [{"cell": "c0", "seed": 0, "loss": 0.1}])
    add(b, "r2", [end("c0", s, "t01") for s in (0, 1)], epochs("c0", "t01", 4))
    b.save_checkpoint("t01", 4, b"four", keep=2)
    b.save_measure("t01", TAG, [{"cell": "c0", "seed": s, "loss": 0.1} for s in (0, 1)])
    (taken,) = merge(a, [b]).taken
    reader = StudyReader(a)
    assert sorted((row["trial"], row["seed"]) for row in a.rows("ends")) == [("t0", 0), ("t01", 1)]
    assert sorted(reader.measures("perturbation")["seed"]) == [0, 1], "no seed counts twice"
    assert len(reader.history()) == 8
    assert a.load_checkpoint("t01") == (None, [])
    (remark,) = taken.remarks
    assert "trial t01" in remark
    assert "(seed 1)" in remark


def test_a_trial_that_both_have_begun_goes_on_where_the_first_folder_has_it(quick):
    a, b = begin(Folder("A")), begin(Folder("B"))
    for folder, run, reached in ((a, "r1", 1), (b, "r2", 3)):
        add(folder, run, history=epochs("c0", "t", reached, place=run))
        folder.save_checkpoint("t", reached, run.encode(), keep=1)
    merge(a, [b])
    assert a.load_checkpoint("t") == (b"r1", [])
    assert set(StudyReader(a).history()["place"]) == {"r1"}


# What else comes along


def test_planned_cells_runs_and_what_the_study_asks_come_together(quick):
    a = begin(Folder("A"), plan(["c0"], [0]), seeds=[0], grid={"gamma": [0.0]}, arms={"fsam": {}})
    b = begin(Folder("B"), plan(["c3", "c0"], [0, 1]), grid={"gamma": [0.3, 0.0]}, measures=MEASURES)
    add(a, "r1")
    a.save_run("r2", {"run": "r2", "started": "r2", "ended": None})
    add(b, "r2")
    add(b, "r3")
    merge(a, [b])
    frame = StudyReader(a).replicates()
    assert list(zip(frame["cell"], frame["seed"], strict=True)) == [("c0", 0), ("c0", 1), ("c3", 0), ("c3", 1)]
    runs = {record["run"]: record for record in a.runs()}
    assert {"r1", "r2", "r3"} < set(runs)
    assert runs["r2"]["ended"] == "later", "one that was copied while it ran is known to have ended"
    (own,) = (record for record in runs.values() if "merge" in record)
    assert own["merge"]["from"] == b.uri
    assert own["merge"]["taken"]["planned"] == 3
    now = a.spec()
    assert now["seeds"] == [0, 1]
    assert now["grid"] == {"gamma": [0.0, 0.3]}
    assert list(now["arms"]) == ["fsam", "sgd"]
    assert now["measures"] == MEASURES


def test_cells_that_searches_have_chosen_come_together(quick):
    a, b = begin(Folder("A")), begin(Folder("B"))
    rows = [{"cell": f"c{n}", "arm": "fsam", "values": {"gamma": n / 10}} for n in range(3)]
    a.save_chosen(rows[:2])
    b.save_chosen(rows[1:])
    b.write(b"optuna's", "search.db")
    merge(a, [b])
    assert a.chosen() == rows
    assert a.read("search.db") is None


def test_two_folders_with_decisions_of_their_own_still_prove_their_ledger_together(quick):
    parts = {}
    for name, cells, values in (("A", ["c0", "c1"], [0.3, 0.1]), ("B", ["c2"], [0.2])):
        folder = parts[name] = begin(Folder(name), plan(cells))
        asha, rows = Asha(EPOCHS, 1, 2), []
        for cell, value in zip(cells, values, strict=True):
            decision = vars(asha.report(cell, 1, value))
            about = {"scheduler": SCHEDULER, "run": name, "sequence": len(rows) + 1, "trial": f"t{cell}"}
            rows.append({**decision, **about})
        add(folder, name, decisions=rows)
    merge(parts["A"], [parts["B"]])
    reader = StudyReader(parts["A"])
    found = check(reader, reader.replicates(), reader.runs())
    assert (found.decisions, found.mismatches) == (3, [])


def test_three_folders_are_merged_one_after_another(quick):
    a, b, c = begin(Folder("A")), begin(Folder("B")), begin(Folder("C"))
    add(b, "r2", [end("c0", s, "t0") for s in (0, 1)])
    add(c, "r3", [end("c0", 0, "t0", test_accuracy=0.25), end("c1", 0, "t1")])
    merged = merge(a, [b, c])
    assert [taken.ends for taken in merged.taken] == [2, 1]
    assert [conflict.source for conflict in merged.conflicts] == [c.uri]


def test_after_a_merge_the_plan_of_the_whole_study_finds_everything_done(tmp_path):
    content = {
        "name": "n",
        "question": "q",
        "recipe": {"dataset": "synthetic", "model": "mlp", "epochs": 4, "train_size": 64, "batch_size": 32},
        "arms": {"fsam": {"optimiser": "fsam"}, "sgd": {"optimiser": "sgd"}},
        "grid": {"gamma": [0.1, 0.2], "eta": [1.0]},
        "seeds": [0, 1],
    }
    parts = []
    for gamma in ([0.1], [0.2]):
        study = Study.of({**content, "grid": {"gamma": gamma, "eta": [1.0]}})
        folder = StudyFolder(str(tmp_path / str(gamma[0])))
        made = make_plan(study, folder)
        folder.save_study(study.model_dump(mode="json"), "", made.rows())
        for trial in made.todo:
            add(folder, f"r{trial.id}", [end(trial.cell.id, seed, trial.id) for seed in trial.seeds])
        parts.append(folder)
    whole = Study.of(content)
    assert len(make_plan(whole, parts[0]).todo) == 1
    merge(parts[0], parts[1:])
    assert make_plan(whole, parts[0]).todo == []
    assert open_study(parts[0].uri).spec["grid"]["gamma"] == [0.1, 0.2]


# Who is refused


@pytest.mark.parametrize(
    ("more", "rows", "words"),
    [
        ({"name": "m"}, None, "their names are n and m"),
        ({"question": "another"}, plan(["c1"]), "they ask different questions and share no cell"),
        ({"scheduler": {"name": "fifo"}}, None, "their schedulers are asha.* and fifo"),
        ({}, [{**row, "arm": "asam"} for row in plan(["c0"])], "cell c0 is of arm fsam in one and of arm asam"),
        ({}, [{**row, "epochs": 9} for row in plan(["c1"])], "4 epochs in one and 9 in the other"),
    ],
)
def test_folders_that_are_no_parts_of_one_study_are_refused_with_the_reason(quick, more, rows, words):
    a, b = begin(Folder("A"), plan(["c0"])), begin(Folder("B"), rows, **more)
    before = dict(a.kept)
    with pytest.raises(StoreError, match=words):
        merge(a, [b])
    assert a.kept == before


def test_another_question_with_a_shared_cell_is_the_same_study(quick):
    a, b = begin(Folder("A"), plan(["c0"])), begin(Folder("B"), plan(["c0", "c1"]), question="another")
    merge(a, [b])
    assert a.spec()["question"] == "q"


def test_a_folder_is_not_merged_with_itself_nor_into_somebody_elses(quick):
    a, b, other = begin(Folder("A")), begin(Folder("B")), Folder("out")
    other.write(b"", "thesis.tex")
    for others, out, words in [
        ([a], None, "named twice"),
        ([b, b], None, "named twice"),
        ([b], a, "choose another one to make"),
        ([b], other, "holds other files"),
        ([Folder("empty")], None, "holds no study"),
    ]:
        with pytest.raises(StoreError, match=words):
            merge(a, others, out)


def test_a_damaged_source_is_named_before_anything_is_written(quick):
    a, b = begin(Folder("A")), begin(Folder("B"))
    add(b, "r2", [end("c0", 0, "t")])
    (place,) = (path for path in b.kept if path.startswith("records/"))
    b.kept[place] = b.kept[place][:-20]
    before = dict(a.kept)
    with pytest.raises(StoreError, match="damaged"):
        merge(a, [b])
    assert a.kept == before


def test_a_folder_that_is_being_run_is_read_and_not_written(tmp_path):
    a, b = (begin(StudyFolder(str(tmp_path / name))) for name in "AB")
    add(b, "r2", [end("c0", 0, "t")])
    with hold(b, "r2"):
        merged = merge(a, [b])
        assert "is being run by" in merged.taken[0].remarks[0]
        with pytest.raises(HeldError):
            merge(b, [a])
    assert [row["cell"] for row in a.rows("ends")] == ["c0"]
    assert holder(a) is None


def test_a_merge_leaves_its_record_and_its_account(tmp_path):
    a, b = (begin(StudyFolder(str(tmp_path / name))) for name in "AB")
    add(b, "r2", [end("c0", 0, "t")], epochs("c0", "t", 4, seeds=[0]))
    said = lines(merge(a, [b]))
    assert said == [f"from {b.uri} into {a.uri}: 1 ended replicate, 4 replicate epochs, 1 run record"]
    (record,) = (json.loads(a.read("runs", name)) for name in a.names("runs") if name != "r2.json")
    assert record["ended"] is not None
    assert record["merge"]["taken"]["ends"] == 1
    assert lines(merge(a, [b])) == [f"from {b.uri} into {a.uri}: nothing, it is all there"]
