"""What every registered attack keeps to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from robust_train.attacks import chance
from robust_train.keyed import Key
from robust_train.models.network import Network
from robust_train.models.v1 import V1, V1Block
from robust_train.nouns import Attack, Raising, Threat
from robust_train.read.registry import attacks
from tests.flops import counting
from tests.registered import examples

ATTACKS = list(examples(attacks).values())
every = pytest.mark.parametrize("attack", ATTACKS, ids=repr)
KEY = Key(1).rows(torch.arange(8))


def network_of(*layers: nn.Module) -> Network:
    torch.manual_seed(0)
    return Network(nn.Sequential(*layers), 3, group=4).double()


def convolutional() -> Network:
    """BatchNorm whose running statistics are not those of its groups, and dropout."""
    network = network_of(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(256, 3)
    )
    with torch.no_grad():
        network.model[1].running_mean.normal_()
    return network


def noisy() -> Network:
    """A V1 block with neuronal noise, and BatchNorm and dropout behind it."""
    block = V1Block(V1(visual_degrees=0.5, ksize=3, stride=2, simple=3, complex=3, sf_max=11.3), 1, 8)
    return network_of(block, nn.BatchNorm2d(6), nn.Dropout(0.3), nn.Flatten(), nn.Linear(96, 3))


def some_images() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return (torch.rand(8, 1, 8, 8).double() * 1.4 - 0.2).clamp(0, 1), torch.arange(8) % 3


def without_radius(thing):
    """The attack with every eps in it 0."""
    changes = {}
    for name in thing.__dataclass_fields__:
        value = getattr(thing, name)
        if isinstance(value, (Threat, Attack)):
            changes[name] = without_radius(value)
        elif name == "eps":
            changes[name] = 0.0
        elif isinstance(value, tuple) and isinstance(value[0], (Threat, Attack)):
            changes[name] = tuple(without_radius(entry) for entry in value)
    return replace(thing, **changes)


def everything(network: Network) -> dict[str, object]:
    """All of a network that an attack might disturb."""
    return {
        "state": {name: value.clone() for name, value in network.named_buffers()} | dict(network.state_dict()),
        "grad": [parameter.grad for parameter in network.parameters()],
        "trains": [parameter.requires_grad for parameter in network.parameters()],
        "modes": [module.training for module in network.modules()],
        "mode": network.now,
        "recorded": network.recorded(),
    }


@every
def test_no_attack_leaves_its_threat_model(attack):
    network, (images, targets) = convolutional(), some_images()
    adversarial = attack(network, images, targets, KEY)
    distances = [threat.distance(images, adversarial) - threat.eps for threat in attack.reach()]
    assert torch.stack(distances).amin(0).max() <= 1e-9
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert adversarial.dtype == images.dtype
    assert not adversarial.requires_grad


@every
@pytest.mark.parametrize("training", [True, False])
def test_an_attack_leaves_the_network_as_it_was(attack, training):
    network, (images, targets) = convolutional().train(training), some_images()
    network.model[0].weight.requires_grad_(False)  # whoever froze it wants it frozen
    before = everything(network)
    with torch.no_grad():  # an evaluator's; the attack takes gradients all the same
        attack(network, images, targets, KEY)
        assert not torch.is_grad_enabled()
    after = everything(network)
    for name, value in before.pop("state").items():
        assert torch.equal(after["state"][name], value)
    assert torch.equal(before.pop("recorded"), after["recorded"])
    assert all(after[name] == value for name, value in before.items())


@every
def test_an_attack_restores_the_network_when_it_fails(attack):
    network, (images, targets) = convolutional(), some_images()

    def failing(logits, targets):
        raise RuntimeError("on purpose")

    before = everything(network)
    if attack.cost():
        with pytest.raises((RuntimeError, ValueError), match=r"on purpose|raises no goal"):
            attack(network, images, targets, KEY, Raising(failing))
    after = everything(network)
    assert all(after[name] == before[name] for name in ("grad", "trains", "modes", "mode"))


@every
def test_a_radius_of_zero_gives_the_image(attack):
    network, (images, targets) = convolutional(), some_images()
    assert torch.equal(without_radius(attack)(network, images, targets, KEY), images)


@every
def test_halves_of_a_batch_are_the_batch(attack):
    """Groups of BatchNorm are four images here: a half is one."""
    network, (images, targets) = convolutional(), some_images()
    whole = attack(network, images, targets, KEY)
    halves = [attack(network, images[rows], targets[rows], KEY[rows]) for rows in (slice(0, 4), slice(4, 8))]
    assert_close(torch.cat(halves), whole, rtol=0, atol=1e-12)


@every
def test_the_key_alone_decides(attack):
    network, (images, targets) = convolutional(), some_images()
    first = attack(network, images, targets, KEY)
    torch.manual_seed(99)
    assert torch.equal(attack(network, images, targets, KEY), first)


@every
def test_the_key_alone_decides_on_a_network_with_noise_of_its_own(attack, monkeypatch):
    """Whatever was drawn before; halves of a batch are the batch there too."""
    monkeypatch.setattr(chance, "PASSES", 4)  # 100 of them show no more of it, and take a minute
    network, (images, targets) = noisy().eval(), some_images()
    first = attack(network, images, targets, KEY)
    torch.manual_seed(99)
    network(images)  # a forward without a key: the noise goes on
    again = attack(network, images, targets, KEY)
    assert torch.equal(again, first)
    assert (network.now.noisy, network.now.noise.key.seed) == ("drawn", 0)
    halves = [attack(network, images[rows], targets[rows], KEY[rows]) for rows in (slice(0, 4), slice(4, 8))]
    assert_close(torch.cat(halves), first, rtol=0, atol=1e-12)


@every
def test_an_attack_costs_what_it_says_and_no_weight_gradient(attack):
    """Matrix products alone: a forward is one unit, the gradient of the images one more.

    Where images that have fallen are set aside, it is the most that it costs.
    """
    network = network_of(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 3))
    images, targets = some_images()
    with counting() as forward, torch.no_grad():
        network.eval()(images)
    network.train()
    with counting() as flops:
        attack(network, images, targets, KEY)
    spent = sum(flops) / sum(forward)
    assert 0 < spent <= attack.cost() if attack.sets_aside else spent == attack.cost()


@every
def test_any_module_or_function_from_images_to_logits_can_be_attacked(attack):
    images, targets = some_images()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)).double()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for network in (module, lambda images: images.flatten(1)[:, :3]):
        adversarial = attack(network, images, targets, KEY)
        assert adversarial.shape == images.shape
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@every
def test_attacks_take_distributions_for_targets(attack):
    network, (images, targets) = convolutional(), some_images()
    hard = attack(network, images, targets, KEY)
    soft = attack(network, images, nn.functional.one_hot(targets, 3).double(), KEY)
    assert_close(soft, hard, rtol=0, atol=1e-6)


@pytest.fixture
def lonely_group(tmp_path):
    """A process group of one."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_an_attack_through_a_distributed_wrapper_is_refused(lonely_group):
    images, targets = some_images()
    wrapped = DistributedDataParallel(convolutional())
    for attack in ATTACKS:
        if attack.cost():
            with pytest.raises(ValueError, match=r"attack its \.module"):
                attack(wrapped, images, targets, KEY)
