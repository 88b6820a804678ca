"""What a study found, read once and said in a few lines: the terminal's summary and the source of every section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.compare import indistinguishable, marked, paired_at_matched_gamma
from analysis.layout import Layout, layout
from analysis.tables import CELL_STATUSES, StudyReader, best_cell
from analysis.words import cell_name, measured, points, settings


@dataclass(frozen=True)
class Findings:
    """What every section is written from, read and computed once."""

    spec: dict[str, Any]
    runs: list[dict[str, Any]]
    replicates: pd.DataFrame
    history: pd.DataFrame
    decisions: pd.DataFrame
    cells: pd.DataFrame
    layout: Layout
    best: pd.Series | None
    pairs: pd.DataFrame

    @property
    def name(self) -> str:
        return str(self.spec.get("name") or "study")

    def called(self, row: Any) -> str:
        return cell_name(row, self.layout.factors)


def read(reader: StudyReader, *, curves_too: bool = True) -> Findings:
    """Read a study and compute what is said of it; without `curves_too` history and decisions stay empty."""
    replicates = reader.replicates()
    empty = pd.DataFrame()
    if replicates.empty:
        nothing = Layout("table", None, None, (), ())
        return Findings(reader.spec, reader.runs(), replicates, empty, empty, empty, nothing, None, empty)
    cells = marked(replicates)
    return Findings(
        spec=reader.spec,
        runs=reader.runs(),
        replicates=replicates,
        history=reader.history() if curves_too else empty,
        decisions=reader.decisions() if curves_too else empty,
        cells=cells,
        layout=layout(cells),
        best=best_cell(cells),
        pairs=paired_at_matched_gamma(replicates, cells),
    )


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
        return (
            f"This study is not finished: of {planned} replicates {done} are complete, {running} running and "
            f"{waiting} missing. What follows may change."
        )
    return None


def status_counts(found: Findings) -> list[tuple[int, str]]:
    """How many cells have each status that occurs."""
    if found.cells.empty:
        return []
    count = found.cells["status"].value_counts()
    return [(int(count[s]), s) for s in CELL_STATUSES if s in count]


def summary(found: Findings, sign: str) -> list[str]:
    state = state_line(found)
    lines = [state] if state else []
    if found.cells.empty:
        return lines
    counts = ", ".join(f"{n} {name}" for n, name in status_counts(found))
    lines.append(f"cells: {len(found.cells)} ({counts})")
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
            lines.append(
                f"not distinguishable from it on the test set: {same} of {len(compared)} other complete cells "
                f"(paired 95 % t over {_seeds(compared['n'])} seeds, uncorrected)"
            )
    tuned = _tuned_pair(found)
    if tuned is not None:
        lines.append(tuned)
    return lines


def _seeds(n: pd.Series) -> str:
    return str(n.min()) if n.min() == n.max() else f"{n.min()} to {n.max()}"


def _tuned_pair(found: Findings) -> str | None:
    """Fisher SAM minus SAM at the gamma of the best Fisher SAM cell."""
    if found.pairs.empty or "gamma" not in found.pairs:
        return None
    table = found.cells
    best = best_cell(table[table["optimiser"] == "fsam"])
    row = found.pairs[found.pairs["cell_a"] == (best["cell"] if best is not None else "")]
    if row.empty:
        return None
    first = row.iloc[0]
    where = settings(first, [f for f in found.layout.factors if f in row])
    return f"Fisher SAM minus SAM, {where}: {points_of(first)} percentage points of test accuracy"


def points_of(row: Any) -> str:
    return points(row["difference"], row["low"], row["high"], row["n"])
