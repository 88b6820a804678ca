"""A cell's trial: what it reports and keeps, and that it goes on from what it kept, wherever it was cut."""

import contextlib

import pytest
import torch

from trainables.trial import KeepError, Trial

RECIPE = {"dataset": "synthetic", "model": "mlp", "epochs": 4, "batch_size": 32, "train_size": 96, "device": "cpu"}


def job(trial="t", seeds=(0, 1), until=None, **recipe):
    """A configuration, and the jobs that it points into."""
    return {"trial": trial}, {"cell": "c", "recipe": {**RECIPE, **recipe}, "seeds": list(seeds), "until": until}


class Cut(Exception):
    """The process ends here."""


class Memory:
    """A keeper in memory; `cut` names the write before which the process ends, and its count."""

    def __init__(self, cut=None):
        self.checkpoints, self.measures, self.cut = {}, {}, cut

    def _maybe_cut(self, what):
        if self.cut and self.cut[0] == what:
            self.cut = (what, self.cut[1] - 1)
            if self.cut[1] == 0:
                self.cut = None
                raise Cut

    def load_checkpoint(self, trial):
        return self.checkpoints.get(trial), []

    def save_checkpoint(self, trial, epoch, payload):
        self._maybe_cut("checkpoint")
        self.checkpoints[trial] = payload

    def measured(self, trial):
        return set(self.measures.get(trial, ()))

    def save_measure(self, trial, tag, rows):
        self._maybe_cut("measure")
        self.measures.setdefault(trial, {})[tag] = rows


def start(keeper, made, every=1, then=None):
    """A worker that holds the first job; `then` is one that it can be given later."""
    jobs = {config["trial"]: what for config, what in (made, then or made)}

    class Bound(Trial):
        def setup(self, config):
            super().setup(config, keeper=keeper, jobs=jobs, threads=1, checkpoint_every=every)

    return Bound(config=made[0])


def run(trial):
    reports = []
    while not reports or not reports[-1].get("done"):
        reports.append(trial.step())
    return reports


def rows(reports):
    return [row for report in reports for row in report["rows"]]


def values(report):
    return [{k: v for k, v in row.items() if k != "train_seconds"} for row in report["replicates"]]


@pytest.fixture(scope="module")
def whole():
    keeper = Memory()
    return run(start(keeper, job())), keeper


def test_a_report_has_the_mean_over_the_seeds(whole):
    for report in whole[0]:
        for key in ("validation_accuracy", "validation_loss", "train_loss"):
            assert report[key] == pytest.approx(sum(row[key] for row in report["replicates"]) / 2)


def test_test_accuracy_is_in_the_last_report_and_nowhere_else(whole):
    reports, _ = whole
    assert [r.get("outcome") for r in reports] == [None, None, None, "complete"]
    assert all("test_accuracy" not in row for report in reports[:-1] for row in report["replicates"])
    assert all(0 <= row["test_accuracy"] <= 1 for row in reports[-1]["replicates"])
    assert all("test" not in key for row in rows(reports) for key in row)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("every", [1, 2])
def test_cut_before_any_checkpoint_it_ends_as_if_it_had_not_been(whole, count, every):
    keeper = Memory(cut=("checkpoint", count))
    with contextlib.suppress(Cut):
        run(start(keeper, job(), every))
    reports = run(start(keeper, job(), every))
    assert str(values(reports[-1])) == str(values(whole[0][-1]))
    # Whoever was told of the first epochs may be gone with the first process: they are told again.
    assert [(row["seed"], row["epoch"]) for row in rows(reports)] == [(s, e) for e in (1, 2, 3, 4) for s in (0, 1)]
    assert timeless(rows(reports)) == timeless(rows(whole[0]))


def timeless(found):
    return [str({k: v for k, v in row.items() if k != "train_seconds"}) for row in found]


def test_a_process_that_is_ended_politely_loses_no_epoch(whole):
    keeper = Memory()
    first = start(keeper, job(), every=100)
    first.step()
    first.step()
    first.cleanup()
    second = start(keeper, job(), every=100)
    assert second.epoch == 2
    assert timeless(rows(run(second))) == timeless(rows(whole[0]))


