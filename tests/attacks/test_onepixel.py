"""Su et al. 2019: what the one-pixel attack must do (arXiv 1710.08864)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robust_train.attacks.onepixel import OnePixel, bred, painted, trios
from robust_train.keyed import Key
from robust_train.threats.pixels import L0
from tests.attacks.many_classes import ManyClasses, images_of

KEY = Key(3).rows(torch.arange(60))


def test_a_candidate_paints_its_pixels_and_the_later_of_two_at_one_place_is_seen():
    images = torch.full((1, 3, 4, 5), 0.5)
    candidate = torch.tensor([[[0.99, 0.0, 0.1, 0.2, 0.3], [0.3, 0.5, 1.0, 0.0, 1.0], [0.3, 0.5, 0.7, 0.8, 0.9]]])
    expected = images.clone()
    expected[0, :, 3, 0] = torch.tensor([0.1, 0.2, 0.3])
    expected[0, :, 1, 2] = torch.tensor([0.7, 0.8, 0.9])
    assert torch.equal(painted(images, candidate), expected)
    assert painted(images, torch.ones(1, 1, 5))[0, :, 3, 4].tolist() == [1, 1, 1]  # the face of the box is inside


def test_parents_are_three_different_members_all_alike():
    """Of 5 members there are 60 ordered trios."""
    parents = torch.stack(trios(Key(1).rows(torch.arange(6000)), 6000, 5, torch.device("cpu")), 2).flatten(0, 1)
    assert parents.min() == 0
    assert parents.max() == 4
    assert all(len(set(trio)) == 3 for trio in parents[:1000].tolist())
    counts = (parents @ torch.tensor([25, 5, 1])).unique(return_counts=True)[1]
    assert len(counts) == 60
    assert (counts - 500).abs().max() < 110  # 500 of 30,000 each, five standard deviations


def test_children_are_a_parent_and_half_the_difference_of_two_or_drawn_anew():
    candidates = torch.rand(8, 6, 2, 5).double()
    born = bred(candidates, KEY[:8])
    one, two, three = trios(KEY[:8].of("parents"), 8, 6, candidates.device)
    for image in range(8):
        for member in range(6):
            a, b, c = (candidates[image, parents[image, member]] for parents in (one, two, three))
            child = a + 0.5 * (b - c)
            inside = (child >= 0) & (child <= 1)
            assert_close(born[image, member][inside], child[inside])
            assert not (born[image, member] == child)[~inside].any()
    assert born.min() >= 0
    assert born.max() <= 1


def test_on_a_linear_network_it_finds_the_worst_pixel():
    """One pixel alters the margin of two classes by at most max over places of the sum of its channels' best."""
    network, (images, _) = ManyClasses(classes=2), images_of(16)
    labels = network(images).argmax(1)
    w = (network.weight[1] - network.weight[0]).detach().view(3, 6, 6) * (1 - 2 * labels).view(-1, 1, 1, 1)
    gain = (torch.where(w > 0, 1 - images, -images) * w).sum(1).flatten(1).amax(1)
    logits = network(images).detach()
    margins = (logits[:, 0] - logits[:, 1]).abs()
    standing = OnePixel(L0(1), 30, 30).search(network, images, labels, KEY[:16])
    assert not standing.fallen[margins > gain].any()
    assert standing.fallen[margins < 0.7 * gain].all()
    assert (margins < 0.7 * gain).any()
    stands = ~standing.fallen
    assert (margins - standing.margin >= 0.7 * gain)[stands].all()
    assert (margins - standing.margin <= gain + 1e-4)[stands].all()
    assert (L0(1).distance(images, standing.found) <= 1).all()


def test_more_pixels_fool_more_and_never_change_more_than_eps():
    network, (images, _) = ManyClasses(), images_of(30)
    labels = network(images).argmax(1)
    fell = []
    for eps in (0, 1, 5):
        standing = OnePixel(L0(eps), 3, 0).search(network, images, labels, KEY[:30])
        assert (L0(eps).distance(images, standing.found) <= eps).all()
        assert standing.found.min() >= 0
        assert standing.found.max() <= 1
        fell.append(int(standing.fallen.sum()))
    assert fell[0] == 0 < fell[1] < fell[2]


def test_neither_chunk_nor_the_global_generator_decides_anything():
    network, (images, labels) = ManyClasses().double(), images_of(24)
    images, attack = images.double(), OnePixel(L0(2), 6, 4)
    whole = attack(network, images, labels, KEY[:24])
    torch.manual_seed(9)
    halved = [attack(network, images[rows], labels[rows], KEY[rows]) for rows in (slice(0, 7), slice(7, 24))]
    assert_close(torch.cat(halved), whole, rtol=0, atol=1e-12)
    assert not torch.equal(attack(network, images, labels, Key(4).rows(KEY.row[:24])), whole)


def test_what_stands_costs_what_the_attack_says():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    seen: list[int] = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    with torch.no_grad():
        network[1].bias[0] = 100.0
    images, attack = torch.rand(4, 1, 8, 8), OnePixel(L0(1), 5, 4)
    standing = attack.search(network, images, torch.zeros(4).long(), KEY[:4])
    assert not standing.fallen.any()
    assert standing.steps.tolist() == [25] * 4
    assert sum(seen) == 4 * (attack.cost() - 1)  # nothing claimed to fool, so one judgement is spared


def test_senseless_numbers_are_refused():
    with pytest.raises(ValueError, match="population=2 must be at least 3"):
        OnePixel(L0(1), 2)
    with pytest.raises(ValueError, match="generations=-1"):
        OnePixel(L0(1), 5, -1)
