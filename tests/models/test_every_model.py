"""What every registered model promises: logits, gradients, stages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robust_train.keyed import Key
from robust_train.models.blueprint import Blueprint
from robust_train.read.errors import ConfigError
from robust_train.read.registry import models
from tests.registered import examples

EXAMPLES = examples(models)
every = pytest.mark.parametrize("use", EXAMPLES)


@every
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 32), (3, 64)])
def test_every_model_makes_logits_of_the_datas_shape_and_trains_all_its_weights(
    use: str, channels: int, size: int
) -> None:
    torch.manual_seed(0)
    model = EXAMPLES[use].build(7, (channels, size, size))
    network = Blueprint(EXAMPLES[use], group=2).build(7, (channels, size, size), "fp32", 4)
    assert isinstance(model, nn.Module)
    assert all(module.training for module in model.modules())
    with network.drops(Key(0).rows(torch.arange(4))):
        logits = network(torch.rand(4, channels, size, size))
    assert logits.shape == (4, 7)
    logits.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@every
def test_the_stages_of_every_model_are_layers_that_give_one_tensor_a_batch(use: str) -> None:
    model = EXAMPLES[use]
    network = Blueprint(model, group=2).build(7, (3, 32, 32), "fp32", 4)
    assert network.stages
    _, seen = network(torch.rand(4, 3, 32, 32), taps=network.stages)
    assert tuple(seen) == network.stages  # in the order of the forward
    assert all(len(hidden) == 4 for hidden in seen.values())


@every
def test_rows_of_every_model_are_alone_in_eval_mode(use: str) -> None:
    network = Blueprint(EXAMPLES[use], group=2).build(7, (3, 32, 32), "fp32", 4).double().eval()
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]), rtol=1e-9, atol=1e-11)


@every
@pytest.mark.parametrize("shape", [(4, 2, 8, 8), (3, 32, 16), (32,)])
def test_a_model_of_square_images_says_so_of_other_samples(use, shape):
    with pytest.raises(ConfigError, match=rf"square images .* samples are {'x'.join(map(str, shape))}"):
        EXAMPLES[use].build(7, shape)
