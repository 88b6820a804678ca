"""A recipe's images are opened once, decoded where they fit in memory and streamed where they do not."""

import numpy as np
import pytest
import torch

from trainables.data import DATASETS, DataError, load
from trainables.data import opened as module
from trainables.data.decode import evaluated
from trainables.data.files import DatasetFacts
from trainables.data.images import Resident
from trainables.data.listing import listed
from trainables.data.opened import opened
from trainables.data.splits import IMAGENET_MEAN, IMAGENET_STD, split, statistics
from trainables.data.streamed import Streamed
from trainables.recipe import Recipe

CPU = torch.device("cpu")
SIDE = 14


@pytest.fixture(autouse=True)
def nothing_kept():
    for cache in (module._fixed, module._any_size, module._decoded):
        cache.cache_clear()


@pytest.fixture
def mine(tmp_path, folder_of):
    return folder_of(tmp_path / "mine", each=10)


def recipe(**settings):
    whole = {"dataset": "image_folder", "folder": "mine", "image_side": SIDE, "validation_size": 6, "model": "mlp"}
    return Recipe.of({**whole, "batch_size": 4, "loader_workers": 0, **settings})


def of_folder(base, **settings):
    return opened(recipe(**settings), str(base.parent), CPU)


def test_a_fixed_data_set_is_split_as_before_and_keeps_its_pixels():
    found = opened(Recipe.of({"image_side": 16}), None, CPU)
    expected = split(load("digits"), validation_size=287, split_seed=0)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(found, part).x, getattr(expected, part).x)
        assert torch.equal(getattr(found, part).y, getattr(expected, part).y)
    assert found.train.side == 8
    assert opened(Recipe.of({"image_side": 8, "lr": 0.5}), None, CPU) is found


def test_a_folder_is_decoded_into_memory_and_split_by_its_labels(mine):
    found = of_folder(mine)
    listing = listed("image_folder", str(mine.parent), "mine")
    assert (len(found.train), len(found.validation), len(found.test), found.classes) == (18, 6, 6, 3)
    assert found.validation.y.bincount().tolist() == [2, 2, 2]
    for images, paths, labels in (
        (found.train, np.array(listing.train)[found.train_index], np.array(listing.train_labels)[found.train_index]),
        (found.validation, np.array(listing.train)[found.validation_index], found.validation.y),
        (found.test, listing.test, listing.test_labels),
    ):
        assert isinstance(images, Resident)
        expected = np.stack([evaluated(str(mine / path), SIDE) for path in paths])
        assert np.array_equal(torch.cat(list(images.batches(torch.arange(len(images)).split(4)))).numpy(), expected)
        assert images.y.tolist() == list(labels)
    assert found.train.x is found.test.x  # one copy of the pixels


def test_statistics_are_those_of_the_training_images_as_given_out(mine):
    found = of_folder(mine, train_size=9)
    x = next(found.train.batches([torch.arange(9)]))
    mean, std = statistics([x])
    assert torch.equal(found.mean, mean)
    assert torch.equal(found.std, std)


def test_other_splits_of_a_folder_are_not_decoded_again(mine, monkeypatch):
    first = of_folder(mine)
    monkeypatch.setattr(module, "_pixels", lambda *a: pytest.fail("decoded again"))
    second = of_folder(mine, split_seed=1)
    assert second.train.x is first.train.x
    assert not torch.equal(second.train_index, first.train_index)
    assert of_folder(mine, lr=0.3) is first


def test_threads_decode_the_same_pixels_in_the_same_order(mine):
    alone, several = of_folder(mine), of_folder(mine, loader_workers=3)
    assert torch.equal(alone.train.x, several.train.x)


@pytest.fixture
def crowded(monkeypatch):
    """Nothing fits in memory."""
    monkeypatch.setattr(module, "RESIDENT_LIMIT", 0)


def test_what_does_not_fit_in_memory_streams_the_same_images(mine, monkeypatch):
    kept = of_folder(mine)
    monkeypatch.setattr(module, "RESIDENT_LIMIT", kept.train.x.nbytes - 1)
    for cache in (module._decoded, module._any_size):
        cache.cache_clear()
    found = of_folder(mine)
    assert of_folder(mine, split_seed=1).train.files is found.train.files  # one set of processes
    for part in ("train", "validation", "test"):
        streams, resident = getattr(found, part), getattr(kept, part)
        assert isinstance(streams, Streamed)
        index = torch.arange(len(resident)).split(4)
        assert torch.equal(torch.cat(list(streams.batches(index))), torch.cat(list(resident.batches(index))))
        assert torch.equal(streams.y, resident.y)
    assert found.mean.tolist() == pytest.approx(IMAGENET_MEAN)
    assert found.std.tolist() == pytest.approx(IMAGENET_STD)


