"""Which devices a trial trains on, and what does not go over several of them. Torch is imported only to look."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables.recipe import Recipe

if TYPE_CHECKING:
    import torch


class DeviceError(Exception):
    """A device that is not there, or a recipe that cannot be shared as asked; one line. No second try would mend it."""


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one and the CPU elsewhere.

    Raises:
        DeviceError: a GPU is named that this process does not see.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= (there := torch.cuda.device_count()):
        raise DeviceError(f"device {name}: {_seen(there)}")
    return device


def resolve_devices(name: str, processes: int) -> list[str]:
    """A device for each of a trial's processes: GPUs where `name` allows them, else the CPU for all.

    Args:
        name: a recipe's `device`.
        processes: how many.

    Raises:
        DeviceError: fewer GPUs than processes, or one single GPU is named.
    """
    import torch

    if processes == 1:
        return [str(resolve_device(name))]
    if ":" in name:
        raise DeviceError(f"device {name} is one device, and the trial has {processes} processes; say cuda or auto")
    there = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not there):
        return ["cpu"] * processes
    if there < processes:
        raise DeviceError(f"device {name} for {processes} processes: {_seen(there)}")
    return [f"cuda:{i}" for i in range(processes)]


def unshareable(recipe: Recipe, processes: int, images: int | None = None) -> str | None:
    """Why a replicate of this recipe cannot be trained by so many processes together; None if it can.

    Args:
        recipe: of the replicate.
        processes: that share each batch.
        images: of the training split; None if not known yet.
    """
    if not recipe.epochs:
        return None
    if recipe.compile:
        return "compile is for a network that one process trains by itself"
    if recipe.batch_size < processes:
        return f"batch_size {recipe.batch_size} is less than one image for each of {processes} processes"
    if recipe.m:
        groups = -(-recipe.batch_size // recipe.m)
        if groups < processes:
            return (
                f"m {recipe.m} makes {groups} groups of a batch of {recipe.batch_size}, and a group stays on one "
                f"process of {processes}: some would have nothing to do"
            )
        if recipe.precision == "float16":
            return "precision float16 with m: each process would find a loss scale of its own; use bfloat16"
    if recipe.fisher == "per_example" and not recipe.m and images is not None:
        last = images % recipe.batch_size or recipe.batch_size
        if last < processes:
            return f"fisher per_example: the last batch has {last} images for {processes} processes"
    return None


def _seen(there: int) -> str:
    if not there:
        return "this process sees no GPU"
    if there == 1:
        return "this process sees 1 GPU (cuda:0)"
    return f"this process sees {there} GPUs (cuda:0 to cuda:{there - 1})"
