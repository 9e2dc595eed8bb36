"""Only named layers are trained: all else, running statistics too, stays to the bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust_train import checkpoint
from robust_train.attacks.pgd import PGD
from robust_train.engines.engine import Engine
from robust_train.engines.plain import PlainEngine
from robust_train.models.blueprint import Blueprint
from robust_train.models.small_cnn import SmallResNet
from robust_train.models.timm import Timm
from robust_train.models.v1 import V1
from robust_train.nouns import Edit, Place, Shape
from robust_train.objectives.madry import Madry
from robust_train.read.errors import ConfigError
from robust_train.settings.average import Average
from robust_train.settings.execution import Execution
from robust_train.settings.keep import Keep
from robust_train.settings.optimiser import Optimiser
from robust_train.threats.linf import Linf
from tests.ranks import on_ranks
from tests.toys import ToyNetwork, gone_back, toy_run, trained, weights

NAMES = ("layers.1.norm", "layers.2", "head")  # of the toy: a norm alone, a convolution and its norm, the classifier
ATTACKED = Madry(PGD(Linf(0.1), 1, 0.05, norm="group"))
Change = dict[str, tuple[Tensor, Tensor]]


def run_of(folder: str | Path | None = None, zero: int = 0, part: int | None = None) -> Any:
    return toy_run(
        ATTACKED,
        folder,
        network=Blueprint(ToyNetwork(), group=4, trained=NAMES),
        updates=5,
        optimiser=Optimiser(name="adamw", lr=0.01, weight_decay=0.1, decay_all=True),
        average=Average(0.9),
        engine=Execution(zero, part, persist=0),
    )


def change(engine: Engine) -> Change:
    """(before, after) five updates of each tensor of the network."""
    with engine:
        before = weights(engine)
        trained(engine)
        return {name: (before[name], after) for name, after in weights(engine).items()}


def with_deepspeed(place: Place) -> dict[int, Change]:
    from robust_train.engines.deepspeed import DeepSpeedEngine

    return {zero: change(DeepSpeedEngine(run_of(zero=zero), place)) for zero in (0, 1, 2, 3)}


def assert_only_the_named_ones_moved(found: Change) -> None:
    moved = {name for name, (before, after) in found.items() if not torch.equal(before, after)}
    assert moved == {name for name in found if name.startswith(NAMES)}


@pytest.mark.parametrize("part", [None, 4])
def test_what_is_not_named_stays_to_the_bit_and_the_rest_is_trained(part: int | None) -> None:
    """With weight decay on everything, an attack under group statistics, an average, and accumulation."""
    assert_only_the_named_ones_moved(change(PlainEngine(run_of(part=part))))


@pytest.mark.slow
@pytest.mark.cluster
def test_under_deepspeed_too_and_to_the_same_weights() -> None:
    plain = change(PlainEngine(run_of()))
    for world in (1, 2):
        for zero, found in on_ranks(world, with_deepspeed)[0].items():
            assert_only_the_named_ones_moved(found)
            for name, (_, after) in found.items():
                torch.testing.assert_close(after, plain[name][1], rtol=0, atol=1e-4, msg=f"{world} {zero} {name}")


def test_a_run_with_frozen_layers_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """The checkpoint has the optimiser's state of what is trained, and of nothing else."""
    run = replace(run_of(tmp_path), checkpoint=Keep(every=2, keep=9))
    whole, later = PlainEngine(run), PlainEngine(run)
    trained(whole)
    folder = tmp_path / "checkpoints" / "00000002"
    states = {name.split("/")[0] for name in checkpoint.read(folder, "optimiser")}
    assert states == {name for name, _ in whole.module.model.named_parameters() if name.startswith(NAMES)}
    gone_back(later, folder)
    trained(later)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(later).items())


def test_frozen_norms_see_each_image_alone_and_trained_ones_their_group() -> None:
    """In train mode a frozen network's answer to an image is that of evaluation."""
    torch.manual_seed(0)
    blueprint = Blueprint(Timm("test_resnet"), trained=("fc",), group=2)
    network = blueprint.build(5, (3, 32, 32), "fp32", 4).train()
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad(), network.drops(None):
        alone = torch.cat([network.eval()(image[None]) for image in images])
        torch.testing.assert_close(network.train()(images), alone, rtol=1e-4, atol=1e-5)
    assert all(norm.frozen for norm in network.batchnorms)
    assert [name for name, p in network.model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


def test_a_norm_without_weights_is_frozen_by_its_name() -> None:
    @dataclass(frozen=True)
    class Plain(Edit):
        def __call__(self, model: nn.Module, shape: Shape, classes: int) -> None:
            for name in ("layers.0.norm", "layers.1.norm"):
                model.set_submodule(name, nn.BatchNorm2d(6, affine=False))

    blueprint = Blueprint(ToyNetwork(), (Plain(),), group=4, trained=("layers.1", "head"))
    network = blueprint.build(5, (1, 8, 8), "fp32", 16)
    assert {norm.name: norm.frozen for norm in network.batchnorms} == {
        "layers.0.norm": True,
        "layers.1.norm": False,
        "layers.2.1": True,
    }


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (
            ("haed",),
            r"run\.network\.trained: 'haed' names nothing that is trained; did you mean 'head'\? \(the model has ",
        ),
        (("hea",), "'hea' names nothing"),  # names, not the letters they begin with
        (("stem.block",), r"'stem\.block' names nothing"),  # the filters of a V1 are no weights
    ],
)
def test_a_name_of_nothing_that_is_trained_is_refused_with_the_nearest(trained: tuple[str, ...], said: str) -> None:
    front = V1(visual_degrees=1.0, ksize=5, stride=2, simple=4, complex=4)
    with pytest.raises(ConfigError, match=said):
        Blueprint(SmallResNet(), (front,), trained=trained).build(5, (3, 32, 32), "fp32", 4)
    with pytest.raises(ValueError, match=r"trained=\[\] trains nothing"):
        Blueprint(SmallResNet(), trained=())


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.out.weight = self.embed.weight


def test_a_tied_weight_trains_if_any_of_its_names_does() -> None:
    model = Tied()
    Blueprint(ToyNetwork(), trained=("out", "head"))._freeze(model)
    assert {n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad} == {"embed.bias"}
