"""Noise of an exact rate, to the classes it says, and the same for every optimiser."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainables.data.label_noise import corrupt, mask_hash

KINDS = ("symmetric", "uniform")
LABELS = torch.arange(10_000) % 10


def noisy(rate=0.4, kind="symmetric", seed=0, labels=LABELS, classes=10):
    return corrupt(labels, rate=rate, kind=kind, classes=classes, seed=seed)


@given(st.lists(st.integers(0, 4), max_size=60), st.floats(0, 1), st.sampled_from(KINDS), st.integers(0, 2**63 - 1))
def test_the_rate_is_exact_and_nothing_else_changes(labels, rate, kind, seed):
    clean = torch.tensor(labels, dtype=torch.int64)
    before = clean.clone()
    found, mask = noisy(rate, kind, seed, clean, 5)
    assert int(mask.sum()) == round(rate * len(labels))
    assert torch.equal(found[~mask], clean[~mask])
    assert torch.equal(clean, before)
    assert (found.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert ((found >= 0) & (found < 5)).all()


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6, 0.8, 1.0])
def test_symmetric_noise_makes_exactly_its_rate_wrong(rate):
    found, mask = noisy(rate)
    assert torch.equal(found != LABELS, mask)


def test_symmetric_noise_goes_to_each_other_class_alike():
    found, mask = noisy(0.9)
    counts = torch.stack([found[mask & (c == LABELS)].bincount(minlength=10) for c in range(10)])
    assert not counts.diagonal().any()
    off = counts[~torch.eye(10, dtype=torch.bool)].double()
    # About 100 in each of 90 cells: five standard deviations
    assert ((off - off.mean()).abs() < 5 * off.mean().sqrt()).all()


def test_uniform_noise_lets_one_label_in_classes_keep_its_class():
    found, mask = noisy(1.0, "uniform")
    kept = float((found == LABELS).double().mean())
    assert mask.all()
    assert kept == pytest.approx(0.1, abs=5 * (0.09 / 10_000) ** 0.5)
    counts = found.bincount(minlength=10)
    assert ((counts - 1000).abs() < 5 * 900**0.5).all()


def test_the_chosen_labels_do_not_depend_on_the_class():
    _, mask = noisy(0.4)
    for c in range(10):
        assert float(mask[c == LABELS].double().mean()) == pytest.approx(0.4, abs=5 * (0.24 / 1000) ** 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_a_lower_rate_is_part_of_that_of_a_higher_one(kind):
    less, chosen = noisy(0.2, kind)
    more, also = noisy(0.6, kind)
    assert (also[chosen]).all()
    assert torch.equal(more[chosen], less[chosen])


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_gives_one_noise_and_another_seed_another(kind):
    assert torch.equal(noisy(kind=kind)[0], noisy(kind=kind)[0])
    assert not torch.equal(noisy(kind=kind)[0], noisy(kind=kind, seed=1)[0])


def test_no_noise_is_no_change():
    found, mask = noisy(0.0)
    assert torch.equal(found, LABELS)
    assert not mask.any()


def test_noise_never_changes():
    # Stored results belong to these very labels: raise recipe.SEMANTICS if this has to change.
    assert [mask_hash(noisy(kind=kind)[0]) for kind in KINDS] == ["3f5e92e9685b6a70", "7156cf29b6799be2"]


def test_hash_sees_the_labels_and_not_their_type():
    assert mask_hash(LABELS) == hashlib.sha256(np.arange(10_000).__mod__(10).astype("<i8").tobytes()).hexdigest()[:16]
    assert mask_hash(LABELS.to(torch.uint8)) == mask_hash(LABELS)
    assert mask_hash(noisy()[0]) != mask_hash(LABELS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": -0.1}, "rate"),
        ({"rate": 1.1}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"kind": "asymmetric"}, "kind"),
        ({"classes": 5}, "label"),
        ({"classes": 1, "labels": torch.zeros(3, dtype=torch.int64)}, "classes"),
        ({"labels": torch.tensor([-1])}, "label"),
        ({"seed": -1}, "non-negative"),
    ],
)
def test_what_is_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        noisy(**settings)
