"""Wu et al. 2020: one ascent step of the weights. [docs/methods/trades-mart-awp.md]"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from robust_train.keyed import Key
from robust_train.models.checkpointing import checkpoint_blocks
from robust_train.models.network import Network
from robust_train.read.errors import ConfigError
from robust_train.threats.weights import Weights


class Blocks(nn.Module):
    """A network with repeated blocks, BatchNorm, dropout and one weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2))
            for _ in range(2)
        )
        self.blocks[1][0].weight = self.blocks[0][0].weight
        self.head = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(images)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.mean((2, 3)))


def network_and_images(checkpointed: bool = False) -> tuple[Network, torch.Tensor, torch.Tensor, Key]:
    torch.manual_seed(0)
    network = Network(Blocks(), 3, group=4).double()
    if checkpointed:
        checkpoint_blocks(network.model, network.held)
    return network, torch.rand(8, 1, 4, 4).double(), torch.arange(8) % 3, Key(0).rows(torch.arange(8))


def test_the_step_has_the_length_of_a_share_of_the_weights():
    """w = (3, 4), direction (0, 2), gamma 0.01: v = (0, 0.05); no gradient, no step; its scale does not count."""
    weights, w = Weights(0.01), torch.tensor([[3.0, 4.0]])
    assert_close(weights.step(w, torch.tensor([[0.0, 2.0]])), torch.tensor([[0.0, 0.05]]))
    assert_close(weights.step(w, torch.tensor([[0.0, 2e-9]])), torch.tensor([[0.0, 0.05]]))
    assert_close(weights.step(2 * w, torch.tensor([[0.0, 2.0]])), torch.tensor([[0.0, 0.1]]))
    assert_close(weights.step(w, torch.zeros(1, 2)), torch.zeros(1, 2))


def test_on_a_linear_network_the_perturbed_logits_are_those_of_the_formula():
    torch.manual_seed(1)
    linear = nn.Linear(5, 3).double()
    network = Network(nn.Sequential(nn.Flatten(), linear), 3)
    images, targets = torch.rand(6, 1, 1, 5).double(), torch.arange(6) % 3
    logits = Weights(0.1, group=3)(network, images, targets, Key(0))
    for rows in (slice(0, 3), slice(3, 6)):  # each group by itself
        x = images[rows].flatten(1)
        wrong = linear(x).softmax(1) - F.one_hot(targets[rows], 3)
        gradient = wrong.T @ x
        w = linear.weight + 0.1 * linear.weight.norm() / gradient.norm() * gradient
        assert_close(logits[rows], x @ w.T + linear.bias)


def test_the_gradient_flows_into_the_weights_and_not_into_their_perturbation():
    """At gamma 0 it is the plain gradient; at gamma > 0 that of an unconstrained copy set to w + v."""
    network, images, targets, key = network_and_images()
    weights = Weights(0.05, group=8)
    F.cross_entropy(weights(network, images, targets, key), targets).backward()
    found = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    with network.drops(key):
        v = weights.direction(network, images, targets)
        with torch.no_grad():
            for name, move in v.items():
                network.get_parameter(name).add_(move)
        network.zero_grad()
        F.cross_entropy(network(images), targets).backward()
    assert set(v) == {"model.stem.weight", "model.blocks.0.0.weight", "model.head.weight"}  # not biases, not norms
    for name, parameter in network.named_parameters():
        assert_close(found[name], parameter.grad)


def test_recomputed_activations_are_those_of_the_perturbed_network():
    """Checkpointed blocks run again in the backward, after the perturbed forward has ended."""
    gradients = []
    for checkpointed in (False, True):
        network, images, targets, key = network_and_images(checkpointed)
        F.cross_entropy(Weights(0.3, group=4)(network, images, targets, key), targets).backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient)


def test_a_group_never_sees_another_so_halves_of_a_batch_are_the_batch():
    network, images, targets, key = network_and_images()
    weights = Weights(0.1, group=4)
    whole = weights(network, images, targets, key)
    halves = [weights(network, images[rows], targets[rows], key[rows]) for rows in (slice(0, 4), slice(4, 8))]
    assert torch.equal(whole, torch.cat(halves))


def test_the_direction_leaves_no_trace_and_the_forward_records_once():
    network, images, targets, key = network_and_images()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with network.drops(key):
        Weights(0.1).direction(network, images, targets)
    assert network.recorded().count_nonzero() == 0
    Weights(0.1, group=4)(network, images, targets, key)
    assert network.recorded()[-1] == 2  # groups, of the last norm
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_sharded_weights_are_refused_with_the_remedy():
    network, images, targets, key = network_and_images()
    network.get_parameter("model.head.weight").ds_id = 0  # what ZeRO-3 marks its parameters with
    with pytest.raises(ConfigError, match=r"engine\.zero=2"):
        Weights(0.1)(network, images, targets, key)


@pytest.mark.parametrize(
    ("fields", "words"), [({"gamma": -0.1}, "gamma=-0.1"), ({"gamma": 0.1, "group": 0}, "group=0")]
)
def test_weights_that_cannot_be_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Weights(**fields)
