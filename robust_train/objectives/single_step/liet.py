"""A start that the label chooses, and answers that agree along the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.attacks.attacked import Norm
from robust_train.keyed import Key, uniform
from robust_train.losses import correct, cross_entropy, distribution, full, labels_of
from robust_train.nouns import Batch, Dataset, Loss, Objective, Part, State, number
from robust_train.objectives.single_step.leap import look, spread, within
from robust_train.read.registry import Number, objectives
from robust_train.threats.linf import Linf


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """JS(softmax a, softmax b) = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, [B]. Gradients flow into both."""
    log_p, log_q = full(first).log_softmax(1), full(second).log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(log_p.new_tensor(2.0))
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(1) / 2


class Starts(nn.Module):
    """For each class the sign of the gradient of a grey image's loss."""

    sign: Tensor  # [C, ...]

    def __init__(self, classes: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("sign", torch.zeros(classes, *shape))

    def see(self, network: Any) -> None:
        """Take them from the network as it is, in eval mode."""
        grey = torch.full_like(self.sign, 0.5).to(network.mean)
        classes = torch.arange(len(grey), device=grey.device)
        slope, _ = look(network, grey, classes, Key(0).of("starts").rows(classes), "running")
        self.sign.copy_(slope.sign())


@objectives.register("liet")
@dataclass(frozen=True)
class LIET(Objective):
    """One-step training from a perturbation of the image's class, with labels that are softened at random.

        I_c = eps sign grad H(f(grey), c);    z_0 = +-I_y, a share U(0.1, 0.5) of its pixels drawn from U(-eps, eps)
        x_0 = clip(x + z_0),    x' = clip(x_0 + eps sign grad H)
        L = H_r(f(x'), y) + weight mean_b JS(softmax f(x_0), softmax f(x'))

    H_r keeps 1 - smoothing on the class and spreads the rest over the others by random weights. Pan and Yao 2026
    (FastAT Benchmark, arXiv 2604.22853) and their code. I is taken anew every `every` updates, after the update.
    Costs 8 forward passes, and 2 for an image a class where I is taken.
    """

    threat: Linf  # the ball
    weight: Number  # lambda: grows from 1 to 100 over the run; to 200 on CIFAR-100
    smoothing: float = 0.6  # what H_r takes from the class: 0.6 on CIFAR-10, 0.8 on CIFAR-100
    every: int = 20  # updates between two looks at the grey image
    noise: float = 1.0  # half-width of the drawn pixels, in radii; 2 above 8/255
    project: bool = True  # bring x' into the ball; not above 8/255
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)

    tells = (("loss/js", "nats", "Jensen-Shannon divergence of start and point, before weight"),)
    examples = "- {threat: {use: linf, eps: 0.1}, weight: 10.0}"

    def __post_init__(self) -> None:
        if isinstance(self.weight, (int, float)) and not self.weight >= 0:
            raise ValueError(f"weight={self.weight:g} must not be negative: it weighs the divergence")
        if self.every < 1 or not 0 <= self.smoothing < 1:
            raise ValueError(f"every={self.every} counts updates from 1, and smoothing={self.smoothing:g} is in [0, 1)")

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        images, eps = batch.images, number(self.threat.eps)
        starts: Any = state.parts["starts"]
        start = (images + self.first(starts.sign, batch, key.of("start"))).clamp(0, 1)
        slope, _ = look(network, start, batch.targets, key.of("attack"), self.norm)
        moved = start + eps * slope.sign()
        adversarial = within(images, moved, eps) if self.project else moved.clamp(0, 1)

        with network.drops(key.of("drops")):
            before = network(start)
            attacked = network(adversarial)

        loss = cross_entropy(attacked, self.softened(batch.targets, attacked, key.of("labels"))).mean()
        apart = jensen_shannon(before, attacked).mean()
        return Loss(
            loss + number(self.weight) * apart,
            metrics={
                "loss/robust": loss,
                "loss/js": apart,
                "accuracy/attacked": correct(attacked, batch.targets).mean(),
            },
        )

    def first(self, sign: Tensor, batch: Batch, key: Key) -> Tensor:
        """z_0 [B, ...]."""
        images, eps = batch.images, number(self.threat.eps)
        own = eps * sign[labels_of(batch.targets)].to(images.dtype)
        size, rows = (len(images), 1), [-1, *[1] * (images.dim() - 1)]
        turn = torch.where(uniform(key.of("turn"), size, images.device) < 0.5, -1, 1).view(rows)
        share = (0.1 + 0.4 * uniform(key.of("share"), size, images.device)).view(rows)
        drawn = uniform(key.of("where"), images.shape, images.device) < share
        return torch.where(drawn, spread(images, key.of("noise"), self.noise * eps), turn * own)

    def softened(self, targets: Tensor, logits: Tensor, key: Key) -> Tensor:
        """[B, C]: 1 - smoothing on the class, the rest on the others in random shares."""
        p = distribution(targets, logits.shape[1], dtype=full(logits).dtype)
        others = uniform(key, p.shape, p.device, p.dtype) * (1 - p)
        others = others / others.sum(1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
        return (1 - self.smoothing) * p + self.smoothing * others

    def parts(self, network: Any, data: Dataset) -> Mapping[str, Part]:
        starts = Starts(data.classes, data.shape)
        starts.to(network.mean.device)
        starts.see(network)
        return {"starts": Part(starts)}

    def settle(self, network: Any, state: State, sums: Mapping[str, Tensor], update: int, updates: int) -> None:
        if (update + 1) % self.every == 0:
            starts: Any = state.parts["starts"]
            starts.see(network)

    def cost(self) -> float:
        return 8
