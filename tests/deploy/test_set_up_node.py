"""What `deploy/set_up_node.sh` makes of what `ray up` has copied: the right commit and Python, and each thing once."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SCRIPT = PROJECT / "deploy" / "set_up_node.sh"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")


class Node:
    """A node's home, and the launching machine's clone beside it."""

    def __init__(self, folder):
        self.home, self.clone = folder / "home", folder / "clone"
        self.checkout = self.home / "sharpness-study"
        (self.home / ".ray").mkdir(parents=True)
        (self.home / ".ray" / "auth_token").write_text("secret")
        (self.home / ".ray" / "auth_token").chmod(0o644)
        self.checkout.mkdir()
        (self.checkout / ".launcher.cfg").write_text(f"home = /somewhere\nversion_info = {PYTHON}.1\n")
        (self.clone / "study").mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments):
        who = ["-c", "user.name=n", "-c", "user.email=n@localhost"]
        return subprocess.run(
            ["git", *who, "-C", self.clone, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    def commit(self, says):
        """A project that prints what it `says`, as a commit."""
        (self.clone / "study" / "__main__.py").write_text(f"print({says!r})\n")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", says)
        return self.git("rev-parse", "HEAD")

    def copy(self):
        """As `ray up` does: nothing that is there already is deleted."""
        left_out = shutil.ignore_patterns("config", "hooks", "index")
        shutil.copytree(self.clone / ".git", self.checkout / ".git", ignore=left_out, dirs_exist_ok=True)

    def set_up(self, *arguments, **more):
        return subprocess.run(
            ["bash", SCRIPT, *arguments], capture_output=True, text=True, check=False,
            env={"HOME": str(self.home), "PATH": os.environ["PATH"], **more},
        )  # fmt: skip

    def runs(self, command, *arguments):
        """What a command of the node's environment prints, with the path that its login has."""
        return subprocess.run(
            ["bash", "-c", f'. ~/.bashrc; echo "$RAY_AUTH_MODE"; {command} "$@"', "bash", *arguments],
            capture_output=True, text=True, check=True,
            env={"HOME": str(self.home), "PATH": "/usr/bin:/bin"},
        ).stdout.split("\n", 1)  # fmt: skip


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_a_node_runs_the_commit_with_the_packages_that_are_there_and_wants_a_token(node):
    commit = node.commit("first")
    node.copy()
    done = node.set_up(sys.prefix)
    assert done.returncode == 0, done.stderr
    assert f"set-up: commit {commit[:7]} first" in done.stdout
    assert f"Python {sys.version.split()[0]}, Ray " in done.stdout
    assert node.runs("study") == ["token", "first\n"]
    assert node.runs("ray", "--version")[1].endswith(f", version {metadata.version('ray')}\n")
    assert (node.home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    assert "secret" not in done.stdout + done.stderr


def test_called_again_it_takes_the_new_commit_though_an_old_branch_file_hides_it(node):
    node.commit("first")
    node.copy()
    assert node.set_up(sys.prefix).returncode == 0
    commit = node.commit("second")
    # Now the branch is in packed-refs, and the node's copy still has it as a file of its own, at the first commit.
    node.git("pack-refs", "--all")
    node.git("gc", "--quiet")
    node.copy()
    assert (node.checkout / ".git" / "refs" / "heads" / "main").exists()
    assert not (node.clone / ".git" / "refs" / "heads" / "main").exists()
    (node.checkout / "study" / "__main__.py").write_text("print('touched on the node')\n")
    done = node.set_up(sys.prefix)
    assert done.returncode == 0, done.stderr
    assert f"commit {commit[:7]} second" in done.stdout
    assert node.runs("study")[1] == "second\n"
    assert (node.home / ".bashrc").read_text().count("RAY_AUTH_MODE") == 1


def test_a_clone_without_a_log_of_its_head_is_taken_as_its_head_says(node):
    commit = node.commit("only")
    shutil.rmtree(node.clone / ".git" / "logs")
    node.copy()
    done = node.set_up(sys.prefix)
    assert f"commit {commit[:7]} only" in done.stdout, done.stderr


def test_another_python_than_the_launching_machines_is_refused(node):
    node.commit("first")
    node.copy()
    (node.checkout / ".launcher.cfg").write_text("version_info = 3.99.1\n")
    done = node.set_up(sys.prefix)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("the launching machine Python 3.99.1")
    assert not (node.checkout / ".venv").exists()


def test_a_node_without_git_says_what_to_install(node, tmp_path):
    node.commit("first")
    node.copy()
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "hostname"):
        (tools / name).symlink_to(shutil.which(name))
    done = node.set_up(PATH=str(tools))
    assert done.returncode == 1
    assert "git is missing on " in done.stderr
