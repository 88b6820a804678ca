"""The ellipsoid that each method climbs in, and the worst point of it: one formula, four diagonals.

    eps = gamma * D g / sqrt(g . D g)          theta' = theta + eps

| metric          | D (diagonal)                                               | source                              |
|-----------------|------------------------------------------------------------|-------------------------------------|
| `sam`           | 1                                                          | paper eq 2                          |
| `asam_eq5`      | theta^2                                                    | paper eq 5                          |
| `asam_official` | (abs(theta) + eta)^2 on layers' weights, 1 on all the rest | SamsungLabs/ASAM, the authors' code |
| `fsam`          | 1 / (1 + eta f), f = g^2 unless given                      | paper eqs 10 and 12, section 5      |

"Paper" is Kim et al., Fisher SAM, ICML 2022. The two ASAM conventions give different answers, and the good
gamma does not carry over from one to the other. The code holds S = sqrt(D) rather than D, because with
h = S g the norm is |h| and eps = gamma S h / |h|: no square is taken of what may be as small as a late gradient.
Norms are summed in float64. The one square that can overflow is f itself: a coordinate with sqrt(eta) |g| above 1e19
in float32 has S = 0 and takes no part in the probe.

F = Diag(grad loss)^2 (eq 12) holds where the loss is a negative log-likelihood. With label smoothing, mixing
of targets or an added penalty it is not one, and f is then simply the square of the gradient that trains. The
additive form 1 / (f + delta) is the same family: delta = 1 / eta and gamma multiplied by sqrt(eta). Appendix B
drops the second-order term's factor: the divergence that the ellipsoid bounds is KL = 1/2 eps' F eps, not eps' F eps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn

METRICS: tuple[str, ...] = ("sam", "asam_official", "asam_eq5", "fsam")
WITH_ETA = frozenset({"asam_official", "fsam"})
SMALLEST_NORM = 1e-36  # float32 still has all its digits there

Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Block:
    """Tensors of one dtype and device that share their settings; fisher None means f = g^2."""

    metric: str
    gamma: float
    eta: float
    params: list[Tensor]
    grads: list[Tensor]
    fisher: list[Tensor] | None = None


def _sam(block: Block) -> None:
    """D = 1 (eq 2)."""


def _asam_eq5(block: Block) -> list[Tensor]:
    return list(torch._foreach_abs(_wide(block.params)))  # D = theta^2 (eq 5)


def _asam_official(block: Block) -> list[Tensor]:
    return list(torch._foreach_add(torch._foreach_abs(_wide(block.params)), block.eta))  # D = (|theta| + eta)^2


def _fsam(block: Block) -> list[Tensor]:
    one_plus = one_plus_eta_f(_wide(block.grads), block.eta, block.fisher)
    torch._foreach_rsqrt_(one_plus)  # D = 1 / (1 + eta f) (eqs 10 and 12, section 5)
    return one_plus


_ROOTS = {"sam": _sam, "asam_eq5": _asam_eq5, "asam_official": _asam_official, "fsam": _fsam}


def one_plus_eta_f(grads: Tensors, eta: float, fisher: Tensors | None = None) -> list[Tensor]:
    """1 + eta f as new tensors in at least float32, with f = g^2 (eq 12) unless `fisher` gives it (eq 11).

    With f = g^2 the product is formed as (sqrt(eta) g)^2, which is exactly 0 at eta = 0 whatever g is.
    """
    if fisher is None:
        out = list(torch._foreach_mul(_wide(grads), math.sqrt(eta)))
        torch._foreach_mul_(out, out)
    else:
        out = list(torch._foreach_mul(_wide(fisher), eta))
    torch._foreach_add_(out, 1.0)
    return out


def inverse_fisher(grads: Tensors, eta: float, fisher: Tensors | None = None) -> list[Tensor]:
    """1 / (1 + eta f), what footnote 3 multiplies the update by; same shapes as `grads`, at least float32."""
    out = one_plus_eta_f(grads, eta, fisher)
    torch._foreach_reciprocal_(out)
    return out


@dataclass(frozen=True)
class Climb:
    """The way of one block to theta': eps = gamma S u with u = h / |h|, kept in factors until somebody needs it.

    Attributes:
        block: whose.
        unit: u, new tensors of the gradients' shapes in at least float32.
        root: S; None where it is 1.
    """

    block: Block
    unit: list[Tensor]
    root: list[Tensor] | None

    def eps(self) -> list[Tensor]:
        """eps as new tensors, of the unit's dtype."""
        factors = self.unit if self.root is None else torch._foreach_mul(self.unit, self.root)
        return list(torch._foreach_mul(list(factors), self.block.gamma))

    def go(self) -> None:
        """theta' = theta + eps, in place, in one pass over the parameters."""
        if self.root is None:
            torch._foreach_add_(self.block.params, self.unit, alpha=self.block.gamma)
        else:
            torch._foreach_addcmul_(self.block.params, self.unit, self.root, value=self.block.gamma)


