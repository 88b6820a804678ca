"""Whatever is killed, lost, refused or damaged on the way, a study ends in the tables of one that was left in peace.

The driver's own parts (plan, ledger, recorder, records), the worker's and the folder are real. Ray's loop, the training
and the disk are made here, so that an example is a matter of milliseconds.
"""

import json
from contextlib import suppress
from hashlib import sha256
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from memory_folder import MOMENTS, Crash, MemoryFolder

from study import records
from study.asha import Asha
from study.board import Board
from study.budget import Meter, Usage
from study.failures import Failures
from study.keeper import FolderKeeper
from study.metrics import NoMetrics
from study.plan import as_decision, make_plan
from study.reader import StudyReader
from study.recorder import Recorder
from study.runner import JobMaker
from study.scheduling import make_scheduler
from study.spec import Study
from study.store import StoreError
from study.trouble import Trouble
from trainables import trial as trial_module
from trainables.trial import Trial

STUDY = Study.of(
    {
        "name": "n",
        "question": "Does it end as it would have?",
        "recipe": {"dataset": "synthetic", "model": "mlp", "epochs": 5, "batch_size": 32, "train_size": 96},
        "arms": {"fsam": {"optimiser": "fsam"}, "sam": {"optimiser": "sam"}},
        "grid": {"gamma": [0.05, 0.1, 0.2], "eta": [0.1, 1.0]},
        "seeds": [0, 1],
        "scheduler": {"name": "asha", "grace_period": 1, "reduction_factor": 2},
    }
)
SCHEDULER = str(STUDY.scheduler)


class Training:
    """A replicate whose every epoch follows from the one before: one that was gone back to, or left out, would show."""

    salt = 0
    capturing, steps = False, "eager"

    def __init__(self, recipe, seed, data_root, recorder=None):
        settings = json.dumps(recipe.settings(), sort_keys=True)
        self.seed, self.epoch, self.weights = seed, 0, f"{self.salt} {seed} {settings}"
        self.device, self.label_hash, self.diverged, self.train_seconds = (
            torch.device("cpu"),
            f"labels {seed}",
            False,
            0.0,
        )

    def take_remarks(self):
        return []

    def train_epoch(self):
        self.weights = sha256(self.weights.encode()).hexdigest()
        draw = int(self.weights[:8], 16)
        self.epoch, self.train_seconds, self.diverged = self.epoch + 1, self.train_seconds + 1, draw % 29 == 0
        # Few values: ties at a cutoff are where an order shows.
        accuracy = draw % 16 / 16
        return {
            "seed": self.seed, "epoch": self.epoch, "train_loss": draw / 7, "train_accuracy": accuracy,
            "validation_loss": draw / 3, "validation_accuracy": accuracy, "train_seconds": self.train_seconds,
            "diverged": self.diverged,
        }  # fmt: skip

    def final(self):
        return {"test_accuracy": int(self.weights[-8:], 16) / 16**8}

    def state_dict(self):
        return {"seed": self.seed, "epoch": self.epoch, "weights": self.weights, "train_seconds": self.train_seconds}

    def load_state_dict(self, state):
        assert state["seed"] == self.seed
        self.epoch, self.weights, self.train_seconds = state["epoch"], state["weights"], state["train_seconds"]


