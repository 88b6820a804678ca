"""A Ray cluster as its user sees it, through the Jobs of its dashboard: submit a study, list, read, stop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import posixpath
import queue
import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from study.naming import is_plain
from study.preflight import ClusterError
from study.provenance import new_run_id
from study.service import looks
from study.service.jobs import Job, job_of, metadata
from study.service.parcel import FILE, check_places, pack
from study.service.preflight import Preflight, PreflightError, judged
from study.service.probe import MARK as ANSWER
from study.spec import Study, StudyError
from study.store import StoreError, StudyFolder, child

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

__all__ = ["Cluster", "ClusterError", "Job", "PreflightError", "Submitted"]

#: Seconds that the dashboard may take to be reached and to answer; an upload may be large.
REACH_WITHIN, ANSWER_WITHIN, UPLOAD_WITHIN = 5.0, 30.0, 600.0

#: Seconds that the look at the nodes may take. A job waits for its runtime environment on a busy head.
LOOK_WITHIN = 600.0

#: Environment variables by which Ray would take another cluster than the one that was named.
_OTHERS = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")

#: Ray's own words on each upload and connection, on standard error.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


@dataclass(frozen=True)
class Submitted:
    """What became of a submission.

    Attributes:
        job: id of the job that runs the study; None if none does (finished, or run without a job).
        study: its name.
        folder: its folder.
        already: None if it was submitted now, else why it was not.
        message: that in a line.
    """

    job: str | None
    study: str
    folder: str
    already: Literal["running", "finished"] | None
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Cluster:
    """A cluster by the address of its dashboard, `http://HOST:PORT`.

    The token comes from Ray's own environment: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN.

    Raises:
        ClusterError: nobody answers, the token is missing or wrong, or it runs another version of Ray.
    """

    def __init__(self, address: str) -> None:
        self.address = _checked(address)
        self._client = _connect(self.address)

    def submit(
        self,
        file: Path | str,
        *,
        storage: str | None,
        settings: Sequence[str] = (),
        restarts: int = 0,
        small: bool = False,
        data: str | None = None,
        show: Callable[[str], None] = lambda line: None,
    ) -> Submitted:
        """Look at every node, and run the study as a job if it is neither running nor finished.

        Args:
            file: the study file, on this machine.
            storage: what holds studies, as the cluster sees it; the file's if None.
            settings: `key=value` above the file's.
            restarts: times that a driver that was killed is started again.
            small: take the file's own `small` settings.
            data: folder of the data sets' files, as the cluster sees it; the file's or the head's if None.
            show: is told the table of the nodes, line by line.

        Raises:
            StudyError: the file is wrong, or names what the cluster cannot see.
            StoreError: the storage's address is none.
            PreflightError: the cluster is not ready for it: a line for each problem.
            ClusterError: it does not answer any more.
        """
        places = {"storage": storage, "data": data}
        overrides = [*settings, *(f"{key}={json.dumps(value)}" for key, value in places.items() if value is not None)]
        study = Study.load(file, overrides, small=small)
        check_places(study)
        folder = StudyFolder(child(study.storage, study.name)).uri
        text = Path(file).read_text(encoding="utf-8")
        arguments = [FILE, *(f"--set={setting}" for setting in settings), *(["--small"] if small else [])]
        arguments += [f"--{key}={value}" for key, value in places.items() if value is not None]
        if (live := self._live(folder)) is not None:
            return live
        with tempfile.TemporaryDirectory(prefix="study-submit-") as parcel:
            pack(study, text, Path(parcel))
            written = metadata(study.name, folder, study.storage, text)
            return self._run(["run", *arguments], written, parcel, restarts, show)

    def resume(self, folder: str, *, restarts: int = 0, show: Callable[[str], None] = lambda line: None) -> Submitted:
        """Go on with a study as its folder has it; the cluster has to see the folder, this machine need not.

        Args:
            folder: of the study, as the cluster sees it.
            restarts: times that a driver that was killed is started again.
            show: is told the table of the nodes, line by line.

        Raises:
            StoreError: the address is none.
            PreflightError: the cluster is not ready for it: a line for each problem.
            ClusterError: it does not answer any more.
        """
        uri = StudyFolder(folder).uri
        storage, name = apart(uri)
        if (live := self._live(uri)) is not None:
            return live
        with tempfile.TemporaryDirectory(prefix="study-submit-") as parcel:
            return self._run(["resume", uri], metadata(name, uri, storage, None), parcel, restarts, show)

    def jobs(self) -> list[Job]:
        """The cluster's jobs that run studies, or ran them since it was started, the latest first.

        Raises:
            ClusterError: it does not answer.
        """
        with _explained(self.address):
            found = [job_of(details.model_dump(mode="json")) for details in self._client.list_jobs()]
        return sorted((job for job in found if job), key=lambda job: job.started or "", reverse=True)

    def job(self, name: str) -> Job:
        """The job of that id, or the latest of the study with that name or folder.

        Raises:
            ClusterError: there is none, or studies of that name in several folders.
        """
        jobs = self.jobs()
        exact = [job for job in jobs if name in (job.job, job.folder)]
        found = exact or [job for job in jobs if job.study == name]
        if not found:
            raise ClusterError(f"{name}: no job of it at {self.address}; study list --address {self.address} has all")
        if len(folders := sorted({job.folder for job in found})) > 1:
            raise ClusterError(f"{name}: could be {' or '.join(folders)}; write the folder, or the job's id")
        return found[0]

    def logs(self, job: str, follow: bool = False) -> Iterator[str]:
        """The lines that a job has printed; with `follow` those that it still prints, until it ends.

        Raises:
            ClusterError: there is no such job, or the connection was lost.
        """
        with _explained(self.address):
            self._known(job)
            if not follow:
                yield from self._client.get_job_logs(job).splitlines()
                return
        with _explained(self.address):
            yield from _lines(_tail(self._client, job))

    def stop_now(self, job: str) -> None:
        """End a job at once: what it has not written down is lost, and trained again by whoever goes on.

        Raises:
            ClusterError: there is no such job, or the cluster does not answer.
        """
        with _explained(self.address):
            self._known(job)
            self._client.stop_job(job)

    def _known(self, job: str) -> None:
        """Also: an id goes into a URL."""
        if job not in {details.submission_id for details in self._client.list_jobs()}:
            raise ClusterError(f"{job}: no such job at {self.address}")

    def _live(self, folder: str) -> Submitted | None:
        """The answer to a submission of a study that a living job of this cluster runs."""
        for job in self.jobs():
            if job.is_live and job.folder == folder:
                return Submitted(job.job, job.study, folder, "running", f"{folder} is being run by job {job.job}")
        return None

    def _run(
        self,
        command: list[str],
        written: dict[str, str],
        parcel: str,
        restarts: int,
        show: Callable[[str], None],
    ) -> Submitted:
        name, folder = written["study"], written["folder"]
        if restarts < 0:
            raise StudyError([f"restarts: {restarts} is no number of times"])
        seen = self._look(command, written, parcel)
        for line in [*seen.lines(), *seen.notes]:
            show(line)
        if seen.holder is not None:
            return Submitted(None, name, folder, "running", f"{folder} is being run by {seen.holder['text']}")
        if seen.problems:
            raise PreflightError(seen)
        if seen.missing is False:
            message = f"nothing is missing in {folder}: all {seen.replicates} replicates are done"
            return Submitted(None, name, folder, "finished", message)
        entry = ["python", "-m", "study.service.supervise", f"--restarts={restarts}", "--", *command]
        with _explained(self.address):
            job = self._client.submit_job(
                entrypoint=shlex.join(entry),
                submission_id=f"{name}-{new_run_id()}",
                runtime_env={"working_dir": parcel},
                metadata=written,
            )
        return Submitted(job, name, folder, None, f"job {job} runs {name} in {folder}")

    def _look(self, command: list[str], written: Mapping[str, str], parcel: str) -> Preflight:
        """Run the probe as a job of its own."""
        job = f"preflight-{new_run_id()}"
        with _explained(self.address):
            self._client.submit_job(
                entrypoint=shlex.join(["python", "-m", "study.service.probe", *command]),
                submission_id=job,
                runtime_env={"working_dir": parcel},
                metadata={"job_name": f"preflight of {written['study']}"},
            )
            try:
                log = self._ended(job)
            except BaseException:
                with suppress(ClusterError, RuntimeError):
                    self._client.stop_job(job)
                raise
            # It stays in the list as done: of a job that is deleted the dashboard shows a driver that failed.
        answer = next((line for line in log.splitlines() if line.startswith(ANSWER)), None)
        if answer is None:
            raise ClusterError(_unanswered(log))
        return judged(json.loads(answer.removeprefix(ANSWER)), written["storage"], looks.facts())

    def _ended(self, job: str) -> str:
        """A job's log, once it has ended."""
        deadline, pause = time.monotonic() + LOOK_WITHIN, 0.2
        while time.monotonic() < deadline:
            details = self._client.get_job_info(job)
            if details.status.is_terminal():
                log = self._client.get_job_logs(job)
                return log if details.status == "SUCCEEDED" else f"{log}\n{details.message or ''}"
            time.sleep(pause)
            pause = min(1.0, 1.5 * pause)
        raise ClusterError(f"the cluster at {self.address} has not run the preflight within {LOOK_WITHIN:.0f} s")


