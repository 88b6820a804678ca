"""What went wrong with the store inside Ray Tune's loop, kept for whoever started the loop.

Tune wraps an exception of a callback or a scheduler into the text of its traceback; the one line that a person needs is
noted here on its way through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from study.store import StoreError


class Trouble:
    """The first error of the store, if there was one."""

    def __init__(self) -> None:
        self.first: StoreError | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Take note of a StoreError and let it end the loop."""
        try:
            yield
        except StoreError as error:
            self.first = self.first or error
            raise
