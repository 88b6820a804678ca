"""A step recorded once and then issued whole: on a GPU, one CUDA graph in place of every kernel's launch.

A small network's step is bound by the host: SAM on ResNet-20 is some 800 tensor operations a step, one launch or more
each, on images that a GPU is done with in no time. A graph has them all in one. What it holds are addresses and
numbers, so whatever changes between steps must be a tensor that is written in place: the batch, the learning rate,
whether a step is skipped (`trainables.sharpness`).

Nobody has to believe that it does the same: the first time that a shape is recorded, the step is taken both ways from
the same state, and unless the recorded one ends where the plain one does, steps stay plain and a remark says so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from trainables.recipe import Recipe

Outputs = tuple[Tensor, ...]

#: Plain calls before anything is recorded: libraries set themselves up, momentum comes to be. Another shape or key
#: needs one more of its own.
WARM_UP, MORE = 3, 1

#: Steps that move nothing (a gradient that is no number) at which no recording is judged, before it is given up.
PATIENCE = 20

#: How far a recorded step may end from the plain one, as a share of the step's length: kernels that add in no fixed
#: order, and whatever a library chooses otherwise under capture.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}

#: How many times that it may be where plain steps are as far from each other. More would let a number of the host's
#: pass, which differs from one plain step to the next as well.
LOOSEST = 10


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
        #: Why nothing more is recorded here: after a failure the memory of recordings may be in disorder.
        self._broken = ""

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
        if self._broken:
            raise RuntimeError(self._broken)
        graph = torch.cuda.CUDAGraph()
        # Other threads of a worker may talk to the device meanwhile: Ray's, a loader's.
        capture = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        try:
            with torch.cuda.device(self.device), capture:
                outputs = run()
        except RuntimeError as error:
            # Ending the capture fails too, and that error hides the first one.
            self._broken = " ".join(str(error.__context__ or error).split())[:200]
            raise RuntimeError(self._broken) from error
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
        state: the tensors that a call changes, the same ones from the end of the warm-up on. While those that require
            gradients do not move, nothing is recorded.
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
        self._stood_still: dict[Hashable, int] = {}
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

    @property
    def how(self) -> str:
        """How steps are issued by now: `captured`, `eager`, or `partly captured` where some had to stay plain."""
        if not self._recorded:
            return "eager"
        return "partly captured" if self._plain else "captured"

    def take_remarks(self) -> list[str]:
        """Since the last call, a line for a person on each shape and key that could not be recorded and stays plain."""
        remarks, self._remarks = self._remarks, []
        return remarks

    def _first(self, this: Hashable, key: Hashable, inputs: Sequence[Tensor]) -> Outputs:
        """Take the step plainly and from a recording, and keep the recording if both end in the same."""
        state = list(self._state())
        before = _copies(state)

        def plainly() -> tuple[list[Tensor], Outputs]:
            with self._recorder.aside():
                outputs = tuple(_copies(self._run(key, *inputs)))
            return _copies(state), outputs

        after, plain = plainly()
        if not _same(state, self._state()):
            return self._refuse(this, inputs, plain, "the state is not written in place")
        trained = [(a, b) for a, b, t in zip(before, after, state, strict=True) if t.requires_grad]
        if trained and all(torch.equal(a, b) for a, b in trained):
            # A step that is skipped tells nothing of one that is not.
            self._stood_still[this] = self._stood_still.get(this, 0) + 1
            if self._stood_still[this] > PATIENCE:
                self._refuse(this, inputs, plain, "the steps that it was tried at moved nothing")
            return plain
        static = tuple(x.clone() for x in inputs)
        try:
            issue, outputs = self._recorder.record(lambda: self._run(key, *static))
            _put(before, state)
            issue()
            off = _distance(before, [*after, *plain], [*state, *outputs])
            if not off <= self._tolerance:
                # Some kernels add in no fixed order: as far as one plain step is from another, a recording may be too.
                _put(before, state)
                after, plain = plainly()
                _put(before, state)
                again, plain_again = plainly()
                usual = _distance(before, [*after, *plain], [*again, *plain_again])
                if not off <= min(3 * usual, LOOSEST * self._tolerance, 0.25):
                    raise RuntimeError(f"the recorded step ends {off:.1e} of its length from the plain one")
        except RuntimeError as error:
            _put(after, state)
            return self._refuse(this, inputs, plain, " ".join(str(error).split())[:200])
        self._recorded[this] = (issue, static, outputs)
        # The state may be that of a plain step by now, and so are these.
        return outputs if off <= self._tolerance else plain

    def _refuse(self, this: Hashable, inputs: Sequence[Tensor], plain: Outputs, reason: str) -> Outputs:
        self._plain.add(this)
        self._remarks.append(f"steps of {len(inputs[-1])} images are issued one operation at a time: {reason}")
        return plain


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


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
    ways = [_norm_between(want, start) for want, start in zip(expected, before, strict=False)]
    moved = [way for way, start in zip(ways, before, strict=True) if start.is_floating_point()]
    least = 1e-3 * torch.stack(moved).norm() if moved else torch.zeros(())
    ways += [_norm_between(want, torch.zeros_like(want)) for want in expected[len(before) :]]
    shares = []
    for want, got, way in zip(expected, found, ways, strict=True):
        off = _norm_between(got, want)
        shares.append(torch.where(off == 0, off, off / (way + least.to(way.device))))
    return float(torch.stack(shares).max())


def _norm_between(one: Tensor, other: Tensor) -> Tensor:
    """|one - other| in float64, 0-d; what is no number counts as 0, or as the largest one there is."""
    wide = torch.promote_types(one.dtype, torch.float32)
    difference = one.detach().to(wide).nan_to_num() - other.detach().to(wide).nan_to_num()
    return torch.linalg.vector_norm(difference, dtype=torch.float64)


def unrecordable(recipe: Recipe) -> str | None:
    """Why a recipe's steps cannot be recorded, in a few words; None where they can."""
    if recipe.dropout:
        return "dropout draws new masks in every step"
    if recipe.precision == "float16":
        return "float16's gradient scaler is the host's"
    if recipe.fisher == "per_example":
        return "the Fisher of single images is computed in parts that the host puts together"
    return None
