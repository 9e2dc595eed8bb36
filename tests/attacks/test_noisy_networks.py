"""Networks with noise of their own: what attacks, objectives and verdicts see of it. [docs/methods/v1-front-end.md]"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.pgd import PGD
from robust_train.evaluate.accuracy import verdicts
from robust_train.evaluate.trial import CLEAN, Trial, tried
from robust_train.keyed import Key
from robust_train.keyed.mode import Draw
from robust_train.losses import cross_entropy
from robust_train.models.network import Network
from robust_train.models.v1 import V1, V1Block
from robust_train.nouns import Batch, Loss
from robust_train.objectives.madry import Madry
from robust_train.objectives.plain import Plain
from robust_train.objectives.trades import Trades
from robust_train.threats.linf import Linf

FRONT = V1(visual_degrees=0.5, ksize=3, stride=2, simple=3, complex=3, sf_max=11.3, noise_factor=2.0)
IMAGES = torch.rand(24, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(24) % 3
KEY = Key(1).rows(torch.arange(24))


def network_of(front: V1 = FRONT) -> Network:
    """One noisy layer and a linear one, in eval mode: nothing else is random."""
    torch.manual_seed(0)
    layers = nn.Sequential(V1Block(front, 1, 8), nn.Flatten(), nn.Linear(96, 3))
    return Network(layers, 3, (0.5,), (0.5,)).double().eval()


def batch_of(rows: Tensor = torch.arange(24)) -> Batch:
    return Batch(IMAGES[rows], TARGETS[rows], rows, rows)


@dataclass(frozen=True)
class Watched(Linf):
    """Keeps the gradients that an attack steps along."""

    seen: list[Tensor] = field(default_factory=list, compare=False)

    def step(self, images, z, gradient, size):
        self.seen.append(gradient)
        return super().step(images, z, gradient, size)


def gradient(network: Network, images: Tensor, key: Key) -> Tensor:
    """Of the loss under the noise of one key."""
    images = images.clone().requires_grad_()
    with network.mode(matched=Draw.of(key)):
        loss = cross_entropy(network(images), TARGETS).sum()
    return torch.autograd.grad(loss, images)[0]


@pytest.mark.parametrize("drops", ["off", "redrawn"])
def test_a_step_goes_along_the_mean_of_as_many_draws_as_eot_says(drops) -> None:
    """Draws k n to k n + k - 1 in step n, each another; never one of another step."""
    network, watched = network_of(), Watched(0.1)
    adversarial = PGD(watched, 2, 0.02, start="zero", eot=3, drops=drops)(network, IMAGES, TARGETS, KEY)
    points = [IMAGES, IMAGES + 0.02 * watched.seen[0].sign()]

    def draw(number: int) -> Key:
        own = KEY.of("drops").at(number).of("noise")
        return own.at(0) if drops == "off" else own

    for step, point in enumerate(points):
        each = [gradient(network, point.clamp(0, 1), draw(3 * step + number)) for number in range(3)]
        assert_close(watched.seen[step], torch.stack(each).mean(0), rtol=1e-9, atol=1e-12)
        assert not any(torch.allclose(each[a], each[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert adversarial.shape == IMAGES.shape


def test_frozen_drops_freeze_the_noise_over_draws_and_steps() -> None:
    network, watched = network_of(), Watched(0.1)
    PGD(watched, 2, 0.0, start="zero", eot=3, drops="frozen")(network, IMAGES, TARGETS, KEY)
    one = gradient(network, IMAGES, KEY.of("drops").of("noise"))
    for seen in watched.seen:
        assert_close(seen, one, rtol=1e-9, atol=1e-12)


def test_an_average_over_draws_is_nearer_to_the_expected_gradient() -> None:
    """The variance falls as one over the draws."""
    spread = {}
    for eot in (1, 16):
        seen: list[Tensor] = []
        for seed in range(24):
            PGD(Watched(0.1, seen=seen), 1, 0.1, "zero", eot=eot)(
                network_of(), IMAGES, TARGETS, Key(seed).rows(KEY.row)
            )
        spread[eot] = float(torch.stack(seen).var(0).mean())
    assert spread[16] / spread[1] == pytest.approx(1 / 16, rel=0.25)


def test_without_noise_eot_changes_nothing() -> None:
    for network in (network_of(), network_of(replace(FRONT, noise=None))):
        with network.noise(mode="off"):
            one, many = (PGD(Linf(0.1), 2, 0.02, eot=eot)(network, IMAGES, TARGETS, KEY) for eot in (1, 4))
        assert_close(one, many, rtol=0, atol=1e-12)


def test_the_two_forwards_of_trades_share_the_noise() -> None:
    """At the image itself the divergence is then 0, however noisy the network is; two draws would have one."""
    network = network_of()
    still = PGD(Linf(0.0), 1, 0.1, start="noise")
    loss = Trades(still, beta=6.0)(network, batch_of(), KEY, {})
    assert float(loss.metrics["loss/kl"].detach()) < 1e-12
    with network.noise(KEY), torch.no_grad():
        one, other = network(IMAGES), network(IMAGES)
    assert float((one - other).abs().max()) > 0.01


ATTACK = PGD(Linf(0.1), 2, 0.05, eot=2)


@pytest.mark.parametrize("objective", [Plain(), Madry(ATTACK), Trades(replace(ATTACK, start="noise"), 6.0)], ids=repr)
def test_the_key_of_the_update_alone_decides_a_loss(objective) -> None:
    """And the rows: halves of a batch are the batch."""
    network = network_of()

    def loss(key: Key, rows: Tensor = torch.arange(24)) -> Tensor:
        made: Loss = objective(network, batch_of(rows), key.rows(rows), {})
        return made.total.detach()

    whole = loss(KEY)
    network(IMAGES)
    torch.manual_seed(5)
    assert loss(KEY) == whole
    assert abs(float(loss(KEY.at(1)) - whole)) > 1e-4
    parts = torch.stack([loss(KEY, rows) for rows in torch.arange(24).split(8)])
    assert_close(parts.mean(), whole, rtol=1e-12, atol=0)


def test_verdicts_depend_on_the_sample_and_the_key_and_on_no_chunk() -> None:
    network = network_of()
    whole = verdicts(network, batch_of(), ATTACK, Key(3))
    for sizes in (8, 5, 1):
        parts = [verdicts(network, batch_of(rows), ATTACK, Key(3)) for rows in torch.arange(24).split(sizes)]
        clean, robust, points = (torch.cat(column) for column in zip(*parts, strict=True))
        assert torch.equal(clean, whole[0])
        assert torch.equal(robust, whole[1])
        assert_close(points, whole[2], rtol=0, atol=1e-12)
    others = [verdicts(network, batch_of(), None, Key(seed))[0] for seed in range(4, 9)]
    assert any(not torch.equal(other, whole[0]) for other in others)


TRIAL = Trial("linf/pgd2", ATTACK, (CLEAN,), "linf")


def judged(network: Network, sizes: int, key: Key = Key(3), draws: int = 5) -> dict[str, Tensor]:
    """The columns of a clean trial and of PGD's, over chunks of so many images."""
    found: dict[str, list[Tensor]] = {}
    for rows in torch.arange(24).split(sizes):
        batch = batch_of(rows)
        clean, _ = tried(network, batch, Trial(CLEAN, None, (), role="clean"), [], key, draws)
        robust, points = tried(network, batch, TRIAL, [clean], key, draws)
        for name, column in (("clean", clean.right), ("robust", robust.right), ("points", points)):
            found.setdefault(name, []).append(column)
    return {name: torch.cat(columns) for name, columns in found.items()}


