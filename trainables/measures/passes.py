"""Sums over batches, in float64: loss, accuracy, gradient. Each image counts once, also in a short last batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.measures.subject import Batch, Subject


@dataclass(frozen=True)
class Gradient:
    """Mean over `images` of the loss (nats), 0-d float64, and of its gradient: float64 of the parameters' shapes."""

    loss: float
    gradient: list[Tensor]
    images: int

    @property
    def norm(self) -> float:
        """One 2-norm over all parameters."""
        return norm(self.gradient)


def evaluate(subject: Subject, batches: Iterable[Batch]) -> tuple[float, float]:
    """Mean cross-entropy in nats, without smoothing, and accuracy in [0, 1], the model in the mode it is in.

    A loss that is not finite is returned as it is. Logits with a NaN among them are no answer: they count as wrong.
    """
    loss = torch.zeros((), dtype=torch.float64, device=subject.device)
    correct = torch.zeros((), dtype=torch.int64, device=subject.device)
    images = 0
    with torch.no_grad():
        for x, y in batches:
            logits = subject.forward(x)
            loss += F.cross_entropy(logits, y, reduction="sum")
            correct += ((logits.argmax(1) == y) & ~logits.isnan().any(1)).sum()
            images += len(y)
    return float(loss) / _some(images), int(correct) / images


def mean_loss(subject: Subject, batches: Iterable[Batch]) -> float:
    """Mean of the loss that trained, in nats."""
    loss = torch.zeros((), dtype=torch.float64, device=subject.device)
    images = 0
    with torch.no_grad():
        for x, y in batches:
            loss += summed_loss(subject, x, y)
            images += len(y)
    return float(loss) / _some(images)


def mean_gradient(subject: Subject, params: Sequence[Tensor], batches: Iterable[Batch]) -> Gradient:
    """Loss that trained and its gradient, over all batches together; zeros for a parameter that has no part in it."""
    total = [torch.zeros_like(p, dtype=torch.float64) for p in params]
    loss = torch.zeros((), dtype=torch.float64, device=subject.device)
    images = 0
    for x, y in batches:
        part = summed_loss(subject, x, y)
        for sum_, g in zip(total, torch.autograd.grad(part, params, allow_unused=True), strict=True):
            if g is not None:
                sum_ += g
        loss += part.detach()
        images += len(y)
    torch._foreach_div_(total, float(_some(images)))
    return Gradient(float(loss) / images, total, images)


def summed_loss(subject: Subject, x: Tensor, y: Tensor) -> Tensor:
    """The batch's summed loss, 0-d float64. Its gradients are further from float16's underflow than the mean's."""
    return subject.loss(subject.forward(x), y).double() * len(y)


def norm(tensors: Sequence[Tensor]) -> float:
    """One 2-norm over all tensors, summed in float64; not finite where one of their elements is not."""
    norms = torch.stack([torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors])
    return float(torch.linalg.vector_norm(norms))


def _some(images: int) -> int:
    if images == 0:
        raise ValueError("batches: there are none, so there is nothing to measure")
    return images
