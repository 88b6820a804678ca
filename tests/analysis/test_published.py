import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_study import FakeReader, figure_five
from scipy import stats

from analysis.published import BOUND, TRAIN_IMAGES, WELCH, beside, beside_study, difference_interval, published
from analysis.report import write_report
from analysis.tables import RECIPE_FIELDS, cells

ROOT = Path(__file__).parents[2]
PAPER = ROOT.parent / "shared" / "paper" / "fisher-sam.txt"
TABLES = ("Table 1", "Table 2", "Table 3", "Table 4")

#: Section 5.1's training of WRN-28-10 on CIFAR-10, under the Recipe's names.
WRN = {
    "dataset": "cifar10", "train_size": None, "validation_size": 1000, "test_size": None, "label_noise": 0.0,
    "augmentation": "crop+flip+autoaugment+cutout", "model": "wrn28_10", "pretrained": None, "m": None,
    "fisher": "gradient_magnitude", "base": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
    "schedule": "cosine", "epochs": 200, "batch_size": 128, "label_smoothing": 0.1, "natural_gradient": False,
}  # fmt: skip


def rows_of(cell, values, validation=None, status="complete", arm="fsam", **own):
    """Replicates of one cell of Fisher SAM at the paper's setting, with these test accuracies."""
    base = WRN | {"optimiser": "fsam", "gamma": 0.1, "eta": 1.0} | own
    validation = validation if validation is not None else [0.95] * len(values)
    return [
        {"cell": cell, "arm": arm, "seed": i, "status": status, "epoch": 200.0, **base}
        | {"test_accuracy": v if status == "complete" else None, "validation_accuracy": w}
        for i, (v, w) in enumerate(zip(values, validation, strict=True))
    ]


def planned(name):
    """Every replicate of a study file as its plan has it, none of them trained."""
    from study.spec import Study

    study = Study.load(ROOT / "studies" / f"{name}.yaml")
    rows = [
        {"cell": f"{name}-{i}", "arm": arm, "seed": seed, "status": "missing", "epoch": np.nan, **recipe.columns()}
        for i, (arm, recipe) in enumerate(study.points)
        for seed in study.seeds
    ]
    none = dict.fromkeys(("validation_accuracy", "test_accuracy", "test_top5_accuracy"))
    return pd.DataFrame(rows).assign(**none)


# -- the paper ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not PAPER.exists(), reason=f"the paper's text is not at {PAPER}")
def test_the_printed_numbers_of_tables_1_to_4_are_in_the_csv_and_no_others():
    lines = PAPER.read_text(encoding="utf-8").splitlines()
    frame = published()
    for table in TABLES:
        start = next(i for i, line in enumerate(lines) if line.startswith(f"{table}."))
        body = []
        for line in lines[start + 1 :]:
            if line.startswith("|"):
                body.append([text.strip() for text in line.strip("| ").split("|")])
            elif body:
                break
        printed = []
        for row in body:
            for place, text in enumerate(row[1:]):
                if found := re.search(r"([\d.]+)\s*\\pm\s*([\d.]+)", text):
                    printed.append((row[0], place, *found.groups()))
        printed += [("", i, number, None) for i, number in enumerate(re.findall(r"([\d.]+)%", lines[start]))]
        own = frame[frame["table"] == table]
        ours = [(r.printed, None if pd.isna(r.printed_spread) else r.printed_spread) for r in own.itertuples()]
        assert sorted(ours, key=str) == sorted(((m, s) for _, _, m, s in printed), key=str)
        # Each stands in its own row and under its own optimiser, not only somewhere.
        by_place = {(row, place): number for row, place, number, _ in printed if row}
        for r in own[own["optimiser"].notna()].itertuples():
            parts = r.cell.split(" / ")
            place = ["SGD", "SAM", "ASAM", "FSAM"].index(parts[-1]) + (4 if "CIFAR-100" in parts else 0)
            assert by_place[parts[0], place] == r.printed


@pytest.mark.skipif(not PAPER.exists(), reason=f"the paper's text is not at {PAPER}")
def test_the_settings_of_the_csv_are_in_the_text():
    text = PAPER.read_text(encoding="utf-8")
    for said in (
        "momentum 0.9, weight decay 0.0005, initial learning rate 0.1", "for up to 200 epochs (400 for SGD) with batch "
        "size 128", "batch size 256, initial learning rate 0.05 trained up to 900 epochs (1800 for SGD)",
        "0.2322 seconds (SAM), 0.2334 seconds (FSAM)", "from 0.1 to 5.0", "corruption levels 20, 40, 60, and 80%",
        r"\{0.01, 0.05, 0.1, 0.5, 1.0\} \times \{10^{-4}, 10^{-3}, 10^{-2}, 10^{-1}, 1.0, 10\}",
        r"ASAM ($\gamma = 1.0, \eta = 0.01$), and FSAM ($\gamma = 0.5, \eta = 0.1$)", "weight decay 0.05, initial",
    ):  # fmt: skip
        assert said in text
    # Nothing in the text explains ± or counts the runs of a mean, which is what the CSV says of every row.
    assert not re.search(r"standard (deviation|error)|confidence interval|\d+ (runs|trials|repetitions|seeds)", text)


