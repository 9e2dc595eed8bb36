"""Layers as products of two thinner ones: the smallest transform, and the edit that its networks are built with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.nouns import Batch, Edit, Shape, Transform
from robust_train.read.errors import ConfigError, nearest
from robust_train.read.registry import edits, transforms


@edits.register("low-rank")
@dataclass(frozen=True)
class LowRank(Edit):
    """Linear layers and 1x1 convolutions as products of two: W x + b becomes U (V x) + b.

    V [r, in] is `NAME.0`, without bias, and keeps the stride; U [out, r] is `NAME.1`. Both begin at random.
    """

    ranks: Mapping[str, int]  # r of each layer by its name: {fc: 16}

    examples = "- {ranks: {head: 3}}"

    def __post_init__(self) -> None:
        if not self.ranks:
            raise ValueError("ranks={} changes nothing: name layers, ranks: {fc: 16}")
        for name, rank in self.ranks.items():
            if rank < 1:
                raise ValueError(f"ranks.{name}={rank} must be at least 1")

    def __call__(self, model: nn.Module, shape: Shape, classes: int) -> None:
        known = dict(model.named_modules())
        for name, rank in self.ranks.items():
            layer = known.get(name)
            if layer is None:
                raise ConfigError(f"{name!r} is no layer of {type(model).__name__}{nearest(name, factors(model))}")
            if not factorable(layer):
                raise ConfigError(f"{name} ({type(layer).__name__}) is no linear layer and no 1x1 convolution")
            out, into = layer.weight.shape[:2]
            if rank > min(out, into):
                raise ConfigError(f"{name} is {out} x {into}, so its rank is {min(out, into)} at most, not {rank}")
            model.set_submodule(name, _product(layer, rank))


@transforms.register("svd")
@dataclass(frozen=True)
class Svd(Transform):
    """Linear layers and 1x1 convolutions cut to a rank by their singular values: the nearest product of that rank.

        W = P diag(s) Q^T,    U = P_r diag(s_r)^(1/2),    V = diag(s_r)^(1/2) Q_r^T

    Eckart and Young 1936: no other product of rank r is nearer to W; its squared distance is the sum of the squared
    singular values left out. At full rank the network is the same, up to rounding. Needs no images.
    """

    rank: int | None = None  # of every layer, or its full rank where that is less; null: by `share`
    share: float | None = None  # of a layer's full rank, rounded up: 0.5 is half of it
    layers: tuple[str, ...] | None = None  # their names; null: every linear layer and 1x1 convolution

    examples = """
    - {rank: 4}
    - {share: 0.5, layers: [head]}
    """

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.share is None):
            raise ValueError("name one of rank and share: how much of each layer is kept")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"share={self.share:g} is not in (0, 1]: it is a share of a layer's full rank")

    def __call__(self, network: Any, batches: Iterator[Batch], key: Any) -> tuple[Edit, dict[str, Tensor]]:
        weights = dict(network.model.state_dict())
        ranks: dict[str, int] = {}
        for name in self._named(network.model):
            weight = weights.pop(f"{name}.weight")
            full = min(weight.shape[:2])
            ranks[name] = min(full, self.rank) if self.rank is not None else max(1, -int(-full * self.share // 1))
            outer, inner = cut(weight, ranks[name])
            weights |= {f"{name}.0.weight": inner, f"{name}.1.weight": outer}
            if f"{name}.bias" in weights:
                weights[f"{name}.1.bias"] = weights.pop(f"{name}.bias")
        return LowRank(ranks), weights

    def _named(self, model: nn.Module) -> list[str]:
        known = factors(model)
        for name in self.layers or ():
            if name not in known:
                raise ConfigError(
                    f"transform.layers: {name!r} is no linear layer or 1x1 convolution{nearest(name, known)} (those of "
                    f"{type(model).__name__}: {', '.join(known) or 'none'})"
                )
        if not known:
            raise ConfigError(f"{type(model).__name__} has no linear layer and no 1x1 convolution to cut")
        return known if self.layers is None else list(self.layers)


def factors(model: nn.Module) -> list[str]:
    """The names of the layers that can stand as products of two."""
    return [name for name, layer in model.named_modules() if name and factorable(layer)]


def factorable(layer: Any) -> bool:
    """Whether a layer multiplies channels by a matrix, and does nothing else."""
    if type(layer) is nn.Linear:
        return True
    return type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding == (0, 0)


def cut(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U [out, r, ...] and V [r, in, ...] of a weight [out, in, ...] whose further sizes are 1. In float64."""
    p, s, q = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
    root = s[:rank].sqrt()
    outer, inner = p[:, :rank] * root, root[:, None] * q[:rank]
    more = weight.shape[2:]
    return outer.to(weight.dtype).view(-1, rank, *more), inner.to(weight.dtype).view(rank, -1, *more)


def _product(layer: Any, rank: int) -> nn.Sequential:
    """Two layers in the place of one, on its device, trained where it is."""
    like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        made = nn.Sequential(
            nn.Linear(layer.in_features, rank, bias=False, **like), nn.Linear(rank, layer.out_features, bias, **like)
        )
    else:
        made = nn.Sequential(
            nn.Conv2d(layer.in_channels, rank, 1, layer.stride, bias=False, **like),
            nn.Conv2d(rank, layer.out_channels, 1, bias=bias, **like),
        )
    return made.train(layer.training)
