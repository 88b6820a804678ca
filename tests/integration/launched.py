"""`ray up` with `deploy/onprem.yaml` on test hosts, as somebody calls it at a clone of this project."""

import re
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from processes import ENVIRONMENT, wait_for

PROJECT = Path(__file__).parents[2]
ONPREM = PROJECT / "deploy" / "onprem.yaml"


class Launcher:
    """Somebody's machine: a clone with a commit, a home with a token, and the commands that are called there.

    Attributes:
        clone: this project as it is here, committed.
        commit: that commit.
        token: the secret of the cluster.
    """

    def __init__(self, folder, hosts, head, workers):
        self.hosts, self.folder = hosts, Path(folder)
        self.clone, self.home = self.folder / "clone", self.folder / "client-home"
        self.home.mkdir(parents=True)
        self.commit = committed_copy(self.clone)
        # `ray up` is called with this environment's Ray.
        (self.clone / ".venv").mkdir()
        shutil.copy(Path(sys.prefix) / "pyvenv.cfg", self.clone / ".venv" / "pyvenv.cfg")
        self.file = self.clone / "deploy" / "onprem.yaml"
        self.file.write_text(filled_in(head.address, [worker.address for worker in workers], hosts.key, sys.prefix))
        self.ray("get-auth-token", "--generate")
        self.token = (self.home / ".ray" / "auth_token").read_text().strip()

    @property
    def environment(self):
        return {
            **ENVIRONMENT,
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}:/usr/sbin",
            "RAY_AUTH_MODE": "token",
            "RAY_UP_enable_autoscaler_v2": "0",
            # Ray keeps what it knows of a cluster there.
            "TMPDIR": str(self.folder),
            "RAY_TMPDIR": str(self.folder),
        }

    def start(self, *command, **more):
        return subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, cwd=self.clone, env={**self.environment, **more}, start_new_session=True,
        )  # fmt: skip

    def call(self, *command, seconds=240, code=0, **more):
        """What a command prints; it has to end with `code`."""
        process = self.start(*command, **more)
        try:
            out, _ = process.communicate(timeout=seconds)
        finally:
            if process.poll() is None:
                process.kill()
        assert process.returncode == code, f"{' '.join(map(str, command))}: {process.returncode}\n{out}"
        return out

    def ray(self, *arguments, **more):
        return self.call(Path(sys.executable).parent / "ray", *arguments, **more)

    def study(self, *arguments, **more):
        return self.call(sys.executable, "-m", "study", *arguments, **more)

    @contextmanager
    def forwarded(self, head, port=8265):
        """The address on this machine at which the head's loopback port answers, through ssh."""
        local = free_port()
        process = subprocess.Popen(
            ["ssh", *self.hosts.ssh_options, "-o", "ExitOnForwardFailure=yes", "-N", "-L",
             f"127.0.0.1:{local}:127.0.0.1:{port}", f"root@{head.address}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for(lambda: _answers(local), seconds=30)
            yield f"http://127.0.0.1:{local}"
        finally:
            process.terminate()
            process.wait(10)


def committed_copy(into):
    """This project's files, changed ones and new ones included, as one commit of a repository of its own.

    Returns:
        The commit.
    """

    def git(*arguments, where):
        return subprocess.run(
            ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-C", where, *arguments],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", where=PROJECT)
    for name in filter(None, names.split("\0")):
        if (PROJECT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, into / name)
    git("init", "--quiet", "--initial-branch=main", where=into)
    git("add", "--all", where=into)
    git("commit", "--quiet", "--message", "The project under test", where=into)
    return git("rev-parse", "HEAD", where=into).strip()


def filled_in(head, workers, key, environment):
    """`deploy/onprem.yaml` with what its CHANGE lines ask for, and an environment that is on the hosts already."""
    given = {
        "head_ip:": head,
        "worker_ips:": f"[{', '.join(workers)}]",
        "ssh_user:": "root",
        "ssh_private_key:": str(key),
    }
    lines = []
    for line in ONPREM.read_text().splitlines():
        if "# CHANGE" in line:
            (name,) = (name for name in given if line.strip().startswith(name))
            line = re.sub(r"(\S+:\s+).*", lambda m, name=name: m[1] + given.pop(name), line)
        elif line.strip() == "- bash ~/.sharpness-study/set_up_node.sh":
            line = f"{line} {environment}"
        lines.append(line)
    assert not given, f"no CHANGE line for {sorted(given)}"
    return "\n".join(lines) + "\n"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
