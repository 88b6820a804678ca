"""ResNet-18 and 34 for small images: He et al., CVPR 2016, table 1, with the stem that CIFAR papers use.

The 7x7 convolution of stride 2 and the max-pooling are replaced by one 3x3 convolution of stride 1 (as in DeVries &
Taylor 2017 and kuangliu/pytorch-cifar, whose names these are); shortcuts that change the shape are 1x1 convolutions
with BatchNorm (option B).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.initialisation import he_normal


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut. (N, inputs, H, W) -> (N, width, H/s, W/s)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """Four stages of basic blocks with 64, 128, 256 and 512 channels. (N, channels, H, W) -> (N, classes)."""

    def __init__(self, depths: Sequence[int], *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(depths[0], 64, 64, stride=1)
        self.layer2 = _stage(depths[1], 64, 128, stride=2)
        self.layer3 = _stage(depths[2], 128, 256, stride=2)
        self.layer4 = _stage(depths[3], 256, 512, stride=2)
        self.linear = nn.Linear(512, classes)
        # By the number of outputs, as in fb.resnet.torch and torchvision.
        he_normal(self, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(n: int, inputs: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, width, stride), *(BasicBlock(width, width, 1) for _ in range(n - 1)))


def resnet18(*, classes: int, channels: int, side: int) -> ResNet:
    """11.2 M parameters, 0.56 G multiply-adds on 32x32."""
    return ResNet((2, 2, 2, 2), classes=classes, channels=channels)


def resnet34(*, classes: int, channels: int, side: int) -> ResNet:
    """21.3 M parameters, 1.16 G multiply-adds on 32x32."""
    return ResNet((3, 4, 6, 3), classes=classes, channels=channels)
