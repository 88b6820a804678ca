"""A study by hand: the frames that `study.store` gives, without a store."""

import numpy as np
import pandas as pd

GAMMAS = (0.01, 0.05, 0.1, 0.5, 1.0)
ETAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
EPOCHS = 12


class FakeReader:
    """What `study.store.open_study` gives, from frames in memory."""

    def __init__(self, replicates, history=None, decisions=None, spec=None, runs=None):
        self._replicates, self._history, self._decisions = replicates, history, decisions
        self.spec = {"name": "digits-sensitivity", "question": "How sensitive is Fisher SAM?"} | (spec or {})
        self._runs = runs or []

    def runs(self):
        return self._runs

    def replicates(self):
        return self._replicates.copy()

    def history(self):
        empty = pd.DataFrame(columns=["cell", "trial", "arm", "seed", "epoch", "validation_accuracy", "lr"])
        return empty if self._history is None else self._history.copy()

    def decisions(self):
        columns = ["trial", "cell", "rung", "epoch", "value", "cutoff", "rank", "n", "stop", "run", "sequence"]
        return pd.DataFrame(columns=columns) if self._decisions is None else self._decisions.copy()


def replicate(cell, seed, status="complete", **values):
    """One row of `reader.replicates()`; results are missing unless given or complete."""
    done = status == "complete"
    row = {
        "cell": cell,
        "trial": None if status == "missing" else f"trial-{cell}",
        "arm": "fsam",
        "seed": seed,
        "status": status,
        "epoch": {"complete": float(EPOCHS), "missing": np.nan}.get(status, 3.0),
        "reason": {"diverged": "training loss is nan", "failed": "worker died"}.get(status),
        "dataset": "digits",
        "model": "digits_cnn",
        "optimiser": "fsam",
        "gamma": 0.1,
        "eta": 1.0,
        "fisher": "gradient_magnitude",
        "m": None,
        "augmentation": "",
        "lr": 0.1,
        "label_noise": 0.0,
        "epochs": EPOCHS,
        "train_loss": 0.2,
        "validation_accuracy": 0.95 if status != "missing" else np.nan,
        "validation_loss": 0.3,
        "test_accuracy": 0.94 if done else np.nan,
        "test_loss": 0.3 if done else np.nan,
        "gradient_evaluations": 0.0 if status == "missing" else 240.0,
        "train_seconds": 0.0 if status == "missing" else 2.0,
    }
    return row | values


def figure_five(statuses=None, seeds=3, gammas=GAMMAS, etas=ETAS):
    """The grid of the paper's Figure 5 with SAM at matched gammas and SGD; `statuses` by (gamma, eta)."""
    statuses = statuses or {}
    random = np.random.default_rng(0)
    arms = [("fsam", "fsam", g, e) for g in gammas for e in etas]
    arms += [("sam", "sam", g, None) for g in gammas] + [("sgd", "sgd", None, None)]
    rows = []
    shared = random.normal(0, 0.004, seeds)  # what a seed has in common over the cells
    for arm, optimiser, gamma, eta in arms:
        level = 0.962
        if gamma is not None:
            level += 0.016 * np.exp(-((np.log10(gamma) + 0.8) ** 2)) - (0.30 if gamma >= 1.0 else 0.0)
        if eta is not None:
            level += 0.006 * np.exp(-((np.log10(eta) + 0.5) ** 2) / 2)
        for seed in range(seeds):
            status = statuses.get((gamma, eta), "complete")
            if isinstance(status, tuple):
                status = status[seed]
            validation = level + shared[seed] + random.normal(0, 0.002)
            values = {"arm": arm, "optimiser": optimiser, "gamma": gamma, "eta": eta}
            if optimiser == "sgd":
                values |= {"gradient_evaluations": 120.0, "train_seconds": 1.1}
            if status not in ("missing", "failed"):
                values["validation_accuracy"] = validation if status == "complete" else validation - 0.1
            if status == "complete":
                values["test_accuracy"] = validation - 0.008 + random.normal(0, 0.002)
            rows.append(replicate(f"{arm}-{gamma}-{eta}", seed, status, **values))
    frame = pd.DataFrame(rows)
    return frame.astype({"gamma": float, "eta": float})


def history_of(replicates, epochs=EPOCHS):
    """Learning curves that end at each replicate's own accuracy and epoch."""
    rows = []
    for r in replicates.itertuples():
        if r.status == "missing":
            continue
        last = int(r.epoch)
        for epoch in range(1, last + 1):
            accuracy = r.validation_accuracy * (1 - 0.8 * np.exp(-epoch / 2.5))
            rows.append(
                {
                    "cell": r.cell,
                    "trial": r.trial,
                    "arm": r.arm,
                    "seed": r.seed,
                    "epoch": epoch,
                    "validation_accuracy": accuracy,
                    "train_loss": 2.3 * np.exp(-epoch / 3),
                    "lr": 0.1,
                }
            )
    return pd.DataFrame(rows)


EVERY_STATUS = {
    (1.0, 10.0): "diverged",
    (1.0, 1.0): ("complete", "diverged", "complete"),
    (1.0, 1e-4): "stopped",
    (0.01, 1e-4): "failed",
    (0.01, 1e-3): "missing",
    (0.05, 10.0): "running",
    (0.5, 10.0): ("complete", "complete", "missing"),
}
