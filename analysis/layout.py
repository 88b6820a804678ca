"""Which figure a study asks for, read off what it varies: a map, lines, or no more than a table."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from analysis.tables import RECIPE_FIELDS, varied
from analysis.words import absent, settings

#: Settings that say on what methods are compared; the others say what is compared, and validation may choose them.
CONDITIONS = (
    "dataset", "folder", "model", "pretrained", "image_side", "train_size", "split_seed", "label_noise_kind",
    "validation_labels", "label_noise",
)  # fmt: skip


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
    """`heatmap` over `x` and `y`, `line` over `x`, `search`, or `table`.

    `factors` is every setting that any arm varies; `conditions` those of them that are `CONDITIONS`, in that order.
    """

    kind: Literal["heatmap", "line", "search", "table"]
    x: str | None
    y: str | None
    panels: tuple[Panel, ...]
    factors: tuple[str, ...]
    conditions: tuple[str, ...] = ()


def layout(table: pd.DataFrame, axes: Collection[str] | None = None, *, search: bool = False) -> Layout:
    """Choose the figure for `cells(...)`.

    Args:
        table: what `tables.cells` returns.
        axes: the settings that the study crosses or searches. What else differs within an arm (a batch size that one
            of its models needs) follows from these and makes no axis. None: every setting that differs.
        search: whether the cells were sampled; samples make no map, since hardly two of them share a value.

    The arms that vary most settings make the figure; the others stand beside it as references. Of more than two
    varied settings, eta and gamma are the axes where both are there, else the two numbers with most values; one panel
    is made of each combination of the rest.
    """
    fields = RECIPE_FIELDS if axes is None else [f for f in RECIPE_FIELDS if f in axes]
    inside = {arm: varied(rows, fields) for arm, rows in table.groupby("arm", dropna=False, sort=False)}
    factors = tuple(f for f in varied(table, fields) if any(f in own for own in inside.values()))
    conditions = tuple(f for f in CONDITIONS if f in factors)
    widest = max(map(len, inside.values()), default=0)
    if widest == 0 or search or (widest > 1 and len(conditions) == len(factors)):
        # Over conditions alone nothing is tuned: a table with a row a condition says it all.
        kind: Literal["search", "table"] = "search" if search else "table"
        return Layout(kind, None, None, (Panel("", table),), factors, conditions)
    if widest == 1:
        # Arms that vary the same setting share an axis; an arm that varies another has a figure of its own.
        panels = []
        lines = list(dict.fromkeys(own[0] for own in inside.values() if own))
        for axis in lines:
            arms = [arm for arm, own in inside.items() if own in ([axis], [])]
            panels.append(Panel(axis if len(lines) > 1 else "", table[table["arm"].isin(arms)], axis))
        return Layout("line", lines[0], None, tuple(panels), factors, conditions)

    main = [arm for arm, own in inside.items() if len(own) == widest]
    x, y = _axes(table[table["arm"].isin(main)], inside[main[0]])
    panels = []
    for arm in main:
        grid = table[table["arm"].isin([arm])]
        rest = [f for f in inside[arm] if f not in (x, y)]
        beside = _references(table[~table["arm"].isin(main)], inside, x, y)
        for values, rows in _split(grid, rest):
            title = ", ".join(filter(None, [str(arm) if len(main) > 1 else "", settings(values, rest)]))
            panels.append(Panel(title, pd.concat([rows, _matching(beside, values, rest)])))
    return Layout("heatmap", x, y, tuple(panels), factors, conditions)


def _references(beside: pd.DataFrame, inside: dict[Any, list[str]], x: str, y: str) -> pd.DataFrame:
    """Arms that stand beside a map. One that has a value on both axes without crossing them (ASAM at its own gamma and
    eta) would lie on the map's pixels: it stands beside it, without the value that it does not vary.
    """
    on_both = beside[x].notna() & beside[y].notna()
    if not on_both.any():
        return beside
    beside = beside.copy()
    for axis in (x, y):
        fixed = beside["arm"].map(lambda arm, axis=axis: axis not in inside[arm])
        beside[axis] = beside[axis].mask(on_both & fixed)
    return beside[beside[x].isna() | beside[y].isna()]


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
