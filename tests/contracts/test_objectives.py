"""What every registered objective keeps to."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key
from robust_train.models.ensemble import Ensemble
from robust_train.models.network import Network
from robust_train.nouns import Batch, Objective, State
from robust_train.objectives import distill
from robust_train.objectives.generalized import RIGHT, SEEN, Generalized
from robust_train.objectives.interpolated import Interpolated
from robust_train.read.registry import objectives
from robust_train.records.names import LINE, unlisted
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.threats.pyramid import Pyramid
from robust_train.threats.weights import Weights
from tests.flops import counting
from tests.registered import examples, of_steps

LINF = PGD(Linf(0.1), 2, 0.05)
PATCHES = PGD(
    Pyramid(0.02, (4, 2, 1), (4.0, 2.0, 1.0)), 2, 0.01, "zero", targets="random", drops="frozen", norm="group"
)
BALLS = tuple(PGD(ball, 2, size, "zero", "best") for ball, size in ((Linf(0.1), 0.05), (L2(0.5), 0.3), (L1(1.5), 1.0)))
JOINS = ("average", "maximum", "msd", "sample")
MORE: dict[str, Objective] = {  # what the registered examples do not have, or could not: layers of this network
    "interpolated, named layers": Interpolated(LINF, 0.0, 4, ("input", "hidden")),
    **{f"generalized, l1, {join}": Generalized(BALLS, join) for join in JOINS},
    **{f"generalized, l1, weights, {join}": Generalized(BALLS, join, Weights(0.05, 4), 0.1) for join in JOINS[1:3]},
    "generalized, patches": Generalized((PATCHES,), "maximum"),
}
OBJECTIVES = examples(objectives) | MORE
every = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


@pytest.fixture(autouse=True)
def teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the size of the network whose cost is counted, in place of checkpoints."""

    def made(paths, *_):
        torch.manual_seed(2)
        models = [nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 3)) for _ in paths]
        return Ensemble([Network(model, 3) for model in models]).double().eval().requires_grad_(False)

    monkeypatch.setattr(distill, "teachers_of", made)


def network_of(**layers: nn.Module) -> Network:
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return Network(model, 3, group=4, stages=("hidden",)).double()


def convolutional() -> Network:
    return network_of(
        stem=nn.Conv2d(1, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        hidden=nn.Tanh(),
        drop=nn.Dropout(0.3),
        flat=nn.Flatten(),
        head=nn.Linear(256, 3),
    )


def a_batch() -> tuple[Batch, Key]:
    torch.manual_seed(1)
    images, position = (torch.rand(8, 1, 8, 8).double() * 1.4 - 0.2).clamp(0, 1), torch.arange(8)
    return Batch(images, position % 3, position, position + 100), Key(3).at(7).rows(position)


@dataclass(frozen=True)
class Small:
    """As much of a data set as an objective asks for its parts."""

    shape = (1, 8, 8)
    classes = 3

    def train_size(self) -> int:
        return 128


def state_of(objective: Objective, network: Network) -> State:
    """Before the first update: the objective's parts, where it has any."""
    torch.manual_seed(4)
    parts = objective.parts(network, Small())  # type: ignore[arg-type]
    return State(parts={name: part.module.double() for name, part in parts.items()})


def gradient_of(total: torch.Tensor, network: Network) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(network.parameters()))])


