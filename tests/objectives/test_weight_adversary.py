"""The adversary of weights in closed form, and networks whose weights are off. [docs/methods/weight-adversary.md]"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.evaluate.weights.mismatch import Mismatch
from robust_train.evaluate.work import evaluate
from robust_train.keyed import Key
from robust_train.losses import kl
from robust_train.models.network import Network
from robust_train.nouns import State
from robust_train.objectives.plain import Plain
from robust_train.objectives.weight_adversary import WeightAdversary
from robust_train.read.errors import ConfigError
from robust_train.run import Run
from robust_train.threats.weight_box import WeightBox, mismatch
from robust_train.threats.weights import moved
from tests.evaluate.linear import Linear, Middling
from tests.objectives.test_losses_in_numbers import curved, some_batch
from tests.shipped import ROOT

KEY = Key(3).rows(torch.arange(8))


def as_tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class One(nn.Module):
    """Logits (theta_1 x, 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(as_tensor(2.0))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.weight * images.flatten(1)[:, 0], 0 * images.flatten(1)[:, 0]], 1)


def test_steps_are_shares_of_the_weights_and_add_up_to_the_box() -> None:
    """theta = (2, -1), zeta 0.1, 10 steps of (0.02, 0.01): (2.2, -0.9) or (1.8, -1.1)."""
    box, weights = WeightBox(0.1), {"w": as_tensor(2.0, -1.0)}
    none = {"w": torch.zeros(2).double()}
    for steps, (first, second) in ((1, (2.02, -0.99)), (10, (2.2, -0.9)), (-10, (1.8, -1.1))):
        a = {"w": as_tensor(0.1 / 10 * steps, 0.1 / 10 * steps)}
        found = box.at(weights, {"w": a["w"]}, none)["w"]
        assert found[0].item() == pytest.approx(first)
        assert found[1].item() == pytest.approx(-1 + 0.1 / 10 * steps)
        assert second == pytest.approx(-1 + abs(-1) * 0.1 / 10 * steps)


def test_the_search_ends_at_the_worst_corner_and_theta_star_moves_with_theta() -> None:
    """KL at 1.8 is 0.002209, at 2.2 0.001996: the worst is 1.8, and its slope 1 + sign(2) (0.1 / 10) (-10) = 0.9."""
    network = Network(One(), 2)
    images, box = torch.ones(1, 1, 1, 1).double(), WeightBox(0.1)
    clean = network(images)
    for corner, value in ((1.8, 0.002209), (2.2, 0.001996)):
        there = moved(network, {"model.weight": as_tensor(corner)})(images)
        assert_close(kl(there, clean).item(), value, rtol=0, atol=1e-6)
    found = []
    for seed in range(20):  # the start's sign decides which corner is climbed
        a, s = box.search(network, box.weights(network), images, clean, Key(seed))
        found.append(box.at(box.weights(network), a, s)["model.weight"].item())
        assert abs(found[-1] - 2) == pytest.approx(0.2, abs=2 * 4e-3)
    assert min(found) < 1.81 < 2.19 < max(found)

    weights, down = {"w": as_tensor(2.0).requires_grad_()}, {"w": as_tensor(-0.1)}
    still = {"w": as_tensor(0.0)}
    for follows, slope in (("diagonal", 0.9), ("shift", 1.0)):
        at = box.at(weights, down, still, follows)["w"]
        assert at.item() == pytest.approx(1.8)
        assert torch.autograd.grad(at.sum(), weights["w"])[0].item() == pytest.approx(slope)
    assert not box.at(weights, down, still, "point")["w"].requires_grad


def test_worst_weights_lie_in_the_box_and_are_worse_than_random_corners() -> None:
    network, (batch, key) = curved(), some_batch()
    box = WeightBox(0.2, 10)
    weights, clean = box.weights(network), network(batch.images).detach()
    a, s = box.search(network, weights, batch.images, clean, key)
    star = box.at(weights, a, s)
    for name, weight in weights.items():
        assert ((star[name] - weight).abs() <= 0.2 * weight.abs() + 1e-12).all()
    worst = kl(moved(network, star)(batch.images), clean).mean()
    generator = torch.Generator().manual_seed(0)
    corners = []
    for _ in range(20):
        at = {
            name: w + 0.2 * w.abs() * torch.randn(w.shape, generator=generator).sign().double()
            for name, w in weights.items()
        }
        corners.append(kl(moved(network, at)(batch.images), clean).mean())
    assert worst > max(corners)


def test_without_beta_it_is_plain_training_and_without_a_box_nothing_is_apart() -> None:
    network, (batch, key) = curved(0.3), some_batch()
    plain = Plain()(network, batch, key, State()).total
    assert_close(WeightAdversary(WeightBox(0.1), 0.0, group=8)(network, batch, key, State()).total, plain)
    still = WeightAdversary(WeightBox(0.0), 1.0, group=4)(network, batch, key, State())
    assert_close(still.metrics["loss/kl"].item(), 0.0, rtol=0, atol=1e-6)


