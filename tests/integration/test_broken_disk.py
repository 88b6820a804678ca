"""A study on a real disk that fills, turns read-only or is not as it should be: mounted here, of a few megabytes."""

import subprocess
import sys

import pytest
from processes import ENVIRONMENT, descendants, end, ended, start_run, wait_for
from undisturbed import Tables

from study.files import TEMPORARY, Files, StoreError
from study.store import StudyFolder

#: The checkpoints of this network are half a megabyte each.
STUDY = """\
name: tiny
question: Does the disk matter?
recipe: {dataset: synthetic, model: mlp, batch_size: 32, epochs: 12, lr: 0.05}
arms:
  fsam: {optimiser: fsam}
  sgd: {optimiser: sgd}
grid: {gamma: [0.05, 0.5]}
seeds: [0, 1]
checkpoints: {every: 1, keep: 12}
"""


class Disk:
    """A filesystem of its own, which is unmounted in the end.

    Args:
        place: the empty folder where it is mounted.
        size: as `mount` takes it, `1m`.
    """

    def __init__(self, place, size):
        self.place = place
        done = _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")

    def change(self, options):
        done = _mount("-o", f"remount,{options}", self.place)
        assert done.returncode == 0, done.stderr

    def remove(self):
        # Lazily: a worker that is just ending may have a file open.
        subprocess.run(["umount", "--lazy", str(self.place)], check=True)


def _mount(*arguments):
    try:
        return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("nothing can be mounted here: there is no mount")


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MB."""
    (tmp_path / "disk").mkdir()
    made = Disk(tmp_path / "disk", "1m")
    yield made
    made.remove()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def calm(file):
    """What the study finds if nothing disturbs it."""
    return Tables.by_a_plain_loop(file, file.parent / "nowhere")


def assert_stopped_by(words, code, err):
    """The run has ended with one line that says why."""
    assert code == 2, err
    (line,) = err.splitlines()
    assert line.startswith("study: cannot write "), err
    assert words in line


def checkpoints(folder):
    return [path for path in folder.walk("trials") if path.endswith(".pt")]


@pytest.mark.long
def test_a_disk_that_fills_stops_the_run_and_with_more_room_the_same_command_goes_on(disk, file, calm):
    code, _, err = ended(start_run(file, disk.place))
    assert_stopped_by("No space left on device", code, err)
    folder = StudyFolder(str(disk.place / "tiny"))
    trials = {path.split("/")[0] for path in checkpoints(folder)}
    assert trials, "it had begun"
    assert not [path for path in folder.walk() if path.endswith(TEMPORARY)]
    for trial in trials:
        payload, damaged = folder.load_checkpoint(trial)
        assert payload, "the old ones are as they were"
        assert not damaged
    if folder.rows("history"):
        calm.assert_has(folder.uri)
    disk.change("size=64m")
    code, out, err = ended(start_run(file, disk.place))
    assert (code, err) == (0, ""), out
    calm.assert_found_in(folder.uri)


@pytest.mark.long
def test_a_disk_that_turns_read_only_stops_the_run_and_the_same_command_goes_on_when_it_is_writable(disk, file, calm):
    disk.change("size=64m")
    folder = StudyFolder(str(disk.place / "tiny"))
    process = start_run(file, disk.place)
    try:
        wait_for(lambda: len(checkpoints(folder)) >= 3)
        # Refused while a file is open for writing: as long as it takes.
        wait_for(lambda: _mount("-o", "remount,ro", disk.place).returncode == 0, every=0.001)
    except BaseException:
        end(process, descendants(process.pid))
        raise
    code, _, err = ended(process)
    # The lock cannot be removed, and its owner is dead.
    assert_stopped_by("Read-only file system", code, err)
    disk.change("rw")
    code, out, err = ended(start_run(file, disk.place))
    assert (code, err) == (0, ""), out
    calm.assert_found_in(folder.uri)


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_a_disk_that_is_read_only_from_the_start_is_told_before_anything_is_begun(disk, file, verb):
    disk.change("ro")
    done = subprocess.run(
        [sys.executable, "-m", "study", verb, str(file), "--storage", str(disk.place)],
        capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    if verb == "plan":
        assert done.returncode == 0, "planning writes nothing"
        return
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "Read-only file system" in line
    assert str(disk.place) in line


def test_a_write_to_a_full_disk_leaves_the_old_file_and_nothing_half_written(disk):
    folder = Files(str(disk.place / "study"))
    folder.write(b"old", "file")
    with pytest.raises(StoreError, match=r"cannot write .*/study/file: No space left on device$"):
        folder.write(bytes(2_000_000), "file")
    assert folder.walk() == {"file": 3}
    assert folder.read("file") == b"old"
    disk.change("size=8m")
    folder.write(bytes(2_000_000), "file")
    assert folder.walk() == {"file": 2_000_000}


def test_a_disk_without_an_inode_left_is_told_and_harms_nothing(disk):
    disk.change("nr_inodes=8")
    folder = Files(str(disk.place))

    def fill():
        for i in range(10):
            folder.write(b"x", "folder", str(i))

    with pytest.raises(StoreError, match=r"No space left on device$"):
        fill()
    names = folder.names("folder")
    assert names
    assert all(folder.read("folder", name) == b"x" for name in names)


def test_a_write_to_a_read_only_disk_is_told_at_once_and_reading_goes_on(disk):
    folder = Files(str(disk.place / "study"))
    folder.write(b"old", "file")
    disk.change("ro")
    for act in (lambda: folder.write(b"new", "file"), lambda: folder.write(b"new", "other", "file"),
                lambda: folder.delete("file"), folder.check_writable):  # fmt: skip
        with pytest.raises(StoreError, match=r"Read-only file system$"):
            act()
    assert folder.read("file") == b"old"


@pytest.mark.parametrize(
    ("there", "words"),
    [("study.json", "Is a directory"), ("plan.parquet", "Is a directory")],
)
def test_a_folder_where_a_file_should_be_is_told_in_one_line(tmp_path, there, words):
    (tmp_path / "study" / there).mkdir(parents=True)
    folder = StudyFolder(str(tmp_path / "study"))
    with pytest.raises(StoreError, match=f"cannot write .*{there}: {words}$"):
        folder.save_study({}, "", [{"cell": "c"}])
    assert not [name for name in folder.names() if name.endswith(TEMPORARY)]


def test_a_file_where_a_folder_should_be_is_told_in_one_line(tmp_path):
    (tmp_path / "study").write_text("thesis")
    folder = Files(str(tmp_path / "study"))
    with pytest.raises(StoreError, match=r"cannot write .*/study/runs/a\.json: .*/study is a file$"):
        folder.write(b"x", "runs", "a.json")
    with pytest.raises(StoreError, match=r"/study is a file$"):
        folder.check_writable()
    assert folder.read("runs", "a.json") is None
    assert (tmp_path / "study").read_text() == "thesis"
