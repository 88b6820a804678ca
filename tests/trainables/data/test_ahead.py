"""Batches computed several at a time are those computed one by one, and no more than a chunk is held."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef

from trainables.data.ahead import AT_ONCE, augmented, batches_at_once
from trainables.data.augment import Augmentation
from trainables.data.images import Resident

MEAN, STD = torch.tensor([120.0, 110.0, 100.0]), torch.tensor([60.0, 50.0, 40.0])
PIXELS = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IMAGES = Resident(PIXELS, torch.arange(60) % 3, 14)
AUGMENTATION = Augmentation(("crop", "flip", "autoaugment", "cutout"), cutout_size=6)


def apply(x, draws):
    return AUGMENTATION(x, MEAN, STD, draws)


def drawing(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return lambda n: AUGMENTATION.draw(n, lambda name: generator, 14, 14)


def one_by_one(index, crop_seed):
    draw = drawing()
    return [apply(x, draw(len(x))) for x in IMAGES.batches(index, crop_seed=crop_seed)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 25), st.integers(1, 9), st.sampled_from([None, 5]), st.booleans(), st.data())
def test_whatever_the_chunk_each_step_has_the_bits_of_its_batch_alone(size, batch, chunk, crop_seed, shared, data):
    index = torch.randperm(60, generator=torch.Generator().manual_seed(size))[:size].split(batch)
    expected = one_by_one(index, crop_seed)
    parts = None
    if shared:
        ends = [sorted(data.draw(st.tuples(*[st.integers(0, len(of_batch))] * 2))) for of_batch in index]
        parts = [slice(*pair) for pair in ends]
        expected = [x[part] for x, part in zip(expected, parts, strict=True)]
    found = list(augmented(IMAGES, index, drawing(), apply, chunk=chunk, crop_seed=crop_seed, parts=parts))
    assert len(found) == len(index)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_a_chunk_is_computed_in_one_call_when_its_first_batch_is_asked_for():
    calls, drawn = [], []

    def counted(x, draws):
        calls.append(len(x))
        return apply(x, draws)

    def draw(n):
        drawn.append(n)
        return drawing()(n)

    found = augmented(IMAGES, torch.arange(60).split(8), draw, counted, chunk=3)
    seen = []
    for x in found:
        seen.append((len(x), sum(calls)))
    assert calls == [24, 24, 12]
    assert drawn == [8] * 7 + [4]
    assert seen == [(8, 24)] * 3 + [(8, 48)] * 3 + [(8, 60), (4, 60)]


def test_of_chunks_gone_by_nothing_is_held():
    results = []

    def watched(x, draws):
        result = apply(x, draws)
        results.append(StorageWeakRef(result.untyped_storage()))
        return result

    for i, _ in enumerate(augmented(IMAGES, torch.arange(60).split(5), drawing(), watched, chunk=2)):
        gc.collect()
        # Of views that are kept, too, the memory stays.
        assert [ref.expired() for ref in results] == [True] * (i // 2) + [False]


def test_no_batches_are_asked_for_and_none_given():
    assert list(augmented(IMAGES, [], drawing(), apply, chunk=4)) == []


def test_a_cpu_and_images_that_stream_are_computed_batch_by_batch_and_a_gpu_by_what_it_holds():
    meta = Resident(PIXELS.to("meta"), IMAGES.y.to("meta"), 14)
    assert batches_at_once(IMAGES, 128, 14) == 1
    assert batches_at_once(meta, 128, 14) == AT_ONCE // (128 * 3 * 14 * 14)
    assert batches_at_once(meta, 128, 32) == AT_ONCE // (128 * 3 * 32 * 32)  # resized last, to more
    assert batches_at_once(meta, 128, 8) == batches_at_once(meta, 128, 14)  # resized last, to less
    assert batches_at_once(meta, 128, 512) == 1
    from trainables.data.streamed import Streamed

    files = type("Files", (), {"side": 14})()
    assert batches_at_once(Streamed(files, None, meta.y), 128, 14) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_a_gpu_has_the_batches_of_the_cpu_to_rounding(chunk):
    index, there = torch.arange(60).split(8), IMAGES.to("cuda")
    mean, std = MEAN.cuda(), STD.cuda()
    found = list(augmented(there, index, drawing(), lambda x, draws: AUGMENTATION(x, mean, std, draws), chunk=chunk))
    for a, b in zip(found, one_by_one(index, None), strict=True):
        assert torch.allclose(a.cpu(), b, rtol=1e-5, atol=1e-5)
