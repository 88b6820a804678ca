"""The trace that a look at the nodes leaves in an object store, and takes away again."""

import pytest
from object_store import CREDENTIALS, ObjectStore

from study.files import Files
from study.service import looks


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, ObjectStore(tmp_path_factory.mktemp("server") / "log") as running:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        running.make_bucket("looks")
        yield running


def test_nodes_see_each_other_in_a_bucket_and_leave_nothing(store, monkeypatch):
    monkeypatch.setenv("SHARPNESS_STUDY_STORE_PATIENCE", "1")
    uri = store.uri("looks", faulty=False)
    one, two = looks.Trace(uri, "t", "one"), looks.Trace(uri, "t", "two")
    assert (one.write(), two.write()) == (None, None)
    assert one.unseen(["two"], patience=0) == {}
    assert two.unseen(["one", "three"], patience=0) == {"three": "is not there"}
    one.delete()
    one.leave()
    assert "one" in two.unseen(["one"], patience=0)
    assert Files(uri).names() == [".preflight-t"]
    two.delete()
    two.leave()
    assert Files(uri).names() == []


def test_a_bucket_that_is_not_there_says_so(store, monkeypatch):
    monkeypatch.setenv("SHARPNESS_STUDY_STORE_PATIENCE", "1")
    said = looks.Trace(store.uri("looks", faulty=False).replace("looks", "none"), "t", "one").write()
    assert "NO_SUCH_BUCKET" in said
    assert list(looks.free_space(store.uri("looks"))) == ["temporary"]
