"""Networks by name. This file imports no torch, so that a study's plan is checked in a moment."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "ModelFacts", "build"]


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a network before it is built.

    Attributes:
        where: `module:function` that builds it.
        dropout: whether it takes a dropout rate.
        light: whether it is too small to fill a GPU, so that several may share one.
        about: one line for people.
        least_side: pixels of the smallest image's side it can take.
        stride: side of the image over side of the last map that a BatchNorm sees; 0 without BatchNorm.
    """

    where: str
    dropout: bool
    light: bool
    about: str
    least_side: int = 4
    stride: int = 4

    def least_batch(self, side: int) -> int:
        """Images that a training batch needs: 2 where a BatchNorm's last map is one pixel and would have one value."""
        return 2 if self.stride and side <= self.stride else 1


_CIFAR = "trainables.models.cifar_resnet"
_RESNET = "trainables.models.resnet"
_WIDE = "trainables.models.wide_resnet"
_SMALL = "trainables.models.small"

MODELS: dict[str, ModelFacts] = {
    "resnet20": ModelFacts(f"{_CIFAR}:resnet20", False, True, "He et al. 2016 section 4.2, option A; 0.27 M"),
    "resnet32": ModelFacts(f"{_CIFAR}:resnet32", False, True, "He et al. 2016 section 4.2, option A; 0.46 M"),
    "resnet56": ModelFacts(f"{_CIFAR}:resnet56", False, True, "He et al. 2016 section 4.2, option A; 0.85 M"),
    "resnet18": ModelFacts(f"{_RESNET}:resnet18", False, False, "ImageNet's, with a 3x3 stem; 11.2 M", 4, 8),
    "resnet34": ModelFacts(f"{_RESNET}:resnet34", False, False, "ImageNet's, with a 3x3 stem; 21.3 M", 4, 8),
    "wrn28_2": ModelFacts(f"{_WIDE}:wrn28_2", True, True, "Zagoruyko & Komodakis 2016; 1.5 M"),
    "wrn28_10": ModelFacts(f"{_WIDE}:wrn28_10", True, False, "Zagoruyko & Komodakis 2016; 36.5 M"),
    "digits_cnn": ModelFacts(f"{_SMALL}:digits_cnn", True, True, "for 8x8 digits on one CPU core; 6 k", 4, 2),
    "cifar_cnn": ModelFacts(f"{_SMALL}:cifar_cnn", False, True, "for 32x32 images on a laptop's CPU; 0.11 M", 16, 8),
    "mlp": ModelFacts(f"{_SMALL}:mlp", True, True, "one hidden layer, any input; for tests", 1, 0),
}


def build(name: str, *, classes: int, channels: int, side: int, dropout: float | None = None) -> nn.Module:
    """A freshly initialised network, on the CPU in float32, from (N, channels, side, side) to (N, classes) logits.

    Every draw comes from torch's global CPU generator, so `torch.manual_seed` fixes the weights on any device.

    Args:
        name: a key of `MODELS`.
        classes: number of classes.
        channels: channels of an image.
        side: pixels of an image's side.
        dropout: rate in [0, 1) of a network that takes one; None is none.

    Raises:
        ValueError: the name is unknown (the message names the nearest one), the network takes no dropout or the rate is
            out of range, or the images are too small for it.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown model {name!r}{hint} (known: {', '.join(sorted(MODELS))})")
    facts = MODELS[name]
    settings: dict[str, float] = {}
    if facts.dropout:
        settings["dropout"] = 0.0 if dropout is None else dropout
        if not 0 <= settings["dropout"] < 1:
            raise ValueError(f"dropout {dropout} is not in [0, 1)")
    elif dropout is not None:
        raise ValueError(f"model {name} has no dropout")
    module, function = facts.where.split(":")
    network: nn.Module = getattr(import_module(module), function)(
        classes=classes, channels=channels, side=side, **settings
    )
    return network
