"""A front end in place of a model's stem: every other layer stays what and where it was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.__main__ import main
from robust_train.models.blueprint import Blueprint
from robust_train.models.cifar_resnet import PreActResNet, WideResNet
from robust_train.models.front import find_stem, mount
from robust_train.models.lgn import Subcortical
from robust_train.models.small_cnn import SmallCNN, SmallResNet
from robust_train.models.timm import Timm
from robust_train.models.v1 import V1, V1Sum
from robust_train.nouns import Model
from robust_train.read.errors import ConfigError
from robust_train.run import Run

SMALL = V1(visual_degrees=2.0, ksize=5, stride=2, simple=6, complex=6)
CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Case:
    """A model, and what is known of its stem."""

    model: Model
    stem: str  # the layer replaced
    width: int  # feature maps that the next layer takes
    then: str  # the next layer that does anything
    gone: tuple[str, ...] = ()  # layers with weights that end with the stem
    size: int = 64


SHALLOW = {"depths": (1, 1, 1, 1)}
CASES = {
    "resnet18": Case(Timm("resnet18"), "conv1", 64, "layer1", ("bn1",)),
    "resnet10t, of three convolutions": Case(Timm("resnet10t"), "conv1", 64, "layer1", ("bn1",)),
    "test_resnet": Case(Timm("test_resnet"), "conv1", 32, "layer1", ("bn1",)),
    "convnext": Case(Timm("convnext_atto", options=SHALLOW), "stem.0", 40, "stem.1"),
    "test_convnext": Case(Timm("test_convnext"), "stem.0", 24, "stem.1"),
    "efficientnet": Case(Timm("efficientnet_b0"), "conv_stem", 32, "blocks", ("bn1",)),
    "test_efficientnet": Case(Timm("test_efficientnet"), "conv_stem", 24, "blocks", ("bn1",)),
    "mobilenetv3": Case(Timm("mobilenetv3_small_050"), "conv_stem", 16, "blocks", ("bn1",)),
    "small-resnet": Case(SmallResNet(), "stem", 32, "block1", size=32),
    "small-cnn": Case(SmallCNN(), "block1", 32, "block2", size=32),
    "preact-resnet": Case(PreActResNet(), "stem", 64, "layer1", size=32),
    "wide-resnet": Case(WideResNet(10, 1), "stem", 16, "block1", size=32),
}
VITS = {
    "vit_tiny": Timm("vit_tiny_patch16_224", options={"depth": 1}),
    "test_vit": Timm("test_vit"),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def built(model: Model, size: int = 64, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return model.build(10, (channels, size, size))


@every
def test_the_stem_alone_is_replaced_and_weights_of_the_rest_still_load(case: Case) -> None:
    """As from a file of weights of the plain model: what is unused are the stem's, what is missing the front end's."""
    plain, model = built(case.model, case.size), built(case.model, case.size)
    assert mount(model, SMALL, (3, case.size, case.size)) == case.stem
    before = plain.state_dict()
    for value in before.values():
        value.normal_() if value.is_floating_point() else value.fill_(3)
    found = model.load_state_dict(before, strict=False)
    replaced = tuple(f"{name}." for name in (case.stem, *case.gone))
    assert set(found.unexpected_keys) == {name for name in before if name.startswith(replaced)}
    front = {f"{case.stem}.{name}" for name in ("block.weight", "block.place", "block.sampled", "bottleneck.weight")}
    assert set(found.missing_keys) == front
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if not name.startswith(replaced))


@every
def test_the_next_layer_takes_what_the_front_end_gives_and_nothing_comes_between(case: Case) -> None:
    """No norm, activation or pooling of the stem is left."""
    model = built(case.model, case.size)
    mount(model, SMALL, (3, case.size, case.size))
    seen: dict[str, Tensor] = {}
    front, then = model.get_submodule(case.stem), model.get_submodule(case.then)
    front.register_forward_hook(lambda module, inputs, output: seen.update(given=output.clone()))
    first = next((child for child in then.children() if isinstance(then, nn.Sequential)), then)
    first.register_forward_pre_hook(lambda module, inputs: seen.update(taken=inputs[0].clone()))
    assert model.eval()(torch.rand(2, 3, case.size, case.size)).shape == (2, 10)
    assert seen["given"].shape == (2, case.width, case.size // 2, case.size // 2)
    assert torch.equal(seen["given"], seen["taken"])


@pytest.mark.parametrize("name", VITS)
def test_a_vits_patches_are_made_by_a_convolution_behind_the_front_end(name: str) -> None:
    plain, model = built(VITS[name]), built(VITS[name])
    width, patch = plain.patch_embed.proj.out_channels, plain.patch_embed.proj.kernel_size[0]
    assert mount(model, SMALL, (3, 64, 64)) == "patch_embed.proj"
    made = model.get_submodule("patch_embed.proj.1")
    assert (made.in_channels, made.out_channels) == (64, width)
    assert made.kernel_size == made.stride == (patch // 2, patch // 2)
    images = torch.rand(2, 3, 64, 64)
    assert model.patch_embed(images).shape == plain.patch_embed(images).shape
    assert model(images).shape == (2, 10)
    found = model.load_state_dict(plain.state_dict(), strict=False)
    assert set(found.unexpected_keys) == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert all(missing.startswith("patch_embed.proj.") for missing in found.missing_keys)


@pytest.mark.parametrize("training", [True, False])
def test_mounting_leaves_mode_and_running_statistics_as_they_were(training: bool) -> None:
    model = built(Timm("test_resnet")).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    mount(model, SMALL, (3, 64, 64))
    assert all(module.training == training for module in model.get_submodule("layer1").modules())
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name in after)


@pytest.mark.parametrize("name", ["densenet121", "test_nfnet", "test_byobnet", "resnetv2_18", "test_mambaout"])
def test_a_model_without_a_known_stem_is_refused_with_those_that_have_one(name: str) -> None:
    model = built(Timm(name))
    with pytest.raises(ConfigError, match=r"has no stem that a front end can replace: .* ResNets .*ViTs .*small-cnn"):
        find_stem(model)


def test_a_stride_that_does_not_divide_a_patch_is_refused() -> None:
    front = V1(visual_degrees=2.0, ksize=5, stride=3, simple=2, complex=2)
    with pytest.raises(ConfigError, match=r"every 3 pixels does not divide patches of 16 pixels; choose another"):
        mount(built(VITS["test_vit"]), front, (3, 64, 64))


def test_a_stride_that_the_model_cannot_take_is_refused_with_the_remedy() -> None:
    """small-cnn's classifier counts places."""
    front = V1(visual_degrees=1.0, ksize=5, stride=4, simple=2, complex=2)
    with pytest.raises(ConfigError, match=r"Chain does not take its feature maps at 32 pixels .*another stride"):
        mount(built(SmallCNN(), 32), front, (3, 32, 32))


