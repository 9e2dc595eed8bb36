"""Networks that answer by chance, judged by means: linear ones whose worst share has a closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robust_train.attacks.apgd import APGD
from robust_train.attacks.autoattack import AutoAttack
from robust_train.attacks.carlini import CarliniWagner, ElasticNet
from robust_train.attacks.chance import PASSES, Chancy, passes
from robust_train.attacks.combine import Restarts, WorstOf
from robust_train.attacks.cr import CR
from robust_train.attacks.deepfool import DeepFool
from robust_train.attacks.fab import FAB
from robust_train.attacks.hopskipjump import HopSkipJump
from robust_train.attacks.jsma import JSMA
from robust_train.attacks.lbfgs import LBFGS
from robust_train.attacks.pgd import PGD
from robust_train.attacks.queries import SPSA
from robust_train.attacks.square import Square
from robust_train.attacks.standing import Standing
from robust_train.evaluate.trial import CLEAN, Column, Trial, tried, worst
from robust_train.keyed import Key
from robust_train.keyed.noise import KeyedNoise
from robust_train.models.network import Network
from robust_train.nouns import Attack, Batch
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.threats.pixels import L0

COUNT, EPS, SIGMA = 2000, 0.05, 0.1
W = torch.tensor([3.0, -4.0], dtype=torch.float64)


def phi(z: float) -> float:
    return 0.5 * math.erfc(-z / 2**0.5)


def clean_share(m: float) -> float:
    return phi(m / 0.5)


def worst_share(m: float, norm: float = 7.0) -> float:
    """p* = Phi((m - eps ||w||_dual) / (sigma ||w||_2)): 7 for linf, 5 for l2."""
    return phi((m - EPS * norm) / 0.5)


class Linear(nn.Module):
    """Logits (s, 0, -10, -10), s = w (x + sigma xi) + b, with xi ~ N(0, I) by the key."""

    def __init__(self, m: float) -> None:
        super().__init__()
        self.source = KeyedNoise()
        self.b = m + 0.5

    def drawn(self, flat: Tensor) -> Tensor | None:
        return self.source(flat)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        drawn = self.drawn(flat)
        flat = flat if drawn is None else flat + SIGMA * drawn
        s = flat @ W + self.b
        return torch.stack([s, torch.zeros_like(s), torch.full_like(s, -10), torch.full_like(s, -10)], 1)


class Foreign(Linear):
    """Its noise is torch's own, which nothing declares."""

    def drawn(self, flat: Tensor) -> Tensor:
        return torch.randn_like(flat)


def network_of(m: float) -> Network:
    return Network(Linear(m), 4).double().eval()


def batch_of(count: int = COUNT, first: int = 0) -> Batch:
    rows = torch.arange(first, first + count)
    return Batch(torch.full((count, 1, 1, 2), 0.5, dtype=torch.float64), torch.zeros(count).long(), rows, rows)


def figures(network, attacks: tuple[Attack, ...], batch: Batch | None = None, draws: int = PASSES) -> list[Column]:
    """The columns of the clean trial and of a cascade of attacks."""
    batch = batch_of() if batch is None else batch
    clean, _ = tried(network, batch, Trial(CLEAN, None, (), role="clean"), [], Key(3), draws)
    columns = [clean]
    for number, attack in enumerate(attacks):
        columns.append(tried(network, batch, Trial(f"{number}", attack, (CLEAN,)), columns, Key(3), draws)[0])
    return columns


def within(share: float, count: int) -> float:
    return 4 * (share * (1 - share) / count) ** 0.5


def cascade(threat) -> tuple[Attack, ...]:
    return APGD(threat, 4, eot=20), APGD(threat, 4, "dlr", eot=20)


@pytest.mark.slow
@pytest.mark.parametrize(("threat", "norm"), [(Linf(EPS), 7.0), (L2(EPS), 5.0)], ids=["linf", "l2"])
@pytest.mark.parametrize("m", [0.5, 0.0, -0.2])
def test_the_figure_of_a_cascade_is_the_closed_form(threat, norm: float, m: float) -> None:
    """Every draw's gradient leads to the worst corner: what is above p* was lost to setting aside, below it to luck."""
    clean, *_, last = figures(network_of(m), cascade(threat))
    assert abs(float(clean.right.mean()) - clean_share(m)) <= within(clean_share(m), COUNT * PASSES)
    assert abs(float(last.right.mean()) - worst_share(m, norm)) <= within(worst_share(m, norm), COUNT * PASSES)


