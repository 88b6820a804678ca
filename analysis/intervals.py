"""Student's t over a handful of seeds: intervals of a mean and of a paired difference.

`scipy.special` holds the same t quantile as `scipy.stats` and imports several times faster; it too is imported where
it is first used, so that whoever only reads tables does not wait for it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LEVEL = 0.95

#: A standard deviation below this is the rounding of equal values.
_SPREAD = 1e-12

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
    half = np.where(enough & (std > _SPREAD), half, np.nan)
    return mean - half, mean + half


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
    equal = std <= _SPREAD
    p = np.where(equal, np.where(np.abs(mean) <= _SPREAD, 1.0, np.nan), 2 * stdtr(safe - 1, -t))
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
