"""Contenders in processes of their own that take turns: all of them alive, one at work.

What one does to its process (memory allocator, threads, caches) is then not the other's, and a slow minute of the
machine falls on neighbours.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

#: Seconds that a process may take to leave when it is told to.
_LEAVE = 10.0


class Contender:
    """A process that made an object and calls its methods when asked.

    Args:
        make: of an importable module; called in the process.
        given: its arguments, by name.
    """

    def __init__(self, make: Callable[..., Any], given: Mapping[str, Any]) -> None:
        # Spawned: a forked process would have this one's memory, and torch's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, dict(given)), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until it is made.

        Raises:
            RuntimeError: it could not be.
        """
        self._answer()

    def ask(self, method: str) -> Any:
        """What a method of its object returns.

        Raises:
            RuntimeError: it raised, or the process is gone.
        """
        self._connection.send(method)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(_LEAVE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self) -> Any:
        try:
            failed, value = self._connection.recv()
        except EOFError:
            self._process.join(_LEAVE)
            raise RuntimeError(f"a contender's process ended with {self._process.exitcode}") from None
        if failed:
            raise RuntimeError(f"a contender failed: {value}")
        return value


@contextmanager
def contenders(makers: Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]]) -> Iterator[dict[str, Contender]]:
    """A process for each, by name: what makes its object, and with which arguments. All are made at once."""
    alive: dict[str, Contender] = {}
    try:
        for name, (make, given) in makers.items():
            alive[name] = Contender(make, given)
        for contender in alive.values():
            contender.ready()
        yield alive
    finally:
        for contender in alive.values():
            contender.close()


def in_turn(alive: Mapping[str, Contender], method: str, rounds: int) -> dict[str, list[Any]]:
    """Ask each contender in turn, A B C, A B C, ...: one answer a round for each name."""
    answers: dict[str, list[Any]] = {name: [] for name in alive}
    for _ in range(rounds):
        for name, contender in alive.items():
            answers[name].append(contender.ask(method))
    return answers


def _serve(connection: Connection, make: Callable[..., Any], given: dict[str, Any]) -> None:
    try:
        made = make(**given)
        connection.send((False, None))
        while True:
            connection.send((False, getattr(made, connection.recv())()))
    except EOFError:
        pass  # told to leave
    except Exception:
        connection.send((True, traceback.format_exc()))
