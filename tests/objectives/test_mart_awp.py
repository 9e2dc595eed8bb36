"""MART, perturbed weights, free training and aligned gradients in closed form. [docs/methods/mart-awp.md]"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.msd import MSD
from robust_train.attacks.pgd import PGD
from robust_train.engines.plain import PlainEngine
from robust_train.keyed import Key
from robust_train.losses import cross_entropy
from robust_train.models.network import Network
from robust_train.nouns import Batch, State, at
from robust_train.objectives.awp import AWP
from robust_train.objectives.free import Free, Perturbation
from robust_train.objectives.generalized import Generalized
from robust_train.objectives.grad_align import GradAlign, alignment
from robust_train.objectives.madry import Madry
from robust_train.objectives.mart import Mart, boosted
from robust_train.objectives.trades import Trades
from robust_train.objectives.weighting import ClassCosts, Confidence, Shuffled, Uniform
from robust_train.read.errors import ConfigError
from robust_train.run import Run
from robust_train.threats.linf import Linf
from robust_train.threats.weights import Weights
from tests.objectives.test_losses_in_numbers import To, batch_of, curved, identity, some_batch
from tests.shipped import ROOT
from tests.toys import toy_run, trained, weights

CONFIGS = ROOT / "configs" / "cifar"
PGD2 = PGD(Linf(0.1), 2, 0.05)


def as_tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- MART -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "attacked", "base", "total"),
    [
        ((2.0, 0.0), (0.0, 1.0), 2.626523, 3.120456),
        ((2.0, 1.0, 0.0), (0.0, 1.0, 2.0), 3.501950, 5.427519),
    ],
)
def test_mart_is_the_sum_of_the_paper(clean, attacked, base, total) -> None:
    """BCE and BCE + 5 (1 - p_y) KL of the card's logits, exact BCE; with the code's 1.0001, 2.626152."""
    batch, key = batch_of(torch.tensor([[[clean]]]).double(), torch.tensor([0]))
    loss = Mart(To((attacked,)), 5.0)(identity(len(clean)), batch, key, State())
    assert_close(loss.metrics["loss/robust"].item(), base, rtol=0, atol=1e-6)
    assert_close(loss.total.item(), total, rtol=0, atol=2e-6)


def test_the_published_slack_makes_the_boosted_loss_smaller() -> None:
    logits, label = torch.tensor([[0.0, 1.0]]).double(), torch.tensor([0])
    assert_close(boosted(logits, label, 1e-4).item(), 2.626152, rtol=0, atol=1e-6)
    assert_close(boosted(logits, label, 0.0).item(), 2.626523, rtol=0, atol=1e-6)


def test_the_boosted_loss_is_exact_where_a_wrong_class_is_nearly_sure() -> None:
    """1 - q_k = e^-50 + e^-60 in all: its log is -50 to 5 digits, where 1 - q_k itself rounds to 0."""
    loss = boosted(torch.tensor([[-60.0, 0.0, -50.0]]), torch.tensor([0]))
    assert_close(loss.item(), 110.0, rtol=0, atol=1e-3)


def test_without_an_attack_mart_is_its_boosted_loss_and_its_gradient_flows_into_the_weights() -> None:
    network, (batch, key) = curved(), some_batch()
    still = PGD(Linf(0.0), 1, 0.0)
    loss = Mart(still, 5.0)(network, batch, key, State())
    assert_close(loss.metrics["loss/kl"].item(), 0.0, rtol=0, atol=1e-12)
    assert_close(loss.total, boosted(network(batch.images), batch.targets).mean())

    moved = To(tuple(map(tuple, (batch.images + 0.1 * torch.randn_like(batch.images)).clamp(0, 1).flatten(1).tolist())))
    weight = network.model[1].weight
    slope = torch.autograd.grad(Mart(moved, 5.0)(network, batch, key, State()).total, weight)[0][0, 0]
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            weight[0, 0] += step
            values.append(Mart(moved, 5.0)(network, batch, key, State()).total)
            weight[0, 0] -= step
    assert_close(slope, (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-9)


def test_weights_stand_where_they_are_said_to_and_class_costs_are_of_the_label() -> None:
    network, (batch, key) = curved(), some_batch()
    costs = as_tensor(1.0, 2.0, 0.5)[batch.targets]
    base = Mart(PGD2, 0.0, ClassCosts((1.0, 2.0, 0.5)), "loss", "softmax")(network, batch, key, State())
    points = PGD2(network, batch.images, batch.targets, key.of("attack"))
    assert_close(base.total, (costs * cross_entropy(network(points), batch.targets)).mean())
    same = Mart(PGD2, 5.0, ClassCosts((1.0, 1.0, 1.0)))(network, batch, key, State()).total
    assert_close(Mart(PGD2, 5.0, Uniform())(network, batch, key, State()).total, same)


def test_shuffled_weights_are_the_same_weights_within_a_group_and_have_no_gradient() -> None:
    logits, labels = torch.zeros(8, 3).double().requires_grad_(), torch.tensor([0, 1, 2, 2, 0, 0, 0, 0])
    costs = ClassCosts((1.0, 2.0, 3.0))
    plain = costs(logits, logits, labels, {}, Key(0))
    orders = set()
    for seed in range(20):
        dealt = Shuffled(costs, 4)(logits, logits, labels, {}, Key(seed).rows(torch.arange(8)))
        assert not dealt.requires_grad
        assert torch.equal(dealt.view(2, 4).sort(1).values, plain.view(2, 4).sort(1).values)
        orders.add(tuple(dealt.tolist()))
    assert len(orders) > 5
    with pytest.raises(ValueError, match="no multiple of the 4 images"):
        Shuffled(Shuffled(Uniform(), 4), 6)


# -- perturbed weights ------------------------------------------------------------------------------


def test_the_step_of_the_weights_is_their_share_of_the_norm_along_the_gradient() -> None:
    """w = (3, 4), g = (0, 2), gamma = 0.01: v = (0, 0.05), ||v|| = gamma ||w||; twice the weight, twice the step."""
    v = Weights(0.01).step(as_tensor(3.0, 4.0), as_tensor(0.0, 2.0))
    assert_close(v, as_tensor(0.0, 0.05))
    assert_close(Weights(0.01).step(as_tensor(6.0, 8.0), as_tensor(0.0, 1.0)), 2 * v)


def by_hand(network: Network, batch: Batch, key: Key, gamma: float) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradient of PGD training at w + v; the weights are moved in place and put back, as published."""
    points = PGD2(network, batch.images, batch.targets, key.of("attack"))
    named = dict(network.named_parameters())
    loss = cross_entropy(network(points), batch.targets).mean()
    gradients = torch.autograd.grad(loss, list(named.values()))
    v = {n: gamma * p.norm() / g.norm() * g for (n, p), g in zip(named.items(), gradients, strict=True) if p.dim() > 1}
    with torch.no_grad():
        for name, step in v.items():
            named[name] += step
    loss = cross_entropy(network(points), batch.targets).mean()
    found = list(torch.autograd.grad(loss, list(named.values())))
    with torch.no_grad():
        for name, step in v.items():
            named[name] -= step
    return loss.detach(), found