class Driver:
    """A run without Ray: what its loop does with each report, in the order in which they are asked for."""

    runs = 0

    def __init__(self, folder, checkpoint_every):
        Driver.runs += 1
        folder.tidy()
        self.folder, self.plan, self.checkpoint_every = folder, make_plan(STUDY, folder), checkpoint_every
        folder.save_study(STUDY.model_dump(mode="json"), "", self.plan.rows())
        self.recording = folder.recording(f"run{Driver.runs:08d}")
        folder.save_run(self.recording.run, {"run": self.recording.run, "started": f"{Driver.runs:08d}"})
        board, trouble = Board.of(self.plan), Trouble()
        lease, display = SimpleNamespace(check=lambda: None), SimpleNamespace(update=lambda: None)
        failures = Failures(0)
        meter = Meter({"cpu": 1}, Usage(), STUDY.budget, STUDY.price)
        self.recorder = Recorder(
            self.plan, folder, self.recording, board, lease, failures, display, trouble, meter, NoMetrics()
        )
        self.scheduler = make_scheduler(self.plan, folder, self.recording, trouble)
        self.recorder.stops = self.scheduler.stops
        make_job = JobMaker({"gpu": 0.0}, {})
        self.jobs = {trial.id: make_job(trial) for trial in self.plan.todo}
        self.open = {trial.id: SimpleNamespace(config={"trial": trial.id}, error_file=None) for trial in self.plan.todo}
        self.workers = {}

    def worker(self, name):
        """The worker that holds a trial; a new one goes on from the newest whole checkpoint."""
        if name not in self.workers:
            worker = Trial.__new__(Trial)
            keeper = FolderKeeper(self.folder, keep=2)
            worker.setup({"trial": name}, keeper, self.jobs, checkpoint_every=self.checkpoint_every)
            self.workers[name] = worker
            self.recorder.on_trial_start(0, [], self.open[name])
        return self.workers[name]

    def report(self, name):
        """An epoch of a trial, reported and dealt with as `TuneController._process_trial_result` does it."""
        trial, result = self.open[name], self.worker(name).step()
        if not result.get("done") and self.scheduler.on_trial_result(None, trial, result) == "STOP":
            result["done"] = True
        self.recorder.on_trial_result(0, [], trial, result)
        if result.get("done"):
            self.close(name)
        self.recorder.on_step_end(0, [])

    def fail(self, name):
        """The trial has failed as often as it may."""
        self.recorder.on_trial_error(0, [], self.open[name])
        self.close(name)
        self.recorder.on_step_end(0, [])

    def close(self, name):
        del self.open[name]
        self.workers.pop(name, None)