def test_the_csv_is_typed_whole_and_says_what_is_not_said():
    frame = published()
    assert frame["table"].value_counts().to_dict() == {
        "Table 1": 64, "Table 2": 10, "Table 3": 12, "Table 4": 16, "Figure 4": 6, "Figure 5": 30, "Section 5.7": 2,
    }  # fmt: skip
    assert not frame.duplicated(["table", "cell"]).any()
    assert set(frame["spread_is"].dropna()) == {"not said"}
    assert (frame["spread"].notna() == frame["spread_is"].notna()).all()
    assert frame["n"].isna().all()
    figures = frame["table"].str.startswith("Figure")
    assert frame.loc[figures, "mean"].isna().all()
    assert frame.loc[~figures, "mean"].notna().all()
    accuracies = frame[(frame["unit"] == "%") & ~figures]
    assert [f"{100 * m:.2f}" for m in accuracies["mean"]] == accuracies["printed"].tolist()
    numbers = [c for c in ("gamma", "eta", "alpha", "lr", "weight_decay", "spread") if c in frame]
    assert all(frame[c].dtype == "float64" for c in numbers)
    assert frame["epochs"].dtype == frame["batch_size"].dtype == "Int64"
    settings_ = set(frame) - {"table", "section", "cell", "metric", "mean", "spread", "n", "spread_is", "alpha"}
    assert settings_ - {"printed", "printed_spread", "unit", "assumed", "note"} <= set(RECIPE_FIELDS)


def test_whoever_changes_the_frame_changes_only_his_own():
    mine = published()
    mine["mean"] = 0.0
    assert published()["mean"].max() > 0.9


def test_the_counts_of_training_images_are_those_that_are_trained_on():
    from trainables.data import DATASETS

    assert {name: DATASETS[name].train for name in TRAIN_IMAGES} == TRAIN_IMAGES
    assert set(published()["dataset"]) == set(TRAIN_IMAGES)


# -- the studies of the paper ------------------------------------------------------------------------------------------

STUDIES = ("table1_cifar10", "table1_cifar100", "table2_imagenet", "table3_transfer", "table4_label_noise")


def test_every_number_of_tables_1_to_4_is_matched_by_one_planned_cell_and_each_difference_is_true():
    parts = []
    for name in STUDIES:
        frame = planned(name)
        for metric in ("test_accuracy", "test_top5_accuracy"):
            parts.append(beside(cells(frame, metric)).assign(study=name))
    out = pd.concat(parts)
    numbers = published()
    numbers = numbers[numbers["table"].isin(TABLES)]
    found = out.groupby(["table", "paper_cell"]).size()
    assert set(found.index) == set(zip(numbers["table"], numbers["cell"], strict=True))
    assert (found == 1).all()
    assert out.set_index("study")["comparable"].groupby("study").all().to_dict() == {
        "table1_cifar10": True, "table1_cifar100": True, "table2_imagenet": True, "table3_transfer": True,
        "table4_label_noise": False,
    }  # fmt: skip
    # Table 4 says nothing of its training. The study takes crops and flips and 200 epochs for SGD too; section 5.1, the
    # only other word, has AutoAugment, Cutout and 400.
    last = out[out["study"] == "table4_label_noise"]
    plain = "augmentation crop+flip, without autoaugment and cutout (section 5.1's)"
    for row in last.itertuples():
        longer = "; epochs 200 instead of 400 (section 5.1's)" if row.optimiser == "sgd" else ""
        assert row.why_not == plain + longer


def test_table_4_trained_as_in_section_5_1_is_comparable():
    frame = planned("table4_label_noise")
    frame["augmentation"] = "crop+flip+autoaugment+cutout"
    frame.loc[frame["optimiser"] == "sgd", "epochs"] = 400
    assert beside(cells(frame))["comparable"].all()


