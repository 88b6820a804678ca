"""What the terminal shows: every cell with its state, told apart without colour, at every size of grid."""

import pytest
from rich.console import Console

from study.board import Board
from study.plan import make_plan
from study.progress import render, summary
from study.spec import Study
from study.store import StudyFolder
from study.words import duration

CONTENT = {
    "name": "shown",
    "question": "q",
    "recipe": {"dataset": "synthetic", "model": "mlp", "epochs": 4, "batch_size": 32},
    "arms": {"fsam": {"optimiser": "fsam"}, "sam [x]": {"optimiser": "sam"}, "sgd": {"optimiser": "sgd"}},
    "grid": {"gamma": [0.05, 0.1], "eta": [0.1, 1.0, 10.0]},
    "seeds": [0, 1],
}


@pytest.fixture
def board(tmp_path):
    def board(**changes):
        return make(make_plan(Study.of({**CONTENT, **changes}), StudyFolder(str(tmp_path / "shown"))))

    def make(plan):
        made = Board.of(plan)
        made.plan = plan
        return made

    return board


def text(board, width=120):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(board))
    return console.export_text()


def test_a_cell_shows_its_state_value_and_epoch(board):
    shown = board()
    first, second, third = shown.plan.todo[:3]
    shown.start(first.cell.id)
    shown.report(first.id, first.cell.id, 2, 0.613)
    shown.start(second.cell.id)
    shown.report(second.id, second.cell.id, 4, 0.75)
    shown.end(second.id, second.cell.id, "complete")
    shown.report(third.id, third.cell.id, 1, 0.1)
    shown.end(third.id, third.cell.id, "stopped")
    out = text(shown)
    assert "61.3 › 2/4" in out
    assert "75.0 ✓" in out
    assert "10.0 ■ 1/4" in out
    assert "2 of 9 cells (1 running, 1 complete, 1 stopped)" in summary(shown)
    # one epoch of two seeds is reported of each; the two that have ended need none of their others
    assert "18 of 72 epochs" in summary(shown)


def test_arms_are_shown_by_the_axes_they_use_and_their_names_are_no_markup(board):
    out = text(board())
    assert "eta 0.1" in out
    assert "sam [x]: mean validation accuracy, %" in out
    assert [line for line in out.splitlines() if line.startswith("sgd")] == ["sgd: mean validation accuracy, %  ·"]


def test_a_missing_value_of_an_axis_has_its_place(board):
    out = text(board(grid={"m": [None, 8]}, arms={"sam": {"optimiser": "sam"}}))
    assert "m none" in out
    assert out.count("·") == 3  # two cells and the key


def test_a_wide_grid_is_counted(board):
    axis = [round(0.01 * i, 3) for i in range(1, 41)]
    out = text(board(grid={"gamma": axis, "eta": axis}, arms={"fsam": {"optimiser": "fsam"}}))
    assert "fsam: 1600 cells: · 1600 waiting" in out


@pytest.mark.parametrize(("seconds", "words"), [(5, "5 s"), (130, "2 min 10 s"), (12000, "3 h 20 min")])
def test_durations_are_read_at_a_glance(seconds, words):
    assert duration(seconds) == words
