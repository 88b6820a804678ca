"""Seconds per optimiser step: ours (SGD, SAM, Fisher SAM) beside davda54's SAM and a plain loop.

The same network from the same weights, the same batches, float32, one thread. Each is measured in both memory
layouts, because this project trains in channels last (`trainables.replicate`) and the published loops leave
torch's default, contiguous: within one layout the ratio is the optimiser's, across the two it is what a user sees.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import davda54
from benchmarks.measure import Summary, interleaved, ratio
from benchmarks.operations import optimiser_operations
from benchmarks.record import Result
from trainables.models import build
from trainables.sharpness import SharpnessAware

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

#: A learning rate at which random labels do not diverge: a step that is skipped would look cheap.
BASE = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
GAMMA, ETA = 0.05, 1.0
CLASSES = 10

#: Batches that the steps go round: as many as keep the caches from holding the input.
BATCHES = 4


@dataclass(frozen=True)
class Case:
    """A network and how long to look at it. `repeats` steps make one sample, `rounds` samples one median."""

    model: str
    batch: int
    channels: int
    side: int
    rounds: int
    repeats: int


@dataclass(frozen=True)
class Plan:
    """The networks to time, and the one whose optimiser's operations are counted."""

    cases: tuple[Case, ...]
    counted: Case


_RESNET20 = Case("resnet20", 128, 3, 32, rounds=9, repeats=1)
_COUNTED = Case("resnet20", 4, 3, 32, rounds=1, repeats=1)

FULL = Plan(
    (
        Case("digits_cnn", 64, 1, 8, rounds=25, repeats=20),
        Case("cifar_cnn", 128, 3, 32, rounds=15, repeats=2),
        _RESNET20,
        Case("wrn28_2", 128, 3, 32, rounds=3, repeats=1),
    ),
    _COUNTED,
)
QUICK = Plan(
    (
        Case("digits_cnn", 64, 1, 8, rounds=9, repeats=10),
        Case("cifar_cnn", 128, 3, 32, rounds=5, repeats=1),
        Case("resnet20", 128, 3, 32, rounds=3, repeats=1),
    ),
    _COUNTED,
)

Step = Callable[[Tensor, Tensor], Tensor]


def run(quick: bool) -> Result:
    """Measure, on one thread."""
    return measure(QUICK if quick else FULL)


def measure(plan: Plan) -> Result:
    """Time every case of a plan and count the operations.

    Raises:
        FloatingPointError: a training broke down, so that its steps are not what they should be.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratios: dict[str, Summary] = {}
        samples: dict[str, Summary] = {}
        for case in plan.cases:
            seconds = _time(case)
            ratios |= {f"{case.model}: {name}": value for name, value in _ratios(seconds).items()}
            samples |= {f"{case.model}: {name}": Summary.of(values) for name, values in seconds.items()}
        counts = _count(plan.counted)
    finally:
        torch.set_num_threads(threads)
    return Result(
        settings={
            **asdict(plan),
            "base": {"optimiser": "SGD", **BASE},
            "gamma": GAMMA,
            "eta": ETA,
            "precision": "float32",
            "threads": 1,
            "device": "cpu",
        },
        ratios=ratios,
        samples=samples,
        counts=counts,
        notes=(
            "A step is everything from cleared gradients to new weights: one forward and backward pass of SGD, two of "
            "the others; seconds per step, one thread, float32. No data loading or augmentation.",
            "ours: channels last as this project trains, contiguous for comparison. davda54: contiguous as published, "
            "channels last given to it for comparison. Ratios of one layout compare the optimisers alone.",
            "Ours steps with torch's fused SGD, as this project trains; davda54's and the plain loop with torch's "
            "default, as published.",
            "Ours keeps every buffer and checks that each gradient is finite, in SGD too; davda54's does neither.",
            "Ratios are medians of each round's own ratio; rounds run all contenders in turn.",
        ),
    )


def contenders(model: nn.Module, layout: torch.memory_format) -> dict[str, Step]:
    """Each optimiser's step on its own copy of the model, in one memory layout; a step returns its first loss."""

    def mine() -> nn.Module:
        return copy.deepcopy(model).to(memory_format=layout).train()

    def plain() -> Step:
        network = mine()
        optimiser = torch.optim.SGD(network.parameters(), **BASE)  # type: ignore[arg-type]
        return lambda x, y: davda54.plain_step(network, optimiser, F.cross_entropy, x, y)

    def davda54_sam() -> Step:
        network = mine()
        optimiser = davda54.SAM(network.parameters(), torch.optim.SGD, rho=GAMMA, **BASE)
        return lambda x, y: davda54.sam_step(network, optimiser, F.cross_entropy, x, y)

    return {
        "our sgd": _ours(mine(), None),
        "plain sgd": plain(),
        "our sam": _ours(mine(), "sam"),
        "davda54 sam": davda54_sam(),
        "our fsam": _ours(mine(), "fsam"),
    }


