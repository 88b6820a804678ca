"""Pretrained weights are told apart by their bytes, or by their published name."""

import hashlib

import pytest

from trainables.models.weights import WeightsError, weights_mark, weights_source


def test_a_files_mark_is_of_its_bytes_wherever_it_lies(tmp_path):
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"weights")
    (tmp_path / "c").write_bytes(b"Weights")
    expected = hashlib.sha256(b"weights").hexdigest()[:16]
    assert weights_mark(str(tmp_path / "a")) == expected
    assert weights_mark("sub/b", str(tmp_path)) == expected
    assert weights_mark("c", str(tmp_path)) != expected


def test_a_file_that_changes_has_another_mark(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    before = weights_mark(str(file))
    file.write_bytes(b"other")
    assert weights_mark(str(file)) != before == hashlib.sha256(b"one").hexdigest()[:16]


def test_one_name_on_the_hub_has_one_mark_however_it_is_written():
    mark = weights_mark("hub:default", model="deit_b")
    assert mark == weights_mark("hub:deit_base_patch16_224.fb_in1k")
    assert mark == weights_mark("hub:timm/deit_base_patch16_224.fb_in1k")
    assert mark != weights_mark("hub:default", model="vit_b16")
    assert mark != weights_mark("hub:someone/deit_base_patch16_224.fb_in1k")
    assert len(mark) == 16
    assert int(mark, 16)


def test_the_home_folder_is_known_and_an_absolute_path_needs_no_root(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_source("~/a").path == tmp_path / "a"
    assert weights_source(str(tmp_path / "a"), root="elsewhere").path == tmp_path / "a"


@pytest.mark.parametrize(
    ("pretrained", "model", "message"),
    [
        ("missing.pth", None, "no weights at .*missing.pth"),
        (".", None, "cannot read the weights"),
        ("file/inside", None, "cannot read the weights"),
        ("", None, "no local file"),
        ("https://example.org/w.pth", None, "no local file; give its path or hub:NAME"),
        ("hub:", None, "names no weights"),
        ("hub:a/b/c", None, "names no weights"),
        ("hub:/b", None, "names no weights"),
        ("hub:default", "resnet20", "model resnet20 has no published weights"),
        ("hub:default", None, "no published weights"),
    ],
)
def test_what_names_no_weights_is_refused_in_one_line(tmp_path, pretrained, model, message):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(WeightsError, match=message) as caught:
        weights_mark(pretrained, str(tmp_path), model=model)
    assert "\n" not in str(caught.value)
