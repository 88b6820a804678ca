"""The benchmark of an epoch compares the same work, and says what it asks for."""

import pytest
import torch

from benchmarks import epoch
from benchmarks.__main__ import main

SMALLEST = epoch.Scale(train=40, validation=20, test=20, rounds=2, batch=20)


def test_ours_and_the_loop_begin_with_the_same_weights_and_images(monkeypatch):
    threads = torch.get_num_threads()
    try:
        given = {"optimiser": "sam", "scale": epoch.asdict(SMALLEST), "data_root": None}
        ours, peer = epoch.Ours(**given), epoch.Published(**given)
    finally:
        torch.set_num_threads(threads)
    for (name, a), b in zip(
        ours.replicate.model.state_dict().items(), peer.loop.network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    for split in ("train", "validation", "test"):
        images, labels = peer.loop.data[split]
        own = getattr(ours.replicate.data, split)
        assert torch.equal(images, own.x)
        assert torch.equal(labels, own.y)
        assert images.shape[1:] == (3, 32, 32)
    assert torch.equal(peer.loop.mean, ours.replicate.data.mean)
    assert peer.loop.settings.label_smoothing == ours.replicate.recipe.label_smoothing > 0


def test_a_folder_without_cifar10_gives_random_pixels_and_the_record_says_so(tmp_path):
    assert epoch._with_cifar10(str(tmp_path)) is None
    assert epoch._with_cifar10(None) is None


def test_an_epoch_is_timed_for_each_optimiser_beside_its_peer(monkeypatch, capsys):
    monkeypatch.delenv(epoch.DATA_VARIABLE, raising=False)
    monkeypatch.setattr(epoch, "QUICK", SMALLEST)
    monkeypatch.setattr(epoch, "OPTIMISERS", ("sam", "sgd"))
    measured = []
    monkeypatch.setattr(epoch, "measure", lambda *given, of=epoch.measure: measured.append(of(*given)) or measured[0])
    assert main(["--quick", "epoch"]) == 0
    (result,) = measured
    assert set(epoch.GOALS) <= set(result.ratios)
    assert {name.partition(",")[0] for name in result.samples if name.endswith("training")} == {"sam", "sgd"}
    assert result.settings["data"] == "random pixels of CIFAR-10's shape"
    assert all(ratio.n == 2 for ratio in result.ratios.values())
    assert result.ratios["ours: an epoch's training, sam / sgd"].median > 1
    for row in ("sam, ours", "sam, davda54", "sgd, ours", "sgd, plain loop"):
        training = result.samples[f"{row}: an epoch's training"]
        assert training.min < result.samples[f"{row}: an epoch and its validation"].max
        assert result.samples[f"{row}: training, an image"].median == pytest.approx(training.median / 40)
    assert "images/s" in capsys.readouterr().out
