"""An exported study is, for Optuna, what the folder says: read back with Optuna, compared with the folder's frames."""

import math

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from study.cli import main
from study.export_optuna import export_optuna
from study.reader import StudyReader, open_study
from study.store import StoreError, StudyFolder

EPOCHS = 4
SCHEDULER = "asha(grace_period=2, reduction_factor=2)"
GAMMAS, BATCHES = (0.01, 0.05, 0.1, 0.5, 1.0), (16, 32, 64)


def make(uri, cells, grid, seeds=(0, 1, 2), **more):
    """A folder with these cells: (id, arm, settings, what became of it) each."""
    spec = {
        "name": "n",
        "question": "Which?",
        "arms": {arm: {} for _, arm, _, _ in cells},
        "grid": grid,
        "seeds": list(seeds),
        "scheduler": {"name": "asha", "grace_period": 2, "reduction_factor": 2},
        **more,
    }
    folder = StudyFolder(str(uri))
    fields = dict.fromkeys(field for _, _, settings, _ in cells for field in settings)
    rows = [
        {"cell": cell, "arm": arm, "seed": seed, **dict.fromkeys(fields), **settings, "epochs": EPOCHS}
        for cell, arm, settings, _ in cells
        for seed in seeds
    ]
    folder.save_study(spec, "", rows)
    recording = folder.recording("r1")
    for number, (cell, _, _, fate) in enumerate(cells):
        _record(recording, cell, fate, seeds, np.random.default_rng(number))
    recording.flush()
    return StudyReader(folder)


def _record(recording, cell, fate, seeds, random):
    last = {"complete": EPOCHS, "stopped": 2, "diverged": 3, "running": 1}.get(fate, 0)
    curves = {seed: np.sort(random.uniform(0.3, 0.9, EPOCHS)) for seed in seeds}
    if fate == "diverged":
        curves[seeds[-1]][2] = math.nan
    rows = [
        {"cell": cell, "seed": s, "epoch": e, "validation_accuracy": float(curves[s][e - 1])}
        for e in range(1, last + 1)
        for s in seeds
    ]
    recording.history(f"t-{cell}", rows)
    if fate in ("missing", "running"):
        return
    for seed in seeds:
        own = "stopped" if fate == "diverged" and seed != seeds[-1] else fate
        row = {"cell": cell, "seed": seed, "status": own, "run": "r1", "device": "CPU", "train_seconds": 1.5}
        row |= {"epoch": last or None, "scheduler": SCHEDULER if fate == "stopped" else None}
        row |= {"reason": None if own == "complete" else f"{own} <&>", "gradient_evaluations": 10}
        row |= {"validation_accuracy": float(curves[seed][last - 1]) if last else None}
        row |= {"test_accuracy": random.uniform(0.3, 0.9) if own == "complete" else None}
        recording.end(f"t-{cell}", [row])


FATES = {(0.01, 16): "stopped", (0.05, 16): "diverged", (0.1, 16): "failed", (0.5, 16): "missing", (1.0, 16): "running"}


@pytest.fixture
def grid(tmp_path):
    """Two axes of one arm with every status, and an arm that crosses nothing."""
    cells = [
        (f"f{i}{j}", "fsam", {"gamma": g, "batch_size": b}, FATES.get((g, b), "complete"))
        for i, g in enumerate(GAMMAS)
        for j, b in enumerate(BATCHES)
    ]
    cells.append(("s0", "sgd", {"batch_size": 32}, "complete"))
    return make(tmp_path / "n", cells, {"gamma": list(GAMMAS), "batch_size": list(BATCHES)})


def load(path, name="n.fsam"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path}")


def by_cell(study):
    return {trial.user_attrs["cell"]: trial for trial in study.trials}


def test_every_ended_cell_is_a_trial_in_its_state(grid, tmp_path):
    out = tmp_path / "all.db"
    lines = export_optuna(grid, str(out))
    assert lines == [
        f"{out}: n.fsam, 13 trials (10 COMPLETE, 2 PRUNED, 1 FAIL)",
        f"{out}: n.sgd, 1 trial (1 COMPLETE)",
        "not in it: 2 cells that have not ended",
    ]
    states = {cell: trial.state for cell, trial in by_cell(load(out)).items()}
    others = {f"f{i}{j}": TrialState.COMPLETE for i in range(5) for j in (1, 2)}
    ended = {"f00": TrialState.PRUNED, "f10": TrialState.PRUNED, "f20": TrialState.FAIL}
    assert states == {**ended, **others}
    assert load(out).direction == optuna.study.StudyDirection.MAXIMIZE


