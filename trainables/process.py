"""What a process that trains does once, before it trains."""

from __future__ import annotations

import torch


def prepare(threads: int | None) -> None:
    """Set this process up for training.

    Args:
        threads: of torch; None leaves its own choice.
    """
    if threads:
        # More threads than the trial's CPUs would fight with its neighbours'.
        torch.set_num_threads(threads)
