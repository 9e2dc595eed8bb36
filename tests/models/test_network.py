"""Network: normalisation, precision, taps and edits inside one module from pixels to logits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.attacked import attacked
from robust_train.keyed import Key
from robust_train.models.blueprint import Blueprint
from robust_train.models.network import Network
from robust_train.models.small_cnn import SmallCNN, SmallResNet
from robust_train.models.timm import Timm
from robust_train.read.errors import ConfigError

PIXELS = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
KEY = Key(0).rows(torch.arange(4))


def built(model: object = Timm("test_resnet"), precision: str = "fp32", **around: object) -> Network:
    torch.manual_seed(0)
    return Blueprint(model, group=2, **around).build(5, (3, 32, 32), precision, 4)  # type: ignore[arg-type]


def test_normalisation_is_part_of_the_network() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    net = built(mean=mean, std=std).eval()
    normal = (PIXELS - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert_close(net(PIXELS), net.model(normal))


def test_a_timm_model_brings_its_own_normalisation_and_ours_has_none() -> None:
    net = built(Timm("vit_tiny_patch16_224", options={"depth": 1}, patch_size=8))
    assert_close(net.mean.flatten(), torch.tensor([0.5, 0.5, 0.5]))
    assert_close(net.std.flatten(), torch.tensor([0.5, 0.5, 0.5]))
    ours = built(SmallCNN())
    assert (ours.mean.unique().tolist(), ours.std.unique().tolist()) == ([0.0], [1.0])
    grey = Blueprint(Timm("resnet18")).build(5, (1, 32, 32), "fp32", 4)  # three numbers for one channel: their mean
    assert_close(grey.mean.flatten(), torch.tensor([(0.485 + 0.456 + 0.406) / 3]))


def test_the_image_gradient_is_that_of_the_pixels() -> None:
    """d f / d pixel = d f / d normal / std: a step in pixels is a step in [0, 1]."""
    net = built(SmallCNN(), std=(0.25,)).eval()
    images = PIXELS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(images).sum(), images)
    normal = (PIXELS / 0.25).requires_grad_()
    (inner,) = torch.autograd.grad(net.model(normal).sum(), normal)
    assert_close(gradient, inner / 0.25)


def test_a_mean_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"run\.network\.mean: 2 numbers for images of 3 channels; give 3, or 1"):
        built(SmallCNN(), mean=(0.5, 0.5))
    with pytest.raises(ValueError, match="must be positive"):
        Blueprint(SmallCNN(), std=(0.0,))


def test_bf16_computes_in_bf16_and_gives_float32_logits_with_float32_weights() -> None:
    full, half = built(), built(precision="bf16")
    kinds: list[torch.dtype] = []
    half.model.get_submodule("layer1").register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    logits = half(PIXELS)
    assert kinds == [torch.bfloat16]
    assert logits.dtype == torch.float32
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert_close(logits, full(PIXELS), rtol=0.1, atol=0.1)
    assert not torch.equal(logits, full(PIXELS))
    logits.sum().backward()
    assert {parameter.grad.dtype for parameter in half.parameters()} == {torch.float32}


def test_features_keep_their_graph_in_both_directions() -> None:
    """d logits / d pixels = (d logits / d h) (d h / d pixels), through the tapped h."""
    net = built().double()
    images = PIXELS.double().requires_grad_()
    logits, taps = net(images, taps=("layer2",))
    hidden = taps["layer2"]
    (whole,) = torch.autograd.grad(logits.square().sum(), images, retain_graph=True)
    (upper,) = torch.autograd.grad(logits.square().sum(), hidden, retain_graph=True)
    (lower,) = torch.autograd.grad(hidden, images, upper)
    assert_close(lower, whole)
    assert_close(net.features(images, ("layer2",))["layer2"], hidden)


def test_a_tap_sees_a_layer_before_later_layers_work_in_place() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten())
    net = Network(model, 4)
    assert_close(net.features(PIXELS, ("0",))["0"], model[0](PIXELS))
    assert (net.features(PIXELS, ("0",))["0"] < 0).any()


def test_an_edit_stands_in_the_place_of_a_layer_and_a_tap_sees_it() -> None:
    net = built(SmallResNet())
    plain, states = net(PIXELS, taps=net.stages)
    for name in net.stages:
        logits, seen = net(PIXELS, swaps={name: lambda hidden: hidden.flip(0)}, taps=(name,))
        assert_close(seen[name], states[name].flip(0))
        assert not torch.allclose(logits, plain)
    same = net(PIXELS, swaps={name: lambda hidden: hidden for name in net.stages})
    assert torch.equal(same, plain)
    assert_close(net(PIXELS, swaps={"": lambda images: images.flip(0)}), net(PIXELS.flip(0)))


def test_no_hook_stays_behind_even_when_a_forward_fails() -> None:
    net = built(SmallCNN())

    def fail(hidden: Tensor) -> Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        net(PIXELS, swaps={"block1": fail}, taps=("block2",))
    assert not any(module._forward_hooks for module in net.modules())


def test_an_unknown_layer_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'blok2' is no layer of Chain; did you mean 'block2'"):
        built(SmallCNN()).features(PIXELS, ("blok2",))


def test_an_attack_leaves_modes_flags_and_statistics_as_they_were() -> None:
    net = built(Timm("test_resnet", drop_rate=0.1))
    net.model.get_submodule("layer3").eval()
    next(net.model.parameters()).requires_grad_(False)
    for use in ("group", "running"):
        net.settle(norm=use)  # type: ignore[typeddict-item]
        before = [module.training for module in net.modules()], net.now, copy.deepcopy(net.state_dict())
        flags = [parameter.requires_grad for parameter in net.parameters()]
        with attacked(net, "group" if use == "running" else "running"):
            assert not any(parameter.requires_grad for parameter in net.parameters())
            assert net.now.norm != use
            with net.drops(None):
                net(PIXELS)
        assert [module.training for module in net.modules()] == before[0]
        assert net.now is before[1]
        assert [parameter.requires_grad for parameter in net.parameters()] == flags
        assert not net.recorded().any()
        assert all(torch.equal(value, before[2][name]) for name, value in net.state_dict().items())


def test_train_and_eval_choose_group_and_running_statistics() -> None:
    net = built()
    assert (net.train().now.norm, net.now.record, net.training) == ("group", True, True)
    assert (net.eval().now.norm, net.now.record, net.training) == ("running", False, False)


def test_the_weights_of_a_network_load_into_timm_strictly() -> None:
    import timm

    for name in ("test_resnet", "test_byobnet", "test_vit"):
        net = built(Timm(name, drop_rate=0.1))
        with net.drops(KEY):
            net(PIXELS)
        net.move(net.recorded())
        plain = timm.create_model(name, num_classes=5, **({"img_size": 32} if "vit" in name else {}))
        plain.load_state_dict(net.model.state_dict(), strict=True)
        images, net = PIXELS.double(), net.double().eval()
        assert_close(plain.double().eval()((images - net.mean) / net.std), net(images), rtol=0, atol=1e-12)


def test_memory_layout_changes_no_number() -> None:
    """In float64: in float32 the two layouts' kernels add in other orders, by how much depends on the processor."""
    seen: list[Tensor] = []
    net = built(channels_last=True).double()
    net.model.register_forward_pre_hook(lambda model, images: seen.append(*images))
    assert_close(net(PIXELS.double()), built().double()(PIXELS.double()), rtol=0, atol=1e-12)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_a_copied_network_shares_nothing_with_its_original() -> None:
    net = built(Timm("test_resnet", drop_rate=0.3))
    twin = copy.deepcopy(net)
    with twin.drops(KEY):
        twin(PIXELS)
    assert twin.recorded().any()
    assert not net.recorded().any()
    assert twin.batchnorms[0] in list(twin.model.modules())
    twin.eval()
    assert net.now.norm == "group"
    assert all(norm.held is twin.held for norm in twin.batchnorms)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it, on its own inputs
