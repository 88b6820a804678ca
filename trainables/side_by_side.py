"""Replicates of a cell trained side by side on one GPU: the branches of one recorded step, each on a stream of its own.

A small network leaves most of a GPU idle, and a study trains each cell with several seeds. Their steps have nothing to
do with each other, so the device may run them at the same time, each with the kernels that it has alone: no number
changes. (Stacking the networks under vmap would make grouped convolutions of theirs, other kernels with other rounding,
and was slower where it was tried.) Where a network fills the device there is nothing to gain; `auto` tries both.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from trainables.capture import Captured, Outputs, Recorder
from trainables.devices import DeviceError
from trainables.replicate import Batch, Epoch, Replicate, Row

#: Side by side must take less than this share of the time in turn, or it is not worth the memory.
WORTH = 0.98

#: Whether each of the epochs that `auto` tries is side by side.
TRIED = (False, False, True, True)

#: Of the device's free memory, what side by side may be expected to take.
ROOM = 0.8


class SideBySide:
    """The replicates of one trial, an epoch of all at a time.

    Args:
        replicates: of one recipe, on one device.
        how: `off` trains them in turn; `on` side by side; `auto` two epochs in turn, two side by side, and from then on
            as was quicker (of each two the second is timed: in the first, steps are recorded).
        recorder: records them side by side, and nothing else; None where nothing does (a CPU).

    Attributes:
        together: whether the next epoch is trained side by side. was_together: whether the last one was.

    Raises:
        DeviceError: `on`, and their steps cannot be recorded.
    """

    def __init__(
        self, replicates: Sequence[Replicate], how: Literal["auto", "on", "off"], recorder: Recorder | None
    ) -> None:
        self.replicates, self.recorder = list(replicates), recorder
        self._remarks: list[str] = []
        can = recorder is not None and all(replicate.capturing for replicate in replicates)
        if how == "on" and not can:
            raise DeviceError(
                "seeds_together: on, but steps that are not recorded (`capture`) come one after the other"
            )
        self.together, self.was_together = how == "on", False
        #: While `auto` tries: seconds of the latter half of each epoch's steps.
        self._tried: list[float] | None = [] if how == "auto" and can and len(self.replicates) > 1 else None
        self._captured: Captured | None = None
        self._loaded: list[int] = []
        self._before = self._reserved()

    def train_epoch(self) -> list[Row]:
        """One epoch of every replicate: their rows, as of `Replicate.train_epoch`, `train_seconds` shared out evenly
        where they were trained at the same time."""
        self.was_together = self.together
        if self._tried is None and not self.together:
            return [replicate.train_epoch() for replicate in self.replicates]
        rows, seconds = self.side_by_side() if self.together else self.in_turn()
        if self._tried is not None:
            self._tried.append(seconds)
            self._decide(self._tried)
        return rows

    @property
    def steps(self) -> str:
        """How the last epoch's steps were issued, for the tables."""
        if not self.was_together or self._captured is None:
            return self.replicates[0].steps
        return f"{self._captured.how}, side by side" + (", compiled" if self.replicates[0].recipe.compile else "")

    def take_remarks(self) -> list[str]:
        """Lines for a person, since the last call: what `auto` decided, what could not be recorded."""
        remarks, self._remarks = self._remarks, []
        return remarks

    def _decide(self, tried: Sequence[float]) -> None:
        if len(tried) == len(TRIED) // 2 and not self._fits():
            self._tried = None
        elif len(tried) < len(TRIED):
            self.together = TRIED[len(tried)]
        else:
            share = tried[-1] / tried[len(TRIED) // 2 - 1]
            self.together, self._tried = share < WORTH, None
            # What was not chosen goes, and its memory.
            if self.together:
                for replicate in self.replicates:
                    replicate.forget()
            else:
                self._captured = self.recorder = None
            if self._reserved():
                torch.cuda.empty_cache()
            kept = "side by side" if self.together else "in turn"
            self._remarks.append(
                f"{len(self.replicates)} seeds side by side take {share:.2f} of their time in turn: trained {kept}"
            )

    def _fits(self) -> bool:
        """Whether the device has room for the steps of all at once, going by what the steps in turn have reserved."""
        device = self.replicates[0].device
        if device.type != "cuda":
            return True
        free, need = torch.cuda.mem_get_info(device)[0], len(self.replicates) * (self._reserved() - self._before)
        if need > ROOM * free:
            self._remarks.append(
                f"{len(self.replicates)} seeds side by side may need {need / 2**30:.1f} GiB of the "
                f"{free / 2**30:.1f} that are free: trained in turn"
            )
            return False
        return True

    def _reserved(self) -> int:
        """Bytes of the device that this process holds: recordings keep theirs between steps."""
        device = self.replicates[0].device
        return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0

    def in_turn(self) -> tuple[list[Row], float]:
        """An epoch of each, one after the other: the rows, and the seconds of the latter half of the steps."""
        rows, seconds = [], 0.0
        for replicate in self.replicates:
            epoch = replicate.begin_epoch()

            def take(batches: tuple[Batch, ...], replicate: Replicate = replicate) -> list[Outputs]:
                return [replicate.take(*batches)]

            seconds += self._drive([replicate], [epoch], take)
            rows.append(replicate.end_epoch(epoch))
        return rows, seconds

    def side_by_side(self) -> tuple[list[Row], float]:
        """An epoch of all at the same time: as `in_turn`."""
        loaded = [replicate.loaded for replicate in self.replicates]
        if self._captured is None or loaded != self._loaded:
            self._loaded = loaded
            assert self.recorder is not None  # else nothing is together
            own = weakref.proxy(self)  # as in `Replicate.forget`
            self._captured = Captured(
                lambda key, *inputs: own._issue(key, *inputs),
                lambda: own._written(),
                self.recorder,
                self.replicates[0].arithmetic,
            )
        captured = self._captured
        begun = time.perf_counter()
        epochs = [replicate.begin_epoch() for replicate in self.replicates]

        def take(batches: tuple[Batch, ...]) -> list[Outputs]:
            outputs = captured(batches[0].watched, *(tensor for batch in batches for tensor in (batch.x, batch.y)))
            each = len(outputs) // len(batches)
            return [outputs[i * each : (i + 1) * each] for i in range(len(batches))]

        seconds = self._drive(self.replicates, epochs, take)
        self._wait()
        each = (time.perf_counter() - begun) / len(epochs)
        for epoch in epochs:
            epoch.seconds = each
        self._remarks += captured.take_remarks()
        rows = [replicate.end_epoch(epoch) for replicate, epoch in zip(self.replicates, epochs, strict=True)]
        return rows, seconds

    def _drive(
        self,
        replicates: Sequence[Replicate],
        epochs: Sequence[Epoch],
        take: Callable[[tuple[Batch, ...]], list[Outputs]],
    ) -> float:
        """Take every step of some epochs; the seconds of the latter half of those of whole batches, when all that is
        set up once has been."""
        half, begun, seconds = epochs[0].steps // 2, time.perf_counter(), None
        size = 0
        for batches in zip(*(epoch.batches for epoch in epochs), strict=True):
            if batches[0].step == half:
                self._wait()
                begun = time.perf_counter()
            size = size or len(batches[0].y)
            if len(batches[0].y) != size:
                self._wait()
                seconds = time.perf_counter() - begun
            for replicate, epoch, taken in zip(replicates, epochs, take(batches), strict=True):
                replicate.count(epoch, taken)
        self._wait()
        return time.perf_counter() - begun if seconds is None else seconds

    def _issue(self, watched: bool, *inputs: Tensor) -> Outputs:
        assert self.recorder is not None
        pairs = zip(self.replicates, inputs[::2], inputs[1::2], strict=True)
        found = self.recorder.fork(
            [lambda r=r, x=x, y=y: r.issue((0, watched), x, y) for r, x, y in pairs]  # type: ignore[misc]
        )
        return tuple(tensor for outputs in found for tensor in outputs)

    def _written(self) -> list[Tensor]:
        return [tensor for replicate in self.replicates for tensor in replicate.written()]

    def _wait(self) -> None:
        device = self.replicates[0].device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
