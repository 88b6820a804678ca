"""Processes that a benchmark starts and watches: their seconds, their memory, and who is below them. Linux only.

Memory is read in /proc and not asked of `getrusage`, whose highest value survives `exec`: a small command that a large
process starts would seem as large as that one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The root of the checkout: where commands run, and what their Python imports from.
ROOT = Path(__file__).parent.parent

#: Seconds between two looks at a process's highest memory.
_LOOK_EVERY = 0.005


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, its wall seconds, the most bytes that it alone held, and what it printed."""

    code: int
    seconds: float
    peak: int
    printed: str


def watched(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Ended:
    """Run a command to its end, with stdout and stderr taken together.

    Its highest memory is that of the process itself, without its children.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as out:
        began = time.perf_counter()
        process = subprocess.Popen(
            list(arguments),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        peak = 0
        try:
            while process.poll() is None:
                peak = max(peak, memory(process.pid, "VmHWM"))
                time.sleep(_LOOK_EVERY)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        seconds = time.perf_counter() - began
        out.seek(0)
        return Ended(process.returncode, seconds, peak, out.read())


def study(*arguments: str) -> Ended:
    """`study ARGUMENTS` in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    done = watched([sys.executable, "-m", "study", *arguments])
    if done.code:
        raise RuntimeError(f"study {' '.join(arguments)} ended with {done.code}: {done.printed.strip()[-2000:]}")
    return done


def fresh(module: str, function: str, **arguments: Any) -> tuple[Any, Ended]:
    """What a function of an importable module returns in a fresh process, and how that process ended.

    Arguments and value travel as JSON.

    Raises:
        RuntimeError: it raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        script = (
            "import importlib, json, sys; "
            "value = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(**json.loads(sys.argv[3])); "
            "open(sys.argv[4], 'w').write(json.dumps(value))"
        )
        given = json.dumps(arguments)
        done = watched([sys.executable, "-c", script, module, function, given, str(answer)])
        if done.code or not answer.exists():
            raise RuntimeError(f"{module}.{function} ended with {done.code}: {done.printed.strip()[-2000:]}")
        return json.loads(answer.read_text()), done


def memory(pid: int, field: str = "VmRSS") -> int:
    """Bytes that a process holds now, or held at most (`VmHWM`); 0 if it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def open_files(pid: int) -> int:
    """Descriptors that a process has open; 0 if it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def title(pid: int) -> str:
    """A process's command line; empty if it is gone. Ray's workers name themselves after the call they are in."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found
