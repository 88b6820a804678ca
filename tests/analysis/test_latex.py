import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_study import TABLE_ONE_ARMS, by_condition, replicate
from scipy import stats

from analysis.latex import escape, table
from analysis.tables import cells

ARMS = {name: TABLE_ONE_ARMS[name] for name in ("sgd", "sam", "asam", "fsam")}
NUMBER = re.compile(r"^\$(\\mathbf\{)?([\d.]+)\}?(\^\{\\dagger\})?(?:_\{\\pm ([\d.]+)\})?\$(?: \(n=(\d+)\))?$")


class Tabular:
    """What LaTeX would read: environments balanced, every line as wide as the columns declared."""

    def __init__(self, text):
        stack = []
        for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
            if kind == "begin":
                stack.append(name)
            else:
                assert stack.pop() == name
        assert not stack
        bare = re.sub(r"\\[\\{}%&$#_]", "", text)
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert "%" not in bare, "a comment would swallow the rest of the line"
        assert "#" not in bare
        # _ and ^ only within mathematics.
        assert not re.search(r"[_^]", re.sub(r"\$[^$]*\$", "", bare.replace(r"\label{tab:x_1}", "")))
        self.columns = re.search(r"\\begin\{tabular\}\{([lc]+)\}", text)[1]
        self.caption = re.search(r"\\caption\{(.*)\}\n", text)[1]
        self.note = re.search(r"\\footnotesize (.*)\}\n", text)[1]
        inside = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
        head, body = inside.split(r"\midrule")
        self.head = [self._cells(line) for line in head.splitlines() if line.endswith(r"\\")]
        self.rules = re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", head)
        self.rows = [self._cells(line) for line in body.splitlines() if line.endswith(r"\\")]
        for line in (*self.head, *self.rows):
            assert sum(width for _, width in line) == len(self.columns)
        self.rows = [[text for text, _ in line] for line in self.rows]

    @staticmethod
    def _cells(line):
        found = []
        for part in re.split(r"(?<!\\)&", line.removesuffix(r"\\")):
            span = re.fullmatch(r"\s*\\multicolumn\{(\d+)\}\{c\}\{(.*)\}\s*", part)
            found.append((span[2], int(span[1])) if span else (part.strip(), 1))
        return found


def noise():
    frame = by_condition("label_noise", (0.8, 0.2, 0.4), ARMS)
    return frame.assign(dataset="cifar10", model="resnet32", label_noise_kind="symmetric")


def two_data_sets():
    """Table 1 as two studies joined, on the same seeds."""
    models = ("densenet121", "resnet20", "pyramidnet272")
    parts = []
    for data in ("cifar10", "cifar100"):
        frame = by_condition("model", models, ARMS).assign(dataset=data)
        parts.append(frame.assign(cell=data + "-" + frame["cell"]))
    return pd.concat(parts, ignore_index=True)


def test_table_1_has_networks_in_rows_and_a_group_of_columns_a_data_set():
    frame = two_data_sets()
    made = Tabular(table(cells(frame), frame, label="tab:x_1"))
    assert made.columns == "lcccccccc"
    assert made.head[0] == [("", 1), ("CIFAR-10", 4), ("CIFAR-100", 4)]
    assert made.rules == [("2", "5"), ("6", "9")]
    assert [text for text, _ in made.head[1]] == ["", *["SGD", "SAM", "ASAM", "FSAM"] * 2]
    assert [row[0] for row in made.rows] == ["DenseNet-121", "ResNet-20", "PyramidNet-272"]


def test_table_4_has_rates_in_ascending_rows_and_its_numbers_are_those_of_the_cells():
    frame = noise()
    cells_ = cells(frame)
    made = Tabular(table(cells_, frame))
    assert [row[0] for row in made.rows] == ["0.2", "0.4", "0.8"]
    assert "Rates" in made.head[0][0]
    for row in made.rows:
        for arm, text in zip(ARMS, row[1:], strict=True):
            own = frame[(frame["arm"] == arm) & (frame["label_noise"] == float(row[0]))]["test_accuracy"]
            found = NUMBER.match(text)
            assert found[2] == f"{100 * own.mean():.2f}"
            assert found[4] == f"{100 * own.std(ddof=1):.2f}"
            assert found[5] is None
    assert "n=3 seeds" in made.caption
    assert "standard deviation" in made.caption