def test_the_grid_of_figure_5_stands_beside_table_1_at_the_papers_point_and_is_not_comparable():
    out = beside(cells(planned("figure5_sensitivity"))).set_index("optimiser")
    assert (out.loc["fsam", "gamma"], out.loc["fsam", "eta"], out.loc["sam", "gamma"]) == (0.1, 1.0, 0.1)
    assert out.loc["fsam", "chosen_by"] == "the paper's gamma and eta, of 30 cells"
    assert (out["why_not"].str.contains("augmentation none, without autoaugment and cutout")).all()


# -- matching ----------------------------------------------------------------------------------------------------------


def test_ours_the_papers_and_their_difference():
    values = [0.970, 0.974, 0.975]
    row = beside(cells(pd.DataFrame(rows_of("a", values)))).iloc[0]
    assert (row["table"], row["paper_cell"]) == ("Table 1", "WRN-28-10 / CIFAR-10 / FSAM")
    assert (row["n"], row["paper_mean"], row["paper_spread"]) == (3, 0.9789, 0.0007)
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["std"] == pytest.approx(np.std(values, ddof=1))
    assert row["difference"] == pytest.approx(np.mean(values) - 0.9789)
    half = stats.t.ppf(0.975, 2) * np.sqrt(np.var(values, ddof=1) / 3 + 0.0007**2)
    assert row["difference_high"] - row["difference"] == pytest.approx(half)
    assert row["assumes"] == BOUND
    assert row["comparable"]
    assert "validation_size 1000" in row["left_open"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"epochs": 8}, "epochs 8 instead of 200"),
        ({"gamma": 0.5}, "gamma 0.5 instead of 0.1"),
        ({"eta": 10.0}, "eta 10 instead of 1"),
        ({"batch_size": 64}, "batch_size 64 instead of 128"),
        ({"lr": 0.05}, "lr 0.05 instead of 0.1"),
        ({"weight_decay": 1e-4}, "weight_decay 0.0001 instead of 0.0005"),
        ({"base": "adam", "momentum": None}, "base adam instead of sgd; momentum none instead of 0.9"),
        ({"schedule": "constant"}, "schedule constant instead of cosine"),
        ({"label_smoothing": 0.0}, "label_smoothing 0 instead of 0.1"),
        ({"train_size": 2000}, "train_size 2000 instead of 50000"),
        ({"validation_size": 5001}, "validation_size 5001, above a tenth of the 50000 training images"),
        ({"test_size": 500}, "test_size 500 instead of all"),
        ({"augmentation": "crop+flip"}, "augmentation crop+flip, without autoaugment and cutout"),
        ({"augmentation": ""}, "augmentation none, without autoaugment and cutout"),
        ({"augmentation": "flip+cutout"}, "augmentation flip+cutout, without autoaugment"),
        ({"pretrained": "hub:x"}, "pretrained weights"),
        ({"m": 32}, "m 32 instead of the whole batch"),
        ({"natural_gradient": True}, "natural gradient instead of the plain one"),
        ({"fisher": "per_example"}, "fisher per_example instead of gradient_magnitude"),
        ({"validation_size": 5000}, ""),
        ({"precision": "bfloat16"}, ""),
    ],
    ids=lambda v: v if isinstance(v, str) else "+".join(v),
)
def test_each_setting_that_differs_is_named_and_nothing_else(changed, said):
    row = beside(cells(pd.DataFrame(rows_of("a", [0.9, 0.91], **changed)))).iloc[0]
    assert row["why_not"] == said
    assert row["comparable"] == (not said)
    assert ("precision bfloat16" in row["left_open"]) == ("precision" in changed)


def test_what_a_study_does_not_record_is_not_vouched_for():
    frame = pd.DataFrame(rows_of("a", [0.9, 0.91])).drop(columns=["weight_decay", "lr", "pretrained"])
    row = beside(cells(frame)).iloc[0]
    assert row["why_not"] == "pretrained, lr, weight_decay not recorded"


def test_another_network_stands_for_table_4_and_never_for_table_1():
    noisy = {"label_noise": 0.4, "label_noise_kind": "symmetric", "eta": 0.001}
    frame = pd.DataFrame(
        rows_of("noisy", [0.8, 0.81], model="resnet8", **noisy)
        + rows_of("clean", [0.8, 0.81], model="resnet8")
        + rows_of("cnn", [0.8, 0.81], model="cifar_cnn", **noisy)
        + rows_of("rate", [0.8, 0.81], model="resnet32", **(noisy | {"label_noise": 0.3}))
    )
    out = beside(cells(frame))
    assert out[["cell", "paper_cell", "why_not"]].values.tolist() == [
        ["noisy", "0.4 / FSAM", "model resnet8 instead of resnet32"]
    ]


