"""The whole method in float64 NumPy, straight from the paper's formulas; and small problems to run it on."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

Arrays = list[np.ndarray]

# every metric with settings under which it differs visibly from the others
SETTINGS = {
    "sam": {"gamma": 0.3},
    "asam_official": {"gamma": 0.7, "eta": 0.05},
    "asam_eq5": {"gamma": 0.9},
    "fsam": {"gamma": 0.3, "eta": 50.0},
}


def diagonal(metric: str, theta: Arrays, g: Arrays, eta: float | None, scaled: list[bool]) -> Arrays:
    if metric == "sam":
        return [np.ones_like(x) for x in theta]
    if metric == "asam_eq5":
        return [x**2 for x in theta]
    if metric == "asam_official":
        return [(np.abs(x) + eta) ** 2 if s else np.ones_like(x) for x, s in zip(theta, scaled, strict=True)]
    return [1 / (1 + eta * x**2) for x in g]


def probe(metric: str, theta: Arrays, g: Arrays, gamma: float, eta: float | None, scaled: list[bool]) -> Arrays:
    d = diagonal(metric, theta, g, eta, scaled)
    norm = np.sqrt(sum((gi * di * gi).sum() for gi, di in zip(g, d, strict=True)))
    return [gamma * di * gi / norm for gi, di in zip(g, d, strict=True)]


def trajectory(
    theta: Arrays,
    gradient: Callable[[Arrays], Arrays],
    steps: int,
    *,
    metric: str | None,
    gamma: float = 0.0,
    eta: float | None = None,
    natural_gradient: bool = False,
    scaled: list[bool],
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> Arrays:
    """Algorithm 1 with SGD as torch defines it (weight decay into the gradient, first momentum is the gradient)."""
    theta = [x.copy() for x in theta]
    v: Arrays | None = None
    for _ in range(steps):
        first = gradient(theta)
        g = first
        if metric is not None:
            eps = probe(metric, theta, first, gamma, eta, scaled)
            g = gradient([x + e for x, e in zip(theta, eps, strict=True)])
        if natural_gradient:
            g = [gi / (1 + eta * fi**2) for gi, fi in zip(g, first, strict=True)]
        g = [gi + weight_decay * x for gi, x in zip(g, theta, strict=True)]
        v = g if v is None else [momentum * vi + gi for vi, gi in zip(v, g, strict=True)]
        step = [gi + momentum * vi for gi, vi in zip(g, v, strict=True)] if nesterov else v
        theta = [x - lr * s for x, s in zip(theta, step, strict=True)]
    return theta


class Problem:
    """A small network and a batch in float64, seen both as a closure for an optimiser and as a function of arrays."""

    def __init__(self, *, norm: bool = False, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            middle = [nn.BatchNorm1d(6)] if norm else []
            self.net = nn.Sequential(nn.Linear(4, 6), *middle, nn.Tanh(), nn.Linear(6, 3)).to(dtype)
        self.x = torch.randn(12, 4, generator=generator, dtype=torch.float64).to(dtype)
        self.y = torch.randint(3, (12,), generator=generator)

    @property
    def params(self) -> list[nn.Parameter]:
        return list(self.net.parameters())

    def values(self) -> Arrays:
        return [p.detach().double().numpy().copy() for p in self.params]

    def scaled(self) -> list[bool]:
        return [name.endswith("weight") for name, _ in self.net.named_parameters()]

    def backward(self) -> torch.Tensor:
        self.net.zero_grad()
        loss = nn.functional.cross_entropy(self.net(self.x), self.y)
        loss.backward()
        return loss

    def gradient(self, theta: Arrays) -> Arrays:
        before = [p.detach().clone() for p in self.params]
        with torch.no_grad():
            for p, value in zip(self.params, theta, strict=True):
                p.copy_(torch.from_numpy(value))
        self.backward()
        out = [p.grad.double().numpy().copy() for p in self.params]
        with torch.no_grad():
            for p, value in zip(self.params, before, strict=True):
                p.copy_(value)
        return out
