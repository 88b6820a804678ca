"""What a trial's worker writes into the study's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from study.store import StoreError, StudyFolder


@dataclass(frozen=True)
class FolderKeeper:
    """The `Keeper` of `trainables.trial` over a study's folder; travels to the workers.

    Args:
        folder: the study's folder.
        keep: checkpoints kept of a trial.
    """

    folder: StudyFolder
    keep: int

    def load_checkpoint(self, trial: str) -> tuple[bytes | None, list[str]]:
        with _kept():
            payload, damaged = self.folder.load_checkpoint(trial)
        if not damaged:
            return payload, []
        age = "the one before" if payload else "the beginning"
        return payload, [f"trial {trial}: checkpoint {', '.join(damaged)} is damaged; it went on from {age}"]

    def save_checkpoint(self, trial: str, epoch: int, payload: bytes) -> None:
        with _kept():
            self.folder.save_checkpoint(trial, epoch, payload, self.keep)

    def measured(self, trial: str) -> set[str]:
        with _kept():
            return self.folder.measures(trial)

    def save_measure(self, trial: str, tag: str, rows: list[dict[str, Any]]) -> None:
        with _kept():
            self.folder.save_measure(trial, tag, rows)


@contextmanager
def _kept() -> Iterator[None]:
    """A trial knows no store: what goes wrong with it is an error of its keeper."""
    # Here, since the driver's side of this module needs no torch.
    from trainables.trial import KeepError

    try:
        yield
    except StoreError as error:
        raise KeepError(str(error)) from error
