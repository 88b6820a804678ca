"""Test hosts on this machine that are reached by ssh alone: each has its own network, processes, home and `/tmp`.

A host is a network namespace on a bridge, and in it an sshd that is process 1 of a process and mount namespace of its
own. What it shares with this machine is its programs, which it can only read, and the one folder that stands for
network storage. Cutting its cable or its power touches nothing else. All that a host has goes when its process 1 does.
"""

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from processes import descendants, wait_for

#: Debian packages in which the programs are.
PROGRAMS = {
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "unshare": "util-linux",
}


def why_not():
    """Why no test hosts can be made here; empty if they can."""
    if os.geteuid():
        return "test hosts need root"
    missing = sorted(package for program, package in PROGRAMS.items() if not _program(program))
    if missing:
        return f"test hosts need the Debian packages {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--mount-proc", "sh", "-c",
         "mount -t tmpfs tmpfs /mnt && ip link add probe type veth peer name prober"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


class Host:
    """One host.

    Attributes:
        name: its host name.
        address: its IPv4 address, reachable from this machine and from the others.
        home: the path of the home folder that its user has, in its own file system.
    """

    def __init__(self, hosts, name, number):
        self.name, self.address = name, f"{hosts.subnet}.{number}"
        self.home = "/tmp/home"
        self.namespace = f"{hosts.prefix}-{name}"
        self._cable = f"{hosts.prefix}{number}"  # of at most 15 letters
        self._folder = hosts.folder / name
        self._folder.mkdir()
        self._hosts = hosts
        self._plug(number)
        self._start()

    def _plug(self, number):
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        run("ip", "link", "set", self._cable, "master", self._hosts.prefix, "up")
        self._inside("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self._inside("ip", "link", "set", "lo", "up")
        self._inside("ip", "link", "set", "eth0", "up")
        # Ray looks for its own address in the way to the rest of the world. There is no such way, but a route.
        self._inside("ip", "route", "add", "default", "via", f"{self._hosts.subnet}.254")

    def _inside(self, *command):
        run("ip", "netns", "exec", self.namespace, *command)

    def _start(self):
        tmp, folder, key = self._folder / "tmp", self._folder, self._hosts.key
        # Where they will be once the host's own file system lies over `/tmp`.
        seen = [self._hosts.shared, *(path for path in (Path(sys.prefix), Path(sys.base_prefix)) if _below_tmp(path))]
        within = {path: f"{tmp}/{path.relative_to('/tmp')}" for path in (*seen, folder, key.parent)}
        binds = "\n".join(f"mount --bind {path} {within[path]}" for path in seen)
        names = "".join(f"{self._hosts.subnet}.{n} {name}\n" for n, name in enumerate(self._hosts.names, 1))
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (folder / "passwd").write_text(
            f"root:x:0:0:root:{self.home}:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
        )
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host_key")
        (folder / "sshd_config").write_text(
            f"HostKey {folder}/host_key\nPidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"
            f"AuthorizedKeysFile {self._hosts.key}.pub\nPermitRootLogin prohibit-password\nAcceptEnv none\n"
            f"AllowTcpForwarding yes\nMaxStartups 100\nListenAddress {self.address}\n"
        )
        script = f"""
            set -e
            mount --make-rprivate /
            hostname {self.name}
            mkdir -p {tmp}
            mount -t tmpfs tmpfs {tmp}
            chmod 1777 {tmp}
            mkdir -p {tmp}/home {" ".join(within.values())}
            chmod 700 {tmp}/home
            cp {folder}/host_key {folder}/sshd_config {within[folder]}/
            cp {key}.pub {within[key.parent]}/
            {binds}
            mount --bind {folder}/passwd /etc/passwd
            mount --bind {folder}/hosts /etc/hosts
            mount -t tmpfs tmpfs /dev/shm
            mount -t tmpfs tmpfs /run
            mkdir -p -m 755 /run/sshd
            mount --move {tmp} /tmp
            mount -o remount,bind,ro /
            exec {_program("sshd")} -D -e -f {folder}/sshd_config
        """
        log = (folder / "sshd.log").open("wb")
        self.process = subprocess.Popen(
            # Whatever becomes of this process, the host does not outlive it.
            ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.namespace,
             "unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--mount-proc", "bash", "-c", script],
            stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        )  # fmt: skip
        log.close()

    def wait(self):
        """Until it lets one in."""

        def up():
            assert self.process.poll() is None, (self._folder / "sshd.log").read_text()
            return self.ssh("true", check=False).returncode == 0

        wait_for(up, seconds=60, every=0.2)

    def ssh(self, command, check=True, **more):
        """Run a shell command on it, as a login by ssh does."""
        return subprocess.run(
            ["ssh", *self._hosts.ssh_options, f"root@{self.address}", command],
            capture_output=True, text=True, check=check, timeout=120, **more,
        )  # fmt: skip

    def cut(self):
        """Its cable is pulled: nobody hears of it, and it runs on."""
        run("ip", "link", "set", self._cable, "down")

    def plug_in(self):
        """The cable is put back."""
        run("ip", "link", "set", self._cable, "up")

    def processes(self):
        """The ids (of this machine) of what runs on it: its process 1 and all below."""
        return descendants(self.process.pid)

    def titles(self):
        """What runs on it, the server for ssh and its sessions left out."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if title and not title.startswith(("sshd:", _program("sshd"))):
                    found.append(title)
        return found

    def power_off(self):
        """Everything that it runs ends at once; its network goes."""
        family = self.processes()
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)  # process 1 goes with it, and so everything
        self.process.wait(30)
        for pid in family:  # only where the kernel's own clean-up was slower
            wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), seconds=30)
        for command in (["ip", "link", "del", self._cable], ["ip", "netns", "del", self.namespace]):
            subprocess.run(command, capture_output=True, check=False)


class Hosts:
    """Hosts on one network, and a folder that all see. A context: at its end nothing of them is left.

    Args:
        names: their names; the first is the head's by convention.
        shared: a folder below `/tmp` that has the same content on all of them, as network storage has.
    """

    def __init__(self, names, shared):
        number = secrets.randbelow(200)
        self.names, self.shared = names, Path(shared).resolve()
        assert _below_tmp(self.shared), "the shared folder of test hosts lies below /tmp"
        self.prefix = f"ss{secrets.token_hex(3)}"
        self.subnet = f"10.{213 + number % 20}.{number}"
        self.folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
        self.key = self.folder / "client" / "key"
        self.hosts = []
        self.ssh_options = [
            "-i", str(self.key), "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR",
        ]  # fmt: skip
        try:
            self.key.parent.mkdir()
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
            run("ip", "link", "add", self.prefix, "type", "bridge")
            run("ip", "addr", "add", f"{self.subnet}.254/24", "dev", self.prefix)
            run("ip", "link", "set", self.prefix, "up")
            for n, name in enumerate(names, 1):
                self.hosts.append(Host(self, name, n))
            for host in self.hosts:
                host.wait()
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name):
        return next(host for host in self.hosts if host.name == name)

    def close(self):
        for host in self.hosts:
            host.power_off()
        subprocess.run(["ip", "link", "del", self.prefix], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def left_behind(self):
        """Names of namespaces and links of these hosts that are still there."""
        spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        return [line for line in (spaces + links).splitlines() if self.prefix in line]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def run(*command):
    """A command that has to succeed; what it said is in the error otherwise."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _below_tmp(path):
    return path.is_relative_to("/tmp")


def _program(name):
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
