"""Every fault at every phase of a real study: what it stores in the end is what an undisturbed one stores.

A selection runs here; the whole matrix is behind the marker `long`, and `python -m benchmarks fault_matrix` records it.
"""

import json
import signal
import subprocess
import sys
from collections import Counter

import pytest
from faults.disturbed import INJECT, Calm, Tables, disturb, environment_of, judge, problems, undisturbed
from faults.matrix import EVERY, FAULTS, LAST_CHECKPOINT, PHASES, SCHEDULERS, Case, cases, selection, sensible
from processes import ENVIRONMENT

from benchmarks.fault_matrix import Outcome, result, without_sense
from benchmarks.record import document, table

SELECTED = [case.name for case in selection()]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The study in full, which nothing disturbs."""
    return Calm(Tables.of(undisturbed("fifo", tmp_path_factory.mktemp("calm")).folder))


def test_which_cases_run_here(capsys):
    with capsys.disabled():
        print(f"\nfault matrix: {len(SELECTED)} of {len(sensible())} cases: {'; '.join(SELECTED)}")
    assert len(set(SELECTED)) == len(SELECTED)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in SELECTED else pytest.mark.long)
        for case in sorted(sensible(), key=lambda case: case.scheduler)
    ],
)
def test_a_disturbed_study_ends_as_an_undisturbed_one(case, calm, tmp_path):
    ran = disturb(case, tmp_path)
    found = problems(case, ran, calm)
    assert not found, f"{found}\n{ran.output[-4000:]}"


def test_an_undisturbed_study_under_asha_is_what_the_full_curves_and_its_order_give(calm, tmp_path):
    ran = undisturbed("asha", tmp_path)
    judged = judge(Case("nothing", "", "asha"), ran, calm)
    assert (judged.differences, judged.lost, judged.added) == ((), 0, 0)
    assert len(Tables.of(ran.folder).history) < len(calm.full.history), "a cell was stopped"


def test_every_fault_meets_every_phase_or_there_is_a_reason():
    whole = cases()
    assert len({case.name for case in whole}) == len(FAULTS) * len(PHASES) * len(SCHEDULERS)
    for case in whole:
        assert bool(case.nonsense) != bool(case.place and case.actions), case.name
    reasons = Counter(case.nonsense for case in whole if case.nonsense)
    assert reasons["fifo decides nothing"] == len(FAULTS)
    assert {case.fault for case in sensible()} == set(FAULTS)
    assert {case.phase for case in sensible()} == set(PHASES)


def test_a_case_may_cost_the_epochs_since_the_last_whole_checkpoint_of_the_trial_that_it_kills():
    bounds = {(case.fault, case.phase): case.bound for case in sensible()}
    assert bounds["worker SIGKILL", "mid-epoch"] == 2 * EVERY
    assert bounds["checkpoint damaged, then killed", "mid-epoch"] == 4 * EVERY
    assert bounds["driver SIGKILL", "planning"] == bounds["second driver", "mid-epoch"] == 0


def test_the_record_has_each_case_what_was_lost_and_why_the_rest_is_no_case():
    fine = Outcome("a, b, fifo", (), twice=2, bound=4, lost=0, added=0, runs=2, seconds=30.0)
    free = Outcome("second, b, fifo", (), twice=0, bound=0, lost=0, added=0, runs=1, seconds=20.0)
    bad = Outcome("a, c, asha", ("6 epochs are lost",), twice=5, bound=4, lost=6, added=1, runs=1, seconds=10.0)
    found = result({"epochs": 6}, [fine, free, bad], [10.0, 12.0], without_sense(cases()))
    assert found.ratios["epochs trained twice / bound"].max == 1.25
    assert found.counts["cases"] == 3
    assert found.counts["cases with any problem"] == 1
    assert (found.counts["rows lost"], found.counts["rows too many"]) == (6, 1)
    assert found.counts["cases with more epochs trained twice than the bound"] == 1
    assert found.counts["epochs trained twice: a, b, fifo"] == 2
    assert "Problem: a, c, asha: 6 epochs are lost" in found.notes
    reasons = [note for note in found.notes if note.startswith("No case, since fifo decides nothing")]
    assert len(reasons) == 1
    assert reasons[0].count("decision to stop") == len(FAULTS)
    assert json.loads(json.dumps(document("fault_matrix", found, quick=False)))["counts"] == found.counts
    assert any("rows lost" in line for line in table(found))


# The instrument itself: faults come where they are said to come, once, and leave everything else alone.

WRITE = """\
import os, sys
from study.files import Files, StoreError
files = Files(sys.argv[1])
for name in sys.argv[2:]:
    try:
        files.write(name.encode(), "records", name)
    except StoreError as error:
        print(error)
"""

TRAIN = """\
from trainables.recipe import Recipe
from trainables.replicate import Replicate
recipe = {"dataset": "synthetic", "model": "mlp", "optimiser": "sam", "gamma": 0.5, "batch_size": 32, "epochs": 3}
for seed in (0, 1):
    replicate = Replicate(Recipe.of(recipe), seed)
    while replicate.epoch < 3:
        replicate.train_epoch()
