r"""Cells as a LaTeX table in the form of the paper's: a row a condition, a column an arm, mean$_{\pm spread}$.

Needs `\usepackage{booktabs}` and nothing else. The text stands on its own: n, what ± is and what bold means are in the
caption or under the table, because a table that is copied into a paper leaves its report behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd

from analysis.compare import against
from analysis.conditions import chosen
from analysis.layout import CONDITIONS
from analysis.published import published
from analysis.tables import RECIPE_FIELDS, varied
from analysis.words import absent, is_fraction, metric_title, setting

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "`": r"\textasciigrave{}", "±": r"$\pm$", "−": "$-$", "–": "--",
    "×": r"$\times$", "γ": r"$\gamma$", "η": r"$\eta$", "α": r"$\alpha$",
}  # fmt: skip

_NAMES = {
    "sgd": "SGD", "sam": "SAM", "asam": "ASAM", "fsam": "FSAM", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100",
    "stanford_cars": "Cars", "flowers102": "Flowers", "imagenet": "ImageNet", "resnet32": "ResNet-32",
    "resnet34": "ResNet-34", "vit_b16": "ViT-B/16", "deit_b": "DeiT-B", "test_accuracy": "Top-1",
    "test_top5_accuracy": "Top-5", "label_noise": "Rates", "dataset": "", "model": "", "metric": "",
}  # fmt: skip

_OF_NOISE = ("label_noise_kind", "validation_labels")

_MARK = r"^{\dagger}"


def escape(text: Any) -> str:
    """Plain text as LaTeX that prints it: every special character escaped, on one line."""
    plain = " ".join("".join(c if c.isprintable() or c.isspace() else "" for c in str(text)).split())
    return "".join(_SPECIAL.get(c, c) for c in plain)


def table(
    cells: pd.DataFrame,
    replicates: pd.DataFrame | None = None,
    *,
    rows: Sequence[str] | None = None,
    groups: str | None = None,
    spread: Literal["std", "interval"] = "std",
    digits: int | None = None,
    caption: str | None = None,
    label: str | None = None,
) -> str:
    r"""A `table` environment of the cells that stand for each arm under each condition.

    Args:
        cells: what `tables.cells` returns, of one study or of several joined by `pd.concat` (Table 1 is two studies;
            the two metrics of Table 2 make two rows).
        replicates: `reader.replicates()` of the same cells. With them the numbers that cannot be told from the bold
            one are marked; without, the note says that this was not tested.
        rows: the settings of which each value is a row: by default every condition (`layout.CONDITIONS`, and the
            metric) that varies, but for `groups`.
        groups: the setting of which each value is a group of columns: by default the data set where it varies beside
            another condition, as in Table 1.
        spread: what stands after ±: the standard deviation over seeds, or half the 95 % interval of the mean.
        digits: decimals; by default two for accuracies in per cent and four else.
        caption: plain text, to which n and the meaning of ± are added; by default the metric.
        label: for \ref, as it is.

    Returns:
        LaTeX that needs booktabs. Where an arm has several cells under one condition, the one that validation accuracy
        chooses stands there. Cells that are not complete say what they are ("stopped", "diverged"), those with some of
        their seeds their number and n. Bold: the highest mean of a row and group (the lowest loss), and every mean that
        prints like it; a choice for the eye, made on the test set, which chooses no setting. A dagger: complete cells
        whose paired 95 % t interval of the difference from a bold one contains 0, or that share fewer than two seeds
        with it.

    Raises:
        ValueError: `cells` is empty, or `rows` or `groups` is not a column of it or stands twice.
    """
    if cells.empty:
        raise ValueError("there are no cells to make a table of")
    by, group = _axes(cells, rows, groups)
    conditions = [*by, *([group] if group else [])]
    # Each metric's own choice is the same cell: validation accuracy chooses, and it is one number a cell.
    choice = chosen(cells, conditions)
    arms = list(dict.fromkeys(choice["arm"]))
    blocks = list(dict.fromkeys(choice[group])) if group else [None]
    columns = [(b, arm) for b in blocks for arm in arms if _any(choice, group, b, arm)]
    n = sorted({int(v) for v in choice.loc[choice["mean"].notna() & (choice["n"] > 0), "n"]})
    usual = n[-1] if n else None
    same = _alike(choice, replicates, conditions, digits)
    body, unmarked = [], True
    for values, here in _lines(choice, by):
        entries = []
        for block, arm in columns:
            own = here[(here["arm"] == arm) & (_equal(here[group], block) if group else True)]
            text = _entry(own.iloc[0], same, spread, digits, usual) if len(own) else "--"
            unmarked &= _MARK not in text
            entries.append(text)
        body.append(" & ".join([*(escape(_name(v)) for v in values), *entries]) + r" \\")
    note = _note(cells, choice, conditions, group, replicates is not None, not unmarked)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_caption(caption, choice, spread, n)}}}",
        *([rf"\label{{{label}}}"] if label else []),
        rf"\begin{{tabular}}{{{'l' * max(len(by), 1)}{'c' * len(columns)}}}",
        r"\toprule",
        *_head(by, group, columns),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        rf"\par\smallskip{{\footnotesize {note}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _axes(cells: pd.DataFrame, rows: Sequence[str] | None, groups: str | None) -> tuple[list[str], str | None]:
    named = [*(rows or ()), *([groups] if groups else [])]
    unknown = [f for f in named if f not in cells]
    if unknown or len(set(named)) < len(named):
        raise ValueError(f"rows, groups: {', '.join(unknown or named)}: each has to be another column of the cells")
    # How labels are wrong has no value where none is, and makes no row of its own for that.
    free = [f for f in (*CONDITIONS, "metric") if f in cells and cells[f].nunique(dropna=f in _OF_NOISE) > 1]
    if rows is not None:
        return list(rows), groups
    if groups is None and "dataset" in free and len(free) > 1:
        groups = "dataset"
    return [f for f in free if f != groups], groups


def _equal(column: pd.Series, value: Any) -> pd.Series:
    return column.isna() if absent(value) else column == value


def _any(choice: pd.DataFrame, group: str | None, block: Any, arm: Any) -> bool:
    own = choice[choice["arm"] == arm]
    return bool(len(own[_equal(own[group], block)]) if group else len(own))


def _lines(choice: pd.DataFrame, by: Sequence[str]) -> list[tuple[list[Any], pd.DataFrame]]:
    """The values of the rows with their cells; numbers ascend, names stay in the study's order."""
    if not by:
        return [([metric_title(str(choice["metric"].iloc[0])).removesuffix(" (%)")], choice)]
    if all(pd.api.types.is_numeric_dtype(choice[f]) for f in by):
        choice = choice.sort_values(list(by), kind="stable")
    found = choice.groupby(list(by), dropna=False, sort=False)
    return [([rows[f].iloc[0] for f in by], rows) for _, rows in found]


