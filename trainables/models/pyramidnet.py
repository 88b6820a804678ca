"""PyramidNet-272: Han et al., "Deep pyramidal residual networks", CVPR 2017.

Section 3: bottleneck blocks BN-conv1x1-BN-ReLU-conv3x3-BN-ReLU-conv1x1-BN (no ReLU before the first convolution, a
BatchNorm after the last); the 3x3 convolution of block k of N has 16 + alpha k / N channels (the additive form), the
block's output four times as many. Shortcuts have no parameters: 2x2 average pooling where the map shrinks, zeros for
the new channels. A BatchNorm and a ReLU close the last stage.

As in the authors' PyTorch code (dyhan0920/PyramidNet-PyTorch): channels are rounded to the nearest, which gives
26,210,842 parameters for ten classes (rounded down they give 26,049,562, the paper's 26.0 M); the stem's BatchNorm has
no ReLU; weights are normal with variance 2 / (kernel area x output channels); the linear layer keeps torch's default.
Kim et al. 2022 say "PyramidNet-272": alpha 200 with bottlenecks, the one of that depth in the paper and in Foret et al.
2021.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.initialisation import he_normal


class PyramidBlock(nn.Module):
    """A bottleneck beside a shortcut without parameters. (N, inputs, H, W) -> (N, 4 width, H/s, W/s)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(4 * width)
        self.stride, self.new_channels = stride, 4 * width - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        out = self.bn4(self.conv3(F.relu(self.bn3(out), inplace=True)))
        if self.stride != 1:
            # An odd side is rounded up, as by the convolution.
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return out + F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


class PyramidNet(nn.Module):
    """Three stages of n bottlenecks, depth 9n + 2. (N, channels, H, W) -> (N, classes)."""

    def __init__(self, n: int, alpha: int, *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs, stages = 16, []
        for stage in range(3):
            blocks: list[nn.Module] = []
            for k in range(stage * n + 1, stage * n + n + 1):
                width = round(16 + alpha * k / (3 * n))  # additive widening, section 3.1
                stride = 2 if stage and not blocks else 1
                blocks.append(PyramidBlock(inputs, width, stride))
                inputs = 4 * width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn2 = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, classes)
        he_normal(self, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)))))
        logits: Tensor = self.linear(F.relu(self.bn2(x), inplace=True).mean((2, 3)))
        return logits


def pyramidnet272(*, classes: int, channels: int, side: int) -> PyramidNet:
    """26.2 M parameters, 4.5 G multiply-adds on 32x32."""
    return PyramidNet(30, 200, classes=classes, channels=channels)
