"""Recipe: every knob of one trial. Its fields are the YAML keys, Ray's config keys and the result columns.

Defaults are those of section 5.1 of Kim et al. (ICML 2022): SGD with momentum 0.9, weight decay 5e-4, learning
rate 0.1 on a cosine, batch 128, 200 epochs, label smoothing 0.1. Augmentation has no silent default: a study
names it.

A field that the chosen parts do not use is `None` in the recipe and missing in the tables; giving it a value is an
error, because a knob that does nothing must not look like one that does. This file imports neither torch nor Ray, so
that a study of ten thousand cells is checked in a second.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trainables.data import DATASETS, DatasetFacts
from trainables.models import MODELS
from trainables.problems import Problem, RecipeError, explain, nearest

#: Raised whenever the same recipe would train to other numbers than before: results made under another number
#: have other ids, so they are never mixed with new ones.
SEMANTICS = 2

#: Fields that say where a recipe runs and not what it is: outside its identity.
EXECUTION = frozenset({"device", "loader_workers", "capture", "seeds_together", "compile"})

#: Fields that say where a file lies. What is in it belongs to the identity (the data's fingerprint, the weights' mark);
#: where it lies does not, so a study may move to another machine.
PLACES = frozenset({"folder", "pretrained"})

_AUGMENTATIONS = ("resized_crop", "crop", "flip", "autoaugment", "cutout")

#: Pixels of an image's side where the data set has images of any size: what ImageNet networks are made for.
USUAL_SIDE = 224

PROBING = ("sam", "asam", "fsam")


class Recipe(BaseModel):
    """The typed settings of one trial, frozen. Build it from plain settings with `Recipe.of`.

    Units: `lr` per step, `epochs` passes over the training split, sizes in images, `label_noise` the fraction of
    training labels that are corrupted, `crop_padding` and `cutout_size` in pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # What is learned from
    dataset: str = "digits"
    folder: str | None = Field(None, min_length=1, description="of an image_folder, in the data root")
    image_side: int | None = Field(None, ge=1, description="pixels of an image's side as the network sees it")
    train_size: int | None = Field(None, ge=2, description="images kept of the training split; all if missing")
    validation_size: int | None = Field(None, ge=1, description="images held out of the training set")
    test_size: int | None = Field(None, ge=1, description="test images that are measured; all if missing")
    split_seed: int = Field(0, ge=0, lt=2**63, description="one split for the study, whatever the seed")
    label_noise: float = Field(0.0, ge=0, le=1)
    label_noise_kind: Literal["symmetric", "uniform"] | None = None
    validation_labels: Literal["clean", "noisy"] | None = None
    augmentation: tuple[Literal["resized_crop", "crop", "flip", "autoaugment", "cutout"], ...] = Field((), strict=False)
    crop_padding: int | None = Field(None, ge=1)
    autoaugment_policy: Literal["cifar10", "imagenet", "svhn"] | None = None
    cutout_size: int | None = Field(None, ge=1)

    normalisation: Literal["data", "imagenet", "half"] | None = Field(
        None, description="the training split's statistics, ImageNet's, or mean and deviation 0.5"
    )

    # What learns
    model: str = "digits_cnn"
    pretrained: str | None = Field(None, min_length=1, description="a file of weights, or hub:NAME; none if missing")
    dropout: float | None = Field(None, ge=0, lt=1)

    # How the neighbourhood is probed
    optimiser: Literal["sgd", "sam", "asam", "fsam"] = "fsam"
    gamma: float | None = Field(None, gt=0, description="radius of the neighbourhood, eq 1")
    eta: float | None = Field(None, ge=0, description="anti-regulariser of the Fisher (section 5); ASAM's offset")
    asam_convention: Literal["official", "eq5"] | None = None
    fisher: Literal["gradient_magnitude", "per_example"] | None = None
    m: int | None = Field(None, ge=1, description="examples that share a probe; the whole batch if missing")
    natural_gradient: bool | None = Field(None, description="footnote 3")
    same_dropout: bool | None = Field(None, description="the second pass repeats the first one's dropout masks")

    # How a step is taken
    base: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float | None = Field(None, gt=0)
    momentum: float | None = Field(None, ge=0, lt=1)
    nesterov: bool | None = None
    beta1: float | None = Field(None, ge=0, lt=1)
    beta2: float | None = Field(None, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    epochs: int = Field(200, ge=0, description="0 measures the network as it starts")
    batch_size: int = Field(128, ge=1)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"

    # Where it runs
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    loader_workers: int | None = Field(None, ge=0, description="processes that decode images of a set that streams")
    capture: Literal["auto", "on", "off"] = Field("auto", description="record a step once and issue it whole")
    seeds_together: Literal["auto", "on", "off"] = Field("auto", description="a trial's seeds side by side on a GPU")
    compile: bool = Field(False, description="train the network as torch.compile makes it; other last bits")

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, name: str) -> str:
        return _known("data set", name, DATASETS)

    @field_validator("model")
    @classmethod
    def _known_model(cls, name: str) -> str:
        return _known("model", name, MODELS)

    @field_validator("*")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError("must be a finite number")
            return value + 0.0  # -0.0 is 0.0 under one identity
        return value

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        """Refuse what the chosen parts do not use, and write down the default of what they do."""
        problems = []
        # One recipe, one spelling: these would train to the same numbers under another identity.
        self.__dict__["augmentation"] = tuple(sorted(self.augmentation, key=_AUGMENTATIONS.index))
        if self.m == self.batch_size and self.probes:
            self.__dict__["m"] = None
        facts = DATASETS[self.dataset]
        if self.test_size == facts.test:
            self.__dict__["test_size"] = None
        for key, rule in _RULES.items():
            value = getattr(self, key)
            if rule.used(self):
                if value is None:
                    # The model is frozen for its users; this is still its construction.
                    self.__dict__[key] = rule.default(self)
            elif value is not None:
                problems.append(Problem(key, rule.refusal(self), unused=True))
        if not problems:
            problems += _conflicts(self)
        if not problems and facts.train and self.train_size == facts.train - (self.validation_size or 0):
            self.__dict__["train_size"] = None
        if problems:
            raise RecipeError(problems)
        return self

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Recipe:
        """Check plain settings, e.g. a YAML mapping.

        Raises:
            RecipeError: with every problem found, each naming its key and the nearest right name.
        """
        odd = [key for key in settings if not isinstance(key, str)]
        if odd:
            raise RecipeError([Problem("", f"the key {key!r} is not text") for key in odd])
        try:
            return cls(**settings)
        except ValidationError as error:
            problems, bad = explain(error, cls.model_fields)
            # Judge the rest of the keys too, unless the choice on which their use depends is itself wrong.
            if bad and not bad & _CHOICES:
                try:
                    cls(**{k: v for k, v in settings.items() if k not in bad})
                except ValidationError as rest:
                    problems += explain(rest, cls.model_fields)[0]
            raise RecipeError(problems) from None

    def settings(self) -> dict[str, Any]:
        """The fields this recipe uses, resolved, as JSON values: equal recipes have equal settings."""
        return {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in self.__dict__.items()
            if v is not None and k not in EXECUTION
        }

    def columns(self) -> dict[str, Any]:
        """All fields as flat table values; what this recipe does not use is None."""
        return {k: "+".join(v) if isinstance(v, tuple) else v for k, v in self.__dict__.items()}

    def essence(self) -> dict[str, Any]:
        """`settings` without the places of files: two recipes with one essence train to the same numbers."""
        return {k: v for k, v in self.settings().items() if k not in PLACES}

    def identity(self, data_fingerprint: str, weights_mark: str | None = None) -> str:
        """12 hexadecimal digits that change whenever recipe, data or first weights would give other numbers.

        On one kind of device: a GPU rounds in its own way, and draws the masks of dropout from a generator of its own.
        (First weights, order, augmentation and label noise are drawn on the CPU for both.) Each replicate's row says
        where it was trained.
        """
        return digest(SEMANTICS, self.essence(), data_fingerprint, weights_mark)

    @property
    def probes(self) -> bool:
        """Whether a step takes a second gradient at the worst point of a neighbourhood."""
        return self.optimiser in PROBING

    def train_images(self, facts: DatasetFacts) -> int:
        """Images of the training split, of a data set whose counts are known."""
        assert facts.train is not None
        assert self.validation_size is not None
        rest = facts.train - self.validation_size
        return min(self.train_size or rest, rest)

    def steps_per_epoch(self, facts: DatasetFacts) -> int:
        """Optimiser steps of one epoch; the short last batch counts."""
        return -(-self.train_images(facts) // self.batch_size)

    def misfits(self, facts: DatasetFacts) -> list[Problem]:
        """What does not go with a data set whose counts are known: sizes that it cannot give, a batch of one image."""
        assert facts.train is not None
        found = []
        room = facts.train - (self.validation_size or 0)
        if room < 2:
            found.append(
                Problem("validation_size", f"{self.validation_size} leaves no training images of {facts.train}")
            )
        elif self.train_size and self.train_size > room:
            found.append(
                Problem(
                    "train_size",
                    f"{self.train_size} asked, {room} there ({facts.train} less {self.validation_size} for validation)",
                )
            )
        if self.test_size and facts.test is not None and self.test_size > facts.test:
            found.append(Problem("test_size", f"{self.test_size} asked, {facts.test} there"))
        return found or self._lonely_image(facts)

    def _lonely_image(self, facts: DatasetFacts) -> list[Problem]:
        """Refuse now, not after an epoch, a batch of one image to a BatchNorm that would see one value a channel."""
        assert self.image_side is not None
        if MODELS[self.model].least_batch(self.image_side) < 2 or not self.epochs:
            return []
        images = self.train_images(facts)
        last = images % self.batch_size or self.batch_size
        key, sizes = "batch_size", {last}
        if self.m:
            key, sizes = "m", {n % self.m or self.m for n in (last, self.batch_size)}
        if 1 in sizes:
            message = f"leaves a group of one image (of {images}), which {self.model}'s BatchNorm cannot normalise"
            return [Problem(key, message)]
        return []

    @property
    def gradients_per_step(self) -> int:
        """Minibatch gradients that one step costs: 1 for SGD, 2 with a probe, 1 more for eq 11's squares."""
        return 1 + self.probes + (self.fisher == "per_example")


def digest(*parts: Any) -> str:
    """12 hexadecimal digits of the SHA-256 of the parts' canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class _Rule:
    """When a field is used, its default there, and what to say where it is not."""

    used: Callable[[Recipe], bool]
    default: Callable[[Recipe], Any]
    refusal: Callable[[Recipe], str]


def _by_optimiser(r: Recipe) -> str:
    used = [k for k in ("gamma", "eta", "asam_convention", "fisher", "m") if _RULES[k].used(r)]
    return f"optimiser {r.optimiser} does not use it" + (f" (it uses {', '.join(used)})" if used else "")


def _uses_eta(r: Recipe) -> bool:
    return r.optimiser == "fsam" or (r.optimiser == "asam" and r.asam_convention != "eq5") or bool(r.natural_gradient)


def _refuse_eta(r: Recipe) -> str:
    if r.optimiser == "asam":
        return "asam_convention eq5 does not use it; asam_convention official does"
    return _by_optimiser(r)


# The order matters where one default decides on the next field's use.
_RULES: dict[str, _Rule] = {
    "folder": _Rule(
        lambda r: r.dataset == "image_folder", lambda r: None, lambda r: "only data set image_folder has a folder"
    ),
    "image_side": _Rule(lambda r: True, lambda r: DATASETS[r.dataset].side or USUAL_SIDE, lambda r: ""),
    "validation_size": _Rule(lambda r: True, lambda r: DATASETS[r.dataset].validation, lambda r: ""),
    "label_noise_kind": _Rule(
        lambda r: r.label_noise > 0, lambda r: "symmetric", lambda r: "label_noise is 0, so it is not used"
    ),
    "validation_labels": _Rule(
        lambda r: r.label_noise > 0, lambda r: "clean", lambda r: "label_noise is 0, so it is not used"
    ),
    "crop_padding": _Rule(
        lambda r: "crop" in r.augmentation,
        lambda r: 4,
        lambda r: "augmentation has no crop, so it is not used",
    ),
    "cutout_size": _Rule(
        lambda r: "cutout" in r.augmentation,
        # DeVries & Taylor 2017: 16 of CIFAR-10's 32 pixels, 8 on CIFAR-100.
        lambda r: 8 if r.dataset == "cifar100" else max(1, _pixels(r) // 2),
        lambda r: "augmentation has no cutout, so it is not used",
    ),
    "autoaugment_policy": _Rule(
        lambda r: "autoaugment" in r.augmentation,
        # Cubuk et al. 2019 found one for each; sets of any size are photographs, as ImageNet's.
        lambda r: "cifar10" if DATASETS[r.dataset].side else "imagenet",
        lambda r: "augmentation has no autoaugment, so it is not used",
    ),
    "normalisation": _Rule(
        lambda r: True,
        # Published weights expect their own; ImageNet streams, so its statistics are taken as published.
        lambda r: (
            "imagenet" if DATASETS[r.dataset].streams else MODELS[r.model].normalisation if r.pretrained else "data"
        ),
        lambda r: "",
    ),
    "dropout": _Rule(lambda r: MODELS[r.model].dropout, lambda r: 0.0, lambda r: f"model {r.model} has no dropout"),
    "gamma": _Rule(lambda r: r.probes, lambda r: {"sam": 0.05, "asam": 0.5, "fsam": 0.1}[r.optimiser], _by_optimiser),
    "asam_convention": _Rule(lambda r: r.optimiser == "asam", lambda r: "official", _by_optimiser),
    "natural_gradient": _Rule(
        lambda r: r.optimiser != "asam",
        lambda r: False,
        lambda r: "the Fisher of footnote 3 does not go with ASAM's metric; use sgd, sam or fsam",
    ),
    "eta": _Rule(_uses_eta, lambda r: 0.01 if r.optimiser == "asam" else 1.0, _refuse_eta),
    "fisher": _Rule(
        lambda r: r.optimiser == "fsam" or bool(r.natural_gradient),
        lambda r: "gradient_magnitude",
        _by_optimiser,
    ),
    # None is a value of m: the whole batch, as in the paper.
    "m": _Rule(lambda r: r.probes, lambda r: None, _by_optimiser),
    "same_dropout": _Rule(
        lambda r: r.probes and bool(r.dropout),
        lambda r: False,
        lambda r: "there is no second pass or no dropout, so it is not used",
    ),
    "lr": _Rule(lambda r: True, lambda r: 0.1 if r.base == "sgd" else 1e-3, lambda r: ""),
    "momentum": _Rule(lambda r: r.base == "sgd", lambda r: 0.9, lambda r: f"base {r.base} uses beta1"),
    "nesterov": _Rule(lambda r: r.base == "sgd", lambda r: False, lambda r: f"base {r.base} has no Nesterov momentum"),
    "beta1": _Rule(lambda r: r.base != "sgd", lambda r: 0.9, lambda r: "base sgd uses momentum"),
    "beta2": _Rule(lambda r: r.base != "sgd", lambda r: 0.999, lambda r: "base sgd uses momentum"),
}

_CHOICES = {
    "dataset", "model", "optimiser", "base", "asam_convention", "natural_gradient", "augmentation", "label_noise",
    "dropout", "batch_size", "validation_size", "train_size", "momentum", "image_side", "folder",
}  # fmt: skip


def _pixels(r: Recipe) -> int:
    """Side of the images while they are augmented: a set of one size is resized last."""
    assert r.image_side is not None
    return DATASETS[r.dataset].side or r.image_side


def _conflicts(r: Recipe) -> list[Problem]:
    """Settings that are each right and do not go together."""
    found = []
    facts = DATASETS[r.dataset]
    assert r.image_side is not None
    if r.dataset == "image_folder" and r.folder is None:
        found.append(Problem("folder", "is missing: which folder of class folders, in the data root"))
    if r.validation_size is None:
        found.append(Problem("validation_size", f"is missing: how many of {r.dataset}'s training images to hold out"))
    if facts.streams and r.normalisation == "data":
        found.append(Problem("normalisation", f"{r.dataset} streams from its files; say imagenet or half"))
    if r.m and r.m > r.batch_size:
        found.append(Problem("m", f"{r.m} is more than batch_size {r.batch_size}"))
    if r.nesterov and not r.momentum:
        found.append(Problem("nesterov", "needs momentum above 0"))
    if len(set(r.augmentation)) < len(r.augmentation):
        found.append(Problem("augmentation", "names an operation twice"))
    if r.normalisation == "imagenet" and facts.channels != 3:
        found.append(Problem("normalisation", f"imagenet is for three channels; {r.dataset} has {facts.channels}"))
    if "autoaugment" in r.augmentation and facts.channels not in (1, 3):
        found.append(Problem("augmentation", f"autoaugment is for grey or colour images; {r.dataset} has neither"))
    for key, pixels in (("cutout_size", r.cutout_size), ("crop_padding", r.crop_padding)):
        if pixels and pixels > _pixels(r):
            found.append(Problem(key, f"{pixels} pixels on images of {_pixels(r)} x {_pixels(r)}"))
    refusal = MODELS[r.model].refusal(r.image_side)
    if r.compile and r.dropout:
        found.append(Problem("compile", "draws dropout's masks in its own way; leave it out or set dropout to 0"))
    if refusal:
        key = "model" if r.image_side == facts.side else "image_side"
        found.append(Problem(key, f"{r.model} {refusal}"))
    if not found and facts.train is not None:
        found += r.misfits(facts)
    return found


def _known(noun: str, name: str, table: Mapping[str, Any]) -> str:
    if name not in table:
        raise ValueError(f"unknown {noun} {name!r}{nearest(name, table)} (known: {', '.join(sorted(table))})")
    return name