def test_the_papers_gamma_and_eta_stand_before_the_best_by_validation_and_this_before_the_best_by_test():
    rows = rows_of("paper", [0.90, 0.90], [0.90, 0.90])
    rows += rows_of("valid", [0.91, 0.91], [0.99, 0.99], gamma=0.05)
    rows += rows_of("lucky", [0.99, 0.99], [0.91, 0.91], gamma=0.2)
    out = beside(cells(pd.DataFrame(rows))).iloc[0]
    assert (out["cell"], out["chosen_by"]) == ("paper", "the paper's gamma and eta, of 3 cells")
    out = beside(cells(pd.DataFrame(rows[2:]))).iloc[0]
    assert (out["cell"], out["chosen_by"]) == ("valid", "validation, of 2 cells")
    assert out["why_not"] == "gamma 0.05 instead of 0.1"
    # Having the paper's gamma alone is no merit: the two are one choice.
    half = rows[2:4] + rows_of("gamma", [0.92, 0.92], [0.92, 0.92], eta=10.0)
    half += rows_of("neither", [0.90, 0.90], [0.999, 0.999], gamma=0.5, eta=10.0)
    assert beside(cells(pd.DataFrame(half))).iloc[0]["cell"] == "neither"
    # Of cells at the paper's point the nearest in the rest.
    rows += rows_of("longer", [0.99, 0.99], [0.999, 0.999], epochs=300)
    out = beside(cells(pd.DataFrame(rows))).iloc[0]
    assert out["cell"] == "paper"
    assert out["chosen_by"] == "the paper's gamma and eta, then fewest other differences, of 4 cells"


def test_an_arm_at_another_gamma_gives_way_to_one_at_the_papers():
    rows = rows_of("sam", [0.9], arm="sam", optimiser="sam", gamma=0.05, eta=None, fisher=None)
    rows += rows_of("matched", [0.95], arm="sam_matched", optimiser="sam", gamma=0.1, eta=None, fisher=None)
    assert beside(cells(pd.DataFrame(rows)))["arm"].tolist() == ["sam"]
    alone = beside(cells(pd.DataFrame(rows[1:])))
    assert alone["why_not"].tolist() == ["gamma 0.1 instead of 0.05"]


@pytest.mark.parametrize("status", ["stopped", "diverged", "failed", "running", "missing"])
def test_a_cell_without_a_result_is_shown_and_not_compared(status):
    frame = pd.DataFrame(rows_of("a", [0.97, 0.98], status=status)).assign(epoch=3.0)
    row = beside(cells(frame)).iloc[0]
    assert row["n"] == 0
    assert row[["mean", "std", "difference", "difference_low", "difference_high"]].isna().all()
    ended = status in ("stopped", "diverged", "failed")
    assert row["why_not"] == (f"{status} at epoch 3" if ended else "")
    assert row["comparable"] == (not ended)


def test_the_survivors_of_a_diverged_cell_are_not_beside_the_paper():
    rows = [*rows_of("a", [0.97, 0.98]), rows_of("a", [0.97] * 3, status="diverged")[2]]
    row = beside(cells(pd.DataFrame(rows))).iloc[0]
    assert (row["status"], row["n"]) == ("diverged", 0)
    assert np.isnan(row["difference"])


def test_other_data_and_other_metrics_match_nothing(golden):
    assert beside(cells(golden)).empty
    assert list(beside(cells(golden))) == list(beside(cells(pd.DataFrame(rows_of("a", [0.9])))))
    frame = pd.DataFrame(rows_of("a", [0.9])).assign(test_loss=0.3)
    assert beside(cells(frame, "test_loss")).empty


def test_top_5_and_the_network_before_training_stand_beside_table_2():
    frame = planned("table2_imagenet").assign(status="complete", epoch=3.0, validation_accuracy=0.9)
    frame["test_accuracy"] = 0.82 + 0.001 * frame["seed"]
    frame["test_top5_accuracy"] = 0.95 + 0.001 * frame["seed"]
    out = beside_study(frame, cells(frame)).set_index("paper_cell")
    assert len(out) == 10
    assert out.loc["Top-5 / FSAM", "difference"] == pytest.approx(0.951 - 0.9590)
    assert out.loc["Top-1 / before extra-training", "arm"] == "before"
    assert np.isnan(out.loc["Top-1 / before extra-training", "difference_low"])  # the paper has no ± for it
    assert out.loc["Top-1 / SGD", "arm"] == "sgd"


# -- the interval ------------------------------------------------------------------------------------------------------

spreads = st.floats(1e-4, 0.05)


