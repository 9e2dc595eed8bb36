"""The training losses in closed form. [docs/methods/]"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from robust_train.attacks.combine import WorstOf
from robust_train.attacks.msd import MSD
from robust_train.attacks.pgd import PGD
from robust_train.data.mix import Mix
from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy, kl
from robust_train.models.network import Network
from robust_train.nouns import Attack, Batch, Raising, State
from robust_train.objectives.generalized import RIGHT, SEEN, Generalized
from robust_train.objectives.interpolated import Interpolated
from robust_train.objectives.madry import Madry
from robust_train.objectives.plain import Plain
from robust_train.objectives.pyramid import PyramidTraining
from robust_train.objectives.trades import Trades
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.threats.pyramid import Pyramid
from robust_train.threats.weights import Weights


@dataclass(frozen=True)
class To(Attack):
    """Gives known images, of no gradient at all."""

    pixels: tuple[tuple[float, ...], ...]

    def __call__(self, network, images, targets, key, goal=None):
        return images.new_tensor(self.pixels).view_as(images)

    def cost(self) -> float:
        return 0


def identity(classes: int) -> Network:
    """Logits are the pixels."""
    return Network(nn.Flatten(), classes)


def curved(drop: float = 0.0, classes: int = 3) -> Network:
    torch.manual_seed(0)
    first, second = nn.Linear(16, 12), nn.Linear(12, classes)
    model = nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Dropout(drop), second)
    return Network(model, classes, stages=("1", "2")).double()


def batch_of(images: torch.Tensor, targets: torch.Tensor) -> tuple[Batch, Key]:
    position = torch.arange(len(images))
    return Batch(images, targets, position, position), Key(11).rows(position)


def some_batch(size: int = 8) -> tuple[Batch, Key]:
    torch.manual_seed(3)
    return batch_of(torch.rand(size, 1, 4, 4).double(), torch.arange(size) % 3)


@pytest.mark.parametrize(
    ("clean", "attacked", "ce", "divergence", "total"),
    [
        ((2.0, 0.0), (0.0, 1.0), 0.126928, 0.828725, 5.099277),
        ((2.0, 1.0, 0.0), (0.0, 1.0, 2.0), 0.407606, 1.150421, 7.310131),
    ],
)
def test_trades_is_the_sum_of_the_paper(clean, attacked, ce, divergence, total):
    """CE(f(x), y) + 6 KL(p || q) of the card's logits."""
    batch, key = batch_of(torch.tensor([[[clean]]]).double(), torch.tensor([0]))
    loss = Trades(To((attacked,)), 6.0)(identity(len(clean)), batch, key, State())
    assert_close(loss.metrics["loss/clean"], torch.tensor(ce).double(), rtol=0, atol=1e-6)
    assert_close(loss.metrics["loss/kl"], torch.tensor(divergence).double(), rtol=0, atol=1e-6)
    assert_close(loss.total, torch.tensor(total).double(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("said", [float("nan"), float("inf"), -float("inf")])
def test_an_answer_that_is_no_number_is_wrong(said):
    """argmax takes NaN for the largest: of class 0 it would be right."""
    logits = torch.tensor([[said, 0.0, 1.0], [said, 0.0, 1.0], [2.0, 0.0, 1.0]])
    assert correct(logits, torch.tensor([0, 2, 0])).tolist() == [0, 0, 1]


def test_a_divergence_is_not_raised_towards_a_class():
    with pytest.raises(ValueError, match=r"attack\.targets: random"):
        Trades(PGD(Linf(0.1), 2, 0.05, "noise", targets="random"), 6.0)


def test_the_gradient_of_trades_flows_into_both_answers():
    """Holding p would be another, weaker method: the gradient of the formula is that of finite differences."""
    network, (batch, key) = curved(), some_batch()
    moved = To(tuple(map(tuple, (batch.images + 0.1 * torch.randn_like(batch.images)).clamp(0, 1).flatten(1).tolist())))
    weight = network.model[1].weight
    slope = torch.autograd.grad(Trades(moved, 6.0)(network, batch, key, State()).total, weight)[0][0, 0]
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            weight[0, 0] += step
            values.append(Trades(moved, 6.0)(network, batch, key, State()).total)
            weight[0, 0] -= step
    assert_close(slope, (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-9)


def test_trades_attacks_the_divergence_from_the_answer_in_the_attack():
    network, (batch, key) = curved(), some_batch()
    pgd = PGD(Linf(0.1), 4, 0.03, "noise")
    with torch.no_grad():
        reference = network(batch.images)
    wanted = pgd(network, batch.images, batch.targets, key.of("attack"), Raising(kl, reference))
    loss = Trades(pgd, 2.0)(network, batch, key, State())
    assert_close(loss.metrics["loss/kl"], kl(network(wanted), network(batch.images)).mean())


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_terms_of_no_weight_leave_clean_training(drop):
    """beta = 0, and the pyramid's weight 0: value and gradient of plain training under the same masks."""
    network, (batch, key) = curved(drop), some_batch()
    pgd = PGD(Linf(0.1), 2, 0.05)
    for objective, drops in (
        (Trades(pgd, 0.0), key.of("drops")),
        (PyramidTraining(pgd, weight=0.0), key.of("attack").of("drops")),
    ):
        loss = objective(network, batch, key, State()).total
        with network.drops(drops):
            plain = cross_entropy(network(batch.images), batch.targets).mean()
        gradients = [torch.autograd.grad(value, network.model[1].weight)[0] for value in (loss, plain)]
        assert_close(loss, plain)
        assert_close(*gradients)


def test_without_a_move_the_divergence_is_zero_under_the_same_masks():
    network, (batch, key) = curved(0.5), some_batch()
    loss = Trades(PGD(Linf(0.0), 2, 0.1, "noise"), 6.0)(network, batch, key, State())
    assert_close(loss.metrics["loss/kl"], torch.tensor(0.0).double())


def test_a_radius_of_zero_makes_adversarial_training_plain_training():
    network, (batch, key) = curved(0.5), some_batch()
    madry = Madry(PGD(Linf(0.0), 3, 0.1), 0.1)(network, batch, key, State()).total
    assert torch.equal(madry, Plain(0.1)(network, batch, key, State()).total)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_pyramid_training_adds_the_losses_of_matched_masks(name):
    """Nothing moved: twice the clean loss; sigmoid: the sum over classes of yes-or-no losses."""
    network, (batch, key) = curved(0.5), some_batch()
    still = PGD(Pyramid(0.0, (2, 1), (10.0, 1.0)), 1, 0.0, "zero", targets="random", drops="frozen")
    loss = PyramidTraining(still, name, weight=3.0)(network, batch, key, State())
    with network.drops(key.of("attack").of("drops")):
        logits = network(batch.images)
    if name == "softmax":
        wanted = F.cross_entropy(logits, batch.targets)
    else:
        chance, hot = logits.sigmoid(), F.one_hot(batch.targets, 3)
        wanted = -(hot * chance.log() + (1 - hot) * (1 - chance).log()).sum(1).mean()
    assert_close(loss.total, 4 * wanted)


def test_a_frozen_attack_meets_the_masks_of_the_training_forwards():
    network, (batch, key) = curved(0.5), some_batch()
    seen = []
    network.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].detach(), output.detach())))
    pgd = PGD(Linf(0.1), 1, 0.0, "zero", targets="random", drops="frozen")
    PyramidTraining(pgd)(network, batch, key, State())
    answers = [output for images, output in seen if torch.equal(images, batch.images)]
    assert len(answers) == 3  # attack, clean, attacked (which did not move)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[1], answers[2])


