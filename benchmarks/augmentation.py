"""Images augmented per second and core: our batches beside torchvision's transforms on PIL images, one at a time.

Both do the same: crop with a border of 4, flip, AutoAugment (the CIFAR-10 policy), normalisation and a Cutout of 16,
each image with draws of its own, from uint8 pixels in memory to a float32 batch. torchvision's is the pipeline that
people put into a `Dataset` (`torchvision.datasets.CIFAR10` makes a PIL image of every item), with DeVries & Taylor's
Cutout; the worker processes that usually run it add cores, and are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms

from benchmarks.measure import Summary, interleaved, ratio
from benchmarks.record import Result
from trainables.data.augment import Augmentation
from trainables.data.autoaugment import autoaugment
from trainables.data.autoaugment.bank import bank
from trainables.data.autoaugment.choices import Choices, draw, settings_of

POLICY = "cifar10"
PADDING = 4
HOLE = 16

#: CIFAR-10's, in uint8 units.
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


@dataclass(frozen=True)
class Plan:
    """`rounds` samples of each contender, of `repeats` batches of `batch` images of `side` x `side` pixels."""

    batch: int
    side: int
    rounds: int
    repeats: int


FULL = Plan(batch=128, side=32, rounds=25, repeats=4)
QUICK = Plan(batch=128, side=32, rounds=5, repeats=1)


def run(quick: bool) -> Result:
    """Measure, on one thread."""
    return measure(QUICK if quick else FULL)


def measure(plan: Plan) -> Result:
    """Time every contender of a plan."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleaved(contenders(plan), rounds=plan.rounds, repeats=plan.repeats, warm_up=2)
    finally:
        torch.set_num_threads(threads)
    return Result(
        settings={
            **asdict(plan),
            "channels": 3,
            "policy": POLICY,
            "crop_padding": PADDING,
            "cutout_size": HOLE,
            "threads": 1,
            "device": "cpu",
        },
        ratios={
            "whole pipeline: torchvision on PIL / ours": ratio(seconds["torchvision on PIL"], seconds["ours"]),
            "AutoAugment alone: torchvision on PIL / ours": ratio(
                seconds["torchvision on PIL, AutoAugment alone"], seconds["ours, AutoAugment alone"]
            ),
            "whole pipeline, ours: with AutoAugment / without": ratio(
                seconds["ours"], seconds["ours, without AutoAugment"]
            ),
            "AutoAugment alone, ours: unsorted, as on a GPU / sorted": ratio(
                seconds["ours, AutoAugment alone, unsorted"], seconds["ours, AutoAugment alone"]
            ),
        },
        samples={
            name: Summary.of([plan.batch / value for value in values], "images/s") for name, values in seconds.items()
        },
        notes=(
            "One thread, and no worker processes for either. The whole pipeline: crop, flip, AutoAugment, "
            "normalisation, Cutout, from uint8 pixels to a float32 batch; torchvision's includes making the PIL image "
            "and stacking.",
            "AutoAugment alone: torchvision's starts from PIL images and ends with them.",
            "Unsorted is the way that a GPU takes (every kind of operation on all images, so that the host never "
            "waits), here on the CPU.",
            "Images are smooth random colours with a little noise. Ratios are medians of each round's own ratio.",
        ),
    )


def contenders(plan: Plan) -> dict[str, Callable[[], object]]:
    """Each way to augment one batch, by name."""
    x = images(plan)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)  # torchvision draws from the global generator
    arrays = list(x.permute(0, 2, 3, 1).contiguous().numpy())
    pictures = [Image.fromarray(array) for array in arrays]
    policy = transforms.AutoAugment(transforms.AutoAugmentPolicy(POLICY))
    one = torchvision_pipeline(plan.side)

    def ours(*names: str) -> Tensor:
        augment = Augmentation(names, crop_padding=PADDING, cutout_size=HOLE, autoaugment_policy=POLICY)
        return augment(x, mean, std, augment.draw(len(x), lambda name: generator, plan.side, plan.side))

    return {
        "ours": partial(ours, "crop", "flip", "autoaugment", "cutout"),
        "torchvision on PIL": lambda: torch.stack([one(array) for array in arrays]),
        "ours, without AutoAugment": partial(ours, "crop", "flip", "cutout"),
        "ours, AutoAugment alone": lambda: autoaugment(x, draw(len(x), POLICY, generator)),
        "ours, AutoAugment alone, unsorted": lambda: unsorted(x, draw(len(x), POLICY, generator)),
        "torchvision on PIL, AutoAugment alone": lambda: [policy(picture) for picture in pictures],
    }


def images(plan: Plan) -> Tensor:
    """(N, 3, side, side) uint8: smooth colours and a little noise, so that a histogram is neither flat nor empty."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(plan.batch, 3, 5, 5, generator=generator)
    smooth = F.interpolate(coarse, size=(plan.side, plan.side), mode="bilinear")
    noise = torch.randn(smooth.shape, generator=generator)
    return (40 + 170 * smooth + 6 * noise).clamp(0, 255).to(torch.uint8)


def torchvision_pipeline(side: int) -> Callable[[np.ndarray], Tensor]:
    """From (H, W, 3) uint8 to (3, H, W) float32."""
    return transforms.Compose(
        [
            Image.fromarray,
            transforms.RandomCrop(side, padding=PADDING),
            transforms.RandomHorizontalFlip(),
            transforms.AutoAugment(transforms.AutoAugmentPolicy(POLICY)),
            transforms.ToTensor(),
            transforms.Normalize([v / 255 for v in MEAN], [v / 255 for v in STD]),
            _cutout_one,
        ]
    )


def unsorted(x: Tensor, choices: Choices) -> Tensor:
    """AutoAugment in the way that is taken off the CPU, whatever x's device."""
    settings, number = settings_of(choices.policy, x.device)
    ready = bank(settings, *x.shape[1:], 0, x.device)
    for step in range(2):
        which = number[step, choices.sub_policy, choices.negative[step].long()] * choices.applied[step]
        x = ready.apply(x, which, sort=False)
    return x


def _cutout_one(x: Tensor) -> Tensor:
    """DeVries & Taylor's Cutout of one image: a square around a pixel, clipped at the border."""
    _, height, width = x.shape
    row, column = int(torch.randint(height, ())), int(torch.randint(width, ()))
    top, left = max(row - HOLE // 2, 0), max(column - HOLE // 2, 0)
    x[:, top : row + HOLE // 2, left : column + HOLE // 2] = 0
    return x
