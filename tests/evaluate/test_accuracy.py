"""Verdicts: right when clean and when attacked, by fresh forwards in float32 and eval mode."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robust_train.evaluate.accuracy import judged, tally, verdicts
from robust_train.keyed import Key
from robust_train.models.network import Network
from robust_train.models.small_cnn import SmallCNN
from robust_train.nouns import Attack, Place
from robust_train.threats.linf import Linf
from tests.evaluate.linear import Linear, Middling


@dataclass(frozen=True)
class Mirror(Attack):
    """Turns every image into its negative, which the linear classifier puts on the other side."""

    threat = Linf(1.0)

    def __call__(self, network, images, targets, key, goal=None):
        return 1 - images

    def cost(self) -> float:
        return 0


def test_an_attack_that_helps_makes_no_image_right():
    """Under the negative exactly the wrong images become right; none of them counts, nor do those that became wrong."""
    data = Middling(50)
    batch = next(data.validation_batches(Place(), 50))
    clean, robust, adversarial = verdicts(Linear(), batch, Mirror(), Key(0))
    assert 0 < clean.sum() < 50
    assert robust.sum() == 0
    assert torch.equal(adversarial, 1 - batch.images)
    images, right, held = tally(Linear(), data.validation_batches(Place(), 8), Mirror(), Key(0), "cpu", torch.float32)
    assert (images, right, held) == (50, clean.sum(), 0)


def test_without_an_attack_both_verdicts_are_the_clean_one():
    batch = next(Middling(50).validation_batches(Place(), 50))
    clean, robust, adversarial = verdicts(Linear(), batch, None, Key(0))
    assert torch.equal(clean, robust)
    assert adversarial is batch.images


def test_a_network_is_judged_in_eval_mode_and_float32_and_given_back_as_it_was():
    network = Network(SmallCNN((4,), (2,)).build(2, (3, 8, 8)), 2, precision="bf16").train()
    network.model.head.eval()  # modes are restored one by one
    with judged(network):
        assert not any(module.training for module in network.modules())
        assert (network.precision, network.now.norm, network.now.record) == ("fp32", "running", False)
    assert (network.precision, network.now.norm, network.now.record) == ("bf16", "group", True)
    assert network.model.block1.training
    assert not network.model.head.training


def test_any_function_of_images_can_be_judged():
    batch = next(Middling(50).validation_batches(Place(), 50))
    linear = Linear()
    assert torch.equal(
        verdicts(lambda images: linear(images), batch, None, Key(0))[0], verdicts(linear, batch, None, Key(0))[0]
    )
