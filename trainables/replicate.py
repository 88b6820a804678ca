"""One replicate: a seed's model, optimiser and data order. Train an epoch, evaluate, save, load. No Ray in it:

    recipe = Recipe.of({"dataset": "digits", "optimiser": "fsam", "gamma": 0.1, "eta": 1.0, "epochs": 20})
    replicate = Replicate(recipe, seed=0)
    while replicate.epoch < recipe.epochs:
        print(replicate.train_epoch())
    print(replicate.evaluate("test"))

Saved after epoch 3 and loaded into a new object, it goes on bit for bit as if it had not been interrupted (on CPU, with
the same number of threads): the state is the tensors alone, since every draw is a function of the seed and the epoch
(`trainables.randomness`).
"""

from __future__ import annotations

import copy
import math
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.capture import Captured, Outputs, Recorder, recorder_of, unrecordable
from trainables.compiled import compiled
from trainables.data.ahead import augmented, batches_at_once
from trainables.data.augment import Augmentation, prepare
from trainables.data.images import Images
from trainables.data.label_noise import corrupt, mask_hash
from trainables.data.opened import opened
from trainables.data.splits import Splits
from trainables.data.streamed import Streamed
from trainables.devices import DeviceError, resolve_device, unshareable
from trainables.measures.subject import Split, Subject, batch_indices
from trainables.models import build
from trainables.models.pretrained import load_pretrained
from trainables.randomness import derive, global_stream, seed_global, stream
from trainables.recipe import Recipe
from trainables.schedule import learning_rate
from trainables.sharpness import SharpnessAware, per_example_squares

if TYPE_CHECKING:
    from trainables.data_parallel import Share

Row = dict[str, float | int | str | bool]

#: Images of one evaluation batch, by device type: large enough to keep the device busy, small enough for its caches.
EVALUATION_BATCH = {"cpu": 256, "cuda": 2048}

#: Of an epoch's steps, how many are watched by the diagnostics: enough to see a trend, too few to cost.
WATCHED_STEPS = 4

#: A training loss above this many times that of guessing (ln classes) has exploded, though it is still a number.
EXPLODED = 1e3

#: Examples whose gradients eq 11 holds at once.
PER_EXAMPLE_CHUNK = 32

#: From so many classes on, the share of images whose class is among the five likeliest is reported too (table 2).
TOP5_CLASSES = 100

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Evaluation:
    """Of one split: mean cross-entropy in nats without smoothing; accuracies in [0, 1]; each image's answer, (N,)."""

    loss: float
    accuracy: float
    top5_accuracy: float
    answers: Tensor = field(compare=False, repr=False)


class Batch(NamedTuple):
    """One step's input: its place in the epoch, whether the diagnostics watch it, images as the network takes them
    (N, channels, side, side), labels (N,)."""

    step: int
    watched: bool
    x: Tensor
    y: Tensor


@dataclass
class Epoch:
    """An epoch that is under way, between `Replicate.begin_epoch` and `end_epoch`.

    Attributes:
        batches: of its steps, to be taken in order.
        steps: their number. images: of them all.
        loss: float64, summed over the images so far; correct: int64; seen: what the diagnostics saw. On the device.
        seconds: that it has taken; who trains several at once says what each one's are.
    """

    lr: float
    batches: Iterator[Batch]
    steps: int
    images: int
    loss: Tensor
    correct: Tensor
    seen: list[Tensor] = field(default_factory=list)
    seconds: float | None = None
    begun: float = field(default_factory=time.perf_counter)