def test_awp_is_the_published_algorithm() -> None:
    """Perturb, backward, restore, against the copies; the network itself is never touched."""
    network, (batch, key) = curved(), some_batch()
    before = weights_of(network)
    loss = AWP(Madry(PGD2), 0.1, 8)(network, batch, key, State())
    found = torch.autograd.grad(loss.total, list(network.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in weights_of(network).items())
    total, wanted = by_hand(network, batch, key, 0.1)
    assert_close(loss.total.detach(), total, rtol=1e-12, atol=0)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs, rtol=1e-9, atol=1e-13)
    assert total > Madry(PGD2)(network, batch, key, State()).total


def weights_of(network: Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("objective", [Madry(PGD2), Trades(replace(PGD2, start="noise"), 6.0)])
def test_without_a_step_awp_is_its_objective_to_the_bit_and_a_tiny_one_is_near(objective) -> None:
    network, (batch, key) = curved(0.3), some_batch()
    plain = objective(network, batch, key, State())
    none, tiny = (AWP(objective, gamma, 8)(network, batch, key, State()) for gamma in (0.0, 1e-9))
    assert torch.equal(none.total, plain.total)
    assert none.metrics.keys() == tiny.metrics.keys() == plain.metrics.keys()
    assert_close(tiny.total, plain.total, rtol=1e-7, atol=0)


def test_awp_makes_each_attack_once_and_at_the_unmoved_weights() -> None:
    network, (batch, key) = curved(), some_batch()
    points = PGD2(network, batch.images, batch.targets, key.of("attack"))
    seen = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach().clone()))
    AWP(Madry(PGD2), 0.3, 8)(network, batch, key, State())
    assert len(seen) == 2 + 2  # two steps; the direction; the loss (copies keep the hook)
    assert all(torch.equal(images, points) for images in seen[2:])


