"""The Fisher information's diagonal from single examples (paper eq 11); eq 12 squares the batch's gradient instead.

Eq 12 drops eq 13's factor, which is about |B|, so it can understate f by up to |B| when the gradient is
mostly noise. Eq 11 has no such loss and costs one gradient per example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = list[tuple[Tensor, Tensor]]


def per_example_squares(
    module: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    chunk: int | None = None,
) -> list[Tensor]:
    """Mean over the batch of the squared gradient of each example's loss (eq 11).

    BatchNorm in training mode makes one example's loss depend on the others, so that it has no gradient of
    its own. The batch's mean and biased variance are therefore taken as constants, the ones that the whole
    batch gives; BatchNorm in evaluation mode keeps its running statistics. Every other layer acts as in
    evaluation: dropout is off. The module is left as it was found, gradients, buffers, modes and random
    generators included.

    Args:
        module: the network, called as module(inputs).
        loss: loss(outputs, targets) -> 0-d tensor, the mean over the batch it is given; here it is given
            batches of one.
        inputs: shape [n, ...]; targets: shape [n, ...].
        chunk: examples whose gradients are held at once; None holds all n, which is n times the parameters'
            memory.

    Returns:
        One tensor per parameter that requires grad, in `module.parameters()` order and of its shape.

    Raises:
        ValueError: no examples, inputs and targets of different lengths, or a chunk below 1.
    """
    n = len(inputs)
    if n == 0 or len(targets) != n:
        raise ValueError(f"inputs, targets: need the same number of examples, at least one; got {n} and {len(targets)}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: must be at least 1, not {chunk}")
    params = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    # copies, so that a layer that writes to its buffers even in evaluation writes to these
    buffers = {name: b.detach().clone() for name, b in module.named_buffers()}

    def example_loss(at: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(module, (at, buffers), (x.unsqueeze(0),)), y.unsqueeze(0))

    def squares(x: Tensor, y: Tensor) -> list[Tensor]:
        gradients = vmap(grad(example_loss), in_dims=(None, 0, 0))(params, x, y)
        return [gradients[name].square().sum(0) for name in params]

    with _batch_statistics_as_constants(module, buffers, inputs):
        total: list[Tensor] = []
        for x, y in zip(inputs.split(chunk or n), targets.split(chunk or n), strict=True):
            part = squares(x, y)
            total = part if not total else list(torch._foreach_add(total, part))
    return list(torch._foreach_div([t.detach() for t in total], float(n)))


@contextmanager
def _batch_statistics_as_constants(module: nn.Module, buffers: dict[str, Tensor], inputs: Tensor) -> Iterator[None]:
    """Inside, the module acts as in evaluation, and BatchNorm layers that were training normalise by the
    statistics of `inputs`."""
    modes = {layer: layer.training for layer in module.modules()}
    norms = [layer for layer, training in modes.items() if training and isinstance(layer, _BatchNorm)]
    seen: dict[_BatchNorm, Statistics] = {layer: [] for layer in norms}
    own_forwards = {layer: layer.__dict__.get("forward") for layer in norms}
    try:
        module.eval()
        if norms:
            for norm in norms:
                norm.__dict__["forward"] = _recording(norm, seen[norm])
            with torch.no_grad():
                functional_call(module, buffers, (inputs,))
            for norm in norms:
                norm.__dict__["forward"] = _replaying(norm, seen[norm])
        yield
    finally:
        for norm, forward in own_forwards.items():
            norm.__dict__.pop("forward", None)
            if forward is not None:
                norm.__dict__["forward"] = forward
        for layer, training in modes.items():
            layer.training = training


def _recording(layer: _BatchNorm, seen: Statistics) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if (statistics := getattr(layer, "statistics", None)) is not None:
            mean, variance = statistics(x)  # of a batch that other processes have parts of
        else:
            variance, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
        seen.append((mean, variance))
        return _normalise(layer, x, mean, variance)

    return forward


def _replaying(layer: _BatchNorm, seen: Statistics) -> Callable[[Tensor], Tensor]:
    calls = 0

    def forward(x: Tensor) -> Tensor:
        nonlocal calls
        mean, variance = seen[calls % len(seen)]  # a layer used twice in one pass has two sets of statistics
        calls += 1
        return _normalise(layer, x, mean, variance)

    return forward


def _normalise(layer: _BatchNorm, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return nn.functional.batch_norm(x, mean, variance, layer.weight, layer.bias, training=False, eps=layer.eps)
