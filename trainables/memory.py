"""Out of memory, in words that say what to change; torch names the size of a tensor, and no setting of a study."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal

from trainables.recipe import Recipe

#: What ran out: the device's memory, this process's on the CPU, or that of the whole node.
Place = Literal["device", "process", "node"]

#: In what allocators say whose errors have no type of their own: torch's on the CPU, cuBLAS, cuDNN.
_SIGNS = ("can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc", "out of memory",
          "cublas_status_alloc_failed", "cudnn_status_alloc_failed")  # fmt: skip

_GIB = 2**30


class OutOfMemory(Exception):
    """A trial's device or process has no memory left; its one line says of what recipe and what to change."""


@contextmanager
def explained(recipe: Recipe, seeds: int = 1) -> Iterator[None]:
    """Turn what runs out of memory in here into OutOfMemory.

    Args:
        recipe: what is trained here.
        seeds: replicates of it that are held together.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        where, place = _where(error)
        way_out = remedies(recipe, place, evaluating=_evaluating(error))
        raise OutOfMemory(f"out of memory {where}: {_what(recipe, seeds, error)}; {way_out}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is about memory: Python's, an allocator's of torch on the CPU, CUDA's or cuDNN's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def remedies(recipe: Recipe, place: Place, *, evaluating: bool = False) -> str:
    """What to change: first what leaves every number as it is, then what makes another recipe.

    Args:
        recipe: what was trained.
        place: whose memory has run out.
        evaluating: it ran out while evaluating, which has batches of its own.
    """
    same = []
    if evaluating:
        same.append("a smaller EVALUATION_BATCH in trainables/replicate.py")
    if place == "device":
        same.append("resources.gpu: 1, or a larger share than now (fewer trials on a device)")
    else:
        same.append("fewer trials at once (--cpus; on a cluster a larger resources.cpu, which may change last bits)")
        if recipe.loader_workers:
            same.append(f"loader_workers below {recipe.loader_workers}")
    if recipe.fisher == "per_example" and not evaluating:
        same.append("a smaller PER_EXAMPLE_CHUNK in trainables/replicate.py")
    line = f"with the same results: {'; '.join(same)}"
    if evaluating:
        return line
    other = [f"batch_size below {recipe.batch_size}"]
    if recipe.probes:
        other.append(f"m below {recipe.m or recipe.batch_size}")
    if recipe.precision in ("float32", "float64"):
        other.append("precision: bfloat16")
    return f"{line}. As another recipe, with another id: {', '.join(other)}"


def _what(recipe: Recipe, seeds: int, error: BaseException) -> str:
    parts = [f"model {recipe.model}", f"batch_size {recipe.batch_size}"]
    if recipe.m:
        parts.append(f"m {recipe.m}")
    parts.append(recipe.precision)
    if seeds > 1:
        parts.append(f"{seeds} seeds in one trial")
    if wanted := re.search(r"tried to allocate ([\d.]+) ?(\w+)", str(error), re.IGNORECASE):
        size = f"{int(wanted[1]) / 2**20:,.1f} MiB" if wanted[2] == "bytes" else f"{wanted[1]} {wanted[2]}"
        parts.append(f"{size} more wanted")
    return ", ".join(parts)


def _where(error: BaseException) -> tuple[str, Place]:
    """`on cuda:0 (NVIDIA H100, 79.2 GiB, 0.3 GiB free, 40.0 GiB in other processes)` or `on the CPU`."""
    import torch  # the driver reads `remedies` without it

    text = str(error).lower()
    if not isinstance(error, torch.OutOfMemoryError) and not any(name in text for name in ("cuda", "cublas", "cudnn")):
        return "on the CPU", "process"
    try:
        device = torch.cuda.current_device()
        free, total = torch.cuda.mem_get_info(device)
        name, own = torch.cuda.get_device_name(device), torch.cuda.memory_reserved(device)
    except (RuntimeError, AssertionError):
        return "on the GPU", "device"
    elsewhere = total - free - own
    # This process's own CUDA context is some hundred MiB of it.
    others = f", {elsewhere / _GIB:.1f} GiB in other processes" if elsewhere > _GIB else ""
    return f"on cuda:{device} ({name}, {total / _GIB:.1f} GiB, {free / _GIB:.1f} GiB free{others})", "device"


def _evaluating(error: BaseException) -> bool:
    frame: TracebackType | None = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "evaluate":
            return True
        frame = frame.tb_next
    return False
