"""`study export`: the format follows from what is to be written, and each writes what the folder says."""

import os
import subprocess
import sys

import pandas as pd
import pytest
from trained_study import LABEL_NOISE, SENSITIVITY, trained

from analysis.tables import cells
from study.cli import main
from study.cli.exporting import format_of
from study.reader import open_study
from study.shown import line
from study.store import StoreError, StudyFolder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return trained(LABEL_NOISE, tmp_path_factory.mktemp("stored") / "small_noise")


def export(study, *arguments):
    return main(["export", study.folder.uri, *map(str, arguments)])


@pytest.mark.parametrize(
    ("out", "kind"),
    [
        ("a/weights.safetensors", "weights"),
        ("table.tex", "latex"),
        ("all.db", "optuna"),
        ("all.SQLITE", "optuna"),
        ("postgresql://host/name", "optuna"),
        ("sqlite:///all.db", "optuna"),
        ("tables", "tables"),
        ("v1.2/tables", "tables"),
    ],
)
def test_the_format_follows_from_the_name(out, kind):
    assert format_of(out) == kind


@pytest.mark.parametrize(("out", "says"), [("a.csv", "give a folder and --format csv"), ("w.bin", "add --format")])
def test_a_name_that_says_no_format_is_refused(out, says):
    with pytest.raises(StoreError, match=says):
        format_of(out)


def test_tables_are_the_frames_of_the_reader(study, tmp_path, capsys):
    out = tmp_path / "tables"
    assert export(study, "--out", out) == 0
    printed = capsys.readouterr().out
    frames = {
        "replicates": study.replicates(),
        "cells": cells(study.replicates()),
        "history": study.history(),
        "decisions": study.decisions(),
        "perturbation": study.measures("perturbation"),
    }
    assert {p.name for p in out.iterdir()} == {f"{name}.{kind}" for name in frames for kind in ("csv", "parquet")}
    for name, frame in frames.items():
        assert f"{out / name}.csv: {len(frame)} rows" in printed
        typed = pd.read_parquet(out / f"{name}.parquet")
        pd.testing.assert_frame_equal(typed, frame, check_dtype=False)
        if len(frame):
            text = pd.read_csv(out / f"{name}.csv")
            numeric = [c for c in frame.select_dtypes("number") if frame[c].notna().any()]
            assert numeric
            pd.testing.assert_frame_equal(text[numeric], frame[numeric], check_dtype=False, rtol=1e-12)


def test_a_latex_table_has_every_arm_and_mean(study, tmp_path):
    out = tmp_path / "table.tex"
    assert export(study, "--out", out) == 0
    text = out.read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    for _, cell in study.cells().iterrows():
        assert f"{100 * cell['mean']:.2f}" in text
    assert export(study, "--out", out) == 2
    assert out.read_text() == text


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_one_kind_of_tables_alone(study, tmp_path, kind):
    assert export(study, "--out", tmp_path / "t", "--format", kind) == 0
    assert {p.suffix for p in (tmp_path / "t").iterdir()} == {f".{kind}"}


