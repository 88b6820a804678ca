"""Tensor operations issued: what an optimiser asks of the dispatcher, and on a GPU roughly what it launches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts the operations that are dispatched inside `with operations:`, by name, over all its uses."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # A profiler's brackets around a step work on no tensor.
        if not str(func).startswith("profiler."):
            self.by_name[str(func)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return self.by_name.total()


def optimiser_operations(optimiser: Any, backward: Callable[[], Tensor], steps: int = 2) -> Operations:
    """The operations of one `first_step` and `second_step`, forward and backward passes left out.

    Args:
        optimiser: anything with davda54's two methods.
        backward: one forward and backward pass from cleared gradients.
        steps: steps in all; the last is counted, when momentum buffers and whatever else is made once are there.
    """
    for _ in range(steps):
        operations = Operations()
        backward()
        with operations:
            optimiser.first_step(zero_grad=True)
        backward()
        with operations:
            optimiser.second_step(zero_grad=True)
    return operations
