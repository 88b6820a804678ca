"""A name means one folder in its storage and nothing else, and a folder is asked for as it is written."""

import os
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.naming import check_name, folder_elsewhere, folder_of, is_plain
from study.spec import Study, StudyError
from study.store import StoreError, StudyFolder, child

SPEC = {"name": "n", "question": "q", "scheduler": {"name": "fifo"}}

#: What would leave a folder, be another command or mean something to a URI, and everything else.
TEXT = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(["..", ".", "/", "\\", "a", "-", "~", "$HOME", ";rm", "\n", "%2e", "?", "#", ":"]), max_size=6
    ).map("".join),
)


def made(path):
    folder = StudyFolder(str(path))
    folder.save_study(SPEC, "", [{"cell": "c", "arm": "sam", "seed": 0, "epochs": 1}])
    return folder


@given(TEXT)
def test_a_plain_name_is_one_part_of_a_path_and_one_word_of_a_shell(text):
    if is_plain(text):
        assert os.path.basename(os.path.normpath(f"/storage/{text}")) == text
        assert os.path.dirname(os.path.normpath(f"/storage/{text}")) == "/storage"
        assert shlex.split(text) == [text] == [shlex.quote(text)]
        assert not text.startswith("-"), "it would be an option"


@given(TEXT)
def test_with_a_storage_whatever_is_no_name_is_refused_before_anything_is_read(text):
    if not is_plain(text):
        with pytest.raises(StoreError, match="with --storage write the study's name"):
            folder_of(text, "/nowhere/at/all")


@given(TEXT)
def test_a_studys_file_and_the_command_line_take_the_same_names(text):
    content = {**SPEC, "name": text, "recipe": {"dataset": "synthetic", "model": "mlp", "epochs": 1}}
    if is_plain(text):
        assert Study.of(content).name == check_name(text) == text
    else:
        with pytest.raises(StudyError, match="must be letters, digits, _ and -"):
            Study.of(content)
        with pytest.raises(ValueError, match="must be letters"):
            check_name(text)


def test_a_name_is_found_in_the_storage_that_is_named_or_in_the_usual_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "results" / "usual")
    made(tmp_path / "own" / "other")
    assert folder_of("usual").uri == str(tmp_path / "results" / "usual")
    assert folder_of("other", "own").uri == str(tmp_path / "own" / "other")
    with pytest.raises(StoreError, match=r"^other: no study in .*/other or .*/results/other; --storage says where"):
        folder_of("other")


def test_a_word_is_also_a_folder_here_and_two_meanings_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "both")
    assert folder_of("both").uri == str(tmp_path / "both")
    made(tmp_path / "results" / "both")
    with pytest.raises(StoreError, match=r"^both: could be .*/both or .*/results/both; write its path$"):
        folder_of("both")
    assert folder_of("./both").uri == str(tmp_path / "both")
    assert folder_of("results/both").uri == str(tmp_path / "results" / "both")


def test_a_file_a_file_of_a_study_and_an_empty_folder_are_no_studies(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "s.yaml").write_text("name: s")
    with pytest.raises(StoreError, match=r"holds no study \(no study.json\)$"):
        folder_of(str(tmp_path / "empty"))
    with pytest.raises(StoreError, match="write the study's name or its folder, not its file"):
        folder_of(str(tmp_path / "s.yaml"))


def test_a_study_that_has_its_lock_and_nothing_else_yet_is_found(tmp_path):
    folder = StudyFolder(str(tmp_path / "begins"))
    folder.write(b"{}", "lock", "00000001-0123abcd.json")
    assert folder_of("begins", str(tmp_path)).uri == folder.uri


def test_a_folder_that_only_a_cluster_sees_is_not_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder_elsewhere("/only/there/n").uri == "/only/there/n"
    assert folder_elsewhere("s3://bucket/a/n?region=x").uri == "s3://bucket/a/n?region=x"
    assert (
        folder_elsewhere("n", "s3://bucket/a?region=x").uri
        == "s3://bucket/a/n?region=x"
        == child("s3://bucket/a?region=x", "n")
    )
    with pytest.raises(StoreError, match="no study in"):
        folder_elsewhere("n")
    with pytest.raises(StoreError, match="write the study's name"):
        folder_elsewhere("../n", "/there")


def test_names_of_this_repositorys_studies_are_plain():
    studies = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
    assert len(studies) > 3
    for file in studies:
        assert is_plain(Study.load(file).name)