def climb(blocks: Sequence[Block]) -> tuple[list[Climb], Tensor]:
    """The way of every block under one global norm, and |h| = sqrt(g . D g), 0-d float64; reads nothing back.

    A norm of 0 gives eps = 0, and one below `SMALLEST_NORM` a shorter eps. Where a gradient is not finite the norm
    is not finite either: the caller must not use eps then.
    """
    roots = [_ROOTS[block.metric](block) for block in blocks]
    halves = [
        _wide(block.grads) if root is None else list(torch._foreach_mul(root, _wide(block.grads)))
        for block, root in zip(blocks, roots, strict=True)
    ]
    norm = global_norm(halves)
    at_least = norm.clamp_min(SMALLEST_NORM)
    divisors: dict[tuple[torch.dtype, torch.device], Tensor] = {}
    ways: list[Climb] = []
    for block, root, half in zip(blocks, roots, halves, strict=True):
        # dividing by the norm, not multiplying by its inverse, which overflows float32 for small gradients
        key = (half[0].dtype, half[0].device)
        if key not in divisors:
            divisors[key] = at_least.to(half[0])
        if root is None:
            unit = list(torch._foreach_div(half, divisors[key]))
        else:
            torch._foreach_div_(half, divisors[key])
            unit = half
        ways.append(Climb(block, unit, root))
    return ways, norm


def global_norm(lists: Sequence[Tensors], *, also: Tensors = ()) -> Tensor:
    """2-norm of all tensors together, 0-d float64 on the first one's device; 0-d `also` count as further norms."""
    norms = [n for tensors in lists for n in torch._foreach_norm(list(tensors), 2, dtype=torch.float64)]
    norms.extend(also)
    device = norms[0].device
    return torch.linalg.vector_norm(torch.stack([n.to(device, non_blocking=True) for n in norms]))


def _wide(tensors: Tensors) -> list[Tensor]:
    """The tensors themselves, or float32 copies of those in half precision."""
    return [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]


