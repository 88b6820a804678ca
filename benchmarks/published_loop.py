"""The loop that people write around davda54's SAM, with all that ours has of data and memory layout given to it.

The images lie in memory as uint8, a batch is augmented and normalised in tensor operations (by this project's own
`Augmentation`), the network and its images are channels last, precision is float32. What is left of the loop is what
its publishers have: a step of `benchmarks.davda54`, torch's cosine, torch's default base optimiser, BatchNorm switched
by walking over the modules. It keeps no diagnostics, no training accuracy and no checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks import davda54
from trainables.data.augment import Augmentation

if TYPE_CHECKING:
    # Not loaded where the loop trains: who writes it has them not.
    from trainables.data.splits import Splits
    from trainables.recipe import Recipe

#: Images of one evaluation batch, as ours has on a CPU.
EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Settings:
    """What is trained, under the names that `trainables.recipe.Recipe` has."""

    optimiser: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    label_smoothing: float
    augmentation: tuple[str, ...] = ()
    gamma: float | None = None
    eta: float | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """What the loop trains of a recipe.

        Raises:
            ValueError: it cannot train such a one.
        """
        lacking = {
            "optimiser": recipe.optimiser == "asam",
            "base": recipe.base != "sgd",
            "schedule": recipe.schedule != "cosine",
            "precision": recipe.precision not in ("float32", "float64"),
            "normalisation": recipe.normalisation != "data",
            "crop_padding": recipe.crop_padding not in (None, 4),
            "fisher": recipe.fisher == "per_example",
            **{
                key: bool(getattr(recipe, key))
                for key in ("nesterov", "label_noise", "m", "natural_gradient", "dropout")
            },
        }
        if any(lacking.values()):
            raise ValueError(f"the published loop lacks {', '.join(key for key, here in lacking.items() if here)}")
        settings: dict[str, Any] = {field.name: getattr(recipe, field.name) for field in fields(cls)}
        return cls(**settings)


#: Splits by name (`train`, `validation`, `test`): images (N, C, H, W) uint8, labels (N,) int64.
Data = Mapping[str, tuple[Tensor, Tensor]]


def held(splits: Splits) -> Data:
    """A trial's images as plain tensors."""
    found = {}
    for name in ("train", "validation", "test"):
        images = getattr(splits, name)
        (pixels,) = images.batches([torch.arange(len(images))])
        found[name] = (pixels, images.y)
    return found


class Loop:
    """One network in training.

    Args:
        network: the network as it starts; trained in place.
        settings: what to train.
        data: the images.
        mean: (C,) float32, in uint8 units, to normalise with.
        std: (C,) float32, likewise.
        seed: of the data order and the augmentation.
    """

    def __init__(
        self, network: nn.Module, settings: Settings, data: Data, mean: Tensor, std: Tensor, seed: int
    ) -> None:
        self.network = network.to(memory_format=torch.channels_last)
        self.settings, self.data, self.mean, self.std = settings, data, mean, std
        self.generator = torch.Generator().manual_seed(seed)
        self.augment = Augmentation(settings.augmentation)
        self.plain = Augmentation(())
        self.dtype = next(network.parameters()).dtype
        self.optimiser = self._optimiser()
        base = self.optimiser.base_optimizer if isinstance(self.optimiser, davda54.SAM) else self.optimiser
        self.scheduler = CosineAnnealingLR(base, T_max=settings.epochs)

    def _optimiser(self) -> Optimizer:
        s = self.settings
        parameters = self.network.parameters()
        base = {"lr": s.lr, "momentum": s.momentum, "weight_decay": s.weight_decay}
        if s.optimiser == "sgd":
            return torch.optim.SGD(parameters, **base)  # type: ignore[arg-type]
        assert s.gamma is not None
        if s.optimiser == "sam":
            return davda54.SAM(parameters, torch.optim.SGD, rho=s.gamma, **base)
        assert s.eta is not None
        return davda54.FisherSAM(parameters, torch.optim.SGD, rho=s.gamma, eta=s.eta, **base)

    def order(self) -> Tensor:
        """The order of an epoch's images, (N,) int64."""
        return torch.randperm(len(self.data["train"][1]), generator=self.generator)

    def train_epoch(self) -> float:
        """One epoch; returns the mean of its first passes' losses."""
        self.network.train()
        images, labels = self.data["train"]
        order = self.order()
        total = torch.zeros((), dtype=torch.float64)
        for batch in order.split(self.settings.batch_size):
            x, y = self._shown(images[batch], self.augment), labels[batch]
            if isinstance(self.optimiser, davda54.SAM):
                loss = davda54.sam_step(self.network, self.optimiser, self._loss, x, y)
            else:
                loss = davda54.plain_step(self.network, self.optimiser, self._loss, x, y)
            total += loss * len(y)
        self.scheduler.step()
        return float(total) / len(order)

    @torch.no_grad()
    def evaluate(self, split: str) -> tuple[float, float]:
        """Mean loss in nats, without smoothing, and accuracy in [0, 1] on a split."""
        self.network.eval()
        images, labels = self.data[split]
        loss = torch.zeros((), dtype=torch.float64)
        correct = torch.zeros((), dtype=torch.int64)
        for pixels, y in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
            logits = self.network(self._shown(pixels, self.plain))
            loss += F.cross_entropy(logits, y, reduction="sum")
            correct += (logits.argmax(1) == y).sum()
        return float(loss) / len(labels), int(correct) / len(labels)

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=self.settings.label_smoothing)

    def _shown(self, pixels: Tensor, augment: Augmentation) -> Tensor:
        draws = augment.draw(len(pixels), lambda operation: self.generator, *pixels.shape[2:])
        x = augment(pixels, self.mean, self.std, draws, self.dtype)
        return x.contiguous(memory_format=torch.channels_last)
