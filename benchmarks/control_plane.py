"""What running a study costs over the training in it: real studies by the real command, on a Ray of their own.

Two questions. How much longer than its bare training does a study take (`digits`)? And what does one more trial
cost when there is next to nothing to train (`tiny`, in two sizes: the difference is the trials' and what is left is
the start of the workers)?
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measure import Summary, interleaved
from benchmarks.record import Result, usable_cpus
from study.plan import make_plan
from study.reader import open_study
from study.spec import Study
from study.store import StudyFolder
from trainables.recipe import Recipe
from trainables.replicate import Replicate

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "studies" / "digits_sensitivity.yaml"

#: On the CPU, whatever the machine has: a trial per core is what the ideal is computed from.
ON_CPU = ("device=cpu", "resources.cpu=1", "resources.gpu=0")


@dataclass(frozen=True)
class Scale:
    """How large the studies are, and how often each runs.

    Attributes:
        digits: `--set` overrides that scale `studies/digits_sensitivity.yaml` down.
        few: trials per core of the smaller tiny study: enough that every worker starts.
        many: trials per core of the larger one.
        epochs: of every tiny trial.
        rounds: runs of each study, in turn.
    """

    digits: tuple[str, ...]
    few: int
    many: int
    epochs: int
    rounds: int


FULL = Scale(digits=("epochs=10",), few=5, many=30, epochs=2, rounds=3)
QUICK = Scale(digits=("epochs=2", "seeds=[0]"), few=2, many=12, epochs=2, rounds=1)


@dataclass(frozen=True)
class Ran:
    """One run of a study. Seconds; `bare_seconds` is the sum over replicates of what any loop would have to do."""

    command_seconds: float
    run_seconds: float
    train_seconds: float
    bare_seconds: float
    trials: int
    cores: int

    @property
    def start_up(self) -> float:
        """What the command takes outside its run: imports, the plan, starting and ending Ray."""
        return self.command_seconds - self.run_seconds

    @property
    def beyond(self) -> float:
        """The run less its bare work, ideally packed: starting the workers, the control plane, gaps at the end."""
        return self.run_seconds - self.ideal(self.bare_seconds)

    def ideal(self, seconds: float) -> float:
        """`seconds` of work spread over the cores without a gap."""
        return seconds / self.cores


def run(quick: bool) -> Result:
    """Run the studies in a temporary folder, each in a process of its own, and compare."""
    return measure(QUICK if quick else FULL)


def measure(scale: Scale) -> Result:
    """Run every study of a scale `rounds` times, in turn.

    Raises:
        RuntimeError: a study did not run to its end, or a trial of it did not.
    """
    ran: dict[str, list[Ran]] = {"digits": [], "tiny, few": [], "tiny, many": []}
    cores = usable_cpus()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        few, many = (_tiny(Path(scratch), per_core * cores, scale.epochs) for per_core in (scale.few, scale.many))
        studies = {
            "digits": (DIGITS, (*scale.digits, *ON_CPU)),
            "tiny, few": (few, ON_CPU),
            "tiny, many": (many, ON_CPU),
        }
        beside = {name: beside_training(*study) for name, study in studies.items()}
        for i in range(scale.rounds):
            for name, (file, overrides) in studies.items():
                storage = Path(scratch) / f"{name.replace(', ', '-')}-{i}"
                ran[name].append(run_study(file, overrides, storage, cores, beside[name]))
    return Result(
        settings={**asdict(scale), "cores": cores, "device": "cpu", "tiny": "synthetic, mlp, sam, one seed a trial"},
        ratios=_ratios(ran["digits"]),
        samples=_samples(ran),
        counts={f"{name}: trials": runs[0].trials for name, runs in ran.items()},
        notes=(
            "Ideal is the replicates' own training seconds, as the run recorded them, over the cores, without a gap.",
            "Training seconds leave evaluation out. training + evaluation adds making the networks, a validation an "
            "epoch and a test at the end, as timed alone in this process on one thread: work that any loop has.",
            "A run is the time that its record names: from the connected Ray to the last trial's end, the workers' "
            "start and their imports included. Start-up is the rest of the command.",
            "Tiny: few and many trials of next to no work; their difference in run time, less the bare work's, is "
            "what each further trial costs in wall time while every core has one.",
        ),
    )


def _ratios(digits: Sequence[Ran]) -> dict[str, Summary]:
    def of(seconds: list[float]) -> Summary:
        return Summary.of(seconds, "ratio")

    return {
        "digits: run / ideal training": of([r.run_seconds / r.ideal(r.train_seconds) for r in digits]),
        "digits: run / ideal training + evaluation": of([r.run_seconds / r.ideal(r.bare_seconds) for r in digits]),
        "digits: command / ideal training": of([r.command_seconds / r.ideal(r.train_seconds) for r in digits]),
    }


def _samples(ran: dict[str, list[Ran]]) -> dict[str, Summary]:
    found: dict[str, Summary] = {}
    for name, runs in ran.items():
        found |= {
            f"{name}: command": Summary.of([r.command_seconds for r in runs]),
            f"{name}: start-up": Summary.of([r.start_up for r in runs]),
            f"{name}: run": Summary.of([r.run_seconds for r in runs]),
            f"{name}: run beyond training + evaluation": Summary.of([r.beyond for r in runs]),
            f"{name}: ideal training": Summary.of([r.ideal(r.train_seconds) for r in runs]),
            f"{name}: ideal training + evaluation": Summary.of([r.ideal(r.bare_seconds) for r in runs]),
        }
    further = [further_trial(few, many) for few, many in zip(ran["tiny, few"], ran["tiny, many"], strict=True)]
    return found | {"tiny: each further trial": Summary.of(further)}


def further_trial(few: Ran, many: Ran) -> float:
    """Wall seconds of control plane that each trial costs which `many` has and `few` has not."""
    return (many.beyond - few.beyond) / (many.trials - few.trials)


def _tiny(folder: Path, trials: int, epochs: int) -> Path:
    """A study of many cells with next to nothing to train."""
    gammas = [round(0.001 * (i + 1), 3) for i in range(trials)]
    file = folder / f"tiny_{trials}.yaml"
    content = {
        "name": file.stem,
        "question": "What does a trial cost that trains next to nothing?",
        "recipe": {"dataset": "synthetic", "model": "mlp", "optimiser": "sam", "epochs": epochs},
        "grid": {"gamma": gammas},
        "seeds": [0],
    }
    file.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return file


@dataclass(frozen=True)
class Beside:
    """Seconds of a replicate that are not training: made once, validated every epoch, tested once."""

    build: float
    validation: float
    test: float

    def of(self, epochs: int) -> float:
        return self.build + epochs * self.validation + self.test


def beside_training(file: Path, overrides: Sequence[str]) -> Beside:
    """What a replicate of a study takes beside its training, timed on one thread in this process.

    The first cell's: the cells of these studies share their network and data.
    """
    with tempfile.TemporaryDirectory() as nowhere:
        plan = make_plan(Study.load(file, overrides), StudyFolder(str(Path(nowhere) / "none")))
    recipe: Recipe = plan.todo[0].cell.recipe
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        replicate = Replicate(recipe, seed=0)
        seconds = interleaved(
            {
                "build": lambda: Replicate(recipe, seed=0),
                "validation": lambda: replicate.evaluate("validation"),
                "test": lambda: replicate.evaluate("test"),
            },
            rounds=9,
        )
    finally:
        torch.set_num_threads(threads)
    return Beside(**{what: median(values) for what, values in seconds.items()})


def run_study(file: Path, overrides: Sequence[str], storage: Path, cores: int, beside: Beside) -> Ran:
    """`study run FILE` once, without a report.

    Args:
        file: the study's.
        overrides: `--set`, each.
        storage: a new folder, to hold the study's.
        cores: CPUs of its Ray.
        beside: see `beside_training`.

    Raises:
        RuntimeError: it failed, or a replicate did not end.
    """
    command = [sys.executable, "-m", "study", "run", str(file), "--storage", str(storage), "--cpus", str(cores)]
    command += ["--no-report", *(word for override in overrides for word in ("--set", override))]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    command_seconds = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(f"study run {file.name} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    (folder,) = storage.iterdir()
    reader = open_study(str(folder))
    (record,) = reader.runs()
    ended = reader.replicates()
    unfinished = ended.loc[~ended["status"].isin(["complete", "diverged", "stopped"])]
    if len(unfinished):
        raise RuntimeError(f"study run {file.name}: {len(unfinished)} replicates did not end")
    return _ran(command_seconds, record, [int(epoch) for epoch in ended["epoch"]], cores, beside)


def _ran(command_seconds: float, record: dict[str, Any], epochs: Sequence[int], cores: int, beside: Beside) -> Ran:
    train_seconds = float(record["train_seconds"])
    return Ran(
        command_seconds=command_seconds,
        run_seconds=float(record["seconds"]),
        train_seconds=train_seconds,
        bare_seconds=train_seconds + sum(beside.of(n) for n in epochs),
        trials=sum(record["trials"].values()),
        cores=cores,
    )
