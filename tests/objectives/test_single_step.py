"""The gallery of one-step methods in closed form. [docs/methods/single-step-gallery.md]"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.fgsm import FGSM, FGSMRS
from robust_train.engines.plain import PlainEngine
from robust_train.keyed import Key
from robust_train.launch.sweep import Sweep
from robust_train.losses import correct, cross_entropy
from robust_train.models.network import Network
from robust_train.nouns import Batch, Objective, State
from robust_train.objectives.plain import Plain
from robust_train.objectives.single_step.aaer import AAER, abnormality
from robust_train.objectives.single_step.elle import ELLE, Watch, bend
from robust_train.objectives.single_step.guided import GAT, UPDATES, NuAT, nuclear_norm
from robust_train.objectives.single_step.leap import signs, within
from robust_train.objectives.single_step.liet import LIET, jensen_shannon
from robust_train.objectives.single_step.prior import FGSMPGI, Store
from robust_train.objectives.single_step.smooth import FGSMCS, Level, jump
from robust_train.objectives.single_step.ssat import SSAT
from robust_train.settings.execution import Execution
from robust_train.settings.keep import Keep
from robust_train.threats.linf import Linf
from tests.objectives.test_losses_in_numbers import curved, some_batch
from tests.shipped import ROOT
from tests.toys import gone_back, toy_run, trained

BALL = Linf(0.1)
SHAPE = (1, 4, 4)


def as_tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def flat(classes: int = 3) -> Network:
    """Answers the same of every image."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    nn.init.zeros_(model[1].weight)
    return Network(model, classes).double()


class Given:
    """As much of a data set as parts ask for."""

    shape, classes = SHAPE, 3

    def train_size(self) -> int:
        return 8


def state_of(objective: Objective, network: Network, **counts: Any) -> State:
    parts = objective.parts(network, Given())  # type: ignore[arg-type]
    return State(counts, {name: part.module.double() for name, part in parts.items()})


# -- the card's numbers -----------------------------------------------------------------------------


def test_distances_of_two_answers() -> None:
    clean, attacked = as_tensor(2.0, 0.0)[None], as_tensor(0.0, 1.0)[None]
    squared = GAT(BALL, 10.0).apart(attacked, clean).mean()
    assert_close(squared.item(), 0.748735, rtol=0, atol=1e-6)
    assert_close(10 * squared.item(), 7.487347, rtol=0, atol=1e-6)
    assert_close(jensen_shannon(clean, attacked).item(), 0.208126, rtol=0, atol=1e-6)
    assert_close(jensen_shannon(clean, clean).item(), 0.0, rtol=0, atol=1e-15)


def test_the_nuclear_norm_and_its_slope_where_singular_values_vanish() -> None:
    """diag(3, 4): 7, slope the identity; two rows (3, 4), of rank one: sqrt(2) 5; no change: no slope."""
    matrix = torch.diag(as_tensor(3.0, 4.0)).requires_grad_()
    assert_close(nuclear_norm(matrix).item(), 7.0)
    assert_close(torch.autograd.grad(nuclear_norm(matrix), matrix)[0], torch.eye(2).double())
    rows = as_tensor(3.0, 4.0).expand(2, 2).clone().requires_grad_()
    assert_close(nuclear_norm(rows).item(), 7.071068, rtol=0, atol=1e-6)
    assert_close(torch.autograd.grad(nuclear_norm(rows), rows)[0], as_tensor(0.6, 0.8).expand(2, 2) / 2**0.5)
    none = torch.zeros(4, 3).double().requires_grad_()
    assert torch.equal(torch.autograd.grad(nuclear_norm(none), none)[0], torch.zeros(4, 3).double())
    assert_close(NuAT(BALL, 1.0, group=2).apart(rows.detach(), torch.zeros(2, 2).double()).mean().item(), 7.071068 / 2)


def test_a_bent_loss_costs_the_square_of_its_distance_from_the_chord() -> None:
    error = bend(as_tensor(1.0), as_tensor(3.0), as_tensor(1.2), as_tensor(0.25))
    assert_close(error.item(), 0.09)
    assert_close(4000 * error.item(), 360.0)


