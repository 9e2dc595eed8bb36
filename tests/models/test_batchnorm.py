"""BatchNorm on groups of consecutive images: the same numbers however a batch is cut into ranks and parts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.keyed.mode import Held
from robust_train.models.batchnorm import GroupedBatchNorm, group_batchnorms
from robust_train.models.checkpointing import checkpoint_blocks
from robust_train.models.network import Network
from robust_train.models.timm import Timm
from robust_train.read.errors import ConfigError

EXACT = {"rtol": 0.0, "atol": 1e-13}


def pixels(count: int = 16, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *(shape or (5, 4, 3)), generator=generator, dtype=torch.float64)


def filled(norm: nn.Module) -> nn.Module:
    """With weights and statistics that are not those of a new one."""
    generator = torch.Generator().manual_seed(7)
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        tensor.data = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
    return norm


def grouped(norm: nn.Module, group: int) -> GroupedBatchNorm:
    return group_batchnorms(nn.Sequential(norm), Held(), group)[0]


@pytest.mark.parametrize("group", [16, 8, 4, 2])
def test_each_group_is_normalised_as_a_batch_of_its_own(group: int) -> None:
    norm = filled(nn.BatchNorm2d(5))
    ours = grouped(copy.deepcopy(norm), group)
    x = pixels()
    assert_close(ours(x), torch.cat([norm(part) for part in x.split(group)]), **EXACT)


def test_gradients_flow_through_the_statistics_of_the_group() -> None:
    """d loss / d (x, w, b) equals that of the formula written out, with its mean and biased variance in the graph."""
    norm = filled(nn.BatchNorm2d(5))
    ours = grouped(copy.deepcopy(norm), 4)
    x, weigh = pixels().requires_grad_(), pixels(seed=1)
    plain = []
    for part in x.split(4):
        mean = part.mean((0, 2, 3), keepdim=True)
        variance = (part - mean).square().mean((0, 2, 3), keepdim=True)
        plain.append((part - mean) / (variance + norm.eps).sqrt())
    expected = norm.weight.view(-1, 1, 1) * torch.cat(plain) + norm.bias.view(-1, 1, 1)
    want = torch.autograd.grad((expected * weigh).sum(), [x, norm.weight, norm.bias])
    got = torch.autograd.grad((ours(x) * weigh).sum(), [x, ours.weight, ours.bias])
    for mine, theirs in zip(got, want, strict=True):
        assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_running_statistics_move_once_by_the_mean_over_all_groups() -> None:
    norm = filled(nn.BatchNorm2d(5, momentum=0.3))
    ours = grouped(copy.deepcopy(norm), 4)
    x = pixels()
    ours(x)
    ours.move(ours.recorded)
    means = torch.stack([part.mean((0, 2, 3)) for part in x.split(4)]).mean(0)
    variances = torch.stack([part.transpose(0, 1).flatten(1).var(1, unbiased=True) for part in x.split(4)]).mean(0)
    assert_close(ours.running_mean, 0.7 * norm.running_mean + 0.3 * means, **EXACT)
    assert_close(ours.running_var, 0.7 * norm.running_var + 0.3 * variances, **EXACT)
    assert ours.num_batches_tracked == 1


def test_with_one_group_an_update_moves_statistics_as_batchnorm_does() -> None:
    for momentum in (0.1, None):  # None: a plain average over the updates
        norm = nn.BatchNorm2d(5, momentum=momentum).double()
        ours = grouped(copy.deepcopy(norm), 16)
        for update in range(3):
            x = pixels(seed=update)
            norm(x)
            ours(x)
            ours.move(ours.recorded)
            ours.recorded.zero_()
        for name, theirs in norm.state_dict().items():
            assert_close(ours.state_dict()[name], theirs, **EXACT, msg=name)


def network(group: int) -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    return Network(model, 4, group=group).double()


def test_statistics_are_the_same_for_1x16_2x8_and_4x4_images_over_8_updates() -> None:
    """Ranks and accumulated parts alike: what each recorded is summed before the one move."""
    found = []
    for part in (16, 8, 4):
        net = network(4)
        for update in range(8):
            parts = pixels(16, 3, 6, 6, seed=update).split(part)
            total = torch.zeros_like(net.recorded())
            for images in parts:
                net(images)
                total += net.recorded()
                net.move(None)  # another rank begins with nothing recorded
            net.move(total)
        found.append(torch.cat([net.model[1].running_mean, net.model[1].running_var]))
    assert_close(found[1], found[0], **EXACT)
    assert_close(found[2], found[0], **EXACT)
    assert (found[0] - torch.cat([torch.zeros(6), torch.ones(6)])).abs().max() > 0.01


def test_nothing_is_recorded_in_an_attack_without_a_graph_or_in_eval_mode() -> None:
    net, images = network(4), pixels(8, 3, 6, 6)
    with net.attacked("group"):
        net(images)
    with torch.no_grad():
        net(images)
    net.eval()
    net(images)
    assert not net.recorded().any()
    net.train()
    net(images)
    assert net.recorded()[-1] == 2  # two groups of four


def test_without_a_recorded_group_nothing_moves() -> None:
    net = network(4)
    before = copy.deepcopy(net.state_dict())
    net.move(net.recorded())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_image_is_alone_in_eval_mode_and_meets_its_group_only_in_train_mode() -> None:
    net, images = network(4), pixels(8, 3, 6, 6)
    other = images.clone()
    other[4:] += 1
    assert torch.equal(net(images)[:4], net(other)[:4])
    assert not torch.equal(net(images)[4:], net(other)[4:])
    net.eval()
    assert_close(net(images)[:1], net(images[:1]), **EXACT)


def test_a_layer_that_flattens_tokens_keeps_images_of_a_group_together() -> None:
    """BatchNorm1d on [B N, C] (LeViT): a group is 4 images, so 4 N rows."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(5)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x.flatten(0, 1)).view_as(x).mean(1)

    x = pixels(8, 6, 5)
    net = Network(Tokens(), 5, group=4).double()
    plain = Tokens().double()
    assert_close(net(x), torch.cat([plain(part) for part in x.split(4)]), **EXACT)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(5), nn.BatchNorm3d(5), nn.SyncBatchNorm(5)])
