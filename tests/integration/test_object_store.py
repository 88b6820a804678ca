"""A study's folder on a real S3 server: the same as a local one, also when the server fails."""

import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from object_store import CREDENTIALS, ObjectStore, Rule
from processes import ENVIRONMENT, descendants, end, ended, start_run, trial_workers, wait_for
from undisturbed import Tables

from study import files
from study.files import Files, StoreError, child
from study.store import StudyFolder

#: Not yet run as a whole.
pytestmark = pytest.mark.long

STUDY = """\
name: tiny
question: Does the store matter?
recipe: {dataset: synthetic, model: mlp, batch_size: 32, epochs: 20, lr: 0.05}
arms:
  fsam: {optimiser: fsam}
  sgd: {optimiser: sgd}
grid: {gamma: [0.05, 0.5]}
seeds: [0, 1]
checkpoints: {every: 1}
"""

#: Sent in several parts: pyarrow's are of 10 MB.
LARGE = bytes(range(256)) * 100_000


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, ObjectStore(tmp_path_factory.mktemp("server") / "log") as running:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture
def bucket(store, request):
    """A bucket of the test's own behind the proxy; the store is whole again afterwards."""
    name = f"b{abs(hash(request.node.nodeid)):x}"
    store.make_bucket(name)
    yield name
    store.fail()


@pytest.fixture
def folder(store, bucket):
    return Files(child(store.uri(bucket), "study"))


@pytest.fixture(params=["local", "S3"])
def either(request, tmp_path):
    return Files(str(tmp_path / "study")) if request.param == "local" else request.getfixturevalue("folder")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.0)


# One contract for both


def test_what_is_written_is_read_and_listed(either):
    either.write(b"one", "a", "b", "1.json")
    either.write(b"", "a", "empty")
    either.write(b"old", "a.gz")
    either.write(b"new", "a.gz")
    assert either.read("a", "b", "1.json") == b"one"
    assert either.read("a", "empty") == b""
    assert either.read("a.gz") == b"new", "the newest, and no compression guessed from a name"
    assert either.names() == ["a", "a.gz"]
    assert either.names("a") == ["b", "empty"]
    assert either.walk() == {"a/b/1.json": 3, "a/empty": 0, "a.gz": 3}
    assert either.walk("a") == {"b/1.json": 3, "empty": 0}


def test_what_is_not_there_is_nothing(either):
    assert either.read("a", "b") is None
    assert either.names("a") == []
    assert either.walk("a") == {}
    either.delete("a", "b")
    assert either.walk() == {}
    either.write(b"x", "a", "b")
    assert either.read("a") is None, "a folder is no file"
    assert either.read("a", "b", "c") is None, "nor is there anything below a file"


def test_what_is_deleted_is_gone_and_its_neighbours_are_not(either):
    either.write(b"1", "a", "1")
    either.write(b"2", "a", "2")
    either.delete("a", "1")
    assert (either.names("a"), either.read("a", "1"), either.walk()) == (["2"], None, {"a/2": 1})
    either.delete("a", "2")
    either.delete("a", "2")
    # pyarrow leaves an object that stands for the empty folder: it is no file.
    assert (either.names("a"), either.walk()) == ([], {})
    either.write(b"3", "a", "3")
    assert either.names("a") == ["3"]


def test_a_large_file_is_whole(either):
    either.write(LARGE, "large")
    assert either.read("large") == LARGE
    assert either.walk() == {"large": len(LARGE)}


def test_more_objects_than_a_page_of_a_listing_holds_are_all_listed(store, bucket, folder):
    wanted = [f"{i:04d}" for i in range(1010)]
    straight = Files(child(store.uri(bucket, faulty=False), "study"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: straight.write(b"", "many", name), wanted))
    # The second page fails once more often than the client tries by itself.
    store.fail(Rule("error", "GET", "continuation-token", count=files.TRIES + 1))
    assert folder.names("many") == wanted
    assert len(folder.walk()) == len(wanted)
    assert store.asked("GET", "continuation-token", "error")


# Faults that pass


@pytest.mark.parametrize("action", ["error", "drop", "forget"])
def test_a_request_that_fails_for_a_while_is_made_again(store, folder, action):
    folder.write(b"old", "file")
    store.forget()
    for act in (
        lambda: folder.write(b"new", "file"),
        lambda: folder.read("file"),
        lambda: folder.names(),
        lambda: folder.delete("file"),
    ):
        store.fail(Rule(action, count=files.TRIES + 1))
        act()
    assert len(store.asked(action=action)) == 4 * (files.TRIES + 1)
    store.fail()
    assert folder.walk() == {}


def test_an_answer_that_is_cut_short_is_asked_for_again(store, folder):
    folder.write(LARGE, "file")
    store.fail(Rule("cut", "GET", count=files.TRIES + 1))
    assert folder.read("file") == LARGE
    assert len(store.asked("GET", action="cut")) == files.TRIES + 1


