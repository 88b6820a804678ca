"""The fault matrix: every fault at every phase of a study's life, under every scheduler.

A case says at which event the fault comes (see `inject/sitecustomize.py`), how the disturbed command has to end, and
how many epochs may be trained twice for it. Where a fault and a phase do not meet there is a reason instead.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

#: One trial at a time: the order of ASHA's reports is the same in every run. By their hashes the trials come in the
#: order gamma 0.2, 0.05, 5; under ASHA the first two are complete and the third is stopped at epoch 3 by the sixth
#: decision, between two checkpoints.
EPOCHS, EVERY, GAMMAS, SEEDS = 6, 2, (0.08, 0.2, 3.0), (0, 1)

STUDY = f"""\
name: disturbed
question: Does a fault change a study's results?
recipe: {{dataset: synthetic, model: mlp, optimiser: sam, batch_size: 32, epochs: {EPOCHS}, lr: 0.005, device: cpu}}
grid: {{gamma: {list(GAMMAS)}}}
seeds: {list(SEEDS)}
checkpoints: {{every: {EVERY}}}
resources: {{cpu: 1, gpu: 0}}
scheduler: SCHEDULER
"""

ASHA = {"grace_period": 1, "reduction_factor": 3}

SCHEDULERS = {"fifo": "fifo", "asha": f"{{name: asha, {', '.join(f'{k}: {v}' for k, v in ASHA.items())}}}"}

#: ASHA's decision that stops the third trial.
STOPPING = 6

FAULTS = (
    "worker SIGKILL", "driver SIGKILL", "driver SIGTERM", "raylet killed", "checkpoint damaged, then killed",
    "disk full for the worker", "disk full for the driver", "second driver",
)  # fmt: skip

PHASES = (
    "planning", "before the first report", "mid-epoch", "checkpoint", "final write", "decision to stop", "merging",
)  # fmt: skip

#: Every report is written at once and two pieces are merged at once: so small a study would merge at its end only.
#: The fourth piece of the history is merged with the third and with the first two, which are one already.
MERGING = {"study.records": {"FAN": 2, "ENDS_EVERY": 0.0, "EPOCHS_EVERY": 0.0}}

#: Every report is written at once, so that the driver writes while the worker trains the next epoch.
WRITING = {"study.records": {"ENDS_EVERY": 0.0, "EPOCHS_EVERY": 0.0}}

#: Seed and size of the selection: of the seeds tried, one with four faults, four phases and both schedulers.
SELECTION, SELECTED = 1, 4

#: Where each phase is: in the second trial that is trained, unless only one trial has it.
PLACES: dict[str, dict[str, Any]] = {
    # The plan is in the folder, the study is not.
    "planning": {"role": "driver", "event": "rename", "path": r"/study\.json$"},
    "before the first report": {"role": "worker", "event": "trained", "epoch": 1, "seed": SEEDS[-1]},
    # The epoch before it is in no checkpoint either.
    "mid-epoch": {"role": "worker", "event": "step", "epoch": 4, "seed": SEEDS[-1], "step": 6, "nth": 2},
    "checkpoint": {"role": "worker", "event": "rename", "path": r"/checkpoints/000004\.pt$", "nth": 2},
    "final write": {"role": "driver", "event": "rename", "path": r"/ends-00000001-00000001\.parquet$"},
    "decision to stop": {"role": "driver", "event": "renamed", "path": rf"/decisions-{STOPPING:08d}-\d+\.parquet$"},
    # The merged piece is there, and of those that it spans the first is gone.
    "merging": {"role": "driver", "event": "delete", "path": r"/history-00000003-00000003\.parquet$"},
}

#: A worker's last checkpoint of a trial.
LAST_CHECKPOINT = {"role": "worker", "event": "rename", "path": rf"/checkpoints/{EPOCHS:06d}\.pt$", "nth": 2}

_NO_WORKER = "no worker has been started"
_NO_CHECKPOINT = "the trial has no checkpoint yet"


@dataclass(frozen=True)
class Case:
    """One fault at one phase under one scheduler.

    Attributes:
        place: role, event and where, for the plan of faults.
        actions: what happens there.
        codes: how the disturbed command, and then the same command again, have to end.
        outside: what the test does while the process is held: `raylet` or `second driver`.
        says: words that the disturbed command must print.
        killed: trials whose epochs since their last checkpoint may be lost.
        damaged: checkpoints that the fault spoils.
        nonsense: why fault and phase do not meet; nothing else counts then.
    """

    fault: str
    phase: str
    scheduler: str
    place: dict[str, Any] = field(default_factory=dict)
    actions: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0,)
    outside: str | None = None
    says: tuple[str, ...] = ()
    killed: int = 1
    damaged: int = 0
    nonsense: str | None = None

    @property
    def name(self) -> str:
        return f"{self.fault}, {self.phase}, {self.scheduler}"

    @property
    def bound(self) -> int:
        """Epochs, each seed's counted, that may be trained twice: those since the newest whole checkpoint."""
        return self.killed * EVERY * (1 + self.damaged) * len(SEEDS)

    @property
    def background(self) -> bool:
        """Whether it is started as a shell script starts what ends in `&`: with SIGINT ignored."""
        return self.scheduler == "fifo"

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Of the product's modules, so that the phase comes about."""
        if self.phase == "merging":
            return MERGING
        return WRITING if (self.fault, self.phase) == ("disk full for the driver", "mid-epoch") else {}


