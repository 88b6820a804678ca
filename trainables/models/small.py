"""Networks small enough for a laptop's CPU: BatchNorm and ReLU as in the large ones, minutes instead of days.

Rates in the docstrings are images through one forward and backward pass in batches of 128, on one core of an AMD EPYC
that other work shared; accuracies are of one or two seeds and only say what to expect.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.models.initialisation import he_normal


class SmallCNN(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU, then one linear layer. (N, channels, H, W) -> (N, classes)."""

    def __init__(self, features: nn.Sequential, outputs: int, *, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.linear = nn.Linear(outputs, classes)
        he_normal(self, mode="fan_in")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.dropout(self.features(x).flatten(1)))
        return logits


class MLP(nn.Module):
    """One hidden layer of ReLUs on the image's pixels. (N, channels, side, side) -> (N, classes)."""

    def __init__(self, inputs: int, hidden: int, *, classes: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.linear = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.dropout(torch.relu(self.hidden(x.flatten(1)))))
        return logits


def _layer(inputs: int, width: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


def digits_cnn(*, classes: int, channels: int, side: int, dropout: float = 0.0) -> SmallCNN:
    """Two convolutions for 8x8 digits: 6,138 parameters, 84 k multiply-adds; dropout is before the linear layer.

    43,000 images/s. 20 epochs of 1,150 images with SAM (batch 128, lr 0.1) take 1.1 s and reach 98 to 99 %.
    """
    features = nn.Sequential(*_layer(channels, 16, 1), nn.AvgPool2d(2), *_layer(16, 32, 1), nn.AvgPool2d(2))
    return SmallCNN(features, 32 * (side // 4) ** 2, classes=classes, dropout=dropout)


def cifar_cnn(*, classes: int, channels: int, side: int) -> SmallCNN:
    """Four convolutions for 32x32 images: 107,882 parameters, 4.9 M multiply-adds.

    1,800 images/s (2,400 with channels_last). 10 epochs of 10,000 CIFAR-10 images with flips (batch 128, lr 0.05,
    cosine, SGD) took 52 s and reached 69 %.
    """
    features = nn.Sequential(
        *_layer(channels, 32, 2),
        *_layer(32, 32, 1),
        nn.AvgPool2d(2),
        *_layer(32, 64, 1),
        nn.AvgPool2d(2),
        *_layer(64, 128, 1),
        nn.AvgPool2d(2),
    )
    # A stride of 2 rounds an odd side up, each pooling rounds down.
    return SmallCNN(features, 128 * (((side + 1) // 2) // 8) ** 2, classes=classes)


def mlp(*, classes: int, channels: int, side: int, dropout: float = 0.0) -> MLP:
    """32 hidden units; dropout is on them."""
    return MLP(channels * side * side, 32, classes=classes, dropout=dropout)
