"""Images in memory are given out in the order asked for, whole or as the centre of what is stored."""

import pytest
import torch

from trainables.data.images import Resident, centred, stored_side
from trainables.data.resized_crop import resized_crop


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


LABELS = torch.arange(30) % 3


def test_batches_are_the_indexed_images(pixels):
    images = Resident(pixels, LABELS)
    index = [torch.tensor([3, 1, 1]), torch.tensor([29]), torch.tensor([], dtype=torch.int64)]
    found = list(images.batches(index))
    assert [torch.equal(a, pixels[b]) for a, b in zip(found, index, strict=True)] == [True] * 3
    assert (images.channels, images.side, len(images)) == (3, 16, 30)


def test_the_centre_of_the_stored_image_is_given_out(pixels):
    images = Resident(pixels, LABELS, 14)
    assert torch.equal(next(images.batches([torch.arange(30)])), pixels[:, :, 1:15, 1:15])
    assert images.side == 14


def test_rows_share_the_pixels_and_count_from_their_own_first(pixels):
    rows = torch.tensor([20, 5, 7])
    part = Resident(pixels, LABELS[rows], 14, rows)
    whole = Resident(pixels, LABELS, 14)
    index = torch.tensor([2, 0])
    assert torch.equal(next(part.batches([index])), next(whole.batches([rows[index]])))
    assert torch.equal(
        next(part.batches([index], crop_seed=4)),
        next(Resident(pixels[rows], LABELS[rows], 14).batches([index], crop_seed=4)),
    )
    assert len(part) == 3


def test_crops_are_drawn_once_for_the_epoch_from_the_whole_stored_image(pixels):
    images = Resident(pixels, LABELS, 14)
    index = torch.randperm(30).split(8)
    generator = torch.Generator().manual_seed(9)
    expected = [resized_crop(pixels[batch], 14, generator) for batch in index]
    found = list(images.batches(index, crop_seed=9))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(found[0], next(images.batches(index, crop_seed=10)))


def test_what_is_taken_is_a_copy(pixels):
    index = torch.tensor([4, 2])
    part = Resident(pixels, LABELS).take(index)
    assert torch.equal(part.x, pixels[index])
    assert torch.equal(part.y, LABELS[index])
    again = Resident(pixels, LABELS[index], None, index).take(torch.tensor([1]))
    assert torch.equal(again.x, pixels[2:3])


def test_no_global_generator_is_used(pixels):
    state = torch.get_rng_state()
    list(Resident(pixels, LABELS).batches([torch.arange(30)], crop_seed=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_256_pixels_are_stored_for_224():
    assert [stored_side(side) for side in (224, 28, 7, 1)] == [256, 32, 8, 2]
    assert centred(256, 224) == 16
