"""Run a study with a fault in it, run it again until it is done, and compare it with one that nothing disturbs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from cluster import Cluster
from faults.matrix import ASHA, EPOCHS, SCHEDULERS, STOPPING, STUDY, Case
from processes import ENVIRONMENT, wait_for

from study.asha import Asha
from study.plan import make_plan
from study.reader import StudyReader, open_study
from study.settings import Scheduler
from study.spec import Study
from study.store import StudyFolder

INJECT = Path(__file__).parent / "inject"

#: Runs of one command, the disturbed one included, after which it has to be done.
MOST_RUNS = 3

#: Seconds for one run of the command, of which some fifteen are its start, on a machine that has other things to do.
PATIENCE = 300

#: Columns that tell when and where, and not what.
ELSEWHERE = ["run", "train_seconds", "device", "steps"]

ROLES = {"driver": "study", "worker": "default_worker.py"}


@dataclass(frozen=True)
class Ran:
    """What happened to a study.

    Attributes:
        folder: the study's folder.
        codes: how the command ended, each time.
        output: what it printed on both channels, all runs together.
        reached: whether the fault's event came.
        second: exit code and errors of the second driver, where there was one.
        epochs: how often each (gamma, seed, epoch) was begun.
        seconds: from the first start to the last end.
    """

    folder: str
    codes: tuple[int, ...]
    output: str
    reached: bool
    second: tuple[int, str] | None
    epochs: Counter[tuple[float, int, int]]
    seconds: float

    @property
    def twice(self) -> int:
        """Epochs that were begun again, each seed's counted."""
        return sum(self.epochs.values()) - len(self.epochs)


@dataclass(frozen=True)
class Tables:
    """A finished study, without what tells when and where."""

    replicates: pd.DataFrame
    history: pd.DataFrame
    decisions: pd.DataFrame

    @classmethod
    def of(cls, folder: str) -> Tables:
        reader = open_study(folder)
        history = reader.history().drop(columns=["train_seconds"])
        return cls(
            reader.replicates().drop(columns=ELSEWHERE).sort_values(["cell", "seed"]).reset_index(drop=True),
            history.sort_values(["cell", "seed", "epoch"]).reset_index(drop=True),
            reader.decisions().drop(columns=["run"]).sort_values("sequence").reset_index(drop=True),
        )


@dataclass(frozen=True)
class Calm:
    """What nothing disturbs: the study with every cell in full, and what a scheduler makes of it."""

    full: Tables

    def expected(self, scheduler: str, order: Sequence[tuple[str, str, int]]) -> Tables:
        """The tables that a study has to have.

        Under ASHA they follow from the full curves and the order of the reports: a trial whose worker dies may be
        overtaken by the next one.

        Args:
            order: (trial, cell, rung) of each decision.

        Raises:
            AssertionError: a cell went on that had to be stopped, or a rung of a cell was not decided.
        """
        if scheduler == "fifo":
            return self.full
        asha, decisions = Asha(EPOCHS, **ASHA), []
        history = self.full.history
        values = history.groupby(["cell", "epoch"])["validation_accuracy"].agg(lambda v: sum(v) / len(v))
        ends = dict.fromkeys(history["cell"], EPOCHS)
        for sequence, (trial, cell, rung) in enumerate(order, 1):
            assert rung in asha.rungs, f"cell {cell} was decided at {rung}, which is no rung"
            assert rung <= ends[cell], f"cell {cell} was decided at {rung}, after its end"
            decision = asha.report(cell, rung, values[cell, rung])
            assert decision is not None, f"cell {cell} was decided twice at {rung}"
            decisions.append({"trial": trial, **vars(decision), "sequence": sequence})
            if decision.stop:
                ends[cell] = rung
        due = {(cell, rung) for cell, end in ends.items() for rung in asha.rungs if rung <= end}
        assert due == {(cell, rung) for _, cell, rung in order}, "a rung was not decided"
        return Tables(_stopped(self.full, ends, scheduler), _until(history, ends), pd.DataFrame(decisions))


def _until(history: pd.DataFrame, ends: Mapping[str, int]) -> pd.DataFrame:
    return history[history["epoch"] <= history["cell"].map(ends)].reset_index(drop=True)