def apart(uri: str) -> tuple[str, str]:
    """A folder's storage and the study's name.

    Raises:
        StoreError: its last part is no study's name.
    """
    path, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    storage, name = posixpath.split(path)
    if not is_plain(name):
        raise StoreError(f"{uri}: is no study's folder: its last part has to be the study's name")
    return f"{storage}{mark}{query}", name


def _checked(address: str) -> str:
    """The address without what is not needed.

    Raises:
        ClusterError: it is none of a dashboard.
    """
    try:
        parts = urlsplit(address)
        if parts.username is not None or parts.password is not None:
            # It would be printed, and sent along with the token.
            raise ClusterError("--address: leave credentials out; the token comes from RAY_AUTH_TOKEN_PATH")
        fit = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        fit = fit and not parts.query and not parts.fragment
    except ValueError:
        fit = False
    if not fit:
        said = address.rpartition("@")[2]
        raise ClusterError(f"{said}: write the address of the cluster's dashboard, e.g. http://127.0.0.1:8265")
    return address.rstrip("/")


def _connect(address: str) -> JobSubmissionClient:
    with _explained(address), _only(address):
        import ray
        import requests
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):
            """Ray's own waits for ever for a server that is silent."""

            def _do_request(self, method: str, endpoint: str, **more: Any) -> requests.Response:
                within = UPLOAD_WITHIN if method == "PUT" else ANSWER_WITHIN
                response: requests.Response = super()._do_request(
                    method, endpoint, timeout=(REACH_WITHIN, within), **more
                )
                return response

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        client = Client(address)
        if client._server_ray_version != ray.__version__:
            raise ClusterError(
                f"the cluster at {address} runs Ray {client._server_ray_version}, and this machine has "
                f"{ray.__version__}; install ray=={client._server_ray_version} here, or build the cluster with this one"
            )
    return client


