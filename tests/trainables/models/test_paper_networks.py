"""DenseNet, VGG, ResNeXt and PyramidNet beside torchvision's blocks and the papers' words."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from trainables.models import build
from trainables.models.pyramidnet import PyramidBlock


def same_weights(ours, reference):
    """Give the reference our tensors in the order in which both define them, after a step of BatchNorm's averages."""
    state = list(ours.state_dict().values())
    keys = list(reference.state_dict())
    assert [v.shape for v in state] == [reference.state_dict()[k].shape for k in keys]
    reference.load_state_dict(dict(zip(keys, state, strict=True)))


def with_a_past(name, side):
    """A float64 network whose BatchNorms are not at their start: neither identical nor trivially scaled."""
    torch.manual_seed(0)
    network = build(name, classes=10, channels=3, side=side).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def agree(ours, reference, side):
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    same_weights(ours, reference)
    for mode in (False, True):
        with torch.no_grad():
            torch.testing.assert_close(ours.train(mode)(x), reference.train(mode)(x), rtol=1e-9, atol=1e-9)


def test_densenet121_is_torchvisions_behind_a_3x3_stem():
    reference = torchvision.models.densenet121(num_classes=10).double()
    reference.features.conv0 = nn.Conv2d(3, 64, 3, padding=1, bias=False, dtype=torch.float64)
    for name in ("norm0", "relu0", "pool0"):
        setattr(reference.features, name, nn.Identity())
    agree(with_a_past("densenet121", 16), reference, 16)


def test_resnext29_is_torchvisions_blocks_in_three_stages_behind_a_3x3_stem():
    reference = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [3, 3, 3, 1], num_classes=10, groups=32, width_per_group=4
    )
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = reference.layer4 = nn.Identity()
    reference.fc = nn.Linear(1024, 10)
    agree(with_a_past("resnext29_32x4d", 8), reference.double(), 8)


def test_vgg19_is_torchvisions_features_without_what_batchnorm_takes_out():
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"], batch_norm=True).double()
    for module in features:
        if isinstance(module, nn.Conv2d):
            module.bias = None
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10).double())
    agree(with_a_past("vgg19_bn", 32), nn.Sequential(features, head), 32)


def test_dense_layers_keep_what_they_were_given():
    network = build("densenet121", classes=10, channels=3, side=16).eval()
    layer = network.stages[0][0]
    x = torch.randn(2, 64, 8, 8)
    out = layer(x)
    assert out.shape == (2, 96, 8, 8)
    assert torch.equal(out[:, :64], x)


def test_grouped_convolutions_have_cardinality_32_and_widths_of_4_8_and_16():
    with torch.device("meta"):
        network = build("resnext29_32x4d", classes=10, channels=3, side=32)
    for stage, width in ((network.layer1, 4), (network.layer2, 8), (network.layer3, 16)):
        assert [(b.conv2.groups, b.conv2.out_channels // 32) for b in stage] == [(32, width)] * 3


def test_pyramidnet_widens_by_alpha_over_its_blocks_in_every_block():
    with torch.device("meta"):
        network = build("pyramidnet272", classes=10, channels=3, side=32)
    widths = [block.conv2.out_channels for stage in (network.layer1, network.layer2, network.layer3) for block in stage]
    assert len(widths) == 90
    assert widths[-1] == 216  # 16 + alpha
    assert all(abs(width - (16 + 200 * k / 90)) <= 0.5 for k, width in enumerate(widths, 1))
    depth = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules())
    assert depth == 272
    with torch.device("meta"):
        assert sum(p.numel() for p in build("pyramidnet272", classes=100, channels=3, side=32).parameters()) == (
            26_210_842 + 90 * 865
        )


@pytest.mark.parametrize(("stride", "side"), [(1, 8), (2, 8), (2, 7)])
def test_pyramids_shortcut_averages_and_pads_with_zeros(stride, side):
    block = PyramidBlock(16, 6, stride).eval()
    nn.init.zeros_(block.bn4.weight)  # nothing but the shortcut is left
    x = torch.rand(2, 16, side, side)
    out = block(x)
    assert out.shape == (2, 24, -(-side // stride), -(-side // stride))
    even = x[:, :, : side // 2 * 2, : side // 2 * 2].unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    expected = x if stride == 1 else even
    torch.testing.assert_close(out[:, :16, : expected.shape[2], : expected.shape[3]], expected)
    assert not out[:, 16:].any()


def test_pyramids_block_has_no_relu_before_its_first_convolution_nor_after_its_sum():
    torch.manual_seed(0)
    block = PyramidBlock(8, 2, 1).double().eval()
    x = torch.randn(3, 8, 4, 4, dtype=torch.float64)
    normal = (1 + 1e-5) ** -0.5  # of a BatchNorm that has seen nothing, in evaluation
    out = F.conv2d(x * normal, block.conv1.weight)
    out = F.conv2d(F.relu(out * normal), block.conv2.weight, padding=1)
    out = F.conv2d(F.relu(out * normal), block.conv3.weight) * normal
    torch.testing.assert_close(block(x), x + out)
    assert (block(x) < 0).any()


def test_heads_start_as_their_papers_have_them():
    for name in ("densenet121", "vgg19_bn", "resnext29_32x4d"):
        assert not build(name, classes=10, channels=3, side=32).linear.bias.any()
    assert float(build("vgg19_bn", classes=100, channels=3, side=32).linear.weight.detach().std()) == pytest.approx(
        0.01, rel=0.05
    )
