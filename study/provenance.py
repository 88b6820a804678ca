"""Where, when, with what and on whose behalf a run happened: what a reader needs to believe its numbers."""

from __future__ import annotations

import os
import platform
import secrets
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("sharpness-study", "ray", "torch", "torchvision", "numpy", "pandas", "pyarrow", "scikit-learn")


def new_run_id() -> str:
    """Sortable by time and unique: `20261124T233000-1f3a`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"


def now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def provenance() -> dict[str, Any]:
    """Command, code, versions and machine of this process."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "code": _code(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "memory_gib": _memory_gib(),
        },
    }


def _code() -> dict[str, Any]:
    """Commit of the checkout that this package runs from; nothing when it was installed from a wheel."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    # The package may lie in somebody else's checkout (a virtual environment inside it): that commit is not ours.
    if commit is None or git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {}
    return {
        "commit": commit,
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None
