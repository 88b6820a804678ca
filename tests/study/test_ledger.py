"""A ledger proves itself or says where it does not; and a trial's story is told in the words of its decisions."""

import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.asha import Asha
from study.ledger import Merged, Story, merges, replay, verdict, why

MAX_T, GRACE, FACTOR = 27, 3, 3
SCHEDULER = "asha(grace_period=3, reduction_factor=3)"
ARMS = {**dict.fromkeys(["a1", "a2", "a3", "a4", "a5"], "fsam"), **dict.fromkeys(["b1", "b2", "b3", "b4"], "sgd")}

#: Few values: ties at a cutoff, and what is not finite.
VALUES = st.sampled_from([0.1, 0.2, 0.2000000000000001, 0.3, 0.5, math.nan, math.inf, -math.inf])
REPORTS = st.lists(st.tuples(st.sampled_from(sorted(ARMS)), VALUES), max_size=40)


def fresh(arm):
    return Asha(MAX_T, GRACE, FACTOR)


class Folder:
    """A ledger as drivers write it: each run begins with the decisions that are there."""

    def __init__(self, rows=()):
        self.rows = list(rows)

    def run(self, name, reports, cells=ARMS):
        ashas = {arm: fresh(arm) for arm in ARMS.values()}
        known = [row for row in self.rows if row["cell"] in cells]
        for row in known:
            ashas[ARMS[row["cell"]]].rebuild([decision(row)])
        epochs = {}
        for cell, value in reports:
            if cell not in cells:
                continue
            epochs[cell] = epochs.get(cell, 0) + GRACE
            found = ashas[ARMS[cell]].report(cell, epochs[cell], value)
            if found is not None:
                number = max((row["sequence"] for row in self.rows), default=0) + 1
                row = {**asdict(found), "scheduler": SCHEDULER, "run": name, "sequence": number, "trial": f"t-{cell}"}
                self.rows.append(row)
        return self


def decision(row):
    from study.plan import as_decision

    return as_decision(row)


@given(first=REPORTS, second=REPORTS, order=st.randoms())
def test_what_drivers_have_decided_one_after_another_replays_to_the_last_bit(first, second, order):
    folder = Folder().run("r1", first).run("r2", second)
    rows = list(folder.rows)
    order.shuffle(rows)
    found = replay(rows, ARMS, fresh)
    assert found.mismatches == []
    assert (found.decisions, found.unplanned) == (len(rows), 0)


@given(reports=REPORTS.filter(len), which=st.integers(0, 99), data=st.data())
def test_a_decision_that_was_altered_is_named(reports, which, data):
    folder = Folder().run("r1", reports)
    row = folder.rows[which % len(folder.rows)]
    key = data.draw(st.sampled_from(["stop", "rank", "n", "cutoff", "rung"]))
    row[key] = {"stop": not row["stop"], "rank": row["rank"] + 1, "n": row["n"] + 1, "cutoff": 0.123, "rung": 1}[key]
    found = replay(folder.rows, ARMS, fresh)
    assert row["sequence"] in [mismatch.sequence for mismatch in found.mismatches]


def test_one_altered_verdict_does_not_drag_the_ones_after_it_along():
    folder = Folder().run("r1", [("a1", 0.3), ("a2", 0.2), ("a3", 0.5), ("a4", 0.1)])
    folder.rows[1]["stop"] = not folder.rows[1]["stop"]
    (mismatch,) = replay(folder.rows, ARMS, fresh).mismatches
    assert (mismatch.sequence, mismatch.run, mismatch.trial) == (2, "r1", "t-a2")
    assert "altered" in str(mismatch)
    assert str(mismatch).count("\n") == 0


def test_a_cell_that_is_decided_twice_at_a_rung_is_named():
    folder = Folder().run("r1", [("a1", 0.3)])
    folder.rows.append({**folder.rows[0], "sequence": 2, "run": "zombie"})
    (mismatch,) = replay(folder.rows, ARMS, fresh).mismatches
    assert (mismatch.run, mismatch.replayed) == ("zombie", None)
    assert "no decision" in str(mismatch)


def test_a_study_that_was_narrowed_is_named_as_the_reason():
    folder = Folder().run("r1", [("a1", 0.3), ("a2", 0.2), ("b1", 0.2)])
    found = replay(folder.rows, {"a2": "fsam", "b1": "sgd"}, fresh)
    assert found.unplanned == 1
    (mismatch,) = found.mismatches
    assert (mismatch.recorded.n, mismatch.replayed.n) == (2, 1)
    assert "narrowed" in mismatch.why


