"""Which figure a study asks for, read off what it varies: a map, lines, or no more than a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from analysis.tables import varied
from analysis.words import absent, settings


@dataclass(frozen=True)
class Panel:
    """The cells of one figure: one value of each further factor, with the reference cells that go with it. `x` is
    the panel's own axis where lines over several settings stand side by side.
    """

    title: str
    cells: pd.DataFrame
    x: str | None = None


@dataclass(frozen=True)
class Layout:
    """`heatmap` over `x` and `y`, `line` over `x`, or `table`; `factors` is every setting that any arm varies."""

    kind: Literal["heatmap", "line", "table"]
    x: str | None
    y: str | None
    panels: tuple[Panel, ...]
    factors: tuple[str, ...]


def layout(table: pd.DataFrame) -> Layout:
    """Choose the figure for `cells(...)`.

    The arms that vary most settings make the figure; the others stand beside it as references. Of more than two
    varied settings, eta and gamma are the axes where both are there, else the two numbers with most values; one panel
    is made of each combination of the rest.
    """
    inside = {arm: varied(rows) for arm, rows in table.groupby("arm", dropna=False, sort=False)}
    factors = tuple(f for f in varied(table) if any(f in fields for fields in inside.values()))
    widest = max(map(len, inside.values()), default=0)
    if widest == 0:
        return Layout("table", None, None, (Panel("", table),), factors)
    if widest == 1:
        # Arms that vary the same setting share an axis; an arm that varies another has a figure of its own.
        panels = []
        axes = list(dict.fromkeys(fields[0] for fields in inside.values() if fields))
        for axis in axes:
            arms = [arm for arm, fields in inside.items() if fields in ([axis], [])]
            panels.append(Panel(axis if len(axes) > 1 else "", table[table["arm"].isin(arms)], axis))
        return Layout("line", axes[0], None, tuple(panels), factors)

    main = [arm for arm, fields in inside.items() if len(fields) == widest]
    x, y = _axes(table[table["arm"].isin(main)], inside[main[0]])
    panels = []
    for arm in main:
        grid = table[table["arm"].isin([arm])]
        rest = [f for f in inside[arm] if f not in (x, y)]
        beside = table[~table["arm"].isin(main)]
        for values, rows in _split(grid, rest):
            title = ", ".join(filter(None, [str(arm) if len(main) > 1 else "", settings(values, rest)]))
            panels.append(Panel(title, pd.concat([rows, _matching(beside, values, rest)])))
    return Layout("heatmap", x, y, tuple(panels), factors)


def _axes(rows: pd.DataFrame, fields: list[str]) -> tuple[str, str]:
    if {"eta", "gamma"} <= set(fields):
        return "eta", "gamma"
    numeric = [f for f in fields if is_numeric_dtype(rows[f]) and not is_bool_dtype(rows[f])]
    ranked = sorted(fields, key=lambda f: (f not in numeric, -rows[f].nunique()))
    return ranked[0], ranked[1]


def _split(rows: pd.DataFrame, fields: list[str]) -> Iterator[tuple[pd.Series, pd.DataFrame]]:
    if not fields:
        yield pd.Series(dtype=object), rows
        return
    for _, group in rows.groupby(fields, dropna=False, sort=True):
        yield group.iloc[0][fields], group


def _matching(rows: pd.DataFrame, values: pd.Series, fields: list[str]) -> pd.DataFrame:
    """Reference cells with the panel's values; a setting that a reference does not use cannot disagree."""
    keep = pd.Series(True, index=rows.index)
    for field in fields:
        if not absent(values[field]):
            keep &= (rows[field] == values[field]) | rows[field].isna()
    return rows[keep]
