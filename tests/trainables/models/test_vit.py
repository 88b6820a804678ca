"""The transformers are timm's, of whatever side."""

import pytest
import timm
import torch
from torch import nn

from trainables.models import build

SIZES = {
    # Parameters with 1,000 classes at 224x224; billions of multiply-adds, attention's products included. DeiT-B: 86 M
    # and 17.6 G in Touvron et al. 2021; DeiT-Ti, which is ViT-Ti in all but its weights: 5.7 M and 1.3 G.
    "vit_b16": (86_567_656, 17.6),
    "deit_b": (86_567_656, 17.6),
    "vit_ti16": (5_717_416, 1.25),
}


@pytest.mark.parametrize("name", SIZES)
def test_transformers_have_their_published_sizes(name):
    with torch.device("meta"):
        network = build(name, classes=1000, channels=3, side=224).eval()
        assert sum(p.numel() for p in network.parameters()) == SIZES[name][0]
        total = 0

        def count(module, args, out):
            nonlocal total
            if isinstance(module, nn.Conv2d):
                total += out.numel() * module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            elif isinstance(module, nn.Linear):
                total += out.numel() * module.in_features
            elif isinstance(module, timm.layers.Attention):
                tokens, width = out.shape[1:]
                total += 2 * tokens * tokens * width  # queries with keys, weights with values

        for module in network.modules():
            module.register_forward_hook(count)
        network(torch.empty(1, 3, 224, 224))
    assert total / 1e9 == pytest.approx(SIZES[name][1], rel=5e-3)


@pytest.mark.parametrize("side", [8, 32, 64])
def test_the_micro_transformer_has_64_patches_whatever_the_side(side):
    network = build("vit_micro", classes=10, channels=1, side=side)
    assert network.pos_embed.shape == (1, 65, 96)
    assert network(torch.zeros(2, 1, side, side)).shape == (2, 10)


def test_the_micro_transformer_has_the_size_its_description_says():
    with torch.device("meta"):
        assert sum(p.numel() for p in build("vit_micro", classes=10, channels=3, side=32).parameters()) == 459_562


def test_transformers_have_no_randomness_in_training():
    torch.manual_seed(0)
    network = build("vit_micro", classes=10, channels=3, side=32).train()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(x), network(x))
