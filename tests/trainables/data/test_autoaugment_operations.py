"""Every operation of AutoAugment on a batch gives the pixels of torchvision on PIL images, bit for bit."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import AutoAugment, _apply_op

from trainables.data.autoaugment.bank import Bank
from trainables.data.autoaugment.blend import blend, luma
from trainables.data.autoaugment.geometry import LARGEST_SIDE, sources
from trainables.data.autoaugment.point import autocontrast_tables
from trainables.data.autoaugment.policies import LEVELS, PARAMETERLESS, SIGNED, UNSIGNED
from trainables.data.autoaugment.strength import Setting, strength

EVERY = (
    Setting("Identity"),
    *(
        Setting(name, magnitude, sign)
        for name in sorted(SIGNED)
        for magnitude in range(LEVELS)
        for sign in (False, True)
    ),
    *(Setting(name, magnitude) for name in sorted(UNSIGNED) for magnitude in range(LEVELS)),
    *(Setting(name) for name in sorted(PARAMETERLESS)),
)
GEOMETRIC = [s for s in EVERY if s.operation in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")]
CPU = torch.device("cpu")

#: Contents that reach the corners of the tables: (values of shape (C, H, W), from a numpy generator).
CONTENTS = {
    "noise": lambda g, shape: g.integers(0, 256, shape),
    "few levels": lambda g, shape: g.integers(100, 140, shape),
    "dark": lambda g, shape: np.minimum(g.geometric(0.05, shape), 255),
    "constant": lambda g, shape: np.full(shape, g.integers(0, 256)),
    "two values": lambda g, shape: g.choice(g.integers(0, 256, 2), shape),
    "gradient": lambda g, shape: np.broadcast_to(np.linspace(0, 255, shape[2]).astype(int), shape),
    "black and white": lambda g, shape: g.choice([0, 255], shape),
}


def image(content, shape, seed=0):
    """(C, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(CONTENTS[content](np.random.default_rng(seed), shape), dtype=np.uint8))


def pillow(x, setting, fill=None):
    """torchvision on a PIL image, with a magnitude out of torchvision's own table."""
    channels, height, width = x.shape
    picture = Image.fromarray(x.permute(1, 2, 0).numpy() if channels == 3 else x[0].numpy())
    if setting.operation != "Identity":
        magnitudes, signed = AutoAugment()._augmentation_space(LEVELS, (height, width))[setting.operation]
        amount = 0.0 if setting.magnitude is None else float(magnitudes[setting.magnitude])
        if signed and setting.negative:
            amount *= -1.0
        picture = _apply_op(picture, setting.operation, amount, InterpolationMode.NEAREST, fill)
    result = torch.from_numpy(np.array(picture))
    return result.permute(2, 0, 1) if channels == 3 else result[None]


def assert_all_equal(x, chosen, sort, fill=0):
    """All settings in one batch, shuffled, each on its own copy of one image."""
    channels, height, width = x.shape
    bank = Bank(tuple(chosen), channels, height, width, fill, CPU)
    which = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(1))
    found = bank.apply(x.expand(len(chosen), -1, -1, -1), which, sort=sort)
    for row, i in zip(found, which.tolist(), strict=True):
        assert torch.equal(row, pillow(x, chosen[i], [fill] if fill else None)), chosen[i]


@pytest.mark.parametrize("sort", [True, False], ids=["sorted", "everyone"])
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 7, 13), (1, 21, 6)], ids=str)
def test_every_operation_at_every_magnitude_and_sign_is_pillows(content, shape, sort):
    assert_all_equal(image(content, shape), EVERY, sort)


@settings(max_examples=150, deadline=None)
@given(
    content=st.sampled_from(sorted(CONTENTS)),
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(1, 45), st.integers(1, 45)),
    chosen=st.lists(st.sampled_from(EVERY), min_size=1, max_size=12),
    seed=st.integers(0, 10**6),
    sort=st.booleans(),
    fill=st.sampled_from([0, 128]),
)
def test_images_of_any_sides_are_pillows(content, shape, chosen, seed, sort, fill):
    assert_all_equal(image(content, shape, seed), chosen, sort, fill)


