"""The sections of a report's page: functions from `Findings` to HTML that is empty where there is nothing to say."""

from __future__ import annotations

from pathlib import Path

from analysis import page
from analysis.findings import Findings
from analysis.sections import (
    by_condition,
    cost,
    diagnostics,
    maps,
    published,
    record,
    results,
    searched,
    stopping,
    trained,
)


def sections(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> list[page.Section]:
    """The page in its order; figures are written into `folder` and entered into `figures`."""
    summary = page.Section("summary", "Summary", results.overview(found))
    end = [
        page.Section("provenance", "Provenance", record.provenance(found)),
        page.Section("reproduce", "How to reproduce", record.reproduce(found)),
    ]
    if found.cells.empty:
        return [summary, *end]
    differences = maps.difference(found, folder, figures)
    made = [
        page.Section("conditions", by_condition.title(found), by_condition.section(found, folder, figures)),
        page.Section("search", "What the search found", searched.search(found, folder, figures)),
        page.Section("sensitivity", "Sensitivity", results.sensitivity(found, folder, figures)),
        page.Section("references", "Arms side by side", results.arms(found)),
        page.Section("paired", "Fisher SAM against SAM", differences + results.paired(found)),
        page.Section("published", "Beside the paper", published.section(found)),
        page.Section("robustness", "Robustness to parameter perturbation", trained.robustness(found, folder, figures)),
        page.Section("geometry", "Curvature and sharpness", trained.geometry(found, folder, figures)),
        page.Section("curves", "Learning curves", results.curves(found, folder, figures)),
        page.Section("cost", "Equal compute", cost.section(found, folder, figures)),
        page.Section("diagnostics", "Diagnostics of training", diagnostics.section(found, folder, figures)),
        page.Section("stops", "Stopped early, and why", record.stops(found)),
        page.Section("audit", stopping.title(found), stopping.section(found, folder, figures)),
        page.Section("failures", "Failures and divergence", record.failures(found)),
        page.Section("cells", "All cells", results.cells(found)),
    ]
    return [summary, *(s for s in made if s.body), *end]
