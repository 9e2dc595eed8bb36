"""The optimiser: which weights decay, at which rate, and what it refuses."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robust_train.engines.optim import build, peak, restore, set_rate, state_of
from robust_train.engines.plain import PlainEngine
from robust_train.engines.schedule import Cosine
from robust_train.models.blueprint import Blueprint
from robust_train.models.network import Network
from robust_train.models.timm import Timm
from robust_train.objectives.plain import Plain
from robust_train.read.errors import ConfigError
from robust_train.settings.keep import Keep
from robust_train.settings.optimiser import Optimiser
from robust_train.vision import ensure_torchvision_importable
from tests.toys import ToyNetwork, gone_back, toy_run, trained, weights

ensure_torchvision_importable()
from timm.optim import create_optimizer_v2, list_optimizers  # noqa: E402

# bitsandbytes' and apex's are for CUDA alone; the others draw, and are refused
NAMES = list_optimizers(exclude_filters=["bnb*", "fused*", "adahessian", "kron*"])


def decay(optimiser: Optimiser, network: nn.Module) -> dict[str, float]:
    """{parameter: its weight decay}."""
    names = {parameter: name.removeprefix("model.") for name, parameter in network.named_parameters()}
    groups = build(optimiser, network, 1).param_groups
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
        optimiser = build(Optimiser(name=name, weight_decay=0.1, decay_all=True), layer, 1)
        set_rate(optimiser, 0.5)
        layer.weight.grad = torch.ones(1, 1)
        optimiser.step()
        assert float(layer.weight.detach()) == pytest.approx(expected, rel=1e-6), name


def test_the_rate_is_the_runs_times_the_groups_own_scale(toy: Network) -> None:
    optimiser = build(Optimiser(weight_decay=0.1), toy, 1)
    optimiser.param_groups[0]["lr_scale"] = 0.1
    set_rate(optimiser, 0.5)
    first, *others = [group["lr"] for group in optimiser.param_groups]
    assert first == pytest.approx(0.05)
    assert set(others) == {0.5}


def moved(optimiser: torch.optim.Optimizer, layers: nn.Module, rates: list[float] | None) -> list[torch.Tensor]:
    """The weights after a step for each rate, which is set before it; after three, with rates as they are, of None."""
    images = torch.linspace(-1, 1, 18).double().view(3, 6)
    for step in range(3 if rates is None else len(rates)):
        if rates is not None:
            set_rate(optimiser, rates[step])
        optimiser.zero_grad()
        gradients = torch.autograd.grad(layers(images).square().sum(), list(layers.parameters()))
        for parameter, gradient in zip(layers.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        for parameter in layers.parameters():
            parameter.grad = None
    return [parameter.detach() for parameter in layers.parameters()]


def layers() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_of_timm_steps_as_one_that_was_made_with_the_rate(name: str) -> None:
    """What some remember of it included: corrected decay is the decay times lr^2 over the rate at construction."""
    plain, ours = layers(), layers()
    expected = moved(create_optimizer_v2(plain, name, lr=0.01, weight_decay=0.1, momentum=0.9), plain, None)
    chosen = Optimiser(name=name, lr=0.01, weight_decay=0.1)
    assert_close(moved(build(chosen, ours, 3), ours, [0.01] * 3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", [*NAMES, "lookahead_adamw", "lookahead_lamb"])
def test_every_optimiser_goes_on_to_the_bit(name: str) -> None:
    """State and counters of groups, given back to a new one, and to one that has stepped since."""
    chosen, one = Optimiser(name=name, lr=0.01, weight_decay=0.1), layers()
    first = build(chosen, one, 9)
    moved(first, one, [0.01] * 3)
    weights = {key: value.clone() for key, value in one.state_dict().items()}
    saved = [{k: deepcopy(v) for k, v in state_of(first, parameter).items()} for parameter in one.parameters()]
    expected = [weight.clone() for weight in moved(first, one, [0.01] * 6)]
    other = layers()
    for optimiser, module in ((build(chosen, other, 9), other), (first, one)):
        module.load_state_dict(weights)
        for parameter, state in zip(module.parameters(), saved, strict=True):
            restore(optimiser, parameter, state)
        assert_close(moved(optimiser, module, [0.01] * 6), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["lamb", "adan", "lookahead_adan"])
def test_a_run_with_counters_in_its_groups_goes_on_to_the_bit(tmp_path: Path, name: str) -> None:
    """6 updates equal 3 and 3, and 0 after 3 and 6."""
    chosen = Optimiser(name=name, lr=0.01, weight_decay=0.1)
    whole = PlainEngine(toy_run(Plain(), tmp_path, updates=6, optimiser=chosen, checkpoint=Keep(3)))
    begun = whole.snapshot()
    begun = replace(begun, weights={key: value.clone() for key, value in begun.weights.items()})
    lines, expected = trained(whole), weights(whole)
    again = PlainEngine(toy_run(Plain(), tmp_path / "again", updates=6, optimiser=chosen))
    gone_back(again, tmp_path / "checkpoints" / "00000003")
    assert trained(again) == lines[3:]
    assert all(torch.equal(value, expected[key]) for key, value in weights(again).items())
    again.restore(begun, "the beginning")
    assert trained(again) == lines


@pytest.mark.filterwarnings("ignore:It is highly recommended to have .opt_einsum.")  # Kron, of speed
@pytest.mark.parametrize("name", ["kron", "adahessian"])
def test_an_optimiser_that_draws_is_refused(toy: Network, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"run\.optimiser: '{name}' draws from a generator of its own"):
        build(Optimiser(name=name), toy, 1)


@pytest.mark.filterwarnings("ignore:adamw_lr is deprecated")
@pytest.mark.parametrize(("name", "options"), [("adamc", {}), ("muon", {"adamw_lr": 0.002})])
def test_what_an_optimiser_remembers_is_the_largest_rate_of_the_schedule(name: str, options: dict[str, float]) -> None:
    schedule, plain, ours = Cosine(0.01, warmup=1, start=0.001), layers(), layers()
    rates = [schedule(update, 3) for update in range(3)]
    assert peak(schedule, 3) == max(rates) == 0.01
    made = create_optimizer_v2(plain, name, lr=0.01, weight_decay=0.1, momentum=0.9, **options)
    chosen = Optimiser(name=name, lr=schedule, weight_decay=0.1, options=dict(options))
    assert_close(moved(build(chosen, ours, 3), ours, rates), moved(made, plain, rates), rtol=0, atol=0)


def test_corrected_decay_alone_shrinks_a_weight_by_its_closed_form() -> None:
    """Without a gradient: w (1 - wd lr^2 / peak) at each update."""
    layer = nn.Linear(1, 1, bias=False).double()
    before = float(layer.weight.detach())
    optimiser = build(Optimiser(name="adamc", lr=Cosine(0.02), weight_decay=0.5, decay_all=True), layer, 2)
    layer.weight.grad = torch.zeros(1, 1).double()
    for rate in (0.02, 0.01):
        set_rate(optimiser, rate)
        optimiser.step()
    expected = before * (1 - 0.5 * 0.02) * (1 - 0.5 * 0.01**2 / 0.02)
    assert float(layer.weight.detach()) == pytest.approx(expected, rel=1e-14)


def test_an_unknown_optimiser_is_told_the_nearest(toy: Network) -> None:
    with pytest.raises(ConfigError, match=r"run\.optimiser: timm cannot make 'adamv'.*did you mean adam"):
        build(Optimiser(name="adamv"), toy, 1)


def test_an_unknown_option_is_told(toy: Network) -> None:
    with pytest.raises(ConfigError, match="momentun"):
        build(Optimiser(options={"momentun": 0.5}), toy, 1)


def test_a_negative_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="clip=-1"):
        Optimiser(clip=-1)
