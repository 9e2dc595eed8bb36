"""Weights by information in closed form. [docs/methods/infoat.md]"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key
from robust_train.losses import kl
from robust_train.nouns import State
from robust_train.objectives.information import Information, information, pooled
from robust_train.objectives.mart import Mart, boosted
from robust_train.objectives.weighting import Shuffled
from robust_train.read.errors import ConfigError
from robust_train.run import Run
from robust_train.threats.linf import Linf
from tests.objectives.test_losses_in_numbers import curved, identity, some_batch
from tests.shipped import ROOT


def as_tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_information_and_weights_of_three_points_on_a_line() -> None:
    """t = (0, 0, 2), sigma 1: .339989, .339989, .859068; weights .815111, .815111, 1.369777."""
    found = information(as_tensor(0.0, 0.0, 2.0)[:, None], 1.0)
    assert_close(found, as_tensor(0.339989, 0.339989, 0.859068), rtol=0, atol=1e-6)
    weights = Information(3, variance=1.0).weights(found)
    assert_close(weights, as_tensor(0.815111, 0.815111, 1.369777), rtol=0, atol=1e-6)
    assert_close(weights.mean().item(), 1.0)
    assert Information(3, variance=1.0, most=1.2).weights(found).amax() == 1.2


@pytest.mark.parametrize("variance", [None, 1.0])
def test_points_that_are_alike_have_none_and_points_far_apart_have_log_b(variance: float | None) -> None:
    assert_close(information(torch.ones(5, 3).double(), variance), torch.zeros(5).double(), rtol=0, atol=1e-12)
    far = 1e6 * torch.eye(3).double()
    assert_close(information(far, 1.0), torch.full((3,), 1.098612).double(), rtol=0, atol=1e-6)
    assert_close(Information(5, variance=variance).weights(torch.zeros(5).double()), torch.ones(5).double())


def test_information_lies_between_0_and_log_b_and_knows_no_order_place_or_scale() -> None:
    torch.manual_seed(0)
    t = torch.randn(12, 5).double()
    found = information(t)
    assert (found >= 0).all()
    assert (found <= math.log(12)).all()
    order = torch.randperm(12)
    assert_close(information(t[order]), found[order])
    assert_close(information(7 * t + 3), found)
    assert 0.2 * math.log(12) < found.mean() < 0.9 * math.log(12)  # neither saturated nor empty


def test_weights_are_of_each_group_sum_to_its_size_and_have_no_gradient() -> None:
    torch.manual_seed(0)
    t = torch.randn(8, 5).double().requires_grad_()
    logits = torch.zeros(8, 3).double()
    weighting = Information(4)
    weights = weighting(logits, logits, torch.zeros(8), {"hidden": t}, Key(0))
    assert not weights.requires_grad
    assert_close(weights.view(2, 4).sum(1), torch.full((2,), 4.0).double())
    alone = weighting(logits[:4], logits[:4], torch.zeros(4), {"hidden": t[:4]}, Key(0))
    assert_close(weights[:4], alone)
    assert weights.std() > 0.05


def test_maps_and_tokens_are_averaged_over_places() -> None:
    maps = torch.arange(24.0).view(1, 6, 2, 2)
    assert_close(pooled(maps)[0], maps[0].flatten(1).mean(1))
    assert_close(pooled(maps.flatten(2).transpose(1, 2))[0], maps[0].flatten(1).mean(1))


def test_the_objective_weighs_the_divergence_by_attacked_features_of_the_last_stage() -> None:
    network, (batch, key) = curved(), some_batch()
    pgd = PGD(Linf(0.1), 2, 0.05)
    objective = Mart(pgd, 5.0, Information(4))
    loss = objective(network, batch, key, State())
    points = pgd(network, batch.images, batch.targets, key.of("attack"))
    logits, seen = network(points, taps=("2",))
    weights = torch.cat([4 * information(t).softmax(0) for t in seen["2"].split(4)]).detach()
    wanted = boosted(logits, batch.targets) + 5 * weights * kl(logits, network(batch.images))
    assert_close(loss.total, wanted.mean())
    assert_close(loss.metrics["weight/mean"].item(), 1.0)
    assert loss.metrics["weight/square"] > 1.001
    assert (objective.groups(), objective.cost()) == (4, 2 * 2 + 6)


def test_shuffled_information_is_the_same_weights_elsewhere() -> None:
    network, (batch, key) = curved(), some_batch()
    pgd = PGD(Linf(0.1), 2, 0.05)
    own, dealt = (
        Mart(pgd, 5.0, weighting)(network, batch, key, State())
        for weighting in (Information(4), Shuffled(Information(4), 8))
    )
    assert_close(dealt.metrics["weight/square"], own.metrics["weight/square"])
    assert abs(dealt.total - own.total) > 1e-6


def test_what_cannot_be_is_refused() -> None:
    for make, words in (
        (lambda: Information(1), "group=1"),
        (lambda: Information(4, tau=0.0), "tau=0"),
        (lambda: Information(4, variance=0.0), "variance=0"),
        (lambda: Information(4, most=0.5), "most=0.5"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    with pytest.raises(ConfigError, match="names no stages"):
        Information(4).layers(identity(3))


def test_the_preset_is_mart_s_with_weights_by_information() -> None:
    run = Run.load(ROOT / "configs" / "cifar" / "rn18-infoat.yaml")
    assert run.objective.weighting == Information(128)
    assert (run.objective.beta, run.objective.attack.threat.eps, run.objective.cost()) == (5.0, 8 / 255, 26)
    control = Run.load(ROOT / "configs" / "cifar" / "rn18-infoat-shuffled.yaml")
    assert control.objective.weighting == Shuffled(Information(128), 128)
