"""The evaluation gives the accuracy that a network with a known answer has, in each threat model and in their union."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import nn

from robust_train.attacks.autoattack import DRAWS
from robust_train.attacks.pgd import PGD
from robust_train.evaluate.robustness import Robustness
from robust_train.evaluate.trial import CLEAN, Trial, tried
from robust_train.evaluate.work import evaluate, work
from robust_train.keyed import Key
from robust_train.models.network import Network
from robust_train.models.small_cnn import SmallCNN
from robust_train.nouns import Attack, Place, Threat
from robust_train.read.errors import ConfigError, NumericsError
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from tests.attacks.many_classes import ManyClasses
from tests.evaluate.linear import SIDE, Linear, Middling, judged
from tests.evaluate.zoo import Around, Labelled, middling


def small_network() -> Network:
    torch.manual_seed(0)
    return Network(SmallCNN((8, 8), (2, 1)).build(2, (3, SIDE, SIDE)), 2, mean=(0.5,), std=(0.25,))


def undecided(number: int) -> tuple[Network, Middling]:
    """A network whose boundary goes through the middle of noise images, and labels that are its own predictions."""
    network, data = small_network().eval(), Middling(number)
    data.images = torch.rand(data.images.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = network(data.images)
        network.model.head.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
        data.targets = network(data.images).argmax(1)
    return network, data


def own_labels(number: int) -> tuple[ManyClasses, Labelled]:
    """A linear network of five classes, so that four targets are all of them, and labels that are its own answers.

    Two of the classes look at every ninth pixel alone, so that the norms rank the images each in its own way.
    """
    network, data = ManyClasses(classes=5), middling(number)
    network.classes = 5
    with torch.no_grad():
        network.weight[:2] *= 3 * (torch.arange(network.weight.shape[1]) % 9 == 0)
        return network, Labelled(data.images, network(data.images).argmax(1), 5)


def robust(evaluation: Robustness, network, data, key: Key, backwards: bool = False) -> torch.Tensor:
    """[N] bool by image, after all attacks. backwards: the last chunk first."""

    def deal(task, jobs):
        for job in reversed(jobs):
            yield from work({"": network}, data, task, [job], "cpu")

    found = evaluate(evaluation, {"": network}, data, key.seed, deal=deal if backwards else None)
    verdicts, plan, _ = evaluation.read(found)
    column = verdicts.columns[plan.of("attack", plan.trials[1].threat)[-1].name]
    return column.right[verdicts.sample.argsort()].bool()


def test_on_a_linear_classifier_the_figures_are_exact():
    """Robust at eps where margin > eps |w|_1: by PGD with restarts, and at every point of the curve."""
    data, network = Middling(), Linear()
    radius = network.radius(data.images, data.targets)
    report = Robustness((Linf(0.1),), steps=4, restarts=2, curve=5, chunk=60)(network, data, Key(0))
    (curve,) = report.curves
    assert [figure.right for figure in report.figures] == [int((radius > eps).sum()) for eps in (0, 0.1)]
    assert [figure.eps for figure in curve] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16, 0.2])
    assert [figure.right for figure in curve] == [int((radius > figure.eps).sum()) for figure in curve]
    assert 0.2 < report.figures[1].accuracy < 0.8
    for label, counted in enumerate(report.classes):
        mine = radius[data.targets == label]
        assert counted == (len(mine), int((mine > 0).sum()), int((mine > 0.1).sum()))
    assert report.raised == ()


def test_the_euclidean_radius_of_a_linear_classifier_is_its_margin_over_the_norm():
    data, network = Middling(), Linear()
    margin = ((2 * data.targets - 1) * network.score(data.images) / network.weight.norm()).detach()
    eps = float(margin.median())
    clear = (margin - eps).abs() > 1e-4
    # a step of eps halves what is left
    evaluation = Robustness((L2(eps),), steps=20, step_size=eps, restarts=1, curve=0, checks=0)
    report = evaluation(network, data, Key(0))
    assert abs(report.figures[1].right - int((margin > eps).sum())) <= int((~clear).sum())
    assert report.curves == ()


def test_a_constant_classifier_is_as_robust_as_it_is_right_and_the_flags_say_why():
    class Constant(nn.Module):
        def forward(self, images):
            return torch.tensor([[0.0, 2.0]]).expand(len(images), 2) + 0 * images.flatten(1).sum(1, keepdim=True)

    data = Middling(50)
    report = Robustness((Linf(0.3),), steps=3, curve=2)(Constant(), data, Key(0))
    ones = int((data.targets == 1).sum())
    assert [figure.right for figure in (*report.figures, *report.curves[0])] == [ones] * 5
    assert [flag.name for flag in report.raised] == ["linf: zero gradients", "unbounded attack fails"]


def test_neither_chunk_nor_order_decides_a_verdict():
    network, data = undecided(90)
    evaluation = Robustness((Linf(0.02),), steps=5, restarts=2, curve=0, checks=0, chunk=90)
    whole = robust(evaluation, network, data, Key(0))
    assert 0 < int(whole.sum()) < 90
    for chunk in (7, 32, 48):
        cut = Robustness((Linf(0.02),), steps=5, restarts=2, curve=0, checks=0, chunk=chunk)
        assert torch.equal(robust(cut, network, data, Key(0), backwards=True), whole)


def test_checks_are_made_on_the_first_images_exactly_whatever_the_chunk():
    data, network = Middling(50), Linear()
    seen = []
    for chunk in (12, 50):
        evaluation = Robustness((Linf(0.1),), steps=2, curve=0, checks=20, chunk=chunk)
        verdicts, plan, _ = judged(evaluation, network, data)
        names = [trial.name for trial in plan.trials if trial.role == "check"]
        assert len(names) == 8
        assert all(len(verdicts.columns[name].right) == 20 for name in names)
        seen.append([verdicts.columns[name].right.tolist() for name in names])
    assert seen[0] == seen[1]


def test_an_image_is_robust_only_if_it_holds_in_every_restart():
    """Restart i of an image has a key of its own, so that of three the worst is at most what each finds alone."""
    network, data = undecided(60)
    evaluation = Robustness((Linf(0.05),), steps=1, step_size=0.002, restarts=3, curve=0, checks=0, chunk=60)
    worst = robust(evaluation, network, data, Key(0))
    one, images = PGD(Linf(0.05), 1, 0.002), data.images
    alone = []
    for start in range(3):
        key = Key(0).of("linf/pgd1").rows(torch.arange(60)).of("restart").at(start)
        with torch.no_grad():
            alone.append(network(one(network, images, data.targets, key)).argmax(1) == data.targets)
    assert torch.equal(worst, alone[0] & alone[1] & alone[2])
    assert int(worst.sum()) < max(int(held.sum()) for held in alone)


def test_the_network_is_left_as_it_was():
    data, network = Middling(20), small_network().train()
    before = {name: tensor.clone() for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    report = Robustness((Linf(0.1),), steps=2)(network, data, Key(0))
    after = dict([*network.named_parameters(), *network.named_buffers()])
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(module.training for module in network.modules())
    assert network.now.norm == "group"
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert "train mode" in [flag.name for flag in report.raised]


def test_the_union_is_the_worst_of_the_threat_models_image_by_image():
    """On a linear network an image is robust in both where both radii exceed their eps."""
    network, data = own_labels(60)
    near, far = (network.radius(data.images, data.targets, norm) for norm in ("linf", "l2"))
    eps = float(near.median()), float(far.median())
    evaluation = Robustness((Linf(eps[0]), L2(eps[1])), "apgd-t", curve=0, checks=0)
    report = evaluation(network, data, Key(0))
    held = [near > eps[0], far > eps[1]]
    unclear = int((((near - eps[0]).abs() < 1e-5) | ((far - eps[1]).abs() < 1e-3)).sum())
    exact = [int(held[0].sum()), int(held[1].sum()), int((held[0] & held[1]).sum())]
    assert [(figure.name, figure.threat) for figure in report.figures[1:]] == [
        ("apgd-t", "linf"),
        ("apgd-t", "l2"),
        ("union", "union"),
    ]
    assert all(abs(f.right - right) <= unclear for f, right in zip(report.figures[1:], exact, strict=True))
    assert exact[2] < min(exact[:2])
    assert report.columns == ("clean", "linf/apgd-t", "l2/apgd-t", "union")
    assert sum(row[-1] for row in report.classes) == report.figures[-1].right


def test_threat_models_of_one_kind_are_told_apart_by_their_radius():
    data, network = Middling(40), Linear()
    evaluation = Robustness((Linf(0.05), Linf(0.1)), steps=5, restarts=1, curve=0, checks=0)
    report = evaluation(network, data, Key(0))
    radius = network.radius(data.images, data.targets)
    assert [figure.threat for figure in report.figures[1:]] == ["linf-0.05", "linf-0.1", "union"]
    assert [figure.right for figure in report.figures[1:]] == [int((radius > eps).sum()) for eps in (0.05, 0.1, 0.1)]


def test_threat_models_whose_radii_read_alike_are_judged_each():
    """Radii that agree to four digits, with an image's own radius between them: the second is not the first's."""
    data, network = Middling(1), Linear()
    radius = float(network.radius(data.images, 1 - data.targets).abs())
    data.targets = (network.score(data.images) > 0).long()
    near = (radius * (1 - 1e-5), radius * (1 + 1e-5))
    assert len({f"{eps:.4g}" for eps in near}) == 1
    evaluation = Robustness((Linf(near[0]), Linf(near[1])), steps=40, restarts=1, curve=0, checks=0)
    report = evaluation(network, data, Key(0))
    tags = [figure.threat for figure in report.figures[1:]]
    assert tags == [f"linf-{radius:.4g}", f"linf-{radius:.4g}-2", "union"]
    assert [figure.right for figure in report.figures[1:]] == [1, 0, 0]


def test_accuracy_falls_along_autoattack_and_ends_at_the_exact_share():
    """Each attack is made on what stands, so columns only fall; on a linear network the last is exact."""
    data, network = middling(30), ManyClasses()
    radius = network.radius(data.images, data.targets, "linf")
    verdicts, plan, _ = judged(Robustness((Linf(0.01),), "autoattack-rand", curve=0, checks=0), network, data)
    row = [CLEAN, *(trial.name for trial in plan.of("attack", "linf"))]
    columns = [verdicts.columns[name].right for name in row]
    assert row == ["clean", "linf/apgd-ce", "linf/apgd-dlr"]
    assert all(bool((after <= before).all()) for before, after in pairwise(columns))
    assert torch.equal(columns[-1].bool(), radius > 0.01)
    untouched = verdicts.columns[row[2]].margin.isnan()
    assert torch.equal(untouched, columns[1] == 0)


def test_a_network_with_randomness_of_its_own_is_attacked_over_draws_and_judged_over_passes():
    data = Labelled(*(tensor[:12] for tensor in (middling().images, middling().targets)))
    network = Around(before=lambda images: images + 0.02 * torch.randn_like(images))
    evaluation = Robustness((Linf(0.01),), steps=2, restarts=1, curve=0, checks=0)
    verdicts, plan, seen = judged(evaluation, network, data)
    (attack,) = (trial.attack for trial in plan.of("attack", "linf"))
    assert attack.eot == DRAWS
    assert plan.draws == evaluation.passes == 100
    shares = 100 * verdicts.columns[CLEAN].right
    torch.testing.assert_close(shares, shares.round(), atol=1e-4, rtol=0)
    assert bool(((shares > 0.5) & (shares < 99.5)).any())
    assert [flag.name for flag in seen if flag.raised] == ["randomised"]
    again, _, _ = judged(evaluation, network, data)
    assert torch.equal(again.columns[CLEAN].right, verdicts.columns[CLEAN].right)
    nothing = judged(Robustness((Linf(0.0),), steps=1, restarts=1, curve=0, checks=0), network, data)[0]
    # an attack that does nothing takes nothing: the figure is that of fresh passes, not the least of two
    same = nothing.columns["linf/pgd1"].right - nothing.columns[CLEAN].right
    assert abs(float(same.mean())) < 4 * (0.5 / (12 * 100)) ** 0.5
    standard = Robustness((Linf(0.01),), "autoattack", curve=0, checks=0).plan(12, stochastic=True)
    assert [trial.name for trial in standard.trials] == ["clean", "linf/apgd-ce", "linf/apgd-dlr"]
    assert all(trial.attack.eot == DRAWS for trial in standard.trials[1:])


@dataclass(frozen=True)
class Astray(Attack):
    """Goes further than its threat model allows, or out of the box."""

    threat: Threat
    far: float
    use = "astray"

    def __call__(self, network, images, targets, key, goal=None):
        return images + self.far

    def cost(self) -> float:
        return 0.0


@pytest.mark.parametrize(("eps", "far"), [(0.1, 0.11), (1.0, 0.9), (0.1, -0.100002)])
def test_points_outside_the_threat_model_are_refused(eps, far):
    (batch,) = middling(4).validation_batches(Place(), 4)
    with pytest.raises(NumericsError, match=r"astray: a point lies .* from its image"):
        tried(ManyClasses(), batch, Trial("linf/astray", Astray(Linf(eps), far), ()), [], Key(0))


def test_no_images_are_refused_and_numbers_out_of_range_too():
    with pytest.raises(ConfigError, match=r"no images to judge: name validation shards"):
        Robustness((Linf(0.1),))(Linear(), Middling(0), Key(0))
    with pytest.raises(ValueError, match="restarts=0 must be at least 1"):
        Robustness((Linf(0.1),), restarts=0)
    with pytest.raises(ValueError, match="step_size=0 must be positive"):
        Robustness((Linf(0.1),), step_size=0.0)
    with pytest.raises(ValueError, match="threats is empty"):
        Robustness(())
    with pytest.raises(ValueError, match="attack=cr knows linf, not l2"):
        Robustness((L2(1.0),), "cr")
