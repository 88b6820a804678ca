"""The figures of early stopping show the counts, settings and correlations of their tables, at their places."""

import numpy as np
import pandas as pd
import pytest
from made_study import FakeReader, figure_five, history_of

from analysis import report
from analysis.audit import survival as stages_of
from analysis.compare import marked
from analysis.figures import learning_curves, rank_correlation, survival, trade_off
from analysis.figures.style import PALETTE, STATUS_STYLE
from analysis.tables import cells, curves


def decided(rows):
    return pd.DataFrame(rows, columns=["trial", "cell", "rung", "epoch", "value", "cutoff", "rank", "n", "stop"])


def halved(table, rungs=(1, 3)):
    """Decisions that stop every second cell of each arm at each rung."""
    rows = []
    for _, own in table.groupby("arm", sort=False):
        left = list(own["cell"])
        for rung in rungs:
            rows += [("t", c, rung, rung, 0.5, 0.6, 1, 1, i % 2 == 1) for i, c in enumerate(left)]
            left = left[::2]
    return decided(rows)


def bars(ax, gid):
    return [p for p in ax.patches if p.get_gid() == gid]


def test_survival_bars_have_the_heights_of_the_table_and_stops_are_hatched_on_top():
    table = marked(figure_five())
    stages = stages_of(halved(table), table)
    figure = survival(stages)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["fsam (30 cells)", "sam (5 cells)", "sgd (1 cell)"]
    for ax, (_, rows) in zip(figure.axes, stages.groupby("arm", sort=False), strict=True):
        went, stopped = bars(ax, "went_on"), bars(ax, "stopped")
        assert [b.get_height() for b in went] == list(rows["went_on"])
        assert [b.get_height() for b in stopped] == list(rows["stopped"])
        assert [b.get_y() for b in stopped] == list(rows["went_on"])
        assert {b.get_hatch() for b in stopped} == {STATUS_STYLE["stopped"]["hatch"]}
        assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "3", "complete"]
        assert next(line for line in ax.lines if line.get_gid() == "cells").get_ydata()[0] == rows["cells"].iloc[0]
    assert [t.get_text() for t in figure.axes[0].texts] == ["15\n−15", "8\n−7", "30"]


def settings(**more):
    rows = []
    for grace in (1, 3):
        for reduction in (2, 4):
            saved, regret = 0.2 * reduction / grace, 0.01 / grace
            row = {"grace_period": grace, "reduction_factor": reduction, "max_t": np.nan, "saved": saved}
            row |= {"saved_low": saved - 0.05, "saved_high": saved + 0.1, "arm_regret": regret, "arm_regret_low": 0.0}
            rows.append(row | {"arm_regret_high": 2 * regret} | more)
    return pd.DataFrame(rows)


def test_a_setting_is_a_point_with_its_range():
    table = settings()
    ax = trade_off(table, chance=0.004)
    points = {line.get_gid(): line for line in ax.lines}
    for row in table.itertuples():
        line = points[f"setting:{row.grace_period}:{row.reduction_factor}"]
        assert line.get_xydata()[0] == pytest.approx([100 * row.saved, 100 * row.arm_regret])
    reach = [c.get_segments()[0] for c in ax.collections]
    assert any(np.allclose(s[:, 0], [100 * (0.4 - 0.05), 100 * (0.4 + 0.1)]) for s in reach)
    assert any(np.allclose(s[:, 1], [0, 2]) for s in reach)
    shades = {points[f"setting:{g}:{r}"].get_color() for g in (1, 3) for r in (2, 4)}
    marks = {points[f"setting:{g}:{r}"].get_marker() for g in (1, 3) for r in (2, 4)}
    assert shades == set(PALETTE[:2])
    assert len(marks) == 2
    assert points["chance"].get_ydata()[0] == pytest.approx(0.4)
    said = [t.get_text() for t in ax.get_legend().get_texts()]
    assert said == [
        "grace period 1",
        "grace period 3",
        "reduction factor 2",
        "reduction factor 4",
        "what seeds alone move",
    ]


def test_a_single_seed_has_no_line_of_chance_and_no_regret_is_still_in_the_picture():
    ax = trade_off(settings(arm_regret=0.0, arm_regret_high=0.0), chance=float("nan"))
    assert "chance" not in [line.get_gid() for line in ax.lines]
    low, high = ax.get_ylim()
    assert low < 0 < high


def test_rank_correlations_are_lines_by_arm_in_the_studys_colours():
    ranks = pd.DataFrame(
        [(arm, e, value * e / 4, 0.5, n) for arm, value, n in (("sam", 0.8, 5), ("fsam", -0.4, 30)) for e in (1, 2, 4)],
        columns=["arm", "epoch", "spearman", "kendall", "n"],
    )
    ax = rank_correlation(ranks, arms=["sgd", "sam", "fsam"])
    lines = {line.get_gid(): line for line in ax.lines if line.get_gid()}
    assert lines["ranks:sam"].get_xydata() == pytest.approx(np.array([[1, 0.2], [2, 0.4], [4, 0.8]]))
    assert lines["ranks:sam"].get_color() == PALETTE[1]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["sam (n=5 cells)", "fsam (n=30 cells)"]
    assert ax.get_ylim()[0] < -0.4


def test_rungs_are_marked_on_learning_curves_where_they_are():
    frame = figure_five()
    lines = curves(history_of(frame), cells(frame))
    ax = learning_curves(lines, rungs=[2, 6])
    marked_at = {line.get_gid(): line.get_xdata()[0] for line in ax.lines if str(line.get_gid()).startswith("rung:")}
    assert marked_at == {"rung:2": 2, "rung:6": 6}
    assert {t.get_text(): t.get_position()[0] for t in ax.texts} == {"2": 2, "rung 6": 6}
    assert not [line for line in learning_curves(lines).lines if str(line.get_gid()).startswith("rung:")]


def test_a_report_has_the_audit_of_full_curves_and_the_survival_of_decided_cells(tmp_path):
    frame = figure_five()
    spec = {"scheduler": {"name": "fifo", "grace_period": None, "reduction_factor": None}}
    full = report.write_report(FakeReader(frame, history_of(frame), spec=spec), tmp_path / "full")
    assert {"early_stopping", "rank_correlation"} <= set(full.figures)
    assert "survival" not in full.figures
    text = full.html.read_text()
    assert "Would early stopping have paid?" in text
    assert "36 of 36 cells" in text
    table = marked(frame)
    asha = {"scheduler": {"name": "asha", "grace_period": 1, "reduction_factor": 3}}
    reader = FakeReader(frame, history_of(frame), halved(table).assign(run="r", sequence=0), spec=asha)
    stopped = report.write_report(reader, tmp_path / "asha")
    assert "survival" in stopped.figures
    text = stopped.html.read_text()
    assert "What early stopping did" in text
    assert "fsam, 30 cells: rung 1: 30 decided on, 15 stopped; rung 3: 15 decided on, 7 stopped; 30 complete" in text
    assert "Bold: the study" in text
    nothing = report.write_report(FakeReader(figure_five(), None, spec=spec), tmp_path / "nothing")
    assert "early stopping" not in nothing.html.read_text()
