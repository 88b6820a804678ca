"""Replicates side by side against the same ones in turn."""

import pytest
import torch

from benchmarks.tape import Tape
from trainables.devices import DeviceError
from trainables.recipe import Recipe
from trainables.replicate import Replicate
from trainables.side_by_side import SideBySide

RECIPE = Recipe.of(
    {
        "dataset": "digits", "epochs": 6, "batch_size": 64, "train_size": 300, "precision": "float64", "lr": 0.05,
        "augmentation": ["crop"], "optimiser": "fsam",
    }
)  # fmt: skip


def replicates(n=3, recorder=None):
    return [Replicate(RECIPE, seed, recorder=recorder) for seed in range(n)]


def trained(group, epochs):
    rows = [group.train_epoch() for _ in range(epochs)]
    return [[{k: v for k, v in row.items() if k != "train_seconds"} for row in of_all] for of_all in rows]


@pytest.mark.parametrize("how", ["on", "auto", "off"])
def test_side_by_side_trains_as_one_after_the_other_bit_for_bit(how):
    alone, tape = replicates(), Tape()
    group = SideBySide(replicates(recorder=tape), how, tape)
    expected = [[r.train_epoch() for r in alone] for _ in range(6)]
    found = trained(group, 6)
    for one, other in zip(expected, found, strict=True):
        for a, b in zip(one, other, strict=True):
            assert all(a[key] == b[key] or a[key] != a[key] for key in b)
    for a, b in zip(alone, group.replicates, strict=True):
        for name, value in a.model.state_dict().items():
            assert torch.equal(value, b.model.state_dict()[name]), name
        assert (a.epoch, a.images_seen, a.gradient_evaluations) == (b.epoch, b.images_seen, b.gradient_evaluations)


@pytest.mark.parametrize(("share", "kept"), [(0.5, "side by side"), (0.99, "in turn"), (1.3, "in turn")])
def test_auto_keeps_what_was_quicker_and_says_so(monkeypatch, share, kept):
    tape = Tape()
    group = SideBySide(replicates(2, tape), "auto", tape)
    was = []

    def timed(self, *arguments):
        drive(self, *arguments)
        # In turn each replicate's epoch is driven by itself.
        return share if self.together else 0.5

    drive = SideBySide._drive
    monkeypatch.setattr(SideBySide, "_drive", timed)
    for _ in range(6):
        group.train_epoch()
        was.append(group.was_together)
    assert was == [False, False, True, True, *[kept == "side by side"] * 2]
    assert group.take_remarks() == [f"2 seeds side by side take {share:.2f} of their time in turn: trained {kept}"]
    assert group.take_remarks() == []


def test_auto_stays_in_turn_where_the_memory_would_not_do(monkeypatch):
    tape = Tape()
    group = SideBySide(replicates(2, tape), "auto", tape)
    monkeypatch.setattr(SideBySide, "_fits", lambda self: False)
    trained(group, 4)
    assert not group.together
    assert not group.was_together


def test_a_state_that_is_loaded_is_what_goes_on():
    tape, plain = Tape(), replicates(2)
    group = SideBySide(replicates(2, tape), "on", tape)
    trained(group, 2)
    states = [replicate.state_dict() for replicate in group.replicates]
    trained(group, 1)
    for replicate, state in zip(group.replicates, states, strict=True):
        replicate.load_state_dict(state)
    trained(group, 1)
    for one, other in zip(plain, group.replicates, strict=True):
        for _ in range(3):
            one.train_epoch()
        for name, value in one.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), name
    assert group.steps == "captured, side by side"


def test_the_seconds_of_an_epoch_are_shared_out():
    tape = Tape()
    group = SideBySide(replicates(3, tape), "on", tape)
    group.train_epoch()
    seconds = {replicate.train_seconds for replicate in group.replicates}
    assert len(seconds) == 1
    assert seconds.pop() > 0


def test_on_needs_steps_that_are_recorded():
    with pytest.raises(DeviceError, match="seeds_together: on"):
        SideBySide(replicates(2), "on", None)


def test_one_seed_and_a_cpu_have_nothing_to_try():
    tape = Tape()
    for group in (SideBySide(replicates(1, tape), "auto", tape), SideBySide(replicates(2), "auto", None)):
        trained(group, 5)
        assert not group.was_together
        assert group.take_remarks() == []
