"""The mode of a forward: one value, entered in one way, captured whole by recomputation, seen anew by a compiler."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key
from robust_train.keyed.mode import Draw, Mode
from robust_train.keyed.noise import KeyedNoise
from robust_train.models.checkpointing import checkpoint_blocks
from robust_train.models.network import Network
from robust_train.read.errors import ConfigError
from robust_train.threats.linf import Linf

KEY = Key(3).of("mode").rows(torch.tensor([4, 1, 7, 2]))
PIXELS = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A convolution, BatchNorm, noise whose size depends on what it meets, dropout; the noise enters the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.noise, self.drop = KeyedNoise(), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        drawn = self.noise(x)
        return self.drop(x if drawn is None else x * (1 + drawn)).square()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def network_of() -> Network:
    torch.manual_seed(0)
    return Network(Model(), 5, group=2).double()


def pair() -> tuple[Network, Network]:
    """One network, and the same that recomputes its blocks."""
    plain = network_of()
    recomputing = deepcopy(plain)
    checkpoint_blocks(recomputing.model, recomputing.held)
    return plain, recomputing


MODES = {
    "drops": lambda net: net.drops(KEY),
    "noise": lambda net: net.mode(masks="off", noise=KEY),
    "fixed": lambda net: net.mode(masks=KEY, noise=KEY, noisy="fixed"),
    "off": lambda net: net.mode(masks=KEY, noisy="off"),
    "running": lambda net: net.mode(norm="running", masks="off", noise=KEY),
    "by layer": lambda net: net.mode(norm={"blocks.0": "running"}, masks="off", noise=KEY),
    "rows": lambda net: net.mode(masks=Key(1), noise=Key(1), rows=torch.tensor([5, 0, 3, 9])),
    "bf16": lambda net: net.mode(precision="bf16", masks=KEY, matched=KEY),
}


@pytest.mark.parametrize("mode", MODES)
def test_recomputed_blocks_are_recomputed_under_the_mode_of_their_forward(mode):
    """Three forwards before the backward, which comes after the mode has ended and under another: fault 2 of noise."""
    found = []
    for net in pair():
        with MODES[mode](net):
            total = sum(net(PIXELS.flip(0) if number else PIXELS).square().sum() for number in range(3))
        with net.mode(training=False, norm="running", masks=KEY.at(9), noise=KEY.at(9), noisy="drawn"):
            net(PIXELS)
            total.backward()
        found.append([parameter.grad for parameter in net.parameters()] + [net.recorded()])
    for plain, recomputed in zip(*found, strict=True):
        assert_close(recomputed, plain, rtol=1e-9, atol=1e-9 * max(1.0, float(plain.abs().max())))


def test_an_edit_inside_a_recomputed_block_is_part_of_its_forward():
    found = []
    for net in pair():
        with net.drops(KEY):
            images = PIXELS.clone().requires_grad_()
            loss = net(images, swaps={"blocks.1.conv": lambda hidden: 3 * hidden.flip(0)}).square().sum()
        found.append(torch.autograd.grad(loss, [images, *net.parameters()]))
        assert not any(module._forward_hooks for module in net.modules())
    for plain, recomputed in zip(*found, strict=True):
        assert_close(recomputed, plain)


def test_what_recomputation_captures_is_the_whole_value():
    """Whatever fields a mode has, now and later: they are the same objects; statistics alone count once."""
    _, net = pair()
    seen: list[Mode] = []
    net.model.blocks[0].conv.register_forward_pre_hook(lambda *call: seen.append(net.now))
    with net.drops(KEY):
        loss = net(PIXELS).sum()
    loss.backward()
    forward, again = seen
    assert (forward.record, again.record) == (True, False)
    for field in fields(Mode):
        assert field.name == "record" or getattr(forward, field.name) is getattr(again, field.name)


def test_a_mode_ends_with_its_block_also_after_an_error():
    net = network_of()
    before, flags = net.now, [module.training for module in net.modules()]
    for enter in (*MODES.values(), lambda net: net.judged(KEY), lambda net: net.attacked("running", KEY)):
        with pytest.raises(KeyError), enter(net), net.mode(training=False, norm="running"):
            raise KeyError
        assert net.now is before
        assert [module.training for module in net.modules()] == flags


def test_statistics_may_differ_by_layer_and_the_longest_name_counts():
    """Layers on running statistics see each image alone and record nothing."""
    net = network_of()
    first, second = net.batchnorms
    with net.mode(norm={"blocks": "running", "blocks.1": "group"}, masks="off", noisy="off"):
        assert (net.now.norm_of("blocks.0.norm"), net.now.norm_of("blocks.1.norm")) == ("running", "group")
        assert (net.now.norm_of("blocks"), net.now.norm_of("blocks2"), net.now.norm_of("head")) == (
            "running",
            "group",
            "group",
        )
        with net.mode(norm={"blocks.1": "running"}):
            assert torch.equal(net(PIXELS)[:1], net(PIXELS[:1]))
        net(PIXELS)
    assert not first.recorded.any()
    assert second.recorded[-1] == 2


def test_the_batchnorm_of_frozen_layers_never_moves():
    """In train mode, in group mode, told so or because all its parameters were frozen when it was made."""
    net = network_of()
    net.batchnorms[0].frozen = True
    given = Model()
    given.blocks[0].norm.requires_grad_(False)
    for one in (net, Network(given, 5, group=2).double()):
        before = deepcopy(one.state_dict())
        for use in ("group", {"blocks.0": "group"}):
            with one.train().mode(norm=use, record=True, masks="off"):
                one(PIXELS)
        one.move(one.recorded())
        moved = {name for name, value in one.state_dict().items() if not torch.equal(value, before[name])}
        assert moved == {
            f"model.blocks.1.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
        }
    with (
        pytest.raises(ConfigError, match=r"'block\.1' is no layer of Model; did you mean"),
        net.mode(norm={"block.1": "group"}),
    ):
        pass


def test_rows_name_some_of_the_images_of_keys_and_share_their_forwards():
    """Images set aside change no other's noise; a key without rows counts them."""
    net, some = network_of().eval(), torch.tensor([2, 0])
    for key in (KEY, Key(5)):
        with torch.no_grad(), net.noise(key):
            net(PIXELS)
            whole = net(PIXELS)
        with torch.no_grad(), net.noise(key):
            net(PIXELS)
            with net.mode(rows=some):
                assert_close(net(PIXELS[some]), whole[some])
            assert net.now.noise.forwards == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it, on its own inputs
