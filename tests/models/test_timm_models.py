"""timm models by name: built at the data's size, with weights from a local file only, refused with a remedy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from robust_train.keyed import Key
from robust_train.models import likeness
from robust_train.models.blueprint import Blueprint
from robust_train.models.network import Network
from robust_train.models.timm import Timm
from robust_train.nouns import Model
from robust_train.read.errors import CheckpointError, ConfigError
from robust_train.read.parse import dump, load_tree, parse

SWIN = {"window_size": 4, "depths": (2, 1), "num_heads": (2, 2), "embed_dim": 16}
FAMILIES = {
    "resnet": (Timm("resnet18"), 32, ("layer1", "layer2", "layer3", "layer4")),
    "resnetv2": (Timm("resnetv2_18"), 32, ("stages.0", "stages.1", "stages.2", "stages.3")),
    "byobnet": (Timm("test_byobnet"), 32, ("stages.0", "stages.1", "stages.2", "stages.3")),
    "regnet": (Timm("regnety_002"), 32, ("s1", "s2", "s3", "s4")),
    "efficientnet": (Timm("test_efficientnet"), 32, tuple(f"blocks.{i}" for i in range(5))),
    "densenet": (
        Timm("densenet121", options={"block_config": (2, 1)}),
        32,
        ("features.denseblock1", "features.denseblock2"),
    ),
    "convnext": (
        Timm("convnext_atto", drop_path_rate=0.1),
        64,
        ("stages.0", "stages.1", "stages.2", "stages.3"),
    ),
    "nfnet": (Timm("test_nfnet"), 32, tuple(f"stages.{i}" for i in range(4))),
    "vit": (
        Timm("vit_tiny_patch16_224", patch_size=4, attn_drop_rate=0.1, options={"depth": 2}),
        32,
        ("blocks.0", "blocks.1"),
    ),
    "deit": (Timm("deit_tiny_distilled_patch16_224", options={"depth": 1}), 32, ("blocks.0",)),
    "deit3": (Timm("deit3_small_patch16_224", patch_size=8, options={"depth": 1}), 32, ("blocks.0",)),
    "xcit": (Timm("xcit_nano_12_p16_224", options={"depth": 2}), 64, ("blocks.0", "blocks.1")),
    "swin": (Timm("swin_tiny_patch4_window7_224", options=SWIN), 32, ("layers.0", "layers.1")),
    "mixer": (Timm("mixer_s16_224"), 32, tuple(f"blocks.{i}" for i in range(8))),
    "levit": (Timm("levit_128s"), 64, ("stages.0", "stages.1", "stages.2")),
    "maxvit": (Timm("test_maxvit"), 32, tuple(f"stages.{i}" for i in range(4))),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_turns_small_images_into_logits_and_trains_all_its_weights(family: str) -> None:
    model, size, stages = FAMILIES[family]
    torch.manual_seed(0)
    network = Blueprint(model, group=2).build(7, (3, size, size), "fp32", 4)
    assert network.stages == stages
    images = torch.rand(4, 3, size, size)
    with network.drops(Key(0).rows(torch.arange(4))):
        logits, taps = network(images, taps=stages)
    assert logits.shape == (4, 7)
    assert all(len(hidden) == 4 for hidden in taps.values())
    logits.square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_channels_come_from_the_data() -> None:
    network = Blueprint(Timm("test_vit", patch_size=8)).build(3, (1, 32, 32), "fp32", 4)
    assert network(torch.rand(4, 1, 32, 32)).shape == (4, 3)


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ConfigError, match=r"'reznet50' is no timm model; did you mean .*'resnet50'"):
        Timm("reznet50").build(10, (3, 32, 32))
    with pytest.raises(ConfigError, match="timm cannot build resnet50"):
        Timm("resnet50.no_such_tag").build(10, (3, 32, 32))


def test_a_model_on_a_hub_is_refused() -> None:
    for name in ("hf-hub:timm/resnet50.a1_in1k", "hf_hub:x/y"):
        with pytest.raises(ConfigError, match="local file"):
            Timm(name).build(10, (3, 32, 32))


def test_nothing_is_ever_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    Timm("resnet18.a1_in1k").build(10, (3, 32, 32))
    with pytest.raises(CheckpointError, match="nothing is fetched"):
        Timm("resnet18", weights="resnet18.pth").build(10, (3, 32, 32))


def test_an_option_that_the_model_does_not_take_is_named() -> None:
    with pytest.raises(ConfigError, match=r"timm cannot build resnet18 .*patch_size=4: .*'patch_size'"):
        Timm("resnet18", patch_size=4).build(10, (3, 32, 32))
    with pytest.raises(ConfigError, match="'embed_dimm'"):
        Timm("test_vit", options={"embed_dimm": 3}).build(10, (3, 32, 32))


def test_a_size_that_the_model_does_not_take_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match=r"efficientformer_l1 does not take 3x64x64 images .*data\.size"):
        Timm("efficientformer_l1").build(10, (3, 64, 64))
    with pytest.raises(ConfigError, match="inception_v3 does not take 3x8x8 images"):
        Timm("inception_v3").build(10, (3, 8, 8))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"drop_rate": 1.0}, "drop_rate=1 is not in"),
        ({"drop_path_rate": -0.1}, "drop_path_rate=-0.1 is not in"),
        ({"options": {"num_classes": 3}}, "options.num_classes is set elsewhere"),
        ({"options": {"pretrained": True}}, "options.pretrained is set elsewhere"),
        ({"options": {"patch_size": 4}}, "options.patch_size is set elsewhere"),
    ],
)
def test_fields_out_of_range_or_said_twice_are_refused(fields: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Timm("resnet18", **fields)


def test_a_timm_model_is_read_from_yaml_and_written_back() -> None:
    text = "use: timm\nname: vit_tiny_patch16_224\npatch_size: 4\noptions: {depth: 2, init_values: 1.0e-4}\n"
    model = parse(Model, load_tree(text))
    assert model == Timm("vit_tiny_patch16_224", patch_size=4, options={"depth": 2, "init_values": 1e-4})
    assert parse(Model, load_tree(dump(model))) == model


def saved(tmp_path: Path, classes: int = 10, size: int = 32, **fields: object) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(1)
    model = Timm("test_vit", patch_size=8, **fields).build(classes, (3, size, size))  # type: ignore[arg-type]
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path, model.state_dict()


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    path, weights = saved(tmp_path)
    model = Timm("test_vit", weights=str(path), patch_size=8).build(10, (3, 32, 32))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_a_head_for_other_classes_begins_anew_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, weights = saved(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = Timm("test_vit", weights=str(path), patch_size=8).build(4, (3, 32, 32))
    assert "another head, of 4 classes, begins anew: head.weight, head.bias" in caplog.text
    for name, tensor in model.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, weights[name]), name
    assert model.get_parameter("head.weight").shape[0] == 4


def test_position_embeddings_are_resampled_to_another_input_size(tmp_path: Path) -> None:
    """A constant embedding is constant at every size."""
    path, weights = saved(tmp_path)
    position = weights["pos_embed"].shape
    weights["pos_embed"] = torch.arange(float(position[2])).expand(position).clone()
    save_file(weights, path)
    model = Timm("test_vit", weights=str(path), patch_size=8).build(10, (3, 64, 64))
    found = model.get_parameter("pos_embed")
    prefix = position[1] - 16
    assert found.shape == (1, prefix + 64, position[2])
    assert_close(found, weights["pos_embed"][:, :1].expand_as(found), rtol=1e-4, atol=1e-4)


def test_weights_of_another_model_are_refused_by_their_first_tensors(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(likeness, "SECONDS", 0.0)  # whose they are is another test's
    path, _ = saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit resnet18: \d+ missing \(conv1.weight"):
        Timm("resnet18", weights=str(path)).build(10, (3, 32, 32))
    path, _ = saved(tmp_path, options={"embed_dim": 32})
    with pytest.raises(CheckpointError, match=r"does not fit test_vit"):
        Timm("test_vit", weights=str(path), patch_size=8).build(10, (3, 32, 32))


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w}, lambda w: {"model": w, "epoch": 3}])
def test_a_checkpoint_of_a_training_script_is_unwrapped(tmp_path: Path, wrap: Callable[[dict], dict]) -> None:
    _, weights = saved(tmp_path)
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap({f"module.{name}": tensor for name, tensor in weights.items()}), path)
    model = Timm("test_vit", weights=str(path), patch_size=8).build(10, (3, 32, 32))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_the_same_seed_builds_the_same_network() -> None:
    def made() -> Network:
        torch.manual_seed(3)
        return Blueprint(Timm("test_resnet")).build(5, (3, 32, 32), "fp32", 4)

    one, other = made().state_dict(), made().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
