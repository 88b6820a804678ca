"""Student's t over a handful of seeds: intervals of a mean and of a paired difference; the bootstrap as an option.

`scipy.special` holds the same t quantile as `scipy.stats` and imports several times faster; it too is imported where
it is first used, so that whoever only reads tables does not wait for it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

LEVEL = 0.95

#: A standard deviation below this is the rounding of equal values.
SPREAD = 1e-12

Floats = npt.NDArray[np.float64]


def interval(mean: npt.ArrayLike, std: npt.ArrayLike, n: npt.ArrayLike, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Lower and upper end of the t interval of a mean; NaN where n < 2 and where the values do not differ.

    Accuracies move in steps of one image. That a few of them are equal says that the step is coarser than their spread,
    and not that the mean is known exactly: an interval of no width would claim so.

    Args:
        mean, std, n: arrays of one shape; `std` with ddof 1, `n` the number of values behind each mean.
        level: confidence of the two-sided interval.
    """
    from scipy.special import stdtrit

    mean, std, n = (np.asarray(a, dtype=float) for a in (mean, std, n))
    enough = n >= 2
    safe = np.where(enough, n, 2.0)
    half = stdtrit(safe - 1, (1 + level) / 2) * std / np.sqrt(safe)
    half = np.where(enough & (std > SPREAD), half, np.nan)
    return mean - half, mean + half


def interval_of(
    values: npt.ArrayLike,
    method: Literal["t", "bootstrap"] = "t",
    level: float = LEVEL,
    *,
    seed: int = 0,
    resamples: int = 9999,
) -> tuple[float, float]:
    """Interval of the mean of a few values, by Student's t or by the bootstrap.

    The bootstrap (bias-corrected and accelerated, BCa: Efron, JASA 1987; `scipy.stats.bootstrap`) assumes no normal
    distribution, and pays for it with few values: three seeds have ten different resamples, and their interval, which
    cannot reach beyond the smallest and the largest value, holds the true mean far less often than it says. With fewer
    than some ten seeds t is the better one, and it is what every table and figure shows.

    Args:
        values: values of one cell, or paired differences; those that are not finite are left out.
        method: `t`, as `interval`, or `bootstrap`.
        level: confidence of the two-sided interval.
        seed: of the resampling: equal values give an equal interval in any process.
        resamples: how many.

    Returns:
        Lower and upper end; NaN for fewer than two values and for equal ones, as in `interval`.

    Raises:
        ValueError: the method is none of the two.
    """
    known = np.asarray(values, dtype=float).ravel()
    known = known[np.isfinite(known)]
    if method not in ("t", "bootstrap"):
        raise ValueError(f"method {method!r}: one of t, bootstrap")
    if len(known) < 2 or known.std(ddof=1) <= SPREAD:
        return float("nan"), float("nan")
    if method == "t":
        low, high = interval(known.mean(), known.std(ddof=1), len(known), level)
        return float(low), float(high)
    from scipy.stats import bootstrap

    # In order: what comes of a cell does not depend on that of its rows.
    done = bootstrap(
        (np.sort(known),),
        np.mean,
        confidence_level=level,
        n_resamples=resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    return float(done.confidence_interval.low), float(done.confidence_interval.high)


def p_value(mean: npt.ArrayLike, std: npt.ArrayLike, n: npt.ArrayLike) -> Floats:
    """Two-sided p of a mean being zero (one-sample t); NaN where n < 2.

    Where every value is the same, p is 1 for no difference and NaN for one: see `interval`.
    """
    from scipy.special import stdtr

    mean, std, n = (np.asarray(a, dtype=float) for a in (mean, std, n))
    enough = n >= 2
    safe = np.where(enough, n, 2.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(mean) / (std / np.sqrt(safe))
    equal = std <= SPREAD
    p = np.where(equal, np.where(np.abs(mean) <= SPREAD, 1.0, np.nan), 2 * stdtr(safe - 1, -t))
    return np.where(enough, p, np.nan)


def holm(p: npt.ArrayLike) -> Floats:
    """Holm's step-down adjustment of p values (Scandinavian Journal of Statistics 1979); NaN stays NaN, uncounted."""
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted
