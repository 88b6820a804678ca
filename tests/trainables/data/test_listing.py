"""Folders of images are listed as ImageFolder lists them, and whatever is wrong with one is named in one line."""

import os
import shutil

import numpy as np
import pytest

from trainables.data import DATASETS, DataError, files
from trainables.data.listing import EXTENSIONS, listed


@pytest.fixture
def small_imagenet(tmp_path, folder_of, monkeypatch):
    folder_of(tmp_path / "imagenet" / "train", ("n01", "n02"), 4)
    folder_of(tmp_path / "imagenet" / "val", ("n01", "n02"), 2)
    facts = DATASETS["imagenet"]
    monkeypatch.setitem(DATASETS, "imagenet", type(facts)(2, 3, None, 8, 4, 2, "small", streams=True))
    return tmp_path


def refuse(root, *expected, name="image_folder", folder="mine"):
    with pytest.raises(DataError) as caught:
        listed(name, None if root is None else str(root), folder)
    text = str(caught.value)
    assert "\n" not in text
    for part in (name, *expected):
        assert part in text


def image_folder(path):
    from torchvision.datasets import ImageFolder

    return [(os.path.relpath(file, path), label) for file, label in ImageFolder(path).samples]


def test_extensions_are_torchvisions():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert EXTENSIONS == IMG_EXTENSIONS


def test_a_training_folder_is_listed_as_imagefolder_lists_it(tmp_path, folder_of, draw):
    base = folder_of(tmp_path / "mine" / "train")
    folder_of(tmp_path / "mine" / "test", each=2)
    draw(base / "bee" / "deeper" / "still" / "x.JPEG")
    draw(base / "bee" / "deeper" / "y.PNG")
    (base / "bee" / "notes.txt").write_text("no image")
    (base / "beside.txt").write_text("no class")
    found = listed("image_folder", str(tmp_path), "mine")
    for part, paths, labels in (("train", found.train, found.train_labels), ("test", found.test, found.test_labels)):
        own = [(os.path.relpath(p, part), label) for p, label in zip(paths, labels, strict=True)]
        assert own == image_folder(tmp_path / "mine" / part)
    assert found.classes == 3


def test_hidden_files_and_folders_do_not_count(tmp_path, folder_of, draw):
    base = folder_of(tmp_path / "mine")
    before = listed("image_folder", str(tmp_path), "mine")
    draw(base / ".cache" / "a.png")
    draw(base / "ant" / ".thumbnails" / "a.png")
    draw(base / "ant" / ".a.png")
    assert listed("image_folder", str(tmp_path), "mine") == before


def test_a_link_to_a_class_folder_is_followed(tmp_path, folder_of):
    base = folder_of(tmp_path / "mine", ("ant", "bee"))
    (base / "cow").symlink_to(folder_of(tmp_path / "elsewhere", ("cow",)) / "cow")
    found = listed("image_folder", str(tmp_path), "mine")
    assert (found.classes, len(found.train) + len(found.test)) == (3, 15)


@pytest.mark.parametrize("test", ["test", "val"])
def test_the_test_set_is_test_or_val(tmp_path, folder_of, test):
    folder_of(tmp_path / "mine" / "train", each=3)
    folder_of(tmp_path / "mine" / test, each=2)
    found = listed("image_folder", str(tmp_path), "mine")
    assert {path.split("/")[0] for path in found.test} == {test}
    assert (len(found.train), len(found.test)) == (9, 6)


def test_val_beside_test_is_trained_on(tmp_path, folder_of):
    for part, each in (("train", 3), ("val", 2), ("test", 1)):
        folder_of(tmp_path / "mine" / part, each=each)
    found = listed("image_folder", str(tmp_path), "mine")
    assert [path.split("/")[0] for path in found.train] == ["train"] * 9 + ["val"] * 6
    assert found.train_labels == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 1, 1, 2, 2]
    assert {path.split("/")[0] for path in found.test} == {"test"}


def test_a_folder_without_a_test_set_gives_a_fifth_of_each_class_to_it(tmp_path, folder_of):
    folder_of(tmp_path / "mine", each=10)
    found = listed("image_folder", str(tmp_path), "mine")
    assert np.bincount(found.test_labels).tolist() == [2, 2, 2]
    assert np.bincount(found.train_labels).tolist() == [8, 8, 8]
    everything = [*zip(found.train, found.train_labels, strict=True), *zip(found.test, found.test_labels, strict=True)]
    assert sorted(everything) == sorted(image_folder(tmp_path / "mine"))
    # Results on another test set must not be compared with these: raise recipe.SEMANTICS if this has to change.
    assert list(found.test) == ["ant/5.png", "ant/7.png", "bee/3.png", "bee/4.png", "cat/4.png", "cat/7.png"]


