"""An image file becomes the pixels that torchvision's transforms make of it, or one line that names it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from trainables.data.decode import box_draws, cropped, evaluated, stored
from trainables.data.files import DataError
from trainables.data.images import stored_side
from trainables.data.resized_crop import boxes


def torchvisions(path, side):
    resize = v2.Resize(stored_side(side), InterpolationMode.BICUBIC)
    image = v2.CenterCrop(side)(resize(Image.open(path).convert("RGB")))
    return np.asarray(image).transpose(2, 0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([7, 28, 35]))
def test_resize_and_centre_crop_are_torchvisions(folder, width, height, side):
    path = folder / "any.png"
    pixels = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    assert np.array_equal(evaluated(str(path), side), torchvisions(path, side))


def test_the_usual_224_pixels_are_the_centre_of_256(tmp_path, draw):
    assert stored_side(224) == 256
    path = draw(tmp_path / "photo.jpg", size=(333, 257))
    assert stored(str(path), 224).shape == (3, 256, 256)
    assert np.array_equal(evaluated(str(path), 224), torchvisions(path, 224))


@pytest.mark.parametrize(("mode", "suffix"), [("L", "jpg"), ("RGBA", "png"), ("LA", "png"), ("CMYK", "jpg")])
def test_whatever_a_file_holds_becomes_rgb(tmp_path, draw, mode, suffix):
    path = draw(tmp_path / f"image.{suffix}", mode=mode)
    found = evaluated(str(path), 14)
    assert found.shape == (3, 14, 14)
    assert np.array_equal(found, torchvisions(path, 14))
    if mode == "L":
        assert np.array_equal(found[0], found[1])


def test_a_palette_becomes_its_colours(tmp_path, draw):
    path = draw(tmp_path / "image.png")
    Image.open(path).quantize(8).save(path)
    assert Image.open(path).mode == "P"
    assert np.array_equal(evaluated(str(path), 14), torchvisions(path, 14))


def test_grey_of_16_bits_keeps_its_upper_8(tmp_path):
    fine = np.random.default_rng(0).integers(0, 2**16, (20, 20), dtype=np.uint16)
    Image.fromarray(fine).save(tmp_path / "fine.png")
    Image.fromarray((fine // 256).astype(np.uint8)).save(tmp_path / "coarse.png")
    assert Image.open(tmp_path / "fine.png").mode == "I;16"
    assert np.array_equal(evaluated(str(tmp_path / "fine.png"), 14), evaluated(str(tmp_path / "coarse.png"), 14))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_grey_of_unknown_range_is_refused(tmp_path, kind):
    Image.fromarray(np.zeros((9, 9), kind)).save(tmp_path / "any.tiff")
    with pytest.raises(DataError, match=r"any\.tiff cannot be decoded: .* no known range"):
        evaluated(str(tmp_path / "any.tiff"), 14)


def test_a_crop_is_torchvisions_of_the_same_box(tmp_path, draw):
    path = draw(tmp_path / "photo.jpg", size=(90, 61))
    image = Image.open(path).convert("RGB")
    for index in range(20):
        top, left, height, width = boxes(box_draws(7, index), 61, 90)[0].tolist()
        theirs = v2.functional.resized_crop(image, top, left, height, width, [28, 28], InterpolationMode.BILINEAR)
        assert np.array_equal(cropped(str(path), 28, 7, index), np.asarray(theirs).transpose(2, 0, 1))


def test_a_crop_is_a_function_of_seed_and_position(tmp_path, draw):
    path = str(draw(tmp_path / "photo.png"))
    state = torch.get_rng_state()
    first = cropped(path, 14, 3, 5)
    assert np.array_equal(cropped(path, 14, 3, 5), first)
    assert not np.array_equal(cropped(path, 14, 3, 6), first)
    assert not np.array_equal(cropped(path, 14, 4, 5), first)
    assert torch.equal(torch.get_rng_state(), state)


def truncated(path, draw):
    draw(path, size=(200, 200))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(path, draw):
    path.write_text("not an image at all")


def huge(path, draw):
    # A header that promises more pixels than Pillow's limit on decompression bombs.
    draw(path, size=(10, 10))
    content = bytearray(path.read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "suffix", "reason"),
    [
        (truncated, "jpg", "truncated"),
        (truncated, "png", ""),
        (text, "jpg", "no image that Pillow knows"),
        (huge, "png", ""),
        (lambda path, draw: None, "jpg", "No such file"),
        (lambda path, draw: path.mkdir(), "jpg", "directory"),
    ],
)
def test_a_file_that_cannot_be_decoded_is_named(tmp_path, draw, damage, suffix, reason):
    path = tmp_path / f"bad.{suffix}"
    damage(path, draw)
    for read in (lambda: stored(str(path), 14), lambda: evaluated(str(path), 14), lambda: cropped(str(path), 14, 0, 0)):
        with pytest.raises(DataError, match=f"bad.{suffix} cannot be decoded: .*{reason}") as caught:
            read()
        assert "\n" not in str(caught.value)
