"""The folder holds what was put into it, whole or not at all, and says plainly when it cannot be used."""

import os
import pickle

import pandas as pd
import pytest
from recorded import ended, trained

from study.reader import open_study
from study.store import SCHEMA, StoreError, StudyFolder, child

PLAN = [
    {"cell": "c1", "arm": "fsam", "seed": 0, "gamma": 0.1, "eta": 1.0, "epochs": 3},
    {"cell": "c1", "arm": "fsam", "seed": 1, "gamma": 0.1, "eta": 1.0, "epochs": 3},
    {"cell": "c2", "arm": "sgd", "seed": 0, "gamma": None, "eta": None, "epochs": 3},
    {"cell": "c2", "arm": "sgd", "seed": 1, "gamma": None, "eta": None, "epochs": 3},
]
SPEC = {"name": "n", "question": "q", "scheduler": {"name": "fifo"}}


def outcome(cell, seed, status="complete", **more):
    return {"cell": cell, "seed": seed, "status": status, "epoch": 3, "test_accuracy": 0.9, "run": "r", **more}


@pytest.fixture
def folder(tmp_path):
    folder = StudyFolder(str(tmp_path / "n"))
    folder.save_study(SPEC, "name: n\n", PLAN)
    return folder


def test_a_planned_replicate_is_missing_until_it_has_an_end(folder):
    frame = open_study(folder.uri).replicates()
    assert list(frame["status"]) == ["missing"] * 4
    ended(folder, "t1", [outcome("c1", 0), outcome("c1", 1, "diverged", test_accuracy=None)])
    trained(folder, "t2", [{"cell": "c2", "seed": s, "epoch": e, "lr": 0.1} for e in (1, 2) for s in (0, 1)])
    frame = open_study(folder.uri).replicates().set_index(["cell", "seed"])
    assert dict(frame["status"]) == {
        ("c1", 0): "complete",
        ("c1", 1): "diverged",
        ("c2", 0): "running",
        ("c2", 1): "running",
    }
    assert frame.loc[("c2", 1), "epoch"] == 2
    assert frame.loc[("c1", 0), "test_accuracy"] == 0.9
    assert pd.isna(frame.loc[("c1", 1), "test_accuracy"])
    assert pd.isna(frame.loc[("c2", 0), "gamma"])


def test_what_is_not_planned_any_more_stays_in_the_folder_and_out_of_the_tables(folder):
    ended(folder, "t9", [outcome("gone", 0)])
    assert set(open_study(folder.uri).replicates()["cell"]) == {"c1", "c2"}
    assert folder.rows("ends")[0]["cell"] == "gone"


def test_a_failed_replicate_that_was_trained_again_counts_once_as_complete(folder):
    ended(folder, "t1", [outcome("c1", 0, "failed", test_accuracy=None), outcome("c1", 1, "failed")])
    ended(folder, "t2", [outcome("c1", 0)])
    frame = open_study(folder.uri).replicates().set_index(["cell", "seed"])
    assert len(frame) == 4
    assert frame.loc[("c1", 0), "status"] == "complete"
    assert frame.loc[("c1", 1), "status"] == "failed"


@pytest.mark.parametrize(("first", "second"), [("t1", "t2"), ("t2", "t1"), ("t1", "t1")])
def test_of_several_ends_the_best_counts_whichever_trial_and_run_wrote_it(folder, first, second):
    ended(folder, first, [outcome("c1", 0, "stopped", epoch=1, scheduler="asha(x)")])
    ended(folder, second, [outcome("c1", 0, "failed", scheduler=None)])
    assert folder.ends("asha(x)").to_pylist()[0]["status"] == "stopped"
    assert folder.ends("fifo").to_pylist()[0]["status"] == "failed", "another scheduler's stop is no end"
    ended(folder, second, [outcome("c1", 0, "complete", scheduler=None)])
    for scheduler in ("fifo", "asha(x)"):
        (row,) = folder.ends(scheduler).to_pylist()
        assert row["status"] == "complete"


