"""Universal perturbations: one move for many images, as long as the ball allows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.universal import UAP
from robust_train.keyed import Key
from robust_train.models.network import Network
from robust_train.nouns import Batch
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf

KEY = Key(8)


def half_plane(images: Tensor) -> Tensor:
    """Logits (3 x_1 - 4 x_2, 0)."""
    score = images.flatten(1) @ torch.tensor([3.0, -4.0])
    return torch.stack([score, torch.zeros_like(score)], 1)


def clustered() -> tuple[Network, Tensor, Tensor]:
    """A curved network, and images most of which are of one class and not far from the others."""
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 3)
    network = Network(nn.Sequential(*layers), 3).eval()
    images = (0.5 + 0.05 * torch.randn(24, 3, 4, 4)).clamp(0, 1)
    with torch.no_grad():
        network.model[-1].bias += torch.tensor([0.15, 0.0, 0.0]) - network(images).mean(0)
    return network, images, network(images).argmax(1)


def changed(network: Network, images: Tensor, v: Tensor) -> float:
    before, after = network(images).argmax(1), network((images + v).clamp(0, 1)).argmax(1)
    return float((before != after).float().mean())


def test_one_step_of_deepfool_is_the_whole_of_it_where_that_fools_all() -> None:
    """(0.6, 0.4) lies 0.04 from the line 3 x = 4 y along (-0.6, 0.8), and the other point nearer."""
    images = torch.tensor([[0.6, 0.4], [0.58, 0.42]]).view(2, 1, 1, 2)
    far = Key(next(s for s in range(99) if first_is_drawn_first(Key(s))))
    v = UAP(L2(1.0), fooling=1.0).fit(half_plane, batches(images), far)
    assert_close(v.flatten(), 1.02 * torch.tensor([-0.024, 0.032]), rtol=1e-4, atol=1e-6)


def first_is_drawn_first(key: Key) -> bool:
    from robust_train.keyed import uniform

    drawn = uniform(key.rows(torch.arange(2)).of("order").at(0), (2, 1)).flatten()
    return bool(drawn[0] < drawn[1])


def batches(images: Tensor) -> list[Batch]:
    rows = torch.arange(len(images))
    return [Batch(images[part], torch.zeros_like(part), part, part) for part in rows.split(max(1, len(rows) // 2))]


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.6)], ids=["linf", "l2"])
def test_one_perturbation_inside_the_ball_changes_the_class_of_enough_images(ball) -> None:
    network, images, _ = clustered()
    v = UAP(ball, fooling=0.75).fit(network, batches(images), KEY)
    assert changed(network, images, v) >= 0.75
    assert float(ball.distance(torch.zeros(1, 48), v.view(1, 48))) <= ball.eps * (1 + 1e-6)
    noise = ball.eps * ball.unit(torch.randn(1, 3, 4, 4))[0]
    assert changed(network, images, noise) < 0.5


def test_a_step_is_projected_on_the_ball() -> None:
    """Too small a ball fools nobody, and its perturbation lies at the face: eps in the direction of the steps."""
    images = torch.tensor([[0.6, 0.4]]).view(1, 1, 1, 2)
    for ball, v in ((L2(0.01), [-0.006, 0.008]), (Linf(0.01), [-0.01, 0.01])):
        assert_close(UAP(ball, passes=2).fit(half_plane, batches(images), KEY).flatten(), torch.tensor(v))


def test_called_as_an_attack_every_group_gets_a_perturbation_of_its_own() -> None:
    network, images, labels = clustered()
    attack = UAP(Linf(0.1), fooling=0.75, group=8)
    found, moves = attack(network, images, labels, KEY), []
    for rows in torch.arange(24).split(8):
        v = attack.fit(network, [Batch(images[rows], labels[rows], rows, rows)], KEY)
        assert_close(found[rows], (images[rows] + v).clamp(0, 1))
        moves.append(v)
    assert not torch.equal(moves[0], moves[1])


def test_it_needs_no_labels() -> None:
    network, images, labels = clustered()
    attack = UAP(Linf(0.05), passes=2)
    assert torch.equal(attack(network, images, labels, KEY), attack(network, images, (labels + 1) % 3, KEY))


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="projected on linf or l2"):
        UAP(L1(1.0))
    with pytest.raises(ValueError, match="counts linearisations"):
        UAP(Linf(0.1), steps=0)
    with pytest.raises(ValueError, match="uap raises no goal"):
        UAP(Linf(0.1))(half_plane, torch.rand(1, 1, 1, 2), torch.tensor([0]), KEY, lambda z, y: z[:, 0])