def _best(rows: pd.DataFrame) -> float:
    return float(rows["mean"].min() if str(rows["metric"].iloc[0]).endswith("loss") else rows["mean"].max())


def _alike(
    choice: pd.DataFrame, replicates: pd.DataFrame | None, conditions: Sequence[str], digits: int | None
) -> dict[tuple[str, str], tuple[bool, bool]]:
    """(bold, marked) of the complete cells, by cell and metric."""
    out: dict[tuple[str, str], tuple[bool, bool]] = {}
    done = choice[(choice["status"] == "complete") & choice["mean"].notna()]
    by = list(dict.fromkeys([*conditions, "metric"]))
    for _, rows in done.groupby(by, dropna=False, sort=False):
        metric = str(rows["metric"].iloc[0])
        best = _best(rows)
        bold = rows.loc[rows["mean"] == best, "cell"].iloc[0]
        apart: set[str] = set()
        if replicates is not None and metric in replicates:
            pairs = against(replicates, rows, dict.fromkeys(rows["cell"], bold), metric)
            # Here the burden of proof is on the difference: what could not be tested is not told apart.
            apart = set(pairs.loc[(pairs["n"] >= 2) & ((pairs["low"] > 0) | (pairs["high"] < 0)), "cell"])
        for _, row in rows.iterrows():
            alike = _number(row["mean"], metric, digits) == _number(best, metric, digits)
            tested = replicates is not None and not alike
            out[row["cell"], metric] = (alike, tested and row["cell"] not in apart)
    return out


def _number(value: float, metric: str, digits: int | None) -> str:
    fraction = is_fraction(metric)
    digits = digits if digits is not None else 2 if fraction else 4
    return f"{100 * value if fraction else value:.{digits}f}"