def test_mixed_targets_give_the_mixed_loss():
    """CE is linear in its target: 0.3 * 0.407606 + 0.7 * 1.407606 = 1.107606."""
    logits = torch.tensor([[2.0, 1.0, 0.0]]).double()
    assert_close(cross_entropy(logits, torch.tensor([[0.3, 0.7, 0.0]]).double())[0].item(), 1.107606, rtol=0, atol=1e-6)


def test_without_mixing_interpolated_training_is_half_clean_and_half_attacked():
    network, (batch, key) = curved(), some_batch()
    pgd = PGD(Linf(0.1), 3, 0.05)
    loss = Interpolated(pgd, alpha=0.0, group=4)(network, batch, key, State()).total
    adversarial = pgd(network, batch.images, batch.targets, key.of("attack"))
    clean, robust = (cross_entropy(network(images), batch.targets).mean() for images in (batch.images, adversarial))
    assert_close(loss, (clean + robust) / 2)


@pytest.mark.parametrize(("layers", "layer"), [("input", ""), (("1",), "1"), (("input",), "")])
def test_interpolated_training_mixes_each_half_with_itself(layers, layer):
    """The definition, with each half's own lam and partners; the attack has seen unmixed images."""
    network, (batch, key) = curved(), some_batch()
    pgd = PGD(Linf(0.1), 3, 0.05)
    loss = Interpolated(pgd, 1.0, 4, layers)(network, batch, key, State())
    images = {"clean": batch.images, "robust": pgd(network, batch.images, batch.targets, key.of("attack"))}
    lams = []
    for half, x in images.items():
        mix = Mix.draw(key.of(half).of("mix"), 1.0, 4, 8)
        lams.append(mix.lam)
        flatten, rest = (network.model[:2], network.model[2:]) if layer else (network.model[:1], network.model[1:])
        hidden = flatten(x)
        lam = mix.lam[:, None]
        logits = rest(lam * hidden + (1 - lam) * hidden[mix.partner])
        each = mix.lam * F.cross_entropy(logits, batch.targets, reduction="none")
        each = each + (1 - mix.lam) * F.cross_entropy(logits, batch.targets[mix.partner], reduction="none")
        assert_close(loss.metrics[f"loss/{half}"], each.mean())
    assert not torch.equal(*lams)
    assert_close(loss.total, sum(loss.metrics.values()) / 2)


