"""Studies of sharpness-aware training: which trials run, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from study.connection import Connection

__all__ = ["connect"]


def connect(address: str | None = None, storage: str | None = None) -> Connection:
    """Submit, follow and read studies from Python: see `study.connection`.

    Args:
        address: of a cluster's dashboard, `http://HOST:PORT`; None runs studies on this machine.
        storage: folder or address that holds studies; by default each study's own.

    Raises:
        study.preflight.ClusterError: no cluster answers there, or it refuses this client.
    """
    # Only here: to import `study` has to stay light.
    from study.connection import Connection

    return Connection(address, storage)
