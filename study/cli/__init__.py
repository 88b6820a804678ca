"""The `study` command. Each verb is a thin line from the arguments to the package; errors are one clear line each."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from study.cli import auditing, exporting, following, looking, merging, planning, running, submitting
from study.cli.codes import BAD_INPUT, INTERRUPTED, UNREAD
from study.preflight import ClusterError
from study.spec import StudyError
from study.store import StoreError
from trainables.data import DataError
from trainables.models.weights import WeightsError

_EPILOG = """\
exit codes: 0 done; 1 done, but some trials failed; 2 the input, the data, the storage or the cluster is not as it has
to be (each problem on a line of its own; nothing that is stored is harmed); 3 stopped by the study's budget (the same
command with a larger one goes on); 130 interrupted (the same command goes on)"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    parser = _Parser(prog="study", description="Studies of sharpness-aware training on Ray Tune.", epilog=_EPILOG)
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for module in (planning, running, submitting, following, looking, auditing, exporting, merging):
        module.register(verbs)
    options = parser.parse_args(arguments)
    _warn_in_lines()
    try:
        code: int = options.verb(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read has read enough (`| head`); nothing more is to be flushed at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except (StudyError, StoreError, ClusterError, DataError, WeightsError) as error:
        for line in str(error).splitlines():
            print(f"study: {line}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        # During the run itself Ray Tune ends the trials and `study run` reports; this is before or after it.
        print("study: interrupted; nothing that was finished is lost", file=sys.stderr)
        return INTERRUPTED


def _warn_in_lines() -> None:
    """What the package has to say while it works, such as that a store is waited for, looks like its errors."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("study: %(message)s"))
    log = logging.getLogger("study")
    log.handlers, log.propagate = [handler], False
