"""Who watches sees what the folder holds: the same board as the run's own, the end of the run, and its exit code."""

import json
import math
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from recorded import ended as record_end
from recorded import trained
from rich.console import Console

from study import spectator
from study.board import Board
from study.cli import main
from study.lock import hold
from study.plan import make_plan
from study.progress import render, summary
from study.spec import Study
from study.spectator import Spectator, ended
from study.store import StoreError, StudyFolder

EPOCHS, SEEDS = 4, (0, 1)

CONTENT = {
    "name": "seen",
    "question": "Who sees what?",
    "recipe": {"dataset": "synthetic", "model": "mlp", "epochs": EPOCHS, "batch_size": 32},
    "arms": {"fsam": {"optimiser": "fsam"}, "sam": {"optimiser": "sam"}, "sgd": {"optimiser": "sgd"}},
    "grid": {"gamma": [0.05, 0.1], "eta": [0.1, 1.0, 10.0]},
    "seeds": list(SEEDS),
}


def epochs(trial, last, base=0.5):
    cell = trial.cell.id
    return [
        {"cell": cell, "seed": seed, "epoch": epoch, "validation_accuracy": base + 0.01 * epoch + 0.1 * seed}
        for epoch in range(1, last + 1)
        for seed in trial.seeds
    ]


def end(trial, status, epoch=EPOCHS, base=0.5, seeds=None):
    rows = [row for row in epochs(trial, epoch, base) if row["epoch"] == epoch]
    more = {"status": status, "scheduler": None, "reason": None, "run": "r1", "device": "CPU"}
    return [
        {**row, **more, "epoch": None if status == "failed" else epoch}
        for row in rows
        if seeds is None or row["seed"] in seeds
    ]


@pytest.fixture
def seen(tmp_path):
    """A study in every state: its folder, its plan before, and what became of the plan's trials."""
    folder = StudyFolder(str(tmp_path / "seen"))
    study = Study.of(CONTENT)
    plan = make_plan(study, folder)
    folder.save_study(study.model_dump(mode="json"), "", plan.rows())
    complete, stopped, diverged, failed, running, half, *waiting = plan.todo
    for trial, status, epoch in ((complete, "complete", 4), (stopped, "stopped", 2), (diverged, "diverged", 1)):
        trained(folder, trial.id, epochs(trial, epoch))
        record_end(folder, trial.id, end(trial, status, epoch))
    record_end(folder, failed.id, end(failed, "failed"))
    trained(folder, running.id, epochs(running, 3)[:-1])
    record_end(folder, half.id, end(half, "complete", seeds={1}))
    names = SimpleNamespace(
        complete=complete,
        stopped=stopped,
        diverged=diverged,
        failed=failed,
        running=running,
        half=half,
        waiting=waiting,
    )
    return folder, study, names


def text(board):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(board))
    return console.export_text()


def test_every_state_of_a_cell_is_seen_with_its_epoch_and_value(seen):
    folder, _, names = seen
    with hold(folder, "r1"):
        board = Spectator(folder).look().board
    of = {name: board.cells[getattr(names, name).cell.id] for name in vars(names) if name != "waiting"}
    assert {name: (state.state, state.epoch) for name, state in of.items()} == {
        "complete": ("complete", 4),
        "stopped": ("stopped", 2),
        "diverged": ("diverged", 1),
        "failed": ("failed", 0),
        "running": ("running", 2),  # of its two seeds one has no third epoch yet
        "half": ("waiting", 4),
    }
    assert of["complete"].value == pytest.approx(0.54 + 0.05)
    assert of["stopped"].value == pytest.approx(0.52 + 0.05)
    assert of["half"].value == pytest.approx(0.54 + 0.1)
    assert of["running"].value == pytest.approx((0.53 + 0.52 + 0.1) / 2), "each seed's last"
    assert of["failed"].value is None
    assert {board.cells[t.cell.id].state for t in names.waiting} == {"waiting"}
    assert board.done == 2 * 4 + 2 * 2 + 2 * 1 + (3 + 2) + 4
    assert board.total == 2 * 4 + 2 * 2 + 2 * 1 + 4 + (9 * 2 - 7) * EPOCHS, "what has ended trains no further"
    assert "of this run" not in summary(board)
    assert f"{board.done} of {board.total} epochs" in summary(board)


