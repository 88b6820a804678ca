"""Ours beside the numbers that the paper prints, with what differs and what the paper does not say."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis import page
from analysis.findings import Findings
from analysis.published import BOUND, beside_study, published
from analysis.words import absent, points, settings

_MOST_ROWS = 200
_MOST_NAMES = 4


def section(found: Findings) -> str:
    """A row a published number that a cell of the study stands for; nothing where there is none."""
    frame = beside_study(found.replicates, found.cells)
    if frame.empty:
        return ""
    everywhere = _shared(frame["why_not"]) if len(frame) > 1 else []
    tables = frame["table"].nunique()
    rows = []
    for _, row in frame.head(_MOST_ROWS).iterrows():
        where = f"{row['table']}: {row['paper_cell']}" if tables > 1 else row["paper_cell"]
        comparable = "no" if not row["comparable"] else "yes" if row["n"] else "when trained"
        rows.append([where, comparable, _ours(row), _paper(row), _difference(row), _cell(row, everywhere)])
    columns = ["the paper's number", "comparable", "ours (%)", "the paper's (%)", "difference [95 %]", "our cell"]
    body = page.paragraph(_introduction(frame))
    if everywhere:
        body += page.paragraph(f"In every row: {'; '.join(everywhere)}.")
    body += page.paragraph(
        "Ours: mean over n seeds ± their standard deviation. The paper's: as printed. Differences: ours less the "
        f"paper's, in percentage points; their intervals: {BOUND}. Where a number's own section is silent on a "
        "setting, that of section 5.1 is taken for the paper's, and a difference from it says so.",
        "soft",
    )
    body += page.table(columns, rows, numbers=columns[2:5], long=[columns[0], columns[5]], tall=True)
    if len(frame) > _MOST_ROWS:
        body += page.paragraph(f"The first {_MOST_ROWS} of {len(frame)}; all are in tables/beside_the_paper.csv.")
    return body + _unsaid(frame)


def _shared(texts: pd.Series) -> list[str]:
    """The parts that all of these texts have."""
    parts = [text.split("; ") if text else [] for text in texts]
    return [part for part in parts[0] if all(part in other for other in parts)]


def _introduction(frame: pd.DataFrame) -> str:
    comparable = int(frame["comparable"].sum())
    counts = frame.drop_duplicates(["table", "paper_cell"]).groupby("table", sort=False).size()
    numbers = " and ".join(f"{n} {'number' if n == 1 else 'numbers'} of {table}" for table, n in counts.items())
    if comparable == len(frame):
        verdict = "every setting that the paper states is the same"
    elif comparable:
        verdict = f"in {comparable} of {len(frame)} rows every setting that the paper states is the same"
    else:
        verdict = "none of the rows is comparable, and the differences say nothing about the paper's claims"
    one = counts.sum() == 1
    return f"{numbers} {'has' if one else 'have'} a cell of this study beside {'it' if one else 'them'}; {verdict}."


def _cell(row: Any, everywhere: list[str]) -> str:
    """The cell that stands there, what chose it, and what differs in it."""
    text = settings(row, ("gamma", "eta"))
    text = f"{row['arm']}{', ' if text else ''}{text}"
    if row["chosen_by"] != "the only cell":
        text += f" (by {row['chosen_by']})"
    own = [part for part in row["why_not"].split("; ") if part and part not in everywhere]
    return f"{text}: {'; '.join(own)}" if own else text


def _ours(row: Any) -> str:
    if not row["n"]:
        return str(row["status"]) + ("" if absent(row["epoch"]) else f", epoch {row['epoch']:.0f}")
    spread = "" if absent(row["std"]) else f" ± {100 * row['std']:.2f}"
    return f"{100 * row['mean']:.2f}{spread} (n={row['n']})"


def _paper(row: Any) -> str:
    spread = "" if absent(row["paper_spread"]) else f" ± {100 * row['paper_spread']:.2f}"
    return f"{100 * row['paper_mean']:.2f}{spread}"


def _difference(row: Any) -> str:
    if not row["n"]:
        return "–"
    text = points(row["difference"], row["difference_low"], row["difference_high"], row["n"])
    return text.split(" (")[0]  # n stands beside ours


def _unsaid(frame: pd.DataFrame) -> str:
    """What the paper does not say, and what stands here in its place; then what is odd in its own numbers."""
    lines = [
        "Over how many runs a mean is taken, and whether ± is a standard deviation, a standard error or an interval.",
        "Which images chose gamma and eta: no validation split is mentioned. Here nothing is chosen by the test set.",
    ]
    for table, rows in frame.groupby("table", sort=False):
        shared = _shared(rows["left_open"])
        if shared:
            lines.append(f"For {table}, where these settings are not given; here: {', '.join(shared)}.")
        further: dict[str, list[str]] = {}
        for _, row in rows.iterrows():
            for part in filter(None, row["left_open"].split("; ")):
                if part not in shared:
                    further.setdefault(part, []).append(row["paper_cell"])
        by_cells: dict[str, list[str]] = {}
        for part, cells in further.items():
            by_cells.setdefault(_named(cells), []).append(part)
        lines += [f"For {table}, {cells}; here: {', '.join(parts)}." for cells, parts in by_cells.items()]
    notes = published().set_index(["table", "cell"])["note"].to_dict()
    odd: dict[str, list[str]] = {}
    for table, cell in frame[["table", "paper_cell"]].drop_duplicates().itertuples(index=False):
        note = notes[table, cell]
        if not absent(note):
            odd.setdefault(f"{table}, {{}}: {note}.", []).append(cell)
    body = page.paragraph("What the paper does not say:") + page.bullets(lines)
    if odd:
        body += page.paragraph("In the paper itself:")
        body += page.bullets(text.format(_named(cells)) for text, cells in odd.items())
    return body


def _named(cells: list[str]) -> str:
    cells = list(dict.fromkeys(cells))
    return ", ".join(cells[:_MOST_NAMES]) + (
        f" and {len(cells) - _MOST_NAMES} more" if len(cells) > _MOST_NAMES else ""
    )
