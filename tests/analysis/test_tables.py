import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_study import EVERY_STATUS, FakeReader, figure_five, history_of, replicate
from scipy import stats

from analysis.tables import CELL_STATUSES, RECIPE_FIELDS, best_cell, cells, curves, varied, whole, write_tables


def one(*rows):
    return cells(pd.DataFrame(rows)).iloc[0]


def test_recipe_fields_are_the_recipes():
    from trainables.recipe import Recipe

    assert tuple(Recipe.model_fields) == RECIPE_FIELDS


def test_no_column_but_a_result_is_lost():
    frame = pd.DataFrame([replicate("a", 0)])
    table = cells(frame)
    assert set(RECIPE_FIELDS) & set(frame) <= set(table)


STATUS = st.sampled_from(["complete", "stopped", "diverged", "failed", "running", "missing"])
ROW = st.tuples(STATUS, st.integers(1, 5), st.one_of(st.floats(0, 1), st.just(np.nan)), st.floats(0, 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ROW, min_size=1, max_size=4), min_size=1, max_size=4))
def test_cells_are_those_of_a_plain_loop(study):
    rows = [
        replicate(
            f"c{i}",
            seed,
            status,
            epoch=np.nan if status == "missing" else float(epoch),
            test_accuracy=test if status == "complete" else np.nan,
            validation_accuracy=validation,
        )
        for i, seeds in enumerate(study)
        for seed, (status, epoch, test, validation) in enumerate(seeds)
    ]
    frame = pd.DataFrame(rows)
    table = cells(frame)
    assert list(table["cell"]) == [f"c{i}" for i in range(len(study))]
    for row, seeds in zip(table.itertuples(), study, strict=True):
        test = [t for status, _, t, _ in seeds if status == "complete" and np.isfinite(t)]
        assert row.n == len(test)
        assert row.n_planned == len(seeds)
        assert row.status in CELL_STATUSES
        if not test:
            assert np.isnan(row.mean)
            continue
        assert row.mean == pytest.approx(np.mean(test))
        if len(test) > 1:
            assert row.std == pytest.approx(np.std(test, ddof=1), abs=1e-12)
            if np.std(test) > 1e-9:
                low, high = stats.t.interval(0.95, len(test) - 1, np.mean(test), stats.sem(test))
                assert (row.low, row.high) == (pytest.approx(low), pytest.approx(high))
        else:
            assert np.isnan([row.std, row.low, row.high]).all()


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (["complete", "complete"], "complete"),
        (["complete", "diverged"], "diverged"),
        (["failed", "diverged"], "diverged"),
        (["complete", "failed"], "failed"),
        (["complete", "stopped"], "stopped"),
        (["stopped", "missing"], "stopped"),
        (["complete", "running"], "running"),
        (["running", "missing"], "running"),
        (["complete", "missing"], "partial"),
        (["missing", "missing"], "missing"),
    ],
)
def test_status_of_a_cell_is_the_first_rule_that_holds(seeds, expected):
    assert one(*(replicate("a", i, s) for i, s in enumerate(seeds)))["status"] == expected


def test_every_status_is_in_the_golden_study(golden):
    table = cells(golden).set_index(["gamma", "eta"])
    assert set(table["status"]) == set(CELL_STATUSES)
    assert table.loc[(1.0, 1.0), "status"] == "diverged"
    assert table.loc[(0.5, 10.0), ["n", "n_planned"]].tolist() == [2, 3]


def test_a_stopped_cell_has_no_test_mean_and_says_its_epoch():
    row = one(*(replicate("a", s, "stopped", epoch=3.0, validation_accuracy=0.5) for s in range(2)))
    assert np.isnan(row["mean"])
    assert (row["n"], row["epoch"], row["validation_mean"], row["validation_n"]) == (0, 3.0, 0.5, 2)


def test_validation_means_never_mix_epochs():
    row = one(
        replicate("a", 0, "stopped", epoch=3.0, validation_accuracy=0.5),
        replicate("a", 1, "stopped", epoch=6.0, validation_accuracy=0.7),
        replicate("a", 2, "complete", validation_accuracy=0.9),
    )
    assert (row["epoch"], row["validation_mean"], row["validation_n"]) == (6.0, 0.7, 1)
    assert row["mean"] == pytest.approx(0.94)


def test_infinite_values_are_not_averaged():
    rows = [replicate("a", s, test_loss=v) for s, v in enumerate([1.0, np.inf, 3.0])]
    row = cells(pd.DataFrame(rows), "test_loss").iloc[0]
    assert (row["mean"], row["n"]) == (2.0, 2)


def test_cost_of_a_cell_counts_what_it_ran():
    row = one(replicate("a", 0), replicate("a", 1, "stopped", gradient_evaluations=60.0), replicate("a", 2, "missing"))
    assert row["gradient_evaluations"] == 300


def test_unknown_metric_names_those_there_are():
    with pytest.raises(ValueError, match=r"'test_acuracy'.*test_accuracy"):
        cells(pd.DataFrame([replicate("a", 0)]), "test_acuracy")


