"""SAM as github.com/davda54/sam publishes it, and the training step of its example: the peer that most people run.

Written here from its published interface and behaviour: a loop over the parameters in Python, a norm stacked from the
parameters' own, weights put back by assigning `p.data`, the running statistics switched off for the second pass by
setting BatchNorm's momentum to zero, and the base optimiser as torch gives it by default. Fisher SAM is not published
there: `FisherSAM` is what one writes who has this loop and the paper.
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
        """w + rho D g / sqrt(g . D g)."""
        norm = self._grad_norm()
        for group in self.param_groups:
            scale = group["rho"] / (norm + 1e-12)
            for p in group["params"]:
                if p.grad is None:
                    continue
                self.state[p]["old_p"] = p.data.clone()
                p.add_(self._diagonal(p, group) * p.grad * scale.to(p))
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
                    (self._root(p, group) * p.grad).norm(p=2).to(device)
                    for group in self.param_groups
                    for p in group["params"]
                    if p.grad is not None
                ]
            ),
            p=2,
        )

    def _diagonal(self, p: Tensor, group: dict[str, Any]) -> Tensor | float:
        """D: the published lines multiply by 1.0 where they are not adaptive."""
        return 1.0

    def _root(self, p: Tensor, group: dict[str, Any]) -> Tensor | float:
        """sqrt(D)."""
        return 1.0


class FisherSAM(SAM):
    """The same loop in the paper's ellipsoid: D = 1 / (1 + eta g^2), eqs 10 and 12."""

    def __init__(
        self, params: Iterable[Tensor], base_optimizer: type[Optimizer], rho: float, eta: float, **settings: Any
    ) -> None:
        super().__init__(params, base_optimizer, rho, **settings)
        for group in self.param_groups:
            group["eta"] = eta

    def _diagonal(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        assert p.grad is not None  # those without are passed over
        return 1 / (1 + group["eta"] * p.grad**2)

    def _root(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        return self._diagonal(p, group).sqrt()


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