"""


class Instrument:
    """Processes with one fault between them."""

    def __init__(self, path, place, *actions, scheduler="fifo"):
        self.control, self.study = path / "control", path / "study"
        self.control.mkdir()
        case = Case("a fault", "somewhere", scheduler, place={"role": "driver", **place}, actions=actions)
        self.environment = environment_of(self.control, self.study, case, {"driver": "-c"})

    def start(self, program, *names, **environment):
        return subprocess.Popen(
            [sys.executable, "-c", program, str(self.study), *names],
            env={**ENVIRONMENT, **self.environment, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, program, *names, **environment):
        process = self.start(program, *names, **environment)
        out, _ = process.communicate(timeout=120)
        return process.returncode, out

    def files(self):
        return sorted(path.name for path in self.study.rglob("*") if path.is_file())


def test_a_kill_at_a_rename_leaves_the_whole_temporary_file_and_no_other(tmp_path):
    instrument = Instrument(tmp_path, {"event": "rename", "path": r"/two$"}, "kill")
    assert instrument.run(WRITE, "one", "two", "three")[0] == -signal.SIGKILL
    one, two = instrument.files()
    assert one == "one"
    assert two.startswith("two.")
    assert (instrument.study / "records" / two).read_text() == "two"


def test_a_kill_after_a_rename_leaves_the_file_and_nothing_later(tmp_path):
    instrument = Instrument(tmp_path, {"event": "renamed", "path": r"/two$"}, "kill")
    assert instrument.run(WRITE, "one", "two", "three")[0] == -signal.SIGKILL
    assert instrument.files() == ["one", "two"]


def test_a_fault_comes_at_its_time_of_the_event(tmp_path):
    instrument = Instrument(tmp_path, {"event": "rename", "path": r"/records/", "nth": 3}, "kill")
    assert instrument.run(WRITE, "one", "two", "three", "four")[0] == -signal.SIGKILL
    assert [name.partition(".")[0] for name in instrument.files()] == ["one", "three", "two"]


def test_a_fault_comes_once_over_all_processes(tmp_path):
    instrument = Instrument(tmp_path, {"event": "rename", "path": r"/one$"}, "kill")
    processes = [instrument.start(WRITE, "one") for _ in range(4)]
    for process in processes:
        process.communicate(timeout=120)
    assert sorted(process.returncode for process in processes) == [-signal.SIGKILL, 0, 0, 0]
    assert instrument.run(WRITE, "one")[0] == 0
    reached = json.loads((instrument.control / "fault.reached").read_text())
    assert reached["path"].endswith("/records/one")


def test_a_full_disk_stays_full_for_the_process_and_is_an_error_of_the_store(tmp_path):
    lasting = {"event": "open", "path": r"/two\.[^/]*tmp$", "lasting": True}
    instrument = Instrument(tmp_path, lasting, "full")
    code, out = instrument.run(WRITE, "one", "two", "three")
    assert code == 0
    assert out.count("No space left on device") == 2
    assert instrument.files() == ["one"]
    assert instrument.run(WRITE, "two")[0] == 0
    assert instrument.files() == ["one", "two"]


def test_a_held_process_goes_on_when_it_is_let_go(tmp_path):
    instrument = Instrument(tmp_path, {"event": "rename", "path": r"/two$"}, "hold")
    process = instrument.start(WRITE, "one", "two")
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=8)
        assert (instrument.control / "held").exists()
        assert "two" not in instrument.files()
    finally:
        (instrument.control / "release").touch()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert instrument.files() == ["one", "two"]


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_the_newest_checkpoint_is_damaged_and_seen_to_be(tmp_path, damage):
    from study.store import StudyFolder

    instrument = Instrument(tmp_path, {"event": "rename", "path": r"/one$"}, damage, "kill")
    folder = StudyFolder(str(instrument.study))
    folder.save_checkpoint("trial", 2, b"older" * 50, keep=2)
    folder.save_checkpoint("trial", 4, b"newer" * 50, keep=2)
    assert instrument.run(WRITE, "one")[0] == -signal.SIGKILL
    assert folder.load_checkpoint("trial") == (b"older" * 50, ["000004.pt"])


def test_a_step_of_an_epoch_of_a_seed_is_found_and_every_begun_epoch_is_counted(tmp_path):
    instrument = Instrument(tmp_path, {"event": "step", "seed": 1, "epoch": 2, "step": 6}, "kill")
    assert instrument.run(TRAIN)[0] == -signal.SIGKILL
    log = [line.split()[:3] for line in (instrument.control / "epochs").read_text().splitlines()]
    expected = [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]
    assert log == [["0.5", str(seed), str(epoch)] for seed, epoch in expected]
    reached = json.loads((instrument.control / "fault.reached").read_text())
    assert reached["now"] == {"seed": 1, "epoch": 2, "step": 6}


def test_a_process_of_another_role_and_one_without_a_plan_are_left_alone(tmp_path):
    instrument = Instrument(tmp_path, {"role": "worker", **{k: LAST_CHECKPOINT[k] for k in ("event", "path")}}, "kill")
    assert instrument.run(WRITE, "000006.pt")[0] == 0
    assert instrument.run(WRITE, "000006.pt", STUDY_FAULTS="")[0] == 0


def test_settings_are_those_of_the_named_module(tmp_path):
    instrument = Instrument(tmp_path, {"event": "planned"}, "kill")
    plan = json.loads(instrument.environment["STUDY_FAULTS"])
    plan["settings"] = {"study.records": {"FAN": 2}}
    program = "import study.records; print(study.records.FAN)"
    assert instrument.run(program, STUDY_FAULTS=json.dumps(plan)) == (0, "2\n")


def test_another_sitecustomize_is_still_imported(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sitecustomize.py").write_text("import sys; sys.other = True\n")
    instrument = Instrument(tmp_path, {"event": "planned"}, "kill")
    both = f"{INJECT}:{tmp_path / 'other'}"
    assert instrument.run("import sys; print(sys.other)", PYTHONPATH=both) == (0, "True\n")
