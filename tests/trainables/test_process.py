"""What a process that trains sets for itself, in a process of its own."""

import subprocess
import sys

import pytest

from trainables.process import _glibc

FAULTS = """
import resource, torch
from trainables.process import prepare
if {prepared}:
    prepare(1)
def step():
    # 48 MiB each: beyond what glibc ever keeps by itself.
    kept = [torch.full((12 * 2**20,), 1.0) for _ in range(2)]
    return sum(float(t[0]) for t in kept)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, torch.get_num_threads())
"""


def faults(prepared):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(prepared=prepared)], capture_output=True, text=True, check=True
    )
    found, threads = map(int, done.stdout.split())
    return found, threads


@pytest.mark.skipif(_glibc() is None, reason="another C library")
def test_memory_that_is_freed_and_wanted_again_is_not_taken_from_the_system_anew():
    (plain, _), (kept, threads) = faults(False), faults(True)
    assert threads == 1
    assert plain > 10 * 2 * 48 * 2**20 / 2**21  # one a huge page at the least, mostly one each 4 KiB
    assert kept < plain / 2  # not none: the heap has to find its shape
