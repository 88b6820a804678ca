"""What has to be right on a device before anything about it is measured."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import davda54
from benchmarks.gpu.suite import Suite, apart
from benchmarks.operations import Operations
from benchmarks.tape import FETCHING, WAITING
from trainables.recipe import Recipe
from trainables.replicate import Replicate
from trainables.side_by_side import SideBySide

METHODS: dict[str, dict[str, Any]] = {
    "sgd": {"optimiser": "sgd"},
    "sam": {"optimiser": "sam"},
    "asam": {"optimiser": "asam"},
    "fsam": {"optimiser": "fsam"},
    "fsam, m": {"optimiser": "fsam", "m": 32},
    "natural": {"optimiser": "fsam", "natural_gradient": True},
    "adamw": {"optimiser": "fsam", "base": "adamw", "lr": 1e-3},
}

#: How far apart two trainings of a few dozen steps may be, as a share of the way that they went: rounding, and what
#: the network makes of it.
ALLOWED = {"float64": 1e-8, "float32": 2e-2, "bfloat16": 0.3}


def run(suite: Suite) -> None:
    """All checks; each says its distance and what is allowed."""
    sections = (unread, skipped, resumed, beside_davda54, on_the_cpu_too, augmentation, half, side_by_side, captured)
    with deterministic():
        for section in sections:
            suite.attempt(f"check: {section.__name__.replace('_', ' ')}", 10, section, check=True)


@contextmanager
def deterministic() -> Iterator[None]:
    """Kernels that add in a fixed order, where cuDNN has a choice."""
    before, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def settings(suite: Suite, **more: Any) -> dict[str, Any]:
    """A recipe that trains in seconds: ResNet-20 on a GPU with CIFAR-10, else the digits' network."""
    if suite.small or not suite.data_root:
        base: dict[str, Any] = {"dataset": "digits", "model": "digits_cnn", "train_size": 200, "batch_size": 32}
    else:
        base = {"dataset": "cifar10", "model": "resnet20", "train_size": 1300, "batch_size": 128}
    return {**base, "augmentation": ["crop"], "epochs": 3, "lr": 0.05, "device": str(suite.device), **more}


def replicate(suite: Suite, given: Mapping[str, Any], seed: int = 0) -> Replicate:
    """On the suite's device steps are recorded, on a CPU too, unless `capture` is off."""
    return Replicate(Recipe.of(given), seed, suite.data_root, recorder=suite.recorder())


def state(trained: Replicate) -> list[list[Tensor]]:
    """Copies of the parameters, of the floating buffers and of the counters."""
    buffers = list(trained.model.buffers())
    groups = (
        list(trained.model.parameters()),
        [b for b in buffers if b.is_floating_point()],
        [b for b in buffers if not b.is_floating_point()],
    )
    return [[t.detach().clone() for t in group] for group in groups]


def captured(suite: Suite) -> None:
    """Captured steps end where eager ones do, for every method, in float64 and in what trains fast."""
    for precision in ("float64", "float32", "bfloat16"):
        for name, method in METHODS.items() if precision != "float32" else (("fsam", METHODS["fsam"]),):
            given = settings(suite, precision=precision, **method)
            eager, whole = replicate(suite, {**given, "capture": "off"}), replicate(suite, given)
            start = state(eager)
            for _ in range(3):
                eager.train_epoch()
                whole.train_epoch()
            told = whole.take_remarks()
            recorded = whole.recorded
            distance = apart(state(eager), state(whole), start) if not told and recorded else math.inf
            suite.check(
                f"captured = eager, {name}, {precision}", distance, ALLOWED[precision],
                "; ".join(told) or f"{recorded} recordings",
            )  # fmt: skip


def on_the_cpu_too(suite: Suite) -> None:
    """The device trains as the CPU does in float64: data, order, augmentation, both passes, update."""
    for name in ("sam", "fsam"):
        # A learning rate that float32, in which CUDA's fused optimisers take it, has exactly.
        given = settings(suite, precision="float64", **METHODS[name], train_size=200, batch_size=32)
        given["lr"] = 0.0625
        here, there = replicate(suite, given), replicate(suite, {**given, "device": "cpu", "capture": "off"})
        start = state(there)
        here.train_epoch()
        there.train_epoch()
        suite.check(f"device = CPU, {name}, float64", apart(state(here), state(there), start), 1e-8)


def beside_davda54(suite: Suite) -> None:
    """Six steps of SAM in float64 are those of an independent loop over the parameters."""
    given = settings(suite, precision="float64", optimiser="sam", gamma=0.05, label_smoothing=0.0)
    ours = replicate(suite, given)
    network = copy.deepcopy(ours.model).train()
    theirs = davda54.SAM(
        network.parameters(), torch.optim.SGD, rho=0.05, lr=0.0, momentum=0.9, weight_decay=ours.recipe.weight_decay
    )
    start = state(ours)
    epoch = ours.begin_epoch()
    for group in theirs.param_groups:
        # As CUDA's fused optimisers take it: in float32.
        on_gpu = suite.device.type == "cuda"
        group["lr"] = float(torch.tensor(epoch.lr, dtype=torch.float32)) if on_gpu else epoch.lr
    # Enough for a recording, but few: on a CPU the two were 1e-12 apart after six steps of ResNet-20 and 3e-9 after
    # twenty (that loop divides by |g| + 1e-12).
    for batch in itertools.islice(epoch.batches, 6):
        davda54.sam_step(network, theirs, F.cross_entropy, batch.x, batch.y)
        ours.take(batch)
    # BatchNorm's counters differ: that loop runs both passes in training mode.
    mine, other = list(ours.model.parameters()), list(network.parameters())
    suite.check("SAM = davda54's, float64", apart([mine], [other], start[:1]), 1e-9)


