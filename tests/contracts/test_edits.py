"""What every edit promises: changed in place, other layers as they were, the same each time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from robust_train.engines.optim import build
from robust_train.models.activations import Activations
from robust_train.models.blueprint import Blueprint
from robust_train.models.convstem import ConvStem
from robust_train.models.front import ConvFront
from robust_train.models.network import Network
from robust_train.models.small_cnn import SmallResNet
from robust_train.models.timm import Timm
from robust_train.models.v1 import V1
from robust_train.nouns import Edit, Model, Shape
from robust_train.read.errors import ConfigError
from robust_train.read.parse import parse, tree_of
from robust_train.read.registry import edits
from robust_train.settings.optimiser import Optimiser
from tests.registered import examples

SIZE = 32
CELLS = V1(visual_degrees=1.0, ksize=5, stride=2, simple=4, complex=4)
MODELS: tuple[Model, ...] = (SmallResNet(), Timm("test_vit", patch_size=8), Timm("test_resnet"))
EXAMPLES = examples(edits)
every = pytest.mark.parametrize("name", EXAMPLES)


@cache
def taking(name: str) -> Model:
    """The first of the models that an example can be made in."""
    for model in MODELS:
        try:
            Blueprint(model, (EXAMPLES[name],), group=2).build(7, (3, SIZE, SIZE), "fp32", 4)
        except ConfigError:
            continue
        return model
    raise AssertionError(f"no model of MODELS takes {EXAMPLES[name]}: add one")


def case(name: str) -> tuple[Edit, Model]:
    return EXAMPLES[name], taking(name)


def built(name: str) -> Network:
    edit, model = case(name)
    torch.manual_seed(0)
    return Blueprint(model, (edit,), group=2).build(7, (3, SIZE, SIZE), "fp32", 4)


@every
def test_an_edited_network_has_logits_and_trains_all_its_weights(name: str) -> None:
    network = built(name)
    logits = network(torch.rand(4, 3, SIZE, SIZE))
    assert logits.shape == (4, 7)
    logits.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@every
def test_an_edit_is_made_again_from_what_is_written_of_it_and_holds_the_same_tensors(name: str) -> None:
    edit, model = case(name)
    again = parse(Edit, tree_of(edit))
    assert again == edit
    torch.manual_seed(1)
    other = Blueprint(model, (again,), group=2).build(7, (3, SIZE, SIZE), "fp32", 4)
    first = built(name)
    other.load_state_dict(first.state_dict())
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad(), first.eval().noise(mode="off"), other.eval().noise(mode="off"):
        assert torch.equal(first(images), other(images))


@every
def test_the_stages_of_an_edited_model_are_those_of_the_model(name: str) -> None:
    network, model = built(name), case(name)[1]
    plain = model.build(7, (3, SIZE, SIZE))
    assert set(network.stages) <= set(model.stages(plain))
    _, seen = network(torch.rand(4, 3, SIZE, SIZE), taps=network.stages)
    assert list(seen) == [name for name in model.stages(plain) if name in network.stages]


# -- edits of each kind that a method may need, each a few lines -------------------------------------


class Squeezed(nn.Module):
    """Pixels in so many levels; gradients pass as if nothing were."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, images: Tensor) -> Tensor:
        rounded = (images * self.levels).round() / self.levels
        return images + (rounded - images).detach()


@dataclass(frozen=True)
class Squeeze(Edit):
    """Before the whole model: a hook, so that no layer's name changes."""

    levels: int

    @property
    def mean(self) -> tuple[float, ...]:
        return (0.0,)

    @property
    def std(self) -> tuple[float, ...]:
        return (1.0,)

    def __call__(self, model: nn.Module, shape: Shape, classes: int) -> None:
        model.squeezed = Squeezed(self.levels)
        model.register_forward_pre_hook(lambda module, inputs: (module.squeezed(inputs[0]),))


@dataclass(frozen=True)
class After(Edit):
    """Behind each stage, inside its name: what a filter of hidden layers does."""

    layer: str

    def __call__(self, model: nn.Module, shape: Shape, classes: int) -> None:
        model.set_submodule(self.layer, nn.Sequential(model.get_submodule(self.layer), nn.Tanh()))


@dataclass(frozen=True)
class Refusing(Edit):
    """Fits nothing."""

    def __call__(self, model: nn.Module, shape: Shape, classes: int) -> None:
        raise ConfigError("there is nothing to change. Leave it out.")


def test_what_stands_before_a_model_changes_no_name_and_says_what_pixels_it_wants() -> None:
    plain = Blueprint(Timm("test_resnet")).build(7, (3, SIZE, SIZE), "fp32", 4)
    network = Blueprint(Timm("test_resnet"), (Squeeze(4),)).build(7, (3, SIZE, SIZE), "fp32", 4)
    assert list(network.model.state_dict()) == list(plain.model.state_dict())
    assert (network.mean.tolist(), network.std.tolist()) == ([[[0.0]]], [[[1.0]]])
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(network.eval()(images), network((images * 4).round() / 4))
        assert not torch.equal(network(images), network(images.round()))


def test_a_stage_that_is_wrapped_keeps_its_name_and_shows_what_the_wrapping_made() -> None:
    network = Blueprint(SmallResNet(), (After("block1"),), group=4).build(7, (3, SIZE, SIZE), "fp32", 4)
    _, seen = network(torch.rand(4, 3, SIZE, SIZE), taps=["block1"])
    assert "block1" in network.stages
    assert seen["block1"].abs().max() <= 1


def test_the_last_edit_with_a_wish_decides_what_is_done_to_pixels() -> None:
    model = SmallResNet()
    for given, mean in (((Squeeze(4), CELLS), 0.5), ((CELLS, Squeeze(4)), 0.0), ((CELLS, After("block1")), 0.5)):
        network = Blueprint(model, given).build(7, (3, SIZE, SIZE), "fp32", 4)
        assert network.mean.tolist() == [[[mean]]]


def test_edits_are_made_in_order_and_one_that_cannot_be_is_named() -> None:
    """A front end's own ReLU is replaced only by what comes after it."""
    front, smooth = ConvFront(), Activations("gelu")
    kinds = []
    for given in ((front, smooth), (smooth, front)):
        network = Blueprint(SmallResNet(), given).build(7, (3, SIZE, SIZE), "fp32", 4)
        kinds.append(type(network.model.stem.act))
    assert kinds == [nn.GELU, nn.ReLU]
    Refusing.use = "refusing"
    with pytest.raises(ConfigError, match=r"^run\.network\.edits\[1\] \(refusing\): there is nothing to change"):
        Blueprint(SmallResNet(), (front, Refusing())).build(7, (3, SIZE, SIZE), "fp32", 4)


def test_what_a_vit_does_not_decay_is_not_decayed_after_an_edit() -> None:
    network = Blueprint(Timm("test_vit", patch_size=8), (ConvStem(),)).build(7, (3, SIZE, SIZE), "fp32", 4)
    groups = build(Optimiser(weight_decay=0.1, decay_all=True), network, 1).param_groups
    spared = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    names = {name for name, p in network.model.named_parameters() if id(p) in spared}
    assert {"pos_embed", "cls_token"} <= names
    assert not any(name.startswith("patch_embed") and name.endswith("0.weight") for name in names)