def test_abnormal_images_cost_their_number_their_fall_and_their_variation() -> None:
    """Losses (1, .5) to (.4, .9), V_a 4, V_n 1: 3.0; the gradient is 1.5 / 2 of V_a alone, unless the fall is live."""
    before, after = as_tensor(1.0, 0.5), as_tensor(0.4, 0.9).requires_grad_()
    variation = as_tensor(4.0, 1.0).requires_grad_()
    total = abnormality(before, after, variation, (1.0, 2.5, 1.5))
    assert_close(total.item(), 3.0)
    slopes = torch.autograd.grad(total, (variation, after), allow_unused=True)
    assert_close(slopes[0], as_tensor(1.5 / 2, 0.0))
    assert slopes[1] is None
    live = abnormality(before, after, variation, (1.0, 2.5, 1.5), live=True)
    assert_close(live.item(), 3.0)
    assert_close(torch.autograd.grad(live, after)[0], as_tensor(-2.5 / 2, 0.0))
    assert abnormality(before, before + 1, variation, (1.0, 2.5, 1.5)) == 0


@pytest.mark.parametrize(("loss", "value", "slope"), [(1.2, 1.2, 1.0), (1.08, 0.0, 0.0), (1.0, -1.0, -1.0)])
def test_a_loss_that_jumps_is_pushed_back_and_one_that_does_not_is_left(loss, value, slope) -> None:
    here = as_tensor(loss).requires_grad_()
    found = jump(here, as_tensor(1.1), 0.03)
    assert_close(found.item(), value)
    assert_close(torch.autograd.grad(found.sum(), here)[0].item(), slope)


# -- what each trains on ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", [GAT, NuAT])
def test_without_weight_guided_training_is_clean_training(method) -> None:
    network, (batch, key) = curved(), some_batch()
    loss = method(BALL, 0.0)(network, batch, key, State())
    assert_close(loss.total, Plain()(network, batch, key, State()).total)


@pytest.mark.parametrize("turn", [0, 1])
def test_every_second_update_the_attack_is_guided_by_the_clean_answer(turn: int) -> None:
    network, (batch, key) = curved(), some_batch()
    images = batch.images
    loss = GAT(BALL, 10.0)(network, batch, key, State({UPDATES: torch.tensor(float(turn))}))
    assert loss.counts[UPDATES] == 1
    assert GAT(BALL, 10.0)(network, batch[2:], key[slice(2, 8)], State()).counts[UPDATES] == 0
    start = (images + 0.05 * signs(images, key.of("start"))).clamp(0, 1).requires_grad_()
    clean, there = network(images).detach(), network(start)
    goal = cross_entropy(there, batch.targets) + turn * 10 * (clean.softmax(1) - there.softmax(1)).square().sum(1)
    (slope,) = torch.autograd.grad(goal.sum(), start)
    points = within(images, start.detach() + 0.1 * slope.sign(), 0.1)
    q, p = network(points).softmax(1), network(images).softmax(1)
    wanted = cross_entropy(network(images), batch.targets).mean() + 10 * (p - q).square().sum(1).mean()
    assert_close(loss.total, wanted)


def test_regularisers_of_a_network_that_always_answers_the_same_are_nothing() -> None:
    network, (batch, key) = flat(), some_batch()
    names = {
        GAT(BALL, 10.0): "loss/apart",
        NuAT(BALL, 4.0, group=4): "loss/apart",
        FGSMPGI(BALL, 8): "loss/apart",
        LIET(BALL, 100.0): "loss/js",
        ELLE(FGSM(BALL), 4000.0, BALL): "loss/bend",
        AAER(BALL, group=4): "loss/abnormal",
    }
    for objective, name in names.items():
        loss = objective(network, batch, key, state_of(objective, network))
        assert_close(loss.metrics[name].item(), 0.0, rtol=0, atol=1e-24)


def test_without_weight_the_others_are_one_step_training() -> None:
    network, (batch, key) = curved(), some_batch()
    attacked = FGSMRS(BALL)(network, batch.images, batch.targets, key.of("attack"))
    wanted = cross_entropy(network(attacked), batch.targets).mean()
    elle = ELLE(FGSMRS(BALL), 0.0, BALL)
    assert_close(elle(network, batch, key, state_of(elle, network)).total, wanted)
    for objective in (
        FGSMCS(BALL, 2, 0.0, group=4),
        FGSMPGI(BALL, 8, 0.0),
        LIET(BALL, 0.0),
        AAER(BALL, (0.0, 0.0, 0.0)),
    ):
        loss = objective(network, batch, key, state_of(objective, network))
        assert torch.equal(loss.total, loss.metrics["loss/robust"])


