"""Whole writes, patient reads: which faults are waited out, in what order a file comes to be, what never stays."""

import errno
import io
import itertools
import logging
import os
import pickle
import signal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from study import files
from study.files import TEMPORARY, Files, StoreError, child

#: What names may be made of: everything that Linux and S3 both take, and that is no path.
NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)


class Time:
    """A clock that only `sleep` and the store's own slowness move."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def time(monkeypatch):
    clock = Time()
    monkeypatch.setattr(files, "time", clock)
    return clock


class Store(fs.FileSystemHandler):
    """Objects in memory, as an object store shows them to pyarrow; each request fails first as `faults` say.

    Args:
        faults: an exception, or None for a request that succeeds; when they have run out everything succeeds.
    """

    def __init__(self, faults=()):
        self.objects, self.faults, self.asked = {}, iter(faults), 0

    def request(self):
        self.asked += 1
        fault = next(self.faults, None)
        if fault is not None:
            raise fault

    def open_output_stream(self, path, metadata):
        self.request()
        return pa.PythonFile(_Upload(self, path), mode="w")

    def open_input_file(self, path):
        self.request()
        if path not in self.objects:
            raise FileNotFoundError(path)
        return pa.PythonFile(io.BytesIO(self.objects[path]), mode="r")

    def delete_file(self, path):
        self.request()
        if path not in self.objects:
            raise FileNotFoundError(path)
        del self.objects[path]

    def get_file_info_selector(self, selector):
        self.request()
        root = selector.base_dir + "/"
        return [
            fs.FileInfo(path, fs.FileType.File, size=len(data))
            for path, data in self.objects.items()
            if path.startswith(root) and (selector.recursive or "/" not in path.removeprefix(root))
        ]

    def get_type_name(self):
        return "memory"

    def normalize_path(self, path):
        return path

    def _never(self, *arguments):
        raise AssertionError("not asked of an object store")

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _never
    get_file_info = move = open_append_stream = open_input_stream = _never


class _Upload(io.BytesIO):
    def __init__(self, store, path):
        super().__init__()
        self.store, self.path = store, path

    def close(self):
        if not self.closed:
            self.store.objects[self.path] = self.getvalue()
        super().close()


def remote(store):
    folder = Files("s3://bucket/study")
    folder._place = fs.PyFileSystem(store), "bucket/study"
    return folder


#: What pyarrow says, of faults that pass and of faults that stay.
PASSING = [
    OSError(
        "When reading information for key 'k' in bucket 'b': AWS Error UNKNOWN (HTTP status 500) during HeadObject"
    ),
    OSError("AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate."),
    OSError("AWS Error UNKNOWN (HTTP status 429) during PutObject operation: Unable to parse ExceptionName"),
    OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body."),
    OSError("AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 28, Timeout was reached"),
    OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 7, Could not connect to server"),
    *(OSError(number, os.strerror(number)) for number in (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT)),
]
STAYING = [
    OSError("AWS Error ACCESS_DENIED during PutObject operation: Access Denied"),
    OSError("AWS Error NO_SUCH_BUCKET during PutObject operation: The specified bucket does not exist"),
    OSError("AWS Error SIGNATURE_DOES_NOT_MATCH during ListObjectsV2 operation"),
    OSError("AWS Error UNKNOWN (HTTP status 400) during PutObject operation: ExceptionName: ExpiredToken"),
    OSError("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation: No response body."),
    OSError("AWS Error UNKNOWN (HTTP status 507) during PutObject operation: XMinioStorageFull"),
    OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 60, SSL peer certificate"),
    *(OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)),
]

VERBS = {
    "write": lambda folder: folder.write(b"new", "k"),
    "read": lambda folder: folder.read("k"),
    "list": lambda folder: folder.names(),
    "delete": lambda folder: folder.delete("k"),
}


def words(fault):
    return str(fault)[:70] if fault.errno is None else errno.errorcode[fault.errno]


# Patience


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", PASSING, ids=words)
def test_a_fault_that_passes_is_waited_out(time, fault, verb):
    store = Store([fault] * 3)
    store.objects["bucket/study/k"] = b"old"
    VERBS[verb](remote(store))
    assert store.asked == 4
    assert len(time.slept) == 3


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", STAYING, ids=words)
def test_a_fault_that_stays_is_told_at_once(time, fault, verb):
    store = Store([fault])
    store.objects["bucket/study/k"] = b"old"
    with pytest.raises(StoreError, match=f"^cannot {verb} bucket/study") as caught:
        VERBS[verb](remote(store))
    assert (store.asked, time.slept) == (1, [])
    assert store.objects == {"bucket/study/k": b"old"}
    assert caught.value.__cause__.args == fault.args


def test_patience_ends_when_it_is_said_to_and_not_before(time, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 30.0)
    store = Store(itertools.repeat(PASSING[0]))
    with pytest.raises(StoreError, match=r"^cannot read .*HTTP status 500.* \(tried for 30 s\)$"):
        remote(store).read("k")
    assert time.now == pytest.approx(30)
    # The pauses grow, so that a store that is coming back is not run over, and are never long.
    assert max(time.slept) <= files.LONGEST_PAUSE
    assert time.slept[0] <= files.FIRST_PAUSE
    assert 5 < store.asked < 12


def test_a_store_that_is_slow_to_fail_is_not_asked_beyond_the_patience(time, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 30.0)
    store = Store()

    def slow():
        store.asked += 1
        time.now += 20
        raise PASSING[4]

    store.request = slow
    with pytest.raises(StoreError, match="tried for"):
        remote(store).read("k")
    assert store.asked == 2


def test_without_patience_there_is_one_try(time, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.0)
    store = Store([PASSING[0]])
    with pytest.raises(StoreError):
        remote(store).read("k")
    assert (store.asked, time.slept) == (1, [])


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 120.0), ("3", 3.0), ("0", 0.0), ("1.5", 1.5), ("inf", float("inf"))]
)
def test_the_environment_sets_the_patience(monkeypatch, text, seconds):
    monkeypatch.setenv(files.VARIABLE, text)
    assert files.patience() == seconds


@pytest.mark.parametrize("text", ["long", "-1", "nan", "2 min"])
def test_a_patience_that_is_no_number_of_seconds_is_refused_by_name(monkeypatch, tmp_path, text):
    monkeypatch.setenv(files.VARIABLE, text)
    with pytest.raises(StoreError, match=files.VARIABLE):
        Files(str(tmp_path))


def test_a_short_fault_is_not_told_and_a_long_one_is_told_once_with_its_end(time, caplog):
    with caplog.at_level(logging.WARNING, "study.files"):
        remote(Store([PASSING[0]] * 2)).names()
        assert not caplog.records
        remote(Store([PASSING[0]] * 8)).names()
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("cannot list bucket/study: AWS Error UNKNOWN (HTTP status 500)")
    assert first.endswith("trying again for 120 s")
    assert last.startswith("the store answers again after ")


def test_an_error_of_many_lines_is_told_in_one_of_bearable_length(time):
    with pytest.raises(StoreError) as caught:
        remote(Store([OSError("AWS Error ACCESS_DENIED\n" + "because\n" * 500)])).read("k")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_answer_of_the_wrong_length_is_asked_for_again(time):
    class Short(io.BytesIO):
        """Says that it is longer than what it gives, as a connection that is cut does."""

        def read(self, size=-1):
            return super().read()[:2]

    store = Store()
    store.objects["bucket/study/k"] = b"whole"
    usual = store.open_input_file
    answers = iter([lambda path: pa.PythonFile(Short(b"whole"), mode="r"), usual])
    store.open_input_file = lambda path: next(answers)(path)
    assert remote(store).read("k") == b"whole"
    assert len(time.slept) == 1


# A local file


class Disk:
    """What is asked of the operating system, in order; and the calls that are to fail."""

    def __init__(self, monkeypatch):
        self.calls, self.failing = [], {}
        for name in ("makedirs", "fsync", "replace", "unlink"):
            monkeypatch.setattr(files.os, name, self._watched(name, getattr(os, name)))

    def fail(self, name, number, times=1):
        self.failing[name] = [number] * times

    def _watched(self, name, usual):
        def call(*arguments, **more):
            what = arguments[0]
            if isinstance(what, int):
                what = os.readlink(f"/proc/self/fd/{what}")
            self.calls.append((name, str(what)))
            if self.failing.get(name):
                raise OSError(self.failing[name][0], os.strerror(self.failing[name].pop()))
            return usual(*arguments, **more)

        return call


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def left(tmp_path):
    return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())


def test_a_file_is_on_the_disk_before_its_name_is_and_its_name_before_the_write_returns(tmp_path, disk):
    Files(str(tmp_path / "study")).write(b"x", "a", "b")
    folder = str(tmp_path / "study" / "a")
    (synced, renamed, removed, *folders) = [call for call in disk.calls if call[0] != "makedirs"]
    temporary = renamed[1]
    assert (synced, renamed[0], removed) == (("fsync", temporary), "replace", ("unlink", temporary))
    assert temporary.startswith(f"{folder}/b.")
    assert temporary.endswith(TEMPORARY)
    # The new folders' own names are in their parents.
    assert folders == [("fsync", folder), ("fsync", str(tmp_path / "study")), ("fsync", str(tmp_path))]


def test_an_old_file_is_replaced_without_a_moment_of_absence(tmp_path, disk):
    folder = Files(str(tmp_path))
    folder.write(b"old", "file")
    seen = []
    usual = files.os.replace
    files.os.replace = lambda *names: (seen.append(folder.read("file")), usual(*names))
    try:
        folder.write(b"new", "file")
    finally:
        files.os.replace = usual
    assert (seen, folder.read("file")) == ([b"old"], b"new")
    assert "unlink" not in [name for name, what in disk.calls if what == str(tmp_path / "file")]


@pytest.mark.parametrize("call", ["makedirs", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, disk, time, call, number):
    folder = Files(str(tmp_path))
    folder.write(b"old", "file")
    disk.fail(call, number)
    with pytest.raises(StoreError, match=f"^cannot write {tmp_path}/file: {os.strerror(number)}$"):
        folder.write(b"new", "file")
    assert left(tmp_path) == ["file"]
    assert folder.read("file") == b"old"
    assert time.slept == []


@pytest.mark.parametrize("call", ["makedirs", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EINTR], ids=errno.errorcode.get)
def test_a_write_that_fails_for_a_while_is_begun_anew_with_another_file(tmp_path, disk, time, call, number):
    folder = Files(str(tmp_path))
    disk.fail(call, number, times=2)
    folder.write(b"new", "file")
    assert left(tmp_path) == ["file"]
    assert folder.read("file") == b"new"
    assert len(time.slept) == 2
    if call == "fsync":
        # What a failed fsync has dropped is not on the disk, whatever the next fsync of the same file says.
        synced = [what for name, what in disk.calls if name == "fsync" and what.endswith(TEMPORARY)]
        assert len(set(synced)) == 3


def test_a_write_that_is_interrupted_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    folder = Files(str(tmp_path))
    folder.write(b"old", "file")

    def interrupt(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        folder.write(b"new", "file")
    assert left(tmp_path) == ["file"]
    assert folder.read("file") == b"old"


def test_a_sweep_removes_what_killed_writers_left_and_nothing_else(tmp_path):
    folder = Files(str(tmp_path))
    folder.write(b"1", "a", "1")
    folder.write(b"half", "a", f"1.0badcafe{TEMPORARY}")
    folder.write(b"half", "a", "b", f"2.0badcafe{TEMPORARY}")
    folder.sweep("a")
    assert folder.walk() == {"a/1": 1}


def test_a_folder_that_goes_while_it_is_listed_is_listed_again(time):
    gone = FileNotFoundError(errno.ENOENT, "Cannot list directory 'bucket/study/lock'")
    store = Store([gone] * 3)
    store.objects["bucket/study/k"] = b"there"
    assert remote(store).walk() == {"k": 5}
    assert store.asked == 4
    assert time.slept == []


# An object


def test_an_object_that_is_interrupted_is_the_old_one_or_the_new_one():
    """A stream that Ctrl-C left between its opening and its last byte would be closed, and become the object."""
    store = Store()
    folder = remote(store)
    folder.write(b"old", "k")
    usual = store.open_output_stream

    def interrupted(path, metadata):
        stream = usual(path, metadata)
        os.kill(os.getpid(), signal.SIGINT)
        return stream

    store.open_output_stream = interrupted
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            folder.write(b"new", "k")
    finally:
        signal.signal(signal.SIGINT, before)
    assert store.objects["bucket/study/k"] in (b"old", b"new")


# Names and addresses


@settings(deadline=None, max_examples=50)  # a disk may be busy with others
@given(st.lists(NAMES, min_size=1, max_size=3), st.binary(max_size=100))
def test_any_name_holds_any_bytes(tmp_path_factory, parts, data):
    folder = Files(str(tmp_path_factory.mktemp("any")))
    folder.write(data, *parts)
    assert folder.read(*parts) == data
    assert folder.names(*parts[:-1]) == [parts[-1]]
    assert folder.walk() == {"/".join(parts): len(data)}
    folder.delete(*parts)
    assert folder.walk() == {}


@settings(deadline=None, max_examples=50)  # a disk may be busy with others
@given(st.dictionaries(NAMES.filter(lambda name: not name.endswith(TEMPORARY)), st.binary(max_size=20), max_size=6))
def test_a_folder_is_what_was_written_last_whatever_it_is_called(tmp_path_factory, wanted):
    folder = Files(str(tmp_path_factory.mktemp("any")))
    for name, data in wanted.items():
        folder.write(b"first", "sub", name)
        folder.write(data, "sub", name)
    folder.sweep()
    assert folder.names("sub") == sorted(wanted)
    assert {name: folder.read("sub", name) for name in folder.names("sub")} == wanted


@given(st.sampled_from(["/", "s3://b", "s3://b/", "s3://b/p?scheme=http", "rel", "rel/"]), NAMES.filter(str.isalnum))
def test_a_child_is_below_its_storage(storage, name):
    address, _, query = child(storage, name).partition("?")
    assert address.endswith(f"/{name}")
    assert "//" not in address.replace("://", "", 1)
    assert query == storage.partition("?")[2]


@pytest.mark.parametrize("uri", ["file:///tmp/x", "file://localhost/tmp/x", "/tmp/x", "/tmp//y/../x/"])
def test_a_local_address_is_a_path(uri):
    folder = Files(uri)
    assert folder.is_local
    assert os.path.normpath(folder.uri) == "/tmp/x"


def test_an_address_of_another_host_is_no_path_of_this_one():
    with pytest.raises(StoreError, match="not a path"):
        Files("file://fileserver/exports/x")


def test_a_copy_that_travels_has_the_address_and_no_connection(tmp_path):
    folder = Files(str(tmp_path))
    folder.write(b"x", "a")
    assert pickle.loads(pickle.dumps(folder)).read("a") == b"x"
    assert folder.__getstate__() == {"uri": str(tmp_path)}