def test_a_compiled_attack_and_its_updates_have_as_many_graphs_as_modes():
    """Key words and rows are inputs of a graph: neither steps nor keys nor updates make another."""
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph

    plain, images = network_of(), PIXELS
    net = deepcopy(plain)
    torch._dynamo.reset()
    net.model.compile(backend=count, fullgraph=True)
    after: list[int] = []
    for update in range(4):
        key = Key(11).at(update).rows(torch.arange(4) + 4 * update)
        attack = PGD(Linf(0.1), 3 + update, 0.02, norm="group", drops="redrawn")
        found = []
        for one in (plain, net):
            points = attack(one, images, torch.arange(4), key.of("attack"))
            with one.drops(key.of("drops")):
                loss = one(points).square().sum()
            found.append((points, *torch.autograd.grad(loss, list(one.parameters()))))
        for mine, theirs in zip(*found, strict=True):
            assert_close(theirs, mine)
        after.append(len(graphs))
    torch._dynamo.reset()
    assert after == [after[0]] * 4
    assert after[0] == 2  # the attack's and the update's


@pytest.mark.slow
def test_a_draw_is_an_input_of_a_graph_that_is_replayed():
    """What a captured attack does: the tensors of a Draw stay, and what is in them changes."""
    counter = torch._dynamo.testing.CompileCounter()
    plain = network_of()
    net, drawn = deepcopy(plain), Draw.of(KEY)
    torch._dynamo.reset()
    net.model.compile(backend=counter, fullgraph=True)
    with torch.no_grad(), net.mode(masks=drawn, matched=drawn):
        for number in range(3):
            key = KEY.at(number)
            drawn.words.copy_(torch.tensor(key.words))
            with plain.mode(masks=Draw.of(key), matched=Draw.of(key)):
                assert_close(net(PIXELS), plain(PIXELS))
    torch._dynamo.reset()
    assert counter.frame_count == 1


def test_train_and_eval_within_a_mode_leave_what_it_says_and_hold_afterwards():
    network = network_of().train()
    with network.mode(norm="running"):
        network.train()
        assert network.now.norm_of("norm") == "running"
    assert network.now.norm_of("norm") == "group"
    with network.mode(norm="group"), network.drops(None):
        network.eval()
        assert network.now.norm_of("norm") == "group"
        assert not network.now.record
    assert network.now.norm_of("norm") == "running"
    assert not network.now.record
