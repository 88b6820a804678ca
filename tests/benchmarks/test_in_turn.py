"""Contenders have processes of their own and take turns."""

import os
import time

import pytest

from benchmarks.in_turn import contenders, in_turn


class Told:
    def __init__(self, name):
        if not name:
            raise ValueError("no name")
        self.name = name

    def told(self):
        return self.name, os.getpid(), time.monotonic()

    def fails(self):
        raise ArithmeticError(self.name)

    def dies(self):
        os._exit(7)


def alive(*names):
    return contenders({name: (Told, {"name": name}) for name in names})


def test_each_answers_in_turn_from_a_process_of_its_own_that_ends():
    with alive("a", "b") as both:
        answers = in_turn(both, "told", 2)
    assert [name for name, _, _ in answers["a"] + answers["b"]] == ["a", "a", "b", "b"]
    (a, b), times = ({answer[1] for answer in answers[name]} for name in "ab"), []
    assert len(a) == len(b) == 1
    assert len({os.getpid(), *a, *b}) == 3
    for first, second in zip(answers["a"], answers["b"], strict=True):
        times += [first[2], second[2]]
    assert times == sorted(times)
    for pid in a | b:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_error_is_told_and_so_is_a_process_that_is_gone():
    with alive("a", "b") as both:
        with pytest.raises(RuntimeError, match=r"(?s)a contender failed: .*ArithmeticError: a"):
            both["a"].ask("fails")
        with pytest.raises(RuntimeError, match="ended with 7"):
            both["b"].ask("dies")
    with pytest.raises(RuntimeError, match="ValueError: no name"), alive(""):
        pass