def test_a_study_that_was_narrowed_and_widened_again_is_named_as_the_reason():
    folder = Folder().run("r1", [("a1", 0.3)]).run("r2", [("a2", 0.2)], cells=["a2", "b1"])
    (mismatch,) = replay(folder.rows, ARMS, fresh).mismatches
    assert mismatch.run == "r2"
    assert "widened" in mismatch.why


def test_decisions_of_a_version_whose_arms_shared_their_rungs_are_named_as_such():
    asha, rows = fresh("all"), []
    for number, (cell, value) in enumerate([("a1", 0.3), ("b1", 0.2), ("a2", 0.25)], 1):
        found = asha.report(cell, GRACE, value)
        rows.append({**asdict(found), "scheduler": SCHEDULER, "run": "r1", "sequence": number, "trial": f"t-{cell}"})
    found = replay(rows, ARMS, fresh).mismatches
    assert [mismatch.sequence for mismatch in found] == [2, 3]
    assert all("older version, in which all arms shared their rungs" in str(mismatch) for mismatch in found)


HERE = [("a1", 0.3), ("a2", 0.2), ("b1", 0.5)]
THERE = [("a3", 0.5), ("a4", 0.1), ("b2", 0.1)]


def test_folders_that_were_merged_are_replayed_each_among_its_own_rivals_and_later_runs_among_all():
    merged = Folder(Folder().run("r1", HERE).rows + Folder().run("r2", THERE).rows)
    record = {"run": "m", "merge": {"here": ["r1"], "there": ["r2"]}}
    merged.run("r3", [("b3", 0.3)])
    assert merged.rows[-1]["n"] == 3
    assert replay(merged.rows, ARMS, fresh, merges([record, {"run": "r1"}])).mismatches == []
    assert replay(merged.rows, ARMS, fresh).mismatches, "without the merge's record they would not follow"


def test_a_merge_that_is_done_again_after_more_has_been_decided_still_replays():
    there = Folder().run("r2", THERE)
    merged = Folder(Folder().run("r1", HERE).rows + there.rows)
    first = {"merge": {"here": ["r1"], "there": ["r2"]}}
    merged.run("r3", [("b3", 0.3)])
    later = there.run("r4", [("b4", 0.4)]).rows[-1]
    merged.rows.append(later)
    second = {"merge": {"here": ["r1", "r2", "r3"], "there": ["r2", "r4"]}}
    merged.run("r5", [("a5", 0.1)])
    assert (later["n"], merged.rows[-1]["n"]) == (2, 5), "the later run knew what both folders had"
    found = replay(merged.rows, ARMS, fresh, merges([first, second]))
    assert found.mismatches == []
    assert found.decisions == 9


def test_rivals_that_a_merge_left_out_are_named_as_the_reason():
    there = Folder().run("r2", THERE).rows[1:]
    rows = Folder().run("r1", HERE).rows + there
    found = replay(rows, ARMS, fresh, [Merged(frozenset({"r1"}), frozenset({"r2"}))])
    assert [mismatch.run for mismatch in found.mismatches] == ["r2"]
    assert "merge" in found.mismatches[0].why


# Why

STOPPED = {
    "cell": "a1", "rung": 9, "epoch": 9, "value": 0.398, "cutoff": 0.412, "rank": 7, "n": 9, "stop": True,
    "scheduler": SCHEDULER, "run": "r1", "sequence": 12, "trial": "t1",
}  # fmt: skip
WENT_ON = {**STOPPED, "rung": 3, "epoch": 3, "value": 0.431, "cutoff": None, "rank": 1, "n": 1, "stop": False}
WENT_ON["sequence"] = 3


def end(seed, status, trial="t1", **more):
    return {"cell": "a1", "seed": seed, "trial": trial, "status": status, "epoch": 9, "scheduler": None, **more}


STORY = Story(
    cell="a1",
    name="fsam, gamma 0.1",
    epochs=27,
    scheduler=SCHEDULER,
    ends=[end(s, "stopped", scheduler=SCHEDULER) for s in (0, 1)],
    decisions=[STOPPED, WENT_ON],
    epochs_reached={},
    waiting=None,
    run_by=None,
)
NOTHING = replace(STORY, ends=[], decisions=[])


