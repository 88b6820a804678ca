"""The report of the golden study, written through the real store: every status told apart, every number recomputed."""

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from golden_study import CONTENT, EPOCHS, FAILURE, RUN, golden, golden_noise, golden_search
from scipy import stats
from test_report import read as read_page

from analysis import figures as draw
from analysis.compare import marked
from analysis.figures.style import STATUS_STYLE
from analysis.report import write_report
from analysis.tables import CELL_STATUSES
from study import records
from study.cli import main
from study.reader import StudyReader
from study.store import StudyFolder


class Tables(HTMLParser):
    """The tables of each section: rows of texts, the head first."""

    def __init__(self, text):
        super().__init__()
        self.section, self.found, self._cell = "", {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "section":
            self.section = dict(attrs)["id"]
        elif tag == "table":
            self.found.setdefault(self.section, []).append([])
        elif tag == "tr":
            self.found[self.section][-1].append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.found[self.section][-1][-1].append(self._cell)
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data


def table_of(report, section, which=0):
    head, *rows = Tables(report.html.read_text()).found[section][which]
    return pd.DataFrame(rows, columns=head)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return StudyReader(golden(tmp_path_factory.mktemp("golden") / "golden"))


@pytest.fixture(scope="module")
def report(study, tmp_path_factory):
    return write_report(study, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def rows(study):
    """The raw rows, not through the reader: the plan with the ends as the records have them."""
    plan = pd.read_parquet(study.folder.path("plan.parquet"))
    ends = pd.concat([pd.read_parquet(p) for p in _pieces(study, "ends")])
    return plan.merge(ends.drop(columns=["trial"]), on=["cell", "seed"], how="left", suffixes=("_plan", ""))


def _pieces(study, kind):
    from pathlib import Path

    return sorted(Path(study.folder.path("records", RUN)).glob(f"{kind}-*.parquet"))


def t_words(values, digits=1):
    """`96.5 ± 0.6 % (n=3)` from the raw values."""
    values = np.array(values, dtype=float)
    if not len(values):
        return "not measured (n=0)"
    text = f"{100 * values.mean():.{digits}f}"
    if len(values) > 1 and np.ptp(values) > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        return f"{text} ± {50 * (high - low):.{digits}f} % (n={len(values)})"
    return f"{text} % (n={len(values)}{', all equal' if len(values) > 1 else ''})"


def expected_status(states, running):
    if "diverged" in states:
        return "diverged"
    if "failed" in states:
        return "failed"
    if states == ["complete"] * len(states):
        return "complete"
    if "stopped" in states:
        return "stopped"
    if running:
        return "running"
    return "partial" if "complete" in states else "missing"


@pytest.fixture(scope="module")
def expected(rows, study):
    """Status and values of each cell by (arm, gamma, eta) as words, by plain loops over the raw rows."""
    trained = pd.concat([pd.read_parquet(p) for p in _pieces(study, "history")])
    begun = set(trained["cell"])
    out = {}
    for cell, own in rows.groupby("cell", sort=False):
        first = own.iloc[0]
        states = list(own["status"].where(own["status"].notna(), None))
        status = expected_status(states, cell in begun and own["status"].isna().all())
        done = own[own["status"] == "complete"]
        key = tuple("–" if pd.isna(v) else f"{v:g}" for v in (first["gamma"], first["eta"]))
        out[(first["arm"], *key)] = {
            "cell": cell,
            "status": status,
            "test": t_words(done["test_accuracy"]),
            "validation": t_words(done["validation_accuracy"]),
            "mean": done["validation_accuracy"].mean(),
            "seeds": f"{len(done)} of {len(own)}",
            "stopped": own[own["status"] == "stopped"],
        }
    return out


def test_the_golden_study_has_every_status(expected):
    assert {e["status"] for e in expected.values()} == set(CELL_STATUSES)


def test_every_row_of_all_cells_is_what_the_raw_rows_give(report, expected):
    table = table_of(report, "cells")
    assert len(table) == len(expected) == 31
    for row in table.to_dict("records"):
        e = expected[row["arm"], row["gamma"], row["eta"]]
        assert row["status"].split(",")[0] == e["status"]
        assert row["complete seeds"] == e["seeds"]
        assert row["test accuracy"] == e["test"]
        if e["status"] == "stopped":
            at = e["stopped"]["epoch"].max()
            assert row["status"] == f"stopped, epoch {at:.0f}"
            assert row["validation accuracy"] == t_words(e["stopped"]["validation_accuracy"])
        elif e["status"] not in ("running", "failed", "diverged"):
            assert row["validation accuracy"] == e["validation"]


def test_the_tiles_count_each_status(report, expected):
    text = read_page(report)[1]
    count = pd.Series([e["status"] for e in expected.values()]).value_counts()
    assert " ".join(f"{count[s]} {s}" for s in CELL_STATUSES) in text
    assert f"{len(expected)} cells" in text


def test_the_arms_are_at_the_cell_of_highest_validation(report, expected):
    table = table_of(report, "references").set_index("arm")
    for arm, row in table.iterrows():
        done = {k: e for k, e in expected.items() if k[0] == arm and e["status"] == "complete"}
        (_, gamma, eta), best = max(done.items(), key=lambda item: item[1]["mean"])
        setting = ", ".join(f"{n} {v}" for n, v in (("gamma", gamma), ("eta", eta)) if v != "–") or "–"
        assert row["best setting"] == setting
        assert (row["validation accuracy"], row["test accuracy"]) == (best["validation"], best["test"])
        planned = sum(k[0] == arm for k in expected)
        assert row["complete cells"] == f"{len(done)} of {planned}"


def test_fisher_sam_minus_sam_is_a_paired_test_of_the_raw_rows(report, rows, expected):
    wide = rows[rows["status"] == "complete"].pivot(index="seed", columns="cell", values="test_accuracy")
    found = table_of(report, "paired").to_dict("records")
    assert len(found) > 1
    p_values = []
    for row in found:
        a = wide[expected["fsam", row["gamma"], row["eta"]]["cell"]]
        b = wide[expected["sam", row["gamma"], "–"]["cell"]]
        both = pd.concat([a, b], axis=1).dropna()
        tested = stats.ttest_rel(both.iloc[:, 0], both.iloc[:, 1])
        low, high = tested.confidence_interval()
        mean = 100 * (both.iloc[:, 0] - both.iloc[:, 1]).mean()
        said = f"{mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}] (n={len(both)})"
        assert row["difference [95 %]"] == said
        assert row["p (Holm)"].split()[0] == f"{tested.pvalue:.3f}"
        means = [f"{100 * own.mean():.2f}" for own in (both.iloc[:, 0], both.iloc[:, 1])]
        assert [row["Fisher SAM (%)"], row["SAM (%)"]] == means
        p_values.append(float(tested.pvalue))
    # Holm: the smallest of m times m, and none below that of a smaller one.
    corrected = dict.fromkeys(p_values, 0.0)
    for i, p in enumerate(sorted(p_values)):
        corrected[p] = max([min(1.0, (len(p_values) - i) * p), *(corrected[q] for q in sorted(p_values)[:i])])
    assert [row["p (Holm)"] for row in found] == [f"{p:.3f} ({corrected[p]:.3f})" for p in p_values]


def test_stops_say_their_rung_value_and_cutoff_as_recorded(report, study):
    decisions = pd.concat([pd.read_parquet(p) for p in _pieces(study, "decisions")]).sort_values("sequence")
    stops = decisions[decisions["stop"]]
    table = table_of(report, "stops")
    assert list(table["rung"]) == [str(r) for r in stops["rung"]]
    assert list(table["validation (%)"]) == [f"{100 * v:.2f}" for v in stops["value"]]
    assert list(table["cutoff (%)"]) == [f"{100 * v:.2f}" for v in stops["cutoff"]]
    assert f"took {len(decisions)} decisions and stopped {len(stops)} times" in read_page(report)[1]


def test_failures_and_divergence_give_their_reasons_word_for_word(report, rows):
    table = table_of(report, "failures")
    bad = rows[rows["status"].isin(["failed", "diverged"])]
    assert len(table) == len(bad) == 8
    assert sorted(table["reason"]) == sorted(bad["reason"])
    assert FAILURE in set(table["reason"])
    assert "<2 GiB left" not in report.html.read_text()  # escaped


def test_the_figure_tells_every_status_apart_without_colour(study):
    axes = draw.heatmap(marked(study.replicates()))
    looks = {}
    for collection in axes.collections:
        name = collection.get_gid()
        if name in STATUS_STYLE:
            looks[name] = (collection.get_hatch(), str(collection.get_linestyle()))
    assert set(looks) == {"stopped", "diverged", "failed", "running", "missing"}
    assert len(set(looks.values())) == len(looks)
    said = [t.get_text() for t in axes.texts]
    for label in ("stopped\ne3", "diverged", "diverged\n1 of 3", "failed", "failed\n1 of 3", "running\ne5", "missing"):
        assert label in said, label
    assert any("n=2 of 3" in text for text in said)  # partial


def test_numbers_drawn_are_the_means_of_the_raw_rows(study, rows):
    axes = draw.heatmap(marked(study.replicates()))
    done = rows[rows["status"] == "complete"].groupby("cell")["test_accuracy"].agg(["mean", "count", "size"])
    said = {t.get_gid().removeprefix("label:"): t.get_text() for t in axes.texts if t.get_gid()}
    compared = 0
    for cell, text in said.items():
        if re.match(r"^\d", text):
            assert text.split()[0] == f"{100 * done.loc[cell, 'mean']:.1f}"
            assert f"n={done.loc[cell, 'count']}" in text
            compared += 1
    assert compared == 13  # 12 complete and one partial


def test_learning_curves_are_told_in_words_with_their_last_values(report, study):
    (alt,) = [i["alt"] for i in read_page(report)[0].images if i["alt"].startswith("Validation accuracy by epoch")]
    history = pd.concat([pd.read_parquet(p) for p in _pieces(study, "history")])
    assert f"of {history['cell'].nunique()} cells up to epoch {EPOCHS}" in alt
    last = history[history["epoch"] == history.groupby("cell")["epoch"].transform("max")]
    means = last.groupby("cell")["validation_accuracy"].mean()
    assert f"between {100 * means.min():.1f} and {100 * means.max():.1f} %" in alt


def test_a_search_and_conditions_with_measures_have_their_sections(tmp_path):
    search = write_report(StudyReader(golden_search(tmp_path / "s")), tmp_path / "search")
    assert {"search", "references", "curves", "stops"} <= read_page(search)[0].anchors
    noise = write_report(StudyReader(golden_noise(tmp_path / "n")), tmp_path / "noise")
    page, text = read_page(noise)
    assert {"conditions", "robustness", "paired"} <= page.anchors
    assert "missing" in table_of(noise, "conditions").iloc[2]["fsam"]
    assert "of 27 replicates 24 are complete" in text


def test_sections_come_in_the_order_in_which_they_are_asked_for(report):
    order = ["summary", "sensitivity", "references", "paired", "curves", "stops", "failures", "cells", "provenance",
             "reproduce"]  # fmt: skip
    text = report.html.read_text()
    places = [text.index(f'<section id="{name}"') for name in order]
    assert all(a < b for a, b in pairwise(places))


# Folders that are not as they should be, each through the command


@pytest.fixture
def folder(study, tmp_path):
    shutil.copytree(study.folder.uri, tmp_path / "golden")
    return tmp_path / "golden"


def refused(folder, capsys, *more):
    """The one line with which `study report` refuses; exit code 2 and nothing drawn."""
    assert main(["report", str(folder), *more]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert not (folder / "report").exists()
    return line


def test_an_empty_folder_and_none_at_all(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty", capsys) == f"study: {tmp_path / 'empty'} holds no study (no study.json)"
    assert "holds no study" in refused(tmp_path / "nowhere", capsys)


@pytest.mark.parametrize("part", ["study.json", "plan.parquet", "ends", "history", "decisions"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(folder, capsys, part, kept):
    path = next((folder / "records" / RUN).glob(f"{part}-*")) if part in records.KINDS else folder / part
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    line = refused(folder, capsys)
    assert str(path) in line
    assert "damaged" in line


def test_another_version_is_named(folder, capsys):
    for schema, words in ((1, "older schema 1"), (99, "schema 99; this version reads schema 2")):
        (folder / "study.json").write_text(json.dumps({"schema": schema, "study": {}}))
        assert words in refused(folder, capsys)


def test_a_missing_plan_is_named(folder, capsys):
    (folder / "plan.parquet").unlink()
    assert "plan.parquet is missing" in refused(folder, capsys)


def test_records_of_another_study_are_left_out(folder, tmp_path, capsys):
    """Copied together by hand: what the plan does not have is not this study's."""
    other = golden_noise(tmp_path / "other", dropout=0.1)
    shutil.copytree(f"{other.uri}/records/{RUN}", folder / "records" / "20261125-080000-other")
    before = StudyReader(StudyFolder(str(folder))).replicates()
    assert main(["report", str(folder)]) == 0
    assert "31 (12 complete" in capsys.readouterr().out
    assert len(before) == 93


def test_a_folder_of_which_only_the_plan_is_written_reports_that(tmp_path, capsys):
    whole = golden(tmp_path / "whole")
    shutil.rmtree(whole.path("records"))
    shutil.rmtree(whole.path("trials"))
    assert main(["report", whole.uri]) == 0
    assert capsys.readouterr().out.startswith("Nothing has been trained yet: all 93 replicates are missing.")


def test_a_folder_that_is_being_written_is_read_between_any_two_files(tmp_path, capsys):
    """Half-written files have another name until they are whole, and the report goes on without them."""
    folder = golden(tmp_path / "golden")
    for n, place in enumerate((".", "records/" + RUN, "trials")):
        (tmp_path / "golden" / place / f"ends-0000000{n}-0000000{n}.parquet.123.tmp").write_bytes(b"PAR1 half")
    assert main(["report", folder.uri]) == 0
    assert "31 (12 complete" in capsys.readouterr().out


def test_out_that_cannot_be_written_is_one_line(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = refused(folder, capsys, "--out", str(tmp_path / "file" / "x"))
    assert "cannot write the report to" in line


def test_an_untouched_question_of_several_lines_is_shown(study, report):
    assert CONTENT["question"] in read_page(report)[1]
