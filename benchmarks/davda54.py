"""SAM as github.com/davda54/sam publishes it, and the training step of its example: the peer that most people run.

Written here from its published interface and behaviour: a loop over the parameters in Python, a norm stacked from the
parameters' own, weights put back by assigning `p.data`, the running statistics switched off for the second pass by
setting BatchNorm's momentum to zero, and the base optimiser as torch gives it by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Loss = Callable[[Tensor, Tensor], Tensor]


class SAM(Optimizer):
    """The two-step optimiser: `first_step` climbs by rho, `second_step` goes back and lets the base optimiser step."""

    def __init__(
        self, params: Iterable[Tensor], base_optimizer: type[Optimizer], rho: float = 0.05, **settings: Any
    ) -> None:
        super().__init__(params, {"rho": rho, **settings})
        self.base_optimizer = base_optimizer(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """w + rho g / |g|."""
        norm = self._grad_norm()
        for group in self.param_groups:
            scale = group["rho"] / (norm + 1e-12)
            for p in group["params"]:
                if p.grad is None:
                    continue
                self.state[p]["old_p"] = p.data.clone()
                # The published line multiplies by 1.0 where it is not adaptive.
                p.add_(1.0 * p.grad * scale.to(p))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Back to w, and one step of the base optimiser."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def _grad_norm(self) -> Tensor:
        device = self.param_groups[0]["params"][0].device
        return torch.norm(
            torch.stack(
                [
                    (1.0 * p.grad).norm(p=2).to(device)
                    for group in self.param_groups
                    for p in group["params"]
                    if p.grad is not None
                ]
            ),
            p=2,
        )


def sam_step(model: nn.Module, optimiser: SAM, loss_of: Loss, x: Tensor, y: Tensor) -> Tensor:
    """One step of the published example; returns the first pass's loss."""
    enable_running_stats(model)
    loss = loss_of(model(x), y)
    loss.backward()
    optimiser.first_step(zero_grad=True)
    disable_running_stats(model)
    loss_of(model(x), y).backward()
    optimiser.second_step(zero_grad=True)
    return loss.detach()


def plain_step(model: nn.Module, optimiser: Optimizer, loss_of: Loss, x: Tensor, y: Tensor) -> Tensor:
    """One step of an ordinary loop; returns the loss."""
    optimiser.zero_grad()
    loss = loss_of(model(x), y)
    loss.backward()
    optimiser.step()
    return loss.detach()


def disable_running_stats(model: nn.Module) -> None:
    """BatchNorm's running mean and variance stay as they are in what follows."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.backup_momentum = module.momentum  # type: ignore[assignment]
            module.momentum = 0


def enable_running_stats(model: nn.Module) -> None:
    """BatchNorm's running mean and variance move again."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and hasattr(module, "backup_momentum"):
            module.momentum = module.backup_momentum  # type: ignore[assignment]
