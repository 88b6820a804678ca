"""Notices that the cluster itself is gone: its head, or the node on which the driver runs.

Ray does not say so. When the driver's own raylet has died, its Tune waits for ever for a place to put a trial; when the
head has died, whatever asks it blocks for a minute, and then Ray ends the process from within, without an exception.
A thread here asks both ports whether anybody is there, and names what is gone in one line.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray

from study.preflight import ClusterError

#: Seconds between two looks, and that a port may take to answer.
EVERY, ANSWER = 2.0, 5.0

#: Seconds without an answer after which something is gone. A raylet never comes back; a head may, within a minute
#: of Ray's own patience.
RAYLET_GONE, HEAD_GONE = 6.0, 25.0

#: Seconds for a clean end. Whoever is still there then waits inside Ray for what is gone.
LEAVE = 15.0


class ClusterLost(ClusterError):
    """The cluster is gone in the middle of a run; one line."""


@dataclass
class _Port:
    """Something that has to answer."""

    what: str
    host: str
    port: int
    patience: float
    answered: float = 0.0

    def look(self) -> bool:
        """Whether it answered within its patience."""
        try:
            socket.create_connection((self.host, self.port), timeout=ANSWER).close()
        except OSError:
            return time.monotonic() - self.answered < self.patience
        self.answered = time.monotonic()
        return True


class Watch:
    """Watches the connected cluster for as long as it is entered.

    Args:
        leave: called in the watching thread, with the line that `check` raises, where the context has not been left
            `LEAVE` seconds after the loss. It has to end the process; by default it says the line and does.

    Attributes:
        lost: the line, once something is gone.
    """

    def __init__(self, leave: Callable[[str], None] | None = None) -> None:
        self.lost: str | None = None
        self._leave = leave or _say_and_exit
        self._over = threading.Event()
        self._ports: list[_Port] = []
        self._thread = threading.Thread(target=self._look, name="study-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._ports = _ports()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()

    def check(self) -> None:
        """Do nothing, or

        Raises:
            ClusterLost: something is gone.
        """
        if self.lost:
            raise ClusterLost(self.lost)

    def _look(self) -> None:
        for port in self._ports:
            port.answered = time.monotonic()
        while not self._over.wait(EVERY):
            gone = next((port for port in self._ports if not port.look()), None)
            if gone:
                self.lost = (
                    f"the Ray cluster is gone: {gone.what} at {gone.host}:{gone.port} does not answer any more; "
                    "what is finished is stored, and the same command goes on from there"
                )
                break
        if self.lost and not self._over.wait(LEAVE):
            self._leave(self.lost)


def _ports() -> list[_Port]:
    """The head's and that of the node that the driver is on. None through Ray's client, which notices by itself."""
    if ray.util.client.ray.is_connected():
        return []
    here = ray.get_runtime_context()
    host, _, port = here.gcs_address.rpartition(":")
    ports = [_Port("its head (GCS)", host.strip("[]"), int(port), HEAD_GONE)]
    for node in ray.nodes():
        if node["NodeID"] == here.get_node_id():
            address, port = node["NodeManagerAddress"], int(node["NodeManagerPort"])
            ports.append(_Port("the node of this command (raylet)", address, port, RAYLET_GONE))
    return ports


def _say_and_exit(line: str) -> None:
    print(f"study: {line}", file=sys.stderr, flush=True)
    os._exit(2)
