"""A real Ray cluster with its dashboard, its Jobs and a token, as `study submit` finds one."""

import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from cluster import HEALTH, RAY, Cluster, Node, free_port
from processes import ENVIRONMENT, wait_for

#: The token of the test clusters: any text would do; Ray's own are 64 hexadecimal digits.
TOKEN = "0123456789abcdef" * 4


class ServiceNode(Node):
    """A `ray start` like `Node`'s, which may run under a command of its own (`unshare --mount ...`)."""

    def __init__(self, arguments, temporary, environment, before=()):
        self.log = Path(temporary) / f"{arguments[0].strip('-').split('=')[0]}-{free_port()}.log"
        start = [RAY, "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000", *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*before, *start], stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        self._seen = set()


class ServiceCluster(Cluster):
    """Nodes with a dashboard on loopback that wants a token. A context: whatever is left is killed at its end.

    Attributes:
        url: of the dashboard.
        address: of its head (GCS).
        client: the environment of somebody who has the token and has named no cluster.

    Args:
        cpus: of each node that is started at once; the first is the head's.
        token: in a file of mode 600, as a person keeps it.
        before: by the number of the node, the command that `ray start` runs under.
        gpus: that each node claims to have.
        head: further arguments of the head's `ray start`.
        environment: of every node, above the usual one.
    """

    def __init__(self, *cpus, token=TOKEN, before=None, gpus=0, head=(), **environment):
        self._secret = tempfile.TemporaryDirectory(prefix="ray-token-")
        self.token_file = Path(self._secret.name) / "token"
        self.token_file.write_text(token)
        self.token_file.chmod(0o600)
        usual = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("RAY_")}
        self.client = {**usual, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}
        # A job's `python` is found by its node's PATH.
        path = f"{Path(sys.executable).parent}{os.pathsep}{usual.get('PATH', '')}"
        self._node = {**self.client, "PATH": path, **HEALTH, "RAY_JOB_STOP_WAIT_TIME_S": "3", **environment}
        self._before, self._gpus, self._head = before or {}, gpus, head
        self.url = f"http://127.0.0.1:{free_port()}"
        super().__init__(*cpus)

    def _start(self, cpus):
        number = len(self.nodes)
        where = [f"--num-cpus={cpus}", f"--num-gpus={self._gpus}", f"--temp-dir={self._temporary.name}/{number}"]
        if self.nodes:
            role = [f"--address={self.address}"]
        else:
            role = ["--head", f"--port={self.address.split(':')[1]}", "--include-dashboard=true",
                    "--dashboard-host=127.0.0.1", f"--dashboard-port={self.url.rpartition(':')[2]}",
                    f"--ray-client-server-port={free_port()}", *self._head]  # fmt: skip
        # Of two nodes on one machine only one has the usual port.
        role.append(f"--dashboard-agent-listen-port={free_port()}")
        node = ServiceNode([*role, *where], self._temporary.name, self._node, self._before.get(number, ()))
        self.nodes.append(node)
        return node

    def _wait(self, node):
        super()._wait(node)
        if node is self.head:
            wait_for(self._answers, seconds=90, every=0.5)

    def _answers(self):
        """Whether its Jobs answer: they come a while after the head."""
        token = self.token_file.read_text()
        request = urllib.request.Request(f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    @property
    def folder(self):
        """Where its nodes keep their sessions."""
        return self._temporary.name

    def close(self):
        super().close()
        self._secret.cleanup()
