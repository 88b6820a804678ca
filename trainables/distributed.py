"""A trial's replicates in processes of their own: each on a device, or each batch shared by all of them.

    with Team(["cuda:0", "cuda:1"], threads=4) as team:           # seeds 0 and 2 on the one, 1 on the other
        replicates = team.build(recipe, seeds=[0, 1, 2])
        rows = team.each("train_epoch")                           # a row per seed, in the order of the seeds

    with Team(["cuda:0", "cuda:1"], threads=4, data_parallel=True) as team:
        ...                                                       # every seed on both, one after the other

Processes and not threads: dropout draws from generators that a process has one of, and so does torch's number of
threads. On a device of its own a replicate trains to the numbers that it has alone, on the CPU to the last bit: every
draw is a function of its seed. Of what data parallelism does to a step tells `trainables.data_parallel`.

The process that asks trains nothing. So it sees at once when another one dies, which those that wait in an exchange
need not (NCCL waits for many minutes), and ends them all: `ProcessDied`. They are started anew, with an interpreter of
their own that imports nothing of the caller's main module; each ends by itself when the caller is gone. All on one
machine: what they exchange does not leave it.
"""

from __future__ import annotations

import io
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Self

import torch

from trainables.data import DataError
from trainables.devices import DeviceError
from trainables.measures import check
from trainables.measures import run as run_measure
from trainables.memory import OutOfMemory, explained
from trainables.models.weights import WeightsError
from trainables.process import give_memory_back, prepare
from trainables.recipe import Recipe
from trainables.replicate import Replicate, Row

#: Seconds in which a process that failed because of another one leaves that one time to be seen dead.
GRACE = 3.0

#: Exceptions of one line that whoever trains in his own process gets too.
_KNOWN = {kind.__name__: kind for kind in (DataError, DeviceError, OutOfMemory, WeightsError)}

_PROGRAM = "import sys; sys.path[:] = {path!r}; from trainables.distributed import serve; serve({fd})"


class ProcessDied(Exception):
    """A process of a team ended: killed, or by a crash; one line."""


class ProcessFailed(Exception):
    """An exception in a process of a team, with its name; one line."""


