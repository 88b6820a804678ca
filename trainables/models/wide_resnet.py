"""WRN-28-2 and WRN-28-10: Zagoruyko & Komodakis, "Wide residual networks", BMVC 2016.

Pre-activation blocks B(3, 3), three stages of 4 blocks with 16k, 32k and 64k channels, dropout between the two
convolutions (section 2.4). As in the authors' code: a block that changes its number of channels gives its normalised
input to the shortcut too, such shortcuts are 1x1 convolutions, weights are normal with variance 2 / (kernel area x
output channels), the linear layer's bias starts at zero.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.initialisation import he_normal


class WideBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-dropout-conv beside a shortcut. (N, inputs, H, W) -> (N, width, H/s, W/s)."""

    def __init__(self, inputs: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x), inplace=True)
        kept = x if self.shortcut is None else self.shortcut(active)
        out = self.dropout(F.relu(self.bn2(self.conv1(active)), inplace=True))
        return kept + self.conv2(out)


class WideResNet(nn.Module):
    """WRN-(6n + 4)-k. (N, channels, H, W) -> (N, classes)."""

    def __init__(self, n: int, k: int, *, classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(n, 16, 16 * k, 1, dropout)
        self.layer2 = _stage(n, 16 * k, 32 * k, 2, dropout)
        self.layer3 = _stage(n, 32 * k, 64 * k, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * k)
        self.linear = nn.Linear(64 * k, classes)
        he_normal(self, mode="fan_out")
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.linear(F.relu(self.bn1(x), inplace=True).mean((2, 3)))
        return logits


def _stage(n: int, inputs: int, width: int, stride: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        WideBlock(inputs, width, stride, dropout), *(WideBlock(width, width, 1, dropout) for _ in range(n - 1))
    )


def wrn28_2(*, classes: int, channels: int, side: int, dropout: float = 0.0) -> WideResNet:
    """1.5 M parameters, 0.21 G multiply-adds on 32x32."""
    return WideResNet(4, 2, classes=classes, channels=channels, dropout=dropout)


def wrn28_10(*, classes: int, channels: int, side: int, dropout: float = 0.0) -> WideResNet:
    """36.5 M parameters, 5.2 G multiply-adds on 32x32. The authors use dropout 0.3 where they use it."""
    return WideResNet(4, 10, classes=classes, channels=channels, dropout=dropout)
