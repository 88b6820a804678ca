"""A study by hand: the frames that `study.store` gives, without a store."""

import numpy as np
import pandas as pd

from study.budget import Balance, used

GAMMAS = (0.01, 0.05, 0.1, 0.5, 1.0)
ETAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
EPOCHS = 12


class FakeReader:
    """What `study.store.open_study` gives, from frames in memory."""

    def __init__(self, replicates, history=None, decisions=None, spec=None, runs=None, measures=None):
        self._replicates, self._history, self._decisions = replicates, history, decisions
        self._measures = measures or {}
        self.spec = {"name": "digits-sensitivity", "question": "How sensitive is Fisher SAM?"} | (spec or {})
        self._runs = runs or []

    def runs(self):
        return self._runs

    def used(self, runs=None):
        return Balance.of(self.spec, used(self._runs if runs is None else runs))

    def replicates(self):
        return self._replicates.copy()

    def history(self):
        empty = pd.DataFrame(columns=["cell", "trial", "arm", "seed", "epoch", "validation_accuracy", "lr"])
        return empty if self._history is None else self._history.copy()

    def decisions(self):
        columns = ["trial", "cell", "rung", "epoch", "value", "cutoff", "rank", "n", "stop", "run", "sequence"]
        return pd.DataFrame(columns=columns) if self._decisions is None else self._decisions.copy()

    def measures(self, name):
        empty = pd.DataFrame(columns=["cell", "trial", "arm", "seed"])
        return self._measures[name].copy() if name in self._measures else empty


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


#: The arms of Table 1, with the settings of section 5.1.
TABLE_ONE_ARMS = {
    "sgd": {"optimiser": "sgd", "gamma": None, "eta": None},
    "sam": {"optimiser": "sam", "gamma": 0.05, "eta": None},
    "asam": {"optimiser": "asam", "gamma": 0.5, "eta": 0.01},
    "fsam": {"optimiser": "fsam", "gamma": 0.1, "eta": 1.0},
    "sam_matched": {"optimiser": "sam", "gamma": 0.1, "eta": None},
}


def by_condition(field, values, arms=TABLE_ONE_ARMS, seeds=3, statuses=None, **further):
    """Arms crossed with the values of one condition, a cell each; `statuses` by (arm, value), `further` by value."""
    statuses = statuses or {}
    random = np.random.default_rng(1)
    rows = []
    for arm, own in arms.items():
        for i, value in enumerate(values):
            for seed in range(seeds):
                status = statuses.get((arm, value), "complete")
                status = status[seed] if isinstance(status, tuple) else status
                accuracy = 0.9 - 0.05 * i + 0.01 * list(arms).index(arm) + random.normal(0, 0.004)
                values_ = {"arm": arm, field: value, **own, **{k: v[i] for k, v in further.items()}}
                if status == "complete":
                    values_ |= {"test_accuracy": accuracy, "validation_accuracy": accuracy + random.normal(0, 0.002)}
                rows.append(replicate(f"{arm}-{value}", seed, status, **values_))
    return pd.DataFrame(rows).astype({"gamma": float, "eta": float})


def perturbation_of(replicates, alphas=(0.0, 0.5, 1.0, 2.0), draws=2):
    """What the measure `perturbation` gives of every complete replicate: the gradient costs most."""
    random = np.random.default_rng(2)
    rows = []
    for r in replicates[replicates["status"] == "complete"].itertuples():
        for direction, count in (("adversarial", 1), ("random", draws)):
            for draw in range(count):
                for alpha in alphas:
                    lost = alpha * (0.3 if direction == "adversarial" else 0.05)
                    accuracy = max(0.1, r.test_accuracy - lost * (1 + random.normal(0, 0.05)))
                    row = {"cell": r.cell, "trial": r.trial, "arm": r.arm, "seed": r.seed, "direction": direction}
                    row |= {"draw": draw, "alpha": alpha, "batch_norm": "kept", "test_accuracy": accuracy}
                    rows.append(row | {"test_loss": 1.0, "grad_norm": 0.5})
    return pd.DataFrame(rows)


def searched(cells=20, arms=("sgd", "sam", "fsam"), seeds=2):
    """A search: sampled gamma and lr, in the order of the suggestions, a third of the cells stopped."""
    random = np.random.default_rng(3)
    rows = []
    for i in range(cells):
        for arm in arms:
            gamma, lr = 10 ** random.uniform(-2, 0), 10 ** random.uniform(-2, -0.5)
            own = {"arm": arm, "optimiser": arm, "gamma": None if arm == "sgd" else gamma, "lr": lr, "eta": None}
            status = "stopped" if i and random.uniform() < 0.35 else "complete"
            for seed in range(seeds):
                accuracy = 0.95 - 0.02 * (np.log10(lr) + 1) ** 2 + random.normal(0, 0.003)
                found = {"validation_accuracy": accuracy if status == "complete" else 0.999}
                if status == "complete":
                    found["test_accuracy"] = accuracy - 0.01
                rows.append(replicate(f"{arm}-{i}", seed, status, **own, **found))
    return pd.DataFrame(rows).astype({"gamma": float, "eta": float})


SEARCH_SPEC = {
    "grid": {},
    "arms": {"sgd": {}, "sam": {}, "fsam": {}},
    "search": {
        "space": {"gamma": {"low": 0.01, "high": 1.0, "log": True}, "lr": {"low": 0.01, "high": 0.3, "log": True}}
    },
}
