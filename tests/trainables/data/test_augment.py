"""Batched augmentation gives what a plain loop over images gives with the same draws."""

import pytest
import torch
from torchvision.transforms import functional as tv

from trainables.data.augment import (
    Augmentation,
    crop,
    cutout,
    draw_crop,
    draw_cutout,
    draw_flip,
    flip,
    normalise,
    prepare,
    resize,
)

ALL = ("crop", "flip", "cutout")
MEAN, STD = torch.tensor([120.0, 110.0, 100.0]), torch.tensor([60.0, 50.0, 40.0])


def again(seed=0):
    return torch.Generator().manual_seed(seed)


def augment(x, generator, names=(), dtype=torch.float32, **settings):
    """Draw, from one generator for all operations in their order, and apply."""
    augmentation = Augmentation(names, **settings)
    draws = augmentation.draw(len(x), lambda name: generator, *x.shape[2:])
    return augmentation(x, MEAN, STD, draws, dtype)


def images(n=64, side=32, channels=3):
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=again(99))


@pytest.mark.parametrize(("side", "channels", "padding"), [(32, 3, 4), (8, 1, 1), (5, 3, 7)])
def test_crop_is_torchvisions_crop_of_a_padded_image(side, channels, padding, generator):
    x = images(side=side, channels=channels)
    found = crop(x, padding, draw_crop(len(x), padding, generator))
    down, right = torch.randint(2 * padding + 1, (2, len(x)), generator=again())
    for i in range(len(x)):
        padded = tv.pad(x[i], padding, fill=0)
        assert torch.equal(found[i], tv.crop(padded, int(down[i]), int(right[i]), side, side))


def test_crop_takes_a_batch_that_is_not_contiguous(generator):
    x, offsets = images(), draw_crop(64, 4, generator)
    assert torch.equal(crop(x.contiguous(memory_format=torch.channels_last), 4, offsets), crop(x, 4, offsets))


def test_crop_of_a_rectangle_keeps_its_shape(generator):
    x = images()[:, :, :20, :]
    found = crop(x, 3, draw_crop(len(x), 3, generator))
    down, right = torch.randint(7, (2, len(x)), generator=again())
    for i in range(len(x)):
        assert torch.equal(found[i], tv.crop(tv.pad(x[i], 3), int(down[i]), int(right[i]), 20, 32))


def test_crop_offsets_are_uniform(generator):
    padding, n = 2, 25_000
    x = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    x[:, 0, 4, 4] = 1  # where it lands tells the offset
    where = crop(x, padding, draw_crop(n, padding, generator)).flatten(1).argmax(1)
    counts = where.bincount(minlength=64)
    landed = counts[counts > 0]
    assert len(landed) == 25
    assert ((landed - n / 25).abs() < 5 * (n / 25) ** 0.5).all()


def test_flip_mirrors_left_to_right_half_of_the_time(generator):
    x = images(n=10_000, side=4)
    drawn = draw_flip(len(x), generator)
    found = flip(x, drawn)
    mirrored = (found == x.flip(3)).flatten(1).all(1)
    kept = (found == x).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert torch.equal(mirrored, drawn)
    assert float(mirrored.double().mean()) == pytest.approx(0.5, abs=5 * 0.5 / 100)


