"""The evaluation by PGD gives the accuracy that a network with a known answer has, and says where it may not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robust_train.evaluate.masking import without_gradient
from robust_train.evaluate.pgd import PGDEvaluation
from robust_train.evaluate.report import Figure, judge
from robust_train.keyed import Key
from robust_train.models.network import Network
from robust_train.models.small_cnn import SmallCNN
from robust_train.read.errors import ConfigError
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from tests.evaluate.linear import SIDE, Linear, Middling


def small_network() -> Network:
    torch.manual_seed(0)
    return Network(SmallCNN((8, 8), (2, 1)).build(2, 3, SIDE), 2, mean=(0.5,), std=(0.25,))


def undecided(number: int) -> tuple[Network, Middling]:
    """A network whose boundary goes through the middle of noise images, and labels that are its own predictions."""
    network, data = small_network().eval(), Middling(number)
    data.images = torch.rand(data.images.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = network(data.images)
        network.model.head.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
        data.targets = network(data.images).argmax(1)
    return network, data


def test_on_a_linear_classifier_the_figures_are_exact():
    """Robust at eps where margin > eps |w|_1: by PGD with restarts, and at every point of the curve."""
    data, network = Middling(), Linear()
    radius = network.radius(data.images, data.targets)
    report = PGDEvaluation(Linf(0.1), steps=4, restarts=2, curve=5, chunk=60)(network, data, Key(0))
    assert [figure.right for figure in report.figures] == [int((radius > eps).sum()) for eps in (0, 0.1)]
    assert [figure.eps for figure in report.curve] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16, 0.2])
    assert [figure.right for figure in report.curve] == [int((radius > figure.eps).sum()) for figure in report.curve]
    assert 0.2 < report.figures[1].accuracy < 0.8
    for label, counted in enumerate(report.classes):
        mine = radius[data.targets == label]
        assert counted == (len(mine), int((mine > 0).sum()), int((mine > 0.1).sum()))
    assert report.signs == ()


def test_the_euclidean_radius_of_a_linear_classifier_is_its_margin_over_the_norm():
    data, network = Middling(), Linear()
    margin = ((2 * data.targets - 1) * network.score(data.images) / network.weight.norm()).detach()
    eps = float(margin.median())
    clear = (margin - eps).abs() > 1e-4
    evaluation = PGDEvaluation(L2(eps), steps=20, step_size=eps, restarts=1, curve=0)  # halves what is left each step
    report = evaluation(network, data, Key(0))
    assert abs(report.figures[1].right - int((margin > eps).sum())) <= int((~clear).sum())
    assert report.curve == ()


def test_a_constant_classifier_is_as_robust_as_it_is_right():
    class Constant(nn.Module):
        def forward(self, images):
            return torch.tensor([[0.0, 1.0]]).expand(len(images), 2) + 0 * images.flatten(1).sum(1, keepdim=True)

    data = Middling(50)
    report = PGDEvaluation(Linf(0.3), steps=3, curve=2)(Constant(), data, Key(0))
    ones = int((data.targets == 1).sum())
    assert [figure.right for figure in (*report.figures, *report.curve)] == [ones] * 5
    assert "no gradient at all" in report.signs[0]


def test_neither_chunk_nor_order_decides_a_verdict():
    network, data = undecided(90)
    attack = PGDEvaluation(Linf(0.02), steps=5, restarts=2).attack
    whole = judge(network, data.validation_batches(None, 90), attack, Key(0))
    assert 0 < int(whole.robust.sum()) < int(whole.clean.sum())
    for chunk in (7, 32, 48):
        cut = judge(network, reversed(list(data.validation_batches(None, chunk))), attack, Key(0))
        assert torch.equal(cut.robust[cut.sample.argsort()], whole.robust)


def test_an_image_is_robust_only_if_it_holds_in_every_restart():
    """Restart i of an image has a key of its own, so that of three the worst is at most what each finds alone."""
    network, data = undecided(60)
    evaluation = PGDEvaluation(Linf(0.05), steps=1, step_size=0.002, restarts=3)
    worst = judge(network, data.validation_batches(None, 60), evaluation.attack, Key(0)).robust
    alone = []
    for start in range(3):
        one = PGDEvaluation(Linf(0.05), steps=1, step_size=0.002, restarts=1).attack
        alone.append(judge(network, data.validation_batches(None, 60), one, Key(0).of("restart").at(start)).robust)
    assert torch.equal(worst, alone[0] & alone[1] & alone[2])
    assert int(worst.sum()) < max(int(robust.sum()) for robust in alone)


def test_the_network_is_left_as_it_was():
    data, network = Middling(20), small_network().train()
    before = {name: tensor.clone() for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    PGDEvaluation(Linf(0.1), steps=2)(network, data, Key(0))
    after = dict([*network.named_parameters(), *network.named_buffers()])
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(module.training for module in network.modules())
    assert network.norms.use == "group"
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_a_network_whose_softmax_is_saturated_is_found_to_have_no_gradient():
    """Scaled up by 1e7 the linear classifier is the same classifier, and its cross-entropy is flat in float32."""
    data = Middling()
    batch = next(data.validation_batches(None, 500))
    assert without_gradient(Linear(), batch) == 0
    assert without_gradient(Linear(scale=1e6), batch) == 1
    report = PGDEvaluation(Linf(0.1), steps=4, curve=0)(Linear(scale=1e6), data, Key(0))
    assert report.figures[1].right > PGDEvaluation(Linf(0.1), 4, curve=0)(Linear(), data, Key(0)).figures[1].right
    assert "100% of the right images have no gradient" in report.signs[0]


def test_accuracy_that_rises_with_eps_is_a_sign_of_masking():
    from robust_train.evaluate.masking import signs

    falling = [Figure("pgd", right, 100, eps) for eps, right in ((0.0, 90), (0.1, 50), (0.2, 51))]
    rising = [*falling[:2], Figure("pgd", 60, 100, 0.2)]
    assert signs(falling, 0.0) == ()
    assert "accuracy rises from 50.0% at eps 0.1 to 60.0% at eps 0.2" in signs(rising, 0.0)[0]


def test_no_images_are_refused_and_numbers_out_of_range_too():
    with pytest.raises(ConfigError, match=r"no images to judge: name validation shards"):
        PGDEvaluation(Linf(0.1))(Linear(), Middling(0), Key(0))
    with pytest.raises(ValueError, match="restarts=0 must be at least 1"):
        PGDEvaluation(Linf(0.1), restarts=0)
    with pytest.raises(ValueError, match="step_size=0 must be positive"):
        PGDEvaluation(Linf(0.1), step_size=0.0)
