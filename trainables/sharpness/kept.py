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
    """Every buffer of a module: running means and variances, `num_batches_tracked`, any layer's own statistics.

    It asks nothing about the kind of layer, and it freezes no layer, so there is no mode that could be left switched
    on: `keep` twice keeps the later values, `put_back` twice does nothing the second time. A layer that replaces its
    buffer by a new tensor gets its old tensor back. State that a layer holds outside its buffers is not seen.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._seen: list[tuple[Tensor, int]] = []
        self._pairs: list[tuple[list[Tensor], list[Tensor]]] = []
        self._kept: list[tuple[nn.Module, str, Tensor]] = []

    def keep(self) -> None:
        self._kept = [
            (layer, name, buffer)
            for layer in self.module.modules()
            for name, buffer in layer._buffers.items()
            if buffer is not None
        ]
        # By identity and address: a buffer may be replaced, or given other memory.
        seen = [(buffer, buffer.data_ptr()) for _, _, buffer in self._kept]
        if len(seen) != len(self._seen) or any(
            a is not c or b != d for (a, b), (c, d) in zip(seen, self._seen, strict=True)
        ):
            self._seen, self._pairs = seen, _paired([buffer for buffer, _ in seen])
        for there, here in self._pairs:
            torch._foreach_copy_(here, there)

    def put_back(self) -> None:
        """Every buffer as `keep` found it: the same tensor with the same values."""
        kept, self._kept = self._kept, []
        for layer, name, buffer in kept:
            layer._buffers[name] = buffer
        if kept:
            for there, here in self._pairs:
                torch._foreach_copy_(there, here)


def _paired(buffers: list[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Views of the buffers and copies to keep them in, in lists that one operation copies.

    As bytes where a buffer's memory is in one piece: float statistics and integer counters in one list, which a GPU
    copies at once. A list of several dtypes it would copy tensor by tensor, some sixty launches for ResNet-20.
    """
    lists: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for buffer in buffers:
        view = buffer.detach()
        if view.is_contiguous() and view.numel() and not view.is_complex():
            view = view.view(-1).view(torch.uint8)
        lists.setdefault((view.dtype, view.device), []).append(view)
    return [(views, [torch.empty_like(view) for view in views]) for views in lists.values()]