def test_imagenet_streams_through_processes(tmp_path, folder_of, monkeypatch):
    for part, each in (("train", 6), ("val", 2)):
        folder_of(tmp_path / "imagenet" / part, ("n01", "n02"), each)
    monkeypatch.setitem(DATASETS, "imagenet", DatasetFacts(2, 3, None, 12, 4, 4, "small", streams=True))
    found = opened(recipe(dataset="imagenet", folder=None, validation_size=4, loader_workers=1), str(tmp_path), CPU)
    assert (len(found.train), len(found.validation), len(found.test)) == (8, 4, 4)
    assert found.train.files.workers == 1
    crops = torch.cat(list(found.train.batches(torch.arange(8).split(3), crop_seed=1)))
    assert crops.shape == (8, 3, SIDE, SIDE)
    expected = np.stack(
        [evaluated(str(tmp_path / "imagenet" / "val" / c / f"{i}.png"), SIDE) for c in ("n01", "n02") for i in (0, 1)]
    )
    assert np.array_equal(next(found.test.batches([torch.arange(4)])).numpy(), expected)
    found.train.files.close()


def test_splits_and_labels_of_a_stream_need_no_pixels(tmp_path, crowded):
    """Label noise, stratification and sizes are a matter of labels: these files are no images at all."""
    for c in ("ant", "bee"):
        (tmp_path / "mine" / c).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "mine" / c / f"{i}.jpg").write_text("no image")
    found = opened(recipe(validation_size=4, train_size=6), str(tmp_path), CPU)
    assert found.train.y.bincount().tolist() == [3, 3]
    assert found.validation.y.bincount().tolist() == [2, 2]
    with pytest.raises(DataError, match="cannot be decoded"):
        next(found.train.batches([torch.arange(2)]))


def test_more_images_asked_for_than_there_are_is_one_line(mine):
    for settings, message in (({"validation_size": 24}, "validation_size 24"), ({"train_size": 19}, "train_size 19")):
        with pytest.raises(DataError, match=f"image_folder: {message}") as caught:
            of_folder(mine, **settings)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_decoded_is_named_at_once(mine, workers):
    (mine / "bee" / "4.png").write_text("no image")
    with pytest.raises(DataError, match=r"bee/4\.png cannot be decoded: no image"):
        of_folder(mine, loader_workers=workers)


def test_workers_are_those_asked_for_and_at_most_four():
    assert module._workers(0) == 0
    assert module._workers(7) == 7
    assert 1 <= module._workers(None) <= 4


def test_real_flowers_are_opened(flowers89):
    found = opened(recipe(folder="flowers89", image_side=28, validation_size=178), str(flowers89), CPU)
    assert (len(found.train), len(found.validation), len(found.test), found.classes) == (1246, 178, 356, 89)
    assert found.train.y.bincount().tolist() == [14] * 89
    batch = next(found.train.batches([torch.arange(64)], crop_seed=0))
    assert batch.shape == (64, 3, 28, 28)
    # Photographs of flowers: reddest in the mean, and of middling contrast
    assert found.mean[0] > found.mean[1] > found.mean[2]
    assert (found.std > 40).all()


@pytest.mark.parametrize("limit", [module.RESIDENT_LIMIT, 0])
def test_a_part_of_the_test_set_is_stratified_and_the_same_for_every_training_size(mine, monkeypatch, limit):
    monkeypatch.setattr(module, "RESIDENT_LIMIT", limit)
    whole, part = of_folder(mine), of_folder(mine, test_size=3, train_size=9)
    assert part.test.y.tolist() == [0, 1, 2]
    given = {image.numpy().tobytes() for image in next(whole.test.batches([torch.arange(6)]))}
    taken = [image.numpy().tobytes() for image in next(part.test.batches([torch.arange(3)]))]
    assert set(taken) <= given
    again = next(of_folder(mine, test_size=3).test.batches([torch.arange(3)]))
    assert taken == [image.numpy().tobytes() for image in again]


def test_a_part_of_a_fixed_test_set_is_stratified():
    found = opened(Recipe.of({"test_size": 100}), None, CPU)
    assert len(found.test) == 100
    shares = load("digits").test.y.bincount() * 100 / 360
    assert ((found.test.y.bincount() - shares).abs() < 1).all()
