"""DenseNet-121: Huang et al., "Densely connected convolutional networks", CVPR 2017.

Table 1: DenseNet-BC with growth 32, dense blocks of 6, 12, 24 and 16 layers, each layer BN-ReLU-conv1x1 (to 4 x 32
channels)-BN-ReLU-conv3x3, its input put before its output; between blocks BN-ReLU-conv1x1 to half the channels and 2x2
average pooling. Weights are normal with variance 2 / (kernel area x output channels) and the linear layer's bias starts
at zero, as in the authors' code.

Kim et al. 2022 say no more than "DenseNet-121" on CIFAR. The stem here is what kuangliu/pytorch-cifar and
weiaicunzai/pytorch-cifar100 took from the CIFAR networks of the DenseNet paper: one 3x3 convolution of stride 1 to
twice the growth, without BatchNorm (the first layer has one) and without pooling. With ImageNet's stem a 32x32 image
would reach the last block as one pixel; the 91.83 % of the paper's SGD, where these ports report 95 %, look like that
stem, so expect higher absolute accuracies here and compare differences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.initialisation import he_normal


class DenseLayer(nn.Module):
    """(N, inputs, H, W) -> (N, inputs + growth, H, W): the input, then what is new."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x), inplace=True))
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        return torch.cat([x, out], 1)


class Transition(nn.Module):
    """(N, inputs, H, W) -> (N, inputs / 2, H / 2, W / 2)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x), inplace=True)), 2)


class DenseNet(nn.Module):
    """Dense blocks of `depths` layers with a transition between them. (N, channels, H, W) -> (N, classes)."""

    def __init__(self, depths: tuple[int, ...], growth: int, *, classes: int, channels: int) -> None:
        super().__init__()
        width = 2 * growth
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        for i, depth in enumerate(depths):
            if i:
                stages.append(Transition(width))
                width //= 2
            stages.append(nn.Sequential(*(DenseLayer(width + n * growth, growth) for n in range(depth))))
            width += depth * growth
        self.stages = nn.Sequential(*stages)
        self.bn1 = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, classes)
        he_normal(self, mode="fan_out")
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.stages(self.conv1(x))), inplace=True)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def densenet121(*, classes: int, channels: int, side: int) -> DenseNet:
    """7.0 M parameters, 0.89 G multiply-adds on 32x32."""
    return DenseNet((6, 12, 24, 16), 32, classes=classes, channels=channels)
