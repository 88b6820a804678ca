"""`python -m study.service.supervise --restarts N -- run FILE ...` (or `resume FOLDER`): the job of a study.

Ray runs a job once. This small parent starts the driver again when it was killed, by the kernel for want of memory say;
the store has what is finished, and the lock of a process that is gone is taken over at once. It lives and dies with the
node of the driver: when that is lost, `study resume` goes on. A driver that ended by itself is not started again, and
neither is one that somebody has stopped.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from study.preflight import ClusterError
from study.service.jobs import signal_name

#: Seconds before the first start after a death (doubled each time), and the most.
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 10.0

#: Signals by which somebody ends a driver; others are its misfortune.
_ENDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_PR_SET_PDEATHSIG = 1


def own_cluster() -> str:
    """The address of the cluster whose job this process is: Ray sets it for every job.

    Raises:
        ClusterError: this is no job.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if not address or address == "auto" or "://" in address:
        raise ClusterError("this is no job of a Ray cluster (RAY_ADDRESS names none): use study submit")
    return address


class Supervisor:
    """Starts a driver until it has ended by itself, was stopped, or has been killed too often.

    Args:
        start: starts the driver.
        restarts: times that one that was killed is started again.
        sleep: waits for seconds.
        say: tells a person.
        asked: whether somebody has asked the study to stop.
    """

    def __init__(
        self,
        start: Callable[[], subprocess.Popen[bytes]],
        restarts: int,
        sleep: Callable[[float], None] = time.sleep,
        say: Callable[[str], None] = lambda line: print(f"study: {line}", file=sys.stderr, flush=True),
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self._start, self._restarts, self._sleep, self._say, self._asked = start, restarts, sleep, say, asked
        self._stopped = False

    def stop(self, *_: int | FrameType | None) -> None:
        """Somebody stops the job. Ray tells the driver itself, which a second word would cut short."""
        self._stopped = True

    def run(self) -> int:
        """The exit code of the last driver; 128 and its signal's number if it was killed."""
        pause = FIRST_PAUSE
        for restart in range(self._restarts + 1):
            code = self._start().wait()
            if code >= 0:
                return code
            name = signal_name(-code)
            if self._stopped or -code in _ENDED:
                return 128 - code
            hint = " (is its node short of memory?)" if -code == signal.SIGKILL else ""
            if restart == self._restarts:
                often = f" {restart + 1} times" if restart else ""
                self._say(f"the driver was killed by {name}{often}{hint}; study resume goes on from what is stored")
                return 128 - code
            self._say(
                f"the driver was killed by {name}{hint}; restart {restart + 1} of {self._restarts} in {pause:g} s "
                "goes on from what is stored"
            )
            self._sleep(pause)
            if self._stopped or self._asked():
                self._say("somebody has asked the study to stop: the driver is not started again")
                return 128 - code
            pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("unreachable")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study of a job."""
    parser = argparse.ArgumentParser(prog="study job")
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    wanted = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    try:
        command = [sys.executable, "-m", "study", *wanted, "--address", own_cluster(), "--no-report"]
    except ClusterError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, preexec_fn=_die_with_parent, stdin=subprocess.DEVNULL)

    supervisor = Supervisor(start, options.restarts, asked=lambda: _is_asked(wanted))
    signal.signal(signal.SIGTERM, supervisor.stop)
    signal.signal(signal.SIGINT, supervisor.stop)
    return supervisor.run()


def _is_asked(wanted: Sequence[str]) -> bool:
    """Whether the study of these arguments was asked to stop; where that cannot be told, nobody has."""
    from study.service.probe import meant
    from study.spec import StudyError
    from study.stopping import is_asked
    from study.store import StoreError

    try:
        return is_asked(meant(wanted)[1])
    except (StudyError, StoreError):
        return False


def _die_with_parent() -> None:
    """A driver whose parent was killed ends cleanly: nobody would see it any more."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
