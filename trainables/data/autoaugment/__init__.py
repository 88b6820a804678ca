"""AutoAugment on whole batches, a sub-policy drawn for every image, equal bit for bit to Pillow on single images.

Cubuk, Zoph, Mane, Vasudevan & Le, "AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019, in the form
that torchvision.transforms.AutoAugment gave it (with nearest-neighbour sampling). It stands after crop and flip and
before normalisation and Cutout, the paper's order (section 4.1: baseline augmentation, then the policy, then Cutout).

Equal to Pillow means: every operation at every magnitude and sign, on grey and RGB images of any sides up to 16,384
pixels, on a CPU. None is even one grey level off. Tests hold each to Pillow's result.

Where this follows torchvision, and the code that the authors published (tensorflow/models, research/autoaugment,
for CIFAR) does otherwise:

- Policies: here the 25 sub-policies of the paper's tables; that code has 95 for CIFAR-10.
- Order: that code applies the policy before crop and flip.
- Magnitudes: here 9 is an operation's full range; there 10 is (9 gives nine tenths), so that shears and rotations are
  a ninth stronger here.
- Translation: here up to 150/331 of the side (14.5 pixels of 32), there up to 10 pixels.
- Brightness, Color, Contrast, Sharpness: here a factor of 1 plus or minus up to 0.9, the sign drawn; there 0.1 + 0.18
  times the magnitude, so that below 5 an image is always weakened and above it always strengthened.
- Posterize: here 8 down to 4 bits, there 4 down to 0. Solarize: here thresholds from 255, there from 256.
- Pixels from outside: here black, there the mean colour (0 after normalisation). `fill` changes it.

policies    the sub-policies, plain data
strength    what a magnitude means for each operation
geometry    shear, translation, rotation: tables of source pixels
point       brightness, contrast, equalisation and their like: tables of values
blend       colour and sharpness
bank        settings made ready, and applied to a batch
choices     the draws of a batch

This file imports no torch until a batch is augmented.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables.data.autoaugment.policies import POLICIES

if TYPE_CHECKING:
    from torch import Tensor

    from trainables.data.autoaugment.choices import Choices

__all__ = ["POLICIES", "autoaugment"]


def autoaugment(x: Tensor, choices: Choices, fill: int = 0) -> Tensor:
    """Apply to each image the sub-policy that was drawn for it.

    Args:
        x: (N, C, H, W) uint8, C 1 (grey) or 3 (RGB); left as it is.
        choices: of N images, on x's device: `choices.draw(n, policy, generator)`.
        fill: value of pixels that a shear, translation or rotation brings in from outside.

    Returns:
        (N, C, H, W) uint8.

    Raises:
        ValueError: x is no batch of grey or RGB images, or choices are for another number of them.
    """
    from trainables.data.autoaugment.choices import apply

    return apply(x, choices, fill)
