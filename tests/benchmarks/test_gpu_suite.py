"""The GPU suite's own parts; CI runs it whole, on a CPU (`.ci/run`)."""

import math

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import correctness, speed, study
from benchmarks.gpu.suite import Suite, apart, middle
from benchmarks.tape import Tape
from trainables.models import build
from trainables.recipe import Recipe


@pytest.fixture
def suite():
    return Suite(torch.device("cpu"), small=True, seconds=1000)


def tensors(*values):
    return [torch.tensor(v, dtype=torch.float64) for v in values]


def test_a_distance_is_a_share_of_the_way_in_the_worst_group():
    start, one = [tensors([0.0, 0.0], [0.0]), tensors([9.0])], [tensors([3.0, 0.0], [4.0]), tensors([8.0])]
    assert apart(one, one, start) == 0
    assert apart(one, [tensors([3.0, 1.0], [4.0]), tensors([8.0])], start) == pytest.approx(1 / 5)
    assert apart(one, [one[0], tensors([8.5])], start) == pytest.approx(1 / 2)
    assert apart(one, [tensors([3.0, math.nan], [4.0]), tensors([8.0])], start) == math.inf
    assert apart([[torch.tensor(3)]], [[torch.tensor(4)]], [[torch.tensor(0)]]) == math.inf
    assert apart([[torch.tensor(3)]], [[torch.tensor(3)]], [[torch.tensor(0)]]) == 0
    assert middle([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == 3


def test_a_section_without_time_is_left_out_and_an_error_in_a_check_is_a_check_that_fails(suite, capsys):
    def broken(suite):
        raise ValueError("no\nway")

    suite.attempt("late", 2000, broken)
    suite.attempt("row", 1, broken)
    suite.attempt("check: x", 1, broken, check=True)
    assert [name for name, _ in suite.skipped] == ["late", "row"]
    (check,) = suite.checks
    assert not check.holds
    assert suite.as_dict()["checks"][0]["distance"] is None  # JSON has no infinity
    said = capsys.readouterr().out
    assert "ValueError: no way" in said
    assert "FAIL check: x" in said
    assert "0 of 1 checks hold" in command._table(suite)


class Forgetful(Tape):
    """Issues nothing."""

    def record(self, run):
        _, outputs = super().record(run)
        return lambda: None, outputs


def test_a_recording_that_does_nothing_is_found(suite, monkeypatch):
    monkeypatch.setattr(Suite, "recorder", lambda self: Forgetful())
    monkeypatch.setattr(correctness, "METHODS", {"fsam": correctness.METHODS["fsam"]})
    correctness.captured(suite)
    assert suite.checks
    assert not any(check.holds for check in suite.checks)


def test_an_augmentation_that_is_another_on_the_device_is_found(suite, monkeypatch):
    made = correctness.replicate
    calls = []

    def other_seed(suite, given, seed=0):
        calls.append(given)
        return made(suite, given, len(calls))

    monkeypatch.setattr(correctness, "replicate", other_seed)
    correctness.augmentation(suite)
    assert not suite.checks[0].holds


@pytest.mark.parametrize(
    ("model", "millions"), [("resnet20", 40.6), ("wrn28_2", 214), ("resnext29_32x4d", 772), ("densenet121", 888)]
)
def test_multiply_adds_are_those_that_are_published(model, millions):
    network = build(model, classes=10, channels=3, side=32)
    assert speed.macs(network, torch.zeros(1, 3, 32, 32)) == pytest.approx(1e6 * millions, rel=0.01)
    assert speed.macs(network, torch.zeros(2, 3, 32, 32)) == 2 * speed.macs(network, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("data_root", [None, "cifar"])
@pytest.mark.parametrize("small", [True, False])
def test_every_recipe_of_the_suite_is_one(small, data_root):
    # On a GPU for the first time is a bad place to learn that a setting is refused.
    suite = Suite(torch.device("cuda"), small, 1000, data_root)
    for method in correctness.METHODS.values():
        for more in (
            {},
            {"train_size": 200, "batch_size": 32},
            {"augmentation": ["crop", "flip", "autoaugment", "cutout"]},
        ):
            assert Recipe.of(correctness.settings(suite, precision="float64", **{**method, **more})).epochs == 3
    for model in ("resnet20", "wrn28_10"):
        for method in speed.METHODS.values():
            speed.given(suite, model, **method)
    speed.given(suite, "resnet20", optimiser="sam", augmentation=["crop", "flip", "autoaugment", "cutout"])
    Recipe.of(study._settings(suite, epochs=5, gamma=0.1, eta=1.0))


def test_what_is_no_number_is_none_in_the_record():
    assert [study._plain(v) for v in (1.5, math.nan, math.inf, "a", 3)] == [1.5, None, None, "a", 3]


def test_the_command_leaves_a_record_and_fails_with_a_check(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(correctness, "run", lambda suite: suite.check("one", 1.0, 0.5))
    monkeypatch.setattr(speed, "run", lambda suite: suite.row("a figure", 2.0, "s", "<= 1"))
    monkeypatch.setattr(study, "run", lambda suite: None)
    out = tmp_path / "records" / "gpu.json"
    assert command.main(["--device", "cpu", "--minutes", "1", "--out", str(out)]) == 1
    assert '"holds": false' in out.read_text()
    assert str(tmp_path) not in out.read_text()
    said = capsys.readouterr().out
    assert "FAILED one" in said
    assert "goal" not in said  # goals are a GPU's
