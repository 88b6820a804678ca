"""What the verbs that reach a cluster share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from study.preflight import ClusterError

if TYPE_CHECKING:
    from study.service.client import Cluster, Submitted

ADDRESS = "the cluster's dashboard, e.g. http://127.0.0.1:8265; its token comes from RAY_AUTH_TOKEN_PATH"


def reached(address: str) -> Cluster:
    """The cluster at an address.

    Raises:
        ClusterError: it is not there, not ours to use, or this Ray has no client for it.
    """
    try:
        from study.service.client import Cluster
    except ImportError as error:
        raise ClusterError(f"clusters need ray[default] ({error})") from None
    return Cluster(address)


def next_steps(done: Submitted, address: str) -> Iterator[str]:
    """What a person may want to do then."""
    if done.already == "finished":
        yield f"  study report {done.folder}"
        return
    yield f"  study watch {done.folder} --wait 300"
    if done.job is not None:
        yield f"  study logs {done.job} --address {address} --follow"
    yield f"  study stop {done.folder}"
    yield f"  {address}/#/jobs"
