"""Objectives that ask more of an engine than a loss: parts, gradients by the input, moves of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.engines.schedule import Ramp
from robust_train.losses import cross_entropy
from robust_train.nouns import Batch, Loss, Objective, Part, Shape, State
from robust_train.settings.optimiser import Optimiser
from tests.toys import ToyNetwork

GENERATOR = Optimiser(name="momentum", lr=2.0, momentum=0.9, clip=0.05)
MULTIPLIER = Optimiser(name="momentum", lr=Ramp(to=0.4, updates=4), momentum=0.0)
HEAD = Optimiser(name="adamw", lr=0.01, weight_decay=0.1)
TEACHER, MEMORY, BOUND = Ramp(to=0.9, updates=4, start=0.5), 0.7, 0.01


class Shift(nn.Module):
    """One perturbation for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(0.05 * torch.randn(1, 1, 8, 8))


class Scalar(nn.Module):
    """A Lagrange multiplier."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))


@dataclass(frozen=True)
class Players(Objective):
    """Two players under a constraint, a head of the objective's own, a teacher that follows the network.

    network descends     H(f(x + z), y) + H(h(f(x)), y) + mean (f(x) - f'(x))^2
    z ascends            H(f(x + z), y) - m mean z^2          clipped to a norm of 0.05
    m ascends            m (mean z^2 - bound), and stays at 0 or above (settle)
    h descends           H(h(f(x)), y)
    f' follows f, z' follows z
    """

    use = "players"

    def parts(self, network: Any, data: Any) -> dict[str, Part]:
        return {
            "generator": Part(Shift(), GENERATOR),
            "multiplier": Part(Scalar(0.3), MULTIPLIER),
            "head": Part(nn.Linear(5, 5), HEAD),
            "teacher": Part(deepcopy(network), average_of="network", decay=TEACHER),
            "memory": Part(Shift(), average_of="generator", decay=MEMORY),
        }

    def __call__(self, network: Any, batch: Batch, key: Any, state: State) -> Loss:
        z, m = state.parts["generator"].z, state.parts["multiplier"].value
        with network.drops(key.of("drops")):
            attacked, clean = network(batch.images + z), network(batch.images)
        fooled = cross_entropy(attacked, batch.targets).mean()
        headed = cross_entropy(state.parts["head"](clean), batch.targets).mean()
        with torch.no_grad():
            taught = state.parts["teacher"](batch.images)
        total = fooled + headed + (clean - taught).square().mean()
        square = z.square().mean()
        of = {"generator": m.detach() * square - fooled, "multiplier": -m * (square.detach() - BOUND), "head": headed}
        return Loss(total, {"loss/fooled": fooled}, {"seen": torch.tensor(len(batch))}, of)

    def settle(self, network: Any, state: State, sums: Mapping[str, Tensor], update: int, updates: int) -> None:
        state.parts["multiplier"].value.clamp_(min=0.0)

    def cost(self) -> float:
        return 7


@dataclass(frozen=True)
class Turns(Players):
    """The same, the players taking turns: the network rests in every other update, the generator in the others."""

    use = "turns"

    def __call__(self, network: Any, batch: Batch, key: Any, state: State) -> Loss:
        loss = super().__call__(network, batch, key, state)
        if float(state.counts.get("seen", torch.zeros(()))) % 32:
            return Loss(None, loss.metrics, loss.counts, {"generator": loss.of["generator"]})
        return Loss(loss.total, {}, loss.counts, {"head": loss.of["head"]})


@dataclass(frozen=True)
class Penalised(Objective):
    """H + weight mean_b |dH_b/dx_b|^2: a gradient by the images that is differentiated again."""

    weight: float = 0.1

    use = "penalised"

    def __call__(self, network: Any, batch: Batch, key: Any, state: State) -> Loss:
        images = batch.images.detach().requires_grad_()
        with network.drops(key.of("drops")):
            losses = cross_entropy(network(images), batch.targets)
        (slope,) = torch.autograd.grad(losses.sum(), images, create_graph=True)
        penalty = slope.square().flatten(1).sum(1).mean()
        return Loss(losses.mean() + self.weight * penalty, {"loss/penalty": penalty})

    def cost(self) -> float:
        return 6


@dataclass(frozen=True)
class Hebb(Objective):
    """Oja's rule on the last layer, w <- w + rate mean_b y (x - y w), without a gradient of anything."""

    rate: float = 0.02

    use = "hebb"

    def __call__(self, network: Any, batch: Batch, key: Any, state: State) -> Loss:
        with torch.no_grad(), network.drops(None):
            logits, seen = network(batch.images, taps=("layers",))
            x = seen["layers"].flatten(1)
        return Loss(None, {"activity": logits.square().mean()}, sums={"yx": logits.T @ x, "yy": logits.T @ logits})

    def settle(self, network: Any, state: State, sums: Mapping[str, Tensor], update: int, updates: int) -> None:
        weight = network.model.head.head.weight
        weight += self.rate / 16 * (sums["yx"] - sums["yy"] @ weight)

    def cost(self) -> float:
        return 1


class Idle(nn.Module):
    """A model with a layer that no forward uses."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.idle = nn.Linear(7, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


@dataclass(frozen=True)
class IdleNetwork(ToyNetwork):
    """The toy network, and weights beside it that nothing uses."""

    use = "idle"

    def build(self, classes: int, shape: Shape) -> nn.Module:
        return Idle(super().build(classes, shape))

    def stages(self, model: nn.Module) -> Iterator[str]:
        yield from (f"body.layers.{index}" for index in range(2))
