"""What Prometheus is told is what the trials reported, in a bounded number of series."""

import math
import re
import time
from pathlib import Path

import pytest

from study import metrics
from study.board import Board
from study.budget import Usage
from study.metrics import COUNTERS, EVERY, GAUGES, MOST_CELLS, NoMetrics, RayMetrics, make_metrics
from study.plan import make_plan
from study.spec import Study
from study.store import StudyFolder

CONTENT = {
    "name": "small",
    "question": "Is it seen?",
    "recipe": {"dataset": "synthetic", "model": "mlp", "batch_size": 32, "epochs": 4},
    "arms": {"fsam": {"optimiser": "fsam"}, "sgd": {"optimiser": "sgd"}},
    "grid": {"gamma": [0.05, 0.1], "eta": [1, 1e-4]},
    "seeds": 2,
    "price": "2 EUR",
    "budget": {"cost": 4, "wall": 100},
}


class Series:
    """Keeps what is set and counted, by its tags; refuses tags that it was not made with, as Ray does."""

    def __init__(self, name, description, labels):
        self.name, self.labels, self.values = name, labels, {}

    def _key(self, tags):
        assert tags.keys() == set(self.labels), self.name
        assert all(isinstance(v, str) for v in tags.values())
        return tuple(tags[label] for label in self.labels)

    def set(self, value, tags):
        self.values[self._key(tags)] = value

    def inc(self, value, tags):
        assert value > 0  # Ray refuses others
        self.values[self._key(tags)] = self.values.get(self._key(tags), 0) + value


class Told:
    def __init__(self, tmp_path, **more):
        study = Study.of({**CONTENT, **more})
        self.plan = make_plan(study, StudyFolder(str(tmp_path / "small")))
        self.series, self.now = {}, 0.0
        self.metrics = RayMetrics(study, self._make, self._make, lambda: self.now)
        self.board = Board.of(self.plan)

    def _make(self, name, description, labels):
        return self.series.setdefault(name, Series(name, description, labels))

    def __getitem__(self, name):
        return self.series[name].values


def result(epoch, *, seconds=2.0, images=100, skipped=0, rows=None, **more):
    seeds = [
        {"seed": s, "epoch": epoch, "images_seen": epoch * images, "eps_norm": 0.1 + 0.2 * s, "cosine_to_sam": None,
         "skipped_steps": skipped}
        for s in (0, 1)
    ]  # fmt: skip
    return {"epoch": epoch, "validation_accuracy": 0.5, "train_loss": 1.5, "replicates": seeds,
            "rows": seeds if rows is None else rows, "step_seconds": seconds, **more}  # fmt: skip


def test_a_report_sets_the_series_of_its_cell(tmp_path):
    told = Told(tmp_path)
    trial = next(t for t in told.plan.todo if (t.cell.recipe.gamma, t.cell.recipe.eta) == (0.1, 1e-4))
    told.metrics.report(trial, result(1))
    told.metrics.report(trial, result(2, skipped=3, device_memory_bytes=2**30))
    key = ("small", "fsam", f"gamma=0.1 eta=0.0001 {trial.cell.id[:6]}")
    assert told["study_validation_accuracy_ratio"] == {key: 0.5}
    assert told["study_train_loss_nats"] == {key: 1.5}
    assert told["study_epoch"] == {key: 2}
    assert told["study_epsilon_norm"][key] == pytest.approx(0.2)
    # Two seeds, 100 images each, in two seconds.
    assert told["study_images_per_second"] == {key: 100.0}
    assert told["study_images"] == {("small", "fsam"): 400}
    assert told["study_skipped_steps"] == {key: 6}
    assert told["study_device_memory_bytes"] == {key: 2**30}
    assert told["study_cosine_to_sam"] == {}, "what is not known is not shown as a number"


def test_what_a_checkpoint_brings_back_is_not_counted_as_trained_now(tmp_path):
    told = Told(tmp_path)
    trial = told.plan.todo[0]
    told.metrics.report(trial, result(3, seconds=0.0))
    assert told["study_images"] == {}
    told.metrics.report(trial, result(4))
    assert told["study_images"] == {("small", trial.cell.arm): 200}


def test_a_value_that_is_no_number_leaves_the_last_one(tmp_path):
    told = Told(tmp_path)
    told.metrics.report(told.plan.todo[0], result(1))
    told.metrics.report(told.plan.todo[0], result(2) | {"validation_accuracy": math.nan, "train_loss": math.inf})
    assert list(told["study_train_loss_nats"].values()) == [1.5]
    told.metrics.report(told.plan.todo[0], {**result(0), "replicates": [], "outcome": "failed"})
    assert list(told["study_epoch"].values()) == [2]


