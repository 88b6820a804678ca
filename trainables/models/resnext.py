"""ResNeXt-29 (32x4d) for small images: Xie et al., "Aggregated residual transformations", CVPR 2017.

Section 5.3: a 3x3 convolution to 64 channels, three stages of three bottleneck blocks with 256, 512 and 1024 channels,
global average pooling and one linear layer. A block of cardinality C and bottleneck width d is conv1x1 to C x d
channels-conv3x3 in C groups-conv1x1, each with BatchNorm (figure 3c); C x d doubles with each stage; shortcuts that
change the shape are 1x1 convolutions with BatchNorm. Weights are normal with variance 2 / (kernel area x output
channels) and the linear layer's bias starts at zero, as in the authors' code.

The paper has 8x64d and 16x64d on CIFAR. Kim et al. 2022 (after Kwon et al. 2021) use "32x4d": the same network with
C = 32 and d = 4, which is what moskomule/homura (named in the code of Kwon et al.) and osmr/imgclsmob build: 4,775,754
parameters for ten classes. kuangliu/pytorch-cifar has a 1x1 convolution as its first and so 1,536 fewer.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.initialisation import he_normal


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions beside a shortcut. (N, inputs, H, W) -> (N, outputs, H/s, W/s)."""

    def __init__(self, inputs: int, outputs: int, *, width: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x), inplace=True)


class ResNeXt(nn.Module):
    """A ResNeXt of depth 9n + 2. (N, channels, H, W) -> (N, classes)."""

    def __init__(self, n: int, *, cardinality: int, bottleneck: int, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs, stages = 64, []
        for i in range(3):
            outputs, width = 256 << i, cardinality * bottleneck << i
            blocks = []
            for j in range(n):
                stride = 2 if i and not j else 1
                blocks.append(Bottleneck(inputs, outputs, width=width, groups=cardinality, stride=stride))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(inputs, classes)
        he_normal(self, mode="fan_out")
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def resnext29_32x4d(*, classes: int, channels: int, side: int) -> ResNeXt:
    """4.8 M parameters, 0.77 G multiply-adds on 32x32."""
    return ResNeXt(3, cardinality=32, bottleneck=4, classes=classes, channels=channels)
