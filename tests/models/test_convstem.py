"""Singh et al. 2023: convolutions in place of the patch embedding, everything else as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robust_train.models.convstem import ConvStem
from robust_train.models.timm import Timm
from robust_train.nouns import Model
from robust_train.read.errors import ConfigError

SHALLOW = {"depth": 1}


def vit(name: str = "vit_small_patch16_224", patch_size: int | None = None, **options: object) -> Timm:
    return Timm(name, patch_size=patch_size, options=SHALLOW | options)


def stemmed(model: Model, shape: tuple[int, ...] = (3, 32, 32), width: int | None = None) -> nn.Module:
    """The model with the stem."""
    built = model.build(10, shape)
    ConvStem(width)(built, shape, 10)
    return built


def convolutions(module: nn.Module) -> list[tuple[int, int, int, int]]:
    """(channels out, side, stride, padding) of each convolution."""
    found = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    return [(m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0]) for m in found]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "dim"), [("vit_small_patch16_224", 384), ("deit3_medium_patch16_224", 512), ("vit_base_patch16_224", 768)]
)
def test_a_vit_at_patch_16_gets_the_published_stem(name: str, dim: int) -> None:
    """48, 96, 192, 384 channels by 3x3 of stride 2, then 1x1 to the width; LayerNorm and GELU after each 3x3."""
    model = stemmed(vit(name))
    stem = model.get_submodule("patch_embed.proj")
    assert convolutions(stem) == [(48, 3, 2, 1), (96, 3, 2, 1), (192, 3, 2, 1), (384, 3, 2, 1), (dim, 1, 1, 0)]
    kinds = [type(layer).__name__ for layer in stem.children()]
    assert kinds == ["Conv2d", "LayerNorm2d", "GELU"] * 4 + ["Conv2d"]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("convnext_tiny", [(48, 3, 2, 1), (96, 3, 2, 1)]),
        ("convnext_small", [(48, 3, 2, 1), (96, 3, 2, 1)]),
        ("convnext_base", [(64, 3, 2, 1), (96, 3, 2, 1), (128, 3, 1, 1)]),
        ("convnext_large", [(96, 3, 2, 1), (144, 3, 2, 1), (192, 3, 1, 1)]),
    ],
)
def test_a_convnext_gets_the_published_stem(name: str, published: list[tuple[int, int, int, int]]) -> None:
    model = stemmed(Timm(name, options={"depths": (1, 1, 1, 1)}))
    stem = model.get_submodule("stem")
    assert convolutions(stem) == published
    assert [type(layer).__name__ for layer in stem.children()] == ["Conv2d", "LayerNorm2d", "GELU"] * len(published)


@pytest.mark.parametrize(
    ("model", "at"),
    [
        (vit(), "patch_embed"),
        (vit(patch_size=4), "patch_embed"),
        (vit("vit_tiny_patch16_224", patch_size=8), "patch_embed"),
        (Timm("convnext_atto", options={"depths": (1, 1, 1, 1)}), "stem"),
    ],
)
def test_tokens_keep_their_shape_and_other_layers_their_names(model: Timm, at: str) -> None:
    plain, changed = model.build(10, (3, 64, 64)), stemmed(model, (3, 64, 64))
    images = torch.rand(2, 3, 64, 64)
    tokens = plain.get_submodule(at)(images)
    assert changed.get_submodule(at)(images).shape == tokens.shape
    assert changed(images).shape == (2, 10)
    assert list(model.stages(changed)) == list(model.stages(plain))

    def rest(built: nn.Module) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in built.state_dict().items() if not name.startswith(at)}

    assert rest(changed) == rest(plain)


def test_the_layer_norm_of_the_stem_is_over_channels_at_each_place() -> None:
    stem = stemmed(vit()).get_submodule("patch_embed.proj")
    hidden = stem[1](stem[0](torch.rand(2, 3, 32, 32)))
    assert hidden.mean(1).abs().max() < 1e-5
    assert (hidden.var(1, unbiased=False) - 1).abs().max() < 0.01


def test_channels_and_width_are_taken() -> None:
    model = stemmed(vit(patch_size=4), (1, 32, 32), 8)
    assert convolutions(model.get_submodule("patch_embed.proj")) == [(8, 3, 2, 1), (16, 3, 2, 1), (384, 1, 1, 0)]
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 10)


def test_what_has_no_patches_to_replace_is_refused() -> None:
    with pytest.raises(ConfigError, match="ResNet has no patch embedding"):
        stemmed(Timm("test_resnet"))
    with pytest.raises(ConfigError, match="patches of 14x14 pixels"):
        stemmed(vit("vit_small_patch14_dinov2"), (3, 28, 28))
    with pytest.raises(ValueError, match="width=0 must be at least 1"):
        ConvStem(width=0)
