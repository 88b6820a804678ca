"""Would early stopping have paid? The recorded full curves of a study, replayed under other settings of ASHA.

Regret is in validation accuracy, by which cells are chosen: what the best cell of the full curves has more than the
one that would have been chosen among those that were not stopped. The order in which cells are launched decides who is
compared with whom, so that every number is one over many random orders.

Only cells that were trained in full can be replayed. Of a study that stopped cells itself, those are the survivors: the
audit says so and replays them all the same, which can only tell how they would have fared among themselves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.replay import Decided, Setting, replay
from analysis.words import counted

if TYPE_CHECKING:
    from analysis.findings import Findings

#: What the scheduler compares.
METRIC = "validation_accuracy"

#: The best few cells, whose loss is told apart.
TOP = (1, 3, 5)

ORDERS = 20
AT_ONCE = 4

#: Settings that a study might have taken: each of these grace periods (a share of the epochs; the first is one epoch)
#: with each of these reduction factors.
_GRACE = (0.0, 0.1, 1 / 3)
_REDUCTION = (2, 3, 4)

#: Why a cell is left out, by its status.
_WHY = {
    "stopped": "stopped by the scheduler: what it would have reached is not known",
    "diverged": "a seed diverged",
    "failed": "a seed failed",
    "running": "still in training",
    "partial": "not all seeds are trained",
    "missing": "not trained",
}
_HOLES = "epochs are missing from its record, or values that are no numbers are in it"


class AuditError(ValueError):
    """There is nothing to audit; the message is one line for a person."""


@dataclass(frozen=True)
class Recorded:
    """The full curves of a study.

    Attributes:
        cells: one row a cell that can be replayed, in the plan's order: `cell`, `arm`, `epochs` (its full length),
            `n` (seeds), `final` (mean validation accuracy at the end), `std` (over the seeds, ddof 1), `rivals` (from
            0: cells under one condition, of which one is chosen), `place` (1: the best of its rivals by full curves),
            `same` (whether it is that one or cannot be told from it on the test set).
        curves: the cell's mean validation accuracy over its seeds, an entry an epoch.
        seconds: when it reported each epoch: cumulative seconds of training of all its seeds; empty if not recorded.
        max_t: full length by arm, as the study gives it to the scheduler.
        left_out: one row a cell that cannot be replayed: `cell`, `arm`, `status`, `why`.
    """

    cells: pd.DataFrame
    curves: list[list[float]]
    seconds: list[list[float]]
    max_t: dict[Any, int]
    left_out: pd.DataFrame

    @property
    def survivors_only(self) -> bool:
        """Whether the study itself stopped cells, so that those with full curves are its survivors."""
        return bool((self.left_out["status"] == "stopped").any())

    @property
    def chance(self) -> float:
        """By how much the difference of two cells' means moves by the choice of seeds alone: one standard error of it,
        from the spread within the cells that come into question (the best five and those that cannot be told from the
        best; pooled, pairing left out). NaN with one seed.
        """
        near = self.cells["same"] | (self.cells["place"] <= max(TOP))
        known = self.cells[near & (self.cells["n"] >= 2)]
        free = known["n"] - 1
        if not free.sum():
            return math.nan
        pooled = math.sqrt(float((known["std"] ** 2 * free).sum() / free.sum()))
        return pooled * math.sqrt(2 / float(known["n"].mean()))


def recorded(history: pd.DataFrame, table: pd.DataFrame, within: Sequence[str] = ()) -> Recorded:
    """Take the full curves from a study's history.

    Args:
        history: one row a seed and epoch (`reader.history()`).
        table: what `compare.marked(replicates, within=...)` returns.
        within: conditions (label noise, model); cells under different ones are no rivals, although ASHA, which knows
            arms only, compares them.

    Raises:
        AuditError: no arm has two cells with full curves, or none has an epoch before its last.
    """
    done = table[table["status"] == "complete"]
    out = [(r.cell, r.arm, r.status, _WHY[str(r.status)]) for r in table[table["status"] != "complete"].itertuples()]
    rows = history[history["cell"].isin(done["cell"])].drop_duplicates(["cell", "seed", "epoch"], keep="last")
    rows = rows[rows["epoch"] >= 1].sort_values(["cell", "epoch", "seed"], kind="stable")
    # Slices of the sorted rows: a frame a cell would take ten seconds of ten thousand.
    columns = {c: rows[c].to_numpy() for c in ("epoch", "seed", METRIC, "train_seconds") if c in rows}
    edges = [*np.flatnonzero(~rows["cell"].duplicated().to_numpy()).tolist(), len(rows)]
    places = {c: slice(*ends) for c, ends in zip(rows["cell"].unique(), pairwise(edges), strict=True)}
    kept: list[dict[str, Any]] = []
    curves: list[list[float]] = []
    seconds: list[list[float]] = []
    rivals = done.groupby(list(within), dropna=False, sort=False).ngroup() if within else pd.Series(0, done.index)
    for row, group in zip(done.to_dict("records"), rivals, strict=True):
        own = {c: v[places[row["cell"]]] for c, v in columns.items()} if row["cell"] in places else None
        found = _curve(own, int(row["n_planned"]), row.get("epochs"))
        if found is None:
            out.append((row["cell"], row["arm"], row["status"], _HOLES))
            continue
        values, times = found
        # As the scheduler adds them up: in a tie the last bit decides.
        curves.append([sum(v) / len(v) for v in values.tolist()])
        if times is not None:
            seconds.append([sum(t) for t in times.tolist()])
        spread = math.sqrt(sum((v - curves[-1][-1]) ** 2 for v in values[-1]) / max(len(values[-1]) - 1, 1))
        kept.append(
            {
                "cell": row["cell"],
                "arm": row["arm"],
                "epochs": len(values),
                "n": values.shape[1],
                "final": curves[-1][-1],
                "std": spread if values.shape[1] > 1 else math.nan,
                "rivals": int(group),
                "same": bool(row.get("best", False) or row.get("indistinguishable", False)),
            }
        )
    left_out = pd.DataFrame(out, columns=["cell", "arm", "status", "why"])
    cells = pd.DataFrame(kept, columns=["cell", "arm", "epochs", "n", "final", "std", "rivals", "same"])
    most = int(cells["arm"].value_counts().max()) if len(cells) else 0
    if most < 2:
        raise AuditError(
            f"nothing to audit: {counted(len(cells), 'cell')} of {len(table)} trained in full, and no arm has two "
            f"of them to compare{_because(left_out)}"
        )
    if (cells["epochs"] < 2).all():
        raise AuditError("nothing to audit: with one epoch there is no earlier one to stop at")
    cells["place"] = cells.groupby("rivals")["final"].rank(ascending=False, method="first").astype(int)
    return Recorded(
        cells, curves, seconds if len(seconds) == len(curves) else [], _lengths(table, cells), left_out
    )  # fmt: skip


def _curve(
    rows: Mapping[str, npt.NDArray[Any]] | None, seeds: int, planned: Any
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None] | None:
    """(epochs, seeds) of validation accuracy and of seconds; None where an epoch of a seed is not there."""
    if rows is None or not len(rows["epoch"]):
        return None
    epochs = int(rows["epoch"][-1]) if planned is None or planned != planned else int(planned)
    shape = (epochs, seeds)
    if len(rows["epoch"]) != epochs * seeds:
        return None
    of_seed = rows["seed"].reshape(shape)
    if (rows["epoch"].reshape(shape) != np.arange(1, epochs + 1)[:, None]).any() or (of_seed != of_seed[0]).any():
        return None
    values = rows[METRIC].astype(float).reshape(shape)
    if not np.isfinite(values).all():
        return None
    times = rows["train_seconds"].astype(float).reshape(shape) if "train_seconds" in rows else None
    return values, times if times is not None and np.isfinite(times).all() else None


def _lengths(table: pd.DataFrame, cells: pd.DataFrame) -> dict[Any, int]:
    """As `study.plan` gives them: an arm's length is that of its first planned cell."""
    found = {}
    for arm, rows in cells.groupby("arm", sort=False):
        planned = table.loc[table["arm"] == arm, "epochs"] if "epochs" in table else rows["epochs"]
        found[arm] = int(planned.iloc[0])
    return found