class Scaled(nn.Module):
    """Pixels times a trained number: below it, the first matrix product too has an input that needs a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scale * images


@every
def test_a_loss_is_a_scalar_with_a_gradient_and_metrics_that_are_scalars(objective):
    network, (batch, key) = convolutional(), a_batch()
    loss = objective(network, batch, key, state_of(objective, network))
    assert loss.total.shape == ()
    gradient = gradient_of(loss.total, network)
    assert gradient.isfinite().all()
    assert gradient.norm() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    assert loss.metrics
    for name, value in loss.metrics.items():
        assert name.split("/")[0] in ("loss", "accuracy", "weight"), name
        assert value.shape == ()
    assert all(0 <= value <= 1 for name, value in loss.metrics.items() if name.startswith("accuracy/"))
    assert unlisted(loss.metrics, objective, [LINE]) == []


@every
def test_parts_of_a_batch_are_the_batch(objective):
    """Whole groups of BatchNorm and of mixing: losses, metrics and gradients average, counts add up. Masks are on."""
    network, (batch, key) = convolutional(), a_batch()
    whole = objective(network, batch, key, state_of(objective, network))
    recorded = network.recorded()
    network.move(None)
    parts = [
        objective(network, batch[rows], key[rows], state_of(objective, network)) for rows in (slice(0, 4), slice(4, 8))
    ]
    assert 8 % objective.groups() == 0
    assert_close(sum(part.total for part in parts) / 2, whole.total, rtol=1e-12, atol=0)
    for name, value in whole.metrics.items():
        assert_close(sum(part.metrics[name] for part in parts) / 2, value, rtol=1e-12, atol=1e-15)
    for name, value in whole.counts.items():
        assert_close(sum(part.counts[name] for part in parts), value)
    found = sum(gradient_of(part.total, network) for part in parts) / 2
    assert_close(found, gradient_of(whole.total, network), rtol=1e-9, atol=1e-12)
    assert_close(network.recorded(), recorded)


@every
def test_attacks_record_no_statistics(objective):
    """Only forwards with a graph for the weights count: as many groups, however many steps the attacks take."""
    recorded = []
    for steps in (1, 3):
        network, (batch, key) = convolutional(), a_batch()
        of_steps(objective, steps)(network, batch, key, state_of(objective, network))
        recorded.append(float(network.recorded()[-1]) / 2)  # two groups of four
    assert recorded[0] == recorded[1]
    assert recorded[0] in (1, 2, 3, 4)


@every
def test_an_update_costs_what_it_says(objective):
    """Matrix products alone, forward and backward; one unit is a forward of the batch."""
    network = network_of(
        scaled=Scaled(), flat=nn.Flatten(), first=nn.Linear(64, 16, bias=False), hidden=nn.Tanh(), head=nn.Linear(16, 3)
    )
    batch, key = a_batch()
    with counting() as forward, torch.no_grad():
        network.eval()(batch.images)
    network.train()
    spared = 0.0
    if getattr(objective, "weights", None) is not None:
        spared = forward[0] / sum(forward)  # the weights' direction needs no gradient of the first layer's input
    found: dict[int, float] = {}  # by the member drawn, where one is
    for update in range(40 if getattr(objective, "join", None) == "sample" else 1):
        state = state_of(objective, network)
        with counting() as flops:
            loss = objective(network, batch, key.at(update), state)
            torch.autograd.grad(loss.total, list(network.parameters()))
        found[int(loss.counts[SEEN].argmax()) if SEEN in loss.counts else 0] = sum(flops) / sum(forward)
    if len(found) > 1:
        assert len(found) == len(objective.names)
        spared /= len(found)
    assert sum(found.values()) / len(found) == pytest.approx(objective.cost() - spared, abs=1e-12)


@every
def test_one_hot_distributions_are_labels(objective):
    network, (batch, key) = convolutional(), a_batch()
    soft = Batch(batch.images, F.one_hot(batch.targets, 3).double(), batch.position, batch.sample)
    hard, same = (
        objective(network, batch, key, state_of(objective, network)),
        objective(network, soft, key, state_of(objective, network)),
    )
    assert_close(same.total, hard.total, rtol=1e-6, atol=0)


@every
def test_the_key_alone_decides(objective):
    network, (batch, key) = convolutional(), a_batch()
    first = objective(network, batch, key, state_of(objective, network)).total
    torch.manual_seed(55)
    assert torch.equal(objective(network, batch, key, state_of(objective, network)).total, first)


@pytest.mark.parametrize(
    "objective", [o for o in OBJECTIVES.values() if isinstance(o, Generalized) and o.join == "sample"]
)
def test_counts_are_of_the_member_drawn(objective):
    network, (batch, key) = convolutional(), a_batch()
    counts = objective(network, batch, key, state_of(objective, network)).counts
    assert counts[SEEN].sum() == len(batch)
    assert (counts[SEEN] > 0).sum() == 1
    assert (counts[RIGHT] <= counts[SEEN]).all()
