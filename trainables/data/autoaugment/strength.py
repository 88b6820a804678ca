"""How strong an operation is at a magnitude: torchvision's ranges, over the integers 0 to 9."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainables.data.autoaugment.policies import LEVELS, PARAMETERLESS, SIGNED, UNSIGNED

#: Full range of the signed operations but translation. Shear: pixels per pixel; Rotate: degrees; the others: how far
#: the factor of the enhancement is from 1, which leaves the image as it is.
_FULL = {
    "ShearX": 0.3,
    "ShearY": 0.3,
    "Rotate": 30.0,
    "Brightness": 0.9,
    "Color": 0.9,
    "Contrast": 0.9,
    "Sharpness": 0.9,
}

#: Full range of a translation, as a share of the side: 150 pixels of the 331 that the policy was searched with.
_TRANSLATION = 150.0 / 331.0


@dataclass(frozen=True)
class Setting:
    """One operation at one strength.

    Attributes:
        operation: its name in a policy; `Identity` does nothing.
        magnitude: 0 to 9; None for operations that have none.
        negative: whether a signed operation goes the other way (left, up, darker, ...).

    Raises:
        ValueError: an operation is not known, or its magnitude or sign is not one that it has.
    """

    operation: str
    magnitude: int | None = None
    negative: bool = False

    def __post_init__(self) -> None:
        if self.operation in SIGNED | UNSIGNED:
            if self.magnitude is None or not 0 <= self.magnitude < LEVELS:
                raise ValueError(f"{self.operation}: magnitude {self.magnitude} is not one of 0 to {LEVELS - 1}")
        elif self.operation not in PARAMETERLESS | {"Identity"}:
            known = ", ".join(sorted(SIGNED | UNSIGNED | PARAMETERLESS))
            raise ValueError(f"unknown operation {self.operation!r} (known: {known})")
        elif self.magnitude is not None:
            raise ValueError(f"{self.operation} has no magnitude, but was given {self.magnitude}")
        if self.negative and self.operation not in SIGNED:
            raise ValueError(f"{self.operation} has no sign")


def strength(setting: Setting, height: int, width: int) -> float:
    """The number that torchvision's AutoAugment gives the operation.

    Args:
        setting: what is done.
        height: of the images, in pixels.
        width: likewise.

    Returns:
        Shear: a slope; translation: pixels, not yet whole; Rotate: degrees counter-clockwise; Brightness, Color,
        Contrast and Sharpness: the factor minus 1; Posterize: the bits that are kept; Solarize: the threshold; 0 for
        operations without a magnitude.
    """
    if setting.magnitude is None:
        return 0.0
    if setting.operation == "Posterize":
        return float(8 - round(setting.magnitude / ((LEVELS - 1) / 4)))
    if setting.operation == "Solarize":
        return _spaced(255.0, 0.0, setting.magnitude)
    if setting.operation in ("TranslateX", "TranslateY"):
        full = _TRANSLATION * (width if setting.operation == "TranslateX" else height)
    else:
        full = _FULL[setting.operation]
    size = _spaced(0.0, full, setting.magnitude)
    return -size if setting.negative else size


def _spaced(first: float, last: float, magnitude: int) -> float:
    # torchvision takes these numbers out of a float32 linspace. The last bit decides at rare pixels, so take them
    # there too.
    return float(torch.linspace(first, last, LEVELS)[magnitude])