def test_values_are_the_means_over_seeds_of_the_folder(grid, tmp_path):
    out = tmp_path / "all.db"
    export_optuna(grid, str(out))
    rows, history = grid.replicates(), grid.history()
    for name in ("n.fsam", "n.sgd"):
        for cell, trial in by_cell(load(out, name)).items():
            own = rows[rows["cell"] == cell]
            complete = (own["status"] == "complete").all()
            assert trial.value == (pytest.approx(own["validation_accuracy"].mean()) if complete else None)
            curve = history[history["cell"] == cell].groupby("epoch")["validation_accuracy"].agg(["mean", "count"])
            curve = curve[curve["count"] == 3]
            assert trial.intermediate_values == pytest.approx(curve["mean"].to_dict())
            seeds = trial.user_attrs["seeds"]
            assert set(seeds) == {"0", "1", "2"}
            for row in own.itertuples():
                assert seeds[str(row.seed)]["status"] == row.status
                for key in ("validation_accuracy", "test_accuracy"):
                    value = getattr(row, key)
                    assert seeds[str(row.seed)][key] == (None if math.isnan(value) else value)
            if complete:
                assert trial.user_attrs["test_accuracy"] == pytest.approx(own["test_accuracy"].mean())
                assert (trial.user_attrs["n"], trial.user_attrs["epoch"]) == (3, EPOCHS)
            else:
                assert "test_accuracy" not in trial.user_attrs
                assert trial.user_attrs["reason"] == f"{own['status'].iloc[0]} <&>"


def test_a_mean_of_the_seeds_that_survived_is_no_value(grid, tmp_path):
    export_optuna(grid, str(tmp_path / "a.db"))
    diverged = by_cell(load(tmp_path / "a.db"))["f10"]
    assert sorted(diverged.intermediate_values) == [1, 2], "at epoch 3 one of three seeds has no finite value"
    assert diverged.constraints == {"diverged": 1.0}
    assert diverged.user_attrs["status"] == "diverged"


def test_axes_are_ranges_and_logarithmic_where_they_span_a_decade(grid, tmp_path):
    export_optuna(grid, str(tmp_path / "a.db"))
    for cell, trial in by_cell(load(tmp_path / "a.db")).items():
        assert trial.distributions == {
            "gamma": FloatDistribution(0.01, 1.0, log=True),
            "batch_size": IntDistribution(16, 64),
        }
        assert trial.params == {"gamma": GAMMAS[int(cell[1])], "batch_size": BATCHES[int(cell[2])]}
        assert isinstance(trial.params["batch_size"], int)
    (sgd,) = load(tmp_path / "a.db", "n.sgd").trials
    assert sgd.params == {}, "what one arm does not vary is no parameter of it"


def test_a_setting_that_a_cell_does_not_use_is_absent_and_names_are_categorical(tmp_path):
    cells = [("c0", "all", {"optimiser": "sgd", "nesterov": False, "augmentation": "", "label_noise": 0.0}, "complete")]
    for i, gamma in enumerate((0.1, 0.2)):
        settings = {"optimiser": "sam", "gamma": gamma, "nesterov": True, "augmentation": "crop+flip"}
        cells.append((f"c{i + 1}", "all", {**settings, "label_noise": 0.4, "lr": 0.1 * (i + 1)}, "complete"))
    grid = {"optimiser": [], "gamma": [], "nesterov": [], "augmentation": [], "label_noise": []}
    export_optuna(make(tmp_path / "n", cells, grid), str(tmp_path / "a.db"))
    trials = by_cell(load(tmp_path / "a.db", "n.all"))
    assert trials["c0"].params == {
        "optimiser": "sgd", "nesterov": False, "augmentation": "none", "label_noise": 0.0,
    }  # fmt: skip
    assert trials["c2"].params == {
        "optimiser": "sam", "nesterov": True, "augmentation": "crop+flip", "label_noise": 0.4, "gamma": 0.2,
    }  # fmt: skip
    assert trials["c0"].distributions["augmentation"] == CategoricalDistribution(["none", "crop+flip"])
    assert trials["c0"].distributions["nesterov"] == CategoricalDistribution([False, True])
    assert trials["c2"].distributions["gamma"] == FloatDistribution(0.1, 0.2), "less than a decade"
    assert trials["c0"].distributions["label_noise"] == FloatDistribution(0.0, 0.4)
    assert trials["c2"].user_attrs["lr"] == 0.2, "it differs, but the study does not cross it"


def test_a_search_keeps_the_distributions_that_it_drew_from(tmp_path):
    axes = {
        "gamma": {"low": 0.001, "high": 2.0, "log": True},
        "batch_size": {"low": 16, "high": 64, "step": 16},
        "augmentation": {"choices": [[], ["crop", "flip"]]},
        "cutout_size": {"choices": [None, 4]},
    }
    drawn = [(0.0123, 16, "", None), (0.5, 64, "crop+flip", 4), (1.0, 32, "crop+flip", None)]
    cells = [
        (f"c{i}", "sam", dict(zip(axes, values, strict=True)), "complete" if i else "stopped")
        for i, values in enumerate(drawn)
    ]
    search = {"space": axes, "cells": 3, "sampler": "random"}
    export_optuna(make(tmp_path / "n", cells, {}, search=search), str(tmp_path / "a.db"))
    trials = by_cell(load(tmp_path / "a.db", "n.sam"))
    assert trials["c0"].distributions == {
        "gamma": FloatDistribution(0.001, 2.0, log=True),
        "batch_size": IntDistribution(16, 64, step=16),
        "augmentation": CategoricalDistribution(["none", "crop+flip"]),
        "cutout_size": CategoricalDistribution([None, 4]),
    }
    assert trials["c0"].params == {"gamma": 0.0123, "batch_size": 16, "augmentation": "none", "cutout_size": None}
    assert trials["c1"].params["cutout_size"] == 4