def check_settings(
    metric: str | None, gamma: float | None, eta: float | None, *, natural_gradient: bool = False
) -> None:
    """Refuse settings that cannot be meant.

    Raises:
        ValueError: an unknown metric; gamma missing, not a number, not finite or not positive, or given
            without a metric; eta missing where it is used, negative or not finite, or given where nothing
            uses it; a natural gradient with ASAM.
    """
    if metric is not None and metric not in METRICS:
        raise ValueError(f"metric: {metric!r} is unknown; one of {', '.join(METRICS)}")
    if metric is None:
        if gamma is not None:
            raise ValueError(f"gamma: {gamma!r} given, but without a metric there is no probe that uses it")
    elif not _is_number(gamma) or not gamma > 0:  # type: ignore[operator]  # _is_number excludes None
        raise ValueError(f"gamma: must be a finite number > 0, not {gamma!r}")
    if natural_gradient and metric not in (None, "sam", "fsam"):
        raise ValueError(f"natural_gradient: not defined for {metric}, whose metric is no Fisher information")
    name = f"metric {metric!r}" if metric is not None else "the plain base optimiser"
    if metric not in WITH_ETA and not natural_gradient:
        if eta is not None:
            raise ValueError(f"eta: {eta!r} given, but {name} does not use it")
    elif not _is_number(eta) or not eta >= 0:  # type: ignore[operator]  # _is_number excludes None
        raise ValueError(f"eta: {name} needs a finite number >= 0, not {eta!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


@torch.no_grad()
def probe(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    *,
    metric: str,
    gamma: float,
    eta: float | None = None,
    fisher: Sequence[Tensor] | None = None,
    scaled: Sequence[bool] | None = None,
) -> list[Tensor]:
    """The probe alone: eps = gamma D g / sqrt(g . D g), one global norm over all tensors.

    Args:
        params: theta, any shapes (empty and 0-d tensors too); neither read for `sam` nor changed.
        grads: the mean gradient at theta, one per parameter, None where there is none. It must be the true
            mean: `fsam` is not invariant to the gradient's scale (eps(c g, eta) = eps(g, c^2 eta)), so
            scaled, summed or clipped gradients change eta.
        metric: one of `METRICS`.
        gamma: radius, eps . D^-1 eps = gamma^2.
        eta: for `fsam` and `asam_official` only.
        fisher: for `fsam` only: f >= 0 for each parameter (eq 11, see `per_example_squares`) in place of g^2
            (eq 12).
        scaled: for `asam_official` only, and needed there: which tensors take (abs(theta) + eta)^2; see
            `scaled_by_role`.

    Returns:
        eps, one new tensor per parameter, of its shape; float32 for half-precision parameters, else their
        dtype. Zeros where the gradient is None, and everywhere if the whole gradient is zero.

    Raises:
        ValueError: settings as in `check_settings`; lengths or shapes that differ; fisher or scaled where the
            metric has no use for it, or scaled missing; a gradient that is not finite (asking costs one
            synchronisation with the device).
    """
    check_settings(metric, gamma, eta)
    params, grads = list(params), list(grads)
    if metric == "asam_official" and scaled is None:
        raise ValueError(
            "scaled: asam_official needs to know the weights: [p in scaled_by_role(module) for p in params]"
        )
    for name, values, used in (("fisher", fisher, "fsam"), ("scaled", scaled, "asam_official")):
        if values is not None and metric != used:
            raise ValueError(f"{name}: given, but metric {metric!r} does not use it")
        if values is not None and len(values) != len(params):
            raise ValueError(f"{name}: {len(values)} given for {len(params)} parameters")
    if len(grads) != len(params):
        raise ValueError(f"grads: {len(grads)} given for {len(params)} parameters")

    places: dict[tuple[torch.dtype, torch.device, bool], list[int]] = {}
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        for name, t in (("grads", g), ("fisher", fisher[i] if fisher is not None else None)):
            if t is not None and t.shape != p.shape:
                raise ValueError(f"{name}[{i}]: shape {tuple(t.shape)} for a parameter of shape {tuple(p.shape)}")
        if g is not None and p.numel():
            places.setdefault((p.dtype, p.device, scaled is None or bool(scaled[i])), []).append(i)
    blocks = [
        Block(
            metric=metric if in_metric else "sam",
            gamma=gamma,
            eta=eta or 0.0,
            params=[params[i].detach() for i in where],
            grads=[g.detach() for i in where if (g := grads[i]) is not None],
            fisher=None if fisher is None else [fisher[i].detach() for i in where],
        )
        for (_, _, in_metric), where in places.items()
    ]
    out = [torch.zeros_like(w) for w in _wide([p.detach() for p in params])]
    if not blocks:
        return out
    ways, norm = climb(blocks)
    if not math.isfinite(norm.item()):
        raise ValueError("grads: not finite, so there is no probe")
    for where, way in zip(places.values(), ways, strict=True):
        for i, e in zip(where, way.eps(), strict=True):
            out[i] = e
    return out


def scaled_by_role(module: nn.Module) -> set[nn.Parameter]:
    """The parameters that `asam_official` scales: the layers' weights, norm layers' gamma included, and no bias.

    The authors' code asks whether a parameter's full name contains "weight"; here the layer is asked, so that
    a bias inside a block called `weights` stays out. A layer's weight is its own parameter `weight`, the
    input and recurrent matrices of recurrent layers, the projections of `nn.MultiheadAttention`, and what a
    parametrisation of `weight` keeps in its place.
    """
    weights: set[nn.Parameter] = set()
    for layer in module.modules():
        names = {"weight"}
        if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
            names = {name for name, _ in layer.named_parameters(recurse=False) if name.startswith("weight_")}
        elif isinstance(layer, nn.MultiheadAttention):
            names = {"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"}
        weights.update(p for name, p in layer.named_parameters(recurse=False) if name in names)
        if (kept := getattr(layer, "parametrizations", None)) is not None and "weight" in kept:
            weights.update(kept["weight"].parameters())
    return weights
