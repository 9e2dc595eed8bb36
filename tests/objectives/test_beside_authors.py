"""Where the authors' code leaves its paper, offered behind a field: against plain restatements. [docs/methods/]"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from robust_train.attacks.apgd import APGD
from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key
from robust_train.models.network import Network
from robust_train.nouns import Attack, Batch, State
from robust_train.objectives.distill import Distill
from robust_train.objectives.generalized import RIGHT, SEEN, Generalized
from robust_train.objectives.trades import Trades
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.trained import network_of
from tests.teachers import teacher


def batch_of(size: int = 12, classes: int = 5, side: int = 4) -> tuple[Batch, Key]:
    torch.manual_seed(4)
    position = torch.arange(size)
    images = torch.rand(size, 1, side, side).double()
    return Batch(images, position % classes, position, position), Key(3).rows(position)


@pytest.mark.parametrize(("alpha", "beta", "heat"), [(1.0, 5 / 6, 1.0), (0.9, 1.0, 30.0)], ids=["rslad", "ard"])
def test_the_divergence_of_rslad_and_ard_is_a_mean_over_classes_too(
    tmp_path: Path, alpha: float, beta: float, heat: float
) -> None:
    """KLDivLoss as PyTorch has it: the mean over images and classes; 5 classes make the loss a fifth."""
    batch, key = batch_of(side=8)
    path = teacher(tmp_path, 0, classes=5)
    pgd = PGD(Linf(0.1), 2, 0.05)
    torch.manual_seed(0)
    student = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh()), 5).double()
    objective = Distill((path,), heat, alpha, attack=pgd, beta=beta, kl_of="classes", teacher_precision="fp32")
    loss = objective(student, batch, key, State())

    said = network_of(path).double().eval()(batch.images) / heat
    moved = pgd(student, batch.images, batch.targets, key.of("attack"))

    def theirs(images: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(student(images) / heat, 1), F.softmax(said, 1), reduction="none").mean()

    soft = beta * theirs(moved) + (1 - beta) * theirs(batch.images)
    wanted = alpha * heat**2 * soft + (1 - alpha) * F.cross_entropy(student(batch.images), batch.targets)
    assert_close(loss.total, wanted)


class Heard(nn.Module):
    """Remembers whether each of its answers was right."""

    def __init__(self, model: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.model, self.labels, self.right = model, labels, []

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        self.right.append(logits.argmax(1) == self.labels)
        return logits


@pytest.mark.parametrize("attack", [APGD(Linf(0.06), 5, keep="best"), PGD(L2(0.3), 5, 0.12)], ids=["apgd", "pgd"])
def test_sampling_may_count_who_was_right_at_every_point_of_the_attack(attack: Attack) -> None:
    """E-AT's code: the least over the attack's forwards, where ours takes the one training forward."""
    batch, key = batch_of(64)
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 5))
    optimiser = torch.optim.Adam(plain.double().parameters(), 0.02)
    for _ in range(200):  # so that most are right, and the attack changes some
        optimiser.zero_grad()
        F.cross_entropy(plain(batch.images), batch.targets).backward()
        optimiser.step()
    heard = Heard(plain, batch.targets)
    network = Network(heard, 5).double()
    loss = Generalized((attack,), "sample", right_in="attack")(network, batch, key, State())
    attacked, trained = torch.stack(heard.right[:-1]).all(0), heard.right[-1]
    assert loss.counts[SEEN].tolist() == [64]
    assert loss.counts[RIGHT].tolist() == [int(attacked.sum())]
    assert 0 < int(attacked.sum()) < 64
    ours = Generalized((attack,), "sample")(network, batch, key, State())
    assert ours.counts[RIGHT].tolist() == [int(trained.sum())]
    assert_close(loss.total, ours.total, rtol=0, atol=0)  # what is trained on is the same


def test_counting_in_the_attack_is_refused_where_it_raises_another_loss() -> None:
    with pytest.raises(ValueError, match="right_in=attack follows"):
        Generalized((APGD(Linf(0.1), 3, "dlr", keep="best"),), "sample", right_in="attack")
    with pytest.raises(ValueError, match="join=sample"):
        Generalized((PGD(Linf(0.1), 3, 0.1),), "average", right_in="attack")


@dataclass(frozen=True)
class Shifted(Attack):
    """Known images."""

    def __call__(self, network, images, targets, key, goal=None):
        return images.square()

    def cost(self) -> float:
        return 0


def test_trades_moves_running_statistics_once_where_theirs_move_three_times() -> None:
    """docs/methods/trades.md: with means s of x and t of x', ours keep 0.9 and add 0.1 (s + t) / 2; theirs s, t, s."""
    batch, key = batch_of(8)
    network = Network(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 5)), 5, group=8).double().train()
    Trades(Shifted(), 1.0)(network, batch, key, State())
    network.move(network.recorded())
    s, t = batch.images.flatten(1).mean(0), batch.images.flatten(1).square().mean(0)
    assert_close(network.model[1].running_mean, 0.05 * (s + t))
    theirs = nn.BatchNorm1d(16).double().train()
    for images in (batch.images, batch.images.square(), batch.images):
        theirs(images.flatten(1))
    assert_close(theirs.running_mean, 0.181 * s + 0.09 * t)  # and 0.729 of what was before
