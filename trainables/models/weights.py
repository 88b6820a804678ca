"""Where pretrained weights are and which they are. This file imports no torch, so that a plan is made in a moment.

A recipe's `pretrained` is the path of a file, or `hub:NAME` for published weights: a repository of the Hugging Face hub
(timm's where no owner is named), or `hub:default` for those that the registry of models names.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from trainables.models import MODELS

__all__ = ["Source", "WeightsError", "weights_mark", "weights_source"]

_HUB = "hub:"


class WeightsError(ValueError):
    """Weights that cannot be found, read or used; its message is one line."""


@dataclass(frozen=True)
class Source:
    """A file (`path`), or a repository of the hub (`repository`, as owner/name)."""

    path: Path | None = None
    repository: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.path else f"{_HUB}{self.repository}"


def weights_source(pretrained: str, *, model: str | None = None, root: str | None = None) -> Source:
    """Read a recipe's `pretrained`; nothing is opened or fetched.

    Args:
        pretrained: the path of a file, `hub:NAME`, `hub:OWNER/NAME` or `hub:default`.
        model: key of `MODELS`, which `hub:default` needs.
        root: folder that a relative path is relative to; the working directory if missing.

    Raises:
        WeightsError: it is neither, or the model has no published weights.
    """
    if not pretrained.startswith(_HUB):
        if not pretrained.strip() or "://" in pretrained:
            raise WeightsError(f"pretrained: {pretrained!r} is no local file; give its path or hub:NAME")
        return Source(path=Path(root or ".") / Path(pretrained).expanduser())
    name = pretrained.removeprefix(_HUB)
    if name == "default":
        tag = MODELS[model].hub if model else None
        if not tag:
            raise WeightsError(f"model {model} has no published weights here; give a local file with pretrained: PATH")
        name = tag
    parts = name.split("/")
    if len(parts) > 2 or not all(part and not part.isspace() for part in parts):
        raise WeightsError(f"pretrained: {pretrained!r} names no weights; write hub:NAME or hub:OWNER/NAME")
    return Source(repository=name if len(parts) == 2 else f"timm/{name}")


def weights_mark(pretrained: str, root: str | None = None, *, model: str | None = None) -> str:
    """16 hex digits that tell weights apart: of a file's bytes, wherever it lies; of the name of published weights.

    Args:
        pretrained: as for `weights_source`.
        root: folder that a relative path is relative to; the working directory if missing.
        model: key of `MODELS`, which `hub:default` needs.

    Raises:
        WeightsError: it is neither, the model has no published weights, or the file is missing or unreadable.
    """
    source = weights_source(pretrained, model=model, root=root)
    if source.path is None:
        return hashlib.sha256(str(source).encode()).hexdigest()[:16]
    try:
        stat = source.path.stat()
        return _mark(source.path.resolve(), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise unreadable(source.path, error) from None


def unreadable(path: Path, error: OSError) -> WeightsError:
    """The one line of a file of weights that the system will not give."""
    if isinstance(error, FileNotFoundError):
        return WeightsError(f"no weights at {path}; pretrained wants the path of a file, or hub:NAME")
    return WeightsError(f"cannot read the weights at {path}: {error.strerror or error}")


# A plan asks once a cell; a file of hundreds of megabytes is read once.
@functools.lru_cache(maxsize=64)
def _mark(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