def sharpness_aware(network: nn.Module, metric: str | None) -> SharpnessAware:
    """Ours as `trainables.replicate` makes it."""
    return SharpnessAware(
        network.parameters(),
        torch.optim.SGD,
        metric=metric,
        gamma=None if metric is None else GAMMA,
        eta=ETA if metric == "fsam" else None,
        module=network,
        fused=True,
        **BASE,  # type: ignore[arg-type]  # settings of the base
    )


def _ours(network: nn.Module, metric: str | None) -> Step:
    optimiser = sharpness_aware(network, metric)

    def step(x: Tensor, y: Tensor) -> Tensor:
        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            return loss

        loss = optimiser.step(closure)
        assert loss is not None  # a closure was given
        if optimiser.skipped:
            raise FloatingPointError(f"{metric or 'sgd'}: a gradient was not finite")
        return loss

    return step


def _time(case: Case) -> dict[str, list[float]]:
    """Seconds per step of every contender in every layout, all in the same rounds."""
    torch.manual_seed(0)
    model = build(case.model, classes=CLASSES, channels=case.channels, side=case.side)
    data = [(torch.randn(case.batch, case.channels, case.side, case.side), _labels(case)) for _ in range(BATCHES)]
    runs: dict[str, Callable[[], object]] = {}
    last: dict[str, Tensor] = {}
    for layout, memory_format in LAYOUTS.items():
        batches = [(x.contiguous(memory_format=memory_format), y) for x, y in data]
        for name, step in contenders(model, memory_format).items():
            runs[f"{name}, {layout}"] = _go_round(f"{name}, {layout}", step, batches, last)
    seconds = interleaved(runs, rounds=case.rounds, repeats=case.repeats)
    broken = [name for name, loss in last.items() if not torch.isfinite(loss)]
    if broken:
        raise FloatingPointError(f"{case.model}: the loss is not finite in {', '.join(broken)}")
    return seconds


def _go_round(
    name: str, step: Step, batches: list[tuple[Tensor, Tensor]], last: dict[str, Tensor]
) -> Callable[[], object]:
    endless = itertools.cycle(batches)

    def run() -> None:
        last[name] = step(*next(endless))

    return run


def _labels(case: Case) -> Tensor:
    return torch.randint(CLASSES, (case.batch,))


def _ratios(seconds: dict[str, list[float]]) -> dict[str, Summary]:
    def of(over: str, under: str) -> Summary:
        return ratio(seconds[over], seconds[under])

    found = {
        "our sam / our sgd, channels_last": of("our sam, channels_last", "our sgd, channels_last"),
        "our fsam / our sam, channels_last": of("our fsam, channels_last", "our sam, channels_last"),
    }
    for layout in LAYOUTS:
        found[f"our sam / davda54 sam, {layout}"] = of(f"our sam, {layout}", f"davda54 sam, {layout}")
        found[f"our sgd / plain sgd, {layout}"] = of(f"our sgd, {layout}", f"plain sgd, {layout}")
    found["our sam, channels_last / davda54 sam, contiguous"] = of("our sam, channels_last", "davda54 sam, contiguous")
    return found


def _count(case: Case) -> dict[str, int]:
    """Operations of one optimiser step, forward and backward passes left out."""
    torch.manual_seed(0)
    model = build(case.model, classes=CLASSES, channels=case.channels, side=case.side)
    x, y = torch.randn(case.batch, case.channels, case.side, case.side), _labels(case)
    counts = {}
    for name in ("our sam", "our fsam", "davda54 sam"):
        network = copy.deepcopy(model).train()
        optimiser = (
            davda54.SAM(network.parameters(), torch.optim.SGD, rho=GAMMA, **BASE)
            if name == "davda54 sam"
            else sharpness_aware(network, name.removeprefix("our "))
        )

        def backward(network: nn.Module = network) -> Tensor:
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            return loss

        counts[f"{case.model}: operations a step, {name}"] = optimiser_operations(optimiser, backward).total
    return counts
