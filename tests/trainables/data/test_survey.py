"""A survey knows all that a plan needs, and its fingerprint changes with the data and with nothing else."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from trainables.data import DATASETS, DataError, fingerprint, survey


@pytest.fixture
def mine(tmp_path, folder_of):
    return folder_of(tmp_path / "mine", each=10)


def mark(base):
    return survey("image_folder", str(base.parent), base.name).fingerprint


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_a_fixed_data_set_has_its_known_facts(name):
    found = survey(name)
    assert found.facts == DATASETS[name]
    assert found.fingerprint == fingerprint(name)


def test_a_folders_numbers_are_found(mine):
    facts = survey("image_folder", str(mine.parent), "mine").facts
    assert (facts.classes, facts.train, facts.test, facts.validation) == (3, 24, 6, 2)
    assert (facts.channels, facts.side, facts.streams) == (3, None, False)


def test_real_flowers_are_surveyed(flowers89):
    facts = survey("image_folder", str(flowers89), "flowers89").facts
    assert (facts.classes, facts.train, facts.test, facts.validation) == (89, 1424, 356, 142)


def test_a_fingerprint_belongs_to_the_content_and_not_to_the_place(mine, tmp_path):
    before = mark(mine)
    copy = shutil.copytree(mine, tmp_path / "elsewhere" / "renamed")
    os.utime(copy / "ant" / "0.png", (0, 0))
    (copy / "ant" / "notes.txt").write_text("no image")
    (copy / "ant" / ".hidden.png").write_bytes(b"hidden")
    assert mark(copy) == mark(mine) == before


def test_a_fingerprint_changes_with_a_byte_a_name_a_class_and_a_file(mine):
    marks = [mark(mine)]
    file = mine / "ant" / "0.png"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    marks.append(mark(mine))
    file.write_bytes(content)
    file.rename(mine / "ant" / "00.png")
    marks.append(mark(mine))
    (mine / "ant").rename(mine / "asp")
    marks.append(mark(mine))
    (mine / "asp" / "00.png").unlink()
    marks.append(mark(mine))
    assert len(set(marks)) == 5


def test_two_files_do_not_read_as_one(tmp_path, folder_of):
    """The border between two files is part of the fingerprint."""
    marks = []
    for name, cut in (("a", 30), ("b", 31)):
        base = folder_of(tmp_path / name)
        content = b"x" * 60
        (base / "ant" / "0.png").write_bytes(content[:cut])
        (base / "ant" / "1.png").write_bytes(content[cut:])
        marks.append(mark(base))
    assert marks[0] != marks[1]


def test_a_large_folder_is_told_by_its_paths_and_sizes(mine, monkeypatch):
    # The package's name `survey` is the function.
    module = sys.modules["trainables.data.survey"]
    whole = mark(mine)
    monkeypatch.setattr(module, "CONTENTS_LIMIT", 100)
    file = mine / "ant" / "0.png"
    content = file.read_bytes()
    large = mark(mine)
    assert large != whole
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert mark(mine) == large
    file.write_bytes(content + b"0")
    assert mark(mine) != large


def test_an_empty_image_is_found_before_training(mine):
    (mine / "bee" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3\.png is empty"):
        mark(mine)


def test_an_unknown_data_set_is_refused_with_the_nearest_name():
    with pytest.raises(DataError, match="did you mean image_folder"):
        survey("image_foldr", "/", "mine")


def test_a_survey_needs_neither_torch_nor_scipy_nor_pillow(mine):
    code = (
        "import sys; from trainables.data import survey;"
        f"survey('image_folder', {str(mine.parent)!r}, 'mine'); survey('digits');"
        "print([m for m in ('torch', 'torchvision', 'scipy', 'PIL', 'sklearn', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_survey_is_quick_enough_for_a_million_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["trainables.data.survey"], "CONTENTS_LIMIT", 0)
    for part, each in (("train", 500), ("val", 100)):
        for c in range(10):
            folder = tmp_path / "mine" / part / f"n{c:08}"
            folder.mkdir(parents=True)
            for i in range(each):
                (folder / f"n{c:08}_{i}.JPEG").write_bytes(b"x")
    start = time.process_time()
    facts = survey("image_folder", str(tmp_path), "mine").facts
    assert (facts.train, facts.test) == (5000, 1000)
    # 0.1 s of a core: a million files take some twenty seconds
    assert time.process_time() - start < 1