def test_the_mixed_layer_is_drawn_evenly_and_alike_for_all_images():
    network, (_, key) = curved(), some_batch()
    objective = Interpolated(To(()), 1.0, 4, "stages")
    drawn = [objective._layer(network, key.at(update).of("clean")) for update in range(300)]
    for layer in ("", "1", "2"):
        assert abs(drawn.count(layer) / 300 - 1 / 3) < 4 * (2 / 9 / 300) ** 0.5
    alone = [objective._layer(network, key[slice(4, 8)].at(update).of("clean")) for update in range(300)]
    assert alone == drawn


LOSSES = torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.0, 5.0]]).double()  # a row an image, a column an attack


def logits_of(loss: float) -> tuple[float, float]:
    """Two logits whose cross-entropy for class 0 is `loss`: log(1 + e^d) = loss."""
    return 0.0, float(torch.tensor(loss).double().expm1().log()) if loss else -60.0


@pytest.mark.parametrize(("join", "total"), [("average", 2.5), ("maximum", 4.5)])
def test_losses_are_joined_as_their_names_say(join, total):
    attacks = tuple(To(tuple(logits_of(float(loss)) for loss in column)) for column in LOSSES.T)
    batch, key = batch_of(torch.zeros(2, 1, 1, 2).double(), torch.zeros(2).long())
    loss = Generalized(attacks, join)(identity(2), batch, key, State())
    assert_close(loss.total, torch.tensor(total).double())


BALLS = tuple(
    PGD(ball, 3, size, "zero", "best") for ball, size in ((Linf(0.1), 0.05), (L2(0.4), 0.2), (L1(1.0, top=3), 0.5))
)


