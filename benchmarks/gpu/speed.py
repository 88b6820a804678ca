"""The benchmark's rows that need a GPU, each beside its peer in the same run. Ratios are medians of the rounds' own."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import davda54
from benchmarks.gpu.suite import Suite, middle
from trainables.recipe import Recipe
from trainables.replicate import DTYPES, Replicate
from trainables.side_by_side import SideBySide

METHODS: dict[str, dict[str, Any]] = {
    "SGD": {"optimiser": "sgd"},
    "SAM": {"optimiser": "sam"},
    "Fisher SAM": {"optimiser": "fsam"},
}

#: Crop and flip of the paper, in bf16: what a user of a GPU runs.
FULL: dict[str, Any] = {
    "dataset": "cifar10",
    "augmentation": ["crop", "flip"],
    "precision": "bfloat16",
    "batch_size": 128,
}
SMALL: dict[str, Any] = {
    "dataset": "digits", "augmentation": ["crop"], "precision": "bfloat16", "batch_size": 32, "train_size": 320,
}  # fmt: skip

#: Side of the square matrices whose product says what the device can do.
MATRIX = 8192


def run(suite: Suite) -> None:
    """All rows, the surest first."""
    suite.attempt("row: matrix product", 5, matrix_product)
    suite.attempt("rows: steps of ResNet-20", 20, lambda s: steps(s, "resnet20"))
    suite.attempt("rows: epoch of ResNet-20", 30, epoch)
    suite.attempt("rows: eight seeds together", 30, together)
    if not suite.small:
        suite.attempt("rows: steps of WRN-28-10", 40, lambda s: steps(s, "wrn28_10"))
    suite.attempt("rows: augmentation", 10, augmentation)
    suite.attempt("row: kernels", 5, kernels)
    for name in ("overhead of a trial", "a study of 90 replicates"):
        suite.skip(f"row: {name}", "of Ray's: python -m benchmarks overhead ninety, where Ray is installed")


def given(suite: Suite, model: str, **more: Any) -> Recipe:
    """A recipe of the suite's scale."""
    base = {**SMALL, "model": "digits_cnn"} if suite.small else {**FULL, "model": model}
    return Recipe.of({**base, "epochs": 200, "device": str(suite.device), **more})


def stepper(suite: Suite, recipe: Recipe) -> Callable[[], object]:
    """The step of a recipe as it trains, captured, over and over on a few batches; what is called first records it."""
    replicate = Replicate(recipe, 0, suite.data_root, recorder=suite.recorder())
    batches = [b._replace(watched=False) for b in itertools.islice(replicate.begin_epoch().batches, 6)]
    for batch in batches:
        replicate.take(batch)
    refuse(replicate.take_remarks())
    endless = itertools.cycle(batches)
    return lambda: replicate.take(next(endless))


def refuse(remarks: list[str]) -> None:
    """Steps that were not recorded would be measured for what they are not."""
    if remarks:
        raise RuntimeError(remarks[0])


