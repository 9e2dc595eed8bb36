"""KL taken apart, in closed form. [docs/methods/dkl.md]"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from robust_train.attacks.pgd import PGD
from robust_train.engines.plain import PlainEngine
from robust_train.losses import kl
from robust_train.nouns import State, at
from robust_train.objectives.awp import AWP
from robust_train.objectives.divergence import DKL, GKL, IKL, KL, Table, soft_cross_entropy, weighted_squares
from robust_train.objectives.trades import Trades
from robust_train.run import Run
from robust_train.settings.execution import Execution
from robust_train.settings.keep import Keep
from robust_train.threats.linf import Linf
from tests.objectives.test_losses_in_numbers import To, batch_of, curved, identity, some_batch
from tests.shipped import ROOT
from tests.toys import gone_back, toy_run, trained


def as_tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


N, A = as_tensor(2.0, 1.0, 0.0)[None], as_tensor(0.0, 1.0, 2.0)[None]
LABEL = torch.tensor([0])
THIRD = torch.full((1, 3), 1 / 3, dtype=torch.float64)


def pairs(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """The squares as they are defined, over all pairs of classes."""
    d = first - second
    return ((d[:, :, None] - d[:, None]).square() * weights[:, :, None] * weights[:, None]).sum((1, 2)) / 4


def with_table(rows: Tensor) -> State:
    table = Table(rows.shape[1]).double()
    table.rows.copy_(rows)
    return State(parts={"table": table})


@pytest.mark.parametrize(
    ("weights", "squares"),
    [(THIRD, 1.333333), (N.softmax(1), 0.848809), (as_tensor(0.5, 0.25, 0.25)[None], 1.375)],
)
def test_weighted_squares_are_those_of_all_pairs_in_one_pass(weights: Tensor, squares: float) -> None:
    assert_close(weighted_squares(N, A, weights).item(), squares, rtol=0, atol=1e-6)
    torch.manual_seed(0)
    first, second = 30 * torch.randn(6, 9).double(), 30 * torch.randn(6, 9).double()
    weights = torch.rand(6, 9).double()  # of any sum
    assert_close(weighted_squares(first, second, weights), pairs(first, second, weights), rtol=1e-12, atol=0)


def test_the_soft_cross_entropy_is_kl_and_the_entropy() -> None:
    assert_close(soft_cross_entropy(N, A).item(), 1.982816, rtol=0, atol=1e-6)
    assert_close(kl(A, N).item(), 1.150421, rtol=0, atol=1e-6)


def test_ikl_in_trades_is_the_sum_of_the_paper() -> None:
    """alpha 4, beta 20, uniform: 34.597932; with the label's cross-entropy 35.005538."""
    ikl = IKL(4.0, 20.0, epoch=1)
    assert_close(ikl(N, A, LABEL, with_table(THIRD.expand(3, 3))).item(), 34.597932, rtol=0, atol=1e-5)
    batch, key = batch_of(N.view(1, 1, 1, 3), LABEL)
    trades = Trades(To(((0.0, 1.0, 2.0),)), 1.0, term=ikl)
    loss = trades(identity(3), batch, key, with_table(THIRD.expand(3, 3)))
    assert_close(loss.total.item(), 35.005538, rtol=0, atol=1e-5)
    assert "loss/ikl" in loss.metrics


def test_the_power_and_the_two_normalisers() -> None:
    """gamma 0.5 of (.5, .25, .25): 4.035534 / 2.914214 = 1.384776; beside an image with d = 0: .682345, .692388."""
    weights = as_tensor(0.5, 0.25, 0.25)[None]
    gkl = GKL(0.0, 1.0, epoch=1, gamma=0.5)
    assert_close(weighted_squares(N, A, weights.sqrt()).item(), 4.035534, rtol=0, atol=1e-6)
    assert_close(gkl.squares(N, A, weights).item(), 1.384776, rtol=0, atol=1e-6)
    both = (torch.cat([N, N]), torch.cat([A, N]), torch.cat([weights, THIRD]))
    assert_close(gkl.squares(*both).mean().item(), 0.692388, rtol=0, atol=1e-6)
    group = GKL(0.0, 1.0, epoch=1, gamma=0.5, normaliser="group", group=2)
    assert_close(group.squares(*both).mean().item(), 0.682345, rtol=0, atol=1e-6)
    one = GKL(4.0, 20.0, epoch=1)
    state = with_table(torch.rand(3, 3).double().softmax(1))
    assert_close(one(N, A, LABEL, state), IKL(4.0, 20.0, epoch=1)(N, A, LABEL, state))
    assert (group.groups(), one.groups()) == (2, 1)


def test_the_gradients_of_the_pieces_are_kl_s() -> None:
    n, a = N.clone().requires_grad_(), A.clone().requires_grad_()
    slopes = torch.autograd.grad(DKL()(n, a, LABEL, State()).sum(), (n, a))
    assert_close(slopes[0][0], as_tensor(0.565175, -0.281541, -0.283634), rtol=0, atol=1e-6)
    assert_close(slopes[1][0], as_tensor(-0.57521, 0.0, 0.57521), rtol=0, atol=1e-6)
    torch.manual_seed(0)
    n, a = (3 * torch.randn(7, 10).double()).requires_grad_(), (3 * torch.randn(7, 10).double()).requires_grad_()
    whole, pieces = (
        torch.autograd.grad(term(n, a, torch.zeros(7).long(), State()).sum(), (n, a)) for term in (KL(), DKL())
    )
    for one, other in zip(whole, pieces, strict=True):
        assert_close(one, other, rtol=0, atol=1e-12)


