"""Files of weights: those of this project are safetensors; torch's are read too, tensors only, never unpickled freely.

What a file of this project says of itself is JSON under one key of the safetensors header: the model, its number of
classes, and whatever its writer adds (`about`), e.g. the recipe and the mean and standard deviation of its images. One
key, because safetensors writes several in no particular order, and equal weights are to be equal files.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from trainables.models.weights import WeightsError, unreadable

__all__ = ["WeightsFile", "read_weights", "save_weights"]

_KEY = "sharpness_study"


@dataclass(frozen=True)
class WeightsFile:
    """Tensors by name, on the CPU, and what a file of this project says of itself.

    Attributes:
        model: key of `MODELS`; None in a file of somebody else.
        classes: number of classes; None in a file of somebody else.
        about: what `save_weights` was given; empty in a file of somebody else.
    """

    tensors: dict[str, Tensor]
    model: str | None = None
    classes: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def save_weights(
    network: nn.Module | Mapping[str, Tensor],
    target: str | os.PathLike[str] | BinaryIO,
    *,
    model: str,
    classes: int,
    about: Mapping[str, Any],
) -> None:
    """Write a network's parameters and buffers as safetensors; equal weights and `about` give equal bytes.

    Args:
        network: on any device, in any memory format; or its state dict.
        target: a path, where the file appears whole or not at all, or an open binary file.
        model: key of `MODELS` that built it.
        classes: number of its classes.
        about: anything that JSON can hold; returned when the weights are loaded.

    Raises:
        WeightsError: `about` is not JSON, or the file cannot be written.
    """
    try:
        header = json.dumps({"model": model, "classes": classes, "about": dict(about)}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"what weights say of themselves must be JSON: {error}") from None
    state = network.state_dict() if isinstance(network, nn.Module) else network
    # A copy each: safetensors refuses tensors that share memory or are in another memory format.
    tensors = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    content = safetensors.torch.save(tensors, metadata={_KEY: header})
    if isinstance(target, (str, os.PathLike)):
        _write(Path(target), content)
    else:
        target.write(content)


def read_weights(path: Path) -> WeightsFile:
    """Read safetensors, or a file of torch.save (zip or legacy) that holds tensors only.

    A state dict may lie under `state_dict` or `model`; the prefixes of DataParallel and torch.compile are taken off.

    Raises:
        WeightsError: the file is missing, unreadable, cut short, of another kind, or holds more than tensors.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise unreadable(path, error) from None
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start[:2] == b"PK" or start[:1] == b"\x80":  # a zip, or the pickles of torch before 1.6
        return WeightsFile(_named(_read_torch(path), path))
    raise WeightsError(f"{path} is no file of weights (safetensors or torch.save)")


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WeightsError(f"cannot write weights to {path}: {error.strerror or error}") from None


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            header = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} is damaged or no safetensors: {_first_sentence(error)}") from None
    if header is None:
        return WeightsFile(_named(tensors, path))
    try:
        said = json.loads(header)
        return WeightsFile(_named(tensors, path), str(said["model"]), int(said["classes"]), dict(said["about"]))
    except (ValueError, KeyError, TypeError):
        raise WeightsError(f"{path} does not say of what model its weights are") from None


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own, and none is a promise
        if "eights_only" in str(error) or "WeightsUnpickler" in str(error):
            raise WeightsError(
                f"{path} holds more than tensors, or is damaged, and is not unpickled; save its state dict alone"
            ) from None
        raise WeightsError(f"{path} is damaged or no file of torch.save: {_first_sentence(error)}") from None


def _named(content: Any, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds no state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path} holds no state dict: {str(name)[:60]!r} is no tensor")
    tensors = dict(content)
    while prefix := next((p for p in ("module.", "_orig_mod.") if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _first_sentence(error: Exception) -> str:
    return (str(error).split("\n")[0].split(". ")[0] or type(error).__name__)[:200]