class Remote:
    """A replicate in another process: what a trial needs of `Replicate`.

    Attributes:
        seed: of the replicate.
        label_hash, diverged, train_seconds: as the replicate has them.
        device_name: what it is trained on, for a person. steps, told: how its steps are issued, and its remarks.
    """

    #: Where its state is, as this process sees it.
    device = torch.device("cpu")

    def __init__(self, team: Team, index: int, seed: int) -> None:
        self._team, self._index, self.seed = team, index, seed
        self.label_hash, self.device_name, self.diverged, self.train_seconds = "", "", False, 0.0
        self.steps, self.told = "", list[str]()

    def take_remarks(self) -> list[str]:
        """Of the last command, as `Replicate.take_remarks`."""
        told, self.told = self.told, []
        return told

    def final(self) -> Row:
        """See `Replicate.final`."""
        row: Row = self._team.call(self._index, "final")
        return row

    def state_dict(self) -> dict[str, Any]:
        """See `Replicate.state_dict`; on the CPU."""
        state: dict[str, Any] = _loaded(self._team.call(self._index, "state_dict"))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Replicate.load_state_dict`."""
        self._team.call(self._index, "load_state_dict", _saved(state))

    def measure(self, name: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of `trainables.measures.run`."""
        rows: list[dict[str, Any]] = self._team.call(self._index, "measure", name, settings, everywhere=False)
        return rows


class Team:
    """Processes that train the replicates of one trial after the other. A context; `close` ends it.

    Every method may raise `ProcessDied`, `ProcessFailed`, `DataError`, `WeightsError`, `DeviceError` or `OutOfMemory`;
    the team has ended then.

    Args:
        devices: one for each process, such as `cpu` or `cuda:1`.
        threads: of torch, in each process.
        data_root: folder of the data sets' files.
        data_parallel: share each batch; otherwise share out the seeds.
    """

    def __init__(
        self, devices: Sequence[str], *, threads: int = 1, data_root: str | None = None, data_parallel: bool = False
    ) -> None:
        self.devices, self.data_parallel = tuple(devices), data_parallel
        self.replicates: list[Remote] = []
        self.closed = False
        self._folder = tempfile.TemporaryDirectory(prefix="sharpness-team-", ignore_cleanup_errors=True)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection] = []
        try:
            for _ in devices:
                self._start()
            for rank, device in enumerate(devices):
                store = os.path.join(self._folder.name, "store") if data_parallel else None
                self._tell(rank, (device, threads, data_root, rank, len(devices), store))
            self._answers(range(len(devices)))
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The processes' ids, in the order of the devices."""
        return [process.pid for process in self._processes]

    def build(self, recipe: Recipe, seeds: Sequence[int]) -> list[Remote]:
        """Let go of the replicates there are, and make these."""
        self.replicates = [Remote(self, i, seed) for i, seed in enumerate(seeds)]
        given = {**recipe.settings(), "loader_workers": recipe.loader_workers}
        ranks = range(len(self.devices))
        for rank in ranks:
            mine = list(seeds) if self.data_parallel else list(seeds[rank :: len(self.devices)])
            self._tell(rank, ("build", {**given, "device": self.devices[rank]}, mine))
        self._answers(ranks)
        return self.replicates

    def each(self, method: str) -> list[Any]:
        """What `train_epoch` or another method without arguments returns for each replicate, in their order.

        All processes work at the same time.
        """
        ranks = [rank for rank in range(len(self.devices)) if self.data_parallel or rank < len(self.replicates)]
        for rank in ranks:
            self._tell(rank, ("each", method))
        found = self._answers(ranks)
        if self.data_parallel:
            values: list[Any] = found[0]
        else:
            values = [found[i % len(self.devices)][i // len(self.devices)] for i in range(len(self.replicates))]
        return [_loaded(value) for value in values] if method == "state_dict" else values

    def call(self, index: int, method: str, *arguments: Any, everywhere: bool = True) -> Any:
        """What a method of one replicate returns.

        Args:
            index: of the replicate. method: its name. arguments: plain values.
            everywhere: in all processes that train it, as what exchanges anything must be.
        """
        ranks, place = [index % len(self.devices)], index // len(self.devices)
        if self.data_parallel:
            ranks, place = list(range(len(self.devices))) if everywhere else [0], index
        for rank in ranks:
            self._tell(rank, ("call", place, method, arguments))
        return self._answers(ranks)[ranks[0]]

    def close(self) -> None:
        """End the processes; harmless the second time."""
        self.closed = True
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> None:
        ours, theirs = Pipe()
        environment = {**os.environ}
        if sys.platform == "linux":
            # They are on one machine; an address of it that others see would do, and others would see it.
            for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                environment.setdefault(variable, "lo")
        try:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM.format(path=sys.path, fd=theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                )
            )
        finally:
            theirs.close()
        self._pipes.append(ours)

    def _tell(self, rank: int, what: Any) -> None:
        if self.closed:
            raise ProcessDied("the processes of this trial have ended")
        try:
            self._pipes[rank].send(what)
        except OSError:
            self._end(rank)

    def _answers(self, ranks: Sequence[int]) -> dict[int, Any]:
        """Wait for an answer of each. The first that fails ends all: those that wait for it would wait for ever."""
        waiting = {id(self._pipes[rank]): rank for rank in ranks}
        found: dict[int, Any] = {}
        while waiting:
            for pipe in wait([self._pipes[rank] for rank in waiting.values()]):
                rank = waiting.pop(id(pipe))
                answer = self._receive(rank)
                if answer[0] == "failed":
                    self._fail(answer, list(waiting.values()))
                _, found[rank], facts = answer
                for index, values in facts.items():
                    vars(self.replicates[index]).update(values)
        return found

    def _receive(self, rank: int) -> Any:
        try:
            return self._pipes[rank].recv()
        except (EOFError, OSError):
            return self._end(rank)

    def _fail(self, answer: tuple[str, str, str, str], others: list[int]) -> None:
        """Raise what a process reports, or why: it may have failed only because another one is gone."""
        _, name, message, trace = answer
        while name not in _KNOWN and self.data_parallel and others:
            ready = wait([self._pipes[rank] for rank in others], GRACE)
            if not ready:
                break
            for rank in [rank for rank in others if self._pipes[rank] in ready]:
                others.remove(rank)
                other = self._receive(rank)
                if other[0] == "failed" and other[1] in _KNOWN:
                    _, name, message, trace = other
        self.close()
        error = _KNOWN[name](message) if name in _KNOWN else ProcessFailed(f"{name}: {message}" if message else name)
        error.add_note(trace)
        raise error

    def _end(self, rank: int) -> Any:
        """Raise how a process ended that is no longer there."""
        process = self._processes[rank]
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        code = process.poll()
        how = "no longer answers" if code is None else f"ended with exit status {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        self.close()
        raise ProcessDied(f"process {rank + 1} of {len(self.devices)} of this trial ({self.devices[rank]}) {how}")


class _Server:
    """In a process of a team: its replicates, and the answers to what it is told."""

    def __init__(
        self, device: str, threads: int, data_root: str | None, rank: int, processes: int, store: str | None
    ) -> None:
        self.data_root, self.rank, self.processes = data_root, rank, processes
        self.replicates: list[Replicate] = []
        prepare(threads)
        cuda = device.startswith("cuda")
        if cuda:
            torch.cuda.set_device(torch.device(device))
        self.device_name = torch.cuda.get_device_name(device) if cuda else "CPU"
        self.share = None
        if store is not None:
            from trainables.data_parallel import Share

            torch.distributed.init_process_group(
                "nccl" if cuda else "gloo",
                store=torch.distributed.FileStore(store, processes),
                rank=rank,
                world_size=processes,
            )
            self.share = Share()
            self.device_name = f"{processes} x {self.device_name}"

    def build(self, settings: dict[str, Any], seeds: list[int]) -> None:
        # Before the next ones are made: both would need twice the memory.
        self.replicates = []
        give_memory_back()
        self.recipe = Recipe.of(settings)
        with explained(self.recipe, max(1, len(seeds))):
            self.replicates = [Replicate(self.recipe, seed, self.data_root, share=self.share) for seed in seeds]

    def each(self, method: str) -> list[Any]:
        return [self.call(place, method, ()) for place in range(len(self.replicates))]

    def call(self, place: int, method: str, arguments: tuple[Any, ...]) -> Any:
        replicate = self.replicates[place]
        with explained(self.recipe, len(self.replicates)):
            match method, arguments:
                case "state_dict", ():
                    # One process's is all's.
                    return _saved(replicate.state_dict()) if self.share is None or self.share.rank == 0 else b""
                case "load_state_dict", (payload,):
                    return replicate.load_state_dict(_loaded(payload, replicate.device))
                case "measure", (name, settings):
                    return run_measure(name, replicate.subject(), check({name: settings})[name])
                case _ if method in ("train_epoch", "untrained_row", "final") and not arguments:
                    return getattr(replicate, method)()
        raise ValueError(f"{method} is nothing that a replicate is asked here")

    def facts(self) -> dict[int, dict[str, Any]]:
        """Of each replicate, by its index among all."""
        return {
            (place if self.share else self.rank + place * self.processes): {
                "label_hash": replicate.label_hash,
                "device_name": self.device_name,
                "diverged": replicate.diverged,
                "train_seconds": replicate.train_seconds,
                "steps": replicate.steps,
                "told": replicate.take_remarks(),
            }
            for place, replicate in enumerate(self.replicates)
        }


def serve(fd: int) -> None:
    """The main loop of a process of a team.

    Args:
        fd: the descriptor of its end of a pipe; nobody else has the other end.
    """
    os.set_inheritable(fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts a team's owner has interrupted its owner
    pipe = Connection(fd)
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        # In a thread of its own: in the middle of an epoch, too, the end of the caller is the end.
        while True:
            try:
                told.put(pipe.recv())
            except (EOFError, OSError):
                os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    server: _Server | None = None
    while True:
        what = told.get()
        try:
            value = None
            if server is None:
                server = _Server(*what)
            else:
                value = getattr(server, what[0])(*what[1:])
            answer: tuple[Any, ...] = ("done", value, server.facts())
        except Exception as error:
            answer = ("failed", type(error).__name__, " ".join(str(error).split()), traceback.format_exc())
        pipe.send(answer)


def _saved(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _loaded(payload: bytes, device: torch.device | str = "cpu") -> Any:
    return torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
