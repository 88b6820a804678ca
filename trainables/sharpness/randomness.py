"""The same random draws in both passes: the second sees the network that the first saw (the same dropout mask)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class SameDraws:
    """The state of torch's generators at one moment, to be played again.

        draws = SameDraws([torch.device("cuda")])     # before the first pass
        first_pass()
        with draws.again():
            second_pass()

    Args:
        devices: whose default generators to replay besides the CPU's, which is always replayed.
        generators: generators of the caller's own, replayed too.
    """

    def __init__(self, devices: Iterable[torch.device] = (), generators: Iterable[torch.Generator] = ()) -> None:
        self._devices = sorted({d for d in devices if d.type == "cuda"}, key=str)
        self._generators = list(generators)
        self._before = self._read()

    def _read(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        states.extend(torch.cuda.get_rng_state(d) for d in self._devices)
        states.extend(g.get_state() for g in self._generators)
        return states

    def _write(self, states: list[torch.Tensor]) -> None:
        left = iter(states)
        torch.set_rng_state(next(left))
        for device in self._devices:
            torch.cuda.set_rng_state(next(left), device)
        for generator in self._generators:
            generator.set_state(next(left))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Replay the draws; afterwards the generators stand where they stood on entry, whatever was drawn inside."""
        after = self._read()
        self._write(self._before)
        try:
            yield
        finally:
            self._write(after)


def same_draws(device: torch.device | str | None = None) -> SameDraws:
    """`SameDraws` for the CPU's generator and, where `device` is a CUDA device, that device's."""
    return SameDraws([] if device is None else [torch.device(device)])
