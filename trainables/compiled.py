"""A network as torch.compile makes it: BatchNorm, ReLU and sums in one kernel, on CPU and GPU.

Worth it where training takes much longer than compiling, which takes half a minute in the first worker of a machine and
less in the others: what is compiled is kept on disk, and they share it (`TORCHINDUCTOR_CACHE_DIR`).
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from trainables.devices import DeviceError


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """The same network, with the same parameters and buffers; compiled when it is first called, for each shape.

    Raises:
        DeviceError: on a CPU without a C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise DeviceError(f"compile: on a CPU it needs a C++ compiler, and there is no {compiler}")
    # A short last batch and groups of m have shapes of their own; a kernel for any size is slower for each.
    found: nn.Module = torch.compile(network, dynamic=False)  # type: ignore[assignment]
    return found
