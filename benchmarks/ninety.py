"""A study of ninety replicates: its wall time beside its own training, and beside the same ninety in plain Ray Tune.

Five gammas, six etas and three seeds of Fisher SAM on digits. Ours is the real command `study run`, with everything
that it records. The peer is `benchmarks.tuned_loop`: the published loop in a function trainable.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.control_plane import ON_CPU, Ran, beside_training, run_study
from benchmarks.measure import Summary, ratio
from benchmarks.processes import fresh
from benchmarks.record import Result, usable_cpus
from study.reader import open_study

#: Both sides of the comparison end within so much mean test accuracy of each other, or they did not train the same.
SIMILAR = 0.05

RECIPE = {"dataset": "digits", "model": "digits_cnn", "optimiser": "fsam", "batch_size": 32, "lr": 0.05}

#: Names of the ratios that have a goal: the most that each may be.
PACKED, BESIDE = "study run / ideal packing of its training", "study run / the same in plain Ray Tune"
GOALS = {PACKED: 1.05, BESIDE: 0.5}


@dataclass(frozen=True)
class Scale:
    """How large the study is, and how often it is run.

    Attributes:
        gamma: values of the grid.
        eta: likewise.
        seeds: of each cell.
        epochs: of each replicate.
        train_size: images of an epoch; all 1,150 if None.
        rounds: runs of each side, in turn.
    """

    gamma: tuple[float, ...]
    eta: tuple[float, ...]
    seeds: tuple[int, ...]
    epochs: int
    train_size: int | None
    rounds: int

    @property
    def replicates(self) -> int:
        return len(self.gamma) * len(self.eta) * len(self.seeds)


#: The grid of studies/digits_sensitivity.yaml.
FULL = Scale(
    (0.01, 0.05, 0.1, 0.5, 1.0), (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0), (0, 1, 2), epochs=60, train_size=None, rounds=1
)
QUICK = Scale((0.05, 0.1), (0.1, 1.0), (0, 1, 2), epochs=10, train_size=None, rounds=1)


def run(quick: bool) -> Result:
    """Run both sides in a temporary folder, each in processes of its own."""
    return measure(QUICK if quick else FULL)


def measure(scale: Scale) -> Result:
    """Run both sides of a scale in turn.

    Raises:
        RuntimeError: a side did not end well, or the two did not train the same.
    """
    cores = usable_cpus()
    ours: list[Ran] = []
    accuracies: list[float] = []
    epochs: list[int] = []
    peers: list[dict[str, Any]] = []
    commands: list[float] = []
    recipe = {**RECIPE, "epochs": scale.epochs, "device": "cpu"}
    if scale.train_size is not None:
        recipe["train_size"] = scale.train_size
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        file = _study_file(Path(scratch), scale, recipe)
        beside = beside_training(file, ON_CPU)
        for i in range(scale.rounds):
            storage = Path(scratch) / f"ours-{i}"
            ours.append(run_study(file, ON_CPU, storage, cores, beside))
            ended = open_study(str(storage / file.stem)).replicates()
            accuracies, epochs = ended["test_accuracy"].tolist(), ended["epoch"].tolist()
            axes = {"gamma": scale.gamma, "eta": scale.eta, "seeds": scale.seeds}
            where = str(Path(scratch) / f"peer-{i}")
            peer, process = fresh("benchmarks.tuned_loop", "run", recipe=recipe, **axes, cpus=cores, storage=where)
            peers.append(peer)
            commands.append(process.seconds)
            _check_same(scale, epochs, accuracies, peer)
    return Result(
        settings={**asdict(scale), "recipe": recipe, "cores": cores, "goals": GOALS},
        ratios={
            PACKED: ratio([r.command_seconds for r in ours], [r.ideal(r.train_seconds) for r in ours]),
            "the run in it / ideal packing of its training": ratio(
                [r.run_seconds for r in ours], [r.ideal(r.train_seconds) for r in ours]
            ),
            "the run in it / ideal packing of its training + evaluation": ratio(
                [r.run_seconds for r in ours], [r.ideal(r.bare_seconds) for r in ours]
            ),
            BESIDE: ratio([r.command_seconds for r in ours], commands),
            "the run in it / Tuner.fit": ratio([r.run_seconds for r in ours], [peer["fit"] for peer in peers]),
            "training alone, ours / the published loop": ratio(
                [r.train_seconds for r in ours], [sum(peer["training"]) for peer in peers]
            ),
        },
        samples={
            "ours: study run": Summary.of([r.command_seconds for r in ours]),
            "ours: the run in it": Summary.of([r.run_seconds for r in ours]),
            "ours: ideal packing of its training": Summary.of([r.ideal(r.train_seconds) for r in ours]),
            "ours: a replicate's training": Summary.of([r.train_seconds / scale.replicates for r in ours]),
            "ours: test accuracy of the replicates": Summary.of(accuracies, "accuracy"),
            "plain Ray Tune: the process": Summary.of(commands),
            "plain Ray Tune: Tuner.fit": Summary.of([peer["fit"] for peer in peers]),
            "plain Ray Tune: a replicate's training": Summary.of(
                [sum(peer["training"]) / scale.replicates for peer in peers]
            ),
            "plain Ray Tune: test accuracy of the replicates": Summary.of(peers[-1]["test_accuracy"], "accuracy"),
        },
        counts={
            "replicates": scale.replicates,
            "ours: epochs": sum(epochs),
            "ours: trials": ours[-1].trials,
            "plain Ray Tune: epochs": sum(peers[-1]["epochs"]),
            "plain Ray Tune: trials": len(peers[-1]["epochs"]),
        },
        notes=(
            f"Mean test accuracy: ours {fmean(accuracies):.4f}, plain Ray Tune {fmean(peers[-1]['test_accuracy']):.4f} "
            f"(n={scale.replicates} each, the last round). Both validate after each epoch and test at the end.",
            "Ours: the wall time of the command `study run` (imports, plan, Ray's start and end), with checkpoints, "
            "records and provenance, without the report; the three seeds of a cell are one trial, workers are reused.",
            "Plain Ray Tune: the wall time of its process (imports, Ray's start and end); a function trainable around "
            "the davda54-style loop, one CPU a trial, a report an epoch, default loggers, no checkpoints; a trial is "
            "one replicate in an actor of its own, which is Tune's default.",
            "Ideal packing: the training seconds that ours recorded, over the cores, without a gap and without "
            "evaluation. A run is from the connected Ray to the last trial's end.",
        ),
    )


def _check_same(scale: Scale, epochs: list[int], accuracies: list[float], peer: dict[str, Any]) -> None:
    expected = [scale.epochs] * scale.replicates
    if epochs != expected or peer["epochs"] != expected:
        raise RuntimeError(f"not every replicate trained {scale.epochs} epochs: ours {epochs}, peer {peer['epochs']}")
    means = fmean(accuracies), fmean(peer["test_accuracy"])
    if not abs(means[0] - means[1]) <= SIMILAR:
        raise RuntimeError(f"ours and the peer do not learn alike: mean test accuracies {means}")


def _study_file(folder: Path, scale: Scale, recipe: dict[str, Any]) -> Path:
    file = folder / "ninety.yaml"
    content = {
        "name": file.stem,
        "question": "What does a study cost over its training?",
        "recipe": recipe,
        "grid": {"gamma": list(scale.gamma), "eta": list(scale.eta)},
        "seeds": list(scale.seeds),
    }
    file.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return file
