"""Files that are missing, damaged or unreadable are named in one line, and intact ones have one fingerprint."""

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path

import pytest

from trainables.data import DATASETS, DataError, fingerprint, load
from trainables.data.files import LAYOUTS, digits_file

CIFAR = sorted(LAYOUTS)


def refuse(name, root, *expected):
    """Both ways in refuse it, with one line that says `expected`."""
    for way_in in (fingerprint, load):
        with pytest.raises(DataError) as caught:
            way_in(name, None if root is None else str(root))
        text = str(caught.value)
        assert "\n" not in text
        for part in expected:
            assert part in text


def fake(root, name):
    """All files of a data set, each with the wrong bytes."""
    folder = root / LAYOUTS[name].folder
    folder.mkdir(parents=True)
    for file, _ in LAYOUTS[name].files:
        (folder / file).write_bytes(b"not the published bytes")
    return folder


@contextlib.contextmanager
def as_nobody():
    """Root may read everything: take its rights away for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_fingerprint_is_the_hash_of_the_bytes():
    assert fingerprint("digits") == hashlib.sha256(digits_file().read_bytes()).hexdigest()[:16]
    assert fingerprint("digits") != fingerprint("synthetic")


@pytest.mark.parametrize("name", CIFAR)
def test_layouts_are_torchvisions(name):
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    files = [*map(tuple, kind.train_list), *map(tuple, kind.test_list), (kind.meta["filename"], kind.meta["md5"])]
    assert LAYOUTS[name].files == tuple(files)
    assert (LAYOUTS[name].folder, LAYOUTS[name].archive) == (kind.base_folder, kind.filename)


@pytest.mark.parametrize("name", CIFAR)
def test_a_missing_root_is_named(name, tmp_path):
    refuse(name, None, "data root", LAYOUTS[name].folder)
    refuse(name, tmp_path / "nowhere", "does not exist", str(tmp_path / "nowhere"), LAYOUTS[name].folder)
    refuse(name, tmp_path, "missing", LAYOUTS[name].folder)


@pytest.mark.parametrize("name", CIFAR)
def test_a_root_that_is_a_file_is_named(name, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    refuse(name, file, "not a folder", str(file))


@pytest.mark.parametrize("name", CIFAR)
def test_an_archive_that_is_not_unpacked_is_named(name, tmp_path):
    (tmp_path / LAYOUTS[name].archive).write_bytes(b"")
    refuse(name, tmp_path, f"unpack {LAYOUTS[name].archive}")


@pytest.mark.parametrize("name", CIFAR)
def test_a_missing_file_is_named(name, tmp_path):
    folder = fake(tmp_path, name)
    last = LAYOUTS[name].files[-1][0]
    (folder / last).unlink()
    refuse(name, tmp_path, str(folder / last), "missing")
    (folder / last).mkdir()
    refuse(name, tmp_path, str(folder / last), "not a file")


@pytest.mark.parametrize("name", CIFAR)
def test_a_file_with_other_bytes_is_named(name, tmp_path):
    folder = fake(tmp_path, name)
    refuse(name, tmp_path, str(folder / LAYOUTS[name].files[0][0]), "damaged")


@pytest.mark.parametrize("closed", ["root", "folder", "file"])
def test_what_may_not_be_read_is_named(closed):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to nobody
        base = Path(name)
        base.chmod(0o755)
        folder = fake(base, "cifar10")
        target = {"root": base, "folder": folder, "file": folder / "data_batch_1"}[closed]
        mode = target.stat().st_mode
        target.chmod(0)
        with as_nobody(), pytest.raises(DataError) as caught:
            fingerprint("cifar10", str(base))
        target.chmod(mode)
        assert "permission denied" in str(caught.value)
        assert str(base) in str(caught.value)


def test_a_home_folder_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = fake(tmp_path / "data", "cifar10")
    refuse("cifar10", "~/data", str(folder), "damaged")


def test_an_unknown_name_is_refused_with_the_nearest_one():
    refuse("cifar11", None, "did you mean cifar10")


@pytest.mark.cifar
def test_real_cifar10_has_the_published_fingerprint_quickly(cifar_root):
    start = time.perf_counter()
    found = fingerprint("cifar10", cifar_root)
    assert time.perf_counter() - start < 2  # 0.12 s on a quiet core
    assert found == LAYOUTS["cifar10"].fingerprint


@pytest.mark.cifar
def test_one_changed_or_lost_byte_is_found_and_its_file_named(cifar_root, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    real = Path(cifar_root) / "cifar-10-batches-py"
    for path in real.iterdir():
        (folder / path.name).symlink_to(path)
    assert fingerprint("cifar10", str(tmp_path)) == LAYOUTS["cifar10"].fingerprint
    content = (real / "test_batch").read_bytes()
    (folder / "test_batch").unlink()
    for damaged in (content[:-1], content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]):
        (folder / "test_batch").write_bytes(damaged)
        with pytest.raises(DataError, match="test_batch is damaged"):
            fingerprint("cifar10", str(tmp_path))


def test_default_validation_leaves_most_images_for_training():
    for name, facts in DATASETS.items():
        if name != "image_folder":  # nothing is known of it before its files are looked at
            assert 0 < facts.validation <= facts.train / 4, name