def test_a_front_end_brings_its_own_normalisation_unless_the_run_says_otherwise() -> None:
    """Middle grey is 0; timm's ResNets alone would take ImageNet's mean and deviation off."""

    def normalised(channels: int = 3, model: Model = Timm("test_resnet"), **said: object):
        blueprint = Blueprint(model, edits=(SMALL,), group=2, **said)  # type: ignore[arg-type]
        network = blueprint.build(5, (channels, 32, 32), "fp32", 4)
        return network.mean.flatten().tolist(), network.std.flatten().tolist()

    assert normalised() == ([0.5], [0.5])
    assert normalised(1, SmallCNN()) == ([0.5], [0.5])
    mean, std = normalised(mean=(0.1, 0.2, 0.3))
    assert mean == pytest.approx([0.1, 0.2, 0.3])
    assert std == [0.5]


def test_a_network_knows_its_noise_and_trains_all_but_the_filters() -> None:
    network = Blueprint(SmallResNet(), edits=(SMALL,), group=2).build(5, (3, 32, 32), "fp32", 4)
    assert network.noisy == ["stem.block.noise"]
    images = torch.rand(4, 3, 32, 32)
    network(images).square().sum().backward()
    assert "model.stem.bottleneck.weight" in dict(network.named_parameters())
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert not any("block.weight" in name for name, _ in network.named_parameters() if name.startswith("model.stem"))
    with network.eval().noise(mode="off"):
        assert torch.equal(network(images), network(images))
        normal = (images - 0.5) / 0.5
        assert_close(network(images), network.model(normal))


def test_a_sum_of_blocks_is_mounted_like_a_block() -> None:
    model = built(SmallResNet(), 32)
    assert mount(model, V1Sum((SMALL, SMALL), learned=True), (3, 32, 32)) == "stem"
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def with_edits(folder: Path, edits: str) -> Run:
    path = folder / "run.yaml"
    path.write_text(f"base: {CONFIGS}/v1/cifar-member.yaml\nnetwork:\n  edits: {edits}\n", encoding="utf-8")
    return Run.load(path)


def test_a_run_says_its_front_end(tmp_path: Path) -> None:
    member = CONFIGS / "v1" / "cifar-member.yaml"
    v1 = V1(1, 15, 2, 64, 64, sf_max=11.3, k_exc=23.5, noise_scale=0.286, noise_level=0.071, relu_after=False)
    assert Run.load(member).network.edits == (v1,)
    low = Run.load(member, ["network.edits.0.sf_min=0.5", "network.edits.0.noise=null", "network.edits.0.lgn={}"])
    assert low.network.edits == (replace(v1, sf_min=0.5, noise=None, lgn=Subcortical()),)
    assert Run.load(low.dump()) == low
    blocks = "[{use: v1, seed: 1, stride: 2}, {use: v1, seed: 2, stride: 2, tables: uniform}]"
    summed = with_edits(tmp_path, f"[{{use: v1-sum, blocks: {blocks}, learned: true}}]")
    assert summed.network.edits == (
        V1Sum((V1(seed=1, stride=2), V1(seed=2, stride=2, tables="uniform")), learned=True),
    )
    assert Run.load(summed.dump()) == summed


@pytest.mark.parametrize(
    ("front", "words"),
    [
        ("{use: v2}", "v2"),
        ("{use: v1, ksize: 14}", "ksize=14 must be odd"),
        ("{use: v1, tables: 2022}", "tables"),
        ("{use: v1, kernel: 15}", "kernel.*did you mean|no such field"),
    ],
)
def test_a_front_end_that_is_said_wrongly_is_told(tmp_path: Path, front: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)run\.network\.edits\[0\].*({words})"):
        with_edits(tmp_path, f"[{front}]")


def test_the_list_of_edits_shows_the_front_ends(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list", "edits"])
    printed = capsys.readouterr().out
    for words in ("v1 ", "v1-sum", "visual_degrees", "noise_factor", "sf_max", "learned", "activation", "convstem"):
        assert words in printed
