"""The benchmark of augmentation compares pipelines that do the same, and says what it measured."""

import json

import torch

from benchmarks import augmentation
from benchmarks.__main__ import main
from trainables.data.autoaugment import autoaugment
from trainables.data.autoaugment.choices import draw

SMALLEST = augmentation.Plan(batch=6, side=16, rounds=2, repeats=1)


def test_ours_and_the_peer_make_batches_of_one_shape_type_and_scale():
    plan = augmentation.Plan(batch=400, side=32, rounds=1, repeats=1)
    contenders = augmentation.contenders(plan)
    ours, peer = contenders["ours"](), contenders["torchvision on PIL"]()
    assert ours.shape == peer.shape == (400, 3, 32, 32)
    assert ours.dtype == peer.dtype == torch.float32
    # Holes of Cutout, and the numbers that the rest is made of, over 400 images with draws of their own.
    assert abs(float((ours == 0).float().mean() - (peer == 0).float().mean())) < 0.02
    assert abs(float(ours.mean() - peer.mean())) < 0.12
    assert abs(float(ours.std() - peer.std())) < 0.12


def test_the_unsorted_contender_computes_what_the_sorted_one_does():
    x = augmentation.images(SMALLEST)
    choices = draw(len(x), augmentation.POLICY, torch.Generator().manual_seed(4))
    assert torch.equal(augmentation.unsorted(x, choices), autoaugment(x, choices))


def test_a_record_has_every_ratio_and_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(augmentation, "QUICK", SMALLEST)
    assert main(["--quick", "--record", "--folder", str(tmp_path), "augmentation"]) == 0
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["settings"]["policy"] == "cifar10"
    assert len(record["ratios"]) == 4
    assert all(sample["unit"] == "images/s" and sample["n"] == 2 for sample in record["samples"].values())
    assert record["ratios"]["whole pipeline: torchvision on PIL / ours"]["min"] > 0
