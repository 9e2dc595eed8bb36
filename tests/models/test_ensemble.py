"""Several networks as one: the weighted mean of what each says, and nothing else."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.apgd import APGD
from robust_train.attacks.attacked import attacked, masks
from robust_train.attacks.fab import FAB
from robust_train.attacks.pgd import PGD
from robust_train.attacks.square import Square
from robust_train.evaluate.accuracy import judged
from robust_train.evaluate.trial import seeded
from robust_train.keyed import Key
from robust_train.keyed.noise import KeyedNoise
from robust_train.models.blueprint import Blueprint
from robust_train.models.ensemble import Ensemble, mixed
from robust_train.models.network import Network
from robust_train.models.small_cnn import SmallCNN, SmallResNet
from robust_train.models.timm import Timm
from robust_train.nouns import Batch
from robust_train.threats.linf import Linf

ONE, OTHER = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([0.0, 1.0, 0.0])
SIZE, CLASSES = 16, 5


class Says(nn.Module):
    """The same logits of every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1) + 0 * images.flatten(1).sum(1, keepdim=True)


class Noisy(nn.Module):
    """A linear classifier of pixels with noise on them, dropout after, and a BatchNorm before."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.norm, self.noise, self.drop = nn.BatchNorm2d(3), KeyedNoise(), nn.Dropout(0.5)
        self.head = nn.Linear(3 * SIZE * SIZE, CLASSES)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=0.1, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        images = self.norm(images)
        drawn = self.noise(images)
        return self.head(self.drop(images if drawn is None else images + drawn).flatten(1))


def pictures(count: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def members() -> list[Network]:
    """A CNN, a residual network and a transformer, each with a normalisation of its own."""
    torch.manual_seed(0)
    plans = [
        Blueprint(SmallCNN(widths=(4, 8), strides=(2, 2)), mean=(0.5,), std=(0.5,)),
        Blueprint(SmallResNet(widths=(4, 8, 8)), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        Blueprint(Timm("test_vit", patch_size=8)),
    ]
    return [plan.build(CLASSES, (3, SIZE, SIZE), "fp32", 4).eval() for plan in plans]


def noisy() -> Ensemble:
    return Ensemble([Network(Noisy(seed), CLASSES, group=4) for seed in (0, 0)]).eval()


@pytest.mark.parametrize(
    ("mean", "logits", "softmax"),
    [
        ("logits", [1.0, 0.5, -0.5], [0.546549, 0.331499, 0.121952]),
        ("probabilities", None, [0.527868, 0.345156, 0.126976]),
    ],
)
def test_the_mean_of_two_answers_is_the_published_example(mean, logits, softmax):
    """v1-ensemble-distillation, How to check (a)."""
    answer = Ensemble([Network(Says(ONE), 3), Network(Says(OTHER), 3)], mean)(torch.zeros(2, 1, 1, 1))
    assert_close(answer.softmax(1), torch.tensor([softmax, softmax]), atol=1e-6, rtol=0)
    if logits is not None:
        assert_close(answer, torch.tensor([logits, logits]))


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_members_that_are_alike_say_what_one_of_them_says(mean):
    network, images = members()[1], pictures()
    answer, own = Ensemble([network] * 3, mean, (0.2, 0.3, 0.5))(images), network(images)
    assert_close(answer.log_softmax(1), own.log_softmax(1))
    if mean == "logits":
        assert_close(answer, own)


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_networks_of_any_architecture_and_normalisation_are_averaged_by_their_weights_in_any_order(mean):
    each, images, weights = members(), pictures(), [0.2, 0.5, 0.3]
    answer = Ensemble(each, mean, weights)(images)
    said = [network(images).double() for network in each]
    if mean == "logits":
        expected = sum(w * one for w, one in zip(weights, said, strict=True))
    else:
        expected = sum(w * one.softmax(1) for w, one in zip(weights, said, strict=True)).log()
    assert_close(answer.double(), expected, atol=1e-5, rtol=1e-5)
    turned = Ensemble([each[i] for i in (2, 0, 1)], mean, [weights[i] for i in (2, 0, 1)])(images)
    assert_close(turned, answer)
    equal = Ensemble(each, mean)(images)
    assert_close(equal, mixed(torch.stack([one.float() for one in said]), torch.ones(3) / 3, mean))


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_a_member_of_weight_zero_is_as_if_it_were_not_there(mean):
    """log 0 is -inf: neither the answer nor its gradient becomes NaN."""
    each, images = members(), pictures().requires_grad_()
    for rest in (0, 1):
        weights = [0.0, 0.0, 0.0]
        weights[rest] = 1.0
        answer = Ensemble(each, mean, weights)(images)
        assert_close(answer.softmax(1), each[rest](images).softmax(1))
        (gradient,) = torch.autograd.grad(answer.log_softmax(1)[:, 0].sum(), images)
        (own,) = torch.autograd.grad(each[rest](images).log_softmax(1)[:, 0].sum(), images)
        assert_close(gradient, own)


def test_the_gradient_of_a_mean_of_logits_is_the_weighted_sum_of_the_members():
    each, images, weights = members(), pictures().requires_grad_(), [0.5, 0.2, 0.3]
    direction = torch.randn(CLASSES, generator=torch.Generator().manual_seed(1))

    def gradient(network) -> Tensor:
        return torch.autograd.grad((network(images) @ direction).sum(), images)[0]

    expected = sum(w * gradient(network) for w, network in zip(weights, each, strict=True))
    assert_close(gradient(Ensemble(each, "logits", weights)), expected, atol=1e-6, rtol=1e-4)


def test_the_gradient_of_a_mean_of_probabilities_weighs_each_member_by_its_part_in_the_answer():
    """d log sum_m w_m p_m = sum_m r_m d log p_m,  r_m = w_m p_m / sum_j w_j p_j."""
    each, images, weights = members(), pictures().requires_grad_(), [0.5, 0.2, 0.3]
    logs = [network(images).log_softmax(1)[:, 1] for network in each]
    gradients = [torch.autograd.grad(log.sum(), images)[0] for log in logs]
    shares = (torch.stack(logs).detach() + torch.tensor(weights).log()[:, None]).softmax(0)
    expected = torch.einsum("mb,mbchw->bchw", shares, torch.stack(gradients))
    answer = Ensemble(each, "probabilities", weights)(images).log_softmax(1)[:, 1]
    assert_close(torch.autograd.grad(answer.sum(), images)[0], expected, atol=1e-6, rtol=1e-4)


def test_noise_and_masks_of_each_member_are_its_own_by_its_number():
    """Two members of the same weights: what differs is what they drew."""
    ensemble, images, key = noisy(), pictures(), Key(3).rows(torch.tensor([5, 1, 7, 2]))
    for named in ("noise", "drops"):
        with torch.no_grad():
            with getattr(ensemble, named)(key):
                one, other = ensemble.answers(images)
            with getattr(ensemble, named)(key):
                again = ensemble.answers(images)
            assert float((one - other).abs().min()) > 0
            assert torch.equal(again, torch.stack([one, other]))
            for index, (member, said) in enumerate(zip(ensemble.each, (one, other), strict=True)):
                with getattr(member, named)(key.at(index)):
                    assert torch.equal(member(images), said)
    assert ensemble.noisy == ["members.0.noise", "members.1.noise"]
    with ensemble.noise(mode="off"), torch.no_grad():
        one, other = ensemble.answers(images)
    assert torch.equal(one, other)


def state(ensemble: Ensemble) -> list:
    """All that a guest could have changed."""
    found: list = [(name, module.training) for name, module in ensemble.named_modules()]
    for member in ensemble.each:
        found.append(vars(member.now).copy())
    return found + [parameter.requires_grad for parameter in ensemble.parameters()]


@pytest.mark.parametrize("training", [False, True])
def test_whoever_holds_it_leaves_it_as_it_was_even_on_an_error(training):
    ensemble, key = noisy().train(training), Key(0).rows(torch.arange(4))
    for member in ensemble.each:
        member.settle(precision="bf16")
    assert {member.precision for member in ensemble.each} == {ensemble.precision} == {"bf16"}
    before, images = state(ensemble), pictures()
    batch = Batch(images, torch.zeros(4, dtype=torch.int64), torch.arange(4), torch.arange(4))
    holds = [
        lambda: ensemble.noise(key, "fixed"),
        lambda: ensemble.drops(key),
        lambda: ensemble.attacked("group", key),
        lambda: attacked(ensemble, "running", key),
        lambda: masks(ensemble, "redrawn", key, 2),
        lambda: judged(ensemble, key),
        lambda: seeded(ensemble, key, batch),
    ]
    for hold in holds:
        for fails in (False, True):
            try:
                with hold():
                    assert state(ensemble) != before
                    if fails:
                        raise KeyError("inside")
            except KeyError:
                assert fails
            assert state(ensemble) == before


def test_an_evaluator_sees_every_member_in_eval_mode_and_float32():
    ensemble = noisy().train()
    with ensemble.mode(precision="bf16"), judged(ensemble):
        assert not any(module.training for module in ensemble.modules())
        assert [member.precision for member in ensemble.each] == ["fp32", "fp32"]
        assert all(member.now.norm == "running" and not member.now.record for member in ensemble.each)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(Linf(0.1), 3, 0.05, eot=2),
        APGD(Linf(0.1), 5),
        FAB(Linf(0.1), 3, targets=2),
        Square(Linf(0.1), 20),
    ],
    ids=lambda attack: attack.use,
)
def test_attacks_on_it_stay_in_their_ball_and_are_made_twice_the_same(attack):
    ensemble, images, key = noisy(), pictures(6), Key(1).rows(torch.arange(6))
    with torch.no_grad(), ensemble.noise(key):
        targets = ensemble(images).argmax(1)
    before = state(ensemble)
    points = attack(ensemble, images, targets, key)
    assert state(ensemble) == before
    assert float((points - images).abs().max()) <= 0.1 + 1e-6
    assert torch.equal(attack(ensemble, images, targets, key), points)
    assert not torch.equal(points, images)


def test_pgd_lowers_the_margin_of_the_mean():
    ensemble, images = Ensemble(members()[:2]).eval(), pictures(6)
    with torch.no_grad():
        targets = ensemble(images).argmax(1)
        points = PGD(Linf(0.1), 10, 0.02)(ensemble, images, targets, Key(0))
        lost = ensemble(images).log_softmax(1) - ensemble(points).log_softmax(1)
    assert bool((lost[torch.arange(6), targets] > 0).all())


@pytest.mark.parametrize("weights", [(0.5,), (0.5, 0.6), (1.5, -0.5)])
def test_weights_that_are_no_shares_are_refused(weights):
    with pytest.raises(ValueError, match="must be 2 shares, none below 0, that add up to 1"):
        Ensemble([Network(Says(ONE), 3), Network(Says(OTHER), 3)], "logits", weights)


def test_members_of_other_classes_and_no_members_are_refused():
    with pytest.raises(ValueError, match=r"members answer with \[3, 4\] classes"):
        Ensemble([Network(Says(ONE), 3), Network(Says(torch.zeros(4)), 4)])
    with pytest.raises(ValueError, match="no classes"):
        Ensemble([])


def test_an_attack_through_batch_statistics_moves_no_running_statistic():
    ensemble = noisy()
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    PGD(Linf(0.1), 1, 0.1, norm="group")(ensemble, pictures(), torch.zeros(4, dtype=torch.int64), Key(0))
    assert all(torch.equal(value, before[name]) for name, value in ensemble.state_dict().items())


def test_fixed_noise_is_one_draw_a_member_and_no_two_share_it():
    ensemble, images = noisy(), pictures()
    first, again = ensemble.each[0], deepcopy(ensemble.each[0])
    twins = Ensemble([first, again]).eval()
    with torch.no_grad(), twins.noise(mode="off"):
        one, other = twins.answers(images)
        assert torch.equal(one, other), "alike but for their noise"
    with torch.no_grad(), twins.noise(mode="fixed"):
        one, other = twins.answers(images)
        assert not torch.equal(one, other)
        assert torch.equal(twins.answers(images)[0], one)


def test_building_an_ensemble_changes_nothing_of_its_members():
    first, images = noisy().each[0], pictures()
    with torch.no_grad(), first.noise(mode="fixed"):
        before = first(images)
        Ensemble([deepcopy(first), first])
        assert torch.equal(first(images), before)
