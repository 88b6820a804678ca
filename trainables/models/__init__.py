"""Networks by name. This file imports no torch, so that a study's plan is checked in a moment."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

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
        multiple: pixels that must divide an image's side.
        normalisation: what the published weights expect of an image in [0, 1]: `data` (mean and standard deviation of
            the training split), `imagenet` (mean .485, .456, .406 and standard deviation .229, .224, .225) or `half`
            (both 0.5).
        hub: timm's name of the published weights that `hub:default` means; None where there are none.
    """

    where: str
    dropout: bool
    light: bool
    about: str
    least_side: int = 4
    stride: int = 4
    multiple: int = 1
    normalisation: Literal["data", "imagenet", "half"] = "data"
    hub: str | None = None

    def least_batch(self, side: int) -> int:
        """Images that a training batch needs: 2 where a BatchNorm's last map is one pixel and would have one value."""
        return 2 if self.stride and side <= self.stride else 1

    def refusal(self, side: int) -> str | None:
        """Why it cannot take images of this side, as the end of a sentence that its name begins; None if it can."""
        if side < self.least_side:
            return f"needs images of at least {self.least_side} x {self.least_side} pixels, not {side} x {side}"
        if side % self.multiple:
            return f"needs images whose side is a multiple of {self.multiple} pixels, not {side} x {side}"
        return None


_CIFAR = "trainables.models.cifar_resnet"
_RESNET = "trainables.models.resnet"
_WIDE = "trainables.models.wide_resnet"
_DENSE = "trainables.models.densenet"
_VGG = "trainables.models.vgg"
_NEXT = "trainables.models.resnext"
_PYRAMID = "trainables.models.pyramidnet"
_VIT = "trainables.models.vit"
_SMALL = "trainables.models.small"

MODELS: dict[str, ModelFacts] = {
    "resnet8": ModelFacts(f"{_CIFAR}:resnet8", False, True, "He et al. 2016 with n = 1, for small studies; 0.08 M"),
    "resnet20": ModelFacts(f"{_CIFAR}:resnet20", False, True, "He et al. 2016 section 4.2, option A; 0.27 M"),
    "resnet32": ModelFacts(f"{_CIFAR}:resnet32", False, True, "He et al. 2016 section 4.2, option A; 0.46 M"),
    "resnet56": ModelFacts(f"{_CIFAR}:resnet56", False, True, "He et al. 2016 section 4.2, option A; 0.85 M"),
    "resnet18": ModelFacts(f"{_RESNET}:resnet18", False, False, "ImageNet's, with a 3x3 stem; 11.2 M", 4, 8),
    "resnet34": ModelFacts(f"{_RESNET}:resnet34", False, False, "ImageNet's, with a 3x3 stem; 21.3 M", 4, 8),
    "wrn28_2": ModelFacts(f"{_WIDE}:wrn28_2", True, True, "Zagoruyko & Komodakis 2016; 1.5 M"),
    "wrn28_10": ModelFacts(f"{_WIDE}:wrn28_10", True, False, "Zagoruyko & Komodakis 2016; 36.5 M"),
    # From 9 to 15 pixels its poolings round down to one, which `stride` cannot say.
    "densenet121": ModelFacts(f"{_DENSE}:densenet121", False, False, "Huang et al. 2017, 3x3 stem; 7.0 M", 16, 8),
    "vgg19_bn": ModelFacts(f"{_VGG}:vgg19_bn", False, False, "Simonyan & Zisserman 2015, BatchNorm; 20.0 M", 32, 16),
    "resnext29_32x4d": ModelFacts(f"{_NEXT}:resnext29_32x4d", False, False, "Xie et al. 2017 section 5.3; 4.8 M"),
    "pyramidnet272": ModelFacts(f"{_PYRAMID}:pyramidnet272", False, False, "Han et al. 2017, alpha 200; 26.2 M"),
    "vit_b16": ModelFacts(
        f"{_VIT}:vit_b16",
        False,
        False,
        "ViT-B/16, Dosovitskiy et al. 2021; 86 M",
        least_side=16,
        stride=0,
        multiple=16,
        normalisation="half",
        hub="vit_base_patch16_224.augreg2_in21k_ft_in1k",
    ),
    "deit_b": ModelFacts(
        f"{_VIT}:deit_b",
        False,
        False,
        "DeiT-B, Touvron et al. 2021; 86 M",
        least_side=16,
        stride=0,
        multiple=16,
        normalisation="imagenet",
        hub="deit_base_patch16_224.fb_in1k",
    ),
    "vit_ti16": ModelFacts(
        f"{_VIT}:vit_ti16",
        False,
        False,
        "ViT-Ti/16, Steiner et al. 2022; 5.5 M",
        least_side=16,
        stride=0,
        multiple=16,
        normalisation="half",
        hub="vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    ),
    "vit_micro": ModelFacts(
        f"{_VIT}:vit_micro", False, True, "64 patches whatever the side, for CPUs; 0.46 M", 8, 0, multiple=8
    ),
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
            out of range, or it cannot take images of this side.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown model {name!r}{hint} (known: {', '.join(sorted(MODELS))})")
    facts = MODELS[name]
    if refusal := facts.refusal(side):
        raise ValueError(f"model {name} {refusal}")
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