def test_it_is_drawn_as_the_run_itself_draws_it(seen):
    folder, study, names = seen
    # By the other way: from the study and its data, as a new run lays it out; that knows nothing of failed trials.
    own = Board.of(make_plan(study, folder))
    look = Spectator(folder).look()
    theirs = look.board
    assert list(theirs.cells) == list(own.cells)
    for cell, state in own.cells.items():
        if cell in (names.failed.cell.id, names.running.cell.id):
            continue
        assert (theirs.cells[cell].state, theirs.cells[cell].epoch) == (state.state, state.epoch)
        assert (
            theirs.cells[cell].value == pytest.approx(state.value) if state.value else theirs.cells[cell].value is None
        )
        recipe, drawn = state.cell.recipe, theirs.cells[cell].cell.recipe
        assert [getattr(drawn, key) for key in CONTENT["grid"]] == [getattr(recipe, key) for key in CONTENT["grid"]]
    for board in (own, theirs):
        for cell in (names.failed.cell.id, names.running.cell.id):
            board.cells[cell].state, board.cells[cell].value = "waiting", None
    grids = [text(board).rpartition("· waiting")[0] for board in (own, theirs)]
    assert grids[0] == grids[1]
    assert "gamma" in grids[0]
    assert "eta 10" in grids[0]


def test_while_nobody_runs_it_nothing_is_running(seen):
    folder, _, names = seen
    look = Spectator(folder).look()
    assert look.holder is None
    assert not look.alive
    assert look.board.cells[names.running.cell.id].state == "waiting"
    assert look.board.seconds_left() is None


def test_cells_that_a_search_has_still_to_choose_are_counted(tmp_path):
    folder = StudyFolder(str(tmp_path / "searched"))
    content = {key: value for key, value in CONTENT.items() if key not in ("grid", "arms")}
    search = {"sampler": "random", "cells": 5, "space": {"gamma": {"low": 0.01, "high": 1.0, "log": True}}}
    study = Study.of(
        {**content, "name": "searched", "recipe": {**CONTENT["recipe"], "optimiser": "sam"}, "search": search}
    )
    folder.save_study(study.model_dump(mode="json"), "", [])
    board = Spectator(folder).look().board
    assert (board.unsampled, len(board.cells), board.total) == (5, 0, 5 * EPOCHS * len(SEEDS))
    assert "0 of 5 cells" in summary(board)


def test_what_is_left_is_guessed_from_what_was_seen_since_it_moved(seen, monkeypatch):
    folder, _, names = seen
    now = [1000.0]
    monkeypatch.setattr(spectator.time, "monotonic", lambda: now[0])
    with hold(folder, "r1"):
        watching = Spectator(folder, clock=lambda: now[0])
        now[0] += 500  # workers are being started
        assert watching.look().board.seconds_left() is None
        trained(folder, names.waiting[0].id, epochs(names.waiting[0], 1))
        now[0] += 30
        assert watching.look().board.seconds_left() is None, "too short to tell"
        trained(folder, names.waiting[1].id, epochs(names.waiting[1], 1))
        now[0] += 70
        board = watching.look().board
        # 4 epochs in 100 s since the last look without any
        assert board.seconds_left() == pytest.approx(25.0 * (board.total - board.done))


def test_looks_end_when_the_lock_is_given_back(seen):
    folder, _, names = seen
    lease = hold(folder, "r1")
    lease.__enter__()
    count, seen_states = 0, []

    def sleep(seconds):
        nonlocal count
        count += 1
        if count == 2:
            record_end(folder, names.running.id, end(names.running, "complete"))
            lease.__exit__(None, None, None)

    for look in Spectator(folder).looks(every=0.1, sleep=sleep):
        seen_states.append((look.alive, look.board.cells[names.running.cell.id].state))
    assert seen_states == [(True, "running"), (True, "running"), (False, "complete")], "the last look sees everything"


def test_a_driver_that_died_may_have_a_successor_for_a_while(seen):
    folder, _, _ = seen
    now, looked = [0.0], []
    holders = iter(["alive", "gone", "gone", "alive", "gone", "gone", "gone"])
    watching = Spectator(folder, clock=lambda: now[0])

    def look():
        looked.append(next(holders))
        return spectator.Look(Board("n", {}, 0), SimpleNamespace(state=looked[-1], run="r1"))

    watching.look = look

    def sleep(seconds):
        now[0] += spectator.SUCCESSION * 0.6

    list(watching.looks(1.0, sleep))
    assert looked == ["alive", "gone", "gone", "alive", "gone", "gone", "gone"]


def test_a_large_study_is_looked_at_less_often(seen):
    folder, _, _ = seen
    now, pauses = [0.0], []

    def slow_clock():
        now[0] += 2.0  # each look asks twice
        return now[0]

    with hold(folder, "r1"):
        looks = Spectator(folder, clock=slow_clock).looks(1.0, pauses.append)
        next(looks)
        next(looks)
    assert pauses[0] >= 3 * 2.0


