"""The sections of a report's page: functions from `Findings` to HTML that is empty where there is nothing to say."""

from __future__ import annotations

from pathlib import Path

from analysis import page
from analysis.findings import Findings
from analysis.sections import by_condition, record, results, searched, trained


def sections(found: Findings, folder: Path, figures: dict[str, list[Path]]) -> list[page.Section]:
    """The page in its order; figures are written into `folder` and entered into `figures`."""
    summary = page.Section("summary", "Summary", results.overview(found))
    end = [
        page.Section("provenance", "Provenance", record.provenance(found)),
        page.Section("reproduce", "How to reproduce", record.reproduce(found)),
    ]
    if found.cells.empty:
        return [summary, *end]
    made = [
        page.Section("conditions", by_condition.title(found), by_condition.section(found, folder, figures)),
        page.Section("search", "What the search found", searched.search(found, folder, figures)),
        page.Section("sensitivity", "Sensitivity", results.sensitivity(found, folder, figures)),
        page.Section("robustness", "Robustness to parameter perturbation", trained.robustness(found, folder, figures)),
        page.Section("references", "Arms side by side", results.arms(found)),
        page.Section("paired", "Fisher SAM against SAM", results.paired(found)),
        page.Section("geometry", "Curvature and sharpness", trained.geometry(found)),
        page.Section("curves", "Learning curves", results.curves(found, folder, figures)),
        page.Section("cells", "All cells", results.cells(found)),
        page.Section("stops", "Stopped early, and why", record.stops(found)),
        page.Section("failures", "Failures and divergence", record.failures(found)),
    ]
    return [summary, *(s for s in made if s.body), *end]
