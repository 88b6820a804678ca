"""A trained replicate's weights as one file, which `pretrained:` of another study takes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from study.reader import StudyReader
from study.store import StoreError
from trainables.models.weights import WeightsError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


def choose(reader: StudyReader, cell: str, seed: int | None) -> pd.Series:
    """The complete replicate of a cell that is meant: the lowest seed unless one is named.

    Raises:
        StoreError: there is none.
    """
    rows = reader.replicates()
    found = rows[(rows["status"] == "complete") & rows["cell"].str.startswith(cell)]
    if found["cell"].nunique() > 1:
        raise StoreError(f"cell {cell}: several begin like this ({', '.join(found['cell'].unique())})")
    if seed is not None:
        found = found[found["seed"] == seed]
    if found.empty:
        which = f"cell {cell}" + ("" if seed is None else f", seed {seed}")
        raise StoreError(
            f"{reader.folder.uri}: {which} is not complete or not planned (see the report's tables/replicates.csv)"
        )
    return found.sort_values("seed").iloc[0]


def export_weights(reader: StudyReader, out: str, cell: str, seed: int | None = None) -> str:
    """Write a complete replicate's weights as safetensors, with what it is in their metadata; a line that says so.

    Raises:
        StoreError: there is no such replicate, its checkpoint was not kept, or `out` cannot be written.
    """
    import torch

    from trainables.models.weights_file import save_weights

    row = choose(reader, cell, seed)
    payload, damaged = reader.folder.load_checkpoint(str(row["trial"]))
    if payload is None:
        reason = "its checkpoint is damaged" if damaged else "its checkpoint was not kept (checkpoints.final: false)"
        raise StoreError(f"trial {row['trial']}: {reason}")
    state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    own = next(part for part in state["replicates"] if part["seed"] == int(row["seed"]))
    about = {
        "study": reader.spec["name"],
        "arm": str(row["arm"]),
        "cell": str(row["cell"]),
        "seed": int(row["seed"]),
        "epoch": int(state["epoch"]),
        "test_accuracy": float(row["test_accuracy"]),
    }
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(own["model"], path, model=str(row["model"]), classes=_classes(own["model"]), about=about)
    except (OSError, WeightsError) as error:
        raise StoreError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    return (
        f"{path}: {row['model']} of arm {row['arm']}, cell {row['cell']}, seed {row['seed']} "
        f"(test {100 * row['test_accuracy']:.1f} %); start from it with `pretrained: {path}`"
    )


def _classes(tensors: dict[str, Tensor]) -> int:
    """Rows of the last matrix, which is every network's head."""
    return [value for value in tensors.values() if value.ndim == 2][-1].shape[0]
