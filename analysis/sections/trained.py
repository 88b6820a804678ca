"""What was measured of trained networks: robustness to perturbation (Figure 4), curvature, sharpness."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis import figures as draw
from analysis import page
from analysis.findings import Findings
from analysis.robustness import chance, half_lost
from analysis.sharpness import FEWEST, RankCorrelation, against_accuracy, rank_correlation
from analysis.words import absent, measured, setting, settings, shown

_MOST_PANELS = 6
_FEWEST_POINTS = 3  # cells, below which a scatter says less than the table
_STATISTICS = {
    "kept": " BatchNorm's running statistics stay as training left them.",
    "recomputed": " BatchNorm's running statistics are recomputed at each perturbed point.",
}
_DIRECTION = {"adversarial": "along the gradient", "random": "random"}


def robustness(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    """Test accuracy against alpha of each arm's cell that validation chooses, a panel a condition, and the numbers."""
    if "perturbation" not in (found.spec.get("measures") or {}):
        return ""
    curves = found.measures.get("perturbation")
    if curves is None:
        return page.paragraph("No complete cell has been perturbed yet.")
    titles: dict[str, str] = {}
    groups = [(v, rows) for v, rows in found.by_condition() if rows["cell"].isin(curves["cell"]).any()]
    for values, rows in groups[:_MOST_PANELS]:
        titles |= dict.fromkeys(rows["cell"], settings(values, found.layout.conditions))
    drawn = curves[curves["cell"].isin(titles)]
    if drawn.empty:
        return page.paragraph("None of the cells that validation chooses has been perturbed yet.")
    titles = {cell: title for cell, title in titles.items() if (drawn["cell"] == cell).any()}
    guess = chance(found.cells[found.cells["cell"].isin(titles)])
    kinds = list(dict.fromkeys(map(str, drawn["batch_norm"])))
    body = ""
    for kind in kinds:
        own = drawn[drawn["batch_norm"] == kind]
        name = "robustness" if len(kinds) == 1 else f"robustness_{kind}"
        figures[name] = draw.save(draw.robustness(own, titles, found.arms, guess), folder / name)
        caption = (
            "Test accuracy of trained networks whose parameters are moved by alpha, along the gradient of the training "
            "loss (solid) and in random directions (dashed): mean over the seeds, bands are 95 % intervals."
            f"{_STATISTICS.get(kind, '')}"
        )
        if found.tuned:
            caption += " Each arm at the cell that validation chooses."
        if len(groups) > _MOST_PANELS:
            caption += f" The first {_MOST_PANELS} of {len(groups)} conditions."
        body += page.picture(figures[name][0], _told(own), caption)
    return body + _table(found, drawn)


def _told(curves: pd.DataFrame) -> str:
    """The picture in words, for who cannot see it."""
    said = []
    for (_, direction), rows in curves.groupby(["cell", "direction"], sort=False):
        first, last = rows.iloc[0], rows.iloc[-1]
        ends = " to ".join(f"{shown(r['mean'], 'test_accuracy')} % at alpha {r['alpha']:g}" for r in (first, last))
        said.append(f"{first['arm']} {_DIRECTION.get(str(direction), direction)} from {ends}")
    return "Test accuracy by length of the perturbation: " + "; ".join(said[:16]) + "."


def _table(found: Findings, curves: pd.DataFrame) -> str:
    alphas = sorted(curves["alpha"].unique())
    of_cell = found.cells.set_index("cell")
    rows = []
    several = curves["batch_norm"].nunique() > 1
    for (cell, direction, kind), own in curves.groupby(["cell", "direction", "batch_norm"], sort=False):
        at = own.set_index("alpha")
        draws = f", {own['draws'].max()} a seed" if own["draws"].max() > 1 else ""
        name = found.called(of_cell.loc[str(cell)])
        counts = sorted(set(own["n"]))
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        values = [_short(at.loc[[alpha]].iloc[0]) if alpha in at.index else "–" for alpha in alphas]
        half = setting(half_lost(own))
        how = _DIRECTION.get(str(direction), str(direction)) + draws + (f", {kind}" if several else "")
        rows.append([name, how, n, half, *values])
    note = page.paragraph(
        "Test accuracy in per cent at each alpha ± half a 95 % interval; n counts seeds, a seed's random directions "
        "are averaged first. Half lost at: the first measured alpha at which less than half of the accuracy at alpha 0 "
        "is left. The accuracy lost is in tables/robustness.csv, paired within each seed.",
        "soft",
    )
    columns = ["cell", "direction", "n", "half lost at", *(f"α {alpha:g}" for alpha in alphas)]
    return note + page.table(columns, rows, numbers=columns[2:], tall=True)


def _short(row: pd.Series) -> str:
    text = shown(row["mean"], "test_accuracy")
    return text if absent(row["low"]) else f"{text} ± {shown((row['high'] - row['low']) / 2, 'test_accuracy')}"