class Durable(RuleBasedStateMachine):
    """One folder, driver after driver."""

    @initialize(salt=st.integers(0, 999), every=st.integers(1, 3))
    def begin(self, salt, every):
        Training.salt, self.every = salt, every
        self.folder, self.damaged, self.ended = MemoryFolder(), {}, set()
        self.driver = self.next_driver()

    def next_driver(self):
        while True:
            try:
                driver = Driver(self.folder, self.every)
            except (Crash, StoreError):
                continue
            missing = {trial.id for trial in driver.plan.todo}
            assert not missing & self.ended, "what has ended is not trained again"
            self.check_the_ledger()
            return driver

    def check_the_ledger(self):
        """Each cell is decided once a rung, and the decisions follow from each other in their order."""
        rows = self.folder.decisions_rows()
        assert [row["sequence"] for row in rows] == list(range(1, len(rows) + 1))
        assert len({(row["cell"], row["rung"]) for row in rows}) == len(rows)
        arm = {cell.id: cell.arm for cell in make_plan(STUDY, MemoryFolder()).cells}
        ashas = {name: Asha(5, *STUDY.scheduler.settings()) for name in STUDY.design.arms}
        for row in rows:
            assert ashas[arm[row["cell"]]].report(row["cell"], row["epoch"], row["value"]) == as_decision(row)

    def attempt(self, act):
        """Do it; the driver is gone if the process crashed, or its folder could not be written."""
        try:
            act()
            return
        except Crash:
            pass
        except StoreError:
            with suppress(StoreError, Crash):
                self.driver.recording.flush()
        self.driver = self.next_driver()

    def pick(self, which):
        return sorted(self.driver.open)[which % len(self.driver.open)]

    WHICH = st.integers(0, 99)

    @property
    def over(self):
        return not self.driver.open

    @precondition(lambda self: not self.over)
    @rule(which=WHICH, times=st.integers(1, 4))
    def report(self, which, times):
        name = self.pick(which)
        for _ in range(times):
            if name in self.driver.open:
                self.attempt(lambda: self.step(name))

    def step(self, name):
        driver = self.driver
        if name not in driver.workers:
            self.check_where_it_goes_on(name)
        driver.report(name)
        if name not in driver.open and any(
            name == row["trial"] and row["status"] != "failed" for row in self.rows("ends")
        ):
            self.ended.add(name)

    def check_where_it_goes_on(self, name):
        """From the newest checkpoint that nobody has damaged: no epoch before it is trained twice."""
        worker = self.driver.worker(name)
        whole = [
            int(path[-9:-3]) for path in self.checkpoints(name) if self.folder.kept[path] != self.damaged.get(path)
        ]
        assert worker.epoch == min(max(whole, default=0), worker.target)

    def rows(self, kind):
        return self.folder.rows(kind)

    def checkpoints(self, name):
        return sorted(path for path in self.folder.kept if path.startswith(f"trials/{name}/") and path.endswith(".pt"))

    @precondition(lambda self: not self.over)
    @rule(which=WHICH)
    def a_worker_is_killed(self, which):
        self.driver.workers.pop(self.pick(which), None)

    @precondition(lambda self: not self.over)
    @rule(which=WHICH)
    def a_report_is_lost_with_its_worker(self, which):
        name = self.pick(which)
        self.attempt(lambda: self.driver.worker(name).step())
        self.driver.workers.pop(name, None)

    @precondition(lambda self: not self.over)
    @rule(which=WHICH)
    def every_report_under_way_is_lost_with_the_driver(self, which):
        name = self.pick(which)
        self.attempt(lambda: self.driver.worker(name).step())
        self.driver = self.next_driver()

    @precondition(lambda self: not self.over)
    @rule(which=WHICH)
    def a_trial_fails(self, which):
        name = self.pick(which)
        self.attempt(lambda: self.driver.fail(name))

    @rule()
    def the_driver_is_killed(self):
        self.driver = self.next_driver()

    @rule()
    def the_driver_is_stopped_politely(self):
        def stop():
            for worker in self.driver.workers.values():
                worker.cleanup()
            self.driver.recording.close()

        self.attempt(stop)
        self.driver = self.next_driver()

    @rule(after=st.integers(0, 9), moment=st.sampled_from(MOMENTS), error=st.sampled_from([Crash, StoreError]))
    def a_coming_write_fails(self, after, moment, error):
        self.folder.fail(after, moment, error)

    @precondition(lambda self: not self.over)
    @rule(which=WHICH, cut=st.booleans())
    def the_newest_checkpoint_is_damaged(self, which, cut):
        name = self.pick(which)
        for path in self.checkpoints(name)[-1:]:
            data = self.folder.kept[path]
            if data == self.damaged.get(path):
                continue
            self.damaged[path] = data[: len(data) // 2] if cut else data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
            self.folder.kept[path] = self.damaged[path]
            self.driver.workers.pop(name, None)

    def teardown(self):
        if not hasattr(self, "driver"):
            return
        self.folder.faults = []
        self.driver = self.next_driver()
        while not self.over:
            self.driver.report(self.pick(0))
        self.driver.recording.close()
        assert not make_plan(STUDY, self.folder).todo
        self.check_the_ledger()
        expected = in_peace(self.folder.decisions_rows())
        for table in ("decisions", "ends", "history"):
            found, wanted = (of(table, folder) for folder in (self.folder, expected))
            assert found == wanted, table


def in_peace(decisions):
    """The folder of a driver that nothing happened to, whose reports came in the order of these decisions."""
    folder = MemoryFolder()
    driver = Driver(folder, 1)
    for n, row in enumerate(decisions, start=1):
        while len(folder.rows("decisions")) < n:
            driver.report(row["trial"])
    for name in list(driver.open):
        while name in driver.open:
            driver.report(name)
    driver.recording.close()
    return folder


def of(table, folder):
    """A table as rows in a fixed order, less which run wrote them."""
    if table == "ends":
        rows = folder.ends(SCHEDULER).to_pylist()
    elif table == "decisions":
        rows = folder.decisions_rows()
    else:
        rows = StudyReader(folder).history().drop(columns=["arm"]).to_dict("records")
    found = [{key: value for key, value in row.items() if key != "run"} for row in rows]
    return sorted(found, key=lambda row: (row.get("sequence", 0), row["cell"], row.get("seed", 0), row["epoch"]))


@pytest.fixture
def at_once(monkeypatch):
    """Every row is written when its step ends; merges of several levels come within a few."""
    monkeypatch.setattr(records, "ENDS_EVERY", 0.0)
    monkeypatch.setattr(records, "EPOCHS_EVERY", 0.0)
    monkeypatch.setattr(records, "FAN", 3)
    monkeypatch.setattr(trial_module, "Replicate", Training)


HOW = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def test_a_study_ends_as_if_nothing_had_happened(at_once):
    run_state_machine_as_test(Durable, settings=settings(max_examples=20, stateful_step_count=30, **HOW))


@pytest.mark.long
def test_a_study_ends_as_if_nothing_had_happened_in_many_more_ways(at_once):
    run_state_machine_as_test(Durable, settings=settings(max_examples=600, stateful_step_count=60, **HOW))


# Damage


@pytest.fixture(scope="module")
def finished():
    """A folder with one file of every kind, and what is read from it."""
    folder = MemoryFolder()
    Training.salt = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_module, "Replicate", Training)
        driver = Driver(folder, 1)
        while driver.open:
            driver.report(next(iter(driver.open)))
        driver.recording.close()
    folder.save_chosen([{"cell": "c", "arm": "fsam", "values": {"gamma": 0.1, "eta": 1e-05}}])
    for trial in folder.names("trials"):
        folder.save_measure(trial, TAG, [{"cell": trial, "seed": 0, "radius": 0.1, "accuracy": 0.25}])
    return folder


