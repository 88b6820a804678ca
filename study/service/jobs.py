"""Jobs of a cluster that run studies: what is written on one, and how it stands or ended in a line. No Ray."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from study.cli.codes import BAD_INPUT, FAILED_TRIALS, INTERRUPTED, STOPPED_BY_BUDGET
from study.lock import me
from study.service.looks import version

#: On every job of ours, and on nobody else's: its value is the version that submitted it.
MARK = "sharpness_study"

#: States of a job that has not ended.
LIVE = ("pending", "running")

#: What the exit codes of `study run` mean, in a line; the log says more.
_ENDS = {
    FAILED_TRIALS: "done, but some trials failed",
    BAD_INPUT: "refused or broken off: its log says why",
    STOPPED_BY_BUDGET: "stopped by its budget",
    INTERRUPTED: "interrupted; what is finished is stored",
}


@dataclass(frozen=True)
class Job:
    """A job of the cluster that runs, or ran, a study. Times are ISO 8601 in UTC.

    Attributes:
        job: its id.
        study: the study's name.
        folder: the study's folder.
        state: pending, running, stopped, succeeded or failed, in Ray's words.
        message: how it stands or ended, in a line.
    """

    job: str
    study: str
    folder: str
    state: str
    started: str | None
    ended: str | None
    message: str

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def metadata(study: str, folder: str, storage: str, text: str | None) -> dict[str, str]:
    """What is written on the job of a study, for whoever looks at the cluster: names and digests, no secret.

    Args:
        study: its name.
        folder: its folder, an address without credentials.
        storage: what holds the folder.
        text: the study file as its user wrote it; None where the folder's own is meant.
    """
    who = me()
    written = {
        MARK: version(),
        "job_name": study,  # what the dashboard shows as its name
        "study": study,
        "folder": folder,
        "storage": storage,
        "submitted_by": f"{who['user']}@{who['host']}",
    }
    if text is not None:
        written["file_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return written


def job_of(details: Mapping[str, Any]) -> Job | None:
    """A job as the cluster lists it; None if it is not one of ours.

    Args:
        details: `submission_id`, `status`, `message`, `metadata`, `start_time` and `end_time` (ms of Unix time),
            `driver_exit_code`, as Ray's REST interface has them.
    """
    written = details.get("metadata") or {}
    if MARK not in written or not details.get("submission_id") or not {"study", "folder"} <= written.keys():
        return None
    state = str(details.get("status", "")).lower()
    return Job(
        str(details["submission_id"]),
        written["study"],
        written["folder"],
        state,
        _time(details.get("start_time")),
        _time(details.get("end_time")),
        _message(state, details.get("driver_exit_code"), str(details.get("message") or "")),
    )


def _message(state: str, code: int | None, said: str) -> str:
    if state in ("succeeded", "running"):
        return "done" if state == "succeeded" else ""
    if state == "stopped":
        return "stopped at once; what is finished is stored"
    if state == "failed" and code in _ENDS:
        return _ENDS[code]
    if state == "failed" and code is not None and (number := -code if code < 0 else code - 128) > 0:
        return f"its driver was killed ({signal_name(number)}); what is finished is stored"
    line = next((line for line in said.splitlines() if line.strip()), "")
    return line if len(line) <= 200 else f"{line[:197]}..."


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; `signal 77` for one that has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