@pytest.mark.parametrize("code", ["SlowDown", "TooManyRequests"])
def test_a_store_that_asks_for_less_haste_is_waited_for(store, folder, code):
    status = {"SlowDown": 503, "TooManyRequests": 429}[code]
    store.fail(Rule("error", "PUT", status=status, code=code, count=files.TRIES + 1))
    folder.write(b"new", "file")
    assert folder.read("file") == b"new"


def test_an_outage_is_told_once_and_so_is_its_end(store, folder, caplog):
    store.fail(Rule("error"))
    threading.Timer(3.0, store.fail).start()
    with caplog.at_level(logging.WARNING, "study.files"):
        folder.write(b"new", "file")
    said = [record.getMessage() for record in caplog.records if record.name == "study.files"]
    assert len(said) == 2, said
    assert "/study/file" in said[0]
    assert "trying again for 120 s" in said[0]
    assert "the store answers again after" in said[1]


# Faults that stay


@pytest.mark.parametrize(
    "rule",
    [
        Rule("error", "PUT", "partNumber=2"),
        Rule("drop", "PUT", "partNumber=2"),
        Rule("error", "PUT", "partNumber=3"),
        Rule("error", "POST", "uploads"),
        Rule("error", "POST", "uploadId"),
    ],
    ids=["second part refused", "second part cut", "last part refused", "not begun", "not completed"],
)
@pytest.mark.usefixtures("impatient")
def test_an_upload_in_parts_that_fails_leaves_the_old_object(store, folder, rule):
    folder.write(b"old", "file")
    store.fail(rule)
    with pytest.raises(StoreError, match="cannot write"):
        folder.write(LARGE, "file")
    assert store.asked(rule.method, rule.key, rule.action)
    # pyarrow closes a stream that it lets go of, and what is closed may become an object.
    gc.collect()
    store.fail()
    gc.collect()
    assert folder.read("file") == b"old"
    assert folder.walk() == {"file": 3}
    folder.write(LARGE, "file")
    assert folder.read("file") == LARGE


@pytest.mark.usefixtures("impatient")
def test_a_small_file_is_one_request_and_leaves_the_old_object_if_that_fails(store, folder):
    folder.write(b"old", "file")
    store.forget()
    store.fail(Rule("error", "PUT"))
    with pytest.raises(StoreError, match="cannot write"):
        folder.write(b"n" * files.ONE_REQUEST, "file")
    gc.collect()
    assert [method for _, method, _, _ in store.asked()] == ["PUT"] * files.TRIES
    store.fail()
    assert folder.read("file") == b"old"
    store.forget()
    folder.write(b"n" * files.ONE_REQUEST, "file")
    assert len(store.asked()) == 1
    assert folder.read("file") == b"n" * files.ONE_REQUEST


@pytest.mark.parametrize("action", ["error", "drop", pytest.param("hang", marks=pytest.mark.long)])
def test_a_store_that_stays_broken_is_an_error_in_one_line_and_nothing_is_harmed(store, folder, monkeypatch, action):
    folder.write(b"old", "file")
    monkeypatch.setattr(files, "PATIENCE", 1.0)
    impatient = Files(folder.uri)
    store.fail(Rule(action))
    for verb, act in {
        "write": lambda: impatient.write(b"new", "file"),
        "read": lambda: impatient.read("file"),
        "list": lambda: impatient.names(),
        "delete": lambda: impatient.delete("file"),
    }.items():
        began = time.monotonic()
        with pytest.raises(StoreError, match=f"^cannot {verb} .*tried for") as caught:
            act()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
        # A silent server is given up after two tries of a second each, and some seconds of curl's own.
        assert time.monotonic() - began < 30
    store.fail()
    assert folder.read("file") == b"old"


def test_a_silent_store_is_given_up_in_time(store, folder, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 1.0)
    impatient = Files(folder.uri)
    store.fail(Rule("hang"))
    began = time.monotonic()
    with pytest.raises(StoreError, match="Timeout was reached"):
        impatient.read("file")
    assert time.monotonic() - began < 10, "what pyarrow does by itself takes a hundred seconds"


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AccessDenied"), (403, "SignatureDoesNotMatch"), (400, "ExpiredToken"), (507, "InsufficientStorage")],
)
def test_what_no_further_try_changes_is_told_at_once(store, folder, status, code):
    folder.write(b"old", "file")
    store.fail(Rule("error", status=status, code=code))
    store.forget()
    for act in (lambda: folder.write(b"new", "file"), lambda: folder.read("file"), lambda: folder.names()):
        with pytest.raises(StoreError) as caught:
            act()
        assert "tried for" not in str(caught.value)
    assert len(store.asked()) == 3, "one request each"
    store.fail()
    assert folder.read("file") == b"old"


def test_a_bucket_that_is_not_there_is_not_made(store):
    missing = Files(child(store.uri("nowhere"), "study"))
    with pytest.raises(StoreError, match="NO_SUCH_BUCKET") as caught:
        missing.write(b"x", "file")
    assert "\n" not in str(caught.value)
    assert missing.read("file") is None
    with pytest.raises(StoreError, match="NO_SUCH_BUCKET"):
        missing.check_writable()


