"""The Hessian of the loss that trained, over training batches: its trace, and its largest eigenvalue.

Products H v are exact sums over the batches (Pearlmutter 1994: the gradient of g . v), so that the batches' split
changes nothing but rounding; the model is in evaluation mode, in which BatchNorm makes no image depend on another. Of
a network of ReLUs this is the Hessian where it exists, almost everywhere.

The trace is Hutchinson's estimate (1990): the mean of v' H v over Rademacher vectors v, with its standard error over
them. The eigenvalue is Lanczos' with full reorthogonalisation: the largest one algebraically, which at a minimum is the
curvature of the sharpest direction, also where the most negative one is larger in size.

A product costs about four gradients (ResNet-32 on one CPU core: 2.4 s a batch of 128, beside 0.65 s). One measurement
takes `iterations` + 1 of them for each batch, and about `probes` more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.measures.held import held
from trainables.measures.passes import summed_loss
from trainables.measures.settings import Curvature
from trainables.measures.subject import Row, Subject
from trainables.randomness import stream

Tensors = Sequence[Tensor]


def measure(subject: Subject, settings: Curvature) -> list[Row]:
    """One row.

    Columns: `hessian_trace`; `hessian_trace_se`, the standard error over `probes` vectors, None for one of them;
    `top_eigenvalue`, the largest algebraically, with `residual` |H v - lambda v| of its unit vector, `iterations`
    (products with H) and `converged`, whether the residual is at most the tolerance times the largest eigenvalue in
    size; `largest_magnitude`, that eigenvalue with its sign; `images` of the Hessian. Where H is not finite the numbers
    are NaN, and `converged` is false.

    Raises:
        ValueError: no parameter requires grad, or there are no batches.
    """
    with held(subject, "curvature") as params, sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        hessian = Hessian(subject, params, settings.batches)
        forms, images = hessian.quadratic_forms(settings.probes)
        start = _start(params, subject.seed)
        top = lanczos(hessian.times, start, tolerance=settings.tolerance, max_iterations=settings.max_iterations)
    return [
        {
            "hessian_trace": float(forms.mean()),
            "hessian_trace_se": float(forms.std() / math.sqrt(len(forms))) if len(forms) > 1 else None,
            "probes": settings.probes,
            "top_eigenvalue": top.eigenvalue,
            "largest_magnitude": top.largest_magnitude,
            "residual": top.residual,
            "iterations": top.iterations,
            "converged": top.converged,
            "images": images,
        }
    ]


class Hessian:
    """The Hessian of the mean loss over batches; vectors are flat float64, in the parameters' order."""

    def __init__(self, subject: Subject, params: Sequence[nn.Parameter], batches: int | None) -> None:
        self.subject, self.params, self.batches = subject, params, batches

    def quadratic_forms(self, probes: int) -> tuple[Tensor, int]:
        """v' H v of Rademacher vectors v, (probes,) float64 on the CPU, and the number of images of H."""
        generator = stream(self.subject.seed, "curvature, Rademacher vectors")
        # One byte a sign: all vectors are there at once, so that each batch's gradient is built once for all of them.
        bits = [
            [torch.randint(0, 2, p.shape, generator=generator, dtype=torch.int8).to(p.device) for p in self.params]
            for _ in range(probes)
        ]
        forms = torch.zeros(probes, dtype=torch.float64, device=self.subject.device)
        images = 0
        for x, y in self.subject.batches("train", self.batches):
            vectors = ([2 * b.to(p.dtype) - 1 for b, p in zip(v, self.params, strict=True)] for v in bits)
            for k, (v, hv) in enumerate(self._of_batch(x, y, vectors)):
                forms[k] += torch.stack([(a * b).sum(dtype=torch.float64) for a, b in zip(v, hv, strict=True)]).sum()
            images += len(y)
        if images == 0:
            raise ValueError("batches: there are none, so there is nothing to measure")
        return forms.cpu() / images, images

    def times(self, vector: Tensor) -> Tensor:
        """H v."""
        parts = vector.split([p.numel() for p in self.params])
        v = [part.view(p.shape).to(p.dtype) for part, p in zip(parts, self.params, strict=True)]
        total = torch.zeros_like(vector)
        images = 0
        for x, y in self.subject.batches("train", self.batches):
            for _, hv in self._of_batch(x, y, [v]):
                total += torch.cat([t.reshape(-1) for t in hv])
            images += len(y)
        return total / images

    def _of_batch(self, x: Tensor, y: Tensor, vectors: Iterable[Tensors]) -> Iterator[tuple[Tensors, Tensors]]:
        """Each v with H v of the batch's summed loss. A generator, so that a batch's graph ends before the next one's
        begins."""
        loss = summed_loss(self.subject, x, y)
        grads = torch.autograd.grad(loss, self.params, create_graph=True, allow_unused=True)
        # A gradient that does not depend on theta has rows of zeros.
        curved = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
        for v in vectors:
            products: Sequence[Tensor | None] = [None] * len(self.params)
            if curved:
                outputs = [g for i in curved if (g := grads[i]) is not None]
                products = torch.autograd.grad(
                    outputs, self.params, [v[i] for i in curved], retain_graph=True, allow_unused=True
                )
            yield v, [torch.zeros_like(p) if hv is None else hv for p, hv in zip(self.params, products, strict=True)]


