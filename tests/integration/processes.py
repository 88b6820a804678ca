"""Run the real command in a real process, and find the processes it started, to kill them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

#: Without a data root, whether or not the tests of real CIFAR have been given one.
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k != "SHARPNESS_STUDY_DATA"}, "COLUMNS": "200"}


def study(*arguments, timeout=240, **more):
    """`study ARGUMENTS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "study", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=ENVIRONMENT,
        **more,
    )


def start_study(*arguments):
    """`study ARGUMENTS` in the background, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "study", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


def start_run(file, storage, **environment):
    """`study run FILE` without a report on two CPUs, its outputs apart; for `ended`."""
    return subprocess.Popen(
        [sys.executable, "-m", "study", "run", str(file), "--storage", str(storage), "--cpus", "2", "--no-report"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **environment},
        start_new_session=True,
    )


def ended(process, seconds=300):
    """The exit code and both outputs of a run that ends by itself, in lines and not in tracebacks."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            end(process, descendants(process.pid))
    assert "Traceback" not in out + err
    return process.returncode, out, err


def descendants(pid):
    """Every living process below `pid`."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def trial_workers(pid):
    """The workers below `pid` that train: Ray names them after the call they are in."""
    found = []
    for child in descendants(pid):
        try:
            title = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if title.startswith("ray::ResourceTrainable.train"):
            found.append(child)
    return found


def end(process, family):
    """Kill what a killed driver left behind, by id, and nothing else."""
    for pid in [process.pid, *family]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait(30)


def wait_for(condition, seconds=120, every=0.05):
    """Wait until `condition()` is true and return its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every)
    raise AssertionError(f"waited {seconds} s in vain")