def test_a_seed_that_fails_in_the_middle_of_an_epoch_leaves_no_checkpoint_of_it(whole, monkeypatch):
    keeper = Memory()
    trial = start(keeper, job(), every=100)
    trial.step()
    monkeypatch.setattr(trial.replicates[1], "train_epoch", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trial.step()
    trial.cleanup()
    assert keeper.checkpoints == {}
    assert timeless(rows(run(start(keeper, job())))) == timeless(rows(whole[0]))


def test_a_keeper_that_cannot_keep_ends_the_trial_with_its_line(monkeypatch):
    keeper = Memory()
    trial = start(keeper, job())

    def full(*arguments):
        raise KeepError("cannot write x: No space left on device")

    trial.step()
    monkeypatch.setattr(keeper, "save_checkpoint", full)
    report = trial.step()
    assert (report["outcome"], report["reason"]) == ("unkept", "cannot write x: No space left on device")
    assert report["done"]
    assert report["rows"] == []
    monkeypatch.setattr(keeper, "load_checkpoint", full)
    assert start(keeper, job()).step()["outcome"] == "unkept"


def test_what_was_passed_over_is_said_once(monkeypatch):
    keeper = Memory()
    monkeypatch.setattr(keeper, "load_checkpoint", lambda trial: (None, ["checkpoint 3 is damaged"]))
    reports = run(start(keeper, job()))
    assert [r["remarks"] for r in reports] == [["checkpoint 3 is damaged"], [], [], []]


def test_a_cell_that_was_trained_past_its_end_ends_where_its_decision_was(whole):
    """Under another scheduler it had gone further; what its tables have is its epoch of the decision."""
    keeper = Memory()
    first = start(keeper, job())
    for _ in range(3):
        first.step()
    (report,) = run(start(keeper, job(until=2)))
    assert (report["outcome"], report["epoch"], report["step_seconds"]) == ("stopped", 2, 0)
    assert str(values(report)) == str(values(whole[0][1]))
    assert timeless(report["rows"]) == timeless(rows(whole[0][:2]))


def test_step_seconds_are_of_this_process_and_this_step():
    keeper = Memory()
    trial = start(keeper, job())
    first, second = trial.step(), trial.step()
    total = sum(row["train_seconds"] for row in second["replicates"])
    assert first["step_seconds"] > 0
    assert first["step_seconds"] + second["step_seconds"] == pytest.approx(total)
    again = start(keeper, job())
    restored, resumed = again.step(), again.step()
    assert (restored["epoch"], restored["step_seconds"]) == (2, 0)
    assert resumed["epoch"] == 3
    assert 0 < resumed["step_seconds"] < sum(row["train_seconds"] for row in resumed["replicates"])


def test_until_ends_a_trial_as_stopped():
    reports = run(start(Memory(), job(until=2)))
    assert [r["epoch"] for r in reports] == [1, 2]
    assert reports[-1]["outcome"] == "stopped"
    assert "test_accuracy" not in reports[-1]["replicates"][0]


def test_one_seed_that_diverges_ends_the_cell_as_diverged():
    keeper = Memory()
    reports = run(start(keeper, job(optimiser="sgd", lr=1e12, momentum=0.0)))
    assert reports[-1]["outcome"] == "diverged"
    assert reports[-1]["epoch"] < 4
    assert "test_accuracy" not in reports[-1]["replicates"][0]


def test_a_warm_worker_trains_the_next_cell_as_a_fresh_one_would(whole):
    keeper = Memory()
    trial = start(keeper, job("other", gamma=0.7), then=job())
    trial.step()
    assert trial.reset_config(job()[0])
    assert str(values(run(trial)[-1])) == str(values(whole[0][-1]))


def test_a_warm_worker_lets_go_of_the_last_cell_before_it_builds_the_next(monkeypatch):
    trial = start(Memory(), job("other"), then=job())
    trial.step()
    alive = []

    import trainables.trial

    made = trainables.trial.Replicate

    def counting(*arguments, **named):
        assert trial.side_by_side is None
        alive.append(len(trial.replicates))
        return made(*arguments, **named)

    monkeypatch.setattr(trainables.trial, "Replicate", counting)
    trial.reset_config(job()[0])
    assert alive == [0, 0]


def test_a_trial_uses_its_own_threads_only():
    before = torch.get_num_threads()
    start(Memory(), job())
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


PERTURBED = {"perturbation-1": ("perturbation", {"alpha": [0.5], "random_draws": 1})}


def measuring(measures=PERTURBED, **more):
    config, what = job(**{k: v for k, v in more.items() if k != "trained"})
    return config, {**what, "measures": measures, "trained": more.get("trained", False)}


def test_measures_are_taken_of_every_seed_when_training_is_complete(whole):
    keeper = Memory()
    reports = run(start(keeper, measuring()))
    assert str(values(reports[-1])) == str(values(whole[0][-1])), "they change nothing that is trained"
    rows = keeper.measures["t"]["perturbation-1"]
    assert {row["seed"] for row in rows} == {0, 1}
    assert {row["cell"] for row in rows} == {"c"}
    for final in reports[-1]["replicates"]:
        at_rest = next(r for r in rows if r["seed"] == final["seed"] and r["alpha"] == 0)
        assert at_rest["test_accuracy"] == final["test_accuracy"]
    assert reports[-1]["unmeasured"] == []


def test_cut_before_a_measure_is_kept_nothing_is_trained_again(whole):
    keeper = Memory(cut=("measure", 1))
    with contextlib.suppress(Cut):
        run(start(keeper, measuring()))
    assert keeper.measures == {}
    reports = run(start(keeper, measuring()))
    assert len(reports) == 1
    assert reports[0]["step_seconds"] == 0
    assert str(values(reports[0])) == str(values(whole[0][-1]))
    assert keeper.measures["t"]["perturbation-1"]


def test_a_trained_trial_is_measured_later_from_its_checkpoint(whole):
    keeper = Memory()
    run(start(keeper, job()))
    before = dict(keeper.checkpoints)
    report = run(start(keeper, measuring(trained=True)))[0]
    assert report["outcome"] == "measured"
    direct = Memory()
    run(start(direct, measuring()))
    assert keeper.measures == direct.measures
    assert report["rows"] == []
    assert keeper.checkpoints == before


def test_a_measure_that_is_kept_is_not_taken_again():
    keeper = Memory()
    run(start(keeper, measuring()))
    keeper.measures["t"]["perturbation-1"] = "kept"
    run(start(keeper, measuring(trained=True)))
    assert keeper.measures["t"]["perturbation-1"] == "kept"


def test_a_trained_trial_without_its_checkpoint_is_not_trained_again():
    with pytest.raises(RuntimeError, match="no whole checkpoint of its last epoch"):
        start(Memory(), measuring(trained=True))


def test_a_measure_that_fails_is_named_and_the_trial_is_complete(monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("nothing\nto divide")

    monkeypatch.setattr("trainables.trial.run_measure", broken)
    keeper = Memory()
    report = run(start(keeper, measuring()))[-1]
    assert report["outcome"] == "complete"
    assert report["unmeasured"] == ["trial t: perturbation failed: ZeroDivisionError: nothing to divide"]
    assert keeper.measures == {}


def test_a_recipe_of_no_epochs_is_measured_as_it_starts():
    keeper = Memory()
    reports = run(start(keeper, job(epochs=0)))
    assert [(r["outcome"], r["epoch"]) for r in reports] == [("complete", 0)]
    row = reports[0]["replicates"][0]
    assert row["gradient_evaluations"] == 0
    assert 0 <= row["test_accuracy"] <= 1
    assert [r["epoch"] for r in rows(reports)] == [0, 0]


def test_weights_that_do_not_fit_end_the_trial_as_failed_and_are_not_tried_again(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"hidden.weight": torch.zeros(3, 3)}, file)
    reports = run(start(Memory(), job(pretrained=str(file))))
    assert [(r["outcome"], r["replicates"]) for r in reports] == [("failed", [])]
    assert "another architecture" in reports[0]["reason"]
    assert "\n" not in reports[0]["reason"]


def test_a_worker_goes_on_after_a_trial_that_failed(whole, tmp_path):
    trial = start(Memory(), job("other", pretrained=str(tmp_path / "nothing.pt")), then=job())
    assert trial.step()["outcome"] == "failed"
    assert trial.reset_config(job()[0])
    assert str(values(run(trial)[-1])) == str(values(whole[0][-1]))
