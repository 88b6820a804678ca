"""ResNet-8, 20, 32 and 56 for 32x32 images: He et al., "Deep residual learning for image recognition", CVPR 2016.

Section 4.2: a 3x3 convolution, then three stages of n basic blocks with 16, 32 and 64 channels (depth 6n + 2), global
average pooling and one linear layer. All shortcuts are of option A: subsampled, with zeros for the new channels, so the
parameters are those of the plain network: 0.27, 0.46 and 0.85 million (table 6). ResNet-8 (n = 1) is not in the paper;
it is for tests and small studies.

Names and the halves of the zero padding are those of akamaster/pytorch_resnet_cifar10, whose checkpoints load.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.initialisation import he_normal


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters. (N, inputs, H, W) -> (N, width, H/s, W/s)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.new_channels = stride, width - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.new_channels:
            before = self.new_channels // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(out + x, inplace=True)


class CifarResNet(nn.Module):
    """A ResNet of depth 6n + 2. (N, channels, H, W) -> (N, classes)."""

    def __init__(self, n: int, *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(n, 16, 16, stride=1)
        self.layer2 = _stage(n, 16, 32, stride=2)
        self.layer3 = _stage(n, 32, 64, stride=2)
        self.linear = nn.Linear(64, classes)
        # "We adopt the weight initialization in [13]" (section 4.2): He et al. 2015, eq 10, by the number of inputs.
        he_normal(self, mode="fan_in")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(n: int, inputs: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, width, stride), *(Block(width, width, 1) for _ in range(n - 1)))


def resnet8(*, classes: int, channels: int, side: int) -> CifarResNet:
    """0.08 M parameters, 12 M multiply-adds on 32x32."""
    return CifarResNet(1, classes=classes, channels=channels)


def resnet20(*, classes: int, channels: int, side: int) -> CifarResNet:
    """0.27 M parameters, 41 M multiply-adds on 32x32."""
    return CifarResNet(3, classes=classes, channels=channels)


def resnet32(*, classes: int, channels: int, side: int) -> CifarResNet:
    """0.46 M parameters, 69 M multiply-adds on 32x32."""
    return CifarResNet(5, classes=classes, channels=channels)


def resnet56(*, classes: int, channels: int, side: int) -> CifarResNet:
    """0.85 M parameters, 126 M multiply-adds on 32x32."""
    return CifarResNet(9, classes=classes, channels=channels)
