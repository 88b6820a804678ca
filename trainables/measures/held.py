"""The model as it was found, whatever a measure does to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainables.measures.subject import Subject
from trainables.randomness import global_stream
from trainables.sharpness.kept import KeptBuffers, KeptParameters


@contextmanager
def held(subject: Subject, what: str) -> Iterator[list[nn.Parameter]]:
    """Inside, the model is in evaluation mode; yields its parameters that require grad, in their order.

    Afterwards, an exception or not, every parameter, buffer and mode is as it was, from copies and in place, so that
    the optimiser's references hold. Gradients are never written: measures use `torch.autograd.grad`. A layer that
    draws in evaluation draws from the stream `what` of the subject's seed; global generators end where they were.

    Raises:
        ValueError: no parameter requires grad.
    """
    model = subject.model
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("the model has no parameter that requires grad, so there is nothing to measure")
    modes = {layer: layer.training for layer in model.modules()}
    parameters, buffers = KeptParameters(), KeptBuffers(model)
    with torch.no_grad():
        parameters.keep(list(model.parameters()))
        buffers.keep()
    try:
        with global_stream(subject.seed, f"measure {what}", 0, subject.device):
            model.eval()
            yield trained
    finally:
        with torch.no_grad():
            parameters.put_back()
            buffers.put_back()
        for layer, training in modes.items():
            layer.training = training


class Moved:
    """Parameters that are put to theta + scale v, each time from theta itself, and back to theta."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = params
        self._theta = [p.detach().clone() for p in params]

    @torch.no_grad()
    def to(self, direction: Sequence[Tensor], scale: float = 1.0) -> None:
        """theta + scale v, added in the wider dtype of the two and rounded once."""
        for p, theta, v in zip(self.params, self._theta, direction, strict=True):
            p.copy_(theta + scale * v)

    @torch.no_grad()
    def back(self) -> None:
        """theta, bit for bit."""
        torch._foreach_copy_(list(self.params), self._theta)
