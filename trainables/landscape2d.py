"""The toy of section 3.1: a loss over Gaussians N(mu, sigma^2) with a flat and a sharp minimum, and who finds which.

    l(theta) = -log(a_1 exp(-E_1 / b_1^2) + a_2 exp(-E_2 / b_2^2)),   E_i = KL(N(mu, sigma^2) || N(m_i, s_i^2))   (15)

with theta = (mu, sigma), sigma > 0. The Fisher information of (mu, sigma) is exactly diag(1 / sigma^2, 2 / sigma^2), so
that Fisher SAM is taken by eq 10 itself, without eta.

Two landscapes, because the paper's numbers are not those of its formula. The KL divergence of two Gaussians is
log(s / sigma) + (sigma^2 + (mu - m)^2) / (2 s^2) - 1/2. With it, eq 15 has its minima at (19.81, 29.94) and
(-16.80, 12.80). The printed ones, (19.85, 29.95) and (-15.94, 13.46), with their losses and Hessian traces, are those
of E_i without its -1/2. The two b differ, so the missing constant does not cancel: it multiplies a_i by
exp(-1 / (2 b_i^2)), which makes the sharp minimum shallower. `EQ15` is the formula as it stands, `PRINTED` (KL + 1/2)
the one behind the paper's figures.

Everything is NumPy in float64 over arrays [..., 2], so that a thousand starts descend together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

#: What can descend; the names of `trainables.sharpness.METRICS`, and plain gradient descent.
OPTIMISERS: tuple[str, ...] = ("sgd", "sam", "asam_eq5", "fsam")
#: Iterates and probes stay at or above this sigma. The loss itself rises without bound, but only as -log(sigma), so
#: that a long step can pass over sigma = 0. The minima have sigmas of 13 and 30.
SMALLEST_SIGMA = 0.5
#: An iterate this close to a minimum has arrived; the flat basin is some 40 wide.
ARRIVED = 2.5


@dataclass(frozen=True)
class Landscape:
    """Eq 15 with its constants; index 0 is the flat component.

    Attributes:
        m, s: mean and standard deviation of the two Gaussians that the energies measure from.
        weights: the mixture's alpha_i.
        beta: the components' scales; the energies are divided by beta squared.
        offset: added to both divergences (the module's docstring says why one half).
    """

    m: tuple[float, float] = (20.0, -20.0)
    s: tuple[float, float] = (30.0, 10.0)
    weights: tuple[float, float] = (0.7, 0.3)
    beta: tuple[float, float] = (1.8, 1.2)
    offset: float = 0.0

    def loss(self, theta: ArrayLike) -> Array:
        """l(theta), shape [...], for theta of shape [..., 2].

        Raises:
            ValueError: a last axis that is not (mu, sigma), or a sigma that is not positive.
        """
        logs = self._logs(_checked(theta))
        top = logs.max(axis=0)
        return np.asarray(-(top + np.log(np.exp(logs - top).sum(axis=0))))

    def gradient(self, theta: ArrayLike) -> Array:
        """Gradient of l, shape [..., 2]; raises as `loss`."""
        at = _checked(theta)
        share, slopes = self._shares_and_slopes(at)
        return np.asarray((share[..., None] * slopes).sum(axis=0))

    def hessian(self, theta: ArrayLike) -> Array:
        """Second derivatives of l, shape [..., 2, 2]; raises as `loss`.

        The mixture's mean curvature less the variance of its slopes: between the basins the latter wins.
        """
        at = _checked(theta)
        share, slopes = self._shares_and_slopes(at)
        mean = (share[..., None] * slopes).sum(axis=0)
        outer = (share[..., None, None] * slopes[..., :, None] * slopes[..., None, :]).sum(axis=0)
        curvature = np.zeros((*at.shape, 2))
        for i, beta in enumerate(self.beta):
            curvature[..., 0, 0] += share[i] / self.s[i] ** 2 / beta**2
            curvature[..., 1, 1] += share[i] * (1 / self.s[i] ** 2 + 1 / at[..., 1] ** 2) / beta**2
        return np.asarray(curvature - outer + mean[..., :, None] * mean[..., None, :])

    def _logs(self, at: Array) -> Array:
        """log of each component of the mixture, shape [2, ...]."""
        parts = zip(self.m, self.s, self.weights, self.beta, strict=True)
        return np.stack([np.log(a) - (divergence(at, (m, s)) + self.offset) / beta**2 for m, s, a, beta in parts])

    def _shares_and_slopes(self, at: Array) -> tuple[Array, Array]:
        """Each component's share of the mixture [2, ...] and the gradient of E_i / beta_i^2 [2, ..., 2]."""
        logs = self._logs(at)
        share = np.exp(logs - logs.max(axis=0))
        share /= share.sum(axis=0)
        mu, sigma = at[..., 0], at[..., 1]
        slopes = [
            np.stack([(mu - m) / s**2, sigma / s**2 - 1 / sigma], axis=-1) / beta**2
            for m, s, beta in zip(self.m, self.s, self.beta, strict=True)
        ]
        return share, np.stack(slopes)


#: Eq 15 as it stands.
EQ15 = Landscape()
#: What the paper's figures and printed minima were made with: eq 15 without the -1/2 of the divergence.
PRINTED = Landscape(offset=0.5)


@dataclass(frozen=True)
class Minimum:
    """A minimum of a landscape: theta [2], its loss, and its Hessian's trace and eigenvalues (ascending, [2])."""

    theta: Array
    loss: float
    trace: float
    eigenvalues: Array


@dataclass(frozen=True)
class Trajectory:
    """A descent of one or many starts together, steps first.

    Attributes:
        theta: iterates, [steps + 1, ..., 2].
        eps: probe at each iterate but the last, [steps, ..., 2], as taken: cut off at `SMALLEST_SIGMA`.
        step: theta[t + 1] - theta[t], [steps, ..., 2].
        cut: whether the probe or the step was cut off at `SMALLEST_SIGMA`, [steps, ...].
    """

    theta: Array
    eps: Array
    step: Array
    cut: NDArray[np.bool_]


def divergence(theta: ArrayLike, other: ArrayLike) -> Array:
    """KL(N(mu, sigma^2) || N(m, s^2)) in nats for theta = (mu, sigma) and other = (m, s), shapes [..., 2]."""
    at, to = np.asarray(theta, dtype=float), np.asarray(other, dtype=float)
    mu, sigma, m, s = at[..., 0], at[..., 1], to[..., 0], to[..., 1]
    return np.asarray(np.log(s / sigma) + (sigma**2 + (mu - m) ** 2) / (2 * s**2) - 0.5)


def fisher(theta: ArrayLike) -> Array:
    """The Fisher information's diagonal, (1 / sigma^2, 2 / sigma^2), shape [..., 2]; the rest is 0 (section 3.1)."""
    sigma = _checked(theta)[..., 1]
    return np.stack([1 / sigma**2, 2 / sigma**2], axis=-1)


def diagonal(optimiser: str, theta: ArrayLike) -> Array:
    """D of eps = gamma D g / sqrt(g . D g), shape [..., 2]: 1 (eq 2), theta^2 (eq 5), 1 / Fisher (eq 10), 0 for `sgd`.

    Raises:
        ValueError: an unknown optimiser, or a theta that `Landscape.loss` refuses.
    """
    at = _checked(theta)
    match optimiser:
        case "sgd":
            return np.zeros_like(at)
        case "sam":
            return np.ones_like(at)
        case "asam_eq5":
            return np.asarray(at**2)
        case "fsam":
            return np.asarray(1 / fisher(at))
    raise ValueError(f"optimiser: {optimiser!r} is unknown; one of {', '.join(OPTIMISERS)}")


def semi_axes(optimiser: str, theta: ArrayLike, gamma: ArrayLike) -> Array:
    """Half the neighbourhood's width and height at theta, [..., 2], in the units of mu and sigma (section 3.1)."""
    return np.asarray(np.asarray(gamma, dtype=float)[..., None] * np.sqrt(diagonal(optimiser, theta)))


def probe(optimiser: str, theta: ArrayLike, gradient: ArrayLike, gamma: ArrayLike) -> Array:
    """The worst point of the neighbourhood to first order, as a displacement of theta, shape [..., 2] (eqs 2, 5, 10).

    Where the gradient vanishes in D's norm, every point of the neighbourhood is as good and eps is 0.

    Raises:
        ValueError: as `diagonal`.
    """
    g = np.asarray(gradient, dtype=float)
    d = diagonal(optimiser, theta)
    norm = np.sqrt((d * g * g).sum(axis=-1, keepdims=True))
    unit = np.divide(d * g, norm, out=np.zeros(np.broadcast(d, g).shape), where=norm > 0)
    return np.asarray(np.asarray(gamma, dtype=float)[..., None] * unit)


def descend(
    landscape: Landscape, start: ArrayLike, *, optimiser: str, gamma: ArrayLike = 0.0, lr: float, steps: int
) -> Trajectory:
    """Algorithm 1 with exact gradients: theta <- theta - lr * gradient(theta + eps).

    Sigma is kept at `SMALLEST_SIGMA` or more by projection, of the probe as of the step; `Trajectory.cut` says where
    that happened. Fisher SAM's probe cannot reach sigma <= 0 while gamma < sqrt(2), ASAM's while gamma < 1.

    Args:
        start: [..., 2], one or many.
        gamma: one, or one for each start (the shapes [...] are broadcast), in the metric's own units: a length for
            `sam`, a fraction of |theta| for `asam_eq5`, of sigma for `fsam`. The same number is not the same size.

    Raises:
        ValueError: an unknown optimiser, a start with sigma below `SMALLEST_SIGMA`, a negative number of steps, an lr
            that is not positive, or a gamma that is negative, 0 for an optimiser with a probe, or given to `sgd`.
    """
    theta = _checked(start)
    sizes = np.asarray(gamma, dtype=float)
    theta = np.broadcast_to(theta, (*np.broadcast_shapes(theta.shape[:-1], sizes.shape), 2)).copy()
    if theta[..., 1].min() < SMALLEST_SIGMA:
        raise ValueError(f"start: sigma must be at least {SMALLEST_SIGMA:g}, not {theta[..., 1].min():g}")
    if steps < 0 or not lr > 0:
        raise ValueError(f"steps, lr: need steps >= 0 and lr > 0, not {steps} and {lr!r}")
    if optimiser == "sgd" and sizes.any():
        raise ValueError(f"gamma: {gamma!r} given, but sgd has no probe; leave it out")
    if optimiser != "sgd" and not (sizes > 0).all():
        raise ValueError(f"gamma: must be above 0 for {optimiser}, not {gamma!r}")
    thetas, probes, cuts = [theta], [], []
    for _ in range(steps):
        worst = theta + probe(optimiser, theta, landscape.gradient(theta), sizes)
        at = _inside(worst)
        wanted = theta - lr * landscape.gradient(at)
        probes.append(at - theta)
        theta = _inside(wanted)
        thetas.append(theta)
        cuts.append((worst[..., 1] < SMALLEST_SIGMA) | (wanted[..., 1] < SMALLEST_SIGMA))
    path = np.stack(thetas)
    empty: Any = np.zeros((0, *path.shape[1:]))
    return Trajectory(
        theta=path,
        eps=np.stack(probes) if probes else empty,
        step=np.diff(path, axis=0),
        cut=np.stack(cuts) if cuts else np.zeros((0, *path.shape[1:-1]), dtype=bool),
    )


def minima(landscape: Landscape) -> list[Minimum]:
    """All minima that steepest descent reaches from a grid of starts, polished by Newton's method, flattest first."""
    mu, sigma = np.meshgrid(np.linspace(-40, 60, 9), np.linspace(3, 60, 7))
    starts = np.stack([mu.ravel(), sigma.ravel()], axis=-1)
    theta = _flow(landscape, starts)
    for _ in range(6):
        theta = theta - np.linalg.solve(landscape.hessian(theta), landscape.gradient(theta)[..., None])[..., 0]
    found: list[Minimum] = []
    for place in theta:
        eigenvalues = np.asarray(np.linalg.eigvalsh(landscape.hessian(place)), dtype=np.float64)
        new = all(np.abs(place - other.theta).max() > 1e-3 for other in found)
        if new and eigenvalues[0] > 0 and np.abs(landscape.gradient(place)).max() < 1e-12:
            trace = float(np.trace(landscape.hessian(place)))
            found.append(Minimum(place, float(landscape.loss(place)), trace, eigenvalues))
    return sorted(found, key=lambda minimum: minimum.trace)


def basin(landscape: Landscape, theta: ArrayLike, places: Sequence[Minimum]) -> NDArray[np.int64]:
    """Which of `places` the steepest descent from theta [..., 2] leads to: its index, shape [...]; -1 for none of them.

    A probing optimiser with a fixed gamma circles a minimum at a distance that grows with gamma, so that its last
    iterate itself need not be close to one. An iterate that rests about the saddle counts for one side of it.
    """
    end = _flow(landscape, np.asarray(theta, dtype=float))
    distance = np.stack([np.abs(end - place.theta).max(axis=-1) for place in places])
    return np.where(distance.min(axis=0) < 0.5, distance.argmin(axis=0), -1)


@dataclass(frozen=True)
class Share:
    """What became of a grid of starts under one optimiser and gamma.

    Attributes:
        starts: how many; lr and steps: of each descent.
        flat, sharp: shares of them that ended in the basin of the flattest minimum and in another's.
        arrived: share whose last iterate is within `ARRIVED` of the flattest minimum. With a constant gamma SAM and
            Fisher SAM also come to rest about the saddle between the minima, and, where gamma is large, at points from
            which the probe meets the bottom of the sharp minimum: no gradient there, and no step.
        sgd_flat: the share that plain gradient descent takes to the flattest: what there is to improve on.
        length: Euclidean length of a probe, mean over all iterates and starts. It makes the gammas of different metrics
            comparable.
        distance: of the last iterate from the flattest minimum, median over the starts that ended in its basin.
        cut: share of the starts on whose way something was cut off at `SMALLEST_SIGMA`.
    """

    optimiser: str
    gamma: float
    lr: float
    steps: int
    starts: int
    flat: float
    sharp: float
    arrived: float
    sgd_flat: float
    length: float
    distance: float
    cut: float


def shares(
    landscape: Landscape, starts: ArrayLike, gammas: Mapping[str, Sequence[float]], *, lr: float, steps: int
) -> list[Share]:
    """How many of `starts` [n, 2] end in the flattest minimum, for each optimiser and each of its gammas.

    Raises:
        ValueError: as `descend`.
    """
    places = minima(landscape)
    grid = np.asarray(starts, dtype=float)
    unaided = float((basin(landscape, grid, places) == 0).mean())
    rows: list[Share] = []
    for optimiser, sizes in gammas.items():
        gamma = np.asarray(sizes, dtype=float)[:, None]
        path = descend(landscape, grid, optimiser=optimiser, gamma=gamma, lr=lr, steps=steps)
        ends = basin(landscape, path.theta[-1], places)
        lengths = np.linalg.norm(path.eps, axis=-1).mean(axis=(0, 2))
        away = np.linalg.norm(path.theta[-1] - places[0].theta, axis=-1)
        cut = path.cut.any(axis=0).mean(axis=-1)
        for i, size in enumerate(sizes):
            flat = ends[i] == 0
            rows.append(
                Share(
                    optimiser,
                    float(size),
                    lr,
                    steps,
                    len(grid),
                    float(flat.mean()),
                    float((ends[i] > 0).mean()),
                    float((away[i] < ARRIVED).mean()),
                    unaided,
                    float(lengths[i]),
                    float(np.median(away[i][flat])) if flat.any() else float("nan"),
                    float(cut[i]),
                )
            )
    return rows


def _flow(landscape: Landscape, theta: Array, *, lr: float = 60.0, longest: float = 0.5, steps: int = 1200) -> Array:
    """Steepest descent in steps so short that none crosses a ridge: lr times the gradient, at most `longest`."""
    at = _inside(theta)
    for _ in range(steps):
        gradient = landscape.gradient(at)
        length = lr * np.linalg.norm(gradient, axis=-1, keepdims=True)
        at = _inside(at - lr * gradient * np.minimum(1.0, longest / np.maximum(length, longest)))
    return at


def _checked(theta: ArrayLike) -> Array:
    at = np.asarray(theta, dtype=float)
    if at.ndim == 0 or at.shape[-1] != 2:
        raise ValueError(f"theta: the last axis must be (mu, sigma), not of shape {at.shape}")
    if not (at[..., 1] > 0).all():
        raise ValueError(f"theta: sigma must be above 0, not {at[..., 1].min():g}")
    return at


def _inside(theta: Array) -> Array:
    return np.maximum(theta, (-np.inf, SMALLEST_SIGMA))
