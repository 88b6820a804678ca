"""What a reader needs to see whether eta did anything: |eps|, the cosine to SAM's probe, what eta leaves alone.

At the paper's settings (eta = 1, ResNets on CIFAR) f is far below 1 and the Fisher SAM probe is nearly SAM's:
only numbers like these can tell a flat response to eta that is a finding from one that is built in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.sharpness.metric import Block, global_norm, one_plus_eta_f

KEYS: tuple[str, ...] = ("eps_norm", "cosine_to_sam", "eta_vanished")


def measure(blocks: Sequence[Block], eps: Sequence[Sequence[Tensor]]) -> Tensor:
    """|eps|, cos(eps, eps_SAM), share of coordinates with 1 + eta f == 1 in float32: a float64 tensor, shape [3].

    The cosine is g . eps / (|g| |eps|), since SAM's probe points along g; NaN at a zero gradient. The share
    is NaN unless the metric is `fsam`; a coordinate whose gradient is exactly zero counts as vanished.
    Everything stays on the device.
    """
    grads = [block.grads for block in blocks]
    eps_norm, grad_norm = global_norm(eps), global_norm(grads)
    # g * eps >= 0 in every coordinate, because D >= 0: the sum of the sizes is the scalar product
    products = [
        torch._foreach_mul(list(e), [g.to(x.dtype) for g, x in zip(block.grads, e, strict=True)])
        for block, e in zip(blocks, eps, strict=True)
    ]
    sizes = [n for p in products for n in torch._foreach_norm(list(p), 1, dtype=torch.float64)]
    dot = torch.stack([s.to(eps_norm.device) for s in sizes]).sum()
    share = _vanished(blocks).to(eps_norm.device)
    # A step that is skipped has no part in any of the three means.
    share = torch.where(torch.isfinite(eps_norm), share, torch.full_like(share, math.nan))
    return torch.stack([eps_norm, dot / (grad_norm * eps_norm), share])


def _vanished(blocks: Sequence[Block]) -> Tensor:
    if any(block.metric != "fsam" for block in blocks):
        # Filled there: a number that is copied over would have the host wait, and no recording takes it.
        return torch.full((), math.nan, dtype=torch.float64, device=blocks[0].grads[0].device)
    counts: list[Tensor] = []
    for block in blocks:
        fisher = None if block.fisher is None else [f.float() for f in block.fisher]
        one_plus = one_plus_eta_f([g.float() for g in block.grads], block.eta, fisher)
        counts.extend((t == 1).sum() for t in one_plus)
    coordinates = sum(g.numel() for block in blocks for g in block.grads)
    return torch.stack([c.to(counts[0].device) for c in counts]).sum().double() / coordinates


class Record:
    """Measurements since the last summary; they stay on the device until `summary` asks for them."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, row: Tensor) -> None:
        self._rows.append(row)

    def take(self) -> list[Tensor]:
        """The measurements that are there, which are then no longer the record's."""
        rows, self._rows = self._rows, []
        return rows

    def summary(self) -> dict[str, float]:
        """Mean of each of `KEYS` over the rows where it is a number (NaN if nowhere); empties the record."""
        rows = self.take()
        if not rows:
            return dict.fromkeys(KEYS, math.nan)
        means = torch.stack(rows).nanmean(dim=0).tolist()
        return dict(zip(KEYS, means, strict=True))
