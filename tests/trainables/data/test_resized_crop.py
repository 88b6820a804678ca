"""Random resized crops have torchvision's boxes and torchvision's pixels."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode, v2

from trainables.data.resized_crop import DRAWS, boxes, draw, resized_crop


def uniform(n, seed=0):
    return torch.rand(n, DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain_box(draws, height, width):
    """The loop of torchvision's RandomResizedCrop.get_params, from given uniform numbers."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    for i in range(10):
        area = height * width * (0.08 + draws[i] * 0.92)
        ratio = math.exp(low + draws[10 + i] * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[20] * (height - h + 1)), int(draws[21] * (width - w + 1)), h, w
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 10**6))
def test_boxes_are_those_of_a_plain_loop_and_lie_within_the_image(height, width, seed):
    draws = uniform(8, seed)
    found = boxes(draws, height, width)
    assert found.tolist() == [list(plain_box(row, height, width)) for row in draws.tolist()]
    top, left, h, w = found.unbind(1)
    assert ((top >= 0) & (left >= 0) & (h > 0) & (w > 0) & (top + h <= height) & (left + w <= width)).all()


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10)])
def test_where_no_box_fits_the_largest_one_in_the_centre_is_taken(height, width):
    theirs = v2.RandomResizedCrop(8).make_params([torch.zeros(3, height, width)])
    expected = [theirs[key] for key in ("top", "left", "height", "width")]
    # 0.08 of the area is wider than the image is high, whatever the draws.
    assert boxes(uniform(5), height, width).tolist() == [expected] * 5


def test_boxes_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    n = 3000
    theirs = [v2.RandomResizedCrop(8).make_params([torch.zeros(3, 100, 150)]) for _ in range(n)]
    theirs = torch.tensor([[p[key] for key in ("top", "left", "height", "width")] for p in theirs]).double()
    ours = boxes(uniform(n), 100, 150).double()
    for column in range(4):
        # Two-sample Kolmogorov-Smirnov distance; 0.0504 is its 0.1 % point for these sizes
        both = torch.cat([ours[:, column], theirs[:, column]]).unique()
        shares = [torch.searchsorted(s[:, column].sort()[0], both, right=True) / n for s in (ours, theirs)]
        assert float((shares[0] - shares[1]).abs().max()) < 0.0504


@pytest.mark.parametrize(("shape", "side"), [((256, 256), 224), ((64, 48), 56), ((9, 9), 8), ((32, 32), 32)])
def test_pixels_are_torchvisions_bilinear_ones_to_a_grey_level(shape, side):
    x = torch.randint(0, 256, (12, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before = x.clone()
    box = boxes(uniform(12), *shape)
    found = resized_crop(x, box, side)
    assert found.dtype == torch.uint8
    assert torch.equal(x, before)
    for i, (top, left, height, width) in enumerate(box.tolist()):
        # In float32: torchvision's own uint8 kernel rounds its weights.
        theirs = v2.functional.resized_crop(
            x[i].float(), top, left, height, width, [side, side], InterpolationMode.BILINEAR, antialias=False
        )
        assert (found[i].float() - theirs).abs().max() <= 1
        assert (found[i].float() - theirs).abs().mean() < 0.26  # rounding alone: 0.25 on average


def test_a_box_of_the_whole_image_gives_the_image():
    x = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(resized_crop(x, torch.tensor([[0, 0, 8, 8]] * 2), 8), x)


def test_pixels_beside_the_box_have_no_part_in_it():
    x = torch.full((1, 3, 20, 20), 255, dtype=torch.uint8)
    x[:, :, 5:12, 6:11] = 40
    assert (resized_crop(x, torch.tensor([[5, 6, 7, 5]]), 16) == 40).all()


def test_every_image_has_a_crop_of_its_own_and_one_seed_gives_one_batch():
    x = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(32, -1, -1, -1)

    def crops(seed):
        return resized_crop(x, draw(32, 32, 32, torch.Generator().manual_seed(seed)), 28)

    assert torch.equal(crops(0), crops(0))
    assert not torch.equal(crops(0), crops(1))
    assert len({crop.numpy().tobytes() for crop in crops(0)}) >= 30  # two boxes may be one by chance