def test_of_two_failures_of_a_trial_the_last_one_gives_the_reason(folder):
    for run, reason in (("run-1", "no space left"), ("run-2", "out of memory")):
        recording = folder.recording(run)
        recording.end("t1", [outcome("c1", seed, "failed", reason=reason) for seed in (0, 1)])
        recording.flush()
    assert folder.ends("fifo").column("reason").to_pylist() == ["out of memory"] * 2


def test_tidying_deletes_what_a_killed_writer_left_beside_study_json_and_leaves_the_lock(folder):
    for place in (["study.json.0badcafe.tmp"], ["lock", "1.0badcafe.tmp"]):
        folder.write(b"half", *place)
    folder.tidy()
    assert folder.names("lock") == ["1.0badcafe.tmp"]
    assert "study.json.0badcafe.tmp" not in folder.names()


def test_a_folder_that_was_cut_short_while_it_was_made_is_ours(folder):
    folder.delete("study.json")
    assert not folder.foreign()
    folder.write(b"", "thesis.tex")
    assert folder.foreign()


@pytest.mark.parametrize("uri", ["s3:/bucket/x", "s3://", "s4:bucket", "s3://KEY:SECRET@bucket/x"])
def test_an_address_that_would_be_misread_or_leaked_is_refused(uri):
    with pytest.raises(StoreError) as caught:
        StudyFolder(uri)
    assert "SECRET" not in str(caught.value)


def test_a_name_goes_into_the_path_of_a_uri_and_not_into_its_query():
    assert child("s3://b/p?endpoint_override=http://x:9000", "n") == "s3://b/p/n?endpoint_override=http://x:9000"
    assert child("results/", "n") == "results/n"


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(folder):
    folder.save_checkpoint("t", 1, b"one", keep=2)
    folder.save_checkpoint("t", 2, b"two", keep=2)
    folder.save_checkpoint("t", 3, b"three", keep=2)
    assert folder.names("trials", "t", "checkpoints") == ["000002.pt", "000003.pt"]
    assert folder.load_checkpoint("t") == (b"three", [])
    data = folder.read("trials", "t", "checkpoints", "000003.pt")
    for damage in (b"", data[:10], data[:-1], data[:-1] + b"E", b"PK" + data):
        folder.write(damage, "trials", "t", "checkpoints", "000003.pt")
        assert folder.load_checkpoint("t") == (b"two", ["000003.pt"])
    folder.write(b"", "trials", "t", "checkpoints", "000002.pt")
    assert folder.load_checkpoint("t") == (None, ["000003.pt", "000002.pt"])


def test_a_folder_travels_to_a_worker(folder):
    folder.names()  # the filesystem is open
    assert pickle.loads(pickle.dumps(folder)).spec() == SPEC


def test_a_folder_without_a_study_says_so(tmp_path):
    with pytest.raises(StoreError, match="holds no study"):
        open_study(str(tmp_path))
    with pytest.raises(StoreError, match="holds no study"):
        open_study(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("text", "words"), [(b"{", "damaged"), (b'{"schema": 999, "study": {}}', "schema 999"), (b"[]", "damaged")]
)
def test_a_folder_of_another_version_or_damaged_says_so(folder, text, words):
    folder.write(text, "study.json")
    with pytest.raises(StoreError, match=words):
        open_study(folder.uri)
    assert SCHEMA != 999


@pytest.mark.parametrize("file", ["plan.parquet", "records/r/ends-00000001-00000001.parquet"])
def test_a_truncated_table_is_named(folder, file):
    recording = folder.recording("r")
    recording.end("t1", [outcome("c1", 0)])
    recording.flush()
    data = folder.read(*file.split("/"))
    folder.write(data[: len(data) // 2], *file.split("/"))
    with pytest.raises(StoreError, match=file.split("/")[-1]):
        open_study(folder.uri).replicates()


def test_a_folder_can_be_moved_while_nobody_writes(folder, tmp_path):
    ended(folder, "t1", [outcome("c1", 0)])
    before = open_study(folder.uri).replicates()
    os.rename(folder.uri, tmp_path / "elsewhere")
    pd.testing.assert_frame_equal(open_study(str(tmp_path / "elsewhere")).replicates(), before)
