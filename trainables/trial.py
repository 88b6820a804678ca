"""The Ray Tune trial: all seeds of one cell, trained together, one report an epoch.

The seeds of a cell share a trial so that a scheduler decides on the cell's mean: with a trial per seed the lucky seeds
survive and the mean of what is left is biased. Its epochs go into its reports, for their receiver to record; its
checkpoints and measures go through a `Keeper` that its caller hands in, so this package knows nothing of where a study
lives.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from ray import tune

from trainables.capture import recorder_of
from trainables.data import DataError
from trainables.devices import DeviceError, resolve_device, resolve_devices
from trainables.distributed import Remote, Team
from trainables.measures import check
from trainables.measures import run as run_measure
from trainables.memory import explained
from trainables.models.weights import WeightsError
from trainables.process import give_memory_back, prepare
from trainables.recipe import Recipe
from trainables.replicate import Replicate, Row
from trainables.side_by_side import SideBySide

#: Reported as the mean over the cell's seeds.
AVERAGED = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")


class KeepError(Exception):
    """What a `Keeper` raises when it cannot keep or fetch: one line. No further try of the trial would mend it."""


class Keeper(Protocol):
    """Where a trial's checkpoints and measures are kept. Everything may raise KeepError."""

    def load_checkpoint(self, trial: str) -> tuple[bytes | None, list[str]]:
        """The newest whole checkpoint of the trial, or None; and remarks, a line each, on what was passed over."""

    def save_checkpoint(self, trial: str, epoch: int, payload: bytes) -> None:
        """Keep a checkpoint, whole or not at all."""

    def measured(self, trial: str) -> set[str]:
        """The tags of the trial's measures that are kept."""

    def save_measure(self, trial: str, tag: str, rows: list[dict[str, Any]]) -> None:
        """Keep a measure's rows, whole or not at all."""