TAG = "perturbation-00000000"


def everything(folder):
    """What a reader gets, as text: frames know no equality of missing values."""
    reader = StudyReader(folder)
    frames = (reader.replicates(), reader.history(), reader.decisions(), folder.measure_table(TAG).to_pandas())
    tables = [frame.to_json(orient="split", double_precision=15) for frame in frames]
    checkpoints = {trial: folder.load_checkpoint(trial) for trial in folder.names("trials")}
    return tables, reader.spec, folder.chosen(), folder.runs(), checkpoints


def told(folder, read):
    """What is read from a folder, and the line of what cannot be."""
    try:
        return read(folder), ""
    except StoreError as error:
        return None, str(error)


KINDS = ["study.json", "plan.parquet", "chosen.json", "runs/", "records/", "checkpoints/", "measures/"]


def damages(data):
    """What may have become of a file: cut short, a bit or a byte turned over, a block of zeros, another one's bytes."""
    size = len(data)
    place = st.integers(0, size - 1)
    return st.one_of(
        st.builds(lambda n: data[:n], place),
        st.builds(lambda n, bit: data[:n] + bytes([data[n] ^ 1 << bit]) + data[n + 1 :], place, st.integers(0, 7)),
        st.builds(lambda n, byte: data[:n] + bytes([byte]) + data[n + 1 :], place, st.integers(0, 255)),
        st.builds(lambda n: data[:n] + bytes(len(data[n : n + 64])) + data[n + 64 :], place),
        st.builds(lambda more: data + more, st.binary(min_size=1, max_size=9)),
        st.binary(max_size=99),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_any_damage_of_any_file_is_harmless_or_named(finished, kind):
    paths = sorted(path for path in finished.kept if kind in path)
    whole = everything(finished)

    @given(st.data())
    @settings(max_examples=40, **HOW)
    def holds(data):
        path = data.draw(st.sampled_from(paths))
        damaged = MemoryFolder(dict(finished.kept))
        damaged.kept[path] = data.draw(damages(finished.kept[path]))
        found, line = told(damaged, everything)
        if found is None:
            assert damaged.path(path) in line
            assert len(line.splitlines()) == 1
            return
        if kind != "checkpoints/" or damaged.kept[path] == finished.kept[path]:
            assert found == whole
            return
        # A damaged checkpoint is passed over for the one before, by name.
        assert found[:-1] == whole[:-1]
        trial, name = path.split("/")[1::2]
        payload, passed = found[-1].pop(trial)
        assert found[-1] == {other: kept for other, kept in whole[-1].items() if other != trial}
        before = sorted(finished.names("trials", trial, "checkpoints"))
        if name == before[-1]:
            assert passed == [name]
            assert payload == (finished.kept[f"trials/{trial}/checkpoints/{before[-2]}"][HEAD:] if before[1:] else None)
        else:
            assert (payload, passed) == whole[-1][trial]

    holds()


#: Bytes of a checkpoint before its payload: what it is, and its checksum.
HEAD = len(b"sharpness-study checkpoint 1\n") + 64 + 1


def said(folder):
    return folder.spec(), folder.chosen(), folder.runs()


@pytest.mark.parametrize("kind", ["study.json", "chosen.json", "runs/"])
def test_every_single_flipped_byte_and_every_truncation_of_json_is_harmless_or_named(finished, kind):
    (path,) = [path for path in finished.kept if kind in path]
    data = finished.kept[path]
    flipped = (data[:n] + bytes([data[n] ^ flip]) + data[n + 1 :] for n in range(len(data)) for flip in (1, 2, 32, 128))
    harmless = 0
    for damage in (*flipped, *(data[:n] for n in range(len(data)))):
        damaged = MemoryFolder({**finished.kept, path: damage})
        found, line = told(damaged, said)
        harmless += not line
        assert damaged.path(path) in line if line else found == said(finished)
    assert harmless <= data.count(b" ") + data.count(b"\n") + 1, "but for blanks"