def test_an_evaluation_gives_the_same_bits_twice_and_in_any_chunks() -> None:
    """Shares of five passes right, so that some stand between 0 and 1."""
    network = network_of()
    whole = judged(network, 24)
    assert ((whole["clean"] > 0) & (whole["clean"] < 1)).any()
    network(IMAGES)
    torch.manual_seed(5)
    again = judged(network, 24)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert not torch.equal(judged(network, 24, Key(4))["clean"], whole["clean"])
    for sizes in (7, 1):
        parts = judged(network, sizes)
        assert torch.equal(parts["clean"], whole["clean"])
        assert torch.equal(parts["robust"], whole["robust"])
        assert_close(parts["points"], whole["points"], rtol=0, atol=1e-12)


def test_noise_that_is_off_or_fixed_leaves_nothing_to_chance_for_the_whole_evaluation() -> None:
    """Off: the same network without noise. Fixed: one draw an image, under any key, in attack and verdict alike."""
    network = network_of()
    with network.noise(mode="off"):
        off = judged(network, 24)
    plain = judged(network_of(replace(FRONT, noise=None)), 24)
    assert all(torch.equal(value, plain[name]) for name, value in off.items())
    with network.noise(mode="fixed"):
        one, other = judged(network, 24, Key(3)), judged(network, 7, Key(4))
    assert set(one["clean"].tolist()) <= {0.0, 1.0}
    assert torch.equal(one["clean"], other["clean"])
    drawn = judged(network, 24)["clean"]
    assert not torch.equal(one["clean"], drawn)
    assert not torch.equal(off["clean"], drawn)
    assert network.now.noisy == "drawn"
