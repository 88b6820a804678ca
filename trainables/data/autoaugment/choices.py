"""What is drawn for each image of a batch, apart from its being carried out: draws can be counted and checked."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.data.autoaugment.bank import bank
from trainables.data.autoaugment.policies import POLICIES, SIGNED, SUB_POLICIES
from trainables.data.autoaugment.strength import Setting


@dataclass(frozen=True)
class Choices:
    """The draws of a batch of N images.

    Attributes:
        policy: its name.
        sub_policy: (N,) int64, 0 to 24.
        applied: (2, N) bool: whether the first and the second operation of the sub-policy are carried out.
        negative: (2, N) bool: the sign of either, which means nothing to an operation without one.
    """

    policy: str
    sub_policy: Tensor
    applied: Tensor
    negative: Tensor

    def rows(self) -> Tensor:
        """(5, N) int64: the same numbers in one tensor, for `of`."""
        return torch.cat([self.sub_policy[None], self.applied, self.negative])

    @classmethod
    def of(cls, policy: str, rows: Tensor) -> Choices:
        """What `rows` was made of."""
        return cls(policy, rows[0], rows[1:3] == 1, rows[3:5] == 1)


def draw(n: int, policy: str, generator: torch.Generator) -> Choices:
    """Draw for `n` images, from a generator on the CPU; as many draws whatever comes out.

    As torchvision's AutoAugment: the sub-policy uniform, an operation carried out if a uniform draw from [0, 1) is not
    above its probability, either sign with 1/2.

    Raises:
        ValueError: there is no such policy.
    """
    probability = _probabilities(policy)
    sub_policy = torch.randint(probability.shape[1], (n,), generator=generator)
    uniform = torch.rand(2, n, generator=generator)
    sign = torch.randint(2, (2, n), generator=generator)
    return Choices(policy, sub_policy, uniform <= probability[:, sub_policy], sign == 0)


def apply(x: Tensor, choices: Choices, fill: int = 0) -> Tensor:
    """Carry out what was drawn.

    Args:
        x: (N, C, H, W) uint8, C 1 (grey) or 3 (RGB); left as it is.
        choices: for N images, on x's device.
        fill: value of pixels that a shear, translation or rotation brings in from outside.

    Returns:
        (N, C, H, W) uint8.

    Raises:
        ValueError: x is no batch of grey or RGB images, or choices are for another number of them.
    """
    if x.dim() != 4 or x.dtype != torch.uint8:
        raise ValueError(f"AutoAugment is for (N, C, H, W) uint8 images, not {x.dtype} of shape {tuple(x.shape)}")
    if x.shape[1] not in (1, 3):
        raise ValueError(f"AutoAugment is for images of 1 (grey) or 3 (RGB) channels, not {x.shape[1]}")
    if len(choices.sub_policy) != len(x):
        raise ValueError(f"choices for {len(choices.sub_policy)} images cannot be carried out on {len(x)}")
    if x.numel() == 0:
        return x.clone()
    settings, number = settings_of(choices.policy, x.device)
    ready = bank(settings, *x.shape[1:], fill, x.device)
    for step in range(2):
        which = number[step, choices.sub_policy, choices.negative[step].long()]
        x = ready.apply(x, which * choices.applied[step])
    return x


@functools.cache
def _probabilities(policy: str) -> Tensor:
    """(2, 25) float32."""
    if policy not in SUB_POLICIES:
        raise ValueError(f"unknown AutoAugment policy {policy!r} (known: {', '.join(POLICIES)})")
    return torch.tensor([[step[1] for step in steps] for steps in SUB_POLICIES[policy]]).T.contiguous()


@functools.lru_cache(maxsize=16)
def settings_of(policy: str, device: torch.device) -> tuple[tuple[Setting, ...], Tensor]:
    """Every setting of a policy once, an identity first; and (2, 25, 2) int64, the number of each step's setting."""
    numbers = {Setting("Identity"): 0}
    table = []
    for steps in SUB_POLICIES[policy]:
        for operation, _, magnitude in steps:
            for negative in (False, True):
                setting = Setting(operation, magnitude, negative and operation in SIGNED)
                table.append(numbers.setdefault(setting, len(numbers)))
    number = torch.tensor(table, device=device).view(-1, 2, 2).transpose(0, 1).contiguous()
    return tuple(numbers), number
