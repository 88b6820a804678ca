"""Weights load whole or not at all, whoever saved them; nothing else is unpickled."""

import io
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainables.models import build
from trainables.models.pretrained import load_pretrained, save_weights
from trainables.models.weights import WeightsError, weights_mark
from trainables.models.weights_file import read_weights

SHARED = Path(__file__).parents[4] / "shared"


def network(name="resnet8", seed=0, classes=10, channels=3, side=32):
    torch.manual_seed(seed)
    return build(name, classes=classes, channels=channels, side=side)


def same(a, b, but=()):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    return all(torch.equal(a[key], b[key]) for key in a if key not in but)


def written(path, kind, state):
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return str(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("under", [None, "state_dict", "model"])
def test_every_usual_file_of_weights_loads(tmp_path, kind, prefix, under):
    if kind == "safetensors" and under:
        return  # it holds tensors only
    source, target = network(seed=1), network(seed=2)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    content = {under: state, "epoch": 3, "optimizer": {"state": {}}} if under else state
    loaded = load_pretrained(target, written(tmp_path / "w", kind, content), model="resnet8", classes=10)
    assert (loaded.head, loaded.resampled, dict(loaded.about)) == ("kept", (), {})
    assert same(source, target)


def test_what_was_saved_loads_back_exactly_and_says_what_it_is(tmp_path):
    source, target = network("vit_micro", seed=1), network("vit_micro", seed=2)
    source.to(memory_format=torch.channels_last)
    about = {"dataset": "digits", "mean": [0.25], "recipe": {"gamma": 0.1, "m": None}}
    save_weights(source, tmp_path / "w", model="vit_micro", classes=10, about=about)
    loaded = load_pretrained(target, "w", model="vit_micro", classes=10, root=str(tmp_path))
    assert same(source, target)
    assert loaded.about == about
    assert (read_weights(tmp_path / "w").model, read_weights(tmp_path / "w").classes) == ("vit_micro", 10)
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_equal_weights_are_equal_files_and_other_weights_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        about = {"one": 1, "two": 2} if name == "a" else {"two": 2, "one": 1}
        save_weights(network(seed=seed), tmp_path / name, model="resnet8", classes=10, about=about)
    a, b, c = (weights_mark(name, str(tmp_path)) for name in "abc")
    assert a == b != c
    buffer = io.BytesIO()
    save_weights(network(seed=1), buffer, model="resnet8", classes=10, about={"one": 1, "two": 2})
    assert buffer.getvalue() == (tmp_path / "a").read_bytes()


def test_saving_leaves_the_network_alone_and_the_file_readable_as_the_folder(tmp_path):
    before, after = network(), network()
    save_weights(after, tmp_path / "w", model="resnet8", classes=10, about={})
    assert same(before, after)
    (tmp_path / "plain").touch()
    assert (tmp_path / "w").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_not_json_or_cannot_be_written_is_one_line(tmp_path):
    for about, target in (({"x": object()}, "w"), ({"x": float("nan")}, "w"), ({}, "missing/w")):
        with pytest.raises(WeightsError) as caught:
            save_weights(network(), tmp_path / target, model="resnet8", classes=10, about=about)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["resnet8", "vit_micro", "digits_cnn", "mlp", "wrn28_2"])
def test_the_head_stays_as_it_was_where_the_number_of_classes_differs(tmp_path, name):
    source, target, untouched = network(name, 1, classes=100), network(name, 2), network(name, 2)
    save_weights(source, tmp_path / "w", model=name, classes=100, about={})
    assert load_pretrained(target, str(tmp_path / "w"), model=name, classes=10).head == "new"
    head = [key for key, _ in target.named_parameters()][-2:]
    for key in target.state_dict():
        expected = untouched if key in head else source
        assert torch.equal(target.state_dict()[key], expected.state_dict()[key]), key


def test_weights_without_a_head_give_a_new_one(tmp_path):
    source, target = network(seed=1), network(seed=2)
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("linear")}
    assert load_pretrained(target, written(tmp_path / "w", "zip", state), model="resnet8", classes=10).head == "new"
    assert same(source, target, but=("linear.weight", "linear.bias"))


def test_weights_from_before_batches_were_counted_load(tmp_path):
    source, target = network(seed=1), network(seed=2)
    state = {key: value for key, value in source.state_dict().items() if "num_batches" not in key}
    load_pretrained(target, written(tmp_path / "w", "zip", state), model="resnet8", classes=10)
    assert same(source, target)