def plain_cutout(image, size, y, x):
    """DeVries & Taylor's code (util/cutout.py) for an even size."""
    height, width = image.shape[1:]
    top, bottom = (min(max(y + d, 0), height) for d in (-(size // 2), size // 2))
    left, right = (min(max(x + d, 0), width) for d in (-(size // 2), size // 2))
    mask = torch.ones(height, width)
    mask[top:bottom, left:right] = 0
    return image * mask


@pytest.mark.parametrize(("side", "size"), [(32, 16), (32, 8), (8, 4), (8, 20)])
def test_cutout_is_the_authors(side, size, generator):
    x = normalise(images(side=side), MEAN, STD)
    before = x.clone()
    found = cutout(x, size, draw_cutout(len(x), side, side, generator))
    draws = again()
    rows, columns = (torch.randint(side, (len(x),), generator=draws) for _ in range(2))
    for i in range(len(x)):
        assert torch.equal(found[i], plain_cutout(x[i], size, int(rows[i]), int(columns[i])))
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_cutout_has_its_size_where_it_is_not_clipped(size, generator):
    hole = cutout(torch.ones(2000, 1, 32, 32), size, draw_cutout(2000, 32, 32, generator)) == 0
    assert int(hole.flatten(1).sum(1).max()) == size * size
    assert int(hole.any(3).sum(2).max()) == int(hole.any(2).sum(2).max()) == size


def test_cutout_centre_is_uniform_and_its_area_clipped(generator):
    n, side, size = 20_000, 8, 4
    hole = cutout(torch.ones(n, 1, side, side), size, draw_cutout(n, side, side, generator))[:, 0] == 0
    # A row is hidden if the centre is in one of `size` rows around it, fewer where they end at the border.
    hidden = [min(r + 2, 7) - max(r - 1, 0) + 1 for r in range(side)]
    expected = torch.tensor(hidden).double() / side
    assert ((hole.any(2).double().mean(0) - expected).abs() < 5 * 0.5 / n**0.5).all()
    assert ((hole.any(1).double().mean(0) - expected).abs() < 5 * 0.5 / n**0.5).all()
    heights = torch.tensor([min(c + 2, 8) - max(c - 2, 0) for c in range(side)]).double()
    found = hole.flatten(1).sum(1).double()
    areas = torch.outer(heights, heights).flatten()
    assert float(found.mean()) == pytest.approx(float(areas.mean()), abs=5 * float(areas.std()) / n**0.5)
    for area in areas.unique():
        share = float((areas == area).double().mean())
        assert float((found == area).double().mean()) == pytest.approx(share, abs=5 * 0.5 / n**0.5)


def test_normalise_is_the_formula():
    x = images()
    assert torch.equal(normalise(x, MEAN, STD), (x.float() - MEAN[:, None, None]) / STD[:, None, None])
    exact = normalise(x, MEAN, STD, torch.float64)
    assert torch.equal(exact, (x.double() - MEAN.double()[:, None, None]) / STD.double()[:, None, None])
    # A half-precision batch is rounded once, at the end.
    assert torch.equal(normalise(x, MEAN, STD, torch.bfloat16), normalise(x, MEAN, STD).bfloat16())


def test_operations_are_crop_flip_normalise_cutout_whatever_order_they_are_named_in(generator):
    x = images()
    expected = flip(crop(x, 4, draw_crop(64, 4, generator)), draw_flip(64, generator))
    expected = cutout(normalise(expected, MEAN, STD), 16, draw_cutout(64, 32, 32, generator))
    for names in (ALL, ALL[::-1], ("flip", "cutout", "crop")):
        found = augment(x, again(), names)
        assert torch.equal(found, expected)
        assert found.dtype == torch.float32


def test_a_border_is_black_and_a_hole_has_the_mean_colour():
    white = torch.full((256, 3, 32, 32), 255, dtype=torch.uint8)
    white_value, black_value = (255 - MEAN) / STD, (0 - MEAN) / STD
    values = augment(white, again(), ALL)
    for c in range(3):
        assert set(values[:, c].unique().tolist()) == {0.0, float(black_value[c]), float(white_value[c])}


def test_no_operations_only_normalise(generator):
    before = generator.get_state()
    assert torch.equal(augment(images(), generator), normalise(images(), MEAN, STD))
    assert torch.equal(generator.get_state(), before)


def test_adding_cutout_leaves_crops_and_flips_of_every_batch_as_they_were():
    x = images()

    def batches(names):
        own = {name: again(i) for i, name in enumerate(ALL)}
        augmentation = Augmentation(names)
        draws = [augmentation.draw(len(x), own.__getitem__, 32, 32) for _ in range(3)]
        return torch.cat([augmentation(x, MEAN, STD, of_batch) for of_batch in draws])

    plain, cut = batches(("crop", "flip")), batches(ALL)
    assert torch.equal(cut[cut != 0], plain[cut != 0])


def test_one_generator_seed_gives_one_batch_and_images_differ_within_it():
    x = images(1).expand(64, -1, -1, -1)
    found = augment(x, again(), ALL)
    assert torch.equal(found, augment(x, again(), ALL))
    assert not torch.equal(found, augment(x, again(1), ALL))
    assert len({image.numpy().tobytes() for image in found}) == 64


def test_the_data_set_is_never_written_to():
    x = images()
    before = x.clone()
    for names in ((), ("crop",), ("flip",), ("cutout",), ALL):
        augment(x, again(), names)
        assert torch.equal(x, before)


def test_sizes_reach_their_operations():
    x, draws = images(), again()
    expected = normalise(crop(x, 2, draw_crop(64, 2, draws)), MEAN, STD)
    expected = cutout(expected, 6, draw_cutout(64, 32, 32, draws))
    assert torch.equal(augment(x, again(), ("crop", "cutout"), crop_padding=2, cutout_size=6), expected)


def test_autoaugment_is_between_flip_and_normalisation():
    from trainables.data.autoaugment import autoaugment
    from trainables.data.autoaugment.choices import draw

    x, draws = images(n=16), again()
    expected = flip(crop(x, 4, draw_crop(16, 4, draws)), draw_flip(16, draws))
    expected = normalise(autoaugment(expected, draw(16, "svhn", draws)), MEAN, STD)
    expected = cutout(expected, 16, draw_cutout(16, 32, 32, draws))
    assert torch.equal(augment(x, again(), ("autoaugment", *ALL), autoaugment_policy="svhn"), expected)


@pytest.mark.parametrize(("before", "after"), [(8, 32), (32, 8), (32, 224)])
def test_resize_is_torchvisions(before, after):
    from torchvision.transforms import v2

    x = normalise(images(n=4, side=before), MEAN, STD)
    theirs = v2.functional.resize(x, [after, after], v2.InterpolationMode.BICUBIC, antialias=True)
    assert torch.allclose(resize(x, after), theirs, atol=1e-5)
    assert resize(x, before) is x


def test_images_are_resized_last_so_that_sizes_stay_in_the_datas_pixels():
    x = images(n=8)
    small = augment(x, again(), ALL)
    large = augment(x, again(), ALL, side=64)
    assert large.shape == (8, 3, 64, 64)
    assert torch.equal(large, resize(small, 64))


@pytest.mark.parametrize("side", [None, 32, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evaluation_prepares_as_an_augmentation_without_operations(side, dtype):
    x = images(n=4)
    found = prepare(x, MEAN, STD, side, dtype)
    assert torch.equal(found, augment(x, again(), side=side, dtype=dtype))
    assert found.dtype == dtype
    assert found.shape[2] == (side or 32)


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (("cutuot",), {}, "did you mean cutout"),
        (("crop", "crop"), {}, "twice"),
        (("crop",), {"crop_padding": 0}, "crop_padding 0"),
        (("cutout",), {"cutout_size": 0}, "cutout_size 0"),
        (("cutout",), {"side": 0}, "side 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(names, settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(names, **settings)


def test_draws_for_other_images_or_another_augmentation_are_refused(generator):
    draws = Augmentation(ALL).draw(4, lambda name: generator, 32, 32)
    with pytest.raises(ValueError, match="draws of crop, flip, cutout for 4 images, where flip is to be done to 4"):
        Augmentation(("flip",))(images(4), MEAN, STD, draws)
    with pytest.raises(ValueError, match="for 4 images, where crop, flip, cutout is to be done to 5"):
        Augmentation(ALL)(images(5), MEAN, STD, draws)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("side", [None, 48])
def test_a_gpu_augments_with_the_draws_of_the_cpu_and_the_host_does_not_wait(side, generator):
    augmentation, x = Augmentation((*ALL, "autoaugment"), side=side), images(300)
    draws = augmentation.draw(300, lambda name: generator, 32, 32)
    there, mean, std = x.cuda(), MEAN.cuda(), STD.cuda()
    augmentation(there, mean, std, draws.to(there.device))  # the first batch makes what is kept, and waits for it
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = augmentation(there, mean, std, draws.to(there.device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # One grey level is 1/60 and more: what is left is rounding.
    assert torch.allclose(found.cpu(), augmentation(x, MEAN, STD, draws), rtol=1e-5, atol=1e-5)