def test_a_constant_in_the_logits_changes_nothing_and_equal_answers_have_no_squares() -> None:
    torch.manual_seed(0)
    n, a, labels = torch.randn(5, 4).double(), torch.randn(5, 4).double(), torch.arange(5) % 4
    state = with_table(torch.rand(4, 4).double().softmax(1))
    for term in (DKL(), IKL(4.0, 20.0, epoch=1), GKL(4.0, 20.0, epoch=1, gamma=0.2)):
        found = term(n, a, labels, state)
        assert_close(term(n + 3, a - 7, labels, state), found, rtol=1e-11, atol=0)
    same = n.clone().requires_grad_()
    squares = weighted_squares(same, n, n.softmax(1)).sum()
    assert squares == 0
    assert not torch.autograd.grad(squares, same)[0].any()


def test_the_squares_pull_on_both_answers_and_without_them_it_is_not_trades() -> None:
    network, (batch, key) = curved(), some_batch()
    moved = To(tuple(map(tuple, (batch.images + 0.1 * torch.randn_like(batch.images)).clamp(0, 1).flatten(1).tolist())))
    n, a = N.clone().requires_grad_(), A.clone().requires_grad_()
    ikl = IKL(0.0, 1.0, epoch=1)
    slopes = torch.autograd.grad(ikl(n, a, LABEL, with_table(THIRD.expand(3, 3))).sum(), (n, a))
    assert_close(slopes[0], -slopes[1])
    slopes = [
        torch.autograd.grad(
            Trades(moved, 6.0, term=term)(network, batch, key, State()).total, list(network.parameters())
        )[0]
        for term in (KL(), DKL(), DKL(1.0, 0.0))
    ]
    assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-12)
    assert (slopes[0] - slopes[2]).abs().amax() > 1e-4


def test_the_table_turns_over_once_an_epoch_and_classes_not_seen_keep_their_rows() -> None:
    ikl = IKL(4.0, 20.0, heat=2.0, epoch=2)
    state = State(parts={"table": Table(3).double()})
    logits = as_tensor(2.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 3.0).view(3, 3)
    labels = torch.tensor([0, 1, 1])
    for update in range(2):
        assert_close(state.parts["table"].rows, torch.full((3, 3), 1 / 3).double(), rtol=0, atol=1e-7)
        ikl.settle(state, ikl.sums(logits, labels), update)
    soft = (logits / 2).softmax(1)
    rows = torch.stack([soft[0], soft[1:].mean(0), torch.full((3,), 1 / 3).double()])
    assert_close(state.parts["table"].rows, rows, rtol=1e-6, atol=1e-7)
    assert_close(state.parts["table"].rows.sum(1), torch.ones(3).double(), rtol=0, atol=1e-6)
    assert not state.parts["table"].seen.any()
    weights = ikl.weighed(logits, F.one_hot(labels, 3).double(), state)
    assert_close(weights, rows[labels], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("part", [None, 4])
def test_a_run_with_a_table_goes_on_from_its_checkpoint_to_the_bit(tmp_path, part) -> None:
    noisy = PGD(Linf(0.1), 1, 0.05, "noise")
    objective = AWP(Trades(noisy, 1.0, term=IKL(4.0, 20.0, epoch=3)), 0.01, 4)
    run = toy_run(objective, tmp_path, updates=4, checkpoint=Keep(2), engine=Execution(micro_batch=part))
    alone = PlainEngine(run)
    trained(alone)
    again = PlainEngine(run)
    gone_back(again, tmp_path / "checkpoints" / "00000002")
    trained(again)
    for name in ("rows", "total", "seen"):
        assert torch.equal(getattr(again.state.parts["table"], name), getattr(alone.state.parts["table"], name))
    assert alone.state.parts["table"].seen.sum() == 16  # of the update after the turn, AWP around it
    assert (alone.state.parts["table"].rows.std(1) > 1e-3).any()


def test_what_cannot_be_is_refused() -> None:
    for make, words in (
        (lambda: IKL(4.0, 20.0), "epoch is missing"),
        (lambda: IKL(4.0, 20.0, heat=0.0, epoch=1), "heat=0"),
        (lambda: GKL(4.0, 20.0, epoch=1, gamma=-1.0), "gamma=-1"),
        (lambda: GKL(4.0, 20.0, epoch=1, group=0), "group=0"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_the_preset_is_the_published_recipe() -> None:
    run = Run.load(ROOT / "configs" / "cifar" / "wrn34-10-ikl.yaml")
    trades = run.objective.objective
    assert trades.term == IKL(4.0, 20.0, 4.0, epoch=390)
    eps = [at(run.objective, 390 * epoch, run.updates).objective.attack.threat.eps * 255 for epoch in (0, 100, 199)]
    assert eps == pytest.approx([8 / 200, 8 * 101 / 200, 8])
    attack = at(run.objective, 39000, run.updates).objective.attack
    assert attack.step_size == pytest.approx(attack.threat.eps / 2)
    assert [at(run.objective, 390 * epoch, run.updates).gamma for epoch in (8, 9, 10, 199)] == [0, 0, 0.005, 0.005]
    assert (attack.steps, run.objective.cost(), run.optimiser.weight_decay) == (5, 2 * 5 + 7 + 6, 5e-4)
    assert at(run.optimiser.lr, 0, run.updates) == pytest.approx(0.2)