@pytest.mark.parametrize("m", [0.5, -0.2])
def test_a_few_images_too(m: float) -> None:
    *_, last = figures(network_of(m), (APGD(Linf(EPS), 2, eot=10),), batch_of(100))
    assert abs(float(last.right.mean()) - worst_share(m)) <= within(worst_share(m), 100 * PASSES)


def test_a_network_that_was_found_random_is_judged_so_too() -> None:
    torch.manual_seed(0)
    *_, last = figures(Foreign(-0.2), (APGD(Linf(EPS), 2, eot=10),), batch_of(200))
    assert abs(float(last.right.mean()) - worst_share(-0.2)) <= within(worst_share(-0.2), 200 * PASSES)


def share_at(network: Network, points: Tensor) -> float:
    """The true share right at the points, in the mean."""
    m = points.flatten(1) @ W + network.model.b
    return float(torch.tensor([phi(float(one) / 0.5) for one in m]).mean())


@pytest.mark.parametrize(
    "attack",
    [
        AutoAttack(Linf(EPS), "custom", (APGD(Linf(EPS), 2, eot=5), APGD(Linf(EPS), 2, "dlr", eot=5))),
        AutoAttack(Linf(EPS), "custom", (PGD(Linf(EPS), 2, 0.1), PGD(Linf(EPS), 2, 0.1))),
        Restarts(PGD(Linf(EPS), 2, 0.1), 2, draws=20),
    ],
    ids=["apgd", "pgd", "restarts"],
)
def test_no_image_is_left_where_it_was_by_an_unlucky_draw(attack: Attack) -> None:
    """Two thirds are wrong in any one clean draw; behind it each would keep its clean point, p0 = .34."""
    network, batch = network_of(-0.2), batch_of(100)
    points = attack(network, batch.images, batch.targets, Key(1).rows(batch.sample))
    assert abs(share_at(network, points) - worst_share(-0.2)) < 0.005


def test_an_image_falls_where_no_pass_is_right_and_stands_where_one_is() -> None:
    for m, falls in ((-3.0, True), (-1.0, False), (3.0, False)):  # shares 1e-9, .023, 1 - 1e-9
        batch = batch_of(20)
        standing = Standing(network_of(m), batch.images, batch.targets, Key(1).rows(batch.sample))
        assert standing.fallen.float().mean() == (1.0 if falls else standing.fallen.float().mean())
        assert standing.fallen.float().mean() < (1.1 if falls else 0.4)


def test_the_worst_is_told_by_other_passes_than_the_figure_s() -> None:
    """The least of four means of R = 100 draws at p = 1/2 is .4486; the figure of the one told by others is .5."""
    generator = torch.Generator().manual_seed(0)

    def means() -> Tensor:
        return torch.rand(4000, 100, generator=generator).lt(0.5).double().mean(1)

    nothing = torch.zeros(4000)
    columns = [Column(means(), nothing, nothing, nothing, told=means()) for _ in range(4)]
    assert abs(float(torch.stack([column.right for column in columns]).amin(0).mean()) - 0.448601) < 0.002
    right, told = worst(columns)
    assert abs(float(right.mean()) - 0.5) < 4 * 0.05 / 4000**0.5
    assert abs(float(told.mean()) - 0.448601) < 0.002


def test_chunks_change_nothing() -> None:
    network, attacks = network_of(0.0), (APGD(Linf(EPS), 2, eot=2),)
    whole = figures(network, attacks, batch_of(30), draws=20)
    parts = [figures(network, attacks, batch_of(10, first), draws=20) for first in (0, 10, 20)]
    for number, column in enumerate(whole):
        assert torch.equal(column.right, torch.cat([part[number].right for part in parts]))


def test_who_answers_by_chance_is_asked_of_the_network() -> None:
    network = network_of(0.0)
    assert passes(network) == PASSES
    for mode in ("off", "fixed"):
        with network.noise(mode=mode):
            assert passes(network) == 1
    assert passes(Foreign(0.0)) == 1
    assert passes(Chancy(Foreign(0.0))) == PASSES
    assert passes(nn.Linear(2, 2)) == 1


