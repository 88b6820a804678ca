"""How a study came about: what was stopped and why, what failed, which runs trained it, how to repeat it."""

from __future__ import annotations

from typing import Any

import yaml

from analysis import page
from analysis.findings import Findings
from analysis.words import absent, setting, shown

_MOST_ROWS = 400
_COMMIT = ("git_commit", "code.commit")


def stops(found: Findings) -> str:
    stopped = found.replicates[found.replicates["status"] == "stopped"]
    decisions = found.decisions
    if stopped.empty and decisions.empty:
        return ""
    if decisions.empty:
        return page.paragraph(
            f"{stopped['cell'].nunique()} cells were stopped; no decision of a scheduler is recorded."
        )
    cell_of = found.cells.set_index("cell")
    stops = decisions[decisions["stop"].astype(bool)]
    rows = []
    for _, row in stops.head(_MOST_ROWS).iterrows():
        name = found.called(cell_of.loc[row["cell"]]) if row["cell"] in cell_of.index else str(row["cell"])
        value, cutoff = (shown(row[c], "validation_accuracy", 2) for c in ("value", "cutoff"))
        rank = "–" if absent(row["rank"]) else f"{row['rank']:.0f} of {row['n']:.0f}"
        rows.append([name, setting(row["rung"]), setting(row["epoch"]), value, cutoff, rank])
    body = page.paragraph(
        f"The scheduler took {len(decisions)} decisions and stopped {len(stops)} times: the cell's mean validation "
        "accuracy at a rung lay below the cutoff of those that had come so far. Every decision is in "
        "tables/decisions.csv.",
        "soft",
    )
    if not rows:
        return body
    columns = ["cell", "rung", "epoch", "validation (%)", "cutoff (%)", "rank then"]
    return body + page.table(columns, rows, numbers=columns[1:], tall=True)


def failures(found: Findings) -> str:
    bad = found.replicates[found.replicates["status"].isin(["failed", "diverged"])]
    if bad.empty:
        return ""
    rows = []
    for _, row in bad.head(_MOST_ROWS).iterrows():
        reason = "not recorded" if absent(row.get("reason")) else str(row["reason"])
        rows.append([found.called(row), setting(row["seed"]), str(row["status"]), setting(row["epoch"]), reason])
    columns = ["cell", "seed", "status", "epoch", "reason"]
    note = page.paragraph(f"{len(bad)} replicates: none of their figures is in a mean.", "soft")
    return note + page.table(columns, rows, numbers=["seed", "epoch"], long=["reason"], tall=True)


def provenance(found: Findings) -> str:
    if not found.runs:
        return page.paragraph("No run is recorded.")
    body = page.paragraph(f"All runs together have {found.used}. A device counts while a worker holds it.")
    for run in found.runs[-10:]:
        flat = _flat(run)
        body += page.table(
            ["run", str(run.get("run", ""))], [[k, v] for k, v in flat if k != "run"], long=[str(run.get("run", ""))]
        )
    left = len(found.runs) - 10
    return (page.paragraph(f"The last 10 of {len(found.runs)} runs.") if left > 0 else "") + body


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    out = []
    for key, value in values.items():
        if isinstance(value, dict):
            out += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            out.append((prefix + str(key), (" " if key == "command" else ", ").join(map(setting, value)) or "none"))
        else:
            out.append((prefix + str(key), setting(value)))
    return out


def reproduce(found: Findings) -> str:
    file = f"{found.name}.yaml"
    facts = [fact for run in found.runs for fact in _flat(run)]
    commits = [value for key, value in facts if key.endswith(_COMMIT) and value != "–"]
    at = f" at commit {commits[-1]}" if commits else ""
    spec = yaml.safe_dump(
        _yaml_values(found.spec), sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )
    return (
        page.paragraph(f"Save the study below as {file} and, with this project{at}, run:")
        + page.listing(f"study run {file}\nstudy report <the folder that it names>")
        + page.listing(spec)
    )


def _yaml_values(value: Any) -> Any:
    """The frozen spec as plain YAML values; whatever else it holds becomes text."""
    if isinstance(value, dict):
        return {str(k): _yaml_values(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_yaml_values(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