def test_a_stop_is_told_with_its_rung_rank_cutoff_and_value():
    assert why(STORY) == [
        "trial t1, seeds 0, 1 of cell a1 (fsam, gamma 0.1)",
        "  went on at epoch 3, rung 3, ranked 1 of 1, no cutoff yet, value 0.431",
        "  stopped at epoch 9, rung 9, ranked 7 of 9, cutoff 0.412, value 0.398",
    ]


def test_a_value_that_is_no_number_is_said_to_be_not_finite():
    assert verdict(decision({**STOPPED, "value": math.nan})).endswith("cutoff 0.412, value not finite")


def test_a_stop_by_a_hair_shows_the_hair():
    told = verdict(decision({**STOPPED, "value": 0.4120000001, "cutoff": 0.4120000002}))
    assert told.endswith("cutoff 0.4120000002, value 0.4120000001")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (end(0, "complete", epoch=27), "complete at epoch 27"),
        (end(0, "diverged", reason="diverged at epoch 5"), "diverged at epoch 5"),
        (end(0, "stopped", reason="another seed diverged at epoch 5"), "another seed diverged at epoch 5"),
        (end(0, "stopped", scheduler="asha(x)"), "stopped at epoch 9 by asha(x), which is not this study's scheduler"),
        (end(0, "failed", epoch=None, reason="out of memory"), "failed: out of memory"),
        (end(0, "failed", epoch=None, reason=None), "failed: no reason was recorded"),
    ],
)
def test_every_end_is_told(row, words):
    assert why(replace(NOTHING, ends=[row]))[1].strip().startswith(words)


def test_seeds_that_ended_apart_are_told_apart():
    rows = [end(0, "diverged", reason="diverged at epoch 5")]
    rows += [end(s, "stopped", reason="another seed diverged at epoch 5") for s in (1, 2)]
    assert why(replace(NOTHING, ends=rows))[1:] == [
        "  diverged at epoch 5 (seed 0)",
        "  another seed diverged at epoch 5 (seed 1, 2)",
    ]


def test_a_seed_that_was_added_to_a_stopped_cell_names_the_decision_that_it_follows():
    story = replace(STORY, ends=[*STORY.ends, end(2, "stopped", trial="t2", scheduler=SCHEDULER)])
    head, line = why(story, "t2")
    assert head.startswith("trial t2, seed 2 ")
    assert line == (
        "  stopped at epoch 9: it followed its cell, which trial t1 had seen stopped at epoch 9, rung 9, "
        "ranked 7 of 9, cutoff 0.412, value 0.398"
    )


def test_a_seed_that_waits_says_where_its_cell_has_ended():
    story = replace(STORY, waiting=("t2", [2]))
    assert why(story, "t2")[1] == (
        "  not begun; nobody runs the study now, the next run trains it to epoch 9, where its cell has ended"
    )


def test_a_trial_in_training_says_its_epoch_and_who_trains_it():
    story = replace(NOTHING, decisions=[WENT_ON], epochs_reached={"t1": {0: 7, 1: 7}}, waiting=("t1", [0, 1]))
    running = why(replace(story, run_by="ann@node7"))
    assert running[0] == "trial t1, seeds 0, 1 of cell a1 (fsam, gamma 0.1)"
    assert running[1].strip().startswith("went on at epoch 3")
    assert running[2] == "  in training at epoch 7, to epoch 27; the study is run by ann@node7"
    assert why(story)[2] == "  at epoch 7; nobody runs the study now, the next run trains it to epoch 27"


def test_a_trial_that_waits_while_the_study_is_run_says_so():
    (_, line) = why(replace(NOTHING, waiting=("t1", [0]), run_by="ann@node7"))
    assert line.startswith("  no epoch is recorded yet; it waits for its turn or trains its first, to epoch 27")


def test_a_failed_trial_says_that_a_run_goes_on_with_it():
    story = replace(NOTHING, ends=[end(0, "failed", epoch=None, reason="out of memory")], waiting=("t1", [0]))
    assert why(story)[1:] == [
        "  failed: out of memory",
        "  not ended by that: a run goes on with it from its last checkpoint, to epoch 27",
    ]


def test_a_stop_whose_end_was_lost_with_its_driver_says_so():
    assert why(replace(STORY, ends=[]))[-1] == "  its end is not recorded yet; a run records it without deciding again"
