"""timm's models by name, with weights from local files only."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.models.shapes import square
from robust_train.models.weights import fit_weights, read_weights
from robust_train.nouns import Model, Shape
from robust_train.read.errors import ConfigError
from robust_train.read.paths import FilePath
from robust_train.read.registry import models
from robust_train.vision import ensure_torchvision_importable

log = logging.getLogger(__name__)

WHOLE = re.compile(r"layer\d|s\d|stage\d|denseblock\d")  # children of a model that are stages themselves
HOLDING = ("blocks", "stages", "layers", "levels")  # children whose children are


@models.register("timm")
@dataclass(frozen=True)
class Timm(Model):
    """Any timm classification model by name, at any input size timm allows, with weights from a local file."""

    name: str  # as timm lists it: resnet50, vit_small_patch16_224, xcit_small_12_p16_224, ...
    weights: FilePath | None = None  # a local .safetensors, .pth or .pt file; null: random. Nothing is ever fetched
    drop_rate: float | None = None  # dropout before the classifier; null: the model's own, mostly 0
    drop_path_rate: float | None = None  # stochastic depth of the last block, rising from 0; null: the model's own
    attn_drop_rate: float | None = None  # dropout of attention weights (no fused attention then); null: the model's own
    proj_drop_rate: float | None = None  # dropout after attention and in the MLPs; null: the model's own
    patch_size: int | None = None  # pixels a patch is wide; 4 for a ViT at 32 pixels; null: the model's own
    options: Mapping[str, Any] = field(default_factory=dict)  # further arguments of the model: {init_values: 1e-4}

    examples = """
    - {name: test_resnet}
    - {name: test_vit, patch_size: 8}
    """

    def __post_init__(self) -> None:
        for name in ("drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise ValueError(f"{name}={rate:g} is not in [0, 1): it is a probability, and 1 would drop everything")
        taken = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
        taken |= {"num_classes", "in_chans", "img_size"} | self._own().keys()
        if wrong := sorted(taken & set(self.options)):
            raise ValueError(
                f"options.{wrong[0]} is set elsewhere: classes, channels and size come from the data, weights from "
                "the field `weights`, rates and patch_size from their own fields"
            )

    def build(self, classes: int, shape: Shape) -> nn.Module:
        """The model for square images [B, *shape]; ConfigError for what timm does not know or cannot build."""
        channels, size = square(shape, self.name)
        model = self._created(classes, channels, size)
        self._try(model, classes, channels, size)
        if self.weights is not None:
            head = fit_weights(model, read_weights(self.weights), self.weights, classes)
            if head:
                log.warning("%s: another head, of %d classes, begins anew: %s", self.weights, classes, ", ".join(head))
        return model

    def stages(self, model: nn.Module) -> Iterator[str]:
        """layer1 to layer4 of a ResNet, each block of a ViT, each stage of a ConvNeXt or Swin; none if unknown."""
        features = getattr(model, "features", None)
        inside, prefix = (features, "features.") if isinstance(features, nn.Sequential) else (model, "")
        for name, child in inside.named_children():
            if WHOLE.fullmatch(name):
                yield f"{prefix}{name}"
            elif name in HOLDING and isinstance(child, (nn.Sequential, nn.ModuleList)):
                yield from (f"{prefix}{name}.{inner}" for inner, _ in child.named_children())

    def _own(self) -> dict[str, Any]:
        return {
            "drop_rate": self.drop_rate,
            "drop_path_rate": self.drop_path_rate,
            "attn_drop_rate": self.attn_drop_rate,
            "proj_drop_rate": self.proj_drop_rate,
            "patch_size": self.patch_size,
        }

    def _created(self, classes: int, channels: int, size: int) -> nn.Module:
        ensure_torchvision_importable()
        import timm

        if ":" in self.name or not timm.is_model(self.name):
            raise ConfigError(_unknown(self.name, timm.list_models()))
        said = {name: value for name, value in {**self._own(), **self.options}.items() if value is not None}
        given = {"num_classes": classes, "in_chans": channels, **said}
        try:
            try:
                return timm.create_model(self.name, pretrained=False, img_size=size, **given)
            except TypeError as error:  # convolutional models take no size: they work at any
                if "'img_size'" not in str(error):
                    raise
                return timm.create_model(self.name, pretrained=False, **given)
        except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
            wanted = ", ".join(f"{name}={value!r}" for name, value in said.items())
            raise ConfigError(
                f"timm cannot build {self.name} for {channels}x{size}x{size} images{wanted and ' with '}{wanted}: "
                f"{_first_line(error)}. Change the field it names, data.size, or the model."
            ) from error

    def _try(self, model: nn.Module, classes: int, channels: int, size: int) -> None:
        """One image through the model: many a size, or a model that is no classifier, is refused only there."""
        image = torch.zeros(1, channels, size, size)
        try:
            with torch.no_grad():
                logits = model.eval()(image)
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            raise ConfigError(
                f"{self.name} does not take {channels}x{size}x{size} images ({_first_line(error)}). "
                "Choose another data.size or model, or what its options allow (patch_size, window_size)."
            ) from error
        model.train()
        if not isinstance(logits, Tensor) or logits.shape != (1, classes):
            raise ConfigError(f"{self.name} does not turn an image into {classes} logits; name a classifier")


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _unknown(name: str, known: list[str]) -> str:
    if ":" in name:
        return f"{name!r} names a place to fetch from; give timm's name of the model, and its weights as a local file"
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    meant = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
    return f"{name!r} is no timm model{meant} (timm lists {len(known)})"
