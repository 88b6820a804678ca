"""What a step reads from the parameter groups: gradients, and blocks of tensors that share their settings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainables.sharpness.metric import Block, inverse_fisher

Groups = Sequence[dict[str, Any]]


def dense_gradient(p: Tensor) -> Tensor | None:
    """The gradient of p, None if it has none or no elements.

    Raises:
        RuntimeError: the gradient is sparse.
    """
    if p.grad is None or p.numel() == 0:
        return None
    if p.grad.is_sparse:
        raise RuntimeError(f"gradients must be dense; a parameter of shape {tuple(p.shape)} has a sparse one")
    return p.grad


def dense_gradients(groups: Groups) -> list[list[Tensor]]:
    """All gradients there are, one list per dtype and device."""
    found: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for group in groups:
        for p in group["params"]:
            if (g := dense_gradient(p)) is not None:
                found.setdefault((g.dtype, g.device), []).append(g)
    return list(found.values())


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether equal indices of two tensors of one shape lie at equal places of their memory."""
    return all(n == 1 or i == j for n, i, j in zip(a.shape, a.stride(), b.stride(), strict=True))


def in_blocks(
    groups: Groups,
    metric: str,
    weights: Collection[Tensor] | None,
    fisher: Mapping[Tensor, Tensor] | None,
) -> list[Block]:
    """The parameters that have a gradient, in blocks of one group, dtype, device and diagonal.

    Which tensors `asam_official` scales: what the group's `scaled` says, else those in `weights`, else, where
    that is None, those of two or more dimensions. The others climb with D = 1, as `sam` does, under the same
    norm.
    """
    blocks: dict[tuple[Any, ...], Block] = {}
    for index, group in enumerate(groups):
        for p in group["params"]:
            if (g := dense_gradient(p)) is None:
                continue
            diagonal = metric
            if metric == "asam_official":
                by_role = p.ndim >= 2 if weights is None else p in weights
                diagonal = metric if group.get("scaled", by_role) else "sam"
            key = (index, p.dtype, p.device, diagonal)
            if key not in blocks:
                squares: list[Tensor] | None = None if fisher is None else []
                blocks[key] = Block(diagonal, group["gamma"], group.get("eta", 0.0), [], [], squares)
            block = blocks[key]
            block.params.append(p)
            block.grads.append(g)
            if fisher is not None and block.fisher is not None:
                block.fisher.append(fisher[p])
    return list(blocks.values())


def inverses(groups: Groups, fisher: Mapping[Tensor, Tensor] | None) -> dict[Tensor, Tensor]:
    """1 / (1 + eta f) for every parameter that has a gradient, with its group's eta."""
    found: dict[Tensor, Tensor] = {}
    for group in groups:
        pairs = [(p, g) for p in group["params"] if (g := dense_gradient(p)) is not None]
        if pairs:
            squares = None if fisher is None else [fisher[p] for p, _ in pairs]
            values = inverse_fisher([g for _, g in pairs], group["eta"], squares)
            found.update(zip((p for p, _ in pairs), values, strict=True))
    return found


def in_order(params: Iterable[Tensor], values: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """`values` by parameter, one for each of `params` that requires grad, in their order.

    Raises:
        ValueError: their number or a shape does not match.
    """
    trained = [p for p in params if p.requires_grad]
    if len(values) != len(trained):
        raise ValueError(f"fisher: {len(values)} given for {len(trained)} parameters that require grad")
    for p, f in zip(trained, values, strict=True):
        if p.shape != f.shape:
            raise ValueError(f"fisher: shape {tuple(f.shape)} for a parameter of shape {tuple(p.shape)}")
    return dict(zip(trained, values, strict=True))
