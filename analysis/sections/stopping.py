"""Early stopping: what it did to a study that used it, and what it would have saved and lost."""

from __future__ import annotations

from pathlib import Path

from analysis import figures as draw
from analysis import page
from analysis.audit import (
    AT_ONCE,
    AuditError,
    audit,
    correlations,
    orders_within,
    own_setting,
    recorded_of,
    settings_to_try,
    survival,
)  # fmt: skip
from analysis.audited import advice, caveats, explained, table_of
from analysis.findings import Findings
from analysis.words import setting

#: What a report may spend on replaying.
_SECONDS = 10.0


def title(found: Findings) -> str:
    return "Would early stopping have paid?" if own_setting(found.spec) is None else "What early stopping did"


def rungs(found: Findings) -> list[int]:
    """The epochs at which the study's scheduler decided."""
    return [] if found.decisions.empty else sorted({int(rung) for rung in found.decisions["rung"]})


def section(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    """Survival where cells were decided on; the audit where there are curves to replay."""
    return _survived(found, folder, figures) + _audited(found, folder, figures)


def _survived(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    if found.decisions.empty:
        return ""
    stages = survival(found.decisions, found.cells)
    figures["survival"] = draw.save(draw.survival(stages), folder / "survival")
    told = []
    for arm, rows in stages.groupby("arm", sort=False):
        steps = [
            f"rung {setting(row['stage'])}: {row['reached']} decided on, {row['stopped']} stopped"
            for _, row in rows.iterrows()
            if row["stage"] == row["stage"] and row["reached"]
        ]
        steps.append(f"{rows['went_on'].iloc[-1]} complete")
        cells = int(rows["cells"].iloc[0])
        told.append(f"{arm}, {cells} cell{'' if cells == 1 else 's'}: {'; '.join(steps)}")
    caption = "Cells of each arm at each rung: those that went on, and hatched those that were stopped there."
    return page.picture(figures["survival"][0], "Bars of cells by rung. " + ". ".join(told) + ".", caption)


def _audited(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    try:
        curves = recorded_of(found)
        settings = settings_to_try(curves, own_setting(found.spec))
        orders = orders_within(curves, settings, _SECONDS)
        done = audit(curves, settings, orders=orders)
    except AuditError as reason:
        # A study that stopped nothing and has no curves yet has nothing to say here.
        return "" if found.decisions.empty else page.paragraph(f"Early stopping cannot be replayed: {reason}.", "soft")
    total = len(curves.cells) + len(curves.left_out)
    body = page.paragraph(
        f"ASHA replayed over the recorded curves of {len(curves.cells)} of {total} cells, in {orders} random launch "
        f"orders with {AT_ONCE} cells at once."
    )
    body += page.bullets([*advice(curves, done), *caveats(curves)])
    columns, rows = table_of(curves, done)
    own = own_setting(found.spec)
    strong = [0] if own is not None and settings[0] == own else []
    body += page.table(columns, rows, numbers=[c for c in columns if c != "rungs"], strong=strong)
    body += page.paragraph(explained(curves, columns) + (" Bold: the study's own setting." if strong else ""), "soft")
    summary = done.summary()
    figures["early_stopping"] = draw.save(draw.trade_off(summary, chance=curves.chance), folder / "early_stopping")
    best = summary.sort_values("saved").iloc[-1]
    alternative = (
        f"Regret against epochs saved for {len(summary)} settings of ASHA: from {summary['saved'].min() * 100:.0f} to "
        f"{best['saved'] * 100:.0f} % saved, regret at most {summary['arm_regret_high'].max() * 100:.2f} points."
    )
    caption = (
        "A point a setting: the worst arm's regret against the share of epochs saved; bars: range over the orders."
    )
    body += page.picture(figures["early_stopping"][0], alternative, caption)
    ranks = correlations(curves)
    if ranks["spearman"].notna().any():
        axes = draw.rank_correlation(ranks, arms=found.arms)
        figures["rank_correlation"] = draw.save(axes, folder / "rank_correlation")
        first = ranks.sort_values("epoch").drop_duplicates("arm")
        said = ", ".join(f"{r['arm']} {r['spearman']:.2f} (n={r['n']})" for _, r in first.iterrows())
        body += page.picture(
            figures["rank_correlation"][0],
            f"Rank correlation of each epoch's values with the final ones; at the first epoch: {said}.",
            "Spearman's rank correlation of the cells' values at an epoch with their final ones. Where it is low, a "
            "rung decides by chance.",
        )
    return body