def cases() -> list[Case]:
    """The whole matrix, row by row; what makes no sense included."""
    return [_case(fault, phase, scheduler) for fault in FAULTS for phase in PHASES for scheduler in SCHEDULERS]


def sensible() -> list[Case]:
    """The cases that can be run."""
    return [case for case in cases() if case.nonsense is None]


def selection() -> list[Case]:
    """A random choice of them, the same every time, for those who have minutes and not hours.

    Without those that need a second node: its start times out now and then on two busy cores.
    """
    return random.Random(SELECTION).sample([case for case in sensible() if case.outside != "raylet"], SELECTED)


def _case(fault: str, phase: str, scheduler: str) -> Case:
    reason = _nonsense(fault, phase, scheduler)
    if reason:
        return Case(fault, phase, scheduler, nonsense=reason)
    place = _place(fault, phase)
    here = place["role"]
    killed = 0 if phase == "planning" else 1
    common = {"fault": fault, "phase": phase, "scheduler": scheduler, "place": place, "killed": killed}
    if fault == "worker SIGKILL":
        return Case(**common, actions=("kill",) if here == "worker" else ("kill worker",))
    if fault == "driver SIGKILL":
        # In the middle of an epoch the worker goes on until Ray ends it; at the other points it does not outlive them.
        after = () if phase == "mid-epoch" else ("hang",)
        return Case(**common, actions=("kill",) if here == "driver" else ("kill driver", *after), codes=(-9, 0))
    if fault == "driver SIGTERM":
        actions = ("terminate",) if here == "driver" else ("terminate driver",)
        if phase == "decision to stop":
            # It is acted on all the same, and was the last thing to do.
            return Case(**common, actions=actions)
        return Case(**common, actions=actions, codes=(130, 0), says=("interrupted",))
    if fault == "raylet killed":
        return Case(**common, actions=("hold",), outside="raylet")
    if fault == "checkpoint damaged, then killed":
        damage = "truncate" if scheduler == "fifo" else "flip"
        codes = (0,) if here == "worker" else (-9, 0)
        return Case(**common, actions=(damage, "kill"), codes=codes, damaged=1, says=("damaged",))
    if fault == "second driver":
        return Case(**{**common, "killed": 0}, actions=("hold",), outside="second driver")
    return Case(**common, actions=("full",), codes=(2, 0), says=("No space left on device",))


def _place(fault: str, phase: str) -> dict[str, Any]:
    place = PLACES[phase]
    if phase == "planning" and fault == "second driver":
        # Before the first one holds the folder.
        place = {"role": "driver", "event": "planned"}
    elif phase == "final write" and fault in ("worker SIGKILL", "disk full for the worker"):
        place = LAST_CHECKPOINT
    elif fault == "disk full for the driver":
        place = {
            **place,
            "role": "driver",
            **{
                # The run's own record is what it writes before a trial is started.
                "before the first report": {"event": "rename", "path": r"/runs/[^/]+\.json$"},
                "mid-epoch": {"event": "rename", "path": r"/history-00000003-00000003\.parquet$", "nth": 1},
                # What cannot be written is not decided.
                "decision to stop": {"event": "rename"},
                "merging": {"event": "rename", "path": r"/history-00000001-00000004\.parquet$"},
            }.get(phase, {}),
        }
    if fault.startswith("disk full"):
        # A full disk is met while the temporary file is written, and stays full.
        place = {**place, "event": "open", "path": place["path"].removesuffix("$") + r"\.[^/]*tmp$", "lasting": True}
    return place


def _nonsense(fault: str, phase: str, scheduler: str) -> str | None:
    if phase == "decision to stop" and scheduler == "fifo":
        return "fifo decides nothing"
    if fault == "worker SIGKILL" and phase == "planning":
        return _NO_WORKER
    if fault == "checkpoint damaged, then killed" and phase in ("planning", "before the first report"):
        return _NO_CHECKPOINT
    if fault == "disk full for the worker":
        if phase == "planning":
            return _NO_WORKER
        if phase not in ("checkpoint", "final write"):
            return "the worker writes nothing then"
    if fault == "disk full for the driver" and phase == "checkpoint":
        return "the driver writes no checkpoint"
    return None
