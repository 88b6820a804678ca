"""Flowers-102 and Stanford Cars are read from torchvision's folders as torchvision reads them."""

import shutil

import numpy as np
import pytest
from scipy.io import savemat

from trainables.data import DATASETS, DataError, survey
from trainables.data.files import DatasetFacts
from trainables.data.listing import listed

FLOWERS = {"trnid": [4, 1, 6], "valid": [3, 8], "tstid": [2, 5, 7]}
FLOWER_LABELS = [1, 2, 3, 1, 2, 3, 1, 2]
CARS = {"train": [("00002.jpg", 3), ("00001.jpg", 1), ("00003.jpg", 2)], "test": [("00001.jpg", 2), ("00002.jpg", 1)]}


def write_flowers(base, sets=FLOWERS, labels=FLOWER_LABELS):
    savemat(base / "setid.mat", {k: np.array([v], dtype=np.uint16) for k, v in sets.items()})
    savemat(base / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})


def write_cars(path, rows):
    dtype = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    table = np.empty((1, len(rows)), dtype=dtype)
    for i, (file, label) in enumerate(rows):
        table[0, i] = (1, 1, 20, 20, np.uint8(label), file)
    savemat(path, {"annotations": table})


@pytest.fixture
def flowers(tmp_path, draw, monkeypatch):
    base = tmp_path / "flowers-102"
    for i in range(1, 9):
        draw(base / "jpg" / f"image_{i:05}.jpg", seed=i)
    write_flowers(base)
    monkeypatch.setitem(DATASETS, "flowers102", DatasetFacts(3, 3, None, 5, 3, 1, "small"))
    return base


@pytest.fixture
def cars(tmp_path, draw, monkeypatch):
    base = tmp_path / "stanford_cars"
    for part, rows in CARS.items():
        for file, label in rows:
            draw(base / f"cars_{part}" / file, seed=label)
    (base / "devkit").mkdir()
    write_cars(base / "devkit" / "cars_train_annos.mat", CARS["train"])
    write_cars(base / "cars_test_annos_withlabels.mat", CARS["test"])
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array([["a", "b", "c"]], dtype=object)})
    monkeypatch.setitem(DATASETS, "stanford_cars", DatasetFacts(3, 3, None, 3, 2, 1, "small"))
    return base


def absolute(found, part):
    paths = {"train": found.train, "test": found.test}[part]
    labels = {"train": found.train_labels, "test": found.test_labels}[part]
    return [(str(found.base / path), label) for path, label in zip(paths, labels, strict=True)]


def refuse(name, base, *expected):
    for way_in in (listed, survey):
        with pytest.raises(DataError) as caught:
            way_in(name, str(base.parent))
        text = str(caught.value)
        assert "\n" not in text
        for part in (name, *expected):
            assert part in text


def test_flowers_are_torchvisions_with_training_and_validation_joined(flowers, monkeypatch):
    from torchvision.datasets import Flowers102

    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: True)
    found = listed("flowers102", str(flowers.parent))
    parts = {split: Flowers102(flowers.parent, split) for split in ("train", "val", "test")}
    theirs = {k: list(zip(map(str, v._image_files), v._labels, strict=True)) for k, v in parts.items()}
    assert absolute(found, "train") == theirs["train"] + theirs["val"]
    assert absolute(found, "test") == theirs["test"]


def test_cars_are_torchvisions(cars):
    from torchvision.datasets import StanfordCars

    found = listed("stanford_cars", str(cars.parent))
    for part in ("train", "test"):
        assert absolute(found, part) == StanfordCars(cars.parent, part)._samples


def test_published_counts_are_the_papers():
    known = {name: (f.classes, f.train, f.test) for name, f in DATASETS.items()}
    assert known["flowers102"] == (102, 1020 + 1020, 6149)
    assert known["stanford_cars"] == (196, 8144, 8041)
    assert known["imagenet"] == (1000, 1_281_167, 50_000)


def test_labels_and_images_are_part_of_the_fingerprint(flowers, cars):
    for name, base in (("flowers102", flowers), ("stanford_cars", cars)):
        before = survey(name, str(base.parent))
        assert before.facts == DATASETS[name]
        assert before.fingerprint == survey(name, str(base.parent)).fingerprint
    marks = {survey("flowers102", str(flowers.parent)).fingerprint}
    write_flowers(flowers, labels=[2, 1, *FLOWER_LABELS[2:]])
    marks.add(survey("flowers102", str(flowers.parent)).fingerprint)
    shutil.copy(flowers / "jpg" / "image_00001.jpg", flowers / "jpg" / "image_00002.jpg")
    marks.add(survey("flowers102", str(flowers.parent)).fingerprint)
    assert len(marks) == 3


def test_a_label_out_of_range_is_named_with_its_image(flowers, cars):
    write_flowers(flowers, labels=[4, *FLOWER_LABELS[1:]])
    refuse("flowers102", flowers, "imagelabels.mat", "image_00001.jpg the class 4", "1 .. 3")
    write_cars(cars / "devkit" / "cars_train_annos.mat", [("00001.jpg", 0), *CARS["train"][1:]])
    refuse("stanford_cars", cars, "cars_train_annos.mat", "00001.jpg the class 0", "1 .. 3")


def test_a_position_out_of_range_is_named(flowers):
    write_flowers(flowers, sets={**FLOWERS, "tstid": [2, 5, 9]})
    refuse("flowers102", flowers, "setid.mat names image 9", "8 labels")


def test_missing_files_and_folders_are_named(flowers, cars):
    (flowers / "jpg" / "image_00005.jpg").unlink()
    refuse("flowers102", flowers, "image_00005.jpg is missing")
    (cars / "cars_test" / "00002.jpg").unlink()
    refuse("stanford_cars", cars, "00002.jpg is missing")
    shutil.rmtree(flowers / "jpg")
    refuse("flowers102", flowers, str(flowers / "jpg"), "missing")
    (cars / "cars_test_annos_withlabels.mat").unlink()
    refuse("stanford_cars", cars, "cars_test_annos_withlabels.mat is missing")
    shutil.rmtree(cars)
    refuse("stanford_cars", cars, "cars_train/", "devkit/cars_train_annos.mat")


def test_damaged_annotations_are_one_line(flowers, cars):
    path = flowers / "setid.mat"
    whole = path.read_bytes()
    for content in (b"", b"not MATLAB", whole[:-20], whole[:140]):
        path.write_bytes(content)
        refuse("flowers102", flowers, "setid.mat")
    savemat(path, {"other": [1]})
    refuse("flowers102", flowers, "setid.mat has no 'trnid'")
    savemat(cars / "cars_test_annos_withlabels.mat", {"annotations": [1, 2]})
    refuse("stanford_cars", cars, "file name and class")


def test_a_set_of_another_size_is_refused(flowers):
    write_flowers(flowers, sets={**FLOWERS, "tstid": [2, 5]})
    refuse("flowers102", flowers, "2 test images", "published set 3")
