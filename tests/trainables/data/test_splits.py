"""Splits are exact, stratified, reproducible, and judge every training size by the same images."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainables.data import load
from trainables.data.datasets import Source
from trainables.data.draws import below, order, words
from trainables.data.images import Resident
from trainables.data.splits import split, split_positions, statistics
from trainables.data.stratify import stratified


def made(labels, seed=0):
    x = torch.randint(0, 256, (len(labels), 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    images = Resident(x, torch.as_tensor(labels))
    return Source("made", int(max(labels)) + 1, images, images, "0")


@given(st.lists(st.integers(0, 6), min_size=3, max_size=80), st.data())
def test_sizes_are_exact_and_no_class_is_off_by_one(labels, data):
    n = len(labels)
    held = data.draw(st.integers(1, n - 1))
    kept = data.draw(st.one_of(st.none(), st.integers(1, n - held)))
    found = split(made(labels), validation_size=held, split_seed=data.draw(st.integers(0, 9)), train_size=kept)
    assert len(found.validation) == len(found.validation_index) == held
    assert len(found.train) == len(found.train_index) == (n - held if kept is None else kept)
    assert not set(found.train_index.tolist()) & set(found.validation_index.tolist())
    share = np.bincount(labels) * held / n
    assert (abs(np.bincount(found.validation.y, minlength=len(share)) - share) < 1).all()


def test_parts_are_the_sources_images_in_its_order(digits):
    found = split(digits, validation_size=287, split_seed=3)
    for part, index in ((found.train, found.train_index), (found.validation, found.validation_index)):
        assert torch.equal(part.x, digits.train.x[index])
        assert torch.equal(part.y, digits.train.y[index])
        assert (index.diff() > 0).all()
    assert sorted([*found.train_index.tolist(), *found.validation_index.tolist()]) == list(range(len(digits.train)))
    assert found.test is digits.test
    assert found.classes == 10


def test_validation_images_do_not_depend_on_the_training_size(digits):
    whole = split(digits, validation_size=287, split_seed=0)
    for size in (10, 500, 1150):
        part = split(digits, validation_size=287, split_seed=0, train_size=size)
        assert torch.equal(part.validation_index, whole.validation_index)
        assert set(part.train_index.tolist()) <= set(whole.train_index.tolist())


def test_one_seed_gives_one_split_and_another_seed_another(digits):
    def index(seed):
        return split(digits, validation_size=287, split_seed=seed).validation_index

    assert torch.equal(index(0), index(0))
    assert not torch.equal(index(0), index(1))


def test_splits_never_change(digits):
    found = split(digits, validation_size=287, split_seed=0, train_size=100)
    # Stored results belong to this very split: raise recipe.SEMANTICS if this has to change.
    assert found.validation_index[:8].tolist() == [6, 10, 14, 19, 23, 24, 26, 39]
    assert found.train_index[:8].tolist() == [15, 18, 36, 44, 58, 93, 110, 116]


def test_raw_words_never_change():
    assert words(3, 7, "test").tolist() == [17305794625988748203, 17026509420194903118, 9438426691900357078]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"validation_size": 0}, "validation_size 0"),
        ({"validation_size": 1437}, "validation_size 1437"),
        ({"validation_size": 5000}, "validation_size 5000"),
        ({"validation_size": -1}, "validation_size -1"),
        ({"validation_size": 287, "train_size": 1151}, "train_size 1151"),
        ({"validation_size": 287, "train_size": 0}, "train_size 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(digits, sizes, message):
    with pytest.raises(ValueError, match=message) as caught:
        split(digits, split_seed=0, **sizes)
    assert "\n" not in str(caught.value)


def test_statistics_are_those_of_the_training_images_alone(digits):
    found = split(digits, validation_size=287, split_seed=0, train_size=200)
    pixels = found.train.x.double()
    assert found.mean.tolist() == pytest.approx([float(pixels.mean())], rel=1e-7)
    assert found.std.tolist() == pytest.approx([float(pixels.std(correction=0))], rel=1e-7)
    assert found.mean.dtype == found.std.dtype == torch.float32


def test_statistics_do_not_depend_on_how_images_are_batched(digits):
    whole, parts = statistics([digits.train.x]), statistics(digits.train.x.split(100))
    assert torch.equal(torch.stack(whole), torch.stack(parts))


def test_a_split_is_one_of_labels_alone(digits):
    found = split(digits, validation_size=287, split_seed=4, train_size=300)
    train, validation = split_positions(digits.train.y.numpy(), 287, 4, 300)
    assert found.train_index.tolist() == train.tolist()
    assert found.validation_index.tolist() == validation.tolist()


def test_normalisations_are_the_datas_imagenets_and_a_half(digits):
    from torchvision.transforms import v2
    from torchvision.transforms.functional import normalize

    colour = split(load("synthetic"), validation_size=128, split_seed=0)
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    unit = v2.functional.to_dtype(x, torch.float32, scale=True)
    mean, std = colour.normalised_as("imagenet")
    theirs = normalize(unit, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose((x - mean[:, None, None]) / std[:, None, None], theirs, atol=1e-5)
    mean, std = colour.normalised_as("half")
    assert torch.allclose((x - mean[:, None, None]) / std[:, None, None], unit * 2 - 1, atol=1e-6)
    assert colour.normalised_as("data") == (colour.mean, colour.std)
    grey = split(digits, validation_size=287, split_seed=0)
    assert grey.normalised_as("half")[0].tolist() == [127.5]
    for splits, kind, message in ((grey, "imagenet", "3 channels"), (colour, "imagenette", "not data")):
        with pytest.raises(ValueError, match=message):
            splits.normalised_as(kind)


def test_normalised_training_images_have_mean_0_and_variance_1():
    found = split(load("synthetic"), validation_size=128, split_seed=0)
    x = (found.train.x.float() - found.mean[:, None, None]) / found.std[:, None, None]
    assert x.double().mean((0, 2, 3)).abs().max() < 1e-5
    assert (x.double().var((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_a_constant_channel_becomes_zero_and_not_infinite():
    x = torch.randint(0, 256, (5, 2, 3, 3), dtype=torch.uint8)
    x[:, 1] = 17
    mean, std = statistics([x])
    assert (float(mean[1]), float(std[1])) == (17, 1)
    assert float(std[0]) > 1


def test_statistics_do_not_overflow_on_many_bright_images():
    x = torch.full((20_000, 1, 32, 32), 255, dtype=torch.uint8)
    x[::2] = 253
    mean, std = statistics([x])
    assert (float(mean), float(std)) == (254, 1)


def test_a_class_keeps_its_share_of_a_subset_by_largest_remainder():
    labels = np.repeat([0, 1, 2], [5, 3, 2])
    assert np.bincount(labels[stratified(labels, 4, 0, "test")]).tolist() == [2, 1, 1]


def test_every_image_is_as_likely_to_be_taken():
    labels = np.repeat([0, 1], 10)
    taken = np.zeros(20)
    for seed in range(2000):
        taken[stratified(labels, 4, seed, "test")] += 1
    # Binomial(2000, 0.2): five standard deviations
    assert (abs(taken - 400) < 5 * (2000 * 0.2 * 0.8) ** 0.5).all()


def test_draws_are_uniform_and_their_streams_differ():
    counts = np.bincount(below(10, 100_000, 0, "test"), minlength=10)
    assert (abs(counts - 10_000) < 5 * (100_000 * 0.09) ** 0.5).all()
    assert sorted(order(1000, 0, "test")) == list(range(1000))
    assert len({order(1000, seed, what).tobytes() for seed in (0, 1) for what in ("a", "b")}) == 4