def test_optunas_importances_and_plots_open_it(grid, tmp_path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from optuna.visualization import matplotlib as plots

    export_optuna(grid, str(tmp_path / "a.db"))
    study = load(tmp_path / "a.db")
    for evaluator in (
        optuna.importance.PedAnovaImportanceEvaluator(),
        optuna.importance.FanovaImportanceEvaluator(n_trees=8, seed=0),
    ):
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        assert set(found) == {"gamma", "batch_size"}
        assert sum(found.values()) == pytest.approx(1)
    table = grid.cells()
    complete = table[(table["arm"] == "fsam") & (table["status"] == "complete")]
    assert study.best_trial.user_attrs["cell"] == complete.loc[complete["validation_mean"].idxmax(), "cell"]
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        axes = plots.plot_contour(study, params=["gamma", "batch_size"])
    FigureCanvasAgg(axes.figure).draw()
    assert axes.get_xscale() == "linear"  # batch_size
    assert axes.get_yscale() == "log"
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        lines = plots.plot_intermediate_values(study).get_lines()
    assert len(lines) == 12, "ten complete cells, one stopped, one diverged; the failed one has no epoch"


def test_the_same_study_is_not_written_twice_unless_asked(grid, tmp_path):
    out = str(tmp_path / "a.db")
    export_optuna(grid, out)
    before = [trial.user_attrs for trial in load(out).trials]
    with pytest.raises(StoreError, match=r"Optuna study n\.fsam is there from an earlier export; add --replace"):
        export_optuna(grid, out)
    export_optuna(grid, out, replace=True)
    assert [trial.user_attrs for trial in load(out).trials] == before


def test_what_was_not_exported_is_never_replaced_and_nothing_is_half_written(grid, tmp_path):
    out = str(tmp_path / "theirs.db")
    theirs = optuna.create_study(storage=f"sqlite:///{out}", study_name="n.sgd")
    theirs.add_trial(optuna.trial.create_trial(value=1.0))
    for replace in (False, True):
        with pytest.raises(StoreError, match=r"n\.sgd is there and was not exported"):
            export_optuna(grid, out, replace=replace)
    assert [s.study_name for s in optuna.get_all_study_summaries(f"sqlite:///{out}")] == ["n.sgd"]
    assert [t.value for t in load(out, "n.sgd").trials] == [1.0]


def test_an_export_that_is_cut_short_leaves_no_file(grid, tmp_path, monkeypatch):
    def breaks(*_):
        raise sqlalchemy.exc.OperationalError("insert", {}, Exception("disk is full"))

    monkeypatch.setattr(optuna.Study, "add_trials", breaks)
    with pytest.raises(StoreError, match="disk is full"):
        export_optuna(grid, str(tmp_path / "out/a.db"))
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_that_is_cut_short_leaves_no_half_of_a_study_in_a_database(grid, tmp_path, monkeypatch):
    out = str(tmp_path / "a.db")
    optuna.create_study(storage=f"sqlite:///{out}", study_name="other")
    add = optuna.Study.add_trials

    def breaks(study, trials):
        add(study, trials[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna.Study, "add_trials", breaks)
    with pytest.raises(KeyboardInterrupt):
        export_optuna(grid, out)
    assert [s.study_name for s in optuna.get_all_study_summaries(f"sqlite:///{out}")] == ["other"]


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("nothing://x/y", "--out: nothing://x/y cannot be used"),
        ("postgresql+nodriver://me:secret@h/x", "postgresql+nodriver://me:***@h/x"),
        ("text.db", "not a database"),
        ("text.db/a.db", "cannot write"),
    ],
)
def test_bad_storage_is_one_line_and_exit_code_2(grid, tmp_path, monkeypatch, capsys, out, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.db").write_text("no database, whatever its name says " * 50)
    assert main(["export", grid.folder.uri, "--out", out, "--format", "optuna"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert "secret" not in error


def test_a_study_of_which_nothing_has_ended_is_one_line(tmp_path, capsys):
    make(tmp_path / "n", [("c", "sam", {"gamma": 0.1}, "running")], {"gamma": [0.1]})
    assert main(["export", str(tmp_path / "n"), "--out", str(tmp_path / "a.db")]) == 2
    assert "no cell has ended yet" in capsys.readouterr().err
    assert not (tmp_path / "a.db").exists()


def test_a_file_with_odd_characters_in_its_name_is_that_file(grid, tmp_path):
    out = tmp_path / "50 % {x}?.db"
    export_optuna(grid, str(out))
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".db"] == [out.name]
    assert open_study(grid.folder.uri).spec["name"] == "n"