def test_ssat_trains_on_the_shortest_share_of_the_step_that_fools() -> None:
    """Two classes told apart by one pixel at 1/2: images at .55 fall at a third of the step, .58 at two thirds."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.copy_(as_tensor(1.0, -1.0)[:, None] * 50)
        model[1].bias.copy_(as_tensor(-25.0, 25.0))
    network = Network(model, 2).double()
    images = as_tensor(0.57, 0.55, 0.9, 0.2).view(4, 1, 1, 1)
    labels = torch.zeros(4, dtype=torch.int64)
    made = SSAT(Linf(0.12), radii=2.0).made(network, images, labels, Key(0).rows(torch.arange(4)))
    move = (made - images).flatten()
    assert_close(move, as_tensor(-0.08, -0.08, -0.12, 0.0))
    assert correct(network(made), labels).tolist() == [0, 0, 1, 0]
    assert SSAT(BALL, checks=1).cost() == 5


def test_the_last_epoch_s_mean_loss_is_what_the_next_one_is_compared_with() -> None:
    cs, level = FGSMCS(BALL, 2), Level().double()
    state = State(parts={"level": level})
    for update, loss in enumerate((1.0, 2.0, 5.0)):
        cs.settle(None, state, {"loss": as_tensor(8 * loss).sum(), "images": as_tensor(8.0).sum()}, update, 10)
    assert (level.before.item(), level.total.item(), level.images.item()) == (1.5, 40.0, 8.0)


def test_elle_switches_its_weight_on_at_two_sigma_and_lets_it_decay() -> None:
    watch = Watch().double()
    weights = []
    for error in (1.0, 2.0, 1.0, 2.0, 2.4, 2.6, 1.5, 1.5):  # of the first four: mean 1.5, sigma 0.5
        watch.see(as_tensor(error)[0], 4000.0, 0.99)
        weights.append(watch.weight.item())
    assert weights == [0] * 8  # 2.4 < 1.5 + 2 * 0.5, and what follows lies nearer still
    watch.see(as_tensor(9.0)[0], 4000.0, 0.99)
    assert watch.weight.item() == 4000.0
    watch.see(as_tensor(1.5)[0], 4000.0, 0.99)
    assert watch.weight.item() == pytest.approx(3960.0)


def test_liet_starts_along_its_class_and_softens_labels_at_random() -> None:
    network, (batch, key) = curved(), some_batch()
    liet = LIET(BALL, 1.0, smoothing=0.6)
    sign = state_of(liet, network).parts["starts"].sign
    grey = torch.full((3, *SHAPE), 0.5).double().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(network(grey), torch.arange(3)).sum(), grey)
    assert torch.equal(sign, slope.sign())
    z = liet.first(sign, batch, key)
    own = 0.1 * sign[batch.targets]
    along = ((z - own).abs() < 1e-12) | ((z + own).abs() < 1e-12)
    assert 0.45 < along.double().mean() < 0.95  # a share of 0.1 to 0.5 is drawn
    assert z.abs().amax() <= 0.1 + 1e-12
    p = liet.softened(batch.targets, torch.zeros(8, 3).double(), key)
    assert_close(p.sum(1), torch.ones(8).double())
    assert_close(p.gather(1, batch.targets[:, None])[:, 0], torch.full((8,), 0.4).double())
    assert len({round(value, 6) for value in p.flatten().tolist()}) > 10


# -- the store --------------------------------------------------------------------------------------


def test_the_store_is_moved_by_the_gradient_and_its_momentum() -> None:
    network, (batch, key) = curved(), some_batch()
    torch.manual_seed(0)
    for prior in ("epoch", "momentum"):
        objective = FGSMPGI(BALL, 8, prior=prior)
        state = state_of(objective, network)
        store = state.parts["store"]
        assert set(store.z.flatten().tolist()) == {-1.0, 1.0}
        store.momentum.normal_()
        z, m = store.z.clone(), store.momentum.clone()
        start = (batch.images + 0.1 * z).clamp(0, 1).requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(network(start), batch.targets).sum(), start)
        loss = objective(network, batch, key, state)
        objective.settle(network, state, loss.sums, 0, 1)
        momentum = slope / slope.abs().sum((1, 2, 3), keepdim=True) + (0.3 * m if prior == "momentum" else 0)
        assert_close(store.z, (z + momentum.sign()).clamp(-1, 1))
        used = (batch.images + (0.1 * z + 0.1 * slope.sign()).clamp(-0.1, 0.1)).clamp(0, 1)
        wanted = cross_entropy(network(used), batch.targets).mean()
        wanted = wanted + 10 * (network(used) - network(start)).square().mean()
        assert_close(loss.total, wanted)


def test_the_store_follows_the_sample_through_any_order() -> None:
    network, (batch, key) = curved(), some_batch()
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    found = []
    for rows in (torch.arange(8), order):
        torch.manual_seed(0)
        objective = FGSMPGI(BALL, 8)
        state = state_of(objective, network)
        dealt = Batch(batch.images[rows], batch.targets[rows], torch.arange(8), batch.sample[rows])
        loss = objective(network, dealt, key, state)
        objective.settle(network, state, loss.sums, 0, 1)
        found.append(state.parts["store"].z.clone())
    assert torch.equal(*found)


def test_the_store_is_drawn_anew_after_so_many_updates_as_its_seed_says() -> None:
    torch.manual_seed(0)
    store, again = Store(6, (1, 2, 2)), Store(6, (1, 2, 2))
    again.seed.copy_(store.seed)
    first = store.z.clone()
    for one in (store, again):
        one.momentum.fill_(1)
        one.draw(40)
    assert torch.equal(store.z, again.z)
    assert not torch.equal(store.z, first)
    assert not store.momentum.any()


@pytest.mark.parametrize("part", [None, 4])
def test_a_run_with_a_store_goes_on_from_its_checkpoint_to_the_bit(tmp_path, part) -> None:
    run = toy_run(
        FGSMPGI(BALL, 16, redraw=3), tmp_path, updates=4, checkpoint=Keep(2), engine=Execution(micro_batch=part)
    )
    alone = PlainEngine(run)
    trained(alone)
    again = PlainEngine(run)
    gone_back(again, tmp_path / "checkpoints" / "00000002")
    trained(again)
    for name in ("z", "momentum", "seed"):
        assert torch.equal(getattr(again.state.parts["store"], name), getattr(alone.state.parts["store"], name))
    assert alone.state.parts["store"].momentum.any()
    with pytest.raises(ValueError, match=r"objective\.batch=8 .* batch=16"):
        toy_run(replace(run.objective, batch=8))


# -- refusals and the sweep -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GAT(BALL, -1.0), "weight=-1"),
        (lambda: NuAT(BALL, 1.0, group=0), "group=0"),
        (lambda: SSAT(BALL, checks=0), "checks=0"),
        (lambda: FGSMCS(BALL, 0), "epoch=0"),
        (lambda: AAER(BALL, group=0), "group=0"),
        (lambda: ELLE(FGSM(BALL), -1.0, BALL), "weight=-1"),
        (lambda: FGSMPGI(BALL, 0), "batch=0"),
        (lambda: LIET(BALL, 1.0, smoothing=1.0), "smoothing=1"),
    ],
)
def test_what_cannot_be_is_refused(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_one_sweep_has_the_gallery_with_three_seeds_and_the_published_constants() -> None:
    sweep = Sweep.load(ROOT / "configs" / "cifar" / "gallery-sweep.yaml")
    runs = sweep.runs()
    first = {name.split("/")[1]: run.objective for name, run in runs.items() if name.startswith("seed0")}
    assert len(runs) == 3 * len(first)
    assert {type(one) for one in first.values()} >= {GAT, NuAT, SSAT, FGSMPGI, FGSMCS, AAER, ELLE, LIET}
    assert (first["rs-aaer"].lambdas, first["n-aaer"].lambdas) == ((1.0, 2.5, 1.5), (1.0, 1.5, 0.15))
    assert (first["elle-a"].weight, first["elle-a"].adaptive, first["gat"].weight) == (4000.0, True, 10.0)
    assert [first["nuat"].weight(update, 39000) for update in (0, 390, 39000)] == pytest.approx([0, 0.04, 4])
    assert [first["liet"].weight(update, 39000) for update in (0, 39000)] == [1, 100]
    assert [first["rs-cs"].weight(390 * epoch, 39000) for epoch in (0, 1, 2, 98, 99)] == [0, 0, 1, 1, 0]
    run = runs["seed0/gat"]
    assert (run.validate.final.use, run.validate.beside[0].label, run.validate.probe.every) == (
        "autoattack",
        "pgd20",
        390,
    )
    assert (run.average.decay, run.batch, run.optimiser.weight_decay) == (0.9995, 128, 5e-4)