@contextmanager
def _only(address: str) -> Iterator[None]:
    """The cluster that was named, whatever the environment would have Ray take."""
    hidden = {name: os.environ.pop(name) for name in _OTHERS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """What Ray's client raises, as one line that says what to do."""
    try:
        yield
    except (ClusterError, StudyError, StoreError):
        raise
    except (AttributeError, NameError, AssertionError):
        # Ours.
        raise
    except Exception as error:
        raise ClusterError(_line(error, address)) from None


def _line(error: Exception, address: str) -> str:
    import requests
    from ray.exceptions import AuthenticationError

    if isinstance(error, AuthenticationError):
        # Ray's own text is a page, and what comes from a server is not repeated: it may be anybody's.
        text = error.message
        if "Authentication failed" in text:
            return (
                f"the cluster at {address} refuses this token; take the one that its head was started with "
                "(RAY_AUTH_TOKEN_PATH, or RAY_AUTH_TOKEN)"
            )
        if "couldn't find" in text:
            return "RAY_AUTH_MODE=token, and no token is found; set RAY_AUTH_TOKEN_PATH to a file that holds it"
        return (
            f"the cluster at {address} wants a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file that "
            "holds it"
        )
    if isinstance(error, requests.exceptions.SSLError):
        return f"the cluster at {address} shows a certificate that is not trusted here"
    if isinstance(error, requests.exceptions.Timeout):
        return f"the cluster at {address} does not answer"
    if isinstance(error, ConnectionError | requests.exceptions.ConnectionError):
        return f"no cluster at {address}: nobody answers; is its dashboard forwarded to this port?"
    said = " ".join(str(error).split())
    if isinstance(error, KeyError | ValueError | TypeError) or "404" in said[:60]:
        return f"what answers at {address} is no Ray dashboard"
    return f"the cluster at {address} answers with an error: {said[:300]}"


def _unanswered(log: str) -> str:
    """Why the probe has not answered, by its log."""
    if "No module named 'study" in log or "No module named study" in log:
        return "the head of the cluster has no sharpness-study in its `python`; install this commit there"
    if "python: not found" in log or "python: command not found" in log:
        return "the head of the cluster has no `python` on its PATH; start Ray in the environment of this project"
    lines = [line for line in log.splitlines() if line.strip()]
    return f"the preflight has failed on the head: {lines[-1][:300] if lines else 'it has printed nothing'}"


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    """Whole lines of what comes in pieces."""
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split("\n")
        yield from whole
    if rest:
        yield rest


def _tail(client: JobSubmissionClient, job: str) -> Iterator[str]:
    """What a job prints, as it comes. In a thread: a notebook's own has an event loop already."""
    chunks: queue.Queue[str | Exception | None] = queue.Queue()

    async def read() -> None:
        async for chunk in client.tail_job_logs(job):
            chunks.put(chunk)

    def listen() -> None:
        try:
            asyncio.run(read())
        except Exception as error:
            chunks.put(error)
        chunks.put(None)

    threading.Thread(target=listen, name="study-logs", daemon=True).start()
    while (chunk := chunks.get()) is not None:
        if isinstance(chunk, Exception):
            raise chunk
        yield chunk