def geometry(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    """Curvature and sharpness of the cells that stand for their arms, and of all cells against test accuracy."""
    body = ""
    curvature, sharpness = (found.measures.get(name) for name in ("curvature", "sharpness"))
    if curvature is not None:
        body += _curvature(found, curvature)
    if sharpness is not None:
        body += _sharpness(found, sharpness)
    if body and found.tuned:
        note = "Each arm at the cell that validation chooses; the other cells are in the tables' folder."
        body = page.paragraph(note, "soft") + body
    return body + _flatness(found, folder, figures)


def _flatness(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    """Sharpness and curvature against test accuracy, a picture a condition; nothing for a handful of cells."""
    points = against_accuracy(found.measures, found.replicates, found.cells)
    conditions = list(found.layout.conditions)
    groups = [("", points)]
    if conditions and len(points):
        groups = [
            (settings(rows.iloc[0], conditions), rows)
            for _, rows in points.groupby(conditions, dropna=False, sort=True)
        ]
    groups = [(name, rows) for name, rows in groups if rows["cell"].nunique() >= _FEWEST_POINTS]
    body = ""
    for i, (name, rows) in enumerate(groups[:_MOST_PANELS]):
        shown_quantities = list(dict.fromkeys(rows["quantity"]))[:_MOST_PANELS]
        mine = rows[rows["quantity"].isin(shown_quantities)]
        notes, told = {}, []
        for quantity, own in mine.groupby("quantity", sort=False):
            found_rank = rank_correlation(own["x"], own["y"])
            notes[str(quantity)] = _rank(found_rank)
            told.append(f"{quantity}: {_rank(found_rank)}")
        stem = "sharpness" + (f"_{i + 1}" if len(groups) > 1 else "")
        figures[stem] = draw.save(draw.sharpness_against_accuracy(mine, found.arms, notes=notes), folder / stem)
        caption = (
            "All complete cells, a mark each: means over the seeds with 95 % intervals. Over the panels Spearman's "
            "rank correlation with its 95 % bootstrap interval over cells. Cells of one study share their seeds and "
            "settings: an association among them, not a cause."
        )
        where = f"{name}: " if name else ""
        alternative = f"{where}Test accuracy against {'; '.join(told)}."
        left = rows["quantity"].nunique() - len(shown_quantities)
        caption += f" {left} more quantities are in the tables only." if left else ""
        body += page.picture(figures[stem][0], alternative, where + caption)
    return body


def _rank(found: RankCorrelation) -> str:
    if absent(found.rho):
        return f"{found.n} cells: no rank correlation, {FEWEST} that differ are needed"
    return f"Spearman {found.rho:+.2f} [{found.low:+.2f}, {found.high:+.2f}], {found.n} cells"


def _curvature(found: Findings, frame: pd.DataFrame) -> str:
    rows = []
    mine = frame[frame["cell"].isin(found.choice["cell"])]
    for _, own in mine.groupby("cell", sort=False):
        of = own.set_index("quantity")
        converged = f"{int(own['converged'].iloc[0])} of {int(own['n'].max())}" if "converged" in own else "–"
        values = [_number(of.loc[[q]].iloc[0]) if q in of.index else "–" for q in ("hessian_trace", "top_eigenvalue")]
        rows.append([_name(found, own), *values, converged])
    note = page.paragraph(
        "The Hessian of the training loss at the end of training, over as many batches as the study's `measures` say "
        "(8 unless they say so): mean over the seeds ± half a 95 % interval.",
        "soft",
    )
    return note + page.table(["cell", "trace", "largest eigenvalue", "converged seeds"], rows) if rows else ""


def _sharpness(found: Findings, frame: pd.DataFrame) -> str:
    mine = frame[frame["cell"].isin(found.choice["cell"]) & (frame["quantity"] == "sharpness")]
    if mine.empty:
        return ""
    probe = ["probe_metric", "probe_gamma", "probe_eta"]
    probes = mine[probe].drop_duplicates().reset_index(drop=True)
    parts = []
    for (metric, eta), columns in probes.groupby(["probe_metric", "probe_eta"], dropna=False, sort=False):
        gammas = list(dict.fromkeys(columns["probe_gamma"]))
        same_eta = mine["probe_eta"].isna() if absent(eta) else mine["probe_eta"] == eta
        here = mine[(mine["probe_metric"] == metric) & same_eta]
        rows = []
        for _, own in here.groupby("cell", sort=False):
            of = own.drop_duplicates("probe_gamma").set_index("probe_gamma")
            rows.append([_name(found, own), *(_number(of.loc[[g]].iloc[0]) if g in of.index else "–" for g in gammas)])
        by = f"{metric}'s neighbourhood" + ("" if absent(eta) else f", eta {setting(eta)}")
        note = f"Sharpness in {by}: training loss at its worst point, to first order (over each "
        note += "batch, where the study asks for `per_batch`), less that at the network, in nats, by its gamma."
        parts.append(page.paragraph(note, "soft"))
        parts.append(page.table(["cell", *(f"gamma {setting(g)}" for g in gammas)], rows))
    return "".join(parts)


def _name(found: Findings, rows: pd.DataFrame) -> str:
    cell = found.cells.loc[found.cells["cell"] == rows["cell"].iloc[0]].iloc[0]
    return found.called(cell)


def _number(row: pd.Series) -> str:
    """Any magnitude in four digits with its interval and n; `measured` is for accuracies and losses."""
    if absent(row["mean"]) or not row["n"]:
        return "not finite (n=0)"
    if abs(row["mean"]) >= 1 or row["mean"] == 0:
        return measured(row["mean"], row["low"], row["high"], row["n"], "trace")
    half = "" if absent(row["low"]) else f" ± {(row['high'] - row['low']) / 2:.2g}"
    return f"{row['mean']:.3g}{half} (n={row['n']:.0f})"
