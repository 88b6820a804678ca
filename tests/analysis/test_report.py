import html.parser

import numpy as np
import pandas as pd
import pytest
from made_study import FakeReader, figure_five, history_of, replicate

from analysis.report import summary_lines, write_report

VOID = {"meta", "link", "img", "br", "hr"}


class Page(html.parser.HTMLParser):
    """The parts of a page that the tests ask about; a tag that is not closed in order is an error."""

    def __init__(self, text):
        super().__init__()
        self.links, self.images, self.anchors, self.scripts = [], [], set(), 0
        self.text, self._open = [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self._open.append(tag)
        self.scripts += tag == "script"
        self.anchors |= {attrs["id"]} if "id" in attrs else set()
        self.links += [attrs[k] for k in ("src", "href", "data", "action") if k in attrs]
        if tag == "img":
            self.images.append(attrs)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text.append(data)


def read(report):
    text = report.html.read_text(encoding="utf-8")
    page = Page(text)
    assert page.scripts == 0
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "url(" not in text
    assert "@import" not in text
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.anchors
    assert all(len(image["alt"]) > 30 for image in page.images)
    return page, " ".join(" ".join(page.text).split())


@pytest.fixture
def report(golden_reader, tmp_path):
    return write_report(golden_reader, tmp_path)


def test_report_holds_its_figures_tables_and_page(report, tmp_path):
    page, _ = read(report)
    assert report.heatmap == tmp_path / "heatmap.png"
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    tables = ("replicates", "cells", "history", "decisions", "fsam_minus_sam", "differences")
    assert names == {
        *("heatmap.png", "heatmap.svg", "learning_curves.png", "learning_curves.svg", "report.html"),
        *(f"{f}.{s}" for f in ("difference", "survival", "early_stopping", "rank_correlation") for s in ("png", "svg")),
        *(f"tables/{t}.{s}" for t in tables for s in ("csv", "parquet")),
    }
    assert len(page.images) == 6
    assert page.anchors >= {"summary", "sensitivity", "paired", "curves", "cells", "stops", "failures", "provenance"}


def test_report_says_what_was_best_stopped_diverged_and_how_to_repeat_it(report):
    _, text = read(report)
    assert "fsam, gamma 0.1, eta 1: validation 98.3 ± 0.6 % (n=3)" in text
    assert "29 complete 1 partial 1 running 1 stopped 2 diverged 1 failed 1 missing" in text
    assert "of 108 replicates 91 are complete, 10 ended otherwise, 3 begun and 4 missing" in text
    assert "training loss is nan" in text
    assert "worker died" in text
    assert "fsam, gamma 1, eta 0.0001 1 3 55.00 81.00 9 of 9" in text
    assert "with this project at commit abc123, run:" in text
    assert "devices CPU, GPU" in text
    assert "study run digits-sensitivity.yaml" in text
    assert "grace_period: 3" in text


def test_the_report_says_what_all_runs_have_used_and_cost(golden, tmp_path):
    usage = [{"gpu": 7200.0, "cpu": 0.0, "wall": 3600.0}, {"gpu": 1800.0, "cpu": 0.0, "wall": 1800.0}]
    reader = FakeReader(
        golden,
        spec={"price": {"gpu": 2.0, "cpu": 0.0, "currency": "EUR"}, "budget": {"gpu_hours": 4.0}},
        runs=[{"run": str(i), "usage": used} for i, used in enumerate(usage)],
    )
    _, text = read(write_report(reader, tmp_path))
    assert "used: 2.50 GPU hours in 1 h 30 min, 5.00 EUR; left: 1.50 GPU hours" in text


def test_alternative_text_tells_the_picture_to_who_cannot_see_it(report):
    page, _ = read(report)
    alt = page.images[0]["alt"]
    assert "36 cells" in alt
    assert "2 diverged" in alt
    assert "best by validation: fsam, gamma 0.1, eta 1" in alt


def test_nothing_that_a_study_says_becomes_markup(golden, tmp_path):
    evil = "<script>alert('x')</script> & \"quotes\""
    frame = golden.assign(arm=golden["arm"].replace("fsam", "<b>fsam</b>"))
    frame["reason"] = frame["reason"].where(frame["reason"].isna(), "<img src=http://evil/x.png>")
    spec = {"name": "</title><script>", "question": evil, "recipe": {"</pre><script>": "</code>"}}
    reader = FakeReader(frame, history_of(frame), spec=spec, runs=[{"<i>": evil}])
    page, text = read(write_report(reader, tmp_path))
    assert "alert('x')" in text
    assert len(page.images) == 5


def test_a_study_without_a_plan_reports_that(tmp_path):
    reader = FakeReader(pd.DataFrame(columns=["cell", "seed", "status"]))
    report = write_report(reader, tmp_path)
    assert "no planned replicates" in read(report)[1]
    assert report.heatmap is None
    assert summary_lines(reader, report)[-1].endswith("report.html")


def test_a_study_of_which_nothing_ran_reports_that_and_draws_the_plan(tmp_path):
    frame = figure_five().assign(status="missing", test_accuracy=np.nan, validation_accuracy=np.nan, epoch=np.nan)
    report = write_report(FakeReader(frame), tmp_path)
    text = read(report)[1]
    assert "Nothing has been trained yet: all 108 replicates are missing." in text
    assert "no cell is complete" in text
    assert report.heatmap is not None


def test_one_setting_makes_a_line_and_none_a_table_only(tmp_path):
    line = figure_five(etas=(1.0,))
    assert set(write_report(FakeReader(line), tmp_path / "line").figures) == {"sensitivity"}
    plain = pd.DataFrame([replicate("a", s) for s in range(3)])
    report = write_report(FakeReader(plain, history_of(plain)), tmp_path / "plain")
    assert set(report.figures) == {"learning_curves"}
    assert "94.0" in read(report)[1]


def test_a_third_setting_makes_a_map_of_each_of_its_values(tmp_path):
    parts = [figure_five(seeds=2, gammas=(0.1, 0.5), etas=(0.1, 1.0)).assign(label_noise=noise) for noise in (0.0, 0.4)]
    frame = pd.concat(p.assign(cell=p["cell"] + str(i)) for i, p in enumerate(parts))
    report = write_report(FakeReader(frame.reset_index(drop=True)), tmp_path)
    assert set(report.figures) == {"heatmap", "difference_1", "difference_2", "label_noise"}


def test_a_second_report_replaces_the_first(golden_reader, tmp_path):
    first = write_report(golden_reader, tmp_path)
    before = first.html.read_bytes()
    files = sorted(tmp_path.rglob("*"))
    assert write_report(golden_reader, tmp_path).html.read_bytes() == before
    assert sorted(tmp_path.rglob("*")) == files


def test_summary_lines_name_the_best_cell_with_its_interval_the_pair_and_the_files(golden_reader, report):
    lines = summary_lines(golden_reader, report)
    text = "\n".join(lines)
    assert "fsam, gamma 0.1, eta 1: validation 98.3 +- 0.6 % (n=3), test 97.6 +- 1.0 % (n=3)" in text
    assert "Fisher SAM minus SAM, gamma 0.1, eta 1: +0.82 [-0.06, +1.70] (n=3)" in text
    assert lines[-2:] == [f"heatmap: {report.heatmap}", f"report:  {report.html}"]
    assert text.isascii()


def test_a_single_seed_gets_no_interval(tmp_path):
    text = "\n".join(summary_lines(FakeReader(figure_five(seeds=1))))
    assert "% (n=1)" in text
    assert "+-" not in text
    assert "not distinguishable" not in text


def test_a_report_is_not_written_into_a_local_folder_named_like_a_uri(golden_reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="s3://bucket/report"):
        write_report(golden_reader, "s3://bucket/report")
    assert not list(tmp_path.iterdir())