def _because(left_out: pd.DataFrame) -> str:
    parts = [f"{counted(n, 'cell')} {why}" for why, n in left_out["status"].value_counts().items()]
    return f" ({', '.join(parts)})" if parts else ""


def settings_to_try(recorded: Recorded, own: Setting | None = None) -> list[Setting]:
    """The study's own setting, if it has one, then grace periods of one epoch, a tenth and a third of the longest cell,
    each with reduction factors 2, 3 and 4; those that have a rung.
    """
    longest = max(recorded.max_t.values())
    grace = dict.fromkeys(max(1, round(share * longest)) for share in _GRACE)
    tried = [Setting(g, r) for g in grace for r in _REDUCTION if g < longest]
    return list(dict.fromkeys([*([own] if own is not None and own.rungs(longest) else []), *tried]))


def orders_within(recorded: Recorded, settings: Sequence[Setting], seconds: float) -> int:
    """How many orders can be replayed in about so many seconds, from 3 to `ORDERS`."""
    # Every cell is decided on once or twice, at some ten microseconds with all that is counted of it.
    return int(np.clip(seconds / (2e-5 * len(recorded.curves) * max(len(settings), 1)), 3, ORDERS))


@dataclass(frozen=True)
class Audit:
    """What the settings would have done.

    Attributes:
        runs: one row a setting and order: `grace_period`, `reduction_factor`, `max_t` (missing: the full length),
            `order`, `regret` (accuracy, the largest over the conditions, of those that have a cell left), `arm_regret`
            (the same, also of each arm's best cell for itself: what a comparison of arms would lose), `saved` (share of
            the replicate epochs), `stopped` (cells), `n` (cells), `lost_1`, `lost_3`, `lost_5` (how many of the best
            1, 3, 5 cells of each condition were stopped), `of_1`, `of_3`, `of_5` (how many there are), `lost_same`,
            `of_same` (the same of the cells that cannot be told from the best, it included), `unanswered` (arms under a
            condition of which every cell was stopped).
        lost: one row a setting and cell that is among the best five or cannot be told from the best: `cell`, `arm`,
            `place`, `same`, `stops` (in how many orders it was stopped), `orders`, `rung` (the epoch at which it most
            often was; missing if never).
    """

    runs: pd.DataFrame
    lost: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """One row a setting: of `regret`, `arm_regret`, `saved` and `stopped` the median and, as `_low` and `_high`,
        the range over the orders; of `lost_*` and `unanswered` the mean; `of_*` and `n`; `orders`.
        """
        by = ["grace_period", "reduction_factor", "max_t"]
        groups = self.runs.groupby(by, dropna=False, sort=False)
        out = pd.DataFrame({"orders": groups.size(), "n": groups["n"].first()})
        for name in ("regret", "arm_regret", "saved", "stopped"):
            out[name], out[f"{name}_low"], out[f"{name}_high"] = (
                groups[name].median(),
                groups[name].min(),
                groups[name].max(),
            )
        for name in (*map(str, TOP), "same"):
            out[f"lost_{name}"], out[f"of_{name}"] = groups[f"lost_{name}"].mean(), groups[f"of_{name}"].first()
        out["unanswered"] = groups["unanswered"].mean()
        return out.reset_index()


