import time

import numpy as np
import pandas as pd
import pytest
from made_study import TABLE_ONE_ARMS, FakeReader, by_condition, figure_five, history_of, replicate
from scipy import stats

from analysis.compare import marked
from analysis.conditions import alike, also, chosen, differences
from analysis.conditions import by_condition as groups
from analysis.figures import label_noise, sensitivity
from analysis.findings import read
from analysis.layout import layout
from analysis.report import summary_lines, write_report
from analysis.tables import best_cell, best_cells, cells

MODELS = ("densenet121", "resnet20", "resnet56", "vgg19_bn", "resnext29_32x4d", "wrn28_2", "wrn28_10", "pyramidnet272")
TABLE_ONE = {"grid": {"model": list(MODELS)}, "arms": TABLE_ONE_ARMS}


def table_one(**kwargs):
    """Table 1, where PyramidNet-272 has a batch size and a learning rate of its own."""
    odd = [m == "pyramidnet272" for m in MODELS]
    extra = {"batch_size": [256 if o else 128 for o in odd], "lr": [0.05 if o else 0.1 for o in odd]}
    return by_condition("model", MODELS, **extra, **kwargs)


def noise_and_gamma(gammas=(0.05, 0.1, 0.5), rates=(0.0, 0.4)):
    rows = []
    for rate in rates:
        for gamma in gammas:
            for seed in range(3):
                # The best gamma grows with the rate.
                best = 0.05 if rate == 0 else 0.5
                accuracy = 0.9 - rate / 2 - 0.05 * abs(np.log10(gamma / best)) + 0.003 * seed
                noise = {"label_noise": rate, "memorised": None if rate == 0 else 0.3, "recovered": None}
                own = {"arm": "sam", "optimiser": "sam", "gamma": gamma, "eta": None}
                values = {"validation_accuracy": accuracy, "test_accuracy": accuracy - 0.01 + 0.001 * seed * gamma}
                rows.append(replicate(f"{rate}-{gamma}", seed, **own, **noise, **values))
    return pd.DataFrame(rows)


NOISE_SPEC = {"grid": {"label_noise": [0.0, 0.4], "gamma": [0.05, 0.1, 0.5]}, "arms": {"sam": {}}}


def test_what_follows_from_the_crossed_setting_makes_no_axis():
    shape = layout(cells(table_one()), ["model"])
    assert (shape.kind, shape.x, shape.factors, shape.conditions) == ("line", "model", ("model",), ("model",))
    assert len(shape.panels) == 1


def test_best_cells_are_each_groups_best_cell(golden):
    table = cells(golden)
    for by in (["arm"], ["gamma"], ["arm", "gamma"]):
        expected = [best_cell(rows) for _, rows in table.groupby(by, dropna=False)]
        assert set(best_cells(table, by)["cell"]) == {b["cell"] for b in expected if b is not None}
    assert best_cells(table, [])["cell"].tolist() == [best_cell(table)["cell"]]


def test_under_each_condition_validation_chooses_and_test_does_not():
    frame = noise_and_gamma()
    lucky = (frame["label_noise"] == 0.4) & (frame["gamma"] == 0.1)
    frame.loc[lucky, "test_accuracy"] = 0.99
    choice = chosen(cells(frame), ["label_noise"]).set_index("label_noise")
    assert choice["gamma"].to_dict() == {0.0: 0.05, 0.4: 0.5}
    assert choice["cells_planned"].tolist() == [3, 3]


def test_a_cell_that_is_not_complete_is_kept_with_its_status_and_never_chosen():
    frame = table_one(
        statuses={("sam", "resnet20"): "diverged", ("fsam", "resnet20"): ("complete", "complete", "missing")}
    )
    choice = chosen(cells(frame), ["model"])
    assert len(choice) == len(MODELS) * len(TABLE_ONE_ARMS)
    here = choice[choice["model"] == "resnet20"].set_index("arm")
    assert here["status"].to_dict() == {
        "sgd": "complete", "sam": "diverged", "asam": "complete", "fsam": "partial", "sam_matched": "complete",
    }  # fmt: skip
    assert here["cells_complete"].to_dict() == {"sgd": 1, "sam": 0, "asam": 1, "fsam": 0, "sam_matched": 1}
    compared = differences(frame, choice, ["model"])
    assert "resnet20" not in set(compared["model"])