@settings(max_examples=60, deadline=None)
@given(
    mean=st.floats(0.1, 0.9),
    paper=st.floats(0.1, 0.9),
    std=spreads,
    spread=spreads,
    n=st.integers(2, 9),
    m=st.integers(2, 9),
)
def test_with_the_papers_n_the_interval_is_welchs(mean, paper, std, spread, n, m):
    low, high, assumes = difference_interval([mean - paper], [std], [n], [spread], [m])
    # Samples of exactly these moments, for SciPy's own interval.
    a, b = (np.asarray(_with_moments(*x)) for x in ((mean, std, n), (paper, spread, m)))
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert assumes == [WELCH]


def _with_moments(mean, std, n):
    values = np.arange(n, dtype=float)
    return mean + std * (values - values.mean()) / values.std(ddof=1)


@settings(max_examples=60, deadline=None)
@given(std=spreads, spread=spreads, n=st.integers(2, 9), m=st.integers(1, 9))
def test_without_it_the_interval_is_no_narrower_than_any_reading_of_the_spread(std, spread, n, m):
    low, high, assumes = difference_interval([0.0], [std], [n], [spread], [np.nan])
    t = stats.t.ppf(0.975, n - 1)
    for error in (spread / np.sqrt(m), spread, spread / 1.96):
        assert high[0] >= t * np.sqrt(std**2 / n + error**2) - 1e-12
    assert low[0] == -high[0]
    assert high[0] >= stats.t.interval(0.95, n - 1, 0, std / np.sqrt(n))[1]
    assert assumes == [BOUND]


def test_there_is_no_interval_of_one_seed_or_without_a_spread():
    low, high, assumes = difference_interval(
        [0.1] * 3, [np.nan, 0.1, 0.1], [1, 3, 3], [0.1, np.nan, 0.1], [np.nan, np.nan, 1]
    )
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    assert assumes == ["", "", ""]


# -- the report --------------------------------------------------------------------------------------------------------


def _text(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).replace("&#x27;", "'").split())


def test_the_report_has_a_section_where_a_number_matches_and_only_there(tmp_path, golden_reader):
    sgd = {"arm": "sgd", "optimiser": "sgd", "gamma": None, "eta": None, "fisher": None, "epochs": 8}
    rows = rows_of("a", [0.970, 0.974, 0.975]) + rows_of("b", [0.96, 0.961, 0.962], **sgd)
    reader = FakeReader(pd.DataFrame(rows), spec={"name": "wrn"})
    page = write_report(reader, tmp_path / "wrn").html.read_text(encoding="utf-8")
    text = _text(page[page.index('<section id="published">') :])
    assert "in 1 of 2 rows every setting that the paper states is the same" in text
    assert "2 numbers of Table 1 have a cell of this study beside them" in text
    assert "WRN-28-10 / CIFAR-10 / FSAM yes 97.30 ± 0.26 (n=3) 97.89 ± 0.07 -0.59 [" in text
    assert "] fsam, gamma 0.1, eta 1 What the paper does not say" in text
    assert "WRN-28-10 / CIFAR-10 / SGD no 96.10 ± 0.10 (n=3) 97.12 ± 0.10 -1.02 [" in text
    assert "] sgd: epochs 8 instead of 400 WRN" in text
    assert "Over how many runs a mean is taken" in text
    written = pd.read_csv(tmp_path / "wrn" / "tables" / "beside_the_paper.csv")
    assert written["comparable"].tolist() == [False, True]
    other = write_report(golden_reader, tmp_path / "digits")
    assert 'id="published"' not in other.html.read_text(encoding="utf-8")
    assert "beside_the_paper" not in " ".join(p.name for p in (tmp_path / "digits").rglob("*"))


def test_ten_thousand_cells_are_put_beside_the_paper_in_seconds():
    import time

    gammas, etas = np.geomspace(0.01, 1, 100), np.geomspace(1e-4, 10, 100)
    frame = figure_five(seeds=1, gammas=gammas, etas=etas).assign(**WRN)
    table = cells(frame)
    begin = time.process_time()  # of this process: the machine may be shared
    out = beside(table)
    assert time.process_time() - begin < 10
    assert len(table) > 10_000
    assert set(out["optimiser"]) == {"fsam", "sam", "sgd"}


def test_importing_it_brings_neither_torch_nor_ray_nor_the_study():
    import subprocess
    import sys

    code = (
        "import sys, analysis.published, analysis.latex\n"
        "heavy = {'torch', 'ray', 'study', 'trainables', 'scipy.stats', 'sklearn', 'optuna', 'matplotlib.pyplot'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ})
    assert out.stdout.strip() == "[]", out.stderr