def test_real_flowers_are_89_classes_of_20(flowers89):
    found = listed("image_folder", str(flowers89), "flowers89")
    assert found.classes == 89
    assert np.bincount(found.train_labels).tolist() == [16] * 89
    assert np.bincount(found.test_labels).tolist() == [4] * 89


def test_what_is_missing_is_named_with_the_layout(tmp_path, folder_of):
    refuse(None, "data root", "mine")
    refuse(tmp_path / "nowhere", "does not exist", str(tmp_path / "nowhere"))
    refuse(tmp_path, "`folder` says", folder=None)
    refuse(tmp_path, str(tmp_path / "mine"), "missing", "one folder of images for each class")
    (tmp_path / "mine").mkdir()
    refuse(tmp_path, "no class folders", "one folder of images for each class")
    folder_of(tmp_path / "mine", ("inner",))
    refuse(tmp_path, "only one class folder, inner/")
    folder_of(tmp_path / "other" / "train")
    refuse(tmp_path, "neither test/ nor val/", folder="other")
    folder_of(tmp_path / "third" / "val")
    refuse(tmp_path, "has val/ and no train/", folder="third")


def test_a_class_without_images_is_named(tmp_path, folder_of):
    base = folder_of(tmp_path / "mine")
    (base / "dog").mkdir()
    (base / "dog" / "readme.txt").write_text("soon")
    refuse(tmp_path, str(base / "dog"), "holds no images", ".jpg")


def test_classes_that_differ_between_train_and_test_are_named(tmp_path, folder_of):
    folder_of(tmp_path / "mine" / "train", ("ant", "bee"))
    folder_of(tmp_path / "mine" / "test", ("ant", "bee", "rose"))
    refuse(tmp_path, "test/ of", "has the class 'rose' that train/ has not")
    shutil.rmtree(tmp_path / "mine" / "test" / "rose")
    shutil.rmtree(tmp_path / "mine" / "test" / "ant")
    folder_of(tmp_path / "mine" / "test", ("bee",))
    folder_of(tmp_path / "mine" / "train", ("cat",))
    folder_of(tmp_path / "mine" / "test", ("cat",))
    refuse(tmp_path, "train/ of", "has the class 'ant' that test/ has not")


def test_a_link_to_nothing_and_a_link_in_a_circle_are_named(tmp_path, folder_of):
    base = folder_of(tmp_path / "mine")
    (base / "ant" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    refuse(tmp_path, str(base / "ant" / "gone.jpg"), "link to nothing")
    (base / "ant" / "gone.jpg").unlink()
    (base / "ant" / "again").symlink_to(base / "ant")
    refuse(tmp_path, str(base / "ant" / "again"), "it lies in")


def test_too_few_images_to_split_are_refused(tmp_path, folder_of):
    folder_of(tmp_path / "mine", ("ant", "bee"), 1)
    refuse(tmp_path, "2 images, too few")


def test_imagenet_is_train_and_val(small_imagenet):
    found = listed("imagenet", str(small_imagenet))
    assert [(p[len("train/") :], label) for p, label in zip(found.train, found.train_labels, strict=True)] == (
        image_folder(small_imagenet / "imagenet" / "train")
    )
    assert [(p[len("val/") :], label) for p, label in zip(found.test, found.test_labels, strict=True)] == (
        image_folder(small_imagenet / "imagenet" / "val")
    )


def test_a_part_of_imagenet_is_not_taken_for_imagenet(small_imagenet, draw):
    base = small_imagenet / "imagenet"
    draw(base / "train" / "n01" / "more.png")
    refuse(small_imagenet, "has 9 training images", "published set 8", "image_folder", name="imagenet")
    shutil.rmtree(base / "val")
    refuse(small_imagenet, str(base / "val"), "missing", "imagenet/train/ and imagenet/val/", name="imagenet")


def test_an_unreadable_folder_is_named(tmp_path, folder_of, monkeypatch):
    base = folder_of(tmp_path / "mine")
    real = os.scandir

    def closed(path):
        if str(path) == str(base / "bee"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match="bee cannot be read: permission denied"):
        listed("image_folder", str(tmp_path), "mine")


def test_facts_of_an_unknown_name_are_refused():
    with pytest.raises(DataError, match="did you mean imagenet"):
        files.facts_of("imagnet")