def test_the_diagonal_slope_is_that_of_finite_differences_where_signs_are_stable() -> None:
    network, (batch, key) = curved(), some_batch()
    objective = WeightAdversary(WeightBox(0.1, 3, noise=0.1), 1.0, group=8)
    bias = network.model[4].bias
    with torch.no_grad():
        bias.copy_(as_tensor(0.5, -0.3, 0.2))
    slope = torch.autograd.grad(objective(network, batch, key, State()).total, bias)[0][0]
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            bias[0] += step
        values.append(objective(network, batch, key, State()).total.detach())
        with torch.no_grad():
            bias[0] -= step
    assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=1e-8)


def test_weights_of_zero_stay_unless_a_constant_lets_them_and_norms_stay_unless_they_are_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    nn.init.zeros_(model[3].bias)
    network, (batch, key) = Network(model, 3, group=4).double(), some_batch()
    clean = network(batch.images).detach()
    for box, moves in ((WeightBox(0.1), False), (WeightBox(0.1, constant=0.05), True)):
        weights = box.weights(network)
        star = box.at(weights, *box.search(network, weights, batch.images, clean, key))
        assert bool(star["model.3.bias"].abs().sum() > 0) is moves
        assert "model.2.weight" not in star
    assert "model.2.weight" in WeightBox(0.1, norms=True).weights(network)
    network.model[1].weight.ds_id = 0
    with pytest.raises(ConfigError, match="ZeRO-3 shards them"):
        WeightBox(0.1).weights(network)


def test_a_chip_is_off_by_a_share_of_each_weight_and_the_key_decides() -> None:
    weights = {"w": torch.full((20000,), -3.0).double()}
    chip = mismatch(weights, 0.2, Key(0))["w"]
    assert chip.mean().item() == pytest.approx(-3, abs=0.02)
    assert chip.std().item() == pytest.approx(0.6, rel=0.02)
    assert torch.equal(chip, mismatch(weights, 0.2, Key(0).rows(torch.arange(2)))["w"])
    assert not torch.equal(chip, mismatch(weights, 0.2, Key(0).rows(torch.arange(1, 3)))["w"])


def test_scaling_a_layer_before_a_batchnorm_leaves_the_accuracy_under_mismatch() -> None:
    """The mismatch scales with the weights; the norm takes the scale away."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    network, (batch, _) = Network(model, 3, group=8).double(), some_batch()
    answers = []
    for scale in (1.0, 8.0):
        with torch.no_grad():
            model[1].weight.mul_(scale)
        chip = mismatch(WeightBox(0.1).weights(network), 0.3, Key(5))
        with torch.no_grad(), network.mode(record=False):
            answers.append(moved(network, chip)(batch.images))
    assert_close(*answers, rtol=1e-3, atol=1e-3)  # the norm's own eps


def test_the_evaluator_tells_mean_and_least_over_the_draws_and_the_worst_is_no_better() -> None:
    evaluator = Mismatch((0.0, 0.5), 8, (0.5,), chunk=20, images=40)
    (table,) = evaluator.report(evaluate(evaluator, {"one": Network(Linear(0.1), 3).eval()}, Middling())).tables
    found = {(kind, zeta): row for _, kind, zeta, *row in table.rows}
    clean = found["clean", 0.0][0]
    assert found["mismatch", 0.0] == [clean, 0.0, clean, 8]
    mean, sd, least, draws = found["mismatch", 0.5]
    assert (least <= mean, sd >= 0, draws) == (True, True, 8)
    assert found["worst", 0.5][0] <= min(mean, clean)


def test_the_evaluator_is_reached_by_its_name(small_run, tmp_path, capsys) -> None:
    from robust_train.tools.eval import main

    run = shutil.copytree(small_run.parent / "run", tmp_path / "run", ignore=shutil.ignore_patterns("eval*"))
    words = ["--images", "16", "--chunk", "16", "--device", "cpu"]
    main(["evaluator", "mismatch", str(run), *words, "zetas=[0.3]", "samples=3", "worst=[0.1]", "steps=2"])
    tree = json.loads((run / "eval-mismatch.json").read_text(encoding="utf-8"))
    assert [row["weights"] for row in tree["tables"][0]["rows"]] == ["clean", "mismatch", "worst"]
    assert "accuracy with weights that are off" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WeightBox(-0.1), "zeta=-0.1"),
        (lambda: WeightBox(0.1, steps=0), "steps=0"),
        (lambda: WeightAdversary(WeightBox(0.1), -1.0), "beta=-1"),
        (lambda: WeightAdversary(WeightBox(0.1), 1.0, group=0), "group=0"),
        (lambda: Mismatch(samples=0), "samples=0"),
        (lambda: Mismatch(zetas=(-1.0,)), "zetas="),
    ],
)
def test_what_cannot_be_is_refused(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_the_preset_is_the_published_recipe() -> None:
    run = Run.load(ROOT / "configs" / "cifar" / "rn18-weight-adversary.yaml")
    assert (run.objective.beta, run.objective.box.zeta, run.objective.box.steps) == (0.1, 0.1, 3)
    assert (run.objective.follows, run.objective.cost(), run.start is not None) == ("diagonal", 15, True)