def test_the_maximum_is_at_least_the_average_and_is_training_on_the_worst():
    network, (batch, key) = curved(), some_batch()
    average, maximum = (Generalized(BALLS, join)(network, batch, key, State()).total for join in ("average", "maximum"))
    assert maximum >= average - 1e-12
    worst = WorstOf(BALLS, "loss")(network, batch.images, batch.targets, key.of("attack").at(0))
    assert_close(maximum, cross_entropy(network(worst), batch.targets).mean())


def test_msd_trains_on_the_steepest_descent_of_its_balls():
    network, (batch, key) = curved(), some_batch()
    msd = MSD(tuple(pgd.threat for pgd in BALLS), 3, tuple(pgd.step_size for pgd in BALLS))
    found = Generalized(BALLS, "msd")(network, batch, key, State())
    assert torch.equal(found.total, Madry(msd)(network, batch, key, State()).total)


def test_weights_are_one_more_member_of_the_set():
    network, (batch, key) = curved(), some_batch()
    weights = Weights(0.1, 4)
    logits = weights(network, batch.images, batch.targets, key.of("weights").of("drops"))
    moved = cross_entropy(logits, batch.targets)
    images = [cross_entropy(network(pgd(network, batch.images, batch.targets, key)), batch.targets) for pgd in BALLS]
    for join, wanted in (
        ("average", torch.stack([*images, moved]).mean()),
        ("maximum", torch.stack([*images, moved]).amax(0).mean()),
    ):
        loss = Generalized(BALLS, join, weights)(network, batch, key, State())
        assert_close(loss.total, wanted)
    assert Generalized(BALLS, "average", weights).names == ("linf", "l2", "l1", "weights")
    assert Generalized((BALLS[0], BALLS[0]), "average").names == ("linf1", "linf2")


def test_members_are_sampled_in_proportion_to_their_failures():
    """Running accuracies 0.9 and 0.6: probabilities 0.2 and 0.8; equal until both were seen, and where none fails."""
    objective = Generalized(BALLS[:2], "sample")
    state = State({SEEN: torch.tensor([100.0, 50.0]), RIGHT: torch.tensor([90.0, 30.0])})
    assert objective.probabilities(state) == pytest.approx([0.2, 0.8])
    assert objective.probabilities(State()) == [0.5, 0.5]
    assert objective.probabilities(State({SEEN: torch.tensor([9.0, 0.0]), RIGHT: torch.zeros(2)})) == [0.5, 0.5]
    assert objective.probabilities(State({SEEN: torch.ones(2), RIGHT: torch.ones(2)})) == [0.5, 0.5]
    key = Key(0).rows(torch.arange(4))
    drawn = [objective._draw(key.at(update), state) for update in range(500)]
    assert abs(sum(drawn) / 500 - 0.8) < 4 * (0.16 / 500) ** 0.5
    assert drawn[:100] == [objective._draw(key[slice(2, 4)].at(update), state) for update in range(100)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Trades(BALLS[0], 6.0), "use noise or random"),
        (lambda: Trades(To(()), -1.0), "beta=-1"),
        (lambda: PyramidTraining(To(()), weight=-1.0), "weight=-1"),
        (lambda: Interpolated(To(()), alpha=-1.0), "alpha=-1"),
        (lambda: Interpolated(To(()), group=0), "group=0"),
        (lambda: Interpolated(To(()), layers=()), "layers is empty"),
        (lambda: Generalized((), "average"), "attacks is empty"),
        (lambda: Generalized((To(()),), "msd"), "no PGD on linf, l2 or l1"),
        (lambda: Generalized((BALLS[0], PGD(L2(1.0), 5, 0.1, "zero", "best")), "msd"), "alike but for threat"),
        (lambda: Generalized((PGD(L2(1.0), 5, 0.1),), "msd"), "start=zero and keep=best"),
    ],
)
def test_objectives_that_cannot_be_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
