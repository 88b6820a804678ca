"""Maps of several panels, and Fisher SAM's difference from SAM at the same gamma as a map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import figures as draw
from analysis import page
from analysis.figures.heatmaps import one_scale
from analysis.findings import Findings
from analysis.layout import Panel
from analysis.matched import matched_differences
from analysis.words import points, settings

#: Panels that one picture bears before its text is too small to read.
TOGETHER = 6
_MOST_MAPS = 4


def together(panels: Sequence[Panel], x: str, y: str) -> tuple[Any, str]:
    """Panels of one layout as a picture, and the caption's sentence about its colours."""
    shared = one_scale([panel.cells for panel in panels])
    stacked = pd.concat([panel.cells.assign(panel=panel.title) for panel in panels], ignore_index=True)
    said = (
        " All panels have one colour scale."
        if shared
        else " Each panel has a colour scale of its own, as their levels lie far apart: compare numbers, not colours."
    )
    return draw.heatmaps(stacked, "panel", x=x, y=y, shared=shared), said


def difference(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> str:
    """A map for each arm of Fisher SAM over its gammas and etas, and for each further setting's value; nothing where
    SAM has not several of the same gammas, or the study varies no setting but gamma.
    """
    if found.layout.kind != "heatmap" or "optimiser" not in found.cells:
        return ""
    pairs = matched_differences(found.replicates, found.cells)
    if pairs.empty or pairs["gamma"].nunique() < 2:
        return ""
    maps = []
    for (arm_a, arm_b), own in pairs.groupby(["arm_a", "arm_b"], sort=False):
        varied = [f for f in found.layout.factors if f in own and own[f].nunique(dropna=False) > 1]
        across = "eta" if "eta" in varied else next((f for f in varied if f != "gamma"), None)
        if across is None or "gamma" not in varied:
            continue
        rest = [f for f in varied if f not in ("gamma", across)]
        groups = own.groupby(rest, dropna=False, sort=True) if rest else [((), own)]
        for _, rows in groups:
            title = ", ".join(filter(None, [f"{arm_a} minus {arm_b}", settings(rows.iloc[0], rest)]))
            maps.append((title, across, rows.reset_index(drop=True)))
    body = ""
    for i, (title, across, rows) in enumerate(maps[:_MOST_MAPS]):
        name = "difference" + (f"_{i + 1}" if len(maps) > 1 else "")
        axes = draw.difference_map(rows, x=across, title=f"{title} at the same gamma, in points")
        figures[name] = draw.save(axes, folder / name)
        seeds = sorted(set(rows["n"]))
        n = f"n={seeds[0]}" if len(seeds) == 1 else f"n={seeds[0]} to {seeds[-1]}"
        caption = (
            f"{title}: difference in test accuracy in percentage points at the same gamma, paired over the seeds that "
            f"both have ({n}). A ring: the 95 % interval excludes 0; a disc: also after Holm over the pairs of these "
            "two arms. Where all seeds give the same difference there is no interval and no mark. Blue and dark is "
            "worse than SAM, yellow and light better. Cells that were stopped, diverged or failed are left out; of "
            "some only a part of the seeds is there."
        )
        body += page.picture(figures[name][0], _told(title, across, rows), caption)
    left = len(maps) - _MOST_MAPS
    return body + (page.paragraph(f"{left} more maps of differences are not drawn here.") if left > 0 else "")


def _told(title: str, across: str, rows: pd.DataFrame) -> str:
    """The picture in words, for who cannot see it."""
    better, worse = int((rows["difference"] > 0).sum()), int((rows["difference"] < 0).sum())
    ranked = rows.sort_values("difference", kind="stable")
    ends = [ranked.iloc[0], ranked.iloc[-1]]
    said = " to ".join(
        f"{points(r['difference'], r['low'], r['high'], r['n'])} at {settings(r, ['gamma', across])}" for r in ends
    )
    return (
        f"Map of {len(rows)} differences, {title}: {better} above 0, {worse} below, "
        f"{len(rows) - better - worse} equal; in percentage points from {said}. "
        f"{int(rows['excludes_zero'].sum())} intervals exclude 0, {int(rows['excludes_zero_holm'].sum())} after Holm."
    )
