"""The optimiser: which weights decay, at which rate, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robust_train.engines.optim import build, set_rate
from robust_train.models.blueprint import Blueprint
from robust_train.models.network import Network
from robust_train.models.timm import Timm
from robust_train.read.errors import ConfigError
from robust_train.settings.optimiser import Optimiser
from tests.toys import ToyNetwork


def decay(optimiser: Optimiser, network: nn.Module) -> dict[str, float]:
    """{parameter: its weight decay}."""
    names = {parameter: name.removeprefix("model.") for name, parameter in network.named_parameters()}
    groups = build(optimiser, network).param_groups
    return {names[parameter]: group["weight_decay"] for group in groups for parameter in group["params"]}


@pytest.fixture(scope="module")
def toy() -> Network:
    return Blueprint(ToyNetwork(), group=4).build(5, (1, 8, 8), "fp32", 16)


def test_weights_decay_and_biases_and_norms_do_not(toy: Network) -> None:
    found = decay(Optimiser(weight_decay=0.1), toy)
    assert set(found) == {name for name, _ in toy.model.named_parameters()}
    assert {name for name, value in found.items() if value == 0.1} == {
        "layers.0.conv.weight",
        "layers.1.conv.weight",
        "layers.2.0.weight",
        "head.head.weight",
    }
    assert {value for name, value in found.items() if ".norm." in name or name.endswith("bias")} == {0.0}


def test_everything_decays_where_the_paper_does_so(toy: Network) -> None:
    assert set(decay(Optimiser(weight_decay=0.1, decay_all=True), toy).values()) == {0.1}


def test_a_transformers_tokens_and_positions_do_not_decay() -> None:
    """They are named by timm's own `no_weight_decay`, though they have more than one dimension."""
    vit = Blueprint(Timm("test_vit")).build(5, (3, 160, 160), "fp32", 16)
    found = decay(Optimiser(name="adamw", weight_decay=0.1), vit)
    assert found["cls_token"] == found["pos_embed"] == 0.0
    assert found["blocks.0.attn.qkv.weight"] == 0.1
    assert found["blocks.0.attn.qkv.bias"] == 0.0


def test_sgd_decays_in_the_gradient_and_adamw_beside_it() -> None:
    """One step from w = 1 with gradient 1: SGD moves by lr (1 + wd); AdamW by lr + lr wd."""
    for name, expected in (("momentum", 1 - 0.5 * 1.1), ("adamw", (1 - 0.5 * 0.1) - 0.5)):
        layer = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            layer.weight.fill_(1)
        optimiser = build(Optimiser(name=name, weight_decay=0.1, decay_all=True), layer)
        set_rate(optimiser, 0.5)
        layer.weight.grad = torch.ones(1, 1)
        optimiser.step()
        assert float(layer.weight.detach()) == pytest.approx(expected, rel=1e-6), name


def test_the_rate_is_the_runs_times_the_groups_own_scale(toy: Network) -> None:
    optimiser = build(Optimiser(weight_decay=0.1), toy)
    optimiser.param_groups[0]["lr_scale"] = 0.1
    set_rate(optimiser, 0.5)
    first, *others = [group["lr"] for group in optimiser.param_groups]
    assert first == pytest.approx(0.05)
    assert set(others) == {0.5}


def test_an_unknown_optimiser_is_told_the_nearest(toy: Network) -> None:
    with pytest.raises(ConfigError, match=r"run\.optimiser: timm cannot make 'adamv'.*did you mean adam"):
        build(Optimiser(name="adamv"), toy)


def test_an_unknown_option_is_told(toy: Network) -> None:
    with pytest.raises(ConfigError, match="momentun"):
        build(Optimiser(options={"momentun": 0.5}), toy)


def test_a_negative_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="clip=-1"):
        Optimiser(clip=-1)
