"""What a study found, read once and said in a few lines: the terminal's summary and the source of every section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.compare import indistinguishable, marked, paired_at_matched_gamma
from analysis.conditions import by_condition, chosen, differences
from analysis.geometry import over_seeds
from analysis.intervals import SPREAD
from analysis.layout import CONDITIONS, Layout, layout
from analysis.robustness import curves_of
from analysis.search import search_axes
from analysis.tables import CELL_STATUSES, StudyReader, best_cell, varied
from analysis.words import cell_name, measured, points, settings

_MOST_LINES = 8
_MOST_CONDITION_LINES = 64


@dataclass(frozen=True)
class Findings:
    """What every section is written from, read and computed once.

    `choice` is the cell that stands for each arm under each of the layout's conditions (`conditions.chosen`);
    `differences` are Fisher SAM's from the others there. `best` is None where there are conditions: cells under
    different ones are no rivals. `measures` holds what was measured of trained networks, over seeds, by name;
    `used` what all runs have taken, in words.
    """

    spec: dict[str, Any]
    runs: list[dict[str, Any]]
    replicates: pd.DataFrame
    history: pd.DataFrame
    decisions: pd.DataFrame
    cells: pd.DataFrame
    layout: Layout
    best: pd.Series | None
    pairs: pd.DataFrame
    choice: pd.DataFrame
    differences: pd.DataFrame
    measures: dict[str, pd.DataFrame] = field(default_factory=dict)
    used: str = ""

    @property
    def name(self) -> str:
        return str(self.spec.get("name") or "study")

    @property
    def arms(self) -> list[Any]:
        """The study's arms in the order of its file: the place of an arm decides its colour."""
        return _arms(self.spec, self.cells)

    @property
    def tuned(self) -> list[str]:
        """The settings that vary within an arm and are no condition: what validation chooses."""
        return [f for f in self.layout.factors if f not in self.layout.conditions]

    def called(self, row: Any) -> str:
        return cell_name(row, self.layout.factors)

    def by_condition(self) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
        """The values of the conditions and the chosen cells that have them."""
        return by_condition(self.choice, self.layout.conditions)


def read(reader: StudyReader, *, curves_too: bool = True) -> Findings:
    """Read a study and compute what is said of it; without `curves_too` history, decisions and measures stay empty."""
    replicates = reader.replicates()
    empty = pd.DataFrame()
    spec, runs = reader.spec, reader.runs()
    used = str(reader.used(runs))
    if replicates.empty:
        nothing = Layout("table", None, None, (), ())
        return Findings(spec, runs, replicates, empty, empty, empty, nothing, None, empty, empty, empty, used=used)
    axes = _axes(spec)
    conditions = [f for f in CONDITIONS if f in _varied_within(replicates, axes)]
    cells = marked(replicates, within=conditions)
    choice = chosen(cells, conditions)
    place = {arm: i for i, arm in enumerate(_arms(spec, cells))}
    choice = choice.sort_values("arm", key=lambda arms: arms.map(place), kind="stable", ignore_index=True)
    return Findings(
        spec=spec,
        runs=runs,
        replicates=replicates,
        history=reader.history() if curves_too else empty,
        decisions=reader.decisions() if curves_too else empty,
        cells=cells,
        layout=layout(cells, axes, search=bool(spec.get("search"))),
        best=None if conditions else best_cell(cells),
        pairs=paired_at_matched_gamma(replicates, cells),
        choice=choice,
        differences=differences(replicates, choice, conditions),
        measures=_measures(reader, cells) if curves_too else {},
        used=used,
    )


def _arms(spec: Mapping[str, Any], cells: pd.DataFrame) -> list[Any]:
    """A search's plan is in the order in which cells were chosen, so that the order is asked of the spec first."""
    present = dict.fromkeys(cells["arm"])
    return [
        *(arm for arm in spec.get("arms") or {} if arm in present),
        *(a for a in present if a not in (spec.get("arms") or {})),
    ]