def test_every_batchnorm_of_torch_is_grouped(norm: nn.Module) -> None:
    shape = (5, 2, 3, 4) if isinstance(norm, nn.BatchNorm3d) else (5,)
    x = pixels(8, *shape)
    reference = nn.BatchNorm3d(5) if isinstance(norm, nn.BatchNorm3d) else nn.BatchNorm1d(5)
    reference = filled(reference.double())
    norm.double().load_state_dict(reference.state_dict())
    ours = grouped(norm, 4)
    assert_close(ours(x), torch.cat([reference(part) for part in x.split(4)]), **EXACT)


def test_timm_norms_keep_their_activation_and_their_state_names() -> None:
    model = Timm("test_byobnet").build(4, (3, 32, 32)).double()
    names = list(model.state_dict())
    reference, images = copy.deepcopy(model), pixels(8, 3, 32, 32)
    net = Network(model, 4, group=4).double()
    assert type(model.stem.bn) is GroupedBatchNorm
    assert list(net.model.state_dict()) == names
    assert_close(net(images), torch.cat([reference(part) for part in images.split(4)]), rtol=1e-10, atol=1e-10)


def test_a_norm_that_stands_in_two_places_stays_one() -> None:
    shared = nn.BatchNorm2d(3)
    net = Network(nn.Sequential(shared, nn.ReLU(), shared), 3, group=2)
    assert net.model[0] is net.model[2]
    assert len(net.batchnorms) == 1


def test_other_statistics_over_the_batch_are_refused_and_frozen_ones_stay() -> None:
    from timm.layers import EvoNorm2dB0, FrozenBatchNormAct2d

    for norm in (EvoNorm2dB0(4), nn.InstanceNorm2d(4, track_running_stats=True), nn.LazyBatchNorm2d()):
        with pytest.raises(ConfigError, match=r"layer 'norm'.*another normalisation"):
            Network(_with(norm), 4)
    net = Network(_with(FrozenBatchNormAct2d(4)), 4)
    assert not net.batchnorms


def _with(norm: nn.Module) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model.add_module("norm", norm)
    return model


def test_a_group_without_a_variance_is_refused_with_the_remedy() -> None:
    net = Network(nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten()), 4, group=1)
    with pytest.raises(ConfigError, match=r"layer '1' sees one value a channel.*network\.group to 2"):
        net(torch.rand(2, 3, 8, 8))


def test_recomputed_blocks_leave_the_running_statistics_as_they_would_be() -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = Network(Timm("test_resnet").build(4, (3, 32, 32)), 4, group=4).double()
        if checkpointing:
            checkpoint_blocks(net.model, net.held)
        logits = net(pixels(8, 3, 32, 32))
        net.eval()  # the mode of the backward is not that of the forward
        logits.square().sum().backward()
        net.move(net.recorded())
        found.append(torch.cat([value.flatten() for value in net.model.state_dict().values()]))
        found.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    assert_close(found[2], found[0], rtol=1e-12, atol=1e-12)
    assert_close(found[3], found[1], rtol=1e-9, atol=1e-12)
