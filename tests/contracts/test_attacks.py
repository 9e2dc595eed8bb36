"""What every registered attack keeps to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from robust_train.attacks.apgd import APGD
from robust_train.attacks.autoattack import AutoAttack
from robust_train.attacks.carlini import CarliniWagner, ElasticNet
from robust_train.attacks.combine import Restarts, WorstOf
from robust_train.attacks.cr import CR
from robust_train.attacks.deepfool import DeepFool
from robust_train.attacks.fab import FAB
from robust_train.attacks.fgsm import FGSM, FGSMRS, NFGSM
from robust_train.attacks.hopskipjump import HopSkipJump
from robust_train.attacks.jsma import JSMA
from robust_train.attacks.lbfgs import LBFGS
from robust_train.attacks.momentum import BIM, MIFGSM
from robust_train.attacks.msd import MSD
from robust_train.attacks.onepixel import OnePixel
from robust_train.attacks.pgd import PGD
from robust_train.attacks.queries import NES, SPSA
from robust_train.attacks.square import Square
from robust_train.attacks.universal import UAP
from robust_train.keyed import Key
from robust_train.models.network import Network
from robust_train.models.v1 import V1, V1Block
from robust_train.nouns import Attack, Raising, Threat
from robust_train.read.registry import attacks
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.threats.pixels import L0
from robust_train.threats.pyramid import Pyramid
from tests.flops import counting

BALLS, SIZES = (Linf(0.1), L2(0.5), L1(1.5, top=4)), (0.05, 0.3, 1.0)
PYRAMID = Pyramid(0.02, (4, 2, 1), (4.0, 2.0, 1.0))
EXAMPLES: dict[str, list[Attack]] = {
    "pgd": [
        *(PGD(ball, 2, size) for ball, size in zip(BALLS, SIZES, strict=True)),
        PGD(PYRAMID, 2, 0.01, "zero", targets="random", drops="frozen", norm="group"),
        PGD(PYRAMID, 2, 0.01, "noise"),
        PGD(Linf(0.1), 2, 0.05, "noise", "best", eot=2, drops="redrawn"),
        PGD(Linf(0.1), 0, 0.05, keep="best"),
    ],
    "fgsm": [FGSM(Linf(0.1)), FGSM(L2(0.5), norm="group")],
    "fgsm-rs": [FGSMRS(Linf(0.1)), FGSMRS(L1(1.5), drops="redrawn")],
    "n-fgsm": [NFGSM(Linf(0.05)), NFGSM(Linf(0.05), 1.0, norm="group", drops="frozen")],
    "restarts": [Restarts(PGD(Linf(0.1), 1, 0.1), 3), Restarts(PGD(PYRAMID, 1, 0.02), 1)],
    "worst-of": [WorstOf((PGD(Linf(0.1), 1, 0.1), FGSM(L2(0.5)))), WorstOf((FGSM(L1(1.5)),), by="loss")],
    "cr": [CR(Linf(0.1), rounds=2, steps=40), CR(Linf(0.02), classes=1, rounds=2, steps=30)],
    "deepfool": [DeepFool(L2(0.5), 2), DeepFool(Linf(0.1), 2, candidates=2)],
    "carlini-wagner": [CarliniWagner(L2(0.5), 3, 2, first=1.0), CarliniWagner(L2(0.5), 3, 2, targeted=True)],
    "ead": [ElasticNet(L1(1.5), 3, 2, first=1.0), ElasticNet(L2(0.5), 3, 2, abort=False, rule="L1")],
    "lbfgs": [LBFGS(L2(0.5), 3, 1), LBFGS(L2(0.5), 3, 0, targets=2)],
    "apgd": [
        *(APGD(ball, 3, keep="best") for ball in BALLS),
        APGD(Linf(0.1), 3, "dlr", keep="best", start="zero", eot=2, norm="group", drops="redrawn"),
        *(APGD(ball, 4, restarts=2, compact=2) for ball in BALLS),
    ],
    "autoattack": [AutoAttack(Linf(0.1), "custom", (FGSM(Linf(0.1)), PGD(Linf(0.1), 2, 0.05)))],
    "fab": [FAB(Linf(0.1), 3, 2, compact=2), FAB(L2(0.3), 3, 0, 2), FAB(L1(1.5), 3, 2)],
    "bim": [BIM(Linf(0.1), 2, 0.05), BIM(L2(0.5), 2, 0.3, norm="group", drops="frozen")],
    "mi-fgsm": [MIFGSM(Linf(0.1), 3, 0.05), MIFGSM(PYRAMID, 2, 0.01, 0.5, True, 2, "group", "redrawn")],
    "jsma": [JSMA(L0(6), 3), JSMA(L0(5), 4, -0.3, 1, "random")],
    "uap": [UAP(Linf(0.1), passes=1, steps=2, group=4), UAP(L2(0.5), passes=2, steps=2, fooling=1.0, group=2)],
    "square": [Square(ball, 25, compact=6) for ball in BALLS] + [Square(Linf(0.1), 3, drops="redrawn")],
    "nes": [NES(ball, 3, size, samples=4, compact=1) for ball, size in zip(BALLS, SIZES, strict=True)],
    "spsa": [SPSA(Linf(0.1), 3, samples=4, compact=2, drops="frozen"), SPSA(L2(0.5), 2, samples=4)],
    "one-pixel": [OnePixel(L0(1), 4, 3), OnePixel(L0(3), 5, 2, drops="redrawn")],
    "hopskipjump": [HopSkipJump(L2(0.5), 2, 10), HopSkipJump(Linf(0.1), 2, 10, tries=5)],
    "msd": [MSD(BALLS, 2, SIZES), MSD(BALLS[:1], 2, SIZES[:1], norm="group", drops="redrawn")],
}
NOT_BY_ROW = {"hopskipjump"}  # its noise goes by the images still at work
SET_ASIDE = {
    "apgd",
    "autoattack",
    "carlini-wagner",
    "cr",
    "deepfool",
    "ead",
    "fab",
    "hopskipjump",
    "jsma",
    "lbfgs",
    "nes",
    "one-pixel",
    "spsa",
    "square",
    "uap",
}  # these spend nothing more on images that have fallen
ATTACKS = [attack for name in attacks for attack in EXAMPLES.get(name, [])]
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


def allowed(attack: Attack) -> tuple[Threat, ...]:
    """The threat models one of which each of the attack's images lies in."""
    if isinstance(attack, WorstOf):
        return tuple(threat for inner in attack.attacks for threat in allowed(inner))
    if isinstance(attack, MSD):
        return attack.threats
    return (attack.reach(),) if isinstance(attack, NFGSM) else (attack.threat,)


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


def test_every_attack_is_tried_here():
    assert set(EXAMPLES) == set(attacks), "give a new attack an example above"


@every
def test_no_attack_leaves_its_threat_model(attack):
    network, (images, targets) = convolutional(), some_images()
    adversarial = attack(network, images, targets, KEY)
    distances = [threat.distance(images, adversarial) - threat.eps for threat in allowed(attack)]
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
def test_the_key_alone_decides_on_a_network_with_noise_of_its_own(attack):
    """Whatever was drawn before; halves of a batch are the batch there too, but for a few attacks (NOT_BY_ROW)."""
    network, (images, targets) = noisy().eval(), some_images()
    first = attack(network, images, targets, KEY)
    torch.manual_seed(99)
    network(images)  # a forward without a key: the noise goes on
    again = attack(network, images, targets, KEY)
    assert torch.equal(again, first)
    assert (network.now.noisy, network.now.noise.key.seed) == ("drawn", 0)
    if attack.use not in NOT_BY_ROW:
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
    assert 0 < spent <= attack.cost() if attack.use in SET_ASIDE else spent == attack.cost()


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