STARTED = datetime(2026, 11, 25, 7, 0, tzinfo=UTC)
OVER = {"run": "r1", "started": STARTED.isoformat(), "ended": (STARTED + timedelta(minutes=2)).isoformat()}


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"trials": {"complete": 3}}, "complete", "run r1 ended after 2 min 0 s; its trials: 3 complete"),
        ({"trials": {"complete": 1, "failed": 2}}, "failed", "1 complete, 2 failed"),
        ({"trials": {"complete": 1}, "unmeasured": ["x"]}, "failed", "tries what failed again"),
        ({"interrupted": True}, "interrupted", "none ended; interrupted"),
        ({"interrupted": True, "reason": "stopped as a@b asked"}, "interrupted", "stopped as a@b asked"),
        ({"interrupted": True, "reason": "stopped by its budget (budget.wall: 1 s of 1 s)"}, "budget", "its budget"),
        (
            {"interrupted": True, "reason": "cannot write x: no space"},
            "broken",
            "it broke off: cannot write x: no space",
        ),
        ({"ended": None}, "cut off", "run r1 has ended without a word"),
    ],
)
def test_how_a_run_ended_is_told_from_its_record(more, kind, said):
    end = ended({**OVER, "interrupted": False, **more})
    assert end.kind == kind
    assert said in end.line


# The verb


@pytest.fixture
def verb(capsys):
    def run(*arguments):
        code = main(list(map(str, arguments)))
        return code, *capsys.readouterr()

    return run


def test_a_study_that_nobody_runs_is_shown_once_with_how_its_last_run_ended(seen, verb):
    folder, _, _ = seen
    folder.save_run("r1", {**OVER, "interrupted": False, "trials": {"complete": 1}})
    code, out, err = verb("watch", folder.uri)
    assert (code, err) == (0, "")
    assert "fsam: mean validation accuracy, %" in out
    assert out.splitlines()[-1] == "nobody runs it now; run r1 ended after 2 min 0 s; its trials: 1 complete"
    code, out, _ = verb("watch", "seen", "--storage", folder.uri.rpartition("/")[0], "--json")
    assert code == 0
    (line,) = out.splitlines()
    found = json.loads(line, parse_constant=pytest.fail)
    assert found["cells"] == {"complete": 1, "stopped": 1, "diverged": 1, "failed": 1, "waiting": 5}
    assert (found["run"], found["driver"], found["study"]) == (None, None, "seen")


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"trials": {"complete": 1}}, 0),
        ({"trials": {"failed": 1}}, 1),
        ({"interrupted": True, "reason": "stopped by its budget (x)"}, 3),
        ({"interrupted": True}, 130),
        ({"interrupted": True, "reason": "the disk is full"}, 2),
        (None, 0),
    ],
)
def test_whoever_watched_a_run_ends_with_its_exit_code(seen, verb, monkeypatch, more, code):
    folder, _, _ = seen
    lease = hold(folder, "r1")
    lease.__enter__()

    def sleep(seconds):
        if more is not None:
            folder.save_run("r1", {**OVER, "interrupted": False, **more})
        lease.__exit__(None, None, None)

    monkeypatch.setattr(spectator.time, "sleep", sleep)
    monkeypatch.setattr(Spectator.looks, "__defaults__", (sleep,))
    got, out, _ = verb("watch", folder.uri)
    assert got == code, out
    first, *_, last = out.splitlines()
    assert first.startswith("seen: 4 of 9 cells (1 running, 1 complete, 1 stopped, 1 diverged, 1 failed), ")
    assert last.startswith("run r1 ")


def test_it_is_waited_for_a_run_that_is_to_begin(tmp_path, verb):
    began = datetime.now(UTC)
    code, _, err = verb("watch", tmp_path / "none", "--wait", "1")
    assert code == 2
    assert err == f"study: {tmp_path / 'none'} holds no study (no study.json)\n"
    assert datetime.now(UTC) - began >= timedelta(seconds=1)


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "x"])
def test_seconds_are_seconds(tmp_path, seconds):
    with pytest.raises(SystemExit) as left:
        main(["watch", str(tmp_path), "--every", seconds])
    assert left.value.code == 2


def test_an_older_or_newer_recipe_can_be_watched_all_the_same(seen):
    folder, study, _ = seen
    rows = [{**row, "invented": 1.5} for row in make_plan(study, folder).rows()]
    for row in rows:
        del row["momentum"]
    folder.save_plan(rows)
    board = Spectator(folder).look().board
    assert len(board.cells) == 9
    assert not math.isnan(board.total)
    with pytest.raises(StoreError, match="holds no study"):
        Spectator(StudyFolder(folder.uri + "x"))