def side_by_side(suite: Suite) -> None:
    """Seeds that are trained at the same time end where they do one after the other."""
    for precision in ("float64", "bfloat16"):
        given = settings(suite, precision=precision, **METHODS["fsam"])
        recorder = suite.recorder()

        def group(how: Any, given: dict[str, Any] = given, recorder: Any = recorder) -> SideBySide:
            made = [Replicate(Recipe.of(given), seed, suite.data_root, recorder=recorder) for seed in range(3)]
            return SideBySide(made, how, recorder)

        turns, together = group("off"), group("on")
        start = [t for r in turns.replicates for t in state(r)]  # groups of each seed
        for _ in range(3):
            turns.train_epoch()
            together.train_epoch()
        ends = [[t for r in g.replicates for t in state(r)] for g in (turns, together)]
        told = together.take_remarks()
        distance = math.inf if told else apart(ends[0], ends[1], start)
        suite.check(f"side by side = in turn, {precision}", distance, ALLOWED[precision], "; ".join(told))


def half(suite: Suite) -> None:
    """bf16's gradient points where float32's does, and so does its loss."""
    gradients, losses = [], []
    for precision in ("float32", "bfloat16"):
        trained = replicate(suite, settings(suite, precision=precision, optimiser="sgd", capture="off"))
        batch = next(trained.begin_epoch().batches)
        loss, _, *_ = trained.take(batch)
        losses.append(float(loss))
        gradients.append(
            torch.cat([p.grad.flatten().double() for p in trained.model.parameters() if p.grad is not None])
        )
    cosine = float(F.cosine_similarity(gradients[0], gradients[1], dim=0))
    suite.check("bf16's gradient beside float32's: 1 - cosine", 1 - cosine, 2e-2)
    suite.check("bf16's loss beside float32's", abs(losses[1] / losses[0] - 1), 1e-2)


def augmentation(suite: Suite) -> None:
    """Every image is augmented as on the CPU, to the last grey level."""
    given = settings(suite, augmentation=["crop", "flip", "autoaugment", "cutout"], precision="float32")
    x = []
    for device in (str(suite.device), "cpu"):
        made = replicate(suite, {**given, "device": device, "capture": "off"})
        x.append(torch.cat([batch.x.cpu() for batch in made.begin_epoch().batches]))
    off = (x[0] - x[1]).abs().flatten(1).amax(1) > 1e-5
    suite.check(
        "augmented images that differ from the CPU's, a share", float(off.double().mean()), 0.0, f"{len(off)} images"
    )


def resumed(suite: Suite) -> None:
    """An interrupted training goes on as if it had not been."""
    given = settings(suite, precision="float32", **METHODS["fsam"])
    whole, first, second = (replicate(suite, given) for _ in range(3))
    start = state(whole)
    for _ in range(3):
        whole.train_epoch()
    first.train_epoch()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.train_epoch()
    suite.check("resumed = uninterrupted, float32", apart(state(whole), state(second), start), ALLOWED["float32"])


def skipped(suite: Suite) -> None:
    """A gradient that is no number changes nothing and is counted, captured too."""
    given = settings(suite, precision="float32", **METHODS["sam"])
    trained = replicate(suite, given)
    for _ in range(2):
        trained.train_epoch()
    before = [t.detach().clone() for t in trained.model.parameters()]
    batch = next(trained.begin_epoch().batches)
    trained.take(batch._replace(x=batch.x * math.nan, watched=False))
    moved = max(float((a - b.detach()).abs().max()) for a, b in zip(before, trained.model.parameters(), strict=True))
    suite.check("a step without a gradient moves nothing", moved, 0.0)
    suite.check("and is counted: off by", abs(trained.optimiser.skipped - 1), 0.0)


def unread(suite: Suite) -> None:
    """No step waits for the device, eager ones neither: by the operations that one issues, and by CUDA's own word."""
    for name in ("sam", "fsam"):
        trained = replicate(suite, settings(suite, precision="bfloat16", capture="off", **METHODS[name]))
        first, second = list(trained.begin_epoch().batches)[:2]
        trained.take(first)
        with (operations := Operations()):
            trained.take(second._replace(watched=True))
        waiting = sum(count for what, count in operations.by_name.items() if what.startswith((*WAITING, *FETCHING)))
        suite.check(f"operations of an eager step that wait, {name}", waiting, 0.0, f"of {operations.total}")
    if suite.device.type != "cuda":
        return
    for name, capture in itertools.product(("sam", "fsam"), ("auto", "off")):
        trained = replicate(suite, settings(suite, precision="bfloat16", capture=capture, **METHODS[name]))
        for _ in range(2):
            trained.train_epoch()
        batches = list(trained.begin_epoch().batches)[:4]
        waits = 0.0
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in batches:
                trained.take(batch)
        except RuntimeError:
            waits = 1.0
        finally:
            torch.cuda.set_sync_debug_mode("default")
        suite.check(f"steps that wait, {name}, capture {capture}", waits, 0.0)
