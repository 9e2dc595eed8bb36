"""Training against a set of threat models."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from robust_train.attacks.combine import WorstOf
from robust_train.attacks.msd import MSD
from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key, uniform
from robust_train.losses import correct, cross_entropy
from robust_train.nouns import Attack, Batch, Goal, Loss, Objective, Raising, Score, State
from robust_train.read.registry import objectives
from robust_train.threats.ball import Ball
from robust_train.threats.weights import Weights

PLAIN = (0, "label", None)  # values of an attack's `targets` that name no other class
SEEN, RIGHT = "generalized/seen", "generalized/right"  # counts a threat model: images trained on, those right of them


@dataclass(frozen=True, eq=False)
class Watching(Goal):
    """The labels' cross-entropy, and who was right at every point that it was asked about. Costs nothing beside it."""

    right: Tensor  # [B] of the images, ones at first; written to

    def of(self, network: Any, images: Tensor, targets: Tensor, key: Key) -> Score:
        score = Raising(cross_entropy).of(network, images, targets, key)

        def watched(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            value, logits = score(points, rows)
            now = correct(logits.detach(), targets[rows]).to(self.right.dtype)
            self.right.scatter_reduce_(0, rows, now, "amin")
            return value, logits

        return watched


@objectives.register("generalized")
@dataclass(frozen=True)
class Generalized(Objective):
    """Cross-entropy under several threat models, joined so that the worst of them should not fool the network.

        average:  L = mean_i mean_b l_ib
        maximum:  L = mean_b max_i l_ib
        msd:      L = mean_b l(f(MSD(x_b)), y_b)
        sample:   L = mean_b l_ib, one i an update, with probability ~ 1 - accuracy_i

    Tramer and Boneh 2019 (arXiv 1904.13000); Maini et al. 2020 (arXiv 1909.04068); E-AT, Croce and Hein 2022 (arXiv
    2105.12508). l_ib: the loss of image b under attack i, all from the same clean images. `weights` adds the weights'
    threat model to the set: the loss of clean images at w + v, with v taken for each group of images alone (no
    collective); beside msd it is averaged with MSD's loss. maximum chooses each image's attack before the one training
    forward, with running statistics and without dropout. accuracy_i: right among all images trained on so far under i,
    from `state.counts`, which sampling reads on the host; equal until all were seen. Right in the training forward, at
    the point found; or, with `right_in` attack, at every point that the attack looked at, in its mode, as E-AT's code
    has it: fewer, and the fewer the stronger the attack.

    Costs, for attacks of c_i: average sum (c_i + 3); maximum sum (c_i + 1) + 3, for one attack c + 3; msd K (2 + n) +
    3; sample, on average, mean c_i + 3. `weights` is a term of 6 (among those sampled: of c_i = 3).
    """

    attacks: tuple[Attack, ...]  # each with its threat model; for msd PGD on balls, alike but for step_size
    join: Literal["average", "maximum", "msd", "sample"]  # how their losses become one
    weights: Weights | None = None  # perturb the weights too; null: images only
    right_in: Literal["training", "attack"] = "training"  # sample: where accuracy_i is counted; attack: as E-AT's code
    smoothing: float = 0.0  # label smoothing of the training loss, in [0, 1); the attacks' losses have none

    tells = (("loss/THREAT", "nats", "cross-entropy under one attack of the set, by its threat model (join: average)"),)
    examples = """
    - {join: average, weights: {gamma: 0.01, group: 4}, attacks: [
      {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05},
      {use: pgd, threat: {use: l2, eps: 0.5}, steps: 2, step_size: 0.2}]}
    - {join: maximum, attacks: [
      {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05},
      {use: pgd, threat: {use: l2, eps: 0.5}, steps: 2, step_size: 0.2}]}
    - {join: msd, attacks: [
      {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05, start: zero, keep: best},
      {use: pgd, threat: {use: l2, eps: 0.5}, steps: 2, step_size: 0.2, start: zero, keep: best}]}
    - {join: sample, attacks: [
      {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05},
      {use: pgd, threat: {use: l2, eps: 0.5}, steps: 2, step_size: 0.2}]}
    - {join: sample, right_in: attack, attacks: [
      {use: apgd, threat: {use: linf, eps: 0.1}, steps: 2, keep: best},
      {use: pgd, threat: {use: l2, eps: 0.5}, steps: 2, step_size: 0.2}]}
    - {join: sample, weights: {gamma: 0.01, group: 4}, attacks: [
      {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}]}
    """

    def __post_init__(self) -> None:
        if not self.attacks:
            raise ValueError("attacks is empty: name one or more of them")
        if self.right_in == "attack":
            if self.join != "sample" or self.weights is not None:
                raise ValueError("right_in=attack counts for sampling among attacks on images: join=sample, no weights")
            other = [
                a for a in self.attacks if getattr(a, "loss", "ce") != "ce" or getattr(a, "targets", 0) not in PLAIN
            ]
            if other:
                raise ValueError(
                    f"right_in=attack follows an attack that raises the labels' loss, and {other[0].use!r} "
                    "here raises another: use loss=ce without targets, or right_in=training"
                )
        if self.join == "msd":
            wrong = [a for a in self.attacks if not (isinstance(a, PGD) and isinstance(a.threat, Ball))]
            if wrong:
                raise ValueError(
                    f"join=msd takes steps in balls from one gradient, and {wrong[0].use!r} here is no PGD on linf, "
                    "l2 or l1: use those, or another join"
                )
            first = self._pgds()[0]
            if any(replace(pgd, threat=first.threat, step_size=first.step_size) != first for pgd in self._pgds()):
                raise ValueError(
                    "join=msd takes the same steps in every ball: make its attacks alike but for threat and step_size"
                )
            if first.start != "zero" or first.keep != "best" or first.targets != "label" or first.eot > 1:
                raise ValueError(
                    "join=msd starts at the image and keeps the best iterate: say start=zero and keep=best in its "
                    "attacks, with targets=label and eot=1"
                )

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        chosen = self._draw(key.of("choice"), state) if self.join == "sample" else None
        attacks, weights = self._of_this_update(chosen)
        watch = Watching(batch.images.new_ones(len(batch.images))) if self.right_in == "attack" else None
        found = [
            attack(network, batch.images, batch.targets, key.of("attack").at(number), watch)
            for number, attack in attacks.items()
        ]

        with network.drops(key.of("drops")):
            logits = [network(adversarial) for adversarial in found]
        if weights is not None:
            logits.append(weights(network, batch.images, batch.targets, key.of("weights").of("drops")))

        losses = torch.stack([cross_entropy(each, batch.targets, self.smoothing) for each in logits])
        right = torch.stack([correct(each, batch.targets) for each in logits])
        total = (losses.amax(0) if self.join == "maximum" else losses.mean(0)).mean()
        metrics = {"loss/robust": total, "accuracy/attacked": right.amin(0).mean()}
        if self.join == "average":
            metrics |= {f"loss/{name}": loss for name, loss in zip(self.names, losses.mean(1), strict=True)}
        return Loss(total, metrics, {} if chosen is None else self._counts(chosen, watch.right if watch else right[0]))

    @property
    def names(self) -> tuple[str, ...]:
        """What the members of the set are called: their threat models, numbered where two are alike."""
        plain = [getattr(attack, "threat", attack).use for attack in self.attacks]
        plain += ["weights"] if self.weights is not None else []
        alike, count = Counter(plain), Counter[str]()
        names = []
        for name in plain:
            count[name] += 1
            names.append(name if alike[name] == 1 else f"{name}{count[name]}")
        return tuple(names)

    def probabilities(self, state: State) -> list[float]:
        """Of each member in sampling: in proportion to 1 - its running robust accuracy; equal until all were seen."""
        n = len(self.names)
        seen, right = (state.counts[name].tolist() if name in state.counts else [0.0] * n for name in (SEEN, RIGHT))
        if min(seen) == 0:
            return [1 / n] * n
        failing = [1 - r / s for r, s in zip(right, seen, strict=True)]
        return [f / sum(failing) for f in failing] if sum(failing) > 0 else [1 / n] * n

    def _draw(self, key: Key, state: State) -> int:
        """The member of this update, from the key alone and not from its rows: the same everywhere."""
        left = float(uniform(key.rows(torch.zeros(1, dtype=torch.int64)), (1,), dtype=torch.float64))
        probabilities = self.probabilities(state)
        for member, probability in enumerate(probabilities):
            left -= probability
            if left < 0:
                return member
        return max(range(len(probabilities)), key=probabilities.__getitem__)  # left by rounding

    def _of_this_update(self, chosen: int | None) -> tuple[dict[int, Attack], Weights | None]:
        """The attacks to be made, by the number of their key, and whether the weights are perturbed."""
        if chosen is not None:
            return ({}, self.weights) if chosen == len(self.attacks) else ({chosen: self.attacks[chosen]}, None)
        if self.join == "maximum":
            return {0: WorstOf(self.attacks, by="loss")}, self.weights
        if self.join == "msd":
            return {0: self._steepest()}, self.weights
        return dict(enumerate(self.attacks)), self.weights

    def _pgds(self) -> list[PGD]:
        return [attack for attack in self.attacks if isinstance(attack, PGD)]

    def _steepest(self) -> MSD:
        pgds, first = self._pgds(), self._pgds()[0]
        balls = tuple(pgd.threat for pgd in pgds)
        return MSD(balls, first.steps, tuple(pgd.step_size for pgd in pgds), first.norm, first.drops)  # type: ignore[arg-type]

    def _counts(self, chosen: int, right: Tensor) -> dict[str, Tensor]:
        """Sums over this micro-batch's images for the member that was drawn, [n]."""
        member = right.new_zeros(len(self.names), dtype=torch.float64)
        member[chosen] = 1
        return {SEEN: member * len(right), RIGHT: member * right.sum()}

    def cost(self) -> float:
        if self.join == "sample":
            costs = [attack.cost() for attack in self.attacks] + ([3.0] if self.weights is not None else [])
            return sum(costs) / len(costs) + 3
        attacks, weights = self._of_this_update(None)
        return sum(attack.cost() + 3 for attack in attacks.values()) + (6 if weights is not None else 0)

    def groups(self) -> int:
        return self.weights.group if self.weights is not None else 1
