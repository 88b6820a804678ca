"""Several studies beside each other: what differs between them, and their arms under equal conditions.

Numbers of two studies stand in one row only where every setting is equal that is neither the method's own (gamma, eta,
...) nor one that a search or a grid tunes: an accuracy after 12 epochs is never beside one after 40. Two studies of one
data set, model and length are paired by seed as two arms of one study are (invariant 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from analysis.compare import paired
from analysis.findings import Findings
from analysis.tables import EXECUTION, RECIPE_FIELDS
from analysis.words import absent, setting

#: Settings of the method rather than of the conditions under which methods are compared.
METHOD = (
    *EXECUTION,
    *("optimiser", "gamma", "eta", "asam_convention", "fisher", "m", "natural_gradient", "same_dropout"),
)

_MOST_VALUES = 8


@dataclass(frozen=True)
class Comparison:
    """Several studies, by the labels that they are called by.

    Attributes:
        found: what each study found, in the order given.
        settings: one row a setting whose values differ between studies: `setting`, then a column a study, in words.
        arms: one row a study, condition and arm, at the arm's chosen cell (`conditions.chosen`): `study`, then its
            columns. `row` numbers the sets of equal conditions; one number never holds two fidelities.
        conditions: the settings that tell these rows apart.
        differences: one row an arm that two studies have complete under equal conditions, the later study minus the
            first: `study_a`, `study_b`, `arm`, the conditions, then as `compare.difference`. A cell that both studies
            share is the same training and is left out.
        warnings: why numbers of these studies are not comparable, a line each; empty where nothing speaks against it.
    """

    found: dict[str, Findings]
    settings: pd.DataFrame
    arms: pd.DataFrame
    conditions: tuple[str, ...]
    differences: pd.DataFrame
    warnings: tuple[str, ...]

    def layouts_agree(self) -> bool:
        """Whether all studies ask for one kind of figure over the same settings."""
        shapes = {(f.layout.kind, f.layout.x, f.layout.y, f.layout.conditions) for f in self.found.values()}
        return len(shapes) == 1


def labels(names: Sequence[str], places: Sequence[str]) -> list[str]:
    """What to call each study: its name, and where names repeat as much of its place as tells them apart.

    Args:
        names: as the studies call themselves.
        places: their folders or URIs, no two alike.
    """
    found = list(names)
    for name in {n for n in names if list(names).count(n) > 1}:
        own = [i for i, n in enumerate(names) if n == name]
        parts = {i: [p for p in places[i].split("?")[0].split("/") if p] for i in own}
        for depth in range(1, max(map(len, parts.values()), default=0) + 1):
            ends = {i: "/".join(p[-depth:]) for i, p in parts.items()}
            if len(set(ends.values())) == len(own):
                break
        else:
            ends = {i: places[i] for i in own}
        for i in own:
            found[i] = f"{name} ({ends[i]})"
    return found


def compare(found: Mapping[str, Findings]) -> Comparison:
    """Put studies beside each other.

    Args:
        found: what `findings.read` gives, by label; studies without a planned cell stand in no table of arms.
    """
    with_cells = {label: f for label, f in found.items() if len(f.cells)}
    arms, conditions = _arms(with_cells)
    return Comparison(
        found=dict(found),
        settings=_settings(with_cells),
        arms=arms,
        conditions=conditions,
        differences=_differences(with_cells, arms, conditions),
        warnings=tuple(_warnings(with_cells)),
    )


#: Never tuned away, though a study may cross them: an accuracy after other epochs or on other data is another quantity.
_FIDELITY = frozenset({"epochs", "train_size", "dataset"})


def _tuned(found: Mapping[str, Findings]) -> set[str]:
    return {name for f in found.values() for name in f.tuned} - _FIDELITY


def _values(rows: pd.DataFrame, field: str) -> list[Any]:
    """The values that a setting takes in these cells, unused as None, in order."""
    if field not in rows:
        return [None]
    unique = [None if absent(v) else v for v in rows[field].drop_duplicates()]
    return sorted(unique, key=lambda v: (v is not None, isinstance(v, str), v if v is not None else 0))


def _worded(values: Sequence[Any]) -> str:
    used = [v for v in values if v is not None]
    words = [setting(v) for v in used] or ["not used or not recorded"]
    if len(words) > _MOST_VALUES:
        return f"{len(words)} values from {words[0]} to {words[-1]}"
    return ", ".join(words)


def _settings(found: Mapping[str, Findings]) -> pd.DataFrame:
    rows = []
    for field in RECIPE_FIELDS:
        if field in EXECUTION or not any(field in f.cells for f in found.values()):
            continue
        values = {label: _values(f.cells, field) for label, f in found.items()}
        if any(own != next(iter(values.values())) for own in values.values()):
            rows.append({"setting": field, **{label: _worded(own) for label, own in values.items()}})
    seeds = {label: _worded(sorted(f.replicates["seed"].unique())) for label, f in found.items()}
    if len(set(seeds.values())) > 1:
        rows.append({"setting": "seeds", **seeds})
    return pd.DataFrame(rows, columns=["setting", *found])


def _arms(found: Mapping[str, Findings]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    if not found:
        return pd.DataFrame(columns=["study", "row", "arm"]), ()
    table = pd.concat([f.choice.assign(study=label) for label, f in found.items()], ignore_index=True)
    tuned = _tuned(found)
    fields = [f for f in RECIPE_FIELDS if f in table and f not in METHOD and f not in tuned]
    # Settings that differ between the arms of a study only (a weight decay of its own) make no further row of it.
    keys = [f for f in fields if table.groupby("arm", dropna=False)[f].nunique(dropna=False).max() > 1]
    keys = _telling(table, keys)
    if keys:
        table["row"] = table.groupby(keys, dropna=False, sort=False).ngroup()
        numeric = [k for k in keys if pd.api.types.is_numeric_dtype(table[k])]
        if len(numeric) == len(keys):  # numbers ascend, names stay in the order of the studies
            order = table.drop_duplicates("row").sort_values(keys, kind="stable")["row"]
            table["row"] = table["row"].map({row: i for i, row in enumerate(order)})
    else:
        table["row"] = 0
    first = ["study", "row", "arm", *keys]
    table = table[[*first, *(c for c in table if c not in first)]]
    place = {arm: i for i, arm in enumerate(dict.fromkeys(table["arm"]))}
    order = table["arm"].map(place)
    return table.assign(_arm=order).sort_values(["row", "_arm"], kind="stable", ignore_index=True).drop(
        columns="_arm"
    ), tuple(keys)


def _telling(table: pd.DataFrame, keys: list[str]) -> list[str]:
    """Without the companions of another setting (the kind of a label noise), unused where that one is off."""
    count = table.groupby(keys, dropna=False).ngroups if keys else 0
    for key in [k for k in keys if table[k].isna().any()]:
        rest = [k for k in keys if k != key]
        if rest and table.groupby(rest, dropna=False).ngroups == count:
            keys = rest
    return keys


def _differences(found: Mapping[str, Findings], arms: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    metric = "test_accuracy"
    pairs: list[pd.DataFrame] = []
    names: list[dict[str, Any]] = []
    done = arms[arms["status"] == "complete"] if len(arms) else arms
    for (_, arm), rows in done.groupby(["row", "arm"], dropna=False, sort=False):
        first = rows.iloc[0]
        for _, other in rows.iloc[1:].iterrows():
            if other["cell"] == first["cell"] or other["optimiser"] != first["optimiser"]:
                continue
            sides = []
            for row, side in ((other, "a"), (first, "b")):
                own = found[row["study"]].replicates
                own = own[(own["cell"] == row["cell"]) & (own["status"] == "complete") & own[metric].notna()]
                sides.append(own[["seed", metric]].rename(columns={metric: f"{metric}_{side}"}))
            both = sides[0].merge(sides[1], on="seed")
            # A search may give two studies one cell under two keys: the pair is named by its place.
            key = str(len(names))
            pairs.append(both.assign(cell_a=key, cell_b=key))
            about = {"study_a": other["study"], "study_b": first["study"], "arm": arm}
            about |= {c: first[c] for c in conditions}
            names.append({**about, "_a": other["cell"], "_b": first["cell"], "_key": key})
    if not names or not sum(map(len, pairs)):
        return pd.DataFrame()
    out = pd.DataFrame(names).merge(
        paired(pd.concat(pairs, ignore_index=True), metric), left_on="_key", right_on="cell_a"
    )
    out = out.assign(cell_a=out["_a"], cell_b=out["_b"], metric=metric)
    return out.drop(columns=["_a", "_b", "_key"])


def _warnings(found: Mapping[str, Findings]) -> Iterable[str]:
    """Settings of the conditions of which two studies share no value, arms of one name that are different methods, and
    data that are not the same.
    """
    tuned = _tuned(found)
    shared = set.intersection(*(set(f.arms) for f in found.values())) if found else set()
    for field in (f for f in RECIPE_FIELDS if f not in METHOD and f not in tuned):
        held = {
            label: _values(f.cells[f.cells["arm"].isin(shared)] if shared else f.cells, field)
            for label, f in found.items()
        }
        if any(not set(a) & set(b) for a, b in combinations(held.values(), 2)):
            yield f"{field} differs: {'; '.join(f'{label} {_worded(own)}' for label, own in held.items())}"
    for arm in sorted(map(str, shared)):
        methods = {label: _worded(_values(f.cells[f.cells["arm"] == arm], "optimiser")) for label, f in found.items()}
        if len(set(methods.values())) > 1:
            yield f"arm {arm} is not one method: {'; '.join(f'{label} {m}' for label, m in methods.items())}"
    if len(found) > 1 and not shared:
        yield "the studies have no arm of one name"
    prints: dict[str, dict[str, list[str]]] = {}
    for label, f in found.items():
        for run in f.runs:
            for name, value in (run.get("data_fingerprints") or {}).items():
                prints.setdefault(str(name), {}).setdefault(str(value), []).append(label)
    for name, by_value in prints.items():
        if len(by_value) > 1:
            groups = " and ".join(", ".join(dict.fromkeys(own)) for own in by_value.values())
            yield f"{name} was not the same data: it has another fingerprint in {groups}"


def beside(comparison: Comparison) -> pd.DataFrame:
    """All studies' cells as one frame for one figure: `study`, and `arm` as `study: arm`, so that no two are pooled.

    `best` and `indistinguishable` are left out: they compare within one study.
    """
    parts = [
        f.cells.drop(columns=["best", "indistinguishable"]).assign(
            study=label, arm=[f"{label}: {arm}" for arm in f.cells["arm"]]
        )
        for label, f in comparison.found.items()
        if len(f.cells)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["study", "arm"])
