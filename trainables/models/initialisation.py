"""He et al., "Delving deep into rectifiers", ICCV 2015: weights that keep the signal's variance through ReLUs."""

from __future__ import annotations

from typing import Literal

from torch import nn


def he_normal(network: nn.Module, *, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw every convolution's weights from N(0, 2 / n), in place, from torch's global CPU generator.

    Args:
        network: its linear layers keep torch's default, its BatchNorms start at weight 1 and bias 0.
        mode: n is kernel size times input channels (`fan_in`, eq 10: the forward signal) or output channels
            (`fan_out`, eq 14: the gradient). Both are in the paper; which one a network uses is part of its recipe.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