@pytest.mark.parametrize("sort", [True, False], ids=["sorted", "everyone"])
def test_each_image_has_the_operation_that_was_chosen_for_it(sort):
    x = torch.stack([image("noise", (3, 8, 8), seed) for seed in range(40)])
    which = torch.randint(len(EVERY), (40,), generator=torch.Generator().manual_seed(0))
    found = Bank(EVERY, 3, 8, 8, 0, CPU).apply(x, which, sort=sort)
    for i in range(40):
        assert torch.equal(found[i], pillow(x[i], EVERY[which[i]]))


@pytest.mark.parametrize(("height", "width"), [(224, 224), (331, 200), (97, 640)])
def test_source_pixels_of_large_images_are_pillows(height, width):
    # An image of 32-bit whole numbers that name their own places, sent through the same code of Pillow.
    places = Image.fromarray(np.arange(height * width, dtype=np.int32).reshape(height, width))
    for setting in GEOMETRIC:
        amount = strength(setting, height, width)
        moved = _apply_op(places, setting.operation, amount, InterpolationMode.NEAREST, height * width)
        assert np.array_equal(np.array(moved).ravel(), sources(setting, height, width).numpy()), setting


def test_autocontrast_is_pillows_for_darkest_and_brightest_values_of_all_sizes():
    low, high = np.triu_indices(256)
    for start in range(0, len(low), 4096):
        pair = np.stack([low[start : start + 4096], high[start : start + 4096]], 1)
        tables = autocontrast_tables(torch.from_numpy(pair.astype(np.uint8))[:, None, None])[:, 0].numpy()
        for (darkest, brightest), table in list(zip(pair, tables, strict=True))[::7]:
            picture = Image.fromarray(np.arange(darkest, brightest + 1, dtype=np.uint8)[None])
            assert np.array_equal(np.array(ImageOps.autocontrast(picture))[0], table[darkest : brightest + 1])


def test_the_grey_of_every_colour_is_pillows():
    green, blue = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for red in range(256):
        colours = np.stack([np.full_like(green, red), green, blue], 2)
        expected = np.array(Image.fromarray(colours).convert("L"))
        found = luma(torch.from_numpy(colours).permute(2, 0, 1)[None].float())
        assert np.array_equal(found[0, 0].numpy(), expected)


def test_a_blend_of_every_two_values_is_pillows_at_every_factor():
    one, other = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for setting in EVERY:
        if setting.operation == "Color":
            factor = 1.0 + strength(setting, 1, 1)
            expected = np.array(Image.blend(Image.fromarray(one), Image.fromarray(other), factor))
            found = blend(torch.from_numpy(one).float(), torch.from_numpy(other).float(), torch.tensor(factor))
            assert np.array_equal(found.numpy(), expected), factor


def test_strengths_are_torchvisions():
    space = AutoAugment()._augmentation_space(LEVELS, (45, 77))
    for setting in EVERY:
        if setting.magnitude is not None:
            magnitudes, signed = space[setting.operation]
            assert signed == (setting.operation in SIGNED)
            assert strength(setting, 45, 77) == float(magnitudes[setting.magnitude]) * (-1) ** setting.negative
    assert set(space) == SIGNED | UNSIGNED | PARAMETERLESS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Rotat", 3), "unknown operation 'Rotat'"),
        (("Rotate",), "magnitude None"),
        (("Solarize", 10), "magnitude 10"),
        (("Equalize", 1), "Equalize has no magnitude"),
        (("Posterize", 1, True), "Posterize has no sign"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Setting(*arguments)


def test_sides_are_refused_only_beyond_what_fixed_point_numbers_hold():
    with pytest.raises(ValueError, match="16384 pixels, not 1 x 16385"):
        Bank(EVERY, 1, 1, LARGEST_SIDE + 1, 0, CPU)
    # The farthest source of any setting, in pixels, that Pillow still computes in fixed point.
    slope, turn = 0.3, math.radians(30)
    farthest = max((1 + slope) * LARGEST_SIDE, LARGEST_SIDE / 2 * (1 + math.cos(turn) + math.sin(turn)))
    assert farthest < 32_768
