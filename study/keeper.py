"""What a trial's worker writes into the study's folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from study.store import StudyFolder

if TYPE_CHECKING:
    from trainables.replicate import Row


@dataclass(frozen=True)
class FolderKeeper:
    """The `Keeper` of `trainables.trial` over a study's folder; travels to the workers.

    Args:
        folder: the study's folder.
        keep: checkpoints kept of a trial.
    """

    folder: StudyFolder
    keep: int

    def load_checkpoint(self, trial: str) -> bytes | None:
        payload, damaged = self.folder.load_checkpoint(trial)
        if damaged:
            age = "an older one" if payload else "the beginning"
            print(
                f"trial {trial}: passing over damaged checkpoint {', '.join(damaged)}; going on from {age}",
                file=sys.stderr,
            )
        return payload

    def save_checkpoint(self, trial: str, epoch: int, payload: bytes) -> None:
        self.folder.save_checkpoint(trial, epoch, payload, self.keep)

    def save_history(self, trial: str, rows: list[Row]) -> None:
        self.folder.save_history(trial, rows)

    def measured(self, trial: str) -> set[str]:
        return self.folder.measures(trial)

    def save_measure(self, trial: str, tag: str, rows: list[dict[str, Any]]) -> None:
        self.folder.save_measure(trial, tag, rows)
