"""Images and targets mixed within groups of consecutive positions, on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robust_train.keyed import Key, beta, partners, uniform
from robust_train.losses import distribution
from robust_train.nouns import Batch, Mixing
from robust_train.read.registry import mixings


@dataclass(frozen=True)
class Mix:
    """Convex combinations of rows with their partners: M(a) = lam a + (1 - lam) a∘pi.

    lam [B] float64, one number a group; partner [B] int64, a random permutation inside each group.
    """

    lam: Tensor
    partner: Tensor

    @classmethod
    def draw(cls, key: Key, alpha: float, group: int, size: int, device: torch.device | str = "cpu") -> Mix:
        """lam ~ Beta(alpha, alpha), or 1 where alpha is 0, and pi, for `size` rows of the key: whole groups."""
        pi = partners(key.of("partner"), group, size, device)
        if alpha == 0:
            return cls(torch.ones(size, dtype=torch.float64, device=device), pi)
        return cls(beta(_grouped(key.of("lam"), group, size), (size,), alpha, device), pi)

    def __call__(self, tensor: Tensor) -> Tensor:
        """The mixture of rows, in the tensor's dtype. [B, ...] to [B, ...]."""
        lam = self.lam.to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1))
        return lam * tensor + (1 - lam) * tensor[self.partner]


@mixings.register("mixup")
@dataclass(frozen=True)
class Mixup(Mixing):
    """Mixup or CutMix of a batch with itself, one of the two for each group, with targets mixed alike.

        mixup:  x' = lam x + (1 - lam) x∘pi,                  lam ~ Beta(alpha, alpha)
        CutMix: x' = x outside a box and x∘pi inside it,      lam ~ Beta(cutmix, cutmix), then the share outside
        y' = lam y + (1 - lam) y∘pi,                          y smoothed

    Further views of the samples are mixed alike: the same partner, lam and box. The box has sides sqrt(1 - lam) of the
    image's and a uniform centre, and is clipped at the image's edge. Mixup: Zhang et al. 2018 (arXiv 1710.09412);
    CutMix: Yun et al. 2019 (arXiv 1905.04899).
    """

    carries: ClassVar[frozenset[str]] = frozenset({"views"})

    alpha: float = 0.8  # of mixup's Beta distribution; 0: no mixup
    cutmix: float = 0.0  # of CutMix's Beta distribution; 0: no CutMix
    switch: float = 0.5  # probability of CutMix where both are on
    smoothing: float = 0.0  # label smoothing, before mixing
    group: int = 128  # consecutive positions that mix among themselves (a paper's batch on one device)

    examples = """
    - {group: 4}
    - {alpha: 0.0, cutmix: 1.0, group: 4}
    - {cutmix: 1.0, smoothing: 0.1, group: 4}
    """

    def __post_init__(self) -> None:
        for name in ("alpha", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name):g} must not be negative: it shapes a Beta distribution")
        for name in ("switch", "smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name):g} is not in [0, 1]")
        if self.group < 1:
            raise ValueError(f"group={self.group} must be at least 1: it is a number of images")

    def __call__(self, batch: Batch, key: Key, classes: int) -> Batch:
        """The batch mixed, targets as distributions [B, classes]. Takes float images [B, C, H, W], in whole groups."""
        size, device, images = len(batch), batch.images.device, batch.images
        key = key.rows(batch.position)
        mixup = Mix.draw(key, self.alpha, self.group, size, device)
        box, lam = self._boxes(key, images)
        cut = uniform(_grouped(key.of("switch"), self.group, size), (size,), device, torch.float64) < self._share()
        mixed = Mix(torch.where(cut, lam, mixup.lam), mixup.partner)
        box = box & cut.view(-1, 1, 1, 1)

        def seen(view: Tensor) -> Tensor:
            return torch.where(box, view[mixed.partner], torch.where(cut.view(-1, 1, 1, 1), view, mixup(view)))

        targets = mixed(distribution(batch.targets, classes, self.smoothing, images.dtype))
        return replace(batch, images=seen(images), targets=targets, views=tuple(seen(view) for view in batch.views))

    def _share(self) -> float:
        """Probability that a group is cut and not blended."""
        if not self.cutmix:
            return 0.0
        return self.switch if self.alpha else 1.0

    def _boxes(self, key: Key, images: Tensor) -> tuple[Tensor, Tensor]:
        """CutMix's boxes [B, 1, H, W], and the share of each image outside its box [B]."""
        size, height, width = len(images), images.shape[2], images.shape[3]
        grouped = _grouped(key.of("cutmix"), self.group, size)
        lam = beta(grouped, (size,), self.cutmix or 1.0, images.device)
        centre = uniform(grouped.of("centre"), (size, 2), images.device, torch.float64)
        rows = _inside(centre[:, 0], lam, height)
        columns = _inside(centre[:, 1], lam, width)
        outside = 1 - rows.sum(1) * columns.sum(1) / (height * width)
        return (rows[:, :, None] & columns[:, None, :])[:, None], outside.double()


def _inside(centre: Tensor, lam: Tensor, length: int) -> Tensor:
    """[B, length]: the pixels within floor(length sqrt(1 - lam)) about a centre, clipped at the edges."""
    cut = (length * (1 - lam).sqrt()).floor()
    first = (centre * length).floor() - (cut / 2).floor()
    at = torch.arange(length, device=centre.device)
    return (at >= first[:, None]) & (at < (first + cut)[:, None])


def _grouped(key: Key, group: int, size: int) -> Key:
    """The same key with one row for each group of consecutive rows."""
    row = torch.arange(size) if key.row is None else key.row
    return key.rows(row // group)