@dataclass(frozen=True)
class Top:
    """What `lanczos` found; see `measure` for the fields."""

    eigenvalue: float
    largest_magnitude: float
    residual: float
    iterations: int
    converged: bool


def lanczos(times: Callable[[Tensor], Tensor], start: Tensor, *, tolerance: float, max_iterations: int) -> Top:
    """Extreme eigenvalues of a symmetric matrix that is known by its products.

    It stops once the residuals of the largest eigenvalue and of the largest in size are at most `tolerance` times the
    latter. As with every method that sees products only, an eigenvector that `start` nearly misses can be overlooked.

    Args:
        times: float64 v (n,) -> A v (n,).
        start: (n,), not zero, random. The basis is kept in its dtype.
        tolerance: above 0. max_iterations: 1 or more; n are always enough.
    """
    basis: list[Tensor] = []
    entries = torch.zeros(max_iterations + 1, max_iterations + 1, dtype=torch.float64)  # the tridiagonal matrix
    w, beta = start.double(), float(torch.linalg.vector_norm(start.double()))
    for k in range(min(max_iterations, start.numel())):
        basis.append((w / beta).to(start.dtype))
        q = basis[-1].double()
        w = times(q)
        entries[k, k] = float(torch.dot(q, w))
        for _ in range(2):  # once leaves what rounding left of the components; twice is enough
            for b in basis:
                b = b.double()
                w -= torch.dot(b, w) * b
        beta = float(torch.linalg.vector_norm(w))
        if not math.isfinite(beta):
            return Top(math.nan, math.nan, math.nan, k + 1, False)
        ritz, vectors = torch.linalg.eigh(entries[: k + 1, : k + 1])
        largest = int(ritz.abs().argmax())
        size = float(ritz[largest].abs())
        estimate = beta * float(vectors[-1, [-1, largest]].abs().max())
        if estimate <= tolerance * size or beta <= torch.finfo(start.dtype).eps * size:
            break
        entries[k, k + 1] = entries[k + 1, k] = beta
    v = torch.zeros_like(w)
    for share, b in zip(vectors[:, -1].tolist(), basis, strict=True):
        v += share * b
    v /= torch.linalg.vector_norm(v)
    av = times(v)
    eigenvalue = torch.dot(v, av)
    residual = float(torch.linalg.vector_norm(av - eigenvalue * v))
    return Top(
        eigenvalue=float(eigenvalue),
        largest_magnitude=float(ritz[largest] if largest < len(ritz) - 1 else eigenvalue),
        residual=residual,
        iterations=len(basis),
        converged=max(residual, estimate) <= tolerance * size,
    )


def _start(params: Sequence[nn.Parameter], seed: int) -> Tensor:
    """A Gaussian vector in the parameters' widest dtype, at least float32: its basis is `max_iterations` copies."""
    generator = stream(seed, "curvature, first Lanczos vector")
    drawn = torch.randn(sum(p.numel() for p in params), generator=generator, dtype=torch.float64)
    wide = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
    return drawn.to(params[0].device, wide)
