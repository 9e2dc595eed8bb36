"""Smooth activations in place of ReLU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_train.models.activations import Activations, replace_relus
from robust_train.models.blueprint import Blueprint
from robust_train.models.small_cnn import SmallResNet
from robust_train.models.timm import Timm
from robust_train.read.errors import ConfigError

FORMULAS = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "softplus": lambda x: math.log(1 + math.exp(x)),
    "relu": lambda x: max(x, 0.0),
}


@pytest.mark.parametrize("activation", FORMULAS)
def test_each_activation_is_its_formula(activation: str) -> None:
    model = nn.Sequential(nn.ReLU())
    replace_relus(model, activation)  # type: ignore[arg-type]
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    expected = torch.tensor([FORMULAS[activation](value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50", "test_byobnet", "mobilenetv2_050", "regnety_002"])
def test_no_relu_is_left_in_a_timm_model_that_keeps_its_weights_names(name: str) -> None:
    model = Timm(name).build(10, (3, 32, 32))
    names, state = [n for n, m in model.named_modules() if isinstance(m, (nn.ReLU, nn.ReLU6))], list(model.state_dict())
    assert names
    assert replace_relus(model, "silu") == names
    assert not [m for m in model.modules() if isinstance(m, (nn.ReLU, nn.ReLU6))]
    assert list(model.state_dict()) == state


def test_the_activation_of_a_norm_is_replaced_before_the_norm_is_grouped() -> None:
    network = Blueprint(Timm("resnetv2_18"), edits=(Activations("gelu"),)).build(10, (3, 32, 32), "fp32", 4)
    assert not [m for m in network.modules() if isinstance(m, nn.ReLU)]
    assert any(isinstance(norm.act, nn.GELU) for norm in network.batchnorms)


def test_a_smooth_network_has_a_smooth_loss() -> None:
    """The gradient along a line of pixels jumps where a ReLU switches, and nowhere with softplus."""

    def slope(activation: str) -> Tensor:
        torch.manual_seed(0)
        network = (
            Blueprint(SmallResNet(), edits=(Activations(activation),)).build(3, (1, 8, 8), "fp32", 1).double().eval()
        )  # type: ignore[arg-type]
        along = torch.rand(1, 1, 8, 8, dtype=torch.float64)
        steps = torch.linspace(0, 1, 401, dtype=torch.float64).view(-1, 1, 1, 1).requires_grad_()
        return torch.autograd.grad(network(steps * along)[:, 0].sum(), steps)[0].flatten()

    def roughness(gradient: Tensor) -> float:
        """The largest second difference over the largest first one: small where the slope is smooth."""
        return (gradient.diff().diff().abs().max() / gradient.diff().abs().max()).item()

    assert roughness(slope("softplus")) < 0.2 < 0.5 < roughness(slope("relu"))


def test_a_model_without_relu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"edits\[0\] \(activation\): .* has no ReLU for silu to replace"):
        Blueprint(Timm("test_vit", patch_size=8), edits=(Activations("silu"),)).build(10, (3, 32, 32), "fp32", 4)


def test_a_relu_that_is_called_as_a_function_is_refused_not_left() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.act(x) - 1)

    with pytest.raises(ConfigError, match="calls relu as a function"):
        replace_relus(Functional(), "gelu")