def test_weights_of_half_precision_are_converted_to_the_networks(tmp_path):
    source, target = network(seed=1).half(), network(seed=2)
    load_pretrained(target, written(tmp_path / "w", "zip", source.state_dict()), model="resnet8", classes=10)
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    assert same(source.float(), target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.0.conv1.weight"), r"1 missing, first layer2.0.conv1.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unexpected, first extra"),
        (
            lambda s: s.update({"bn1.bias": torch.zeros(8)}),
            r"1 of another shape, first bn1.bias: \(8,\) and not",
        ),
        (lambda s: s.pop("linear.bias"), r"1 missing, first linear.bias"),
        (lambda s: s.update({"linear.weight": torch.zeros(10, 32)}), r"first linear.weight: \(10, 32\) and not"),
        (lambda s: s.update({"linear.weight": torch.zeros(7, 64)}), r"first linear.weight: \(7, 64\) and not"),
        (lambda s: s.update({"bn1.bias": torch.full((16,), float("inf"))}), r"not finite, first in bn1.bias"),
        (lambda s: s.update({"conv1.weight": torch.zeros(16, 1, 3, 3)}), r"other channels: .* has 1, the network 3"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line_and_change_nothing(tmp_path, change, message):
    state = network(seed=1).state_dict()
    change(state)
    target = network(seed=2)
    with pytest.raises(WeightsError, match=message) as caught:
        load_pretrained(target, written(tmp_path / "w", "zip", state), model="resnet8", classes=10)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "w") in str(caught.value)
    assert same(target, network(seed=2))


def test_weights_of_another_model_are_refused_by_name_or_by_shape(tmp_path):
    save_weights(network("resnet20"), tmp_path / "ours", model="resnet20", classes=10, about={})
    with pytest.raises(WeightsError, match=r"weights of another model: .* holds resnet20, not resnet8"):
        load_pretrained(network(), str(tmp_path / "ours"), model="resnet8", classes=10)
    theirs = written(tmp_path / "theirs", "zip", network("resnet20").state_dict())
    with pytest.raises(WeightsError, match=r"another architecture: .* does not fit resnet8 \(72 unexpected, first "):
        load_pretrained(network(), theirs, model="resnet8", classes=10)


class Exploit:
    def __reduce__(self):
        return os.system, ("touch unpickled",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_nothing_but_tensors_is_unpickled(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "plain pickle":
        Path("w").write_bytes(pickle.dumps({"state_dict": Exploit()}, protocol=2))
    else:
        torch.save({"state_dict": Exploit()}, "w", _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(WeightsError, match=r"is not unpickled|damaged") as caught:
        load_pretrained(network(), "w", model="resnet8", classes=10)
    assert "\n" not in str(caught.value)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no file of weights"),
        (b"epochs: 3\nmodel: resnet8\n", "no file of weights"),
        (b"PK\x03\x04 and nothing after it", "damaged"),
        (b"\x80\x02nonsense", "damaged"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{", "damaged"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        load_pretrained(network(), str(tmp_path / "w"), model="resnet8", classes=10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {"a": 1}}, {"a": torch.zeros(1), "b": "text"}])
def test_files_that_hold_no_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "w")
    with pytest.raises(WeightsError, match="holds no state dict"):
        load_pretrained(network(), str(tmp_path / "w"), model="resnet8", classes=10)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(WeightsError, match="no weights at"):
        load_pretrained(network(), str(tmp_path / "w"), model="resnet8", classes=10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    model = network("digits_cnn", side=8)
    save_weights(model, folder / "ours", model="digits_cnn", classes=10, about={})
    for kind in ("zip", "legacy"):
        written(folder / kind, kind, model.state_dict())
    return folder


@pytest.mark.parametrize("kind", ["ours", "zip", "legacy"])
@settings(max_examples=40, deadline=None)
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_short_anywhere_is_one_line(whole, kind, part):
    content = (whole / kind).read_bytes()
    (whole / "cut").write_bytes(content[: int(part * len(content))])
    target = network("digits_cnn", 2, side=8)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(target, str(whole / "cut"), model="digits_cnn", classes=10)
    assert "\n" not in str(caught.value)


def test_timms_own_transformer_loads_with_equal_logits(tmp_path):
    torch.manual_seed(1)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=10).eval()
    ours = network("vit_ti16", seed=2, side=224).eval()
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "w")
    loaded = load_pretrained(ours, str(tmp_path / "w"), model="vit_ti16", classes=10)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(theirs(x), ours(x))
    assert loaded.resampled == ()


def test_position_embeddings_are_resampled_to_another_side_as_timm_does(tmp_path):
    torch.manual_seed(1)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=10).eval()
    ours = network("vit_ti16", seed=2, side=32).eval()
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "w")
    loaded = load_pretrained(ours, str(tmp_path / "w"), model="vit_ti16", classes=10)
    assert loaded.resampled == ("pos_embed",)
    theirs.set_input_size(32)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_constant_position_embeddings_stay_constant_at_another_side(tmp_path):
    source, target = network("vit_ti16", 1, side=96), network("vit_ti16", 2, side=64)
    nn.init.constant_(source.pos_embed, 0.5)
    save_weights(source, tmp_path / "w", model="vit_ti16", classes=10, about={})
    load_pretrained(target, str(tmp_path / "w"), model="vit_ti16", classes=10)
    torch.testing.assert_close(target.pos_embed, torch.full_like(target.pos_embed, 0.5))


def test_the_micro_transformer_sees_an_enlarged_image_as_it_saw_the_small_one(tmp_path):
    small, large = network("vit_micro", 1, side=16).eval(), network("vit_micro", 2, side=32).eval()
    save_weights(small, tmp_path / "w", model="vit_micro", classes=10, about={})
    loaded = load_pretrained(large, str(tmp_path / "w"), model="vit_micro", classes=10)
    assert loaded.resampled == ("patch_embed.proj.weight",)
    # What the resampling promises (FlexiViT, section 3.4): a patch that is enlarged has its old embedding.
    patch = torch.randn(3, 3, 2, 2)
    enlarged = nn.functional.interpolate(patch, size=(4, 4), mode="bicubic", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(
            large.patch_embed.proj(enlarged), small.patch_embed.proj(patch), rtol=1e-3, atol=1e-4
        )


def test_patches_of_another_size_are_another_architecture_where_they_do_not_grow_with_the_image(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", num_classes=10, patch_size=32, img_size=64).state_dict()
    target = network("vit_ti16", side=32)
    with pytest.raises(WeightsError, match=r"another architecture: .*patch_embed.proj.weight: \(192, 3, 32, 32\)"):
        load_pretrained(target, written(tmp_path / "w", "zip", state), model="vit_ti16", classes=10)


def test_published_weights_come_from_the_hubs_cache_before_its_network(tmp_path, monkeypatch):
    import huggingface_hub

    source, target = network("vit_ti16", 1, classes=1000), network("vit_ti16", 2)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w")
    asked = []

    def download(repository, filename, *, local_files_only):
        asked.append((repository, filename, local_files_only))
        return str(tmp_path / "w")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    loaded = load_pretrained(target, "hub:default", model="vit_ti16", classes=10)
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "model.safetensors", True)]
    assert (loaded.source, loaded.head) == ("hub:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "new")
    assert same(source, target, but=("head.weight", "head.bias"))


def test_no_network_is_one_line_that_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub

    def download(repository, filename, *, local_files_only):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache\nat all")
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(WeightsError, match=r"cannot fetch hub:timm/x \(no network\?\); give a local file") as caught:
        load_pretrained(network(), "hub:x", model="resnet8", classes=10)
    assert "\n" not in str(caught.value)


def test_a_name_that_the_hub_does_not_have_is_one_line(monkeypatch):
    import huggingface_hub

    def download(repository, filename, *, local_files_only):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        raise huggingface_hub.errors.EntryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(WeightsError, match="the hub has no safetensors of timm/x; check the name"):
        load_pretrained(network(), "hub:x", model="resnet8", classes=10)


def published_resnet32():
    path = SHARED / "checkpoints" / "resnet32-d509ac18.th"
    if not path.exists():
        pytest.skip("needs shared/checkpoints/resnet32-d509ac18.th beside the project")
    model = network("resnet32", seed=1)
    assert load_pretrained(model, str(path), model="resnet32", classes=10).head == "kept"
    return model.eval()


def test_the_public_resnet32_loads_from_its_legacy_file():
    assert published_resnet32()(torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.cifar
def test_the_public_resnet32_is_as_accurate_as_published():
    root = os.environ.get("SHARPNESS_STUDY_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs the real CIFAR-10 in SHARPNESS_STUDY_DATA")
    from trainables.data import load

    model, test = published_resnet32(), load("cifar10", root).test
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    model.to(memory_format=torch.channels_last)
    right = 0
    with torch.inference_mode():
        for x, y in zip(test.x.split(200), test.y.split(200), strict=True):
            images = ((x.float() / 255 - mean) / std).to(memory_format=torch.channels_last)
            right += int((model(images).argmax(1) == y).sum())
    assert right / 10_000 == pytest.approx(0.9263, abs=5e-4)