def test_without_noise_a_verdict_is_one_pass_and_the_same_to_the_bit() -> None:
    """sigma = 0: as many forwards as a network that never had noise, and its points."""
    counted: list[int] = []

    class Counting(Linear):
        def forward(self, images: Tensor) -> Tensor:
            counted.append(len(images))
            return super().forward(images)

    found = []
    for build in (Linear, Counting):
        network, batch = Network(build(0.3), 4).double().eval(), batch_of(12)
        with network.noise(mode="off"):
            found.append(APGD(Linf(0.04), 5)(network, batch.images, batch.targets, Key(1).rows(batch.sample)))
    assert torch.equal(*found)
    assert len(counted) == 1 + 6 + 1  # the clean images, the start and five steps, the judgement


@pytest.mark.parametrize(
    "attack",
    [
        WorstOf((PGD(Linf(EPS), 2, 0.1), PGD(Linf(EPS), 0, 0.0)), draws=20),
        Square(Linf(EPS), 40, edges=True, draws=20),
        SPSA(Linf(EPS), 6, 0.05, samples=16, sigma=0.05, draws=20),
    ],
    ids=["worst-of", "square", "spsa"],
)
def test_searches_and_choices_go_by_means_of_draws(attack: Attack) -> None:
    """Where one draw decides, a lucky one keeps a point that is no worse: p stays above the worst corner's."""
    network, batch = network_of(0.2), batch_of(60)
    points = attack(network, batch.images, batch.targets, Key(1).rows(batch.sample))
    assert abs(share_at(network, points) - worst_share(0.2)) < 0.02


def test_a_trial_s_cost_counts_the_passes_of_its_verdicts() -> None:
    assert Trial(CLEAN, None).cost(50) == 100
    attack = APGD(Linf(EPS), 2)
    assert Trial("a", attack).cost() == attack.cost() + 1
    assert Trial("a", attack).cost(50) == attack.cost() + 300 + 100
    assert Trial("a", PGD(Linf(EPS), 2, 0.1)).cost(50) == 4 + 100


def test_deepfool_by_means_of_draws_leaves_no_image_to_one_unlucky_draw() -> None:
    """p0 = .618 at m = .15: one clean draw takes 38 % for wrong and leaves them where they are, a mean of 100 none."""
    network, batch = network_of(0.15), batch_of(100)
    stayed = {}
    for draws in (1, 100):
        attack = DeepFool(L2(EPS), steps=3, candidates=2, overshoot=1.0, draws=draws)
        points = attack(network, batch.images, batch.targets, Key(1).rows(batch.sample))
        stayed[draws] = float((points == batch.images).flatten(1).all(1).float().mean())
    assert stayed[1] > 0.25
    assert stayed[100] < 0.2


@pytest.mark.parametrize(
    "attack",
    [
        CR(Linf(EPS), classes=1, rounds=1, steps=6, period=3),
        FAB(Linf(EPS), 3, targets=1),
        FAB(L2(EPS), 3),
        DeepFool(L2(EPS), 2),
        CarliniWagner(L2(EPS), 12, searches=2, first=1.0),
        ElasticNet(L1(0.1), 4, searches=2, first=1.0),
        LBFGS(L2(EPS), 3, bisections=0, targets=1),
        JSMA(L0(1), 2, together=1),
        HopSkipJump(L2(EPS), 1, first=6),
    ],
    ids=lambda attack: attack.label,
)
def test_every_look_of_a_search_is_a_mean_of_so_many_draws(attack: Attack) -> None:
    """Without noise they are the same point; each look costs three forwards for one, each verdict one as before."""
    network, batch, counted = network_of(0.2), batch_of(3), {}
    handle = network.model.register_forward_hook(lambda *_: seen.append(1))
    found = []
    with network.noise(mode="off"):
        for draws in (1, 3):
            seen: list[int] = []
            tried = replace(attack, draws=draws)
            found.append(tried(network, batch.images, batch.targets, Key(1).rows(batch.sample)))
            counted[draws] = len(seen)
            assert tried.cost() > attack.cost() or draws == 1
    handle.remove()
    assert torch.allclose(*found, atol=1e-9)
    # no feature helps one class and harms the others here, so jsma looks and stays
    assert torch.equal(found[0], batch.images) is isinstance(attack, JSMA)
    verdicts = (3 * counted[1] - counted[3]) / 2  # of n looks and v verdicts there are n + v, and 3 n + v
    assert verdicts in (0, 1, 2, 3, 4, 5)
    assert counted[3] >= 2 * counted[1]
    with pytest.raises(ValueError, match="draws=0"):
        replace(attack, draws=0)
