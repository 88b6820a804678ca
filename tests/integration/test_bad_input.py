"""What a newcomer gets wrong: one clear line, exit code 2, no traceback, and nothing changed on disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from processes import study

GOOD = """\
name: small
question: Does it work?
recipe: {dataset: digits, model: digits_cnn, optimiser: fsam, epochs: 2, batch_size: 64}
grid: {gamma: [0.1]}
"""


def tree(path):
    return {str(p): p.stat().st_mtime_ns for p in Path(path).rglob("*")}


def refused(path, *arguments):
    """Run, and check that it was refused properly; returns the message."""
    before = tree(path)
    done = study(*arguments, cwd=path)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.strip()
    assert tree(path) == before, "nothing may change on disk"
    return done.stderr


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(GOOD)
    return file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("recipe.gamma=-1", ["gamma"]),
        ("gamma=[-1]", ["grid.gamma[0]", "-1 is not above 0"]),
        ("gamma=[big]", ["grid.gamma[0]", "'big' is not a number"]),
        ("recipe.model=resnet_20", ["resnet_20", "did you mean resnet20?"]),
        ("recipe.optimizer=sam", ["recipe.optimizer", "did you mean optimiser?"]),
        ("seeds=[]", ["seeds"]),
        ("resources.cpu=0", ["resources.cpu"]),
        ("scheduler=median", ["scheduler"]),
        ("recipe.dataset=cifar10", ["cifar10"]),  # no data root
        ("recipe.label_noise=1.2", ["recipe.label_noise", "1.2 is above 1"]),
        ("measures.perturbation.alpha=[1, 0.5]", ["measures.perturbation.alpha", "increas"]),
        ("validation_size=2000", ["validation_size", "2000 leaves no training images of 1437"]),
        ("pretrained=nowhere.pt", ["no weights at nowhere.pt"]),
        ("pretrained=small.yaml", ["small.yaml is no file of weights"]),
        ("pretrained=hub:default", ["digits_cnn has no published weights"]),
    ],
)
def test_a_wrong_setting(file, tmp_path, change, words):
    message = refused(tmp_path, "run", file, "--set", change)
    assert len(message.strip().splitlines()) == 1, message
    for word in words:
        assert word in message


def test_a_file_that_is_not_there(tmp_path):
    assert "no such file" in refused(tmp_path, "run", "nothing.yaml")


def test_a_verb_or_option_that_does_not_exist(tmp_path, file):
    refused(tmp_path, "rnu", file)
    refused(tmp_path, "run", file, "--adress", "x")
    refused(tmp_path)


def test_a_data_root_that_is_missing_empty_or_corrupt(tmp_path, file):
    cifar = ("--set", "recipe.dataset=cifar10", "--set", "recipe.model=resnet20")
    assert "nowhere" in refused(tmp_path, "run", file, *cifar, "--data", tmp_path / "nowhere")
    (tmp_path / "data").mkdir()
    assert "cifar-10-batches-py" in refused(tmp_path, "run", file, *cifar, "--data", tmp_path / "data")
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(b"not a batch")
    assert "data_batch_1" in refused(tmp_path, "run", file, *cifar, "--data", tmp_path / "data")


def test_a_download_without_a_place_to_put_it(tmp_path, file):
    cifar = ("--set", "recipe.dataset=cifar10", "--set", "recipe.model=resnet20")
    assert "data root" in refused(tmp_path, "run", file, *cifar, "--download")


def test_a_storage_that_cannot_be_written(tmp_path, file):
    (tmp_path / "a_file").write_text("")
    assert "is a file" in refused(tmp_path, "run", file, "--storage", tmp_path / "a_file" / "results")
    if os.path.isdir("/proc"):
        assert "cannot write" in refused(tmp_path, "run", file, "--storage", "/proc/results")
    assert "s4://" in refused(tmp_path, "run", file, "--storage", "s4://bucket/results")


def test_a_folder_that_holds_something_else(tmp_path, file):
    (tmp_path / "results" / "small").mkdir(parents=True)
    (tmp_path / "results" / "small" / "thesis.tex").write_text("years of work")
    assert "no study" in refused(tmp_path, "run", file)


def test_a_folder_that_holds_another_study(tmp_path, file):
    from study.plan import make_plan
    from study.spec import Study
    from study.store import StudyFolder

    other = Study.load(file, ["question=Something else?", "epochs=3"])
    folder = StudyFolder(str(tmp_path / "results" / "small"))
    folder.save_study(other.model_dump(mode="json"), "", make_plan(other, folder).rows())
    message = refused(tmp_path, "run", file)
    assert "another study" in message
    assert "Something else?" in message


def test_resources_that_the_cluster_can_never_have(tmp_path, file, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "cpu 4000" in refused(tmp_path, "run", file, "--set", "resources.cpu=4000")
    said = refused(tmp_path, "run", file, "--set", "resources.gpu=64")
    assert "64 processes for 1 seed: some would idle" in said
    assert "gpu 1" in refused(tmp_path, "run", file, "--set", "resources.gpu=1")


def test_a_cluster_that_is_not_there(tmp_path, file):
    assert "127.0.0.1:1" in refused(tmp_path, "run", file, "--address", "127.0.0.1:1")


def test_a_report_of_what_is_no_study(tmp_path):
    assert "holds no study" in refused(tmp_path, "report", tmp_path)
    assert "holds no study" in refused(tmp_path, "report", tmp_path / "nowhere")


def test_a_report_that_cannot_be_written(tmp_path, file):
    from study.plan import make_plan
    from study.spec import Study
    from study.store import StudyFolder

    study_file = Study.load(file)
    folder = StudyFolder(str(tmp_path / "results" / "small"))
    folder.save_study(study_file.model_dump(mode="json"), "", make_plan(study_file, folder).rows())
    (tmp_path / "a_file").write_text("")
    assert "cannot write" in refused(tmp_path, "report", folder.uri, "--out", tmp_path / "a_file" / "report")
    assert "of this machine" in refused(tmp_path, "report", folder.uri, "--out", "s3://bucket/report")


def test_a_number_of_cpus_that_is_none(tmp_path, file):
    assert "-1 is below 1" in refused(tmp_path, "run", file, "--cpus", "-1")
    assert "0 is below 1" in refused(tmp_path, "run", file, "--cpus", "0")
    assert "'many' is no whole number" in refused(tmp_path, "run", file, "--cpus", "many")


def test_weights_of_another_network_are_refused_before_a_cluster_is_started(file, tmp_path):
    build = "from trainables.models import build; from trainables.models.pretrained import save_weights; "
    make = "network = build('mlp', classes=10, channels=1, side=8); "
    save = "save_weights(network.state_dict(), 'mlp.safetensors', model='mlp', classes=10, about={})"
    subprocess.run([sys.executable, "-c", build + make + save], cwd=tmp_path, check=True)
    message = refused(tmp_path, "run", file, "--set", "pretrained=mlp.safetensors")
    assert len(message.strip().splitlines()) == 1, message
    assert "holds mlp, not digits_cnn" in message


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes with ten pictures each."""
    for name in ("rose", "tulip"):
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (20, 16), (10 * i, 90, 40)).save(tmp_path / "flowers" / name / f"{i}.png")
    text = "name: pictures\nquestion: q\nrecipe: {dataset: image_folder, folder: flowers, image_side: 16, model: mlp, "
    file = tmp_path / "pictures.yaml"
    file.write_text(text + "optimiser: sgd, epochs: 1, batch_size: 4, validation_size: 4}\n")
    return file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("folder=rosen", ["rosen"]),
        ("folder=flowers/rose", ["flowers/rose", "class"]),
        ("validation_size=16", ["validation_size", "16 leaves no training images of 16"]),
        ("train_size=50", ["train_size", "50 asked, 12 there"]),
        ("validation_size=null", ["validation_size", "is missing"]),
    ],
)
def test_a_wrong_folder_of_images(pictures, tmp_path, change, words):
    message = refused(tmp_path, "run", pictures, "--data", ".", "--set", change)
    assert len(message.strip().splitlines()) == 1, message
    for word in words:
        assert word in message


def test_an_image_that_does_not_decode_is_named_and_tried_once(pictures, tmp_path):
    (tmp_path / "flowers" / "rose" / "3.png").write_bytes(b"no picture")
    done = study("run", pictures, "--data", tmp_path, "--storage", tmp_path, "--no-report")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("3.png") == 1, done.stderr
    assert "Traceback" not in done.stderr
