"""How a study shows itself where it is the value of a notebook's cell."""

from __future__ import annotations

import os
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from study.reader import StudyReader

#: Up to so many folders up, a path is shown from where the reader is.
_UP = 2


_BEST, _MOST = "best by validation", 6


def place(reader: StudyReader) -> str:
    """Where the study is; near the working directory as a relative path, which means the same to whoever is told."""
    uri = reader.folder.uri
    if not reader.folder.is_local:
        return uri
    near = os.path.relpath(uri)
    return near if near.split(os.sep).count(os.pardir) <= _UP else uri


def line(reader: StudyReader) -> str:
    """The study in one line, from its description alone."""
    return f"<study {reader.spec['name']} in {place(reader)}>"


def html(reader: StudyReader) -> str:
    """Name, question, state, counts, the best cell by validation with interval and n, times and place as a table.

    Raises:
        StoreError: the folder cannot be read.
    """
    from analysis.findings import read, state_line, status_counts
    from analysis.tables import best_cells
    from analysis.words import duration

    found = read(reader, curves_too=False)
    rows = [("state", state_line(found) or "every planned replicate has ended")]
    if len(found.cells):
        counts = ", ".join(f"{n} {status}" for n, status in status_counts(found))
        arms = f"{len(found.arms)} {'arm' if len(found.arms) == 1 else 'arms'}"
        rows.append(("cells", f"{len(found.cells)} ({counts}) in {arms}"))
        rows.append(("seeds", ", ".join(str(s) for s in sorted(found.replicates["seed"].unique()))))
        # Cells under different conditions (a rate of label noise) are no rivals: each has a best one.
        best = best_cells(found.cells, found.layout.conditions)
        rows += [(_BEST, f"{found.called(row)}: {_worth(row)}") for _, row in best.head(_MOST).iterrows()]
        if len(best) > _MOST:
            rows.append((_BEST, f"{len(best) - _MOST} more conditions are in the report"))
        if best.empty:
            rows.append((_BEST, "none, no cell is complete"))
        trained = found.replicates["train_seconds"].sum()
        wall = sum(float(run.get("seconds") or 0) for run in found.runs)
        runs = f"{len(found.runs)} {'run' if len(found.runs) == 1 else 'runs'}"
        rows.append(
            ("time", f"{duration(trained)} of training in all trials together; {runs}, {duration(wall)} by the clock")
        )
    rows.append(("folder", place(reader)))
    body = "".join(
        f'<tr><th scope="row" style="text-align:left">{escape(k)}</th><td style="text-align:left">{escape(v)}</td></tr>'
        for k, v in rows
    )
    question = escape(" ".join(str(reader.spec.get("question") or "").split()))
    return (
        f"<div><strong>{escape(found.name)}</strong><br><em>{question}</em><table><tbody>{body}</tbody></table></div>"
    )


def _worth(cell: Any) -> str:
    from analysis.words import measured

    validation, test = (
        measured(*(cell[f"{of}{k}"] for k in ("mean", "low", "high", "n"))) for of in ("validation_", "")
    )
    return f"validation {validation}, test {test}"
