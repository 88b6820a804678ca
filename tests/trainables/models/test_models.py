"""Every network of the registry keeps one contract; the published ones have the published sizes."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from trainables.models import MODELS, build

#: Trainable parameters with 10 classes and 3 channels. He et al. 2016, table 6, has 0.27, 0.46 and 0.85 M; the exact
#: figures of option A are those of akamaster/pytorch_resnet_cifar10 (option B has 272,474, 466,906 and 855,770).
#: ResNet-18 and 34, DenseNet-121: kuangliu/pytorch-cifar's networks. VGG-19: theirs has 20,040,522, of which 5,504 are
#: biases that a BatchNorm follows. WRN-28-10: 36.5 M in Zagoruyko & Komodakis 2016, table 4, and 36,479,194 in
#: osmr/imgclsmob's table, as are ResNeXt-29-32x4d's 4,775,754 and PyramidNet-272's 26,210,842. WRN-28-2: 1.47 M, "about
#: 1.5 million" in Oliver et al. 2018.
PARAMETERS = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet56": 853_018,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "wrn28_2": 1_467_610,
    "wrn28_10": 36_479_194,
    "densenet121": 6_956_298,
    "vgg19_bn": 20_040_522 - 5_504,
    "resnext29_32x4d": 4_775_754,
    "pyramidnet272": 26_210_842,
}

#: Multiply-adds of convolutions and linear layers for one 3x32x32 image, to three digits.
MULTIPLY_ADDS = {
    "resnet20": 40.6e6,
    "resnet32": 68.9e6,
    "resnet56": 125.5e6,
    "resnet34": 1.16e9,
    "wrn28_2": 214e6,
    "wrn28_10": 5.24e9,
    "densenet121": 888e6,
    "vgg19_bn": 398e6,
    "resnext29_32x4d": 774e6,
    "pyramidnet272": 4.49e9,
}

SMALL = sorted(name for name, facts in MODELS.items() if facts.light)

#: DeiT-B is ViT-B/16 in all but its weights, and a WRN-28-10 costs what six WRN-28-2 do: left out where it would be the
#: same question again.
DISTINCT = sorted(set(MODELS) - {"deit_b", "wrn28_10", "resnet34"})


def least(name, side=8):
    """The least side from `side` on that a network takes."""
    return next(pixels for pixels in range(side, 64) if MODELS[name].refusal(pixels) is None)


def on_meta(name, **settings):
    with torch.device("meta"):  # shapes without memory: WRN-28-10 costs nothing
        return build(name, classes=10, channels=3, side=32, **settings)


def multiply_adds(network, x):
    total = 0

    def count(module, _, out):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            per_output = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            total += out.numel() * per_output
        elif isinstance(module, nn.Linear):
            total += out.numel() * module.in_features

    for module in network.modules():
        module.register_forward_hook(count)
    network(x)
    return total


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name):
    assert sum(p.numel() for p in on_meta(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds_are_the_published_ones(name):
    found = multiply_adds(on_meta(name).eval(), torch.empty(1, 3, 32, 32, device="meta"))
    assert found == pytest.approx(MULTIPLY_ADDS[name], rel=5e-3)


def test_small_networks_have_the_sizes_their_descriptions_say():
    digits = build("digits_cnn", classes=10, channels=1, side=8)
    assert sum(p.numel() for p in digits.parameters()) == 6_138
    assert multiply_adds(digits, torch.zeros(1, 1, 8, 8)) == 84_224
    cifar = build("cifar_cnn", classes=10, channels=3, side=32)
    assert sum(p.numel() for p in cifar.parameters()) == 107_882
    assert multiply_adds(cifar.eval(), torch.zeros(1, 3, 32, 32)) == pytest.approx(4.9e6, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("classes", "channels", "side"), [(10, 1, 16), (100, 3, 32)])
def test_any_network_takes_images_of_any_shape_to_logits(name, classes, channels, side):
    side = least(name, side)
    with torch.device("meta"):
        network = build(name, classes=classes, channels=channels, side=side)
        assert network(torch.empty(2, channels, side, side)).shape == (2, classes)


@pytest.mark.parametrize("name", MODELS)
def test_convolutions_have_no_bias_where_a_batchnorm_follows(name):
    network = on_meta(name)
    has_batchnorm = any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert has_batchnorm == bool(MODELS[name].stride)
    assert not has_batchnorm or all(m.bias is None for m in network.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("name", sorted(set(DISTINCT) - {"vit_b16"}))
def test_one_seed_gives_one_network_and_another_seed_another(name):
    def mark(seed):
        torch.manual_seed(seed)
        network = build(name, classes=10, channels=3, side=least(name))
        return [float(p.detach().double().sum()) for p in network.parameters()]

    first = mark(1)
    assert first == mark(1)
    assert first != mark(2)


@pytest.mark.parametrize("name", DISTINCT)
def test_every_parameter_gets_a_gradient_and_channels_last_is_the_same_network(name):
    torch.manual_seed(0)
    side = least(name)
    network = build(name, classes=10, channels=3, side=side).double()
    images = torch.randn(3, 3, side, side, dtype=torch.float64)
    logits = network(images)
    logits.logsumexp(1).sum().backward()
    for key, p in network.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
        assert p.grad.any(), key
    network.to(memory_format=torch.channels_last)
    with torch.no_grad():
        again = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(again, logits.detach(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", SMALL)
def test_building_leaves_the_other_generators_alone(name):
    import random

    import numpy as np

    random.seed(0)
    np.random.seed(0)
    expected = random.random(), np.random.rand()
    random.seed(0)
    np.random.seed(0)
    build(name, classes=10, channels=3, side=32)
    assert (random.random(), np.random.rand()) == expected


@pytest.mark.parametrize(
    ("name", "fan"),
    [
        ("resnet20", "in"),
        ("resnet56", "in"),
        ("resnet18", "out"),
        ("wrn28_2", "out"),
        ("densenet121", "out"),
        ("vgg19_bn", "out"),
        ("resnext29_32x4d", "out"),
        ("pyramidnet272", "out"),
        ("cifar_cnn", "in"),
    ],
)
def test_convolutions_start_with_he_variance(name, fan):
    torch.manual_seed(0)
    network = build(name, classes=10, channels=3, side=32)
    for key, m in network.named_modules():
        if isinstance(m, nn.Conv2d):
            n = m.kernel_size[0] ** 2 * (m.in_channels if fan == "in" else m.out_channels)
            # Five standard deviations of a variance estimated from so many normal draws.
            tolerance = 5 * (2 / m.weight.numel()) ** 0.5
            assert float(m.weight.detach().pow(2).mean()) * n / 2 == pytest.approx(1, abs=tolerance), key


def test_option_a_shortcut_subsamples_and_pads_with_zeros():
    from trainables.models.cifar_resnet import Block

    block = Block(16, 32, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)  # nothing but the shortcut is left
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.parametrize("name", sorted(name for name, facts in MODELS.items() if facts.dropout and facts.light))
def test_dropout_acts_in_training_only_and_changes_no_name(name):
    torch.manual_seed(0)
    with_dropout = build(name, classes=10, channels=3, side=16, dropout=0.5)
    without = build(name, classes=10, channels=3, side=16)
    x = torch.randn(8, 3, 16, 16)
    for network, differs in ((with_dropout, True), (without, False)):
        assert torch.equal(network(x), network(x)) is not differs
        network.eval()
        assert torch.equal(network(x), network(x))
    assert list(with_dropout.state_dict()) == list(without.state_dict())


def test_wide_resnet_drops_between_the_two_convolutions():
    from trainables.models.wide_resnet import WideBlock

    block = WideBlock(16, 16, 1, dropout=0.5)
    seen = []
    block.dropout.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    block.conv2.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    block(torch.randn(4, 16, 8, 8))
    (before, dropped), into_conv2 = seen
    assert torch.equal(dropped, into_conv2)
    assert (before >= 0).all()
    assert 0.4 < float((dropped[before > 0] == 0).double().mean()) < 0.6


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet23", {}, "did you mean resnet"),
        ("resnet20", {"dropout": 0.1}, "resnet20 has no dropout"),
        ("mlp", {"dropout": 1.0}, "not in"),
        ("cifar_cnn", {"side": 8}, "at least 16 x 16"),
        ("vgg19_bn", {"side": 31}, "vgg19_bn needs images of at least 32 x 32 pixels, not 31 x 31"),
        ("vit_b16", {"side": 8}, "at least 16 x 16"),
        ("vit_b16", {"side": 40}, "multiple of 16 pixels, not 40 x 40"),
        ("vit_micro", {"side": 28}, "multiple of 8 pixels"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(name, **{"classes": 10, "channels": 3, "side": 32, **settings})
    assert "\n" not in str(caught.value)


def test_registries_import_neither_torch_nor_scikit_learn():
    code = (
        "import sys, trainables.models.weights, trainables.data as d;"
        "d.fingerprint('digits'); d.fingerprint('synthetic');"
        "print([m for m in ('torch', 'sklearn', 'numpy', 'ray', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [n for n in DISTINCT if n not in ("resnet56", "resnet32")])
@pytest.mark.parametrize("side", [8, 16])
def test_one_image_is_a_training_batch_exactly_where_the_facts_say(name, side):
    if MODELS[name].refusal(side):
        with pytest.raises(ValueError, match="at least"):
            build(name, classes=10, channels=3, side=side)
        return
    network = build(name, classes=10, channels=3, side=side).train()
    image = torch.zeros(1, 3, side, side)
    if MODELS[name].least_batch(side) == 1:
        assert network(image).shape == (1, 10)
    else:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network(image)


@pytest.mark.parametrize("name", [name for name, facts in MODELS.items() if facts.stride])
@pytest.mark.parametrize("side", [17, 32])
def test_the_last_batchnorm_sees_the_map_that_the_facts_say(name, side):
    if side < MODELS[name].least_side:
        return
    with torch.device("meta"):
        network = build(name, classes=10, channels=3, side=side)
        sides = []
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda module, args, out: sides.append(out.shape[-1]))
        network(torch.empty(2, 3, side, side))
    assert side // MODELS[name].stride <= min(sides) <= -(-side // MODELS[name].stride)


@pytest.mark.parametrize("name", MODELS)
def test_published_weights_expect_the_normalisation_that_the_facts_say(name):
    facts = MODELS[name]
    if facts.hub is None:
        assert facts.normalisation == "data"
        return
    import timm

    published = timm.get_pretrained_cfg(facts.hub, allow_unregistered=False)
    means = {"half": (0.5, 0.5, 0.5), "imagenet": (0.485, 0.456, 0.406)}
    deviations = {"half": (0.5, 0.5, 0.5), "imagenet": (0.229, 0.224, 0.225)}
    assert (published.mean, published.std) == (means[facts.normalisation], deviations[facts.normalisation])
    assert published.hf_hub_id == f"timm/{facts.hub}"
