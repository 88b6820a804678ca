"""A study's folder as pandas frames, for whoever asks what it means. Needs neither Ray nor torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from study.budget import Balance, used
from study.measured import tags
from study.records import from_parquet
from study.settings import Scheduler
from study.shown import html, line
from study.store import StoreError, StudyFolder

if TYPE_CHECKING:
    import pandas as pd


class StudyReader:
    """A study folder as pandas frames; also while it is being written.

    Raises:
        StoreError: there is no study in the folder, or it is damaged or of another version.
    """

    def __init__(self, folder: StudyFolder) -> None:
        spec = folder.spec()
        if spec is None:
            raise StoreError(f"{folder.uri} holds no study (no study.json)")
        self.folder, self.spec = folder, spec
        self.scheduler = Scheduler(**spec["scheduler"])

    def __repr__(self) -> str:
        return line(self)

    def _repr_html_(self) -> str | None:
        """The study as a notebook shows it; None, and so `repr`, where its folder cannot be read now."""
        try:
            return html(self)
        except StoreError:
            return None

    def cells(self, metric: str = "test_accuracy") -> pd.DataFrame:
        """One row a cell: what `analysis.compare.marked` makes of the replicates.

        Raises:
            ValueError: there is no such metric.
        """
        from analysis.compare import marked

        return marked(self.replicates(), metric)

    def runs(self) -> list[dict[str, Any]]:
        """Provenance of each run, oldest first."""
        return self.folder.runs()

    def used(self, runs: list[dict[str, Any]] | None = None) -> Balance:
        """What all runs have taken of devices and time, its cost, and what the study's budget has left.

        Args:
            runs: what `runs` has returned, for whoever has it already.
        """
        return Balance.of(self.spec, used(self.runs() if runs is None else runs))

    def replicates(self) -> pd.DataFrame:
        """One row per planned replicate: `cell`, `trial`, `arm`, `seed`, `status`, `epoch`, `reason`, the recipe's
        columns (missing where the cell does not use a field) and the results.

        `status` is complete, stopped, diverged, failed, running (a trial has epochs and no end, in whatever state its
        process is) or missing. Losses in nats, accuracies in [0, 1]; the test columns are missing unless complete.
        """
        import pandas as pd

        plan = self._plan()
        ended = self.folder.ends(str(self.scheduler))
        outcomes = (
            ended.to_pandas() if len(ended) else pd.DataFrame(columns=["cell", "seed", "trial", "status", "epoch"])
        )
        own = [c for c in outcomes.columns if c not in plan.columns or c in ("cell", "seed")]
        frame = plan.merge(outcomes[own], on=["cell", "seed"], how="left")
        for column in ("trial", "reason", *RESULT_COLUMNS):
            if column not in frame:
                frame[column] = None
        running = self._progress(set(outcomes["trial"]))
        frame["status"] = frame["status"].fillna("missing")
        if running:
            # Column by column: row by row, a study of ten thousand cells that has just begun takes seconds.
            keys = zip(frame["cell"], frame["seed"], frame["status"], strict=True)
            found = [running.get((str(c), int(seed))) if status == "missing" else None for c, seed, status in keys]
            here = [at is not None for at in found]
            begun = [at for at in found if at is not None]
            if begun:  # else the columns may be of a type that takes no empty list
                frame.loc[here, "status"] = "running"
                frame.loc[here, "epoch"] = [epoch for epoch, _ in begun]
                frame.loc[here, "trial"] = [trial for _, trial in begun]
        numeric = [c for c in RESULT_COLUMNS if c not in ("label_hash", "device", "steps", "run")]
        frame[numeric] = frame[numeric].apply(pd.to_numeric)
        frame["epoch"] = pd.to_numeric(frame["epoch"])
        return frame

    def history(self) -> pd.DataFrame:
        """One row per trial, seed and epoch of the planned cells."""
        import pandas as pd

        rows = self.folder.table("history")
        if not len(rows):
            return pd.DataFrame(columns=["cell", "trial", "arm", "seed", "epoch"])
        frame = rows.to_pandas().merge(self._plan()[["cell", "arm", "seed"]], on=["cell", "seed"])
        # An epoch is reported again when its trial goes on from a checkpoint, or trained again with other seeds beside
        # it: the same numbers, one is enough.
        frame = frame.drop_duplicates(["cell", "seed", "epoch"], ignore_index=True)
        first = ["cell", "trial", "arm", "seed", "epoch"]
        return frame[[*first, *(c for c in frame.columns if c not in first)]]

    def decisions(self) -> pd.DataFrame:
        """The decisions of the study's scheduler on its planned cells, in their order: trial, cell, rung, epoch, value,
        cutoff, rank, n, stop, run, sequence.
        """
        import pandas as pd

        columns = [
            "trial",
            "cell",
            "rung",
            "epoch",
            "value",
            "cutoff",
            "rank",
            "n",
            "stop",
            "run",
            "sequence",
        ]
        frame = pd.DataFrame(self.folder.decisions_rows(), columns=[*columns, "scheduler"])
        planned = frame["cell"].isin(self._plan()["cell"]) & (frame["scheduler"] == str(self.scheduler))
        return frame.loc[planned, columns].reset_index(drop=True)

    def measures(self, name: str) -> pd.DataFrame:
        """What one of the study's measures found: `cell`, `trial`, `arm`, `seed`, then the measure's own columns.

        Empty where the study does not declare it or nothing has been measured yet.
        """
        import pandas as pd

        found = [tag for tag, (own, _) in tags(self.spec.get("measures", {})).items() if own == name]
        first = ["cell", "trial", "arm", "seed"]
        rows = self.folder.measure_table(found[0]) if found else None
        if rows is None or not len(rows):
            return pd.DataFrame(columns=first)
        frame = rows.to_pandas().merge(self._plan()[["cell", "arm", "seed"]], on=["cell", "seed"])
        return frame[[*first, *(c for c in frame.columns if c not in first)]]

    def _plan(self) -> pd.DataFrame:
        import pandas as pd

        data = self.folder.read("plan.parquet")
        if data is None:
            raise StoreError(f"{self.folder.path('plan.parquet')} is missing")
        plan: pd.DataFrame = from_parquet(data, self.folder.path("plan.parquet")).to_pandas()
        # A search that has not chosen a cell yet.
        return plan if len(plan.columns) else pd.DataFrame(columns=["cell", "arm", "seed"])

    def _progress(self, ended: set[str]) -> dict[tuple[str, int], tuple[int, str]]:
        """(cell, seed) -> (epoch, trial) of the trials that have epochs and no end."""
        found: dict[tuple[str, int], tuple[int, str]] = {}
        for row in self.folder.unfinished(ended, ["cell", "seed", "epoch"]).to_pylist():
            key = (row["cell"], row["seed"])
            if key not in found or row["epoch"] > found[key][0]:
                found[key] = (row["epoch"], row["trial"])
        return found


#: What training adds to a replicate's recipe columns.
RESULT_COLUMNS = (
    "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy",
    "test_top5_accuracy", "memorised", "recovered",
    "images_seen", "gradient_evaluations", "train_seconds", "eps_norm", "cosine_to_sam", "eta_vanished",
    "skipped_steps", "label_hash", "device", "steps", "run",
)  # fmt: skip


def open_study(uri: str) -> StudyReader:
    """Open a study's folder for reading.

    Raises:
        StoreError: there is no study, or it is damaged or of another version.
    """
    return StudyReader(StudyFolder(uri))
