"""What runs out of memory says what to change, and nothing else is taken for it."""

import pickle
import subprocess
import sys

import pytest
import torch

from trainables.memory import OutOfMemory, explained, is_out_of_memory, remedies
from trainables.recipe import Recipe

RECIPE = Recipe.of(
    {"dataset": "digits", "model": "digits_cnn", "optimiser": "fsam", "batch_size": 64, "m": 16, "epochs": 1}
)
SGD = Recipe.of({"dataset": "digits", "model": "digits_cnn", "optimiser": "sgd", "epochs": 1})

#: A process that may not have more memory than it has when it starts to train.
STARVED = """
import resource, sys
import torch
from trainables.memory import explained
from trainables.recipe import Recipe
from trainables.replicate import Replicate
torch.set_num_threads(1)
recipe = Recipe.of({"dataset": "synthetic", "model": "wrn28_2", "optimiser": "sam", "batch_size": 384,
                    "epochs": 1})
with explained(recipe, 2):
    replicate = Replicate(recipe, 0)
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**25, now + 2**25))
    replicate.train_epoch()
"""


def run_out(error, recipe=RECIPE, seeds=1):
    with pytest.raises(OutOfMemory) as caught, explained(recipe, seeds):
        raise error
    return str(caught.value)


def test_a_real_lack_of_memory_is_said_in_one_line_with_the_batch_and_what_to_change():
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("trainables.memory.OutOfMemory: out of memory on the CPU: model wrn28_2"), done.stderr
    for part in ("batch_size 384", "2 seeds in one trial", "MiB more wanted", "with the same results: fewer trials"):
        assert part in line
    assert "As another recipe, with another id: batch_size below 384, m below 384, precision: bfloat16" in line
    assert "During handling" not in done.stderr


def test_a_device_without_memory_is_told_from_the_computers():
    line = run_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ..."), seeds=3)
    assert line.startswith("out of memory on ")
    assert "GPU" in line or "cuda:" in line
    assert "model digits_cnn, batch_size 64, m 16, float32, 3 seeds in one trial, 2.50 GiB more wanted" in line
    assert "resources.gpu: 1" in line
    assert "batch_size below 64, m below 16, precision: bfloat16" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you "),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_every_allocators_words_are_known(error):
    assert is_out_of_memory(error)
    run_out(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: device-side assert triggered"),
        KeyError("batch_size"),
    ],
)
def test_another_error_passes_as_it_is(error):
    with pytest.raises(type(error)) as caught, explained(RECIPE):
        raise error
    assert caught.value is error


def test_what_is_advised_is_what_the_recipe_has():
    assert "m below" not in remedies(SGD, "device"), "plain SGD has no probe"
    assert "bfloat16" not in remedies(Recipe.of({**SGD.settings(), "precision": "bfloat16"}), "device")
    per_example = Recipe.of({"dataset": "digits", "optimiser": "fsam", "fisher": "per_example", "epochs": 1})
    assert "PER_EXAMPLE_CHUNK" in remedies(per_example, "device")
    assert "PER_EXAMPLE_CHUNK" not in remedies(RECIPE, "device")
    assert "resources.gpu" not in remedies(RECIPE, "node"), "a node's memory is not its GPU's"


def test_where_evaluation_runs_out_a_smaller_training_batch_is_not_advised():
    def evaluate():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(OutOfMemory) as caught, explained(RECIPE):
        evaluate()
    assert "EVALUATION_BATCH" in str(caught.value)
    assert "batch_size below" not in str(caught.value)


def test_it_travels_from_the_worker_to_the_driver():
    error = pickle.loads(pickle.dumps(OutOfMemory("out of memory on the CPU")))
    assert str(error) == "out of memory on the CPU"


def test_the_driver_reads_advice_without_torch():
    code = "import sys, trainables.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
