"""Learning from frozen teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from robust_train.keyed import Key
from robust_train.keyed.mode import Precision
from robust_train.losses import correct, cross_entropy, full, kl
from robust_train.models.ensemble import Ensemble, Mean, mixed
from robust_train.models.network import Network
from robust_train.nouns import Attack, Batch, Dataset, Divergence, Loss, Objective, Part, Raising, State, number
from robust_train.objectives.divergence import KL
from robust_train.read.errors import ConfigError
from robust_train.read.paths import FilePath
from robust_train.read.registry import Number, objectives
from robust_train.trained import Members, is_ensemble, network_of


@objectives.register("distill")
@dataclass(frozen=True)
class Distill(Objective):
    """What teachers say of an image, softened, beside its label: an ensemble distilled into one network.

        L = alpha T^2 [(1 - beta) KL(t || s(x)) + beta KL(t || s(x'))] + (1 - alpha) H(s(x), y)
        t = softmax(mean of the teachers' logits / T),    s = softmax(student's logits / T) in KL, T = 1 in H

    Hinton, Vinyals and Dean 2015 (arXiv 1503.02531): no attack. ARD, Goldblum et al. 2020 (arXiv 1905.09747): an attack
    that raises the label's loss, beta 1. RSLAD, Zi et al. 2021 (arXiv 2108.07969): one that raises KL(t || s(x')),
    alpha 1, T 1, beta 5/6. Their code averages the divergence over the classes too, so that KL is 1/C of the formula's,
    and the learning rates and decay that go with it: `kl_of` classes. Teachers see the same augmented view as the
    student, in eval mode, with their noise on; none of them gets a gradient. Costs draws x teachers forwards, and 3 for
    each view the student learns from (the clean one where beta or alpha is below 1), and the attack.
    """

    teachers: tuple[FilePath, ...]  # checkpoints or folders of runs; or one ensemble's YAML file
    temperature: Number = 4.0  # T: how soft answers are
    alpha: Number = 0.9  # share of what teachers say; the rest is the label's
    mean: Mean = "logits"  # of several teachers: of their logits or of their softened probabilities
    draws: int = 1  # forwards of each teacher an image, averaged: for teachers that draw noise
    attack: Attack | None = None  # what makes x'; null: clean images alone
    beta: Number = 1.0  # share of the attacked images in the soft term, where there is an attack
    raises: Literal["label", "teacher"] = "label"  # what the attack raises: H(s(x'), y), or KL(t || s(x'))
    kl_of: Literal["image", "classes"] = "image"  # KL is a sum over classes, or their mean as in RSLAD's and ARD's code
    teacher_sees: Literal["clean", "attacked"] = "clean"  # t is said of x, or of x' (then beta must be 1)
    teacher_precision: Precision = "bf16"  # of the teachers' forwards
    term: Divergence = field(default_factory=KL)  # KL, or what stands in its place; of logits over T

    tells = (
        ("loss/distill", "nats", "what teachers say: T^2 times the divergence from them, before alpha"),
        ("accuracy/teachers", "share", "share that the teachers are right on"),
    )
    examples = """
    - {teachers: [NETWORK/0, NETWORK/1], draws: 2, teacher_precision: fp32}
    - {teachers: [NETWORK/0, NETWORK/1], alpha: 0.7, mean: probabilities, teacher_precision: fp32,
      attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}}
    - {teachers: [NETWORK/1], temperature: 1.0, alpha: 1.0, beta: 5/6, raises: teacher, kl_of: classes,
      teacher_precision: fp32,
      attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}}
    - {teachers: [NETWORK/0], teacher_precision: fp32,
      term: {use: gkl, alpha: 0.2, beta: 20.0, gamma: 0.3, weights: image}}
    - {teachers: [NETWORK/0], teacher_sees: attacked, teacher_precision: fp32,
      attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}}
    """

    def __post_init__(self) -> None:
        if not self.teachers:
            raise ValueError("teachers is empty: name checkpoints to learn from, such as [runs/a, runs/b]")
        if self.draws < 1:
            raise ValueError(f"draws={self.draws} must be at least 1: it counts forwards of each teacher")
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 <= value <= 1:
                raise ValueError(f"{name}={value:g} must be a share, from 0 to 1")
        if isinstance(self.temperature, (int, float)) and not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature:g} must be positive")
        if self.attack is None and (self.raises != "label" or self.teacher_sees != "clean" or self.beta != 1.0):
            raise ValueError("beta, raises and teacher_sees speak of attacked images: name an attack too")
        if self.raises == "teacher" and getattr(self.attack, "targets", None) == "random":
            raise ValueError(
                "attack.targets: random lowers what it raises towards a class: with raises=teacher say label"
            )
        if self.teacher_sees == "attacked" and (self.beta != 1.0 or self.raises == "teacher"):
            raise ValueError("teacher_sees=attacked: what is said of attacked images is learned there: beta=1, label")

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        ensemble = teachers_of(self.teachers, self.mean, str(batch.images.device), batch.images.dtype)
        alpha, beta, heat = number(self.alpha), number(self.beta) * (self.attack is not None), number(self.temperature)
        said = self._said(ensemble, batch.images, key, heat) if self.teacher_sees == "clean" else batch.images

        adversarial = None
        if self.attack is not None:
            apart = Raising(lambda logits, said: kl(logits / heat, said), said)
            goal = apart if self.raises == "teacher" else None
            adversarial = self.attack(network, batch.images, batch.targets, key.of("attack"), goal)
            if self.teacher_sees == "attacked":
                said = self._said(ensemble, adversarial, key, heat)

        metrics: dict[str, Tensor] = {}
        soft: list[Tensor] = []
        total = batch.images.new_zeros(())
        with network.drops(key.of("drops")):
            if beta < 1 or alpha < 1:
                clean = network(batch.images)
                if said.shape != clean.shape:
                    raise ConfigError(
                        f"objective.teachers answer with {said.shape[1]} classes, the student with {clean.shape[1]}: "
                        "name teachers of the same classes"
                    )
                label = cross_entropy(clean, batch.targets).mean()
                metrics |= {"loss/clean": label, "accuracy/clean": correct(clean, batch.targets).mean()}
                soft.append((1 - beta) * self.term(said, clean / heat, batch.targets, state).mean())
                total = total + (1 - alpha) * label
            if adversarial is not None:
                attacked = network(adversarial)
                metrics["accuracy/attacked"] = correct(attacked, batch.targets).mean()
                soft.append(beta * self.term(said, attacked / heat, batch.targets, state).mean())

        distilled = heat**2 * torch.stack(soft).sum()
        if self.kl_of == "classes":
            distilled = distilled / said.shape[1]
        metrics |= {"loss/distill": distilled, "accuracy/teachers": correct(said, batch.targets).mean()}
        return Loss(total + alpha * distilled, metrics, sums=self.term.sums(said, batch.targets))

    def parts(self, network: Any, data: Dataset) -> Mapping[str, Part]:
        return self.term.parts(data)

    def settle(self, network: Any, state: State, sums: Mapping[str, Tensor], update: int, updates: int) -> None:
        self.term.settle(state, sums, update)

    def groups(self) -> int:
        return self.term.groups()

    def _said(self, ensemble: Ensemble, images: Tensor, key: Key, heat: float) -> Tensor:
        """[B, C] logits whose softmax is t, without a graph."""
        answers = []
        with torch.no_grad(), ensemble.mode(precision=self.teacher_precision):
            for draw in range(self.draws):
                with ensemble.noise(key.of("teachers").at(draw)):
                    answers.append(full(ensemble.answers(images)) / heat)
        weights = ensemble.weights.to(images.device).repeat(self.draws) / self.draws
        return mixed(torch.cat(answers), weights, ensemble.mean)

    def cost(self) -> float:
        views = (self.attack is None or self.beta != 1.0 or self.alpha != 1.0) + (self.attack is not None)
        attack = 0.0 if self.attack is None else self.attack.cost()
        return self.draws * len(members_of(self.teachers)) + attack + 3 * views


@lru_cache(maxsize=4)
def teachers_of(teachers: tuple[str, ...], mean: Mean, device: str, dtype: torch.dtype) -> Ensemble:
    """The teachers as one ensemble, frozen, in eval mode; read once a process. ConfigError where they do not agree."""
    found = [network_of(path, device) for path in teachers]
    if len(found) == 1 and isinstance(found[0], Ensemble):
        ensemble = found[0]
    else:
        members = [one for one in found if isinstance(one, Network)]
        if len(members) != len(found):
            raise ConfigError("objective.teachers: an ensemble's file stands alone; or name its members instead")
        try:
            ensemble = Ensemble(members, mean)
        except ValueError as error:
            raise ConfigError(f"objective.teachers: {error}") from error
    return ensemble.to(device, dtype).eval().requires_grad_(False)


def members_of(teachers: tuple[str, ...]) -> tuple[str, ...]:
    """The checkpoints behind the names."""
    if len(teachers) == 1 and is_ensemble(teachers[0]):
        return Members.load(Path(teachers[0])).members
    return teachers