def test_awp_follows_a_run_with_the_weights_put_back() -> None:
    """Two updates of the engine: nothing of v is left in the weights (1e-6 of an update at gamma -> 0)."""
    objective = Madry(PGD(Linf(0.1), 1, 0.05))
    found = []
    for one in (objective, AWP(objective, 1e-8, 16)):
        engine = PlainEngine(toy_run(one, updates=2), dtype=torch.float64)
        trained(engine)
        found.append(weights(engine))
    for name, value in found[0].items():
        assert_close(found[1][name], value, rtol=1e-6, atol=1e-7)


def test_awp_refuses_cut_weights_and_objectives_whose_attacks_it_cannot_keep() -> None:
    network, (batch, key) = curved(), some_batch()
    network.model[1].weight.ds_id = 0  # what ZeRO 3 leaves on a weight
    with pytest.raises(ConfigError, match="ZeRO-3 shards them"):
        AWP(Madry(PGD2), 0.01, 8)(network, batch, key, State())
    same = replace(PGD2, start="zero", keep="best")
    with pytest.raises(ValueError, match="generalized looks into its attacks"):
        AWP(Generalized((same, same), "msd"), 0.01)
    with pytest.raises(ValueError, match="group=6 is no multiple of the 4 images"):
        AWP(Mart(PGD2, 5.0, Shuffled(Uniform(), 4)), 0.01, 6)
    with pytest.raises(ValueError, match="gamma=-1"):
        AWP(Madry(PGD2), -1.0)
    assert AWP(Madry(MSD((Linf(0.1),), 2, (0.05,))), 0.01).cost() == Madry(MSD((Linf(0.1),), 2, (0.05,))).cost() + 3


# -- free training ----------------------------------------------------------------------------------


def test_free_training_moves_the_perturbation_by_the_gradient_of_its_own_backward() -> None:
    network, (batch, key) = curved(), some_batch()
    held = Perturbation(8, (1, 4, 4)).double()
    held.z.copy_(torch.linspace(-0.1, 0.1, 128).view(8, 1, 4, 4))
    free = Free(Linf(0.1), 8)
    loss = free(network, batch, key, State(parts={"perturbation": held}))
    z = held.z.clone().requires_grad_()
    wanted = cross_entropy(network((batch.images + z).clamp(0, 1)), batch.targets).mean()
    assert_close(loss.total, wanted)
    (slope,) = torch.autograd.grad(wanted, z)
    loss.total.backward()
    free.settle(network, State(parts={"perturbation": held}), loss.sums, 0, 1)
    assert_close(held.z, (z.detach() + 0.1 * slope.sign()).clamp(-0.1, 0.1))
    assert free.cost() == 3


def test_the_perturbation_of_free_training_is_of_the_position_whatever_the_micro_batches() -> None:
    found = []
    for part in (None, 4):
        run = toy_run(Free(Linf(0.1), 16), updates=3)
        engine = PlainEngine(replace(run, engine=replace(run.engine, micro_batch=part)), dtype=torch.float64)
        trained(engine)
        found.append(engine.state.parts["perturbation"].z.clone())
    assert torch.equal(*found)
    assert found[0].abs().amax() == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"objective\.batch=8 .* batch=16"):
        toy_run(Free(Linf(0.1), 8))


