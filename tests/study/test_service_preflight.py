"""What a look at the nodes says: which problem is told, of which node, and what the table shows."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.files import StoreError
from study.service import looks
from study.service.preflight import LEAST_FREE, judged, names

CLIENT = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.15.0", "version": "0.1.0+aaaaaaaaaaaa"}


def node(number, **more):
    return {
        "node": f"{number:02d}" * 16,
        "address": f"10.0.0.{number}",
        "host": f"host{number}",
        "cpus": 4.0,
        "gpus": 0.0,
        **CLIENT,
        "free": {"temporary": 5 * LEAST_FREE, "storage": 7 * LEAST_FREE},
        "data": {"cifar10": {"fingerprint": "62f75217f6f8ddd3"}},
        "weights": {},
        "written": None,
        "unseen": {},
        **more,
    }


def look(*nodes, **more):
    return judged({"nodes": list(nodes), "problems": [], "notes": [], "missing": True, **more}, "/shared", CLIENT)


def test_nodes_that_are_all_right_have_no_problem():
    seen = look(node(1), node(2), node(3, gpus=2.0, cuda=True))
    assert seen.problems == []
    assert seen.lines() == [
        "node              python  ray     torch   cpu  gpu  storage  free     data",
        "10.0.0.1 (host1)  3.11.7  2.60.0  2.15.0  4    0    ok       5.0 GiB  cifar10 62f75217f6f8ddd3",
        "10.0.0.2 (host2)  3.11.7  2.60.0  2.15.0  4    0    ok       5.0 GiB  cifar10 62f75217f6f8ddd3",
        "10.0.0.3 (host3)  3.11.7  2.60.0  2.15.0  4    2    ok       5.0 GiB  cifar10 62f75217f6f8ddd3",
    ]


def test_a_node_that_has_written_and_then_answers_no_more_is_named_by_the_others():
    dead = {**node(2), "problem": "does not answer within 90 s"}
    seen = look(node(1, unseen={"02" * 16: "is not there"}), dead)
    assert any("10.0.0.2 (host2)" in problem and "answer" in problem for problem in seen.problems)
    assert any("what 10.0.0.2 (host2) wrote" in problem for problem in seen.problems)


CASES = {
    "python": ({"python": "3.12.1"}, ["has Python 3.12.1", "this machine 3.11.7"]),
    "ray": ({"ray": "2.59.0"}, ["has Ray 2.59.0", "install ray==2.59.0 here"]),
    "version": ({"version": "0.1.0+bbbbbbbbbbbb"}, ["has sharpness-study 0.1.0+bbbbbbbbbbbb", "the same commit"]),
    "torch": ({"torch": "2.14.0"}, ["has torch 2.14.0, and 10.0.0.1 (host1) 2.15.0"]),
    "unwritable": ({"written": "cannot write to /shared: Read-only file system"}, ["storage /shared", "Read-only"]),
    "unshared": ({"unseen": {"01" * 16: "is not there"}}, ["what 10.0.0.1 (host1) wrote", "is not shared", "NFS"]),
    "no data": ({"data": {"cifar10": {"problem": "no files in /sets"}}}, ["data set cifar10: no files in /sets"]),
    "other data": ({"data": {"cifar10": {"fingerprint": "0" * 16}}}, ["fingerprint 0000000000000000, and 62f7521"]),
    "no weights": ({"weights": {"/w.pt": {"problem": "no weights at /w.pt"}}}, ["weights /w.pt: no weights at /w.pt"]),
    "full": ({"free": {"temporary": 9 * 2**20}}, ["0.0 GiB free in its temporary folder", "at least 1.0 GiB"]),
    "no cuda": ({"gpus": 1.0, "cuda": False}, ["has 1 GPU", "without CUDA"]),
    "silent": ({"problem": "does not answer within 90 s"}, ["does not answer within 90 s"]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_node_that_is_not_all_right_is_named_once_and_no_other(case):
    wrong, said = CASES[case]
    seen = look(node(1), node(2, **wrong), node(3))
    assert len(seen.problems) == 1
    assert seen.problems[0].startswith("10.0.0.2 (host2): ")
    for text in said:
        assert text in seen.problems[0]
    # A row for each, whatever is wrong with it.
    assert len(seen.lines()) == 4
    json.dumps(seen.to_json())


def test_a_patch_release_of_python_may_differ():
    assert look(node(1, python="3.11.9")).problems == []


def test_every_problem_is_told_at_once():
    everything = {}
    for case in ("python", "ray", "version", "torch", "unwritable", "no data", "full"):
        everything |= CASES[case][0]
    assert len(look(node(1), node(2, **everything)).problems) == 7


def test_weights_that_only_one_node_lacks_are_not_blamed_on_the_others():
    marks = [{"/w.pt": {"fingerprint": "a" * 16}}] * 2 + [{"/w.pt": {"fingerprint": "b" * 16}}]
    seen = look(*(node(i + 1, weights=mark) for i, mark in enumerate(marks)))
    assert len(seen.problems) == 1
    assert seen.problems[0].startswith("10.0.0.3 (host3): weights /w.pt has fingerprint bbbb")


def test_data_that_the_head_lacks_is_said_once():
    missing = {"data": {"cifar10": {"problem": "no files in /sets"}}}
    seen = look(node(1, **missing), node(2), unplanned=["cifar10: no files in /sets"], missing=None)
    assert seen.problems == ["10.0.0.1 (host1): data set cifar10: no files in /sets"]
    # What no node could say is not swallowed.
    assert look(node(1), unplanned=["weights of another network"]).problems == ["weights of another network"]


def test_what_is_wrong_with_the_study_itself_is_a_problem_too():
    assert look(node(1), problems=["resources: a trial asks for gpu 4"]).problems == [
        "resources: a trial asks for gpu 4"
    ]


def test_nodes_to_come_are_mentioned_where_a_cluster_grows():
    assert look(node(1)).notes == []
    assert "later are not looked at" in look(node(1), grows=True).notes[0]


@given(st.lists(st.tuples(st.sampled_from("12"), st.sampled_from(["a", "b", None])), min_size=1, max_size=6))
def test_no_two_nodes_have_one_name(nodes):
    rows = [{"node": f"{i:032x}"[::-1], "address": address, "host": host} for i, (address, host) in enumerate(nodes)]
    assert len(set(names(rows))) == len(rows)


# On one machine


def test_a_trace_is_seen_by_the_others_and_leaves_nothing_behind(tmp_path):
    storage = str(tmp_path / "new" / "studies")
    one, two = looks.Trace(storage, "t", "one"), looks.Trace(storage, "t", "two")
    assert one.write() is None
    assert two.write() is None
    assert one.unseen(["two"], patience=0) == two.unseen(["one"], patience=0) == {}
    one.leave()  # it does not take away what is another's
    assert two.unseen(["one"], patience=0) == {}
    for trace in (one, two):
        assert trace.delete() is None
    for trace in (one, two):
        trace.leave()
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_was_there_stays(tmp_path):
    trace = looks.Trace(str(tmp_path / "studies"), "t", "one")
    (tmp_path / "studies").mkdir()
    assert trace.write() is None
    trace.delete()
    trace.leave()
    assert list((tmp_path / "studies").iterdir()) == []


def test_what_another_node_wrote_elsewhere_is_unseen(tmp_path):
    one, two = (looks.Trace(str(tmp_path / name), "t", name) for name in ("a", "b"))
    assert one.write() is None
    assert two.write() is None
    assert one.unseen(["b"], patience=0) == {"b": "is not there"}
    (tmp_path / "a" / ".preflight-t" / "b.node").write_text("of an earlier look\n")
    assert one.unseen(["b"], patience=0) == {"b": "is not what was written"}


def test_what_comes_late_is_waited_for(tmp_path):
    import threading

    one, two = looks.Trace(str(tmp_path), "t", "one"), looks.Trace(str(tmp_path), "t", "two")
    one.write()
    timer = threading.Timer(0.7, two.write)
    timer.start()
    assert one.unseen(["two"], patience=10) == {}
    timer.join()


def test_a_storage_that_cannot_be_written_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNESS_STUDY_STORE_PATIENCE", "0")
    (tmp_path / "file").write_text("")
    said = looks.Trace(str(tmp_path / "file"), "t", "one").write()
    assert "is a file" in said
    with pytest.raises(StoreError):
        looks.Trace("s3:/bucket", "t", "one")


def test_free_space_is_that_of_the_disk_that_will_hold_the_storage(tmp_path):
    import shutil

    found = looks.free_space(str(tmp_path / "not" / "yet"))
    total = shutil.disk_usage(tmp_path).total
    assert 0 < found["storage"] <= total
    assert "storage" not in looks.free_space("s3://bucket/studies")


def test_marks_are_fingerprints_or_say_what_is_missing(tmp_path):
    from trainables.data import fingerprint

    found = looks.data_marks([("digits", None), ("cifar10", None), ("image_folder", "leaves")], str(tmp_path))
    assert found["digits"] == {"fingerprint": fingerprint("digits")}
    assert str(tmp_path) in found["cifar10"]["problem"]
    assert "leaves" in found["leaves"]["problem"]
    (tmp_path / "w.pt").write_bytes(b"weights")
    marks = looks.weights_marks([str(tmp_path / "w.pt"), str(tmp_path / "none.pt")])
    assert len(marks[str(tmp_path / "w.pt")]["fingerprint"]) == 16
    assert "no weights at" in marks[str(tmp_path / "none.pt")]["problem"]


def test_the_version_is_that_of_the_code_and_not_only_of_its_release(tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    root = Path(looks.__file__).parents[2]
    ours = looks.version()
    copy = tmp_path / "copy"
    for package in ("study", "trainables"):
        for file in (root / package).rglob("*.py"):
            target = copy / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())

    def version():
        code = "from study.service import looks; print(looks.version())"
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=copy, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert version() == ours
    with (copy / "trainables" / "schedule.py").open("a") as file:
        file.write("\n# changed\n")
    changed = version()
    assert changed != ours
    assert changed.partition("+")[0] == ours.partition("+")[0]