def test_a_compiled_network_gives_the_same_logits_gradients_and_statistics() -> None:
    """Without code generation: what the compiler sees of the modes, which is where it could err."""
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph

    plain, pixels = built(SmallCNN(widths=(4, 4), strides=(2, 2))).double(), PIXELS.double()
    compiled = copy.deepcopy(plain)
    names = list(plain.state_dict())
    compiled.model.compile(backend=count)
    compiled(pixels)
    assert len(graphs) == 1  # the whole model, uncut
    compiled.move(None)
    for norm in ("group", "running"):
        found = []
        for net in (plain, compiled):
            images = pixels.clone().requires_grad_()
            with attacked(net, norm):  # type: ignore[arg-type]
                (gradient,) = torch.autograd.grad(net(images).square().sum(), images)
            net(pixels).square().sum().backward()
            found.append((gradient, *(parameter.grad for parameter in net.parameters()), net.recorded()))
        for mine, theirs in zip(*found, strict=True):
            assert_close(mine, theirs, rtol=0, atol=1e-10)
    assert list(compiled.state_dict()) == names
    assert_close(compiled(pixels, taps=("block1",))[1]["block1"], plain(pixels, taps=("block1",))[1]["block1"])
    assert_close(compiled.eval()(pixels), plain.eval()(pixels), rtol=0, atol=1e-10)
