"""Robustness to parameter perturbation: accuracy on the test split at theta + alpha g / |g| (section 5.4, Fig 4).

g is one gradient at theta over all trainable parameters, with one norm. The paper does not say of which loss and in
which mode; here it is the loss that trained (label smoothing included, weight decay not), over the training split, the
model in evaluation mode: it is the trained function, with the BatchNorm statistics that it predicts with, that is
corrupted. `random` is theta + alpha v / |v| with v Gaussian, the corruption that section 5.4 compares with.

BatchNorm's own weights and biases are parameters and are perturbed. Its running statistics are `kept` as training left
them, or `recomputed` at each perturbed theta as the mean over some training batches of what each batch has: after a
move of theta they no longer are the statistics of its activations, and that alone can cost most of the accuracy: one
trained ResNet-32, with 93 % of 1,000 CIFAR-10 test images right, had about 10 % at alpha = 1 along the gradient of
1,024 training images with kept statistics, and 89 % with recomputed ones. The paper does not say which it used; compare
curves of one kind only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainables.measures.held import Moved, held
from trainables.measures.passes import evaluate, mean_gradient, norm
from trainables.measures.settings import Perturbation
from trainables.measures.subject import Row, Subject
from trainables.randomness import stream
from trainables.sharpness.kept import KeptBuffers


def measure(subject: Subject, settings: Perturbation) -> list[Row]:
    """One row for each direction, draw, alpha and kind of BatchNorm statistics, alpha = 0 included in each curve.

    Columns: `direction`; `draw`, from 0; `alpha`; `batch_norm`, `kept`, `recomputed` or, for a model without running
    statistics, `none`; `test_accuracy` in [0, 1]; `test_loss`, cross-entropy in nats without smoothing; `grad_norm` of
    the gradient at theta, None for random directions. A curve along a gradient that is zero or not finite has no
    points but alpha = 0: there it says NaN.

    Raises:
        ValueError: no parameter requires grad, or there are no batches.
    """
    rows: list[Row] = []
    with held(subject, "perturbation") as params:
        norms = [m for m in subject.model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        kinds = settings.batch_norm if norms else ("none",)
        theta = Moved(params)

        def tested(kind: str) -> tuple[float, float]:
            assert kind != "recomputed" or settings.recompute_batches
            with recomputed(subject, norms, settings.recompute_batches or 0) if kind == "recomputed" else nullcontext():
                return evaluate(subject, subject.batches("test", None))

        at_theta = {kind: tested(kind) for kind in kinds}
        for direction, draw, unit, grad_norm in _directions(subject, settings, params):
            for alpha in (0.0, *settings.alpha):
                if alpha and unit is not None:
                    theta.to(unit, alpha)
                for kind in kinds:
                    if alpha == 0:
                        loss, accuracy = at_theta[kind]
                    else:
                        loss, accuracy = tested(kind) if unit is not None else (math.nan, math.nan)
                    rows.append(
                        {
                            "direction": direction,
                            "draw": draw,
                            "alpha": alpha,
                            "batch_norm": kind,
                            "test_accuracy": accuracy,
                            "test_loss": loss,
                            "grad_norm": grad_norm,
                        }
                    )
            theta.back()
    return rows


def random_direction(params: Sequence[Tensor], seed: int, draw: int) -> list[Tensor]:
    """A direction uniform on the unit sphere of all parameters together: float64, of the parameters' shapes.

    It is drawn on the CPU, the same for every device.
    """
    generator = stream(seed, f"perturbation, random direction {draw}")
    drawn = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
    length = norm(drawn)
    return [(v / length).to(p.device) for v, p in zip(drawn, params, strict=True)]


@contextmanager
def recomputed(subject: Subject, norms: Sequence[_BatchNorm], batches: int) -> Iterator[None]:
    """Inside, running means and variances are plain means over training batches, of the parameters as they are.

    Every batch counts the same. Only the BatchNorm layers `norms` are in training mode meanwhile: dropout stays off.
    """
    buffers = KeptBuffers(subject.model)
    momenta = [layer.momentum for layer in norms]
    with torch.no_grad():
        buffers.keep()
    try:
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean of the batches
            layer.train()
        with torch.no_grad():
            for x, _ in subject.batches("train", batches):
                subject.forward(x)
        for layer in norms:
            layer.eval()
        yield
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
        with torch.no_grad():
            buffers.put_back()


def _directions(
    subject: Subject, settings: Perturbation, params: Sequence[nn.Parameter]
) -> Iterator[tuple[str, int, list[Tensor] | None, float | None]]:
    """Name, draw, unit vector (None where there is none) and gradient's norm of each curve."""
    for direction in settings.directions:
        if direction == "adversarial":
            g = mean_gradient(subject, params, subject.batches("train", settings.batches))
            there = math.isfinite(g.norm) and g.norm > 0
            yield direction, 0, [x / g.norm for x in g.gradient] if there else None, g.norm
        else:
            for draw in range(settings.random_draws or 0):
                yield direction, draw, random_direction(params, subject.seed, draw), None