class Replicate:
    """One seed of a recipe, on one device, or this process's share of one that several processes train together.

    Args:
        recipe: what to train.
        seed: fixes the initial weights, data order, augmentation, dropout and label noise, whatever the optimiser.
        data_root: folder of the data set's files, for data sets that have files.
        share: this process's part of every batch. Every process then calls the same methods in the same order; what
            they return, and the state, are the same in all, to the last bit. Measures are taken in one of them.
        recorder: what records steps where `capture` allows it; the device's own if missing (none on a CPU).

    Attributes:
        capturing: whether its steps are recorded once and issued whole (`trainables.capture`).
        epoch: epochs trained so far.
        diverged: whether training has broken down (see `train_epoch`); it cannot go on then.

    Raises:
        trainables.data.DataError: the data set is missing or damaged.
        trainables.models.weights.WeightsError: the pretrained weights are missing, damaged or of another network.
        trainables.devices.DeviceError: the device is not there, or the recipe cannot be shared.
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        data_root: str | None = None,
        *,
        share: Share | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.recipe, self.seed = recipe, seed
        self.device = resolve_device(recipe.device)
        self.data: Splits = opened(recipe, data_root, self.device)
        self._mean, self._std = self.data.normalised_as(str(recipe.normalisation))
        self.epoch = 0
        self.diverged = False
        self.images_seen = 0
        self.gradient_evaluations = 0
        self.train_seconds = 0.0

        self._dtype = torch.float64 if recipe.precision == "float64" else torch.float32
        self._labels, self._validation_labels, self.label_hash, self._corrupted = self._noisy_labels()
        # Weights are drawn on the CPU, so that they are the same on every device.
        with global_stream(seed, "initial weights", 0, torch.device("cpu")):
            model = build(
                recipe.model,
                classes=self.data.classes,
                channels=self.data.train.channels,
                side=int(recipe.image_side or self.data.train.side),
                dropout=recipe.dropout,
            )
        if recipe.pretrained:
            load_pretrained(model, recipe.pretrained, model=recipe.model, classes=self.data.classes)
        # Channels last: convolutions read memory in order, on CPU (a quarter faster here) and on GPU.
        self.model: nn.Module = model.to(self.device, self._dtype).to(memory_format=torch.channels_last)
        #: What trains; with a share, what exchanges gradients.
        self._trained = self.model
        self.share = share
        if share is not None:
            if (reason := unshareable(recipe, share.processes, len(self.data.train))) is not None:
                raise DeviceError(reason)
            if not recipe.m:
                self._trained = share.wrap(self.model, self.device)
        recorder = recorder or recorder_of(self.device)
        why_not = _uncapturable(recipe, recorder, share)
        if why_not and recipe.capture == "on":
            raise DeviceError(f"capture: on, but {why_not}")
        self.capturing = recipe.capture != "off" and not why_not
        self._recorder = recorder if self.capturing else None
        if recipe.compile:
            self._trained = compiled(self._trained, self.device)
        self.optimiser = _optimiser(recipe, self.model, capturing=self.capturing and self.device.type == "cuda")
        # The learning rate where a recording reads it: written in place. CUDA's fused optimisers want float32, recorded
        # or not, so that one is the other to the bit.
        on_device = self.device.type == "cuda"
        self._lr: Tensor | None = None
        if on_device or self.capturing:
            self._lr = torch.zeros((), dtype=torch.float32 if on_device else torch.float64, device=self.device)
        #: Counts the states that were loaded: each has new tensors of the optimiser's.
        self.loaded = 0
        self.forget()
        self.scaler = torch.amp.GradScaler(self.device.type) if recipe.precision == "float16" else None
        self._crop = "resized_crop" in recipe.augmentation
        self._operations = [name for name in recipe.augmentation if name != "resized_crop"]
        knobs = {key: getattr(recipe, key) for key in ("crop_padding", "cutout_size", "autoaugment_policy")}
        self._augment = Augmentation(
            self._operations, side=recipe.image_side, **{k: v for k, v in knobs.items() if v is not None}
        )

    def train_epoch(self) -> Row:
        """Train one epoch and evaluate on the validation split.

        Returns:
            The epoch's row: losses in nats (the training loss with its label smoothing, averaged over the epoch's first
            passes; the validation loss without), accuracies in [0, 1], `lr`, the diagnostics of
            `trainables.sharpness.diagnostics`, cumulative `images_seen`, `gradient_evaluations` (minibatch gradients)
            and `train_seconds`, and `diverged`: the validation loss is not finite, the training loss is above
            `EXPLODED` times that of guessing, or more than half of the epoch's steps had to be skipped because a
            gradient was not finite (a float16 scaler that is still finding its scale does not count).
        """
        epoch = self.begin_epoch()
        # Draws of the layers' own are from here on this replicate's.
        with global_stream(self.seed, "dropout", self.epoch, self.device):
            for batch in epoch.batches:
                self.count(epoch, self.take(batch))
        return self.end_epoch(epoch)

    def begin_epoch(self) -> Epoch:
        """Set the next epoch's learning rate and order; its batches are augmented as they are asked for."""
        self._choose_arithmetic()
        recipe, data = self.recipe, self.data
        lr = learning_rate(recipe, self.epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = lr if self._lr is None else self._lr.fill_(lr)
        self.model.train()
        order = torch.randperm(len(data.train), generator=stream(self.seed, "data order", self.epoch))
        # Where the images are looked up: to fetch an index from a GPU is to wait for it.
        looked_up = torch.device("cpu") if isinstance(data.train, Streamed) else self.device
        batches = order.to(looked_up).split(recipe.batch_size)
        return Epoch(
            lr=lr,
            batches=self._batches(batches),
            steps=len(batches),
            images=len(order),
            loss=torch.zeros((), dtype=torch.float64, device=self.device),
            correct=torch.zeros((), dtype=torch.int64, device=self.device),
        )

    def _batches(self, index: Sequence[Tensor]) -> Iterator[Batch]:
        watched = {round(i * (len(index) - 1) / WATCHED_STEPS) for i in range(WATCHED_STEPS)}
        for i, (batch, x) in enumerate(zip(index, self._augmented(index), strict=True)):
            y = self._labels[batch.to(self.device)]
            if self.share is not None:
                y = y[self.share.begin(len(batch), self.recipe.m)]
            yield Batch(i, i in watched, x, y)

    def take(self, batch: Batch) -> Outputs:
        """One optimiser step. Returns, on the device, the first pass's summed loss and its number of right answers,
        and what the diagnostics saw; the next call may overwrite them (see `count`)."""
        if self._captured is None:
            return self.issue((batch.step, batch.watched), batch.x, batch.y)
        return self._captured((0, batch.watched), batch.x, batch.y)

    def count(self, epoch: Epoch, taken: Outputs) -> None:
        """Add what a step returned to its epoch."""
        loss, correct, *seen = taken
        epoch.loss += loss
        epoch.correct += correct
        for row in seen:
            epoch.seen.append(row.clone())

    def end_epoch(self, epoch: Epoch) -> Row:
        """Evaluate on the validation split; the epoch's row (see `train_epoch`)."""
        if self.share is not None:
            self.share.add([epoch.loss, epoch.correct])
            self.share.check_equal(self.model)
        for row in epoch.seen:
            self.optimiser.record.add(row)
        diagnostics = self.optimiser.diagnostics()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

        self.epoch += 1
        self.images_seen += epoch.images
        self.gradient_evaluations += epoch.steps * self.recipe.gradients_per_step
        self.train_seconds += time.perf_counter() - epoch.begun if epoch.seconds is None else epoch.seconds
        validation = self.evaluate("validation")
        train_loss = float(epoch.loss) / epoch.images
        scaling = self.scaler is not None and self.scaler.get_scale() > 1
        self.diverged = (
            not math.isfinite(validation.loss)
            or train_loss > EXPLODED * math.log(self.data.classes)
            or (diagnostics["skipped_steps"] > epoch.steps / 2 and not scaling)
        )
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "lr": epoch.lr,
            "train_loss": train_loss,
            "train_accuracy": int(epoch.correct) / epoch.images,
            "validation_loss": validation.loss,
            "validation_accuracy": validation.accuracy,
            **diagnostics,
            "images_seen": self.images_seen,
            "gradient_evaluations": self.gradient_evaluations,
            "train_seconds": self.train_seconds,
            "diverged": self.diverged,
        }

    def _augmented(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The epoch's batches as the network sees them; with a share, this process's part of each."""
        recipe, images, share = self.recipe, self.data.train, self.share
        # A stream for each operation: a recipe with one operation more keeps the draws of the others. On the CPU
        # whatever the device, and for whole batches whatever the share: all draw alike.
        streams: dict[str, torch.Generator] = {
            name: stream(self.seed, f"augmentation {name}", self.epoch) for name in self._operations
        }
        return augmented(
            images,
            batches,
            lambda n: self._augment.draw(n, streams.__getitem__, images.side, images.side),
            lambda pixels, draws: self._augment(pixels, self._mean, self._std, draws).to(self._dtype),
            chunk=batches_at_once(images, recipe.batch_size, recipe.image_side or images.side),
            crop_seed=derive(self.seed, "augmentation resized_crop", self.epoch) if self._crop else None,
            parts=None if share is None else [share.part_of(len(batch), recipe.m) for batch in batches],
        )

    def untrained_row(self) -> Row:
        """The row of a recipe of 0 epochs: the network as it starts, on the validation split."""
        validation = self.evaluate("validation")
        return {
            "seed": self.seed,
            "epoch": 0,
            "validation_loss": validation.loss,
            "validation_accuracy": validation.accuracy,
            "images_seen": 0,
            "gradient_evaluations": 0,
            "train_seconds": 0.0,
            "diverged": not math.isfinite(validation.loss),
        }

    @torch.inference_mode()
    def evaluate(self, split: str) -> Evaluation:
        """Loss and accuracy on `train`, `validation` or `test`, without augmentation.

        Noisy labels are used where the recipe says so; the test labels are always clean.
        """
        images = getattr(self.data, split)
        labels = {"train": self._labels, "validation": self._validation_labels}.get(split, images.y)
        self.model.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        among = torch.zeros((), dtype=torch.int64, device=self.device)
        answers = []
        index = torch.arange(len(labels), device=self.device).split(EVALUATION_BATCH[self.device.type])
        if self.share is not None:
            index = [own for batch in index if len(own := batch[self.share.part_of(len(batch))])]
        for x, batch in zip(self._shown(images, index), index, strict=True):
            logits, y = self._forward(x), labels[batch]
            loss += F.cross_entropy(logits, y, reduction="sum")
            answers.append(logits.argmax(1))
            among += (logits.topk(min(5, logits.shape[1])).indices == y[:, None]).sum()
        if self.share is None:
            answer = torch.cat(answers)
        else:
            answer = torch.zeros_like(labels)
            for batch, own in zip(index, answers, strict=True):
                answer[batch] = own
            self.share.add([loss, among, answer])
        n = len(labels)
        return Evaluation(float(loss) / n, int((answer == labels).sum()) / n, int(among) / n, answer)

    def final(self) -> Row:
        """What is measured once, when training is complete.

        Returns:
            `test_loss` and `test_accuracy`; with many classes `test_top5_accuracy`; with label noise, of the training
            labels that are wrong, the share that the network gives back (`memorised`) and the share for which it
            gives the true class all the same (`recovered`), both on images without augmentation.
        """
        test = self.evaluate("test")
        row: Row = {"test_loss": test.loss, "test_accuracy": test.accuracy}
        if self.data.classes >= TOP5_CLASSES:
            row["test_top5_accuracy"] = test.top5_accuracy
        wrong = self._corrupted
        if wrong is not None and bool(wrong.any()):
            answers = self.evaluate("train").answers[wrong]
            row["memorised"] = float((answers == self._labels[wrong]).double().mean())
            row["recovered"] = float((answers == self.data.train.y[wrong]).double().mean())
        return row

    def subject(self) -> Subject:
        """This replicate's network and data, as `trainables.measures` wants them."""
        return Subject(
            model=self.model,
            seed=self.seed,
            device=self.device,
            batches=self._measured_batches,
            loss=lambda logits, y: F.cross_entropy(logits, y, label_smoothing=self.recipe.label_smoothing),
            forward=self._forward,
        )

    def _measured_batches(self, split: Split, limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images without augmentation in batches of the recipe's size, as `Subject.batches` promises them."""
        images = getattr(self.data, split)
        labels = self._labels if split == "train" else images.y
        size = self.recipe.batch_size if split == "train" else EVALUATION_BATCH[self.device.type]
        index = [part.to(self.device) for part in batch_indices(len(images), size, limit, seed=self.seed, split=split)]
        for x, batch in zip(self._shown(images, index), index, strict=True):
            yield x, labels[batch]

    def _shown(self, images: Images, index: Sequence[Tensor]) -> Iterator[Tensor]:
        """Batches of images as the network sees them outside training."""
        self._choose_arithmetic()
        for pixels in images.batches(index):
            yield prepare(pixels, self._mean, self._std, self.recipe.image_side).to(self._dtype)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on as if nothing had happened: plain values, copied tensors."""
        state = {
            "recipe": self.recipe.essence(),
            "seed": self.seed,
            "diverged": self.diverged,
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "images_seen": self.images_seen,
            "gradient_evaluations": self.gradient_evaluations,
            "train_seconds": self.train_seconds,
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            ValueError: the state belongs to another seed or another recipe.
        """
        if state["seed"] != self.seed:
            raise ValueError(f"the state is of seed {state['seed']}, this replicate is seed {self.seed}")
        if state["recipe"] != self.recipe.essence():
            other = sorted(k for k, v in self.recipe.essence().items() if state["recipe"].get(k) != v)
            raise ValueError(f"the state is of another recipe; it differs in {', '.join(other) or 'more settings'}")
        state = copy.deepcopy(state)  # the optimiser would share its buffers with the state's other users
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        for key in ("epoch", "diverged", "images_seen", "gradient_evaluations", "train_seconds"):
            setattr(self, key, state[key])
        # The optimiser has new tensors, which no recording knows.
        self.loaded += 1
        self.forget()

    @property
    def steps(self) -> str:
        """How they are issued by now: see `Captured.how`; and whether `compiled`."""
        how = self._captured.how if self._captured else "eager"
        return how + (", compiled" if self.recipe.compile else "")

    @property
    def arithmetic(self) -> torch.dtype:
        """What the passes compute in: the recipe's precision."""
        return DTYPES.get(self.recipe.precision, self._dtype)

    @property
    def recorded(self) -> int:
        """Kinds of steps that are issued from a recording by now."""
        return self._captured.recorded if self._captured else 0

    def take_remarks(self) -> list[str]:
        """What a person should know, since the last call, of how its steps are taken."""
        return self._captured.take_remarks() if self._captured else []

    def issue(self, key: tuple[int, bool], x: Tensor, y: Tensor) -> Outputs:
        """`take`, one operation after the other: the step's place (of no account where it is recorded) and whether it
        is watched, its images and labels."""
        self.optimiser.record.take()  # of a step that could not be recorded
        step, self.optimiser.watch = key
        loss, correct = self._step(step, x, y)
        return loss, correct, *self.optimiser.record.take()

    def written(self) -> list[Tensor]:
        """The tensors that a step leaves changed, the same ones from the second step on."""
        return [*self.optimiser.written(), *self.model.buffers()]

    def forget(self) -> None:
        """Drop what is recorded, and its memory; it is recorded again when it is asked for."""
        self._captured: Captured | None = None
        if self._recorder is not None:
            # Weak: a cycle would keep a network that nobody uses any more on its device until the next collection.
            own = weakref.proxy(self)
            self._captured = Captured(
                lambda key, x, y: own.issue(key, x, y),
                lambda: own.written(),
                self._recorder,
                self.arithmetic,
            )

    def _step(self, step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One optimiser step. Returns the first pass's summed loss and its number of right answers, on the device.

        With a share, x and y are this process's, and so is what is returned.
        """
        share, m = self.share, self.recipe.m
        whole = None if m else share  # processes that share the one group that the batch is
        seen: list[tuple[Tensor, Tensor]] = []  # per group of m examples, from its first pass

        def closure_of(group: int, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
            first_pass = True

            def closure() -> Tensor:
                nonlocal first_pass
                self.optimiser.zero_grad()
                if self.recipe.dropout:
                    # By step and pass, so that the first pass has the masks that plain SGD has at this step. (With m
                    # the groups draw masks of other shapes: those are not paired.)
                    which = "first" if first_pass or self.recipe.same_dropout else "second"
                    seed_global(
                        self.seed, f"dropout, step {step}, group {group}, {which} pass", self.epoch, self.device
                    )
                logits = self._forward(x, self._trained)
                loss = F.cross_entropy(
                    logits, y, label_smoothing=self.recipe.label_smoothing, reduction="sum" if whole else "mean"
                )
                if whole:
                    # The mean of the processes' gradients is then that of the whole batch's mean loss.
                    loss = loss * (whole.processes / whole.images)
                (self.scaler.scale(loss) if self.scaler else loss).backward()
                if first_pass:
                    first_pass = False
                    hits = (logits.detach().argmax(1) == y).sum()
                    seen.append((loss.detach() * (whole.images / whole.processes if whole else len(y)), hits))
                return loss.detach()

            return closure

        def squares_of(x: Tensor, y: Tensor) -> Callable[[], list[Tensor]]:
            def squares() -> list[Tensor]:
                found = per_example_squares(
                    self.model,
                    lambda logits, label: F.cross_entropy(logits, label, label_smoothing=self.recipe.label_smoothing),
                    x,
                    y,
                    chunk=PER_EXAMPLE_CHUNK,
                )
                if whole:
                    # Squares of single images' gradients are linear in the images; those of means are not.
                    torch._foreach_mul_(found, len(y) / whole.images)
                    whole.add(found)
                return found

            return squares

        dealt = share if m else None
        first, statistics = 0, None
        if dealt and m:
            from trainables.data_parallel import Statistics

            first, statistics = dealt.part.start // m, Statistics(self.model)
        groups = list(zip(x.split(m or len(y)), y.split(m or len(y)), strict=True)) if m or not share else [(x, y)]
        if dealt and not len(y):
            groups = []
        self.optimiser.step(
            [closure_of(first + i, *group) for i, group in enumerate(groups)],
            weights=None if whole else [len(labels) for _, labels in groups],
            fisher=[squares_of(*group) for group in groups] if self.recipe.fisher == "per_example" else None,
            scaler=self.scaler,
            others=dealt,
        )
        if self.scaler:
            self.scaler.update()
        if dealt and statistics and m:
            statistics.merge(dealt, m)
        if not seen:
            return x.new_zeros(()), y.new_zeros(())
        losses, hits = zip(*seen, strict=True)
        return sum(losses), sum(hits)

    def _forward(self, x: Tensor, model: nn.Module | None = None) -> Tensor:
        """Logits in at least float32, the model (or what trains it) under the recipe's precision."""
        dtype = DTYPES.get(self.recipe.precision)
        with torch.autocast(self.device.type, dtype) if dtype else nullcontext():
            logits: Tensor = (self.model if model is None else model)(x.contiguous(memory_format=torch.channels_last))
        return logits if logits.dtype == torch.float64 else logits.float()

    def _choose_arithmetic(self) -> None:
        """float32 means float32: cuDNN would take TF32 for convolutions unasked."""
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def _noisy_labels(self) -> tuple[Tensor, Tensor, str, Tensor | None]:
        """Training and validation labels as this seed sees them, the hash of the training ones, and which are wrong."""
        recipe, train, validation = self.recipe, self.data.train.y, self.data.validation.y
        if not recipe.label_noise:
            return train, validation, mask_hash(train), None
        kind = str(recipe.label_noise_kind)

        def noisy(labels: Tensor, what: str) -> Tensor:
            return corrupt(
                labels, rate=recipe.label_noise, kind=kind, classes=self.data.classes, seed=derive(self.seed, what)
            )[0]

        clean, train = train, noisy(train, "label noise")
        if recipe.validation_labels == "noisy":
            validation = noisy(validation, "validation label noise")
        return train, validation, mask_hash(train), train != clean


def _uncapturable(recipe: Recipe, recorder: Recorder | None, share: Share | None) -> str | None:
    if recorder is None:
        return "a CPU's steps are not recorded"
    return "several processes share its batches" if share is not None else unrecordable(recipe)


def _optimiser(recipe: Recipe, model: nn.Module, *, capturing: bool) -> SharpnessAware:
    settings: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.base == "sgd":
        settings |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    else:
        settings |= {"betas": (recipe.beta1, recipe.beta2), "capturable": capturing}
    # Whether a step is skipped is then decided on the device, and the host runs ahead; on a CPU, too, it is faster.
    settings["fused"] = True
    base = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.base]
    metric = {"sgd": None, "asam": f"asam_{recipe.asam_convention}"}.get(recipe.optimiser, recipe.optimiser)
    if recipe.probes:
        settings["gamma"] = recipe.gamma
    return SharpnessAware(
        model.parameters(),
        base,
        metric=metric,
        eta=recipe.eta,
        natural_gradient=bool(recipe.natural_gradient),
        module=model,
        **settings,
    )