@pytest.mark.parametrize("query", ["endpoint=127.0.0.1:1", "scheme=http&region="])
def test_an_address_with_a_slip_in_it_is_told_in_one_line(query, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.0)
    with pytest.raises(StoreError) as caught:
        Files(f"s3://bucket/study?{query}").read("file")
    assert "\n" not in str(caught.value)


def test_a_program_that_is_interrupted_while_it_writes_leaves_the_old_object_or_the_new_one(store, folder):
    program = (
        "import sys; from study.files import Files; folder = Files(sys.argv[1]); large = b'n' * 25_000_000\n"
        "print('ready', flush=True)\n"
        "while True: folder.write(large, 'file')\n"
    )
    for moment in (0.0, 0.03, 0.1, 0.2):
        folder.write(b"old", "file")
        process = subprocess.Popen(
            [sys.executable, "-c", program, folder.uri],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**ENVIRONMENT, **CREDENTIALS},
        )
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        assert folder.read("file") in (b"old", b"n" * 25_000_000)


# Whole studies


def run(file, storage, *, patience=None):
    """`study run` with the store's credentials, in the background."""
    more = {} if patience is None else {files.VARIABLE: str(patience)}
    return start_run(file, storage, **CREDENTIALS, **more)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def calm(file):
    """What the study finds if nothing disturbs it."""
    return Tables.by_a_plain_loop(file, file.parent / "nowhere")


@pytest.fixture
def storage(store, bucket):
    store.forget()
    return store.uri(bucket)


def in_the_middle(store):
    """Some checkpoints are written, and many are not."""
    return len(store.asked("PUT", r"/checkpoints/\d+\.pt")) >= 5


def test_a_study_on_a_store_that_fails_for_a_while_is_the_one_of_a_local_folder(store, storage, file, calm):
    process = run(file, storage)
    try:
        wait_for(lambda: in_the_middle(store))
        with store.failing(Rule("error")):
            # The driver writes now and then only; workers wait as it does, and do not say so.
            wait_for(lambda: store.asked("PUT", "/(lock|records)/", "error"))
            time.sleep(3)
    except BaseException:
        end(process, descendants(process.pid))
        raise
    code, out, err = ended(process)
    assert code == 0, err
    assert "3 complete" in out
    assert "trying again for 120 s" in err
    assert "answers again" in err
    calm.assert_found_in(child(storage, "tiny"))


@pytest.mark.long
def test_a_study_whose_driver_is_killed_goes_on_over_an_object_store(store, storage, file, calm):
    process = run(file, storage)
    family = []
    try:
        wait_for(lambda: in_the_middle(store) and trial_workers(process.pid))
        family = descendants(process.pid)
    finally:
        end(process, family)
    code, _, err = ended(run(file, storage))
    assert code == 0, err
    calm.assert_found_in(child(storage, "tiny"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("rules", "patience", "words"),
    [
        ([Rule("error")], 5, "INTERNAL_FAILURE|HTTP status 500"),
        ([Rule("hang")], 5, "Timeout was reached"),
        ([Rule("error", status=403, code="AccessDenied")], 120, "ACCESS_DENIED"),
        ([Rule("error", "PUT", r"/checkpoints/\d+\.pt", status=403, code="AccessDenied")], 120, "ACCESS_DENIED"),
        ([Rule("error", "PUT", r"/records/", status=507, code="InsufficientStorage")], 120, "InsufficientStorage"),
    ],
    ids=["errors", "silence", "refused", "checkpoints refused", "full"],
)
def test_a_store_that_stays_broken_stops_the_run_and_the_same_command_goes_on(
    store, storage, file, calm, rules, patience, words
):
    process = run(file, storage, patience=patience)
    try:
        wait_for(lambda: in_the_middle(store))
        store.fail(*rules)
    except BaseException:
        end(process, descendants(process.pid))
        raise
    began = time.monotonic()
    code, out, err = ended(process)
    took = time.monotonic() - began
    store.fail()
    assert code == 2, (out, err)
    last = err.splitlines()[-1]
    assert last.startswith("study: cannot ")
    assert re.search(words, last), err
    assert took < 120, "patience, and what ending the workers takes"
    # What was stored is as it was: it is read, and it is a part of the whole.
    folder = StudyFolder(child(storage, "tiny"))
    assert folder.spec()["name"] == "tiny"
    if folder.rows("history"):
        calm.assert_has(folder.uri)
    code, out, err = ended(run(file, storage))
    assert code == 0, err
    calm.assert_found_in(folder.uri)


@pytest.mark.long
def test_a_study_into_a_bucket_that_is_not_there_says_so_in_one_line(store, file):
    code, out, err = ended(run(file, store.uri("nowhere")))
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert "NO_SUCH_BUCKET" in err
    assert "to train" not in out, "before anything is begun"


def test_credentials_are_not_printed(store, bucket):
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in repr(Files(store.uri(bucket)).__dict__)
