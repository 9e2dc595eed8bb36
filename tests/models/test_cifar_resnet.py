"""PreActResNet and WideResNet for small images: the published sizes, and blocks that are their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from robust_train.keyed import Key
from robust_train.models.blueprint import Blueprint
from robust_train.models.cifar_resnet import PreActivationBottleneck, PreActResNet, WideResNet
from robust_train.models.small_cnn import PreActivationBlock


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(autouse=True)
def on_no_device():
    """Sizes need no memory, and no time to initialise."""
    with torch.device("meta"):
        yield


@pytest.mark.parametrize(
    ("depth", "width", "classes", "published"),
    # as counted in imgclsmob's model zoo for CIFAR (WRN-16-10, 28-10, 40-8); 34-10: RobustBench's 46.16 M
    [(16, 10, 10, 17_116_634), (28, 10, 10, 36_479_194), (28, 10, 100, 36_536_884), (40, 8, 10, 35_748_314)],
)
def test_wide_resnets_have_the_published_number_of_weights(
    depth: int, width: int, classes: int, published: int
) -> None:
    assert count(WideResNet(depth, width).build(classes, (3, 32, 32))) == published


def test_wrn_34_10_has_46_million_weights() -> None:
    assert count(WideResNet(34, 10).build(10, (3, 32, 32))) / 1e6 == pytest.approx(46.16, abs=0.005)


@pytest.mark.parametrize(("depth", "blocks"), [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3))])
def test_preact_resnets_have_the_weights_that_their_shapes_say(depth: int, blocks: tuple[int, ...]) -> None:
    """A block from w to v channels: 9 w v + 9 v^2 (convolutions), 2 w + 2 v (norms), w v (shortcut, if w != v)."""
    total, w = 3 * 64 * 9, 64
    for stage, repeated in enumerate(blocks):
        v = 64 * 2**stage
        for _ in range(repeated):
            total += 9 * w * v + 9 * v * v + 2 * w + 2 * v + (w * v if w != v else 0)
            w = v
    total += 2 * 512 + 512 * 10 + 10
    assert count(PreActResNet(depth).build(10, (3, 32, 32))) == total  # type: ignore[arg-type]


def test_preact_resnet_18_has_11_17_million_weights() -> None:
    assert count(PreActResNet(18).build(10, (3, 32, 32))) / 1e6 == pytest.approx(11.17, abs=0.005)


def test_preact_resnet_50_ends_2048_wide_with_as_many_convolutions_as_its_depth_says() -> None:
    model = PreActResNet(50).build(10, (3, 32, 32))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert len(convolutions) == 1 + 16  # the stem, and a 3x3 in each block
    assert model.get_submodule("head").in_features == 2048
    layers = [name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len([name for name in layers if "shortcut" not in name]) == 50


@pytest.mark.parametrize("model", [PreActResNet(18), WideResNet(16, 2)])
def test_32_pixels_are_pooled_at_a_quarter_or_an_eighth_of_their_side(model: PreActResNet | WideResNet) -> None:
    built = model.build(10, (3, 32, 32))
    sides = []
    built.get_submodule("norm").register_forward_hook(lambda module, inputs, output: sides.append(output.shape[2:]))
    built(torch.empty(2, 3, 32, 32))
    assert sides == [(4, 4) if isinstance(model, PreActResNet) else (8, 8)]


@pytest.mark.parametrize("depth", [4, 27, 30])
def test_a_depth_that_no_wide_resnet_has_is_refused_with_the_nearest(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth={depth} is not 6 n \+ 4 .* the nearest is (10|28)"):
        WideResNet(depth)


def norm(x: torch.Tensor, layer: nn.BatchNorm2d) -> torch.Tensor:
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, True)


@pytest.mark.parametrize(("wider", "stride"), [(6, 1), (8, 2)])
def test_a_block_is_its_formula(wider: int, stride: int) -> None:
    with torch.device("cpu"):
        torch.manual_seed(0)
        x = torch.randn(3, 6, 8, 8)
        block = PreActivationBlock(6, wider, stride)
        a = F.relu(norm(x, block.norm1))
        y = F.conv2d(a, block.conv1.weight, stride=stride, padding=1)
        y = F.conv2d(F.relu(norm(y, block.norm2)), block.conv2.weight, padding=1)
        straight = x if stride == 1 else F.conv2d(a, block.shortcut.weight, stride=stride)
        assert_close(block(x), straight + y)


@pytest.mark.parametrize(("width", "stride"), [(8, 1), (6, 2)])
def test_a_bottleneck_is_its_formula(width: int, stride: int) -> None:
    with torch.device("cpu"):
        torch.manual_seed(0)
        x = torch.randn(3, width, 8, 8)
        block = PreActivationBottleneck(width, 2, stride)
        a = F.relu(norm(x, block.norm1))
        y = F.conv2d(a, block.conv1.weight)
        y = F.conv2d(F.relu(norm(y, block.norm2)), block.conv2.weight, stride=stride, padding=1)
        y = F.conv2d(F.relu(norm(y, block.norm3)), block.conv3.weight)
        straight = x if width == 8 else F.conv2d(a, block.shortcut.weight, stride=stride)
        assert_close(block(x), straight + y)


def test_convolutions_of_a_wide_resnet_keep_the_gradients_variance() -> None:
    """Weights ~ N(0, 2 / (k^2 out)), He et al. 2015 for the backward pass."""
    with torch.device("cpu"):
        torch.manual_seed(0)
        model = WideResNet(10, 4).build(10, (3, 32, 32))
    weight = model.get_parameter("block3.0.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert not model.get_parameter("head.bias").any()


def test_dropout_stands_between_the_convolutions_and_is_keyed() -> None:
    with torch.device("cpu"):
        torch.manual_seed(0)
        network = Blueprint(WideResNet(10, 1, drop_rate=0.3), group=2).build(10, (3, 32, 32), "fp32", 2)
        images = torch.rand(2, 3, 32, 32)
        rows = torch.arange(2)
        found = []
        for key in (Key(0), Key(0), Key(1)):
            with network.drops(key.rows(rows)):
                found.append(network(images))
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])
