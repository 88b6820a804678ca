"""TensorBoard event files of a study's trials, written by the driver, which has every trial's epochs anyway.

One folder a cell and under it a run a seed: `tensorboard/<arm>/<settings>_<trial>/seed_<n>/events.out.tfevents...`. A
file is written whole, with all epochs of its trial, on any store that a study can have (an object store knows no
appending), at most every `EVERY` seconds a trial and at its end. A trial that goes on after an interruption reports its
earlier epochs again, so that its file has them too.
"""

from __future__ import annotations

import math
import re
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from study.files import Files
    from study.plan import PlannedTrial

#: Where they lie in the study's folder.
FOLDER = "tensorboard"

#: Seconds between two writes of a trial that is in training.
EVERY = 30.0

#: Columns of an epoch's row, and the tag of each.
TAGS = {
    "train_loss": "loss/train",
    "validation_loss": "loss/validation",
    "train_accuracy": "accuracy/train",
    "validation_accuracy": "accuracy/validation",
    "test_accuracy": "accuracy/test",
    "lr": "optimiser/lr",
    "eps_norm": "optimiser/eps_norm",
    "cosine_to_sam": "optimiser/cosine_to_sam",
    "skipped_steps": "optimiser/skipped_steps",
}


class Events:
    """Writes the event files of a run's trials.

    Args:
        files: the study's folder.
        axes: what the study varies, for the names.
        clock: tells the time in seconds since 1970.
    """

    def __init__(self, files: Files, axes: Iterable[str], clock: Callable[[], float] = time.time) -> None:
        self._files, self._axes, self._clock = files, list(axes), clock
        self._rows: dict[str, dict[tuple[int, int], tuple[float, dict[str, Any]]]] = {}
        self._written: dict[str, float] = {}

    def report(self, trial: PlannedTrial, result: Mapping[str, Any]) -> None:
        """Take the epochs of a report, and write what is due.

        Raises:
            study.store.StoreError: it could not be written.
        """
        now, over = self._clock(), bool(result.get("done"))
        kept = self._rows.setdefault(trial.id, {})
        for row in result["rows"]:
            kept[row["seed"], row["epoch"]] = now, dict(row)
        if over:
            for row in result["replicates"]:
                # With the test accuracy, where it has been measured.
                kept[row["seed"], row["epoch"]] = now, dict(row)
        if kept and (over or now - self._written.setdefault(trial.id, now) >= EVERY):
            self._written[trial.id] = now
            for seed in sorted({seed for seed, _ in kept}):
                points = [point for (s, _), point in sorted(kept.items(), key=lambda item: item[0]) if s == seed]
                self._files.write(encode(points), *place(trial, self._axes, seed))
        if over:
            self.forget(trial)

    def forget(self, trial: PlannedTrial) -> None:
        """A trial that will not report any more."""
        self._rows.pop(trial.id, None)
        self._written.pop(trial.id, None)


def place(trial: PlannedTrial, axes: Iterable[str], seed: int) -> tuple[str, ...]:
    """Where a seed's file lies, below the study's folder."""
    settings = trial.cell.recipe.settings()
    parts = [f"{key}={_plain(settings[key])}" for key in axes if settings.get(key) is not None]
    folder = "_".join([*parts, trial.id])
    return FOLDER, _plain(trial.cell.arm), folder, f"seed_{seed}", "events.out.tfevents.0000000000.study"


def encode(points: Iterable[tuple[float, Mapping[str, Any]]]) -> bytes:
    """An event file's bytes.

    Args:
        points: time in seconds since 1970 and row of each epoch; numbers that are missing or not finite are left out.
    """
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]
    from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

    made = list(points)
    events = [Event(wall_time=made[0][0] if made else 0.0, file_version="brain.Event:2")]
    for moment, row in made:
        values = [
            Summary.Value(tag=tag, simple_value=float(row[key]))
            for key, tag in TAGS.items()
            if row.get(key) is not None and math.isfinite(row[key])
        ]
        events.append(Event(wall_time=moment, step=int(row["epoch"]), summary=Summary(value=values)))
    return b"".join(_record(event.SerializeToString()) for event in events)


def _record(data: bytes) -> bytes:
    """TensorFlow's framing: length, its masked CRC-32C, data, its masked CRC-32C."""
    from tensorboardX.record_writer import masked_crc32c  # type: ignore[import-untyped]

    length = struct.pack("<Q", len(data))
    return b"".join([length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))])


def _plain(value: Any) -> str:
    """A value as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.+=-]", "-", f"{value:g}" if isinstance(value, float) else str(value))[:60]
