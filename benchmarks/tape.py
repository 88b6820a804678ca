"""What a CUDA graph does, on a CPU: record the operations that a function issues, and issue them again without it.

As with a graph, the operations' tensors are those of the recording: addresses and numbers are fixed, what the host
computes between them is not there any more, and a value that the host waits for is refused. So whatever is wrong about
a recorded step (a tensor replaced instead of written, a number that changes from step to step) is wrong here too, where
there is no GPU. A step from a tape is no faster; it is for tests and for `benchmarks.gpu` on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainables.capture import Outputs

#: Operations that bring a value to the host, or whose result has a size that depends on values.
WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2", "aten.item")

#: Operations that bring a number of the host to a tensor: on a GPU a copy that waits (`torch.tensor`, `torch.where`).
FETCHING = ("aten.lift_fresh", "aten.scalar_tensor")


class Tape:
    """A `trainables.capture.Recorder` for the CPU."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """There is nothing to be beside."""
        yield

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """See `Recorder`. Unlike a graph's, this recording takes effect.

        Raises:
            RuntimeError: a value is waited for, or a number fetched from the host.
        """
        recording = _Recording()
        with recording:
            outputs = run()
        calls = recording.calls

        @torch.no_grad()
        def issue() -> None:
            for func, args, kwargs, fresh in calls:
                made = tree_leaves(func(*args, **kwargs))
                for i, tensor in fresh:
                    tensor.copy_(made[i])

        return issue, outputs

    def fork(self, runs: Sequence[Callable[[], Outputs]]) -> list[Outputs]:
        """In turn: a CPU's operations have all its cores."""
        return [run() for run in runs]


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        #: Each with those of its results that are memory of their own, by their place among the results.
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[tuple[int, Tensor]]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if str(func).startswith(WAITING):
            raise RuntimeError(f"{func} waits for a value, which a recording cannot")
        if str(func).startswith(FETCHING):
            raise RuntimeError(f"{func} fetches a number from the host, which a recording cannot")
        result = func(*args, **kwargs)
        if not str(func).startswith("profiler."):
            given = {_memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            fresh = [
                (i, t) for i, t in enumerate(tree_leaves(result)) if isinstance(t, Tensor) and _memory(t) not in given
            ]
            self.calls.append((func, args, kwargs, fresh))
        return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
