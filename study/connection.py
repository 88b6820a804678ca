"""Studies from Python and notebooks: `from study import connect`.

    studies = connect("http://127.0.0.1:8265", storage="s3://bucket/studies")    # or connect(): this machine
    run = studies.submit("studies/digits_sensitivity.yaml")                      # or the same as a mapping
    run.wait()
    run.results()                                                                # one row per replicate

Without an address a study is run by a `study run` of its own on this machine, in a session of its own: it goes on when
the notebook is closed, and `connect().open(NAME)` finds it again. Everything that is asked about a study is answered
from its folder; the cluster is only asked about its jobs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from study.lock import holder
from study.naming import folder_elsewhere, folder_of
from study.preflight import ClusterError
from study.reader import StudyReader
from study.spec import Study
from study.spectator import SUCCESSION, Kind, ended
from study.status import Status, status
from study.stopping import Answer, ask, end_now, wait
from study.store import StoreError, StudyFolder, child

if TYPE_CHECKING:
    import pandas as pd

    from study.service.client import Cluster, Submitted
    from study.service.jobs import Job

#: Seconds that a job may take to end after its run has.
LEAVING = 60.0

#: Seconds between two looks at a run that goes on.
EVERY = 1.0

#: What the exit codes of `study run` mean; others are errors.
_KINDS: dict[int, Kind] = {0: "complete", 1: "failed", 3: "budget", 130: "interrupted"}


class RunError(RuntimeError):
    """A run broke off, was refused, or its process is gone; the message is what it said last."""


class Connection:
    """Where studies are submitted to, and where they are kept. Get it from `study.connect`.

    Args:
        address: of a cluster's dashboard, `http://HOST:PORT`; None runs studies on this machine.
        storage: folder or address that holds studies, as the cluster sees it; by default each study's own.

    Raises:
        ClusterError: no cluster answers there, the token is missing or wrong, or its version is another one.
    """

    def __init__(self, address: str | None = None, storage: str | None = None) -> None:
        self.address, self.storage = address, storage
        self._cluster: Cluster | None = None
        if address is not None:
            from study.service.client import Cluster

            self._cluster = Cluster(address)

    def __repr__(self) -> str:
        return f"studies on {self.address or 'this machine'}, kept in {self.storage or 'the storage that each names'}"

    def submit(
        self,
        study: str | PathLike[str] | Mapping[str, Any],
        *,
        settings: Sequence[str] = (),
        restarts: int = 0,
        cpus: int | None = None,
    ) -> Handle:
        """Run a study, if it is not running already.

        Args:
            study: its YAML file, or what would stand in it.
            settings: `key=value` above it, e.g. `epochs=2`.
            restarts: on a cluster, times that a driver that was killed is started again.
            cpus: on this machine, CPUs that the run may use; all if None.

        Raises:
            StudyError: the study is wrong; a line for each problem.
            StoreError: its folder cannot be read.
            ClusterError: the cluster is not ready for it; a line for each problem.
        """
        home = Path(tempfile.mkdtemp(prefix="study-run-"))
        file = _file(study, home)
        if self._cluster is not None:
            cluster = self._cluster
            done = once_ended(
                cluster,
                lambda: cluster.submit(file, storage=self.storage, settings=settings, restarts=restarts),
            )
            return Handle(self, StudyFolder(done.folder), job=done.job, already=done.already)
        overrides = [*settings, *([f"storage={json.dumps(self.storage)}"] if self.storage is not None else [])]
        checked = Study.load(file, overrides)
        folder = StudyFolder(child(checked.storage, checked.name))
        if _is_run(folder):
            return Handle(self, folder, already="running")
        where = [] if self.storage is None else ["--storage", self.storage]
        return self._start(
            ["run", str(file), *(f"--set={setting}" for setting in settings), *where], folder, home, cpus
        )

    def resume(self, name: str, *, restarts: int = 0, cpus: int | None = None) -> Handle:
        """Go on with a study as its folder has it.

        Args:
            name: of the study in the storage, or its folder.
            restarts: as in `submit`.
            cpus: as in `submit`.

        Raises:
            StoreError: there is no such study.
            ClusterError: the cluster is not ready for it.
        """
        folder = folder_of(name, self.storage) if self._cluster is None else folder_elsewhere(name, self.storage)
        return self._resume(folder, restarts, cpus)

    def open(self, name: str) -> Handle:
        """A study that was submitted before, by anybody.

        Args:
            name: of the study in the storage (`results` if the connection has none), or its folder.

        Raises:
            StoreError: there is no such study, or it cannot be read from here.
        """
        folder = folder_of(name, self.storage)
        live = [job for job in self._cluster.jobs() if job.folder == folder.uri] if self._cluster else []
        return Handle(self, folder, job=next((job.job for job in live if job.is_live), None))

    def _resume(self, folder: StudyFolder, restarts: int, cpus: int | None) -> Handle:
        if self._cluster is not None:
            cluster = self._cluster
            done = once_ended(cluster, lambda: cluster.resume(folder.uri, restarts=restarts))
            return Handle(self, StudyFolder(done.folder), job=done.job, already=done.already)
        if _is_run(folder):
            return Handle(self, folder, already="running")
        return self._start(["resume", folder.uri], folder, Path(tempfile.mkdtemp(prefix="study-run-")), cpus)

    def _start(self, arguments: list[str], folder: StudyFolder, home: Path, cpus: int | None) -> Handle:
        log = home / "run.log"
        command = [sys.executable, "-m", "study", *arguments, *([] if cpus is None else ["--cpus", str(cpus)])]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, "--no-report"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the notebook, and its end, are not meant for the run.
                start_new_session=True,
            )
        return Handle(self, folder, process=process, log=log)


class Handle:
    """A study that was submitted or opened.

    Attributes:
        folder: its folder's path or address.
        job: id of the cluster's job that runs it; None without one.
        already: why nothing was started for it, `running` or `finished`; None if a run was, or it was opened.
        log: what a run on this machine prints; None for others.
    """

    def __init__(
        self,
        connection: Connection,
        folder: StudyFolder,
        *,
        job: str | None = None,
        already: Literal["running", "finished"] | None = None,
        process: subprocess.Popen[bytes] | None = None,
        log: Path | None = None,
    ) -> None:
        self.folder, self.job, self.already, self.log = folder.uri, job, already, log
        self._connection, self._files, self._process = connection, folder, process

    def __repr__(self) -> str:
        by = f", job {self.job}" if self.job else f", process {self._process.pid}" if self._process else ""
        return f"<study in {self.folder}{by}>"

    def study(self) -> StudyReader:
        """What the study's folder holds now, as frames; also while it is running.

        Raises:
            StoreError: it holds no study yet, or cannot be read from here.
        """
        return StudyReader(self._files)

    def results(self) -> pd.DataFrame:
        """One row per planned replicate, as `StudyReader.replicates` gives it; also while it is running.

        Raises:
            StoreError: as for `study`.
        """
        return self.study().replicates()

    def status(self) -> Status:
        """How far it is, who runs it, and how its runs ended.

        Raises:
            StoreError: as for `study`.
        """
        return status(self.study())

    def logs(self) -> list[str]:
        """The lines that its run has printed; none of a run that this connection has not started.

        Raises:
            ClusterError: the cluster does not answer.
        """
        if self.job is not None and self._connection._cluster is not None:
            return list(self._connection._cluster.logs(self.job))
        return [] if self.log is None else self.log.read_text(errors="replace").splitlines()

    def wait(self, timeout: float | None = None) -> Kind:
        """Wait until nobody runs the study any more.

        Args:
            timeout: seconds; None for as long as it takes.

        Returns:
            How its run ended: `complete`, `failed` (some trials did), `budget` or `interrupted`.

        Raises:
            TimeoutError: it still runs.
            RunError: it broke off or was refused, with what it said.
            StoreError: the folder cannot be read.
            ClusterError: the cluster does not answer.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for _ in self._runs():
            left = EVERY if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{self.folder} is still running after {timeout:g} s")
            time.sleep(min(EVERY, left))
        return self._ended()

    def stop(self, timeout: float | None = None, *, now: bool = False) -> Answer:
        """Ask the run to end: no trial is begun, those in training end with their epoch and keep a checkpoint.

        Args:
            timeout: seconds to wait for its end; None for as long as it takes.
            now: do not wait for the epochs: end its job, or its process on this machine.

        Returns:
            `given_back` once it has ended, or if nobody runs it. `gone` and `silent` if its process has ended, or may
            have, without giving the lock back; the next run takes over.

        Raises:
            TimeoutError: it still runs; the request stands.
            StoreError: the folder cannot be read or written; with `now`, it runs on another machine.
            ClusterError: the cluster does not answer.
        """
        if now:
            return self._stop_now()
        deadline = None if timeout is None else time.monotonic() + timeout
        while (asked := ask(self._files)) is None:
            # Nobody runs it, or its run has not taken the lock yet.
            if not next(self._runs(), False):
                return "given_back"
            if self._live_job() == "pending":
                return self._stop_now()
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self.folder} has not begun after {timeout:g} s")
            time.sleep(EVERY)
        answer = wait(asked, None if deadline is None else max(0.0, deadline - time.monotonic()))
        if answer == "waiting":
            raise TimeoutError(f"{self.folder} is still running after {timeout:g} s; the request to stop stands")
        return answer

    def _stop_now(self) -> Answer:
        cluster = self._connection._cluster
        if cluster is not None and self.job is not None:
            end_job(cluster, self.job)
        elif holder(self._files) is not None:
            end_now(self._files)
        elif self._process is not None and self._process.poll() is None:
            # It has not taken the lock yet.
            self._process.terminate()
            self._process.wait()
        return "gone" if holder(self._files) else "given_back"

    def resume(self, *, restarts: int = 0, cpus: int | None = None) -> Handle:
        """Go on with it as its folder has it; see `Connection.resume`."""
        return self._connection._resume(self._files, restarts, cpus)

    def _live_job(self) -> str | None:
        """The state of the job that runs it; None without one that lives."""
        cluster = self._connection._cluster
        if cluster is None or self.job is None:
            return None
        job = cluster.job(self.job)
        return job.state if job.is_live else None

    def _runs(self) -> Iterator[Literal[True]]:
        """True for as long as somebody runs the study."""
        silent_since: float | None = None
        while True:
            if self._process is not None:
                if self._process.poll() is not None:
                    return
            elif self.job is not None:
                if self._live_job() is None:
                    return
            elif (held := holder(self._files)) is None:
                return
            elif held.state == "alive":
                silent_since = None
            else:
                # Another one may take over, as a job's restart does.
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since >= SUCCESSION:
                    return
            yield True

    def _ended(self) -> Kind:
        if self.already == "finished":
            return "complete"
        if self._process is not None:
            code = self._process.returncode
            if code not in _KINDS:
                said = [line.removeprefix("study: ") for line in self.logs() if line.startswith("study: ")]
                raise RunError("\n".join(said) or f"the run ended with code {code}; its log is {self.log}")
            return _KINDS[code]
        cluster = self._connection._cluster
        job = cluster.job(self.job) if cluster is not None and self.job is not None else None
        if job is not None and job.state == "succeeded":
            return "complete"
        if (held := holder(self._files)) is not None:
            raise RunError(f"{self.folder}: no sign of life of {held}; resume goes on with it")
        runs = self._files.runs()
        if job is not None and (not runs or (runs[-1].get("started") or "") < (job.started or "")):
            raise RunError(f"job {job.job} {job.state}: {job.message}")
        if not runs:
            raise RunError(f"{self.folder} has not been run")
        end = ended(runs[-1])
        if end.kind in ("broken", "cut off"):
            raise RunError(end.line)
        return end.kind


