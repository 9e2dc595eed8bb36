"""Perturbations that an image remembers from epoch to epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_train.attacks.attacked import Norm
from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy, full
from robust_train.nouns import Batch, Dataset, Loss, Objective, Part, State, number
from robust_train.objectives.single_step.leap import look, signs
from robust_train.read.registry import Number, objectives
from robust_train.threats.linf import Linf

CHUNK = 1024  # images whose store is drawn at once


class Store(nn.Module):
    """A perturbation, in radii, and a momentum of its gradient for each training image."""

    z: Tensor  # [N, ...] in [-1, 1]
    momentum: Tensor  # [N, ...]
    seed: Tensor  # of the draws

    def __init__(self, images: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("z", torch.zeros(images, *shape))
        self.register_buffer("momentum", torch.zeros(images, *shape))
        self.register_buffer("seed", torch.randint(2**31, ()))
        self.draw(0)

    @torch.no_grad()
    def draw(self, time: int) -> None:
        """Begin anew: +-1 for each pixel, no momentum."""
        key = Key(int(self.seed)).at(time)
        for rows in torch.arange(len(self.z), device=self.z.device).split(CHUNK):
            self.z[rows] = signs(self.z[rows], key.rows(rows))
        self.momentum.zero_()


@objectives.register("fgsm-pgi")
@dataclass(frozen=True)
class FGSMPGI(Objective):
    """One-step training from each image's own perturbation of the last epoch: prior-guided initialisation (EP, MEP).

        x_0 = clip(x + z),    g = grad H(f(x_0), y),    x' = clip(x + clip(z + eps sign g));    z, m: an image's own
        L = H(f(x'), y) + weight mean_b |f(x') - f(x_0)|^2 / C
        EP: z <- clip(z + eps sign g);    MEP: m <- g / |g|_1 + momentum m, z <- clip(z + eps sign m)

    Jia et al. 2022 (arXiv 2207.08859, algorithms 2 and 3). |g|_1 is of each image, where the published code takes the
    batch's. z does not follow crops and flips, as there. The store is a part: 2 N images of float32 on every rank and
    in every checkpoint; what moved is sent once an update. Costs 8 forward passes.
    """

    threat: Linf  # the ball
    batch: int  # the run's batch: as many stored perturbations are sent an update
    weight: Number = 10.0  # of the squared difference of the logits
    prior: Literal["epoch", "momentum"] = "momentum"  # what is stored: EP or MEP
    momentum: float = 0.3  # of the gradient's direction, for MEP
    redraw: int = 0  # updates after which all are drawn anew: 40 epochs in the published code; 0: never
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)
    smoothing: float = 0.0  # label smoothing of the training loss, in [0, 1)

    tells = (
        (
            "loss/apart",
            "logits squared",
            "squared difference of the logits at point and start, over the classes, before weight",
        ),
    )
    examples = """
    - {threat: {use: linf, eps: 0.1}, batch: 16}
    - {threat: {use: linf, eps: 0.1}, batch: 16, prior: epoch, redraw: 2}
    """

    def __post_init__(self) -> None:
        if self.batch < 1 or self.redraw < 0:
            raise ValueError(f"batch={self.batch} counts images from 1, and redraw={self.redraw} updates from 0")
        if isinstance(self.weight, (int, float)) and not self.weight >= 0:
            raise ValueError(f"weight={self.weight:g} must not be negative: it weighs the change of the logits")

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        images, eps = batch.images, number(self.threat.eps)
        store: Any = state.parts["store"]
        z = eps * store.z[batch.sample].to(images.dtype)
        start = (images + z).clamp(0, 1)
        slope, _ = look(network, start, batch.targets, key.of("attack"), self.norm)
        used = (z + eps * slope.sign()).clamp(-eps, eps)

        with network.drops(key.of("drops")):
            before = network(start)
            attacked = network((images + used).clamp(0, 1))

        loss = cross_entropy(attacked, batch.targets, self.smoothing).mean()
        apart = (full(attacked) - full(before)).square().mean()

        length = slope.flatten(1).abs().sum(1).view(-1, *[1] * (slope.dim() - 1))
        momentum = slope / torch.where(length == 0, 1, length)
        if self.prior == "momentum":
            momentum = momentum + self.momentum * store.momentum[batch.sample].to(images.dtype)
        kept = (z + eps * momentum.sign()).clamp(-eps, eps)
        return Loss(
            loss + number(self.weight) * apart,
            metrics={
                "loss/robust": loss,
                "loss/apart": apart,
                "accuracy/attacked": correct(attacked, batch.targets).mean(),
            },
            sums={
                "sample": self._placed(batch, batch.sample),
                "z": self._placed(batch, kept / eps if eps else kept),
                "momentum": self._placed(batch, momentum),
            },
        )

    def _placed(self, batch: Batch, values: Tensor) -> Tensor:
        """[batch, ...]: what this micro-batch says, at its positions of the global batch; zeros elsewhere."""
        whole = values.new_zeros((self.batch, *values.shape[1:]))
        whole[batch.position] = values
        return whole

    def parts(self, network: Any, data: Dataset) -> Mapping[str, Part]:
        return {"store": Part(Store(data.train_size(), data.shape))}

    def settle(self, network: Any, state: State, sums: Mapping[str, Tensor], update: int, updates: int) -> None:
        store: Any = state.parts["store"]
        sample = sums["sample"]
        store.z[sample] = sums["z"].to(store.z.dtype)
        store.momentum[sample] = sums["momentum"].to(store.z.dtype)
        if self.redraw and (update + 1) % self.redraw == 0:
            store.draw(update + 1)

    def cost(self) -> float:
        return 8