def audit(
    recorded: Recorded,
    settings: Sequence[Setting],
    *,
    orders: int = ORDERS,
    at_once: int = AT_ONCE,
    seed: int = 0,
    clock: Literal["epochs", "seconds"] = "epochs",
) -> Audit:
    """Replay every setting under the same random launch orders.

    Args:
        orders: how many.
        at_once: cells that train beside each other.
        seed: of the orders.
        clock: whether an epoch takes one unit of time, or the seconds of training that it took.

    Raises:
        AuditError: no setting has a rung, or `clock` is "seconds" and no times are recorded.
        ValueError: `orders` or `at_once` is below 1.
    """
    if orders < 1 or at_once < 1:
        raise ValueError("orders and at_once have to be at least 1")
    longest = max(recorded.max_t.values())
    settings = [setting for setting in dict.fromkeys(settings) if setting.rungs(longest)]
    if not settings:
        raise AuditError(
            f"nothing to audit: no setting has a rung below the last of {counted(longest, 'epoch')} (give a smaller "
            "grace period)"
        )
    if clock == "seconds" and not recorded.seconds:
        raise AuditError("the seconds of each epoch are not recorded; replay by epochs")
    cells = recorded.cells
    names = list(recorded.max_t)
    arms = [names.index(arm) for arm in cells["arm"]]
    times = recorded.seconds if clock == "seconds" else None
    names_of, arms_of = cells["cell"].to_numpy(), cells["arm"].to_numpy()
    final, rivals, place, same, epochs = (cells[c].to_numpy() for c in ("final", "rivals", "place", "same", "epochs"))
    weight = (epochs * cells["n"]).to_numpy(dtype=float)
    per_arm = rivals * len(names) + np.asarray(arms)
    everything = np.ones(len(cells), dtype=bool)
    best, best_of_arm = (_best(final, by, everything) for by in (rivals, per_arm))
    watched = np.flatnonzero((place <= max(TOP)) | same)
    rng = random.Random(seed)
    launches = [rng.sample(range(len(cells)), len(cells)) for _ in range(orders)]
    runs, lost = [], []
    for setting in settings:
        named = {
            "grace_period": setting.grace_period,
            "reduction_factor": setting.reduction_factor,
            "max_t": math.nan if setting.max_t is None else setting.max_t,
        }
        ends = np.empty((orders, len(cells)), dtype=np.int64)
        for i, order in enumerate(launches):
            ends[i] = replay(recorded.curves, arms, list(recorded.max_t.values()), setting, order, at_once, times)
        for i, end in enumerate(ends):
            stopped = end > 0
            chosen, chosen_of_arm = (_best(final, by, ~stopped) for by in (rivals, per_arm))
            trained = np.where(stopped, end, epochs) * cells["n"].to_numpy()
            row = named | {
                "order": i,
                "regret": float(np.nanmax(best - chosen)),
                "arm_regret": float(np.nanmax([*(best_of_arm - chosen_of_arm), *(best - chosen)])),
                "saved": 1 - float(trained.sum() / weight.sum()),
                "stopped": int(stopped.sum()),
                "n": len(cells),
            }
            for name, mask in [*((str(k), place <= k) for k in TOP), ("same", same)]:
                row |= {f"lost_{name}": int((stopped & mask).sum()), f"of_{name}": int(mask.sum())}
            runs.append(row | {"unanswered": int((np.isnan(chosen_of_arm) & ~np.isnan(best_of_arm)).sum())})
        for cell in watched:
            of = ends[ends[:, cell] > 0, cell]
            row = named | {"cell": names_of[cell], "arm": arms_of[cell], "place": int(place[cell])}
            row |= {"same": bool(same[cell]), "stops": len(of), "orders": orders}
            lost.append(row | {"rung": float(np.bincount(of).argmax()) if len(of) else math.nan})
    return Audit(pd.DataFrame(runs), pd.DataFrame(lost))