def test_tables_that_are_there_stay_unless_asked(study, tmp_path, capsys):
    out = tmp_path / "t"
    out.mkdir()
    (out / "cells.csv").write_text("mine")
    assert export(study, "--out", out, "--format", "csv") == 2
    assert "cells.csv would be overwritten" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["cells.csv"]
    assert (out / "cells.csv").read_text() == "mine"
    assert export(study, "--out", out, "--format", "csv", "--replace") == 0
    assert len(pd.read_csv(out / "cells.csv")) == 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "t", "--seed", "1"], "--seed: belongs to --format weights"),
        (["--out", "a.db", "--cell", "ab"], "--cell: belongs to --format weights"),
        (["--out", "s3://bucket/t", "--format", "csv"], "exports are written to this machine"),
        (["--out", "w.safetensors", "--cell", "zz"], "cell zz is not complete or not planned"),
        (["--out", "w.safetensors", "--seed", "7"], "is not complete or not planned"),
        (["--out", "w.safetensors"], "its checkpoint was not kept"),
        (["--out", "file/t"], "cannot write file/t"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(study, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    assert export(study, *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_study_shows_itself(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = trained(SENSITIVITY, tmp_path / "results/small", missing=(1,))
    assert repr(own) == "<study small_sensitivity in results/small>"
    html = own._repr_html_()
    assert "How sensitive is &lt;Fisher SAM&gt; to gamma &amp; eta?" in html
    assert "<Fisher" not in html
    assert "of 14 replicates 12 are complete, 0 begun and 2 missing" in html
    assert "7 (6 complete, 1 missing) in 3 arms" in html
    table = cells(own.replicates())
    assert f"validation {100 * table['validation_mean'].max():.1f}" in html
    assert "(n=2" in html
    assert "1 run, 30 s by the clock" in html
    assert html.count("<td") == html.count("</td>") == html.count("<tr>")


def test_a_study_shows_each_conditions_best_cell(study):
    table = cells(study.replicates())
    html = study._repr_html_()
    assert html.count("best by validation") == 2
    for _, rows in table.groupby("label_noise"):
        assert f"validation {100 * rows['validation_mean'].max():.1f}" in html


def test_a_folder_that_cannot_be_read_now_still_shows_its_line(tmp_path):
    folder = StudyFolder(str(tmp_path / "n"))
    folder.save_study({"name": "n", "question": "q", "scheduler": {"name": "fifo"}, "seeds": [0]}, "", [])
    own = open_study(folder.uri)
    assert "nothing to report yet" in own._repr_html_()
    (tmp_path / "n/plan.parquet").unlink()
    assert own._repr_html_() is None
    assert repr(own).startswith("<study n in ")


def test_a_far_or_remote_folder_is_shown_as_it_is_called(tmp_path, monkeypatch):
    class Reader:
        def __init__(self, uri):
            self.folder, self.spec = StudyFolder(uri), {"name": "n"}

    monkeypatch.chdir(tmp_path)
    assert line(Reader("s3://bucket/results/n")) == "<study n in s3://bucket/results/n>"
    assert line(Reader("../n")) == "<study n in ../n>"
    assert line(Reader("/else/n")) == "<study n in /else/n>"


def test_an_export_never_harms_a_study_nor_what_is_of_another_format(study, tmp_path, capsys):
    folder = study.folder.uri
    for place in ("study.json", "records/run/ends-1-1.parquet", "trials"):
        assert main(["export", folder, "--out", f"{folder}/{place}", "--format", "weights", "--replace"]) == 2
        assert "within the study's own folder" in capsys.readouterr().err
    (tmp_path / "mine.db").write_text("mine")
    assert main(["export", folder, "--out", str(tmp_path / "mine.db"), "--format", "latex", "--replace"]) == 2
    assert ".db is for --format optuna, and latex was asked for" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["export", folder, "--out", str(tmp_path / "notes.txt"), "--format", "weights"]) == 2
    assert "notes.txt would be overwritten" in capsys.readouterr().err
    assert [(tmp_path / name).read_text() for name in ("mine.db", "notes.txt")] == ["mine", "mine"]
    for name in ("out", "cell"):
        options = {"out": str(tmp_path / "w.safetensors"), name: ""}
        assert main(["export", folder, *(part for key, value in options.items() for part in (f"--{key}", value))]) == 2
        assert capsys.readouterr().err == f"study: --{name} is empty\n"


def test_a_reader_that_has_read_enough_is_no_error(study):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "study", "status", study.folder.uri]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_best_of_several_conditions_says_which_it_is_of(study, tmp_path, capsys, monkeypatch):
    # This study has kept no checkpoints.
    monkeypatch.setattr("study.export_weights.export_weights", lambda reader, out, cell, seed: f"{out}: {cell}")
    assert export(study, "--out", tmp_path / "w.safetensors") == 0
    assert "the best of all conditions (label_noise" in capsys.readouterr().out
