"""Szegedy et al. 2014 (arXiv 1312.6199, section 4.2), in miniature: adversarial examples carry over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robust_train.attacks.lbfgs import LBFGS
from robust_train.evaluate.transferability import (
    AMPLIFIED,
    AMPLIFIED_NOISE,
    FOUND,
    NOISE,
    Matrix,
    Transferability,
    Unbounded,
)
from robust_train.losses import cross_entropy
from robust_train.models.network import Network
from robust_train.threats.l2 import L2
from tests.claims.digits_training import digits
from tests.evaluate.zoo import Labelled

DECAY, COUNT = 1e-4, 40


def fitted(rows: slice, hidden: tuple[int, int], seed: int) -> Network:
    """A fully connected network with two hidden layers, trained on some of the images by Adam, all at once."""
    images, labels, _, _ = digits()
    images, labels = images[rows], labels[rows]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first, second = hidden
        layers = (nn.Linear(64, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 10))
        network = Network(nn.Sequential(nn.Flatten(), *layers), classes=10)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2, weight_decay=DECAY)
    for _ in range(150):
        optimiser.zero_grad()
        cross_entropy(network(images), labels).mean().backward()
        optimiser.step()
    return network.eval()


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    """Two networks trained on one half of the images, one on the other half."""
    networks = {
        "one": fitted(slice(0, 640), (32, 32), 0),
        "other shape": fitted(slice(0, 640), (48, 24), 1),
        "other half": fitted(slice(640, 1280), (32, 32), 2),
    }
    _, _, images, labels = digits()
    attack = Unbounded(LBFGS(L2(8.0), steps=50, bisections=4))
    return Transferability(attack, amplify=0.15)(networks, Labelled(images[:COUNT], labels[:COUNT], 10))


def rates(matrix: Matrix, kind: str) -> Tensor:
    """[3, 3] over the examples whose clean image both networks are right on."""
    return torch.tensor(matrix.rows(kind, lambda cell: cell.transfer))


OFF = ~torch.eye(3, dtype=torch.bool)


@pytest.mark.slow
def test_every_image_has_an_adversarial_example_nearby(matrix):
    assert all(clean.accuracy > 0.9 for clean in matrix.clean)
    assert all(source.right == 0 for source in matrix.source)
    assert rates(matrix, FOUND).diagonal().tolist() == [1, 1, 1]


@pytest.mark.slow
def test_examples_carry_over_to_other_shapes_and_to_networks_trained_on_other_images(matrix):
    """Far more often than noise as large fools; more yet where they are amplified."""
    found, noise = rates(matrix, FOUND)[OFF], rates(matrix, NOISE)[OFF]
    amplified, loud = rates(matrix, AMPLIFIED)[OFF], rates(matrix, AMPLIFIED_NOISE)[OFF]
    assert found.min() > 0
    assert found.mean() > 4 * max(float(noise.mean()), 0.01)
    assert amplified.mean() > 4 * max(float(loud.mean()), 0.01)
    assert amplified.mean() > found.mean()