def _entry(
    row: pd.Series, same: dict[tuple[str, str], tuple[bool, bool]], spread: str, digits: int | None, usual: Any
) -> str:
    metric = str(row["metric"])
    if row["status"] not in ("complete", "partial") or absent(row["mean"]):
        return escape(row["status"] if row["status"] != "complete" else "not measured")
    bold, marked = same.get((row["cell"], metric), (False, False))
    mean = _number(row["mean"], metric, digits)
    half = row["std"] if spread == "std" else (row["high"] - row["low"]) / 2
    text = rf"\mathbf{{{mean}}}" if bold else mean
    text += _MARK if marked else ""
    text += "" if absent(half) else rf"_{{\pm {_number(half, metric, digits)}}}"
    return f"${text}$" + ("" if row["n"] == usual else f" (n={int(row['n'])})")


def _head(by: Sequence[str], group: str | None, columns: Sequence[tuple[Any, Any]]) -> list[str]:
    first = max(len(by), 1)
    names = [escape(_NAMES.get(f, f.replace("_", " "))) for f in by] or [""]
    lines = []
    if group:
        spans, rules, at = [], [], first
        for block in dict.fromkeys(b for b, _ in columns):
            width = sum(b == block or (absent(b) and absent(block)) for b, _ in columns)
            spans.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(_name(block))}}}")
            rules.append(rf"\cmidrule(lr){{{at + 1}-{at + width}}}")
            at += width
        lines += [" & ".join([*([""] * first), *spans]) + r" \\", " ".join(rules)]
    return [*lines, " & ".join([*names, *(escape(_name(arm)) for _, arm in columns)]) + r" \\"]


def _name(value: Any) -> str:
    """A value as the paper prints it, where it does: ResNet-20 for resnet20, SGD for the arm sgd."""
    if isinstance(value, str):
        return _printed().get(value, value)
    return setting(value)


def _printed() -> dict[str, str]:
    backbones = published().query("table == 'Table 1'")
    return {m: c.split(" / ")[0] for m, c in zip(backbones["model"], backbones["cell"], strict=True)} | _NAMES


def _caption(caption: str | None, choice: pd.DataFrame, spread: str, n: Sequence[int]) -> str:
    metrics = list(dict.fromkeys(choice["metric"]))
    what = ", ".join(metric_title(str(m)) for m in metrics)
    if len(metrics) > 1 and all(str(m).endswith("_accuracy") for m in metrics):
        what = "test accuracies (%)"
    text = escape(caption if caption is not None else f"{what[:1].upper()}{what[1:]}").rstrip(".")
    if not n:
        return f"{text}. No cell has a result yet."
    other = "" if len(n) == 1 else " where no other n stands beside it"
    if n[-1] == 1:
        return f"{text}. One seed (n=1)."
    after = "their standard deviation" if spread == "std" else r"half their 95\,\% interval (Student's t)"
    return rf"{text}. Means over n={n[-1]} seeds{other}, $\pm$ {after}."


def _note(
    cells: pd.DataFrame,
    choice: pd.DataFrame,
    conditions: Sequence[str],
    group: str | None,
    tested: bool,
    marked: bool,
) -> str:
    partial = bool((choice["status"] == "partial").any())
    whose = "of the complete cells of its row" if partial else "of its row"
    said = [f"Bold: the best mean {whose}" + (" and group" if group else "") + " on the test set."]
    rivals = choice[choice["status"] == "complete"].groupby([*conditions, "metric"], dropna=False).size()
    if tested and not (rivals > 1).any():
        tested = False
    if not tested:
        said.append("Whether others can be told from it was not tested.")
    elif marked:
        said.append(
            r"$^{\dagger}$ Not told from it: the paired 95\,\% t interval over the shared seeds contains 0 "
            "(uncorrected), or there is none: fewer than two shared seeds, or the same difference in all of them."
        )
    else:
        said.append(
            r"All other complete cells are told from it (paired 95\,\% t interval over the shared seeds, uncorrected)."
        )
    if (choice["cells_planned"] > 1).any():
        said.append("Of an arm's cells the one of highest validation accuracy stands here.")
    # Settings that differ between rows or arms are not in the table; the arms' own are the method.
    fixed = [f for f in RECIPE_FIELDS if f in cells and f not in conditions]
    epochs = varied(cells, [f for f in fixed if f == "epochs"])
    if epochs:
        counts = ", ".join(str(int(e)) for e in sorted(cells["epochs"].dropna().unique()))
        said.append(f"Not all cells train equally long (epochs {counts}).")
    return " ".join(said)