def matrix_product(suite: Suite) -> None:
    """The rate that the device reaches in bf16, which others are a share of."""
    n = 256 if suite.small else MATRIX
    a, b = (torch.randn(n, n, device=suite.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = suite.timed({"product": lambda: a @ b}, rounds=5, repeats=10)["product"]
    suite.row("bf16 matrix product", 2 * n**3 / median(seconds) / 1e12, "TFLOP/s", detail=f"{n} x {n}")


def steps(suite: Suite, model: str) -> None:
    """SAM beside SGD, Fisher SAM beside SAM and beside davda54's loop, and the share of the device's rate."""
    recipe = given(suite, model, optimiser="sam")
    runs = {name: stepper(suite, given(suite, model, **method)) for name, method in METHODS.items()}
    runs["davda54"] = peer(suite, recipe)[0]
    large = model == "wrn28_10"
    seconds = suite.timed(runs, rounds=3 if suite.small else 7, repeats=2 if suite.small or large else 20)
    goal = "<= 2.05" if large else "<= 2.10"
    suite.row(f"{recipe.model}: SAM step / SGD step", middle(seconds["SAM"], seconds["SGD"]), "ratio", goal)
    suite.row(
        f"{recipe.model}: Fisher SAM step / SAM step", middle(seconds["Fisher SAM"], seconds["SAM"]), "ratio", "<= 1.01"
    )
    suite.row(f"{recipe.model}: davda54's SAM step / our SAM step", middle(seconds["davda54"], seconds["SAM"]), "ratio")
    for name, values in seconds.items():
        suite.row(f"{recipe.model}: {name} step", 1e3 * median(values), "ms")
    network = Replicate(recipe, 0, suite.data_root)
    one = next(network.begin_epoch().batches).x[:1]
    work = 2 * 6 * macs(network.model, one) * recipe.batch_size
    rate = work / median(seconds["SAM"]) / 1e12
    suite.row(
        f"{recipe.model}: SAM's arithmetic", rate, "TFLOP/s", detail="6 operations a multiply-add, image and pass"
    )
    product = next((row.value for row in suite.rows if row.name == "bf16 matrix product"), None)
    if product:
        suite.row(
            f"{recipe.model}: SAM's arithmetic / matrix product", rate / product, "ratio", ">= 0.5" if large else ""
        )


def peer(suite: Suite, recipe: Recipe) -> tuple[Callable[[], object], Callable[[], object]]:
    """davda54's loop given our precision, memory layout and batches on the device: a step, and an epoch."""
    ours = Replicate(recipe.model_copy(update={"capture": "off"}), 0, suite.data_root)
    network = Autocast(ours.model, DTYPES.get(recipe.precision)).train()
    optimiser = davda54.SAM(
        network.parameters(), torch.optim.SGD, rho=float(recipe.gamma or 0), lr=0.05, momentum=0.9, weight_decay=5e-4
    )

    def loss_of(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)

    def whole() -> None:
        for batch in ours.begin_epoch().batches:
            davda54.sam_step(network, optimiser, loss_of, batch.x, batch.y)

    endless = itertools.cycle(list(itertools.islice(ours.begin_epoch().batches, 6)))

    def step() -> None:
        batch = next(endless)
        davda54.sam_step(network, optimiser, loss_of, batch.x, batch.y)

    return step, whole


class Autocast(nn.Module):
    """A network under autocast, its images in channels last, as `Replicate` calls it."""

    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            logits: Tensor = self.network(x.contiguous(memory_format=torch.channels_last))
        return logits.float()


def epoch(suite: Suite) -> None:
    """An epoch of SAM, with its augmentation, beside the same by davda54's loop; evaluation by itself."""
    recipe = given(suite, "resnet20", optimiser="sam")
    replicate = Replicate(recipe, 0, suite.data_root, recorder=suite.recorder())
    for _ in range(2):
        replicate.train_epoch()
    refuse(replicate.take_remarks())
    _, theirs = peer(suite, recipe)

    def ours() -> None:
        under_way = replicate.begin_epoch()
        for batch in under_way.batches:
            replicate.count(under_way, replicate.take(batch))

    seconds = suite.timed({"ours": ours, "davda54": theirs}, rounds=3, repeats=1)
    suite.row(f"{recipe.model}: SAM epoch", median(seconds["ours"]), "s", "<= 0.4")
    suite.row(f"{recipe.model}: davda54's epoch / ours", middle(seconds["davda54"], seconds["ours"]), "ratio", ">= 8")
    evaluation = suite.timed({"evaluate": lambda: replicate.evaluate("validation")}, rounds=5, repeats=1)["evaluate"]
    images = len(replicate.data.validation)
    suite.row(f"{recipe.model}: evaluation", images / median(evaluation), "images/s", detail=f"{images} images")
    suite.row(f"{recipe.model}: evaluation / SAM epoch", median(evaluation) / median(seconds["ours"]), "ratio")


def augmentation(suite: Suite) -> None:
    """Crop, flip, AutoAugment and Cutout of an epoch, as a share of ResNet-20's SAM epoch and of WRN-28-10's steps."""
    names = ["crop", "flip", "autoaugment", "cutout"]
    known = {row.name: row.value for row in suite.rows}
    for which, some in (("crop and flip", names[:2]), ("AutoAugment, crop, flip, Cutout", names)):
        recipe = given(suite, "resnet20", optimiser="sam", augmentation=some)
        replicate = Replicate(recipe, 0, suite.data_root, recorder=suite.recorder())

        def augment(replicate: Replicate = replicate) -> None:
            for _ in replicate.begin_epoch().batches:
                pass

        seconds = median(suite.timed({"augment": augment}, rounds=3, repeats=1)["augment"])
        suite.row(f"{which}: images of an epoch", len(replicate.data.train) / seconds, "images/s")
        if sam := known.get(f"{recipe.model}: SAM epoch"):
            suite.row(f"{which}, alone / {recipe.model}'s SAM epoch", seconds / sam, "ratio", "<= 0.15")
        if step := known.get("wrn28_10: SAM step"):
            steps = -(-len(replicate.data.train) // recipe.batch_size)
            share = seconds / (steps * step / 1e3)
            suite.row(f"{which}, alone / wrn28_10's SAM steps", share, "ratio", "<= 0.02")


def together(suite: Suite) -> None:
    """Eight seeds side by side beside the same in turn: the steps of half an epoch, both captured."""
    seeds = 2 if suite.small else 8
    recipe = given(suite, "resnet20", optimiser="sam", **({} if suite.small else {"train_size": 12_800}))
    recorder = suite.recorder()
    made = [Replicate(recipe, seed, suite.data_root, recorder=recorder) for seed in range(seeds)]
    group = SideBySide(made, "on", suite.recorder())
    turns, sides = [], []
    for i in range(5):
        turn, side = group.in_turn()[1], group.side_by_side()[1]
        if i > 1:  # the first two of each record
            turns.append(turn)
            sides.append(side)
    refuse([*group.take_remarks(), *(line for replicate in made for line in replicate.take_remarks())])
    suite.row(f"{seeds} seeds in turn / side by side", middle(turns, sides), "ratio", ">= 3")


def kernels(suite: Suite) -> None:
    """Where the time of ResNet-20's captured SAM step goes, in a few lines for the record."""
    if suite.device.type != "cuda":
        suite.skip("row: kernels", "a CPU has none")
        return
    from torch.profiler import ProfilerActivity, profile

    step = stepper(suite, given(suite, "resnet20", optimiser="sam"))
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(3):
            step()
        suite.wait()
    by_name: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in profiled.events() or []:
        if event.device_type != torch.autograd.DeviceType.CUDA:
            continue  # what the host calls
        by_name[event.name][0] += event.device_time_total / 3e3
        by_name[event.name][1] += 1 / 3
    for name, (milliseconds, count) in sorted(by_name.items(), key=lambda item: -item[1][0])[:8]:
        suite.row(f"kernel {name[:60]}", milliseconds, "ms a step", detail=f"{count:.0f} a step")
    suite.row("kernels of a captured SAM step", sum(count for _, count in by_name.values()), "launches")


def macs(network: nn.Module, x: Tensor) -> int:
    """Multiply-adds of a network's forward pass in convolutions and linear layers.

    Args:
        network: in evaluation mode afterwards.
        x: (N, channels, side, side).
    """
    found = 0

    def count(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal found
        weight = layer.weight
        assert isinstance(weight, Tensor)
        # An output value takes the inputs of its group: a weight's elements of one output.
        found += out.numel() * weight[0].numel()

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network.eval()(x)
    for hook in hooks:
        hook.remove()
    return found
