"""Start a network from weights that somebody trained: a file, or what the hub publishes.

The last linear layer is kept where its shape agrees and stays as it was initialised where the number of classes
differs; position embeddings of a transformer are resampled to the image's side (Dosovitskiy et al. 2021, section 3.2).
Everything else has to fit exactly: weights of which a part is left out would train, and mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainables.models.weights import Source, WeightsError, weights_source
from trainables.models.weights_file import WeightsFile, read_weights, save_weights

__all__ = ["Loaded", "load_pretrained", "save_weights"]


@dataclass(frozen=True)
class Loaded:
    """What became of pretrained weights.

    Attributes:
        source: the file, or `hub:OWNER/NAME`.
        head: whether the last linear layer is the weights' own (`kept`) or still as it was initialised (`new`).
        resampled: names of the tensors that were resampled to the image's side.
        about: what `save_weights` was given, where the file is one of this project; otherwise empty.
    """

    source: str
    head: Literal["kept", "new"]
    resampled: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


def load_pretrained(
    network: nn.Module, pretrained: str, *, model: str, classes: int, root: str | None = None
) -> Loaded:
    """Put pretrained weights into a network, in place; if they do not fit it is left as it was.

    Nothing is unpickled that is not a tensor. Weights of another precision are converted to the network's.

    Args:
        network: as `build` made it, on any device.
        pretrained: the path of a file, `hub:NAME` or `hub:default`; see `trainables.models.weights`.
        model: key of `MODELS` that built it.
        classes: number of its classes.
        root: folder that a relative path is relative to; the working directory if missing.

    Raises:
        WeightsError: the weights cannot be found, fetched or read, or are of another model, architecture or number of
            channels.
    """
    source = weights_source(pretrained, model=model, root=root)
    file = read_weights(source.path if source.path is not None else _fetch(source))
    if file.model is not None and file.model != model:
        raise WeightsError(f"weights of another model: {source} holds {file.model}, not {model}")
    own = network.state_dict()
    given, head = _without_other_head(network, file, own, classes)
    resampled = _at_this_side(network, given)
    given |= resampled
    _check(network, given, own, source=source, model=model, head=head)
    merged = {name: given.get(name, value) for name, value in own.items()}
    network.load_state_dict(merged, strict=True)
    return Loaded(str(source), head, tuple(resampled), file.about)


def _fetch(source: Source) -> Path:
    """The local copy of published weights: the hub's own cache, and the hub only for what is not there."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    assert source.repository is not None
    for cached in (True, False):
        try:
            return Path(
                huggingface_hub.hf_hub_download(source.repository, "model.safetensors", local_files_only=cached)
            )
        # Not in the cache, or no network to look further; a kind of the errors below, which are the hub's answer.
        except LocalEntryNotFoundError:
            continue
        except (EntryNotFoundError, RepositoryNotFoundError):
            raise WeightsError(f"the hub has no safetensors of {source.repository}; check the name") from None
        except Exception:  # the client's errors are those of whichever transport it uses
            continue
    raise WeightsError(f"cannot fetch {source} (no network?); give a local file with pretrained: PATH")


def _head(network: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the last linear layer."""
    return [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def _without_other_head(
    network: nn.Module, file: WeightsFile, own: Mapping[str, Tensor], classes: int
) -> tuple[dict[str, Tensor], Literal["kept", "new"]]:
    """The file's tensors, less a head of another number of classes, and what becomes of the head."""
    name, module = _head(network)
    if module.out_features != classes:
        raise WeightsError(f"the network has {module.out_features} outputs, not one for each of {classes} classes")
    parts = [key for key in own if key.startswith(f"{name}.")]
    shapes = {key: file.tensors[key].shape for key in parts if key in file.tensors}
    if all(key in shapes and shapes[key] == own[key].shape for key in parts):
        return dict(file.tensors), "kept"
    # Only the first dimension, the classes, may differ; a head that is missing in part or narrower is no such head.
    other_classes = shapes and len(shapes) == len(parts)
    fits_but_classes = other_classes and all(shapes[key][1:] == own[key].shape[1:] for key in parts)
    same_count = other_classes and len({shapes[key][0] for key in parts}) == 1
    if not shapes or (fits_but_classes and same_count):
        return {key: value for key, value in file.tensors.items() if key not in shapes}, "new"
    return dict(file.tensors), "kept"


def _at_this_side(network: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "pos_embed" not in network.state_dict():
        return {}  # only a transformer has to wait for timm to be imported
    from trainables.models.vit import at_this_side

    return at_this_side(network, given)


def _check(
    network: nn.Module,
    given: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    *,
    source: Source,
    model: str,
    head: Literal["kept", "new"],
) -> None:
    """Refuse tensors that are missing, too many, of another shape, or not finite."""
    head_name = _head(network)[0]
    # Files from before torch 0.4.1 do not count batches; nothing here reads the count.
    optional = {key for key in own if key.endswith(".num_batches_tracked")}
    optional |= {key for key in own if head == "new" and key.startswith(f"{head_name}.")}
    missing = [key for key in own if key not in given and key not in optional]
    unexpected = [key for key in given if key not in own]
    differing = [key for key in own if key in given and given[key].shape != own[key].shape]
    stem = next((name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)), None)
    if differing == [f"{stem}.weight"] and not missing and not unexpected:
        theirs, ours = given[differing[0]].shape, own[differing[0]].shape
        if theirs[:1] + theirs[2:] == ours[:1] + ours[2:]:
            raise WeightsError(f"weights for images of other channels: {source} has {theirs[1]}, the network {ours[1]}")
    found = []
    for keys, word in ((missing, "missing"), (unexpected, "unexpected")):
        if keys:
            found.append(f"{len(keys)} {word}, first {keys[0]}")
    if differing:
        key = differing[0]
        shapes = f"{tuple(given[key].shape)} and not {tuple(own[key].shape)}"
        found.append(f"{len(differing)} of another shape, first {key}: {shapes}")
    if found:
        raise WeightsError(f"weights of another architecture: {source} does not fit {model} ({'; '.join(found)})")
    for key, value in given.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(f"{source} holds values that are not finite, first in {key}")
