"""Vision transformers, as timm has them: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021.

ViT-B/16 is the network of section 5.3 and DeiT-B (Touvron et al., "Training data-efficient image transformers", ICML
2021) that of section 5.2 of Kim et al. 2022. Both are twelve blocks of width 768 with twelve heads on patches of 16x16
pixels, a class token and learnt position embeddings; they differ in their published weights and in what these expect of
an image. ViT-Ti/16 (Steiner et al., "How to train your ViT?", TMLR 2022) has width 192 and three heads. timm's own
networks are built, so names and numbers are those of its weights; weights start as timm's (truncated normal with
standard deviation 0.02). Their dropout and stochastic depth are off, as in timm's and in the paper's fine-tuning.

An image's side need not be 224: position embeddings are as many as it has patches, and are resampled when weights of
another side are loaded (`trainables.models.pretrained`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import timm
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class MicroViT(VisionTransformer):
    """Patches of an eighth of the side: 64 of them whatever the image. (N, channels, H, W) -> (N, classes)."""

    def __init__(self, *, classes: int, channels: int, side: int) -> None:
        super().__init__(
            img_size=side,
            patch_size=side // 8,
            in_chans=channels,
            num_classes=classes,
            embed_dim=96,
            depth=4,
            num_heads=3,
        )


def vit_b16(*, classes: int, channels: int, side: int) -> nn.Module:
    """86.6 M parameters with 1,000 classes, 17.6 G multiply-adds on 224x224."""
    return _timm("vit_base_patch16_224", classes, channels, side)


def deit_b(*, classes: int, channels: int, side: int) -> nn.Module:
    """86.6 M parameters with 1,000 classes, 17.6 G multiply-adds on 224x224."""
    return _timm("deit_base_patch16_224", classes, channels, side)


def vit_ti16(*, classes: int, channels: int, side: int) -> nn.Module:
    """5.7 M parameters with 1,000 classes, 1.25 G multiply-adds on 224x224."""
    return _timm("vit_tiny_patch16_224", classes, channels, side)


def vit_micro(*, classes: int, channels: int, side: int) -> MicroViT:
    """0.46 M parameters, 32 M multiply-adds on 32x32: a transformer to fine-tune on two cores.

    320 images/s through one forward and backward pass in batches of 128 on one shared core (ResNet-20: 240).
    From scratch it learns slowly, as transformers do: 125 steps of AdamW on 4,000 CIFAR-10 images reached 30 %, and
    with patches of one pixel (8x8 digits) 110 steps nothing at all. Start it from weights.
    """
    return MicroViT(classes=classes, channels=channels, side=side)


def at_this_side(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of the weights of a network for images of another side has to change for this one, resampled, by name.

    Position embeddings of a square grid are interpolated (bicubic; Dosovitskiy et al. 2021, section 3.2); the patches
    of `vit_micro`, which grow with the image, by the pseudo-inverse of the interpolation (Beyer et al., "FlexiViT",
    CVPR 2023, section 3.4). What does not fit for another reason is left to the caller.
    """
    if not isinstance(network, VisionTransformer):
        return {}
    changed = {}
    own, found = network.pos_embed, weights.get("pos_embed")
    if own is not None and found is not None and found.ndim == 3 and found.shape[::2] == own.shape[::2]:
        patches = found.shape[1] - network.num_prefix_tokens
        if found.shape[1] != own.shape[1] and patches > 0 and math.isqrt(patches) ** 2 == patches:
            changed["pos_embed"] = resample_abs_pos_embed(
                found, list(network.patch_embed.grid_size), num_prefix_tokens=network.num_prefix_tokens
            )
    key = "patch_embed.proj.weight"
    kernel, other = network.patch_embed.proj.weight, weights.get(key)
    if isinstance(network, MicroViT) and other is not None and other.ndim == 4:
        square = other.shape[2] == other.shape[3]
        if square and other.shape[:2] == kernel.shape[:2] and other.shape[2:] != kernel.shape[2:]:
            changed[key] = resample_patch_embed(other.float(), list(kernel.shape[2:])).to(other.dtype)
    return changed


def _timm(name: str, classes: int, channels: int, side: int) -> nn.Module:
    network: nn.Module = timm.create_model(name, num_classes=classes, in_chans=channels, img_size=side)
    return network