def _stopped(full: Tables, ends: Mapping[str, int], scheduler: str) -> pd.DataFrame:
    """The ends of the replicates where each cell ends at its epoch of `ends`."""
    key = ["cell", "seed"]
    last = full.history[full.history["epoch"] == full.history["cell"].map(ends)].set_index(key)
    frame = full.replicates.astype(dict.fromkeys(("reason", "scheduler"), object)).set_index(key)
    early = [index for index in frame.index if ends[index[0]] < EPOCHS]
    name = str(Scheduler(name=scheduler, **ASHA))
    for column in (column for column in last if column in frame and column not in ("trial", "arm", "lr")):
        frame.loc[early, column] = last.loc[early, column]
    for column in (column for column in frame if column.startswith("test_")):
        frame.loc[early, column] = float("nan")
    for index in early:
        frame.loc[index, ["status", "epoch", "scheduler"]] = ["stopped", ends[index[0]], name]
        frame.loc[index, "reason"] = f"stopped by {name} at epoch {ends[index[0]]}"
    return frame.reset_index()


def undisturbed(scheduler: str, folder: Path) -> Ran:
    """The same study in one go.

    Raises:
        RuntimeError: it did not go as the matrix takes for granted.
    """
    ran = disturb(Case("nothing", "", scheduler), folder)
    decided = [row["sequence"] for row in StudyFolder(ran.folder).decisions_rows() if row["stop"]]
    if ran.codes != (0,) or ran.twice or decided != ([STOPPING] if scheduler == "asha" else []):
        raise RuntimeError(f"{scheduler}: {ran.codes}, {ran.twice} epochs twice, stops {decided}: {ran.output[-2000:]}")
    return ran


def disturb(case: Case, folder: Path) -> Ran:
    """Run the study with the case's fault, and the same command again until it is done.

    Every process of it that is still there at the end is killed, by its id.
    """
    control, storage = folder / "control", folder / "results"
    control.mkdir(parents=True)
    file = folder / "disturbed.yaml"
    file.write_text(STUDY.replace("SCHEDULER", SCHEDULERS[case.scheduler]))
    environment = environment_of(control, storage / "disturbed", case)
    command = [sys.executable, "-m", "study", "run", str(file), "--storage", str(storage), "--no-report"]
    codes: list[int] = []
    second: tuple[int, str] | None = None
    began = time.monotonic()
    with ExitStack() as stack:
        stack.callback(end_all, control)
        if case.outside == "raylet":
            cluster = stack.enter_context(Cluster(0, 1, **environment))
            command += ["--address", cluster.address]
        else:
            cluster = None
            command += ["--cpus", "1"]
        output = (folder / "output").open("w+")
        stack.enter_context(output)
        while len(codes) < MOST_RUNS and 0 not in codes:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**ENVIRONMENT, **environment},
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if case.background else signal.SIG_DFL),
            )
            deadline = time.monotonic() + PATIENCE
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{case.name}: no end after {PATIENCE} s; {codes} {_tail(output)}")
                if (control / "held").exists() and not (control / "release").exists():
                    if case.outside == "raylet":
                        _lose_the_node(cluster, control)
                    else:
                        second = _second(command, environment)
                    (control / "release").touch()
                time.sleep(0.05)
            codes.append(process.returncode)
        seconds = time.monotonic() - began
        output.seek(0)
        printed = output.read()
    return Ran(
        folder=str(storage / "disturbed"),
        codes=tuple(codes),
        output=printed,
        reached=(control / "fault.reached").exists(),
        second=second,
        epochs=_epochs(control),
        seconds=seconds,
    )


def environment_of(control: Path, study: Path, case: Case, roles: Mapping[str, str] = ROLES) -> dict[str, str]:
    """What brings a case's fault into a process and all that it starts."""
    faults = [{"name": "fault", "actions": list(case.actions), **case.place}] if case.place else []
    plan = {
        "control": str(control),
        "study": str(study),
        "roles": dict(roles),
        "settings": case.settings,
        "faults": faults,
    }
    path = [str(INJECT), *filter(None, [ENVIRONMENT.get("PYTHONPATH")])]
    return {"STUDY_FAULTS": json.dumps(plan), "PYTHONPATH": os.pathsep.join(path)}


def _lose_the_node(cluster: Cluster, control: Path) -> None:
    """Kill the raylet of the only node that can train, and bring another."""
    cluster.nodes[-1].kill_raylet()
    (control / "release").touch()
    cluster.add(1)