def test_best_cell_is_chosen_by_validation_and_not_by_test():
    rows = [replicate("low", 0, validation_accuracy=0.90, test_accuracy=0.99)]
    rows += [replicate("high", 0, validation_accuracy=0.91, test_accuracy=0.50)]
    best = best_cell(pd.DataFrame(rows))
    assert (best["cell"], best["mean"], best["n"]) == ("high", 0.50, 1)


@pytest.mark.parametrize("status", ["stopped", "diverged", "failed", "running", "missing"])
def test_a_cell_that_is_not_complete_cannot_be_best(status):
    rows = [replicate("done", s, validation_accuracy=0.5) for s in range(2)]
    rows += [replicate("other", 0, validation_accuracy=0.9), replicate("other", 1, status, validation_accuracy=0.9)]
    assert best_cell(pd.DataFrame(rows))["cell"] == "done"


def test_ties_go_to_the_smaller_gamma_then_eta_in_any_order_of_rows():
    rows = [replicate(f"{g}-{e}", 0, gamma=g, eta=e) for g in (0.5, 0.1) for e in (1.0, 0.01)]
    frame = pd.DataFrame(rows)
    for seed in range(4):
        assert best_cell(frame.sample(frac=1, random_state=seed))["cell"] == "0.1-0.01"


def test_best_cell_of_frame_and_of_its_cells_agree_and_of_nothing_is_none(golden):
    assert best_cell(golden)["cell"] == best_cell(cells(golden))["cell"]
    assert best_cell(golden.iloc[:0]) is None
    assert best_cell(pd.DataFrame([replicate("a", 0, "missing")])) is None


def test_varied_fields_count_unused_as_a_value(golden):
    assert varied(cells(golden)) == ["optimiser", "gamma", "eta"]


def test_curves_average_seeds_epoch_by_epoch_and_keep_the_later_of_a_repeated_line():
    frame = pd.DataFrame([replicate("a", 0), replicate("a", 1)])
    lines = [("a", 0, 1, 0.2), ("a", 0, 2, 0.1), ("a", 0, 2, 0.4), ("a", 1, 1, 0.4), ("a", 1, 2, np.nan)]
    history = pd.DataFrame(lines, columns=["cell", "seed", "epoch", "validation_accuracy"])
    out = curves(history, cells(frame)).set_index("epoch")
    assert out["mean"].tolist() == [pytest.approx(0.3), pytest.approx(0.4)]
    assert out["n"].tolist() == [2, 1]
    assert out["n_started"].tolist() == [2, 2]
    assert out["gamma"].tolist() == [0.1, 0.1]


def test_tables_come_back_from_parquet_and_csv_as_they_were(tmp_path, golden_reader):
    paths = write_tables(golden_reader, tmp_path / "new")
    assert set(paths) == {f"{t}.{s}" for t in ("replicates", "cells", "history") for s in ("csv", "parquet")}
    table = cells(golden_reader.replicates())
    back = pd.read_parquet(paths["cells.parquet"])
    pd.testing.assert_frame_equal(back, table, check_dtype=False)
    text = pd.read_csv(paths["cells.csv"])
    np.testing.assert_allclose(text["mean"], table["mean"])
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(paths)


def test_mixed_settings_are_written_as_text(tmp_path):
    rows = [replicate("a", 0, augmentation=["crop"]), replicate("b", 0, augmentation=["crop", "flip"])]
    frame = pd.DataFrame(rows)
    frame["cell"] = ["a", "b"]
    from analysis.tables import write_frames

    back = pd.read_parquet(write_frames({"t": frame}, tmp_path)["t.parquet"])
    assert back["augmentation"].tolist() == ["['crop']", "['crop', 'flip']"]


def test_a_write_that_breaks_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("old")

    def broken(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        whole(path, broken)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("t.csv", "old")]


def test_ten_thousand_cells_take_seconds():
    import time

    grid = tuple(np.geomspace(1e-3, 1, 100))
    frame = figure_five(seeds=2, gammas=grid, etas=grid)
    start = time.perf_counter()
    assert len(cells(frame)) == 10_101
    assert time.perf_counter() - start < 5


def test_history_of_a_reader_with_nothing_still_writes(tmp_path):
    empty = pd.DataFrame(columns=["cell", "seed", "status"])
    assert "replicates.csv" in write_tables(FakeReader(empty), tmp_path)


def test_importing_tables_pulls_in_neither_torch_nor_ray_nor_matplotlib():
    import subprocess
    import sys

    code = (
        "import sys, analysis.tables, analysis.compare, analysis.layout; "
        "print({'torch', 'ray', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_golden_study_has_curves_for_all_but_what_never_ran(golden):
    table = cells(golden)
    lines = curves(history_of(golden), table)
    assert set(table["cell"]) - set(lines["cell"]) == set(table.loc[table["status"] == "missing", "cell"])
    assert len(EVERY_STATUS) == 7