def _best(
    final: npt.NDArray[np.float64], by: npt.NDArray[np.int64], among: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """The largest value of each group among some cells; NaN for a group that has none of them."""
    found = np.full(int(by.max()) + 1, -np.inf)
    np.maximum.at(found, by[among], final[among])
    return np.where(np.isfinite(found), found, np.nan)


def decisions(recorded: Recorded, setting: Setting, order: Sequence[int], at_once: int = AT_ONCE) -> pd.DataFrame:
    """Every decision of one replay: `cell`, `rung`, `value`, `cutoff` (missing for a rung's first), `stop`."""
    names = list(recorded.max_t)
    ledger: list[Decided] = []
    arms = [names.index(arm) for arm in recorded.cells["arm"]]
    replay(recorded.curves, arms, list(recorded.max_t.values()), setting, order, at_once, ledger=ledger)
    frame = pd.DataFrame(ledger, columns=list(Decided._fields)).astype({"cutoff": float})
    return frame.assign(cell=recorded.cells["cell"].to_numpy()[frame["cell"].to_numpy(dtype=int)])


def correlations(recorded: Recorded, epochs: Sequence[int] | None = None) -> pd.DataFrame:
    """How well the ranking of an arm's cells at an epoch foretells the final one.

    Args:
        epochs: which; None: all, or forty of them spread evenly where there are more.

    Returns:
        One row an arm of three cells or more and epoch: `arm`, `epoch`, `spearman`, `kendall` (tau-b; both missing
        where all cells are equal), `n` (cells). Only cells of the arm's full length are compared.
    """
    from scipy.stats import kendalltau

    rows = []
    for arm, own in recorded.cells.groupby("arm", sort=False):
        length = recorded.max_t[arm]
        places = [i for i in own.index if len(recorded.curves[i]) == length]
        if len(places) < 3:
            continue
        values = pd.DataFrame([recorded.curves[i] for i in places], columns=range(1, length + 1)).round(12)
        ranks, last = values.rank(), values[length]
        wanted = range(1, length + 1) if epochs is None else [e for e in epochs if 1 <= e <= length]
        if epochs is None and length > 40:
            wanted = np.unique(np.linspace(1, length, 40).round().astype(int)).tolist()
        for epoch in wanted:
            equal = values[epoch].nunique() < 2 or last.nunique() < 2
            spearman = math.nan if equal else float(np.corrcoef(ranks[epoch], ranks[length])[0, 1])
            kendall = math.nan if equal else float(kendalltau(values[epoch], last).statistic)
            rows.append((arm, epoch, spearman, kendall, len(places)))
    return pd.DataFrame(rows, columns=["arm", "epoch", "spearman", "kendall", "n"])


def survival(decisions: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """How many cells of each arm reached each rung of a study with ASHA, and what became of them there.

    Args:
        decisions: `reader.decisions()`.
        table: what `tables.cells` returns.

    Returns:
        One row an arm and stage, arms in the order of `table`: `arm`, `stage` (the rung's epoch; missing at the end of
        training), `reached` (cells that were decided on there, or complete), `stopped`, `went_on`, `cells` (of the
        arm).
    """
    arm_of = table.set_index("cell")["arm"]
    own = decisions[decisions["cell"].isin(arm_of.index)].drop_duplicates(["cell", "rung"], keep="last")
    own = own.assign(arm=own["cell"].map(arm_of), stop=own["stop"].astype(bool))
    rungs = sorted(own["rung"].unique())
    rows = []
    for arm, cells in table.groupby("arm", sort=False):
        mine = own[own["arm"] == arm]
        for rung in rungs:
            there = mine.loc[mine["rung"] == rung, "stop"]
            rows.append((arm, float(rung), len(there), int(there.sum()), int((~there).sum()), len(cells)))
        complete = int((cells["status"] == "complete").sum())
        rows.append((arm, math.nan, complete, 0, complete, len(cells)))
    return pd.DataFrame(rows, columns=["arm", "stage", "reached", "stopped", "went_on", "cells"])


def recorded_of(found: Findings) -> Recorded:
    """`recorded` of what a report has read; cells under different conditions are no rivals.

    Raises:
        AuditError: there is nothing to audit.
    """
    if found.cells.empty or found.history.empty:
        raise AuditError("nothing to audit: no epoch has been recorded yet")
    return recorded(found.history, found.cells, found.layout.conditions)


def own_setting(spec: Mapping[str, Any]) -> Setting | None:
    """The study's own ASHA; None where it trains every cell in full."""
    scheduler = spec.get("scheduler") or {}
    if scheduler.get("name") != "asha":
        return None
    usual = Setting()
    grace, reduction = (scheduler.get(k) or getattr(usual, k) for k in ("grace_period", "reduction_factor"))
    return Setting(int(grace), int(reduction))