def test_bold_is_the_highest_mean_and_a_dagger_what_the_paired_test_does_not_tell_from_it():
    frame = noise()
    made = Tabular(table(cells(frame), frame))
    daggers = 0
    for row in made.rows:
        own = frame[frame["label_noise"] == float(row[0])].pivot(index="seed", columns="arm", values="test_accuracy")
        best = own.mean().idxmax()
        for arm, text in zip(ARMS, row[1:], strict=True):
            found = NUMBER.match(text)
            assert bool(found[1]) == (arm == best)
            if arm != best:
                low, high = stats.ttest_rel(own[arm], own[best]).confidence_interval(0.95)
                assert bool(found[3]) == (low <= 0 <= high)
                daggers += bool(found[3])
    assert daggers, "the frame has some that cannot be told apart"
    assert "Not told from it" in made.note
    untested = Tabular(table(cells(frame)))
    assert "not tested" in untested.note
    assert "dagger" not in untested.note + str(untested.rows)


def test_means_that_print_alike_are_bold_alike():
    frame = noise()
    one = frame["label_noise"] == 0.2
    for arm in ("sam", "fsam"):
        frame.loc[one & (frame["arm"] == arm), "test_accuracy"] = [0.955, 0.956, 0.957]
    row = Tabular(table(cells(frame), frame)).rows[0]
    assert [bool(NUMBER.match(text)[1]) for text in row[1:]] == [False, True, False, True]


def test_one_seed_tells_nothing_apart_and_says_n_1():
    frame = by_condition("label_noise", (0.2, 0.4), ARMS, seeds=1)
    made = Tabular(table(cells(frame), frame))
    assert "n=1" in made.caption
    for row in made.rows:
        found = [NUMBER.match(text) for text in row[1:]]
        assert all(m[4] is None for m in found)
        assert sum(bool(m[1]) for m in found) == 1
        assert sum(bool(m[3]) for m in found) == 3


def test_what_is_not_complete_says_so_and_a_partial_cell_its_n():
    statuses = {("sam", 0.2): "diverged", ("asam", 0.2): "stopped", ("fsam", 0.2): ("complete", "complete", "missing")}
    frame = by_condition("label_noise", (0.2, 0.4), ARMS, statuses=statuses)
    made = Tabular(table(cells(frame), frame))
    row = made.rows[0]
    assert row[2:4] == ["diverged", "stopped"]
    assert NUMBER.match(row[4])[5] == "2"
    assert NUMBER.match(row[4])[1] is None, "a cell that lacks seeds is not the best"
    assert "n=3 seeds where no other n stands beside it" in made.caption


def test_a_table_of_nothing_trained_is_a_table():
    frame = noise().assign(status="missing", test_accuracy=np.nan, validation_accuracy=np.nan, epoch=np.nan)
    made = Tabular(table(cells(frame), frame))
    assert {text for row in made.rows for text in row[1:]} == {"missing"}
    assert "No cell has a result yet" in made.caption


def test_validation_chooses_among_the_cells_of_an_arm_and_the_note_says_so():
    rows = []
    for gamma, validation, test in ((0.05, 0.90, 0.99), (0.1, 0.95, 0.80)):
        for seed in range(2):
            own = {"gamma": gamma, "validation_accuracy": validation, "test_accuracy": test + 0.001 * seed}
            rows.append(replicate(f"g{gamma}", seed, **own))
    made = Tabular(table(cells(pd.DataFrame(rows))))
    assert [NUMBER.match(t)[2] for t in made.rows[0][1:]] == ["80.05"]
    assert made.rows[0][0] == "test accuracy"
    assert "highest validation accuracy" in made.note


def test_two_metrics_are_two_rows_as_in_table_2():
    frame = by_condition("dataset", ("imagenet",), ARMS).assign(model="deit_b")
    frame["test_top5_accuracy"] = frame["test_accuracy"] + 0.05
    both = pd.concat([cells(frame), cells(frame, "test_top5_accuracy")], ignore_index=True)
    made = Tabular(table(both, frame))
    assert [row[0] for row in made.rows] == ["Top-1", "Top-5"]
    first, second = ([float(NUMBER.match(t)[2]) for t in row[1:]] for row in made.rows)
    assert np.allclose(np.array(second) - first, 5, atol=0.011)


