"""A step recorded once and then issued whole: on a GPU, one CUDA graph in place of thousands of kernel launches.

A small network's step is bound by the host: ResNet-20's two passes are some two thousand launches, each of them
quicker on the device than its call. A graph has them all in one. What it holds are addresses and numbers, so whatever
changes between steps must be a tensor that is written in place: the batch, the learning rate, whether a step is
skipped (`trainables.sharpness`).

Nobody has to believe that it does the same: the first time that a shape is recorded, the step is taken both ways from
the same state, and unless the recorded one ends where the plain one does, steps stay plain and a remark says so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]

#: Plain calls before anything is recorded: libraries set themselves up, momentum comes to be. Another shape or key
#: needs one more of its own.
WARM_UP, MORE = 3, 1

#: How far a recorded step may end from the plain one, as a share of the step's length: kernels that add in no fixed
#: order, and whatever a library chooses otherwise under capture.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}


class Recorder(Protocol):
    """How a device records what a function issues."""

    def aside(self) -> AbstractContextManager[None]:
        """Where a function has to be called before it can be recorded."""

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """What issues again everything that `run` issues, and the outputs that each issue overwrites.

        Raises:
            RuntimeError: `run` does what cannot be recorded, such as to wait for a value.
        """

    def fork(self, runs: Sequence[Callable[[], Outputs]]) -> list[Outputs]:
        """Call functions that have nothing to do with each other, side by side where the device can."""


class CudaGraphs:
    """CUDA graphs of one device, which share their memory: they are never issued at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._branches: list[torch.cuda.Stream] = []

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On the stream that records: what is set up for a stream is set up for that one."""
        outside = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        # Other threads of a worker may talk to the device meanwhile: Ray's, a loader's.
        capture = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        with torch.cuda.device(self.device), capture:
            outputs = run()
        return graph.replay, outputs

    def fork(self, runs: Sequence[Callable[[], Outputs]]) -> list[Outputs]:
        """Each on a stream of its own, all of them begun after what came before and ended before what comes after."""
        while len(self._branches) < len(runs):
            self._branches.append(torch.cuda.Stream(self.device))
        outside = torch.cuda.current_stream(self.device)
        outputs = []
        for run, branch in zip(runs, self._branches, strict=False):
            branch.wait_stream(outside)
            with torch.cuda.stream(branch):
                outputs.append(run())
        for branch in self._branches[: len(runs)]:
            outside.wait_stream(branch)
        return outputs


def recorder_of(device: torch.device) -> Recorder | None:
    """What records on a device, None where nothing does: a CPU issues its operations as fast as it takes them."""
    return CudaGraphs(device) if device.type == "cuda" else None


class Captured:
    """A function of tensors: called plainly at first, then recorded and issued again, for each shape and key by itself.

    Args:
        run: takes the key and the inputs, returns tensors; whatever else it changes is in `state`, written in place.
        state: the tensors that a call changes, the same ones from the end of the warm-up on.
        recorder: how to record.
        precision: of the arithmetic, which says what rounding may do (`TOLERANCE`).
    """

    def __init__(
        self,
        run: Callable[..., Outputs],
        state: Callable[[], Sequence[Tensor]],
        recorder: Recorder,
        precision: torch.dtype,
    ) -> None:
        self._run, self._state, self._recorder = run, state, recorder
        self._tolerance = TOLERANCE[precision]
        self._calls: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, tuple[Callable[[], None], tuple[Tensor, ...], Outputs]] = {}
        self._plain: set[Hashable] = set()
        self._remarks: list[str] = []

    def __call__(self, key: Hashable, *inputs: Tensor) -> Outputs:
        """`run(key, *inputs)`. The outputs may be overwritten by the next call."""
        this = (key, *(x.shape for x in inputs))
        if this in self._recorded:
            issue, static, outputs = self._recorded[this]
            for mine, given in zip(static, inputs, strict=True):
                mine.copy_(given)
            issue()
            return outputs
        if this in self._plain:
            return self._run(key, *inputs)
        calls = self._calls.get(this, 0)
        if calls < MORE or sum(self._calls.values()) < WARM_UP:
            self._calls[this] = calls + 1
            with self._recorder.aside():
                return self._run(key, *inputs)
        return self._first(this, key, inputs)

    @property
    def recorded(self) -> int:
        """Shapes and keys that are issued from a recording."""
        return len(self._recorded)

    def take_remarks(self) -> list[str]:
        """Since the last call, a line for a person on each shape and key that could not be recorded and stays plain."""
        remarks, self._remarks = self._remarks, []
        return remarks

    def _first(self, this: Hashable, key: Hashable, inputs: Sequence[Tensor]) -> Outputs:
        """Take the step plainly and from a recording, and keep the recording if both end in the same."""
        state = list(self._state())
        before = [t.detach().clone() for t in state]
        with self._recorder.aside():
            plain = tuple(t.clone() for t in self._run(key, *inputs))
        after = [t.detach().clone() for t in state]
        static = tuple(x.clone() for x in inputs)
        reason = "the state is not written in place" if not _same(state, self._state()) else ""
        if not reason:
            try:
                issue, outputs = self._recorder.record(lambda: self._run(key, *static))
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
        if not reason:
            _put(before, state)
            issue()
            off = _distance(before, [*after, *plain], [*state, *outputs])
            if off > self._tolerance:
                reason = f"the recorded step ends {off:.1e} of its length from the plain one"
        if not reason:
            self._recorded[this] = (issue, static, outputs)
            return outputs
        _put(after, state)
        self._plain.add(this)
        self._remarks.append(f"steps of {len(inputs[-1])} images are issued one operation at a time: {reason}")
        return plain


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _put(values: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for mine, value in zip(into, values, strict=True):
            mine.copy_(value)


def _distance(before: Sequence[Tensor], expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """How far `found` is from `expected`, as a share of the way from `before`: the largest over the tensors.

    Each by itself, since a statistic that is off must not drown in the weights; but a tensor that hardly moves, such as
    a bias whose true gradient is 0, may do as it likes below a thousandth of the whole step. What has no `before` (an
    output) counts from 0.
    """
    wanted = [t.detach().double().nan_to_num() for t in expected]
    ways = [(w - b.double().nan_to_num()).norm() for w, b in zip(wanted, before, strict=False)]
    moved = [way for way, b in zip(ways, before, strict=True) if b.is_floating_point()]
    least = 1e-3 * torch.stack(moved).norm() if moved else torch.zeros(())
    ways += [w.norm() for w in wanted[len(before) :]]
    shares = []
    for want, got, way in zip(wanted, found, ways, strict=True):
        off = (got.detach().double().nan_to_num() - want).norm()
        shares.append(torch.where(off == 0, off, off / (way + least.to(way.device))))
    return float(torch.stack(shares).max())


def unrecordable(recipe: Any) -> str | None:
    """Why a recipe's steps cannot be recorded, in a few words; None where they can."""
    if recipe.dropout:
        return "dropout draws new masks in every step"
    if recipe.precision == "float16":
        return "float16's gradient scaler is the host's"
    if recipe.fisher == "per_example":
        return "the Fisher of single images is computed in parts that the host puts together"
    return None