class Trial(tune.Trainable):
    """Trains the replicates of one cell.

    `config["trial"]` is the trial's id, and `jobs`, bound once for the whole run, has under it the `cell` (id), the
    `recipe` (settings), the `seeds`, its `name` in the log, `until`: the epoch at which the cell is already known to
    end, or None, and `measures`: what to measure on the trained networks, by tag. (Ray copies every configuration of a
    grid for every trial it makes: with the jobs in it, ten thousand trials would take it half an hour. A search, whose
    jobs are not known beforehand, has each one in its configuration, under `job`.) A job with `trained` is of a trial
    that is complete already and only lacks measures: it trains nothing.

    With several `processes` the replicates are trained in those (see `trainables.distributed`): each seed in one of
    them or, `data_parallel`, every seed in all. A report and a checkpoint are the same, and either way goes on from it.

    One `step` is one epoch of every seed. A report has the cell's means, a row per seed in `replicates`, in `rows`
    every epoch's row that this worker has not reported yet (the first report after a restore is of the epochs that the
    checkpoint holds, and trains none: whoever was told of them may be gone), the `step_seconds` that all of them
    trained, how their `steps` were issued, on CUDA the most `device_memory_bytes` that it has held for this cell,
    `remarks` for a person, and in its last one `outcome`: `complete` (with the test accuracy, measured here and nowhere
    else, and a line in `unmeasured` for each measure that failed), `stopped` (at `until`), `diverged`, `measured` (a
    `trained` job's), `failed` with its `reason`: data or weights that no second try would mend, or `unkept` with its
    `reason`: a keeper that cannot keep.
    """

    def setup(
        self,
        config: dict[str, Any],
        keeper: Keeper | None = None,
        jobs: Mapping[str, Mapping[str, Any]] | None = None,
        data_root: str | None = None,
        threads: int | None = None,
        processes: int = 1,
        data_parallel: bool = False,
        checkpoint_every: int | None = None,
        checkpoint_seconds: float = 60.0,
    ) -> None:
        assert keeper is not None  # the runner binds them
        prepare(threads)
        self.keeper, self.jobs, self.data_root = keeper, jobs or {}, data_root
        self.threads, self.processes, self.data_parallel = threads or 1, processes, data_parallel
        self.checkpoint_every, self.checkpoint_seconds = checkpoint_every, checkpoint_seconds
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next cell in this warm process: its imports, its device context and its data stay."""
        self._begin(new_config)
        return True

    #: Epochs that every seed has, of them those in a checkpoint, and rows of them that have been reported.
    epoch: int
    _kept: int
    _reported: int

    #: The last epoch's row of each seed, and every epoch's.
    rows: list[Row]
    history: list[Row]

    #: What trains the replicates where that is not this process.
    team: Team | None = None

    #: For the next report.
    remarks: list[str]
    device_name: str

    def step(self) -> dict[str, Any]:
        """One epoch of every seed."""
        if self.unfit is not None:
            return self._nothing(*self.unfit)
        try:
            with explained(self.recipe, len(self.replicates)):
                return self._step()
        except KeepError as error:
            return self._nothing("unkept", str(error))

    def _nothing(self, outcome: str, reason: str) -> dict[str, Any]:
        """A report without an epoch: there is no going on."""
        return {
            "epoch": 0,
            **dict.fromkeys(AVERAGED, math.nan),
            "replicates": [],
            "rows": [],
            "remarks": [],
            "device": "",
            "steps": "",
            "step_seconds": 0.0,
            "outcome": outcome,
            "reason": reason,
            "done": True,
        }

    def _step(self) -> dict[str, Any]:
        before = sum(replicate.train_seconds for replicate in self.replicates)
        if self._reported < len(self.history):
            # Where it goes on from may be news to whoever decides on it, and may be its end: before another epoch.
            pass
        elif self.epoch < self.target:
            # Until every seed has it, there is nothing that a checkpoint could hold.
            self._whole = False
            self.rows = self._train()
            self.epoch, self._whole = self.epoch + 1, True
            self.history += [{"cell": self.cell, **row} for row in self.rows]
        elif not self.rows:
            self.rows = self._each("untrained_row")
            self.history += [{"cell": self.cell, **row} for row in self.rows]
        outcome = self._outcome()
        report: dict[str, Any] = {
            "epoch": self.epoch,
            **{key: _mean([row[key] for row in self.rows]) for key in AVERAGED if key in self.rows[0]},
            "replicates": [
                {**row, "label_hash": r.label_hash} for row, r in zip(self.rows, self.replicates, strict=True)
            ],
            "rows": [] if self.trained else self.history[self._reported :],
            "remarks": self.remarks,
            "device": self.device_name,
            "steps": self._steps(),
            "step_seconds": sum(replicate.train_seconds for replicate in self.replicates) - before,
        }
        if self.replicates[0].device.type == "cuda":
            report["device_memory_bytes"] = torch.cuda.max_memory_allocated(self.replicates[0].device)
        if outcome:
            report |= {"outcome": outcome, "done": True}
        if outcome == "complete":
            for row, final in zip(report["replicates"], self._each("final"), strict=True):
                row |= final
        if not self.trained and outcome != "diverged":
            # What diverged is not worth going on from.
            self._keep(last=bool(outcome))
        self._tell(outcome)
        self._reported, self.remarks = len(self.history), []
        if outcome in ("complete", "measured"):
            # After the checkpoint: whoever is killed while measuring does not train again.
            report["unmeasured"] = self._measure()
        return report

    def _tell(self, outcome: str | None) -> None:
        """A line in the worker's log at the beginning, after every tenth of the epochs and at the end."""
        every = max(1, self.target // 10)
        if outcome or self.epoch % every == 0:
            mean = _mean([row["validation_accuracy"] for row in self.rows])
            said = f"epoch {self.epoch} of {self.target}, mean validation accuracy {100 * mean:.2f} %"
            self._log(said + (f"; {outcome}" if outcome else ""))

    def _log(self, said: str) -> None:
        # Ray keeps a worker's output as its log and shows it in the dashboard.
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.name}: {said}", flush=True)

    def cleanup(self) -> None:
        """Before this process ends: whoever stops a run politely loses no epoch."""
        try:
            gone = self.unfit is not None or (self.team is not None and self.team.closed)
            if not gone and self._whole and not self.trained and self.epoch > self._kept and not self.diverged:
                with suppress(KeepError):
                    self._save()
        finally:
            if self.team is not None:
                self.team.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self.trial: str = config["trial"]
        job = config.get("job") or self.jobs[self.trial]
        self.cell: str = job["cell"]
        #: For a person, in the log.
        self.name: str = job.get("name", self.trial)
        recipe = Recipe.of(job["recipe"])
        self.target: int = job["until"] or recipe.epochs
        self.measures: Mapping[str, tuple[str, Mapping[str, Any]]] = job.get("measures", {})
        self.trained = bool(job.get("trained"))
        self.recipe = recipe
        # Before the next cell's: two cells at once would need twice the device's memory.
        self.replicates: Sequence[Replicate | Remote] = []
        self.side_by_side: SideBySide | None = None
        give_memory_back()
        #: What is wrong with the data, the weights or the keeper: the outcome and its reason.
        self.unfit: tuple[str, str] | None = None
        self.epoch, self.rows, self._reported, self._kept = 0, [], 0, 0
        self._whole = True
        self.history, self.remarks = [], []
        self._checkpointed = time.monotonic()
        try:
            self.replicates = self._made(recipe, job["seeds"])
        except (DataError, DeviceError, WeightsError) as error:
            self.unfit = "failed", str(error)
            self._log(f"failed: {error}")
            return
        first = self.replicates[0]
        if isinstance(first, Remote):
            self.device_name = first.device_name
        else:
            self.device_name = torch.cuda.get_device_name(first.device) if first.device.type == "cuda" else "CPU"
        try:
            saved, self.remarks = self.keeper.load_checkpoint(self.trial)
        except KeepError as error:
            self.unfit = "unkept", str(error)
            return
        if saved is not None:
            self._restore(saved)
        seeds = ", ".join(map(str, job["seeds"]))
        begins = f"goes on after epoch {self.epoch}" if self.epoch else "begins"
        self._log(f"{begins}: cell {self.cell}, seeds {seeds}, to epoch {self.target}, on {self.device_name}")
        if self.trained and self.epoch < recipe.epochs:
            raise RuntimeError(f"trial {self.trial} has no whole checkpoint of its last epoch to measure")

    def _made(self, recipe: Recipe, seeds: Sequence[int]) -> Sequence[Replicate | Remote]:
        """The replicates, here or in a team; a team that fits stays from one cell to the next."""
        processes = self.processes if self.data_parallel else min(self.processes, len(seeds))
        if processes == 1:
            self._disband()
            with explained(recipe, len(seeds)):
                # Recordings that share a recorder share its memory: one for all seeds, and one for those side by side.
                device = resolve_device(recipe.device)
                recorder = recorder_of(device)
                made = [Replicate(recipe, seed, self.data_root, recorder=recorder) for seed in seeds]
                self.side_by_side = SideBySide(made, recipe.seeds_together, recorder_of(device))
                return made
        devices = resolve_devices(recipe.device, processes)
        if self.team is None or self.team.closed or self.team.devices != tuple(devices):
            self._disband()
            self.team = Team(devices, threads=self.threads, data_root=self.data_root, data_parallel=self.data_parallel)
        return self.team.build(recipe, seeds)

    def _train(self) -> list[Row]:
        """An epoch of every seed: their rows."""
        if self.side_by_side is None:
            rows: list[Row] = self._each("train_epoch")
        else:
            rows = self.side_by_side.train_epoch()
            self._remark(self.side_by_side.take_remarks())
        for replicate in self.replicates:
            self._remark(replicate.take_remarks())
        return rows

    def _remark(self, lines: Sequence[str]) -> None:
        self.remarks += [f"{self.name}: {line}" for line in lines]

    def _steps(self) -> str:
        """How the last epoch's steps were issued, for the tables."""
        return (self.side_by_side or self.replicates[0]).steps

    def _disband(self) -> None:
        if self.team is not None:
            self.team.close()
        self.team = None

    def _each(self, method: str) -> list[Any]:
        """What a method returns for each replicate: at the same time in a team, one after the other here."""
        if self.team is not None:
            return self.team.each(method)
        return [getattr(replicate, method)() for replicate in self.replicates]

    def _restore(self, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved), map_location=self.replicates[0].device, weights_only=True)
        for replicate, part in zip(self.replicates, state["replicates"], strict=True):
            replicate.load_state_dict(part)
        # A cell that ends at `until` may have been trained further, under another scheduler: its end is there.
        self.epoch, self._kept = min(state["epoch"], self.target), state["epoch"]
        self.history = [row for row in state["history"] if int(row["epoch"]) <= self.epoch]
        self.rows = [
            {key: value for key, value in row.items() if key != "cell"} for row in self.history[-len(self.replicates) :]
        ]

    @property
    def diverged(self) -> bool:
        """Whether a seed has: its cell goes no further."""
        return any(replicate.diverged for replicate in self.replicates)

    def _outcome(self) -> str | None:
        if self.diverged:
            return "diverged"
        if self.epoch >= self.recipe.epochs:
            return "measured" if self.trained else "complete"
        return "stopped" if self.epoch >= self.target else None

    def _keep(self, last: bool) -> None:
        """Write a checkpoint when one is due."""
        if self.checkpoint_every:
            due = self.epoch % self.checkpoint_every == 0
        else:
            due = time.monotonic() - self._checkpointed >= self.checkpoint_seconds
        if (due or last) and (self.epoch > self._kept or not self.epoch):
            self._save()

    def _save(self) -> None:
        state = {
            "epoch": self.epoch,
            "history": self.history,
            "replicates": self._each("state_dict"),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.keeper.save_checkpoint(self.trial, self.epoch, buffer.getvalue())
        self._kept, self._checkpointed = self.epoch, time.monotonic()

    def _measure(self) -> list[str]:
        """Measure what is asked and not kept yet, on every seed's network; a line for each measure that failed."""
        there = self.keeper.measured(self.trial) if self.measures else set()
        failed = []
        for tag, (name, settings) in self.measures.items():
            if tag in there:
                continue
            measure = check({name: settings})[name]
            try:
                rows = [
                    {"cell": self.cell, "seed": replicate.seed, **row}
                    for replicate in self.replicates
                    for row in (
                        replicate.measure(name, dict(settings))
                        if isinstance(replicate, Remote)
                        else run_measure(name, replicate.subject(), measure)
                    )
                ]
            except Exception as error:
                # What is trained is complete all the same; the next run measures again.
                reason = " ".join(str(error).split())[:300]
                failed.append(f"trial {self.trial}: {name} failed: {type(error).__name__}: {reason}")
            else:
                self.keeper.save_measure(self.trial, tag, rows)
        return failed


def _mean(values: list[Any]) -> float:
    return float(sum(values) / len(values))
