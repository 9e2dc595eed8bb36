"""The attacks of pyautoattack as we call them: what the closed form says of a linear network, at the budgets named."""

from __future__ import annotations

import pytest
import torch

from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.tools.peer_attacks import PLUS, STANDARD, pyautoattack, pyautoattack_whole
from tests.peers.classifiers import Linear, middling

package = pytest.importorskip("pyautoattack")

BALLS = pytest.mark.parametrize(("ball", "dual"), [(Linf, 1.0), (L2, 2.0)], ids=["linf", "l2"])


def problem(ball: type, dual: float) -> tuple:
    """The network, its images and labels, their radii, and the ball that half of them survive by a clear margin."""
    network, images = Linear(), middling()
    targets, radii = network(images).argmax(1), network.radii(images, dual)
    order = radii.sort().values
    gaps = order[1:] - order[:-1]
    middle = len(order) // 2 - 5 + int(gaps[len(order) // 2 - 5 : len(order) // 2 + 5].argmax())
    return network, images, targets, radii, ball(float(order[middle] + order[middle + 1]) / 2)


def survivors(network: Linear, adversarial: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return network(adversarial).argmax(1) == targets


@BALLS
@pytest.mark.parametrize("which", ["apgd-t", "fab-t"])
def test_a_targeted_attack_fools_exactly_the_images_whose_radius_is_within_eps(which, ball, dual):
    """Nine goals of eleven classes: the nearest boundary is that of a class with a large logit."""
    network, images, targets, radii, threat = problem(ball, dual)
    adversarial = pyautoattack(threat, which, steps=30)(network, images, targets)
    assert torch.equal(survivors(network, adversarial, targets), radii > threat.eps)
    assert threat.distance(images, adversarial).max() <= threat.eps * (1 + 1e-5) + 1e-7


@BALLS
@pytest.mark.parametrize("which", ["apgd-ce", "apgd-dlr", "square"])
def test_an_untargeted_attack_never_fools_an_image_whose_radius_is_beyond_eps(which, ball, dual):
    network, images, targets, radii, threat = problem(ball, dual)
    adversarial = pyautoattack(threat, which, steps=30, queries=300)(network, images, targets)
    held = survivors(network, adversarial, targets)
    assert held[radii > threat.eps].all()
    assert (~held).float().mean() > (radii <= threat.eps).float().mean() / 3  # and it is an attack


@pytest.mark.slow
@BALLS
@pytest.mark.parametrize(("version", "attacks", "restarts"), [("standard", STANDARD, None), ("plus", PLUS, 5)])
def test_the_whole_cascade_is_exact_and_the_packages_version_to_the_bit(ball, dual, version, attacks, restarts):
    network, images, targets, radii, threat = problem(ball, dual)
    ours = pyautoattack_whole(threat, attacks, queries=200, restarts=restarts)(network, images, targets)
    norm = {"linf": "Linf", "l2": "L2"}[threat.use]
    with torch.random.fork_rng([]):
        whole = package.AutoAttack(network, norm=norm, eps=threat.eps, seed=0, version=version)
        assert (tuple(whole.attacks_to_run), whole.square.n_queries) == (attacks, 5000)
        whole.square.n_queries = 200  # the rest of them change nothing here but the time
        theirs, _ = whole.run_standard_evaluation(images, targets, batch_size=len(images))
    assert torch.equal(ours, theirs)
    assert torch.equal(survivors(network, ours, targets), radii > threat.eps)


def test_a_shorter_run_has_the_checkpoints_of_its_own_length():
    """At 20 steps the step size is looked at after 4 steps; set after construction, it would be after 22, never."""
    from robust_train.tools.peer_attacks import _autoattack

    network, _, _, _, threat = problem(Linf, 1.0)
    whole = _autoattack(network, torch.device("cpu"), threat, STANDARD, 20, 7, 10, 0)
    for attack in (whole.apgd, whole.apgd_targeted):
        assert (attack.n_iter, attack.n_iter_2, attack.n_iter_min, attack.size_decr) == (20, 4, 1, 1)
    assert (whole.fab.n_iter, whole.square.n_queries) == (20, 10)
    assert (whole.apgd_targeted.n_target_classes, whole.fab.n_target_classes) == (7, 7)


def test_torchs_own_random_state_is_as_it_was():
    network, images, targets, _, threat = problem(Linf, 1.0)
    before = torch.random.get_rng_state()
    pyautoattack(threat, "apgd-ce", steps=2)(network, images, targets)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_loss_of_each_apgd_is_its_own():
    """Logits times 2^16, which rounds nothing: the ratio of logits is the same to the bit, cross-entropy saturates."""
    network, images, targets, _, threat = problem(Linf, 1.0)
    loud = Linear()
    loud.weight *= 2**16
    for which, same in (("apgd-dlr", True), ("apgd-t", True), ("apgd-ce", False)):
        attack = pyautoattack(threat, which, steps=10)
        assert torch.equal(attack(network, images, targets), attack(loud, images, targets)) is same