def once_ended(cluster: Cluster, attempt: Callable[[], Submitted]) -> Submitted:
    """Submit or resume, again if the study's last job is only just leaving: its run has given the lock back already.

    Args:
        cluster: that is asked about the job.
        attempt: submits.
    """
    deadline = time.monotonic() + LEAVING
    while True:
        done = attempt()
        if done.already != "running" or done.job is None or time.monotonic() >= deadline:
            return done
        if not _is_leaving(StudyFolder(done.folder), cluster.job(done.job)):
            return done
        time.sleep(EVERY)


def end_job(cluster: Cluster, job: str) -> None:
    """Stop a job at once, and wait until it is over.

    Raises:
        ClusterError: there is no such job, it does not end, or the cluster does not answer.
    """
    cluster.stop_now(job)
    deadline = time.monotonic() + LEAVING
    while cluster.job(job).is_live:
        if time.monotonic() >= deadline:
            raise ClusterError(f"job {job} was told to stop and is still there after {LEAVING:g} s")
        time.sleep(EVERY)


def _is_leaving(folder: StudyFolder, job: Job) -> bool:
    """Whether a job's run has ended, as far as its folder can be seen from here."""
    if not job.is_live:
        return True
    try:
        runs = folder.runs()
        if not runs or not runs[-1].get("ended") or job.started is None or holder(folder) is not None:
            return False
    except StoreError:
        return False
    return datetime.fromisoformat(runs[-1]["started"]) >= datetime.fromisoformat(job.started)


def _is_run(folder: StudyFolder) -> bool:
    held = holder(folder)
    return held is not None and held.state == "alive"


def _file(study: str | PathLike[str] | Mapping[str, Any], home: Path) -> Path:
    """The study's file; a mapping is written down in one of its own, which a run reads again when it begins."""
    if not isinstance(study, Mapping):
        return Path(study)
    file = home / "study.yaml"
    # JSON is YAML.
    file.write_text(json.dumps(study, indent=1, default=_plain) + "\n", encoding="utf-8")
    return file


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as plain ones."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping | PathLike):
        return dict(value) if isinstance(value, Mapping) else str(value)
    raise StoreError(f"{value!r} has no place in a study")