# -- aligned gradients ------------------------------------------------------------------------------


def test_alignment_is_the_cosine_and_an_image_without_a_gradient_is_aligned() -> None:
    a = as_tensor(3.0, 4.0, 1.0, 0.0, 0.0, 0.0).view(3, 2).requires_grad_()
    b = as_tensor(4.0, 3.0, -2.0, 0.0, 1.0, 1.0).view(3, 2)
    cosines = alignment(a, b)
    assert_close(cosines, as_tensor(0.96, -1.0, 1.0))
    (slope,) = torch.autograd.grad(cosines.sum(), a)
    assert slope.isfinite().all()
    assert torch.equal(slope[2], torch.zeros(2).double())


def test_a_linear_score_is_aligned_everywhere_and_a_weight_of_zero_is_the_objective() -> None:
    """Of two classes the image's gradient is (q_1 - y) (w_1 - w_0): one direction at every point."""
    network, (batch, key) = Network(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), 2).double(), some_batch()
    batch = Batch(batch.images, batch.targets % 2, batch.position, batch.sample)
    term = GradAlign(Madry(PGD2), 0.2, Linf(0.1))
    assert_close(term(network, batch, key, State()).metrics["loss/alignment"].item(), 0.0, rtol=0, atol=1e-12)
    network, (batch, key) = curved(), some_batch()
    bent, plain = term(network, batch, key, State()), Madry(PGD2)(network, batch, key, State())
    assert bent.metrics["loss/alignment"] > 1e-4
    assert_close(bent.total, plain.total + 0.2 * bent.metrics["loss/alignment"])
    assert torch.equal(at(replace(term, weight=0.0), 0, 1)(network, batch, key, State()).total, plain.total)


def test_the_term_s_gradient_is_that_of_finite_differences() -> None:
    """Both gradients are differentiated."""
    network, (batch, key) = curved(), some_batch()
    term = GradAlign(Madry(To(tuple(map(tuple, batch.images.flatten(1).tolist())))), 1.0, Linf(0.3))
    weight = network.model[1].weight
    slope = torch.autograd.grad(term(network, batch, key, State()).total, weight)[0][0, 0]
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            weight[0, 0] += step
        values.append(term(network, batch, key, State()).total)
        with torch.no_grad():
            weight[0, 0] -= step
    assert_close(slope, ((values[0] - values[1]) / 2e-5).detach(), rtol=1e-6, atol=1e-9)


# -- the recipes ------------------------------------------------------------------------------------


def test_the_presets_are_the_published_recipes() -> None:
    mart, awp, trades_awp, free, align = (
        Run.load(CONFIGS / f"{name}.yaml")
        for name in ("rn18-mart", "rn18-awp", "wrn34-10-trades-awp", "wrn34-10-free8", "rn18-grad-align")
    )
    assert (mart.objective.beta, mart.objective.cost(), mart.optimiser.weight_decay) == (5.0, 26, 3.5e-3)
    assert isinstance(mart.objective.weighting, Confidence)
    rates = [at(mart.optimiser.lr, 390 * epoch, mart.updates) for epoch in (0, 73, 74, 89, 99)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 1e-4, 1e-5])
    assert (awp.objective.gamma, awp.objective.cost(), awp.objective.group) == (0.01, 2 * 10 + 6, awp.batch)
    gammas = [at(trades_awp.objective, 390 * epoch, trades_awp.updates).gamma for epoch in (0, 9, 10, 199)]
    assert gammas == [0, 0, 0.005, 0.005]
    assert (trades_awp.objective.objective.beta, trades_awp.objective.cost()) == (6.0, 2 * 10 + 7 + 6)
    assert (free.data.times, free.objective.cost(), free.objective.radii) == (8, 3, 1.0)
    assert (align.objective.weight, align.objective.cost()) == (0.2, 2 + 3 + 12)
