"""What a step puts back."""

import copy

import pytest
import torch
from torch import nn

from trainables.sharpness.kept import KeptBuffers


class Odd(nn.Module):
    """Buffers of every kind that a layer may have."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        kinds = {
            "a_flag": torch.tensor(True), "a_count": torch.tensor(5), "a_empty": torch.empty(0),
            "a_half": torch.ones(3).half(),
            "a_double": torch.rand(2, 2, dtype=torch.float64), "a_complex": torch.rand(2, dtype=torch.complex64),
            "a_strided": torch.rand(4, 6).t(), "a_last": torch.rand(1, 2, 3, 3).to(memory_format=torch.channels_last),
        }  # fmt: skip
        for name, value in kinds.items():
            self.register_buffer(name, value)
        self.register_buffer("a_none", None)


def values(module):
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def disturb(module):
    for buffer in module.buffers():
        buffer.copy_(~buffer if buffer.dtype == torch.bool else buffer + 1)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_every_buffer_is_put_back_to_the_bit_and_in_place():
    module = Odd()
    module.a_half[0], module.a_double[0, 0] = float("nan"), -0.0
    module.norm.running_mean[1] = float("inf")
    before = {name: bytes(buffer.untyped_storage().tolist()) for name, buffer in module.named_buffers()}
    addresses = [buffer.data_ptr() for buffer in module.buffers()]
    kept = KeptBuffers(module)
    for _ in range(2):
        kept.keep()
        disturb(module)
        kept.put_back()
        assert [buffer.data_ptr() for buffer in module.buffers()] == addresses
        for name, buffer in module.named_buffers():
            assert bytes(buffer.untyped_storage().tolist()) == before[name], name
        assert torch.signbit(module.a_double[0, 0])


def test_keeping_twice_keeps_the_later_values_and_putting_back_twice_does_nothing_more():
    module = Odd()
    kept = KeptBuffers(module)
    kept.keep()
    disturb(module)
    kept.keep()
    later = values(module)
    disturb(module)
    kept.put_back()
    assert_equal(values(module), later)
    disturb(module)
    after = values(module)
    kept.put_back()
    assert_equal(values(module), after)


@pytest.mark.parametrize("how", ["replaced", "given other memory", "added"])
def test_buffers_that_change_between_steps_are_seen(how):
    module = Odd()
    kept = KeptBuffers(module)
    kept.keep()
    kept.put_back()
    if how == "replaced":
        module.norm.running_mean = torch.rand(3)
    elif how == "given other memory":
        module.norm.running_mean.data = torch.rand(3)
    else:
        module.register_buffer("a_late", torch.rand(2))
    before = values(module)
    kept.keep()
    disturb(module)
    kept.put_back()
    assert_equal(values(module), before)


def test_a_layer_that_replaces_its_buffer_meanwhile_gets_the_old_one_back():
    module = Odd()
    kept, old = KeptBuffers(module), module.norm.running_mean
    before = old.clone()
    kept.keep()
    module.norm.running_mean = torch.rand(3)
    old.add_(1)
    kept.put_back()
    assert module.norm.running_mean is old
    assert torch.equal(old, before)


def test_a_copy_of_both_works_by_itself():
    module = Odd()
    kept = KeptBuffers(module)
    kept.keep()
    kept.put_back()
    other = copy.deepcopy(kept)
    before = values(other.module)
    other.keep()
    disturb(other.module)
    disturb(module)
    other.put_back()
    assert_equal(values(other.module), before)
    assert int(module.a_count) == 6


def test_floats_and_counters_are_one_operation():
    # A GPU copies a list of several dtypes tensor by tensor.
    kept = KeptBuffers(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(4)))
    kept.keep()
    assert len(kept._pairs) == 1
    assert len(kept._pairs[0][0]) == 6