def test_the_study_s_own_series_are_those_of_the_board_and_of_what_it_has_used(tmp_path):
    told = Told(tmp_path)
    first, second, *_ = told.plan.todo
    told.board.start(first.cell.id)
    told.board.report(first.id, first.cell.id, 4, 0.75)
    told.board.end(first.id, first.cell.id, "complete")
    told.board.start(second.cell.id)
    told.metrics.step(told.board, Usage(cpu=3600, wall=50))
    states = told["study_cells"]
    assert sum(states.values()) == len(told.plan.cells) == 5
    assert states["small", "fsam", "complete"] == states["small", "fsam", "running"] == 1
    assert told["study_best_validation_accuracy_ratio"] == {("small", "fsam"): 0.75}
    assert (told["study_run_epochs_done"], told["study_run_epochs_planned"]) == ({("small",): 8}, {("small",): 40})
    assert told["study_device_used_seconds"] == {("small", "gpu"): 0, ("small", "cpu"): 3600}
    assert told["study_cost_used"] == {("small", "EUR"): 2.0}
    assert told["study_budget_used_ratio"] == {("small", "wall"): 0.5, ("small", "cost"): 0.5}


def test_a_state_that_no_cell_is_in_any_more_goes_back_to_zero(tmp_path):
    told = Told(tmp_path)
    cell = told.plan.todo[0].cell
    told.board.start(cell.id)
    told.metrics.step(told.board, Usage())
    told.board.cells[cell.id].state = "failed"
    told.metrics.step(told.board, Usage())
    assert told["study_cells"]["small", cell.arm, "running"] == 1, "between two updates nothing is asked"
    told.now += EVERY
    told.metrics.step(told.board, Usage())
    assert told["study_cells"]["small", cell.arm, "running"] == 0
    assert told["study_cells"]["small", cell.arm, "failed"] == 1


def test_ten_thousand_cells_do_not_make_ten_thousand_series(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "MOST_CELLS", 3)
    told = Told(tmp_path)
    for trial in told.plan.todo:
        told.metrics.report(trial, result(1))
        told.metrics.report(trial, result(2))
    told.metrics.step(told.board, Usage())
    assert len(told["study_epoch"]) == 3
    assert told["study_cells_without_series"] == {("small",): 2}
    assert sum(told["study_images"].values()) == 5 * 400, "what all have trained is counted"
    per_cell = [n for n, (_, labels) in {**GAUGES, **COUNTERS}.items() if "cell" in labels]
    assert MOST_CELLS * len(per_cell) <= 5000


def test_names_follow_prometheus_conventions():
    for name in [*GAUGES, *COUNTERS]:
        assert re.fullmatch(r"study_[a-z_]+", name)
    assert all(name.endswith("_total") for name in COUNTERS)
    assert not any(name.endswith("_total") for name in GAUGES)


def test_a_run_on_a_cluster_of_its_own_has_no_metrics():
    assert isinstance(make_metrics(Study.of(CONTENT), named=False), NoMetrics)


def test_a_report_costs_little(tmp_path):
    told = Told(tmp_path)
    began = time.perf_counter()
    for epoch in range(1, 1001):
        told.metrics.report(told.plan.todo[0], result(epoch))
    assert time.perf_counter() - began < 2


def test_what_a_long_epoch_leaves_unreported_is_said_again(tmp_path):
    """Ray drops a gauge that is not set again within two export intervals."""
    told = Told(tmp_path)
    told.metrics.report(told.plan.todo[0], result(1))
    told.metrics.step(told.board, Usage())
    (before,) = told["study_epoch"].items()
    told["study_epoch"].clear()
    told.now += EVERY
    told.metrics.step(told.board, Usage())
    assert told["study_epoch"] == dict([before])


def test_every_query_of_the_dashboard_asks_for_metrics_that_there_are():
    """Also where a run on CPUs has nothing to show, and a query that is wrong would find as little."""
    dashboard = (Path(__file__).parents[2] / "deploy" / "grafana" / "study.json").read_text()
    asked = set(re.findall(r"\bray_(study_\w+)", dashboard))
    assert asked <= GAUGES.keys() | COUNTERS.keys()
    assert {"study_device_memory_bytes", "study_skipped_steps_total"} <= asked
