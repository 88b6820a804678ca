"""VGG-19 with BatchNorm for small images: Simonyan & Zisserman, "Very deep convolutional networks", ICLR 2015.

Table 1, column E: sixteen 3x3 convolutions of 64, 128, 256, 512 and 512 channels, a 2x2 max-pooling after each of the
five groups; a BatchNorm (Ioffe & Szegedy 2015) before every ReLU.

What Kim et al. 2022 leave open, as kuangliu/pytorch-cifar and most CIFAR ports choose it: the three large linear layers
and their dropout (124 of 144 million parameters, for 7x7 maps) are one linear layer on the 512 features, averaged over
what positions are left (one for 32x32). Convolutions have no bias, since the BatchNorm after them takes any constant
out: its gradient would be zero. Weights start as torchvision's: He et al. 2015 by the number of outputs (the paper's
own start, training a shallower network first, is for want of BatchNorm), the linear layer's with standard deviation
0.01.
"""

from __future__ import annotations

from torch import Tensor, nn

from trainables.models.initialisation import he_normal


class VGG(nn.Module):
    """Groups of (convolutions, channels), each followed by a max-pooling. (N, channels, H, W) -> (N, classes)."""

    def __init__(self, groups: tuple[tuple[int, int], ...], *, classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for depth, width in groups:
            for _ in range(depth):
                layers += [
                    nn.Conv2d(inputs, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(inputs, classes)
        he_normal(self, mode="fan_out")
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits


def vgg19_bn(*, classes: int, channels: int, side: int) -> VGG:
    """20.0 M parameters, 0.40 G multiply-adds on 32x32."""
    return VGG(((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)), classes=classes, channels=channels)