def _axes(spec: Mapping[str, Any]) -> list[str] | None:
    """The settings that a study crosses or searches; None where it does not say."""
    if "grid" not in spec and not spec.get("search"):
        return None
    return [*(spec.get("grid") or {}), *search_axes(spec)]


def _varied_within(replicates: pd.DataFrame, axes: list[str] | None) -> set[str]:
    rows = replicates.drop_duplicates("cell")
    fields = CONDITIONS if axes is None else [f for f in CONDITIONS if f in axes]
    return {f for _, own in rows.groupby("arm", dropna=False) for f in varied(own, fields)}


def _measures(reader: StudyReader, cells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    declared = reader.spec.get("measures") or {}
    found = {}
    if "perturbation" in declared:
        found["perturbation"] = curves_of(reader.measures("perturbation"), cells)
    for name in ("curvature", "sharpness"):
        if name in declared:
            found[name] = over_seeds(reader.measures(name), cells, name)
    return {name: frame for name, frame in found.items() if len(frame)}


def state_line(found: Findings) -> str | None:
    """One clear line about a study that is not finished; None where it is."""
    if found.replicates.empty:
        return "This study has no planned replicates: there is nothing to report yet."
    status = found.replicates["status"]
    planned, done = len(status), int((status == "complete").sum())
    waiting, running = int((status == "missing").sum()), int((status == "running").sum())
    if waiting == planned:
        return f"Nothing has been trained yet: all {planned} replicates are missing."
    if waiting or running:
        other = planned - done - running - waiting
        ended = f", {other} ended otherwise" if other else ""
        return (
            f"This study is not finished: of {planned} replicates {done} are complete{ended}, {running} begun and "
            f"{waiting} missing. What follows may change."
        )
    return None


def status_counts(found: Findings) -> list[tuple[int, str]]:
    """How many cells have each status that occurs."""
    if found.cells.empty:
        return []
    count = found.cells["status"].value_counts()
    return [(int(count[s]), s) for s in CELL_STATUSES if s in count]


def summary(found: Findings, sign: str, *, arms: bool = True) -> list[str]:
    """The result in a few lines; without `arms` those that a page has as tables are left out: each arm's and each
    condition's.
    """
    state = state_line(found)
    lines = [state] if state else []
    if found.cells.empty:
        return lines
    counts = ", ".join(f"{n} {name}" for n, name in status_counts(found))
    lines.append(f"cells: {len(found.cells)} ({counts})")
    if found.layout.conditions:
        return lines + (_condition_lines(found, sign) if arms else [])
    best = found.best
    if best is None:
        lines.append("best cell: none, no cell is complete")
    else:
        validation = tuple(best[f"validation_{k}"] for k in ("mean", "low", "high", "n"))
        test = tuple(best[k] for k in ("mean", "low", "high", "n"))
        lines.append(
            f"best cell, by validation: {found.called(best)}: "
            f"validation {measured(*validation, sign=sign)}, test {measured(*test, sign=sign)}"
        )
        compared = indistinguishable(found.replicates, best)
        compared = compared[compared["n"] >= 2]
        if len(compared):
            same = int(compared["indistinguishable"].sum())
            apart = compared["indistinguishable"] & compared["low"].isna() & (compared["difference"].abs() > SPREAD)
            untold = f"; {int(apart.sum())} of these differ by the same in every seed: untested" if apart.any() else ""
            lines.append(
                f"not distinguishable from it on the test set: {same} of {len(compared)} other complete cells "
                f"(paired 95 % t over {_seeds(compared['n'])} seeds, uncorrected{untold})"
            )
    single_map = found.layout.kind == "heatmap" and len(found.layout.panels) == 1
    if arms and len(found.choice) > 1 and not single_map and best is not None:
        lines += _arm_lines(found, sign)
    return lines + _tuned_pairs(found)


def _arm_lines(found: Findings, sign: str) -> list[str]:
    """Each arm at the cell that validation chooses."""
    word = "best of " if found.tuned else ""
    lines = []
    for _, row in found.choice.iterrows():
        test = "test " if row["status"] == "complete" else ""
        lines.append(f"{word}{row['arm']}: {test}{outcome(found, row, sign)}")
    return _cut(lines, "arms")


def _condition_lines(found: Findings, sign: str) -> list[str]:
    """Each condition with a line for every arm at the cell that validation chooses there, then Fisher SAM's differences
    from SAM at equal gamma.
    """
    conditions = list(found.layout.conditions)
    chosen_by = ", cells chosen by validation" if found.tuned else ""
    groups = list(found.by_condition())
    wide = max((len(str(arm)) for arm in found.arms), default=0)
    lines: list[str] = []
    for i, (values, rows) in enumerate(groups):
        block = [f"test accuracy at {settings(values, conditions)}{chosen_by}:"]
        block += [f"  {row['arm']!s:{wide}}  {outcome(found, row, sign)}" for _, row in rows.iterrows()]
        pairs = found.pairs[found.pairs["cell_a"].isin(rows["cell"])] if len(found.pairs) else found.pairs
        for _, pair in pairs.iterrows():
            at = settings(pair, ["gamma"])
            block.append(f"  {pair['arm_a']} minus {pair['arm_b']}{at and f' at {at}'}: {points_of(pair)} points")
        if i and len(lines) + len(block) > _MOST_CONDITION_LINES:
            return [*lines, f"{len(groups) - i} more conditions are in the report"]
        lines += block
    return lines


def _cut(lines: list[str], what: str) -> list[str]:
    left = len(lines) - _MOST_LINES
    return lines if left <= 0 else [*lines[:_MOST_LINES], f"{left} more {what} are in the report"]


def outcome(found: Findings, row: Any, sign: str) -> str:
    """A chosen cell's test accuracy with its settings, or why it has none: `91.2 ± 0.4 % (n=3), gamma 0.1`."""
    named = settings(row, found.tuned)
    if row["status"] == "complete":
        text = measured(*(row[k] for k in ("mean", "low", "high", "n")), sign=sign)
        return f"{text} at {named}" if named else text
    if row["cells_planned"] > 1:
        return f"no cell of {row['cells_planned']} is complete"
    if row["status"] == "partial":
        text = measured(*(row[k] for k in ("mean", "low", "high", "n")), sign=sign)
        return f"{text}, not complete: {row['n_complete']} of {row['n_planned']} seeds"
    at = "" if row["epoch"] != row["epoch"] else f" at epoch {row['epoch']:.0f}"
    return f"not complete: {row['status']}{at}"


def _seeds(n: pd.Series) -> str:
    return str(n.min()) if n.min() == n.max() else f"{n.min()} to {n.max()}"


def _tuned_pairs(found: Findings) -> list[str]:
    """Fisher SAM minus SAM at the gamma of the best Fisher SAM cell, for each pair of arms of these optimisers."""
    pairs, table = found.pairs, found.cells
    if pairs.empty or "gamma" not in pairs:
        return []
    arms = pairs[["arm_a", "arm_b"]].drop_duplicates()
    lines = []
    for a, b in arms.itertuples(index=False):
        best = best_cell(table[table["arm"] == a])
        row = pairs[(pairs["arm_b"] == b) & (pairs["cell_a"] == (best["cell"] if best is not None else ""))]
        if row.empty:
            continue
        first = row.iloc[0]
        where = settings(first, [f for f in found.layout.factors if f in row]) or settings(first, ["gamma"])
        names = (
            "Fisher SAM minus SAM"
            if len(arms_with(table, "fsam")) == len(arms_with(table, "sam")) == 1
            else f"{a} minus {b}"
        )
        lines.append(f"{names}, {where}: {points_of(first)} percentage points of test accuracy")
    return _cut(lines, "pairs")


def arms_with(table: pd.DataFrame, optimiser: str) -> list[Any]:
    """The arms that use an optimiser."""
    return list(dict.fromkeys(table.loc[table["optimiser"] == optimiser, "arm"]))


def points_of(row: Any) -> str:
    return points(row["difference"], row["low"], row["high"], row["n"])
