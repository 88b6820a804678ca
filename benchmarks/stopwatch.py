"""How fast a driver takes results: between its first and its last one, so that the workers' start is left out."""

from __future__ import annotations

import time


class Stopwatch:
    """Told of every result."""

    def __init__(self) -> None:
        self.results = 0
        self._first = self._last = (0.0, 0.0)

    def result(self) -> None:
        """One more."""
        self._last = (time.perf_counter(), time.process_time())
        if not self.results:
            self._first = self._last
        self.results += 1

    def read(self) -> dict[str, float]:
        """`results`; wall `seconds` from the first to the last; `cpu` seconds of this process meanwhile."""
        wall, cpu = (b - a for a, b in zip(self._first, self._last, strict=True))
        return {"results": self.results, "seconds": wall, "cpu": cpu}
