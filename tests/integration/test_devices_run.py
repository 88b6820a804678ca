"""Studies whose trials have several processes, on real Ray: the numbers of a plain loop, whoever is killed."""

import os
import signal
from pathlib import Path

import pandas as pd
import pytest
from processes import descendants, end, start_study, study, wait_for
from undisturbed import Tables

from study.plan import make_plan
from study.reader import open_study
from study.spec import Study
from study.store import StudyFolder

STUDY = """\
name: devices
question: Does it matter where a replicate is trained?
recipe: {dataset: digits, model: digits_cnn, precision: float64, device: cpu, batch_size: 50, train_size: 153,
         epochs: EPOCHS, lr: 0.05, optimiser: fsam, eta: 100}
grid: {gamma: [0.05, 0.5]}
seeds: [0, 1]
checkpoints: {every: 1}
"""

SIDE_BY_SIDE = "resources: {cpu: 2, processes: 2}\n"
SHARED = "resources: {cpu: 2, processes: 2, data_parallel: true}\n"


def write(folder, resources, epochs=3):
    file = folder / "devices.yaml"
    file.write_text(STUDY.replace("EPOCHS", str(epochs)) + resources)
    return file


def helpers(pid):
    """The processes below `pid` that a trial's worker has started to train in."""
    found = []
    for child in descendants(pid):
        try:
            line = Path(f"/proc/{child}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"trainables.distributed" in line:
            found.append(child)
    return sorted(found)


def test_seeds_side_by_side_are_found_bit_for_bit(tmp_path):
    file = write(tmp_path, SIDE_BY_SIDE)
    done = study("run", file, "--storage", tmp_path, "--no-report", "--cpus", 2)
    assert done.returncode == 0, done.stderr
    Tables.by_a_plain_loop(file, tmp_path / "nowhere").assert_found_in(str(tmp_path / "devices"))
    assert set(open_study(str(tmp_path / "devices")).replicates()["device"]) == {"CPU"}


@pytest.mark.long
def test_a_killed_process_of_a_shared_replicate_is_retried_from_its_checkpoint(tmp_path):
    file, folder = write(tmp_path, SHARED, epochs=30), tmp_path / "devices"
    process = start_study("run", file, "--storage", tmp_path, "--no-report", "--cpus", 2)
    try:
        trials = [trial.id for trial in make_plan(Study.load(file), StudyFolder(str(folder))).todo]

        def kept():
            return [n for t in trials for n in StudyFolder(str(folder)).names("trials", t, "checkpoints")]

        wait_for(lambda: len(kept()) >= 2)
        first = helpers(process.pid)
        assert len(first) == 2
        os.kill(first[1], signal.SIGKILL)
        wait_for(lambda: len(now := helpers(process.pid)) == 2 and not set(now) & set(first))
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
    finally:
        left = helpers(process.pid)
        end(process, descendants(process.pid))
    assert left == []
    (run,) = open_study(str(folder)).runs()
    assert (run["failures"]["error"], run["failures"]["retried"], run["failures"]["given_up"]) == (1, 1, 0)
    found, expected = Tables.of(str(folder)), Tables.by_a_plain_loop(file, tmp_path / "nowhere")
    for stored, alone in ((found.ends, expected.ends), (found.epochs, expected.epochs)):
        columns = [column for column in alone if column != "diverged"]
        pd.testing.assert_frame_equal(stored[columns], alone[columns], check_dtype=False, rtol=1e-8)
    assert set(open_study(str(folder)).replicates()["device"]) == {"2 x CPU"}


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ("resources: {processes: 3}\n", "3 processes for 2 seeds: some would idle; or data_parallel: true"),
        ("resources: {data_parallel: true}\n", "data_parallel needs gpu or processes above 1"),
        ("resources: {gpu: 2, processes: 4}\n", "processes 4 for gpu 2: each process has one GPU"),
        ("resources: {cpu: 1, processes: 2}\n", "processes 2 on cpu 1: each needs one"),
        (
            "resources: {gpu: 64, data_parallel: true}\n",
            "batch_size 50 is less than one image for each of 64 processes",
        ),
    ],
)
def test_what_does_not_go_over_the_devices_is_said_before_anything_starts(resources, said, tmp_path):
    done = study("plan", write(tmp_path, resources), "--storage", tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line


def test_more_processes_than_the_machine_has_cpus_are_refused_at_once(tmp_path):
    done = study("run", write(tmp_path, SIDE_BY_SIDE), "--storage", tmp_path, "--no-report", "--cpus", 1)
    assert done.returncode == 2
    assert "a trial asks for cpu 2; this run has cpu 1 on this machine" in done.stderr