def test_differences_are_paired_t_tests_of_fisher_sam_against_every_arm_of_the_same_condition():
    frame = table_one()
    out = differences(frame, chosen(cells(frame), ["model"]), ["model"])
    assert len(out) == len(MODELS) * 4
    wide = frame.pivot(index="seed", columns="cell", values="test_accuracy")
    for row in out.itertuples():
        assert (row.cell_a, row.cell_b) == (f"fsam-{row.model}", f"{row.arm_b}-{row.model}")
        test = stats.ttest_rel(wide[row.cell_a], wide[row.cell_b])
        assert (row.low, row.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
        assert row.n == 3
    assert (out["p_holm"] >= out["p"]).all()


def test_two_fisher_arms_are_compared_with_each_other_once():
    arms = {"eq12": {"optimiser": "fsam"}, "eq11": {"optimiser": "fsam"}, "sam": {"optimiser": "sam"}}
    frame = by_condition("model", ("resnet20",), arms=arms)
    out = differences(frame, chosen(cells(frame), []), [])
    assert list(zip(out["arm_a"], out["arm_b"], strict=True)) == [("eq12", "eq11"), ("eq12", "sam"), ("eq11", "sam")]


def test_further_results_are_those_of_the_chosen_cells_and_absent_where_not_recorded():
    frame = noise_and_gamma()
    choice = chosen(cells(frame), ["label_noise"])
    out = also(frame, choice, ["memorised", "recovered", "test_top5_accuracy"])
    assert out["metric"].tolist() == ["memorised"]
    assert (out["label_noise"].item(), out["gamma"].item(), out["mean"].item()) == (0.4, 0.5, pytest.approx(0.3))


def test_conditions_that_are_numbers_ascend_and_names_keep_the_studys_order():
    frame = by_condition("label_noise", (0.8, 0.0, 0.4))
    assert [v["label_noise"] for v, _ in groups(chosen(cells(frame), ["label_noise"]), ["label_noise"])] == [
        0.0,
        0.4,
        0.8,
    ]
    named = chosen(cells(table_one()), ["model"])
    assert [v["model"] for v, _ in groups(named, ["model"])] == list(MODELS)


def test_best_is_marked_once_for_each_condition_and_its_equals_belong_to_it():
    frame = table_one()
    table = marked(frame, within=["model"])
    assert table.groupby("model")["best"].sum().tolist() == [1] * len(MODELS)
    alone = pd.concat(marked(rows) for _, rows in frame.groupby("model"))
    merged = table.set_index("cell")["indistinguishable"]
    assert merged.to_dict() == alone.set_index("cell")["indistinguishable"].to_dict()


def test_gammas_as_good_as_the_chosen_one_are_told_by_the_paired_test():
    frame = noise_and_gamma()
    table = cells(frame)
    choice = chosen(table, ["label_noise"])
    out = alike(frame, table, choice, ["label_noise"])
    assert set(out["cell"]) == set(table["cell"]) - set(choice["cell"])
    assert not out["indistinguishable"].any()  # the seeds share their luck: the gammas' differences are exact
    luck = np.random.default_rng(0).normal(0, 0.2, len(frame))
    noisy = frame.assign(test_accuracy=frame["test_accuracy"] + luck)
    assert alike(noisy, cells(noisy), choice, ["label_noise"])["indistinguishable"].all()


def test_models_are_points_and_an_arm_of_one_model_stands_at_it():
    frame = table_one()
    frame = frame[(frame["arm"] != "sam_matched") | (frame["model"] == "pyramidnet272")]
    ax = sensitivity(marked(frame, within=["model"]), "model", everywhere=False)
    lines = {c.get_label(): c.lines[0] for c in ax.containers}
    assert len(lines["fsam (n=3)"].get_xdata()) == len(MODELS)
    assert lines["fsam (n=3)"].get_linestyle() == "None"
    (at,) = lines["sam_matched (n=3)"].get_xdata()
    assert round(at) == MODELS.index("pyramidnet272")
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert len(labels) == len(set(labels))


def test_table_one_has_a_row_a_model_a_column_an_arm_and_says_what_is_missing(tmp_path):
    frame = table_one(
        statuses={("sam", "resnet20"): "stopped", ("asam", "wrn28_2"): ("complete", "missing", "missing")}
    )
    reader = FakeReader(frame, history_of(frame), spec=TABLE_ONE)
    report = write_report(reader, tmp_path)
    text = report.html.read_text()
    section = text[text.index('id="conditions"') : text.index('id="paired"')]
    section = section[section.index("<table>") :]
    assert section.index("densenet121") < section.index("pyramidnet272")
    assert "<td>stopped, epoch 3</td>" in section
    assert "(n=1), 3 planned" in section
    assert "fsam − sam_matched" in section
    assert set(report.figures) >= {"sensitivity", "learning_curves"}
    assert {"by_condition.csv", "differences.csv"} <= set(report.tables)
    lines = summary_lines(reader)
    assert sum(line.startswith("test accuracy at model ") for line in lines) == len(MODELS)
    assert not any(line.startswith("best cell") for line in lines)
    at = next(i for i, line in enumerate(lines) if "resnet20" in line)
    block = lines[at + 1 : at + 2 + len(TABLE_ONE_ARMS)]
    assert "  sam          not complete: stopped at epoch 3" in block
    assert block[-1].startswith("  fsam minus sam_matched at gamma 0.1: ")
    assert max(map(len, lines[2:])) <= 100


def test_label_noise_is_drawn_with_what_is_memorised_and_the_gamma_that_each_rate_needs(tmp_path):
    frame = noise_and_gamma()
    reader = FakeReader(frame, spec=NOISE_SPEC)
    found = read(reader)
    outcomes = also(frame, found.choice, ["test_accuracy", "memorised", "recovered"])
    figure = label_noise(outcomes, ["sam"], alike=alike(frame, found.cells, found.choice, ["label_noise"]))
    assert [ax.get_ylabel().split("\n")[0] for ax in figure.axes] == [
        "test accuracy (%)", "wrong labels memorised (%)", "gamma chosen by validation",
    ]  # fmt: skip
    drawn = {line.get_gid(): line for ax in figure.axes for line in ax.lines}
    assert list(drawn["test_accuracy:sam"].get_xdata()) == [0, 40]
    assert list(drawn["memorised:sam"].get_xdata()) == [40]
    assert list(drawn["gamma:sam"].get_ydata()) == [0.05, 0.5]
    report = write_report(reader, tmp_path)
    assert {"label_noise", "heatmap"} <= set(report.figures)
    assert ", gamma 0.5</td>" in report.html.read_text()


def test_fisher_sam_and_sam_are_compared_at_no_noise_although_its_kind_is_unused_there():
    frame = by_condition("label_noise", (0.0, 0.4), label_noise_kind=(None, "symmetric"))
    pairs = read(FakeReader(frame, spec={"grid": {"label_noise": [0.0, 0.4]}})).pairs
    assert pairs["label_noise"].tolist() == [0.0, 0.4]
    assert set(zip(pairs["arm_a"], pairs["arm_b"], strict=True)) == {("fsam", "sam_matched")}


def test_each_fisher_arm_is_compared_with_sam_by_its_own_cells():
    parts = []
    for arm, gain in (("eq12", 0.0), ("eq11", 0.05)):
        part = figure_five(gammas=(0.1, 0.5), etas=(1.0, 10.0))
        part = part[part["arm"] == "fsam"] if parts else part
        mine = part["arm"] == "fsam"
        part.loc[mine, ["test_accuracy", "validation_accuracy"]] += gain
        parts.append(part.assign(cell=part["cell"] + arm, arm=part["arm"].replace("fsam", arm)))
    frame = pd.concat(parts, ignore_index=True)
    reader = FakeReader(frame, spec={"grid": {"gamma": [0.1, 0.5], "eta": [1.0, 10.0]}})
    pairs = read(reader).pairs
    assert len(pairs) == 4
    of = pairs.groupby("arm_a")["difference"].mean()
    assert of["eq11"] - of["eq12"] == pytest.approx(0.05, abs=0.02)
    text = "\n".join(summary_lines(reader))
    assert "eq12 minus sam, gamma" in text
    assert "eq11 minus sam, gamma" in text
    assert "Fisher SAM minus SAM" not in text
    for arm in ("eq12", "eq11", "sam", "sgd"):
        assert f"best of {arm}: test " in text


def test_the_pages_summary_leaves_arms_to_their_table_and_the_terminal_names_them(tmp_path):
    frame = by_condition("model", ("resnet34",))
    reader = FakeReader(frame, spec={"grid": {}})
    text = write_report(reader, tmp_path).html.read_text()
    summary = text[text.index('id="summary"') : text.index('id="references"')]
    assert "sgd: test" not in summary
    assert "Fsam minus" not in summary
    assert "<td>fsam − sam_matched</td>" in text[text.index('id="paired"') :]
    lines = summary_lines(reader)
    assert [line.split(":")[0] for line in lines if ": test " in line and "best cell" not in line] == list(
        TABLE_ONE_ARMS
    )
    assert any(line.startswith("fsam minus sam_matched, gamma 0.1: ") for line in lines)


def test_a_reference_on_both_axes_stands_beside_the_map_and_not_on_its_pixels(tmp_path):
    frame = figure_five(seeds=2)
    asam = [replicate("asam", s, arm="asam", optimiser="asam", gamma=0.5, eta=0.01) for s in range(2)]
    frame = pd.concat([frame, pd.DataFrame(asam)], ignore_index=True)
    report = write_report(FakeReader(frame), tmp_path)
    assert "heatmap" in report.figures
    assert "asam has eta 0.01, gamma 0.5 of its own." in report.html.read_text()


def test_top_five_stands_beside_the_test_accuracy_where_it_was_recorded(tmp_path):
    frame = by_condition("model", ("deit_b",)).assign(test_top5_accuracy=0.987)
    text = write_report(FakeReader(frame, spec={"grid": {}}), tmp_path / "with").html.read_text()
    assert "test accuracy, top 5" in text
    assert "98.7 % (n=3, all equal)" in text
    plain = write_report(FakeReader(frame.drop(columns="test_top5_accuracy"), spec={"grid": {}}), tmp_path / "without")
    assert "top 5" not in plain.html.read_text()


def test_an_arm_of_no_epochs_is_reported_with_its_accuracy(tmp_path):
    frame = by_condition("model", ("deit_b",))
    before = frame["arm"] == "sgd"
    frame.loc[before, "arm"] = "before"
    frame.loc[before, ["epoch", "epochs", "train_loss", "gradient_evaluations", "train_seconds"]] = [
        0,
        0,
        np.nan,
        0,
        0.0,
    ]
    history = history_of(frame[~before])
    start = [
        {"cell": "sgd-deit_b", "arm": "before", "seed": s, "epoch": 0, "validation_accuracy": 0.9} for s in range(3)
    ]
    reader = FakeReader(frame, pd.concat([history, pd.DataFrame(start)]), spec={"grid": {}})
    write_report(reader, tmp_path)
    assert any(line.startswith("before: test ") for line in summary_lines(reader))


def test_a_thousand_cells_under_hundreds_of_conditions_take_seconds():
    arms = {a: {"optimiser": a, "gamma": 0.1 if a != "sgd" else None, "eta": None} for a in ("sgd", "sam", "fsam")}
    frame = by_condition("label_noise", tuple(np.linspace(0, 0.8, 300)), arms=arms, seeds=2)
    start = time.perf_counter()
    found = read(FakeReader(frame, spec={"grid": {"label_noise": [0]}}), curves_too=False)
    assert len(found.differences) == 600
    assert time.perf_counter() - start < 10


def test_arms_under_other_conditions_are_not_compared():
    """An arm with label noise of its own learns something else."""
    rows = [replicate("a", s, arm="sgd", optimiser="sgd", label_noise=0.0) for s in range(3)]
    rows += [replicate("b", s, arm="fsam_noisy", optimiser="fsam", label_noise=0.4) for s in range(3)]
    frame = pd.DataFrame(rows)
    assert differences(frame, chosen(cells(frame), []), []).empty
    alike = frame.assign(label_noise=0.4)
    assert len(differences(alike, chosen(cells(alike), []), [])) == 1


def test_further_results_of_a_cell_that_diverged_are_not_those_of_its_survivors():
    rows = [replicate("a", s, arm="sgd", optimiser="sgd", memorised=0.1 * s) for s in range(2)]
    rows += [replicate("a", 2, "diverged", arm="sgd", optimiser="sgd")]
    frame = pd.DataFrame(rows)
    assert also(frame, chosen(cells(frame), []), ["memorised"]).empty
    assert len(also(frame.iloc[:2], chosen(cells(frame.iloc[:2]), []), ["memorised"])) == 1