def _second(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """The same command beside the first one."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**ENVIRONMENT, **environment},
        check=False,
    )
    return done.returncode, done.stderr


def _epochs(control: Path) -> Counter[tuple[float, int, int]]:
    log = control / "epochs"
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return Counter((float(gamma), int(seed), int(epoch)) for gamma, seed, epoch, _ in lines)


def processes_of(control: Path) -> list[int]:
    """Every living process that was started with this control folder in its environment."""
    mark, found = os.fsencode(json.dumps(str(control))), []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in environ.read_bytes():
                found.append(int(environ.parent.name))
    return found


def end_all(control: Path) -> None:
    """Kill what a killed driver has left."""
    for pid in processes_of(control):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not processes_of(control), seconds=30)


def _tail(output: Any) -> str:
    output.seek(0)
    return str(output.read()[-2000:])


# Judging


@dataclass(frozen=True)
class Judged:
    """A disturbed study beside the undisturbed one.

    Attributes:
        differences: each table that is not the same, in words; empty if all are.
        lost: (cell, seed, epoch) that the undisturbed history has and this one has not.
        added: the other way round, those that are there twice included.
        contradicting: recorded rows of one (trial, seed, epoch) that differ in more than their timings.
    """

    differences: tuple[str, ...]
    lost: int
    added: int
    contradicting: int


def judge(case: Case, ran: Ran, calm: Calm) -> Judged:
    """Compare the finished tables bit for bit with what they have to be."""
    tables, differences = Tables.of(ran.folder), []
    order = list(tables.decisions[["trial", "cell", "rung"]].itertuples(index=False, name=None))
    try:
        expected = calm.expected(case.scheduler, order)
    except AssertionError as error:
        expected = calm.full
        differences.append(f"decisions: {error}")
    for name in ("replicates", "history", "decisions"):
        try:
            found, wanted = getattr(tables, name), getattr(expected, name)
            columns = list(found) if name != "replicates" else _known(found, wanted)
            pd.testing.assert_frame_equal(found[columns], wanted[columns], check_exact=True, check_dtype=False)
        except (AssertionError, KeyError) as error:
            differences.append(f"{name}: {' '.join(str(error).split())}")
    key = ["cell", "seed", "epoch"]
    here, there = (Counter(map(tuple, t.history[key].to_numpy().tolist())) for t in (tables, expected))
    raw = pd.DataFrame(StudyFolder(ran.folder).rows("history"))
    distinct = raw.drop(columns=["train_seconds"]).drop_duplicates()
    return Judged(
        tuple(differences),
        lost=(there - here).total(),
        added=(here - there).total(),
        contradicting=int(distinct.duplicated(["trial", "seed", "epoch"]).sum()),
    )


def _known(found: pd.DataFrame, wanted: pd.DataFrame) -> list[str]:
    """Every column that has something in either: one that is null throughout is there or not."""
    return [c for c in dict.fromkeys([*found, *wanted]) if any(c in t and t[c].notna().any() for t in (found, wanted))]


def problems(case: Case, ran: Ran, calm: Calm) -> list[str]:
    """What is not as it has to be, a line each: the same assertion for every case."""
    found = [] if ran.reached else ["the fault did not happen"]
    if ran.codes != case.codes:
        found.append(f"the command ended with {ran.codes}, not with {case.codes}")
    found += [f"nobody said {words!r}" for words in case.says if words not in ran.output]
    if "Traceback" in ran.output:
        found.append("a traceback was printed")
    if ran.second is not None:
        found += _intruder(case, *ran.second)
    if ran.codes[-1] != 0:
        return found
    judged = judge(case, ran, calm)
    found += judged.differences
    for what in ("lost", "added", "contradicting"):
        if count := getattr(judged, what):
            found.append(f"{count} epochs are {what}")
    if ran.twice > case.bound:
        found.append(f"{ran.twice} epochs were trained twice, {case.bound} may be")
    reader = open_study(ran.folder)
    left = make_plan(Study.of(reader.spec), reader.folder).todo
    found += [f"trial {trial.id} is not done" for trial in left]
    found += [f"trial {trial} has no whole last checkpoint" for trial in _without_checkpoint(reader)]
    if reader.runs()[-1]["interrupted"]:
        found.append("the last run is on record as interrupted")
    return found


def _intruder(case: Case, code: int, errors: str) -> list[str]:
    """A second driver is refused by one line; before the first one holds the folder, it comes first."""
    if case.phase == "planning":
        return [] if code == 0 else [f"the driver that came first ended with {code}: {errors}"]
    if code != 2 or "is being run by" not in errors or len(errors.splitlines()) != 1:
        return [f"the second driver ended with {code}: {errors}"]
    return []


def _without_checkpoint(reader: StudyReader) -> list[str]:
    frame = reader.replicates()
    loaded = {trial: reader.folder.load_checkpoint(trial) for trial in frame[frame["status"] == "complete"]["trial"]}
    return [trial for trial, (payload, damaged) in loaded.items() if payload is None or damaged]
