"""A real Ray cluster of several nodes on this machine, whose nodes can be killed, removed and added.

Every node is its own `ray start --block` in a session of its own, as on real machines, and is found and killed by its
process ids only.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from processes import ENVIRONMENT, descendants, wait_for

#: For the nodes and whoever connects to them. Left alone, a head wants a token if it finds one; nobody brings it.
ACCESS = {"RAY_AUTH_MODE": "disabled"}

#: Ray's own pace finds a silent node after tens of seconds.
HEALTH = {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "500",
          "RAY_health_check_timeout_ms": "1000", "RAY_health_check_failure_threshold": "3"}  # fmt: skip

RAY = str(Path(sys.executable).parent / "ray")


class Node:
    """One `ray start`, with everything that it has started."""

    def __init__(self, arguments, temporary, environment):
        self.log = Path(temporary) / f"{arguments[0].strip('-').split('=')[0]}-{free_port()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [RAY, "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**ENVIRONMENT, **ACCESS, **HEALTH, **environment},
                start_new_session=True,
            )
        self._seen = set()

    def processes(self):
        """The ids of all its living processes, those included whose parent is gone."""
        if self.process.poll() is None:
            self._seen |= {self.process.pid, *descendants(self.process.pid)}
        self._seen = {pid for pid in self._seen | {p for s in self._seen for p in descendants(s)} if living(pid)}
        return sorted(self._seen)

    def named(self, word):
        """The ids of its processes whose program's path has `word`, or whose title begins with it."""
        return [pid for pid in self.processes() if word in title(pid).split(" --")[0].split("\0")[0]]

    def workers(self):
        """The workers that train a trial on it."""
        return [pid for pid in self.processes() if title(pid).startswith("ray::ResourceTrainable.train")]

    def kill_raylet(self):
        """As a crash of Ray does it: its workers end by themselves when they miss it."""
        family = self.processes()
        (raylet,) = self.named("raylet/raylet")
        os.kill(raylet, signal.SIGKILL)
        wait_for(lambda: not living(raylet))
        return family

    def remove(self):
        """As a lost machine does it: everything at once, without a word."""
        family = self.processes()
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(30)
        wait_for(lambda: not any(map(living, family)), seconds=30)


class Cluster:
    """Nodes that can be killed by name. A context: whatever is left is killed at its end.

    Args:
        cpus: of each node that is started at once; the first is the head's.
        environment: of every node, above the usual one.
    """

    def __init__(self, *cpus, **environment):
        # Sockets lie in it: their paths may have 107 letters.
        self._temporary = tempfile.TemporaryDirectory(prefix="ray-nodes-", ignore_cleanup_errors=True)
        self._environment = environment
        self.address = f"127.0.0.1:{free_port()}"
        self.nodes = []
        try:
            for number in cpus[:1]:
                self.add(number)
            # At once: each takes its seconds.
            for node in [self._start(number) for number in cpus[1:]]:
                self._wait(node)
        except BaseException:
            self.close()
            raise

    def add(self, cpus):
        """Another node, ready to work."""
        node = self._start(cpus)
        self._wait(node)
        return node

    def _start(self, cpus):
        # In a folder of its own, as on a machine of its own: of two that start in one folder one may take the other's
        # sockets, and Ray's raylet then aborts.
        folder = f"{self._temporary.name}/{len(self.nodes)}"
        where = [f"--num-cpus={cpus}", "--num-gpus=0", f"--temp-dir={folder}"]
        if self.nodes:
            role = [f"--address={self.address}"]
        else:
            role = ["--head", f"--port={self.address.split(':')[1]}", "--include-dashboard=false", "--no-monitor",
                    f"--ray-client-server-port={free_port()}"]  # fmt: skip
        node = Node([*role, *where], self._temporary.name, self._environment)
        self.nodes.append(node)
        return node

    def _wait(self, node):
        def up():
            assert node.process.poll() is None, f"ray start ended: {node.log.read_text()[-2000:]}"
            return "Ray runtime started" in node.log.read_text() and node.named("raylet/raylet")

        wait_for(up, seconds=90)

    @property
    def head(self):
        return self.nodes[0]

    def close(self):
        for node in reversed(self.nodes):
            node.remove()
        self._temporary.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def title(pid):
    """A process's command line or, if it has given itself one, its title."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def living(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
