"""What was drawn for each image of a batch, apart from its being carried out.

Everything is drawn on the CPU, wherever the images are: torch's generators give other numbers on other devices, and a
GPU would train on other crops than a CPU. (`trainables.data.draws` is for what belongs to a study: splits, noise.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Draws:
    """The draws of N images.

    Attributes:
        images: N, which no operation tells if there is none.
        by_operation: (..., N) of each: the images are the last dimension.
    """

    images: int
    by_operation: Mapping[str, Tensor]

    @classmethod
    def cat(cls, several: Sequence[Draws]) -> Draws:
        """The draws of several batches of one augmentation, at least one, as if the batches were one."""
        first = several[0]
        if len(several) == 1:
            return first
        return cls(
            sum(draws.images for draws in several),
            {name: torch.cat([draws.by_operation[name] for draws in several], -1) for name in first.by_operation},
        )

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, part: slice) -> Draws:
        """Of some of the images."""
        images = len(range(*part.indices(self.images)))
        return Draws(images, {name: drawn[..., part] for name, drawn in self.by_operation.items()})

    def to(self, device: torch.device) -> Draws:
        """The same draws where the images are, in one copy for each operation; the host does not wait."""
        return Draws(self.images, {name: sent(drawn, device) for name, drawn in self.by_operation.items()})


def sent(host: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`: to a GPU out of pinned memory, so that the host need not wait for the copy."""
    if device.type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)
