"""The live grid in the terminal, and plain lines where the output is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from study.board import Board, CellState
from study.words import duration

#: Told apart by sign as well as by colour.
SIGNS = {"waiting": "·", "running": "›", "complete": "✓", "stopped": "■", "diverged": "✗", "failed": "!"}
STYLES = {
    "waiting": "dim",
    "running": "bold cyan",
    "complete": "green",
    "stopped": "yellow",
    "diverged": "magenta",
    "failed": "bold red",
}

#: A larger grid than this is shown as counts.
WIDEST, TALLEST = 12, 24

#: Seconds between two plain lines.
PLAIN_EVERY = 10.0


class Display(Protocol):
    """Something that shows a board for as long as it is entered."""

    def __enter__(self) -> Display: ...

    def __exit__(self, *exc: object) -> None: ...

    def update(self) -> None: ...


def make_display(board: Board) -> Display:
    """A live grid on a terminal, plain lines elsewhere."""
    console = Console()
    return LiveGrid(board, console) if console.is_terminal else PlainLines(board)


class LiveGrid:
    def __init__(self, board: Board, console: Console) -> None:
        self._board = board
        self._live = Live(get_renderable=lambda: render(board), console=console, refresh_per_second=4)

    def __enter__(self) -> LiveGrid:
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.__exit__(None, None, None)

    def update(self) -> None:
        """Nothing to do: the live view draws itself four times a second."""


class PlainLines:
    """One line every ten seconds while something changes."""

    def __init__(self, board: Board) -> None:
        self._board, self._last, self._shown = board, time.monotonic(), ""

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *exc: object) -> None:
        self._print()

    def update(self) -> None:
        if time.monotonic() - self._last >= PLAIN_EVERY:
            self._print()

    def _print(self) -> None:
        self._last = time.monotonic()
        line = summary(self._board)
        if line != self._shown:
            self._shown = line
            print(line, flush=True)


def summary(board: Board) -> str:
    """`digits_sensitivity: 12 of 36 cells (10 complete, 2 stopped), 300 of 2160 epochs, about 2 min 10 s left`."""
    counts = board.counts()
    ended = sum(counts[s] for s in ("complete", "stopped", "diverged", "failed"))
    detail = ", ".join(f"{n} {s}" for s in SIGNS if s != "waiting" and (n := counts[s]))
    left = board.seconds_left()
    parts = [
        f"{board.title}: {ended} of {len(board.cells) + board.unsampled} cells" + (f" ({detail})" if detail else ""),
        f"{board.done} of {board.total} epochs{board.whose}",
    ]
    if left is not None and board.done < board.total:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def render(board: Board) -> RenderableType:
    """The whole board: a grid for each arm, a key to its signs, and the summary line."""
    parts: list[RenderableType] = []
    for arm in dict.fromkeys(entry.cell.arm for entry in board.cells.values()):
        entries = [e for e in board.cells.values() if e.cell.arm == arm]
        parts.append(_arm_grid(arm, entries))
    key = Text()
    for state, sign in SIGNS.items():
        key.append(f"{sign} {state}  ", style=STYLES[state])
    return Group(*parts, key, Text(summary(board)))


def _arm_grid(arm: str, entries: list[CellState]) -> RenderableType:
    axes = _varying(entries)
    if len(axes) > 2:
        return _counts(arm, entries)
    rows = _values(entries, axes[0]) if len(axes) == 2 else [None]
    columns = _values(entries, axes[-1]) if axes else [None]
    if len(rows) > TALLEST or len(columns) > WIDEST:
        return _counts(arm, entries)
    cells = {tuple(getattr(e.cell.recipe, a) for a in axes): e for e in entries}
    title = Text(f"{arm}: mean validation accuracy, %", style="bold")
    if not axes:
        return Text.assemble(title, "  ", _cell(entries[0]))
    # Not the table's own title: that would be broken to the table's width.
    table = Table()
    if len(axes) == 2:
        table.add_column(axes[0])
    for value in columns:
        table.add_column(Text(f"{axes[-1]} {_short(value)}"), justify="right")
    for row in rows:
        keys = [(row, c)[2 - len(axes) :] for c in columns]
        head = [Text(_short(row))] if len(axes) == 2 else []
        table.add_row(*head, *(_cell(cells.get(key)) for key in keys))
    return Group(title, table)


def _counts(arm: str, entries: list[CellState]) -> Text:
    text = Text(f"{arm}: {len(entries)} cells: ")
    for state, sign in SIGNS.items():
        n = sum(e.state == state for e in entries)
        if n:
            text.append(f"{sign} {n} {state}  ", style=STYLES[state])
    best = max((e for e in entries if e.value is not None), key=lambda e: e.value or 0.0, default=None)
    if best is not None and best.value is not None:
        text.append(f"highest so far {100 * best.value:.1f} %")
    return text


def _cell(entry: CellState | None) -> Text:
    if entry is None:
        return Text("")
    sign, style = SIGNS[entry.state], STYLES[entry.state]
    if entry.value is None:
        return Text(sign, style=style)
    text = f"{100 * entry.value:.1f} {sign}"
    if entry.state in ("running", "stopped", "diverged"):
        text += f" {entry.epoch}/{entry.target}"
    return Text(text, style=style)


def _varying(entries: list[CellState]) -> list[str]:
    """The recipe fields in which an arm's cells differ, gamma before eta."""
    fields = type(entries[0].cell.recipe).model_fields
    return [f for f in fields if len({getattr(e.cell.recipe, f) for e in entries}) > 1]


def _values(entries: list[CellState], axis: str) -> list[Any]:
    values: Iterable[Any] = dict.fromkeys(getattr(e.cell.recipe, axis) for e in entries)
    return sorted(values, key=lambda v: (isinstance(v, str), v is not None, v))


def _short(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
