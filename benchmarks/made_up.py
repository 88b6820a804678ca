"""Results that nobody trained, in the shape of the real ones: what the bookkeeping is measured with.

Their keys are those of a replicate that really trained one epoch, so that a column more in training is one more here.
Their numbers are drawn anew for each row: equal ones would be packed to nothing.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainables.recipe import Recipe

Row = dict[str, Any]

#: As `trainables.trial` has it, which imports torch.
AVERAGED = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")

#: The data and network of every study here: next to nothing to train where something is trained.
RECIPE = {"dataset": "synthetic", "model": "mlp", "optimiser": "fsam", "train_size": 64}


def template() -> list[Any]:
    """An epoch's row, what is measured at the end, and the labels' hash, of a replicate that trained one epoch."""
    import torch  # takes half a GiB: only for whoever trains

    from trainables.replicate import Replicate

    torch.set_num_threads(1)
    replicate = Replicate(Recipe.of({**RECIPE, "gamma": 0.1, "eta": 0.1, "epochs": 1}), seed=0)
    return [replicate.train_epoch(), replicate.final(), replicate.label_hash]


class MadeUp:
    """Makes rows and reports.

    Args:
        template: see the function.
        seed: of the numbers.
    """

    def __init__(self, template: Sequence[Any], seed: int = 0) -> None:
        self._epoch, self._final, self.label_hash = template
        self._draws = random.Random(seed)

    def row(self, seed: int, epoch: int, accuracy: float | None = None) -> Row:
        """A row as `Replicate.train_epoch` returns it.

        Args:
            seed: the replicate's.
            epoch: from 1.
            accuracy: on the validation split; drawn if None.
        """
        draw = self._draws.random
        row = {key: draw() if type(value) is float else value for key, value in self._epoch.items()}
        row |= {"seed": seed, "epoch": epoch, "images_seen": 64 * epoch, "gradient_evaluations": 2 * epoch}
        row |= {"diverged": False, "skipped_steps": 0.0}
        if accuracy is not None:
            row["validation_accuracy"] = accuracy
        return row

    def final(self) -> Row:
        """What is measured once, when training is complete."""
        return {key: self._draws.random() for key in self._final}

    def report(self, cell: str, row: Row, *, last: bool) -> Row:
        """What `trainables.trial` reports of a cell with one seed after an epoch; `last`: it is complete."""
        found: Row = {
            "epoch": row["epoch"],
            **{key: row[key] for key in AVERAGED},
            "replicates": [{**row, "label_hash": self.label_hash, **(self.final() if last else {})}],
            "rows": [{"cell": cell, **row}],
            "remarks": [],
            "device": "CPU",
            "steps": "eager",
            "step_seconds": 0.01,
        }
        return found | ({"outcome": "complete", "done": True, "unmeasured": []} if last else {})


def grid(cells: int) -> dict[str, list[float]]:
    """Axes with so many points: gamma by eta, as near to a square as it divides."""
    rows = max(n for n in range(1, math.isqrt(cells) + 1) if cells % n == 0)
    return {
        "gamma": [round(0.001 * (i + 1), 3) for i in range(rows)],
        "eta": [round(0.001 * (i + 1), 3) for i in range(cells // rows)],
    }


def study_file(scratch: Path, name: str, cells: int, epochs: int, *, asha: bool = False) -> str:
    """A study of many cells with next to nothing to train; returns its file, in `scratch`."""
    content: dict[str, Any] = {
        "name": name,
        "question": "What does the bookkeeping cost?",
        "recipe": {**RECIPE, "epochs": epochs, "device": "cpu"},
        "grid": grid(cells),
        "seeds": [0],
        "resources": {"cpu": 1, "gpu": 0},
    }
    if asha:
        content["scheduler"] = {"name": "asha"}
    file = scratch / f"{name}.yaml"
    file.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return str(file)