def test_a_loss_has_its_lowest_mean_in_bold_and_four_decimals():
    frame = noise().assign(test_loss=lambda f: 1 - f["test_accuracy"])
    made = Tabular(table(cells(frame, "test_loss"), frame))
    for row in made.rows:
        found = [NUMBER.match(t) for t in row[1:]]
        values = [float(m[2]) for m in found]
        assert found[int(np.argmin(values))][1]
        assert all(len(m[2].split(".")[1]) == 4 for m in found)
        own = frame[frame["label_noise"] == float(row[0])].pivot(index="seed", columns="arm", values="test_loss")
        best = own.mean().idxmin()
        for arm, match in zip(ARMS, found, strict=True):
            if arm != best:
                low, high = stats.ttest_rel(own[arm], own[best]).confidence_interval(0.95)
                assert bool(match[3]) == (low <= 0 <= high)


def test_the_interval_of_the_mean_on_demand():
    frame = noise()
    made = Tabular(table(cells(frame), frame, spread="interval", digits=1))
    own = frame[(frame["arm"] == "sgd") & (frame["label_noise"] == 0.2)]["test_accuracy"]
    half = stats.t.ppf(0.975, 2) * own.std(ddof=1) / np.sqrt(3)
    assert NUMBER.match(made.rows[0][1])[4] == f"{100 * half:.1f}"
    assert r"95\,\% interval" in made.caption


def test_rows_and_groups_may_be_asked_for():
    frame = two_data_sets()
    made = Tabular(table(cells(frame), frame, rows=["dataset", "model"]))
    assert made.columns == "llcccc"
    assert [row[:2] for row in made.rows][3] == ["CIFAR-100", "DenseNet-121"]
    made = Tabular(table(cells(frame), frame, rows=["dataset"], groups="model"))
    assert [text for text, _ in made.head[0]] == ["", "DenseNet-121", "ResNet-20", "PyramidNet-272"]


@pytest.mark.parametrize("named", [{"rows": ["gama"]}, {"groups": "gama"}, {"rows": ["model"], "groups": "model"}])
def test_a_column_that_is_not_there_or_stands_twice_is_refused(named):
    with pytest.raises(ValueError, match="another column"):
        table(cells(two_data_sets()), **named)


def test_no_cells_are_refused():
    with pytest.raises(ValueError, match="no cells"):
        table(cells(noise()).iloc[:0])


def test_the_mathematics_can_be_set():
    from matplotlib.mathtext import MathTextParser

    parser = MathTextParser("path")
    frame = noise()
    for text in re.findall(r"\$[^$]+\$", table(cells(frame), frame)):
        parser.parse(text)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40), st.text(min_size=1, max_size=20))
def test_any_text_becomes_one_line_that_prints_it(caption, arm):
    frame = noise()
    frame["arm"] = frame["arm"].replace("sgd", arm)
    Tabular(table(cells(frame), caption=caption))
    assert "\n" not in escape(caption)


def test_special_characters_are_escaped_and_plain_text_stays():
    assert escape(r"50 % of $x_1$ & {y} #2 ~ a^b \n") == (
        r"50 \% of \$x\_1\$ \& \{y\} \#2 \textasciitilde{} a\textasciicircum{}b \textbackslash{}n"
    )
    assert escape("Fisher SAM, eta 0.1 (n=3)") == "Fisher SAM, eta 0.1 (n=3)"
    assert escape("a\nb\tc") == "a b c"


def test_bold_is_not_said_of_a_partial_cell_and_what_was_not_tested_is_not_called_told_apart():
    rows = [replicate("a", seed, arm="sgd", optimiser="sgd", test_accuracy=v) for seed, v in enumerate((0.95, 0.96))]
    rows += [replicate("b", 0, arm="sam", optimiser="sam", test_accuracy=0.99)]
    rows += [replicate("b", 1, "missing", arm="sam", optimiser="sam")]
    frame = pd.DataFrame(rows)
    note = Tabular(table(cells(frame), frame)).note
    assert "the best mean of the complete cells of its row" in note
    assert "not tested" in note
    assert "told from it (paired" not in note


def test_the_same_difference_in_every_seed_is_said_to_be_no_test():
    rows = [replicate("a", seed, arm="sgd", optimiser="sgd", test_accuracy=0.9 + seed / 50) for seed in range(3)]
    rows += [replicate("b", seed, arm="sam", optimiser="sam", test_accuracy=0.7 + seed / 50) for seed in range(3)]
    frame = pd.DataFrame(rows)
    made = Tabular(table(cells(frame), frame))
    assert sum("dagger" in entry for entry in made.rows[0]) == 1
    assert "or the same difference in all of them" in made.note
