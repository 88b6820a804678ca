"""Draws are those that batches always had, and an image's result depends on nothing but its own pixels and draws."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from trainables.data.augment import Augmentation, normalise, resize
from trainables.data.autoaugment.choices import Choices, apply
from trainables.data.autoaugment.policies import POLICIES, SUB_POLICIES
from trainables.data.drawn import Draws

NAMES = ("crop", "flip", "autoaugment", "cutout")
MEAN, STD = torch.tensor([120.0, 110.0, 100.0]), torch.tensor([60.0, 50.0, 40.0])

augmentations = st.builds(
    Augmentation,
    st.sets(st.sampled_from(NAMES)).map(sorted),
    crop_padding=st.integers(1, 5),
    cutout_size=st.integers(1, 9),
    autoaugment_policy=st.sampled_from(POLICIES),
    side=st.sampled_from([None, 5, 16, 19]),
)


def again(seed):
    return torch.Generator().manual_seed(seed)


def images(n, channels, height, width, seed):
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=again(seed))


# What `Augmentation.__call__` did when it drew and applied in one, kept as it was. Numbers of recipes hang on it.


def crop_before(x, padding, generator):
    n, channels, height, width = x.shape
    down, right = torch.randint(2 * padding + 1, (2, n), generator=generator, device=x.device)
    padded = F.pad(x, (padding,) * 4)
    wide = width + 2 * padding
    planes = torch.arange(n * channels, device=x.device).view(n, channels, 1) * (height + 2 * padding) * wide
    rows = (down[:, None] + torch.arange(height, device=x.device)) * wide + right[:, None]
    starts = planes + rows[:, None, :]
    return padded.contiguous().view(-1).unfold(0, width, 1).index_select(0, starts.view(-1)).view_as(x)


def flip_before(x, generator):
    mirrored = torch.randint(2, (len(x), 1, 1, 1), generator=generator, device=x.device) == 1
    return torch.where(mirrored, x.flip(3), x)


def cutout_before(x, size, generator):
    n, _, height, width = x.shape
    row = torch.randint(height, (n,), generator=generator, device=x.device)
    column = torch.randint(width, (n,), generator=generator, device=x.device)

    def inside(centre, side):
        offset = torch.arange(side, device=x.device) - (centre[:, None] - size // 2)
        return (offset >= 0) & (offset < size)

    hole = inside(row, height)[:, None, :, None] & inside(column, width)[:, None, None, :]
    return x.masked_fill(hole, 0)


def autoaugment_before(x, policy, generator):
    probability = torch.tensor([[step[1] for step in steps] for steps in SUB_POLICIES[policy]]).T.contiguous()
    sub_policy = torch.randint(probability.shape[1], (len(x),), generator=generator, device=generator.device)
    uniform = torch.rand(2, len(x), generator=generator, device=generator.device)
    sign = torch.randint(2, (2, len(x)), generator=generator, device=generator.device)
    return apply(x, Choices(policy, sub_policy, uniform <= probability[:, sub_policy], sign == 0))


def before(x, augmentation, generator_of):
    if "crop" in augmentation.names:
        x = crop_before(x, augmentation.crop_padding, generator_of("crop"))
    if "flip" in augmentation.names:
        x = flip_before(x, generator_of("flip"))
    if "autoaugment" in augmentation.names:
        x = autoaugment_before(x, augmentation.autoaugment_policy, generator_of("autoaugment"))
    x = normalise(x, MEAN[: x.shape[1]], STD[: x.shape[1]])
    if "cutout" in augmentation.names:
        x = cutout_before(x, augmentation.cutout_size, generator_of("cutout"))
    return x if augmentation.side is None else resize(x, augmentation.side)


@settings(max_examples=60, deadline=None)
@given(
    augmentations,
    st.sampled_from([1, 3]),
    st.integers(4, 17),
    st.integers(4, 17),
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_batches_are_to_the_last_bit_those_of_drawing_and_applying_in_one(
    augmentation, channels, height, width, sizes, one_generator, seed
):
    def generators():
        each = {name: again(seed + i) for i, name in enumerate(NAMES)}
        return (lambda name: each["crop"]) if one_generator else each.__getitem__

    of_old, of_new = generators(), generators()
    for i, n in enumerate(sizes):
        x = images(n, channels, height, width, seed + i)
        draws = augmentation.draw(n, of_new, height, width)
        found = augmentation(x, MEAN[:channels], STD[:channels], draws)
        assert torch.equal(found, before(x, augmentation, of_old))
    for name in NAMES:
        assert torch.equal(of_old(name).get_state(), of_new(name).get_state())


@settings(max_examples=60, deadline=None)
@given(
    augmentations,
    st.sampled_from([1, 3]),
    st.integers(4, 17),
    st.integers(0, 40),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2**32),
    st.data(),
)
def test_any_split_into_chunks_gives_each_image_the_bits_of_the_whole(
    augmentation, channels, side, n, dtype, seed, data
):
    generator = again(seed)
    x = images(n, channels, side, side, seed)
    draws = augmentation.draw(n, lambda name: generator, side, side)

    def result(part):
        return augmentation(x[part], MEAN[:channels], STD[:channels], draws[part], dtype)

    whole = result(slice(None))
    ends = sorted([0, *data.draw(st.lists(st.integers(0, n), max_size=5)), n])
    chunks = [slice(first, end) for first, end in itertools.pairwise(ends)]
    for chunk in chunks:
        assert torch.equal(result(chunk), whole[chunk])
    together = Draws.cat([draws[chunk] for chunk in chunks])
    assert len(together) == n
    assert torch.equal(augmentation(x, MEAN[:channels], STD[:channels], together, dtype), whole)


def test_draws_of_another_part_are_others(generator):
    """So that the splits above could have gone wrong."""
    draws = Augmentation(NAMES).draw(64, lambda name: generator, 32, 32)
    first, second = draws[:32], draws[32:]
    assert (len(first), len(second)) == (32, 32)
    for name in NAMES:
        assert not torch.equal(first.by_operation[name], second.by_operation[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_draws_go_to_a_gpu_without_a_wait(generator):
    draws = Augmentation(NAMES).draw(64, lambda name: generator, 32, 32)
    draws.to(torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = draws.to(torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name in NAMES:
        assert there.by_operation[name].device.type == "cuda"
        assert torch.equal(there.by_operation[name].cpu(), draws.by_operation[name])
