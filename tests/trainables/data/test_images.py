"""Images in memory are given out in the order asked for, whole or as the centre of what is stored."""

import pytest
import torch

from trainables.data.images import Resident, centred, stored_side
from trainables.data.resized_crop import draw, resized_crop


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
    expected = [resized_crop(pixels[batch], draw(len(batch), 16, 16, generator), 14) for batch in index]
    found = list(images.batches(index, crop_seed=9))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(found[0], next(images.batches(index, crop_seed=10)))


@pytest.mark.parametrize("crop_seed", [None, 9])
@pytest.mark.parametrize("together", [1, 2, 3, 9])
def test_parts_and_batches_together_are_of_the_images_given_out_batch_by_batch(pixels, crop_seed, together):
    rows = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    images = Resident(pixels, LABELS, 14, rows)
    index = torch.arange(30).split(7)
    parts = [slice(0, 3), slice(5, 7), slice(0, 0), slice(1, 7), slice(0, 1)]
    whole = list(images.batches(index, crop_seed=crop_seed))
    expected = [batch[part] for batch, part in zip(whole, parts, strict=True)]
    found = list(images.batches(index, crop_seed=crop_seed, parts=parts, together=together))
    assert len(found) == -(-5 // together)
    for i, batches in enumerate(found):
        assert torch.equal(batches, torch.cat(expected[i * together : (i + 1) * together]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_crops_the_boxes_of_the_cpu(pixels):
    images, index = Resident(pixels, LABELS, 14), torch.arange(30).split(8)
    found = torch.cat(list(images.to("cuda").batches(index, crop_seed=9))).cpu()
    expected = torch.cat(list(images.batches(index, crop_seed=9)))
    # Rounded to whole grey levels by either: a sum at half a level may go either way.
    assert int((found.int() - expected.int()).abs().max()) <= 1
    assert float((found != expected).float().mean()) < 0.01


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
