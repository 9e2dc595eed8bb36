"""Universal perturbations: one for many images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import some
from robust_train.attacks.deepfool import DeepFool
from robust_train.attacks.nearest import measuring
from robust_train.attacks.sight import refuse
from robust_train.keyed import Key, uniform
from robust_train.nouns import Attack, Batch, Goal, number
from robust_train.read.registry import attacks
from robust_train.threats.ball import Ball
from robust_train.threats.l2 import L2


@attacks.register("uap")
@dataclass(frozen=True)
class UAP(Attack):
    """One perturbation v for many images: DeepFool's steps added up, image by image, and kept in the ball.

        v <- P(v + r),    r = DeepFool(clip(x + v)) - clip(x + v)    for every x whose class v has not changed

    in a drawn order, pass after pass, until v changes the class of enough images. P is the projection on ||v|| <= eps;
    images are clipped where v is applied. Moosavi-Dezfooli et al. 2017 (arXiv 1610.08401, algorithm 1), with its L2
    steps for both norms. The class is the network's own on the clean image: labels are not looked at. `fit` gives the v
    of a data set; called as an attack, every `group` consecutive images get one of their own.

    Costs at most 1 + passes (3 + steps candidates) forwards, nearly all of single images: each step changes v.
    """

    threat: Ball  # linf or l2; the paper takes linf of 10/255
    passes: int = 10  # over the images, at most
    fooling: float = 0.8  # 1 - delta: share of the images that is enough
    steps: int = 10  # of each DeepFool
    candidates: int = 10  # classes that DeepFool looks at
    overshoot: float = 0.02  # of DeepFool
    group: int = 128  # consecutive images that share a perturbation, where it is called as an attack

    by_row = False  # the images of a group have one perturbation

    sets_aside = True
    examples = """
    - {threat: {use: linf, eps: 0.1}, passes: 1, steps: 2, group: 4}
    - {threat: {use: l2, eps: 0.5}, passes: 2, fooling: 1.0, steps: 2, group: 2}
    """

    def __post_init__(self) -> None:
        if self.threat.use not in ("linf", "l2"):
            raise ValueError(f"threat={self.threat.use}: universal perturbations are projected on linf or l2; give one")
        if self.passes < 1 or self.group < 1:
            raise ValueError(f"passes={self.passes} and group={self.group} must be at least 1")
        if not 0 < self.fooling <= 1:
            raise ValueError(f"fooling={self.fooling:g} must be in (0, 1]: it is a share of the images")
        self._deepfool  # noqa: B018  # refuses steps, candidates and overshoot now, not in the attack

    @property
    def label(self) -> str:
        return "uap"

    @property
    def _deepfool(self) -> DeepFool:
        return DeepFool(L2(0.0), self.steps, self.candidates, self.overshoot)  # it looks beyond any radius

    def cost(self) -> float:
        return 1 + self.passes * (2 + self._deepfool.cost())

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], inside the threat model, without a graph.

        Raises ValueError for a goal: it raises none.
        """
        refuse(self, goal, "raises no goal: it adds up DeepFool's steps")
        key = key.naming(images)
        adversarial = images.clone()
        for first in range(0, len(images), self.group):
            rows = slice(first, first + self.group)
            v = self._fitted(network, images[rows], key[rows])
            adversarial[rows] = self.threat.apply(images[rows], v)
        return adversarial

    def fit(self, network: Any, batches: Iterable[Batch], key: Key) -> Tensor:
        """[C, H, W] the perturbation of all the batches' images together: `threat.apply(images, v)` applies it to any.

        Holds the images in memory; some thousands are enough for ImageNet. key: of the order, by sample.
        """
        held = [batch.to(batch.images.device) for batch in batches]
        samples = torch.cat([batch.sample for batch in held])
        return self._fitted(network, torch.cat([batch.images for batch in held]), key.rows(samples))

    def _fitted(self, network: Any, images: Tensor, key: Key) -> Tensor:
        """[C, H, W] from images [n, C, H, W] in [0, 1]."""
        v, deepfool = images.new_zeros(images.shape[1:]), self._deepfool
        with measuring(network, key):
            classes = _classes(network, images)
            for turn in range(self.passes):
                drawn = uniform(key.of("order").at(turn), (len(images), 1), images.device)
                for row in drawn.flatten().argsort(stable=True).split(1):
                    point, label = self.threat.apply(images[row], v), classes[row]
                    with some(network, row):
                        right = bool(_classes(network, point) == label)
                    if right:
                        found = deepfool.nearest(network, point, label, key[row])
                        v = self._inside(v + (found.points - point)[0])
                fooled = _classes(network, self.threat.apply(images, v)) != classes
                if fooled.double().mean() >= self.fooling:
                    break
        return v

    def _inside(self, v: Tensor) -> Tensor:
        """v brought into the ball; the box is each image's own."""
        eps = number(self.threat.eps)
        if self.threat.use == "linf":
            return v.clamp(-eps, eps)
        return v * (eps / v.norm().clamp(min=torch.finfo(v.dtype).tiny)).clamp(max=1)


def _classes(network: Any, images: Tensor) -> Tensor:
    """[n] the network's classes."""
    with torch.no_grad():
        return network(images).argmax(1)
