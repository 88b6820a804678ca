"""What a step puts back: the parameters where they were, and the buffers that the second pass must not
move."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class KeptParameters:
    """Copies of parameters in storage that is reused from step to step.

    They are restored from the copy, since taking eps away again would lose bits, and in place, since captured
    graphs hold on to addresses.
    """

    def __init__(self) -> None:
        self._copies: dict[Tensor, Tensor] = {}
        self._kept: list[Tensor] = []

    def keep(self, params: list[Tensor]) -> None:
        for p in params:
            if p not in self._copies:
                self._copies[p] = torch.empty_like(p, requires_grad=False)
        torch._foreach_copy_([self._copies[p] for p in params], params)
        self._kept = params

    def put_back(self) -> None:
        """Every parameter as `keep` found it, bit for bit; nothing the second time."""
        kept, self._kept = self._kept, []
        if kept:
            torch._foreach_copy_(kept, [self._copies[p] for p in kept])


class KeptBuffers:
    """Every buffer of a module: running means and variances, `num_batches_tracked`, any layer's own
    statistics.

    It asks nothing about the kind of layer, and it freezes no layer, so there is no mode that could be left
    switched
    on: `keep` twice keeps the later values, `put_back` twice does nothing the second time. A layer that
        replaces its
    buffer by a new tensor gets its old tensor back. State that a layer holds outside its buffers is not seen.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._copies: dict[Tensor, Tensor] = {}
        self._kept: list[tuple[nn.Module, str, Tensor]] = []

    def keep(self) -> None:
        self._kept = [
            (layer, name, buffer)
            for layer in self.module.modules()
            for name, buffer in layer._buffers.items()
            if buffer is not None
        ]
        buffers = [buffer for _, _, buffer in self._kept]
        if any(b not in self._copies for b in buffers) or len(self._copies) > len(buffers):
            self._copies = {b: self._copies[b] if b in self._copies else torch.empty_like(b) for b in buffers}
        if buffers:
            torch._foreach_copy_([self._copies[b] for b in buffers], buffers)

    def put_back(self) -> None:
        """Every buffer as `keep` found it: the same tensor with the same values."""
        kept, self._kept = self._kept, []
        for layer, name, buffer in kept:
            layer._buffers[name] = buffer
        if kept:
            torch._foreach_copy_([b for _, _, b in kept], [self._copies[b] for _, _, b in kept])
