"""How numbers, settings and cells are put into words: the same in a figure, in the report and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

_TITLES = {
    "eps_norm": "norm of eps",
    "eta_vanished": "share of parameters whose eta f vanishes",
    "test_top5_accuracy": "test accuracy, top 5",
    "memorised": "wrong labels memorised",
    "recovered": "true class given all the same",
}
#: Shares that are not called an accuracy.
_SHARES = frozenset({"memorised", "recovered"})


def absent(value: Any) -> bool:
    """Whether a table value is missing: None, NaN or pandas' NA."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def setting(value: Any) -> str:
    """A setting as one would type it: 0.0001, 1e-5, 10, cosine."""
    if absent(value):
        return "–"
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return str(value) or "none"
    mantissa, e, exponent = f"{float(value):g}".partition("e")
    return mantissa + (f"e{int(exponent)}" if e else "")


def is_fraction(metric: str) -> bool:
    """Whether a metric is a fraction in [0, 1], to be shown in per cent."""
    return metric.endswith("accuracy") or metric in _SHARES


def metric_title(metric: str) -> str:
    """The metric in words, with its unit where it has one: `test accuracy (%)`."""
    words = _TITLES.get(metric, metric.replace("_", " "))
    return f"{words} (%)" if is_fraction(metric) else words


def figure_digits(values: Iterable[float], metric: str) -> int:
    """Decimals that tell the values of a map apart: one for per cents, two where they lie within one per cent."""
    known = [v for v in values if math.isfinite(v)]
    spread = (max(known) - min(known)) if known else 0.0
    if is_fraction(metric):
        return 2 if 0 < spread < 0.01 else 1
    return 3 if spread < 1 else 2


def shown(value: float, metric: str, digits: int = 1) -> str:
    """A metric's value without unit: 0.981 of an accuracy is 98.1."""
    if absent(value):
        return "–"
    return f"{value * 100 if is_fraction(metric) else value:.{digits}f}"


def measured(mean: float, low: float, high: float, n: int, metric: str = "test_accuracy", *, sign: str = "±") -> str:
    """A mean with half its 95 % interval and its n: `98.1 ± 0.4 % (n=3)`; no interval where n < 2 or all are equal."""
    if absent(mean) or not n:
        return "not measured (n=0)"
    digits = 1 if is_fraction(metric) else 3
    unit = " %" if is_fraction(metric) else ""
    text = shown(mean, metric, digits)
    if not (absent(low) or absent(high)):
        text += f" {sign} {shown((high - low) / 2, metric, digits)}"
    return f"{text}{unit} ({_seeds(low, n)})"


def _seeds(low: float, n: int) -> str:
    """`n=3`; where there is no interval although there are several seeds, that they agree."""
    return f"n={int(n)}, all equal" if absent(low) and n > 1 else f"n={int(n)}"


def points(difference: float, low: float, high: float, n: int) -> str:
    """A difference of accuracies in percentage points with its interval: `+0.31 [-0.10, +0.72] (n=3)`."""
    if absent(difference):
        return "–"
    text = f"{difference * 100:+.2f}"
    if not (absent(low) or absent(high)):
        text += f" [{low * 100:+.2f}, {high * 100:+.2f}]"
    return f"{text} ({_seeds(low, n)})"


def counted(n: int, word: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{n} {word}" + ("" if n == 1 else "s")


def probability(p: float) -> str:
    """A p value with three decimals: `0.034`; `<0.001` where they would be zeros."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def settings(row: Mapping[str, Any] | pd.Series, fields: Iterable[str]) -> str:
    """The settings that a cell uses: `gamma 0.1, eta 1`."""
    return ", ".join(f"{f} {setting(row[f])}" for f in fields if f in row and not absent(row[f]))


def cell_name(row: Mapping[str, Any] | pd.Series, fields: Iterable[str], *, arm: bool = True) -> str:
    """A cell by its arm and the settings that the study varies: `fsam, gamma 0.1, eta 1`."""
    name = "" if not arm or absent(row.get("arm")) else str(row["arm"])
    return ", ".join(filter(None, [name, settings(row, fields)])) or str(row["cell"])


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `42 s`, `7.5 min`, `3.2 h`."""
    if seconds is None or absent(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
