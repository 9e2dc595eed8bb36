"""What every registered attack makes of what it is given: refused with the remedy, or no harm done."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.given import counted
from robust_train.keyed import Key
from robust_train.read.errors import InputError
from robust_train.read.registry import attacks
from robust_train.threats.linf import Linf
from tests.registered import examples

ATTACKS = {attack.use: attack for attack in reversed(examples(attacks).values())}  # the first example of each
every = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
KEY = Key(1).rows(torch.arange(4))


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()


def some() -> tuple[Tensor, Tensor]:
    """Images with black and white pixels, and what the network says of them."""
    torch.manual_seed(1)
    images = (torch.rand(4, 1, 8, 8) * 1.4 - 0.2).clamp(0, 1)
    return images, linear()(images).argmax(1)


BAD_IMAGES = {
    "normalised": (lambda x: (x - 0.5) / 0.25, r"look normalised.*into the network"),
    "grey levels": (lambda x: x * 255, "divide them by 255"),
    "bytes": (lambda x: (x * 255).byte(), r"images\.float\(\) / 255"),
    "half": (lambda x: x.half(), r"images\.float\(\)"),
    "nan": (lambda x: x.index_fill(0, torch.tensor([1]), torch.nan), "not finite"),
    "overshoot": (lambda x: x * 1.01, "clip what an interpolation"),
    "one image": (lambda x: x.flatten(), r"images\[None\]"),
    "array": (lambda x: x.numpy(), "give a tensor"),
}
BAD_LABELS = {
    "column": (lambda y: y[:, None], r"labels\.squeeze"),
    "floats": (lambda y: y.float(), r"labels\.long"),
    "too few": (lambda y: y[:3], "beside 4 images"),
    "below 0": (lambda y: y - 4, "labels are classes, from 0"),
    "no such class": (lambda y: y + 4, "the labels speak of"),
    "logits": (lambda y: torch.randn(4, 4), "rows are up to"),
    "shares of more classes": (lambda y: torch.full((4, 6), 1 / 6), "the labels speak of 6 classes"),
    "list": (lambda y: y.tolist(), "give a tensor"),
}
BAD_ANSWERS = {
    "tuple": (lambda z: (z, z), r"tuple of 2.*logits.*model\(images\)\[0\]"),
    "dict": (lambda z: {"logits": z}, r"dict of 'logits'.*model\(images\)\['logits'\]"),
    "other dict": (lambda z: {"out": z}, r"dict of 'out'.*logits.*model\(images\)\['out'\]"),
    "object": (lambda z: SimpleNamespace(logits=z), r"logits.*model\(images\)\.logits"),
    "one logit": (lambda z: z[:, :1], r"logits.*torch\.cat"),
    "flat": (lambda z: z[:, 0], "one row of logits an image"),
    "maps": (lambda z: z[:, :, None, None], r"logits.*flatten\(1\)"),
    "classes": (lambda z: z.argmax(1, keepdim=True).expand(-1, 4), "before any argmax"),
}


def refused(attack, network, images, targets, says: str) -> None:
    with pytest.raises(InputError, match=f"(?s){says}"):
        attack(network, images, targets, KEY)


@every
def test_images_that_are_no_pixels_are_refused(attack) -> None:
    images, labels = some()
    for change, says in BAD_IMAGES.values():
        refused(attack, linear(), change(images), labels, says)


@every
def test_labels_that_are_none_are_refused(attack) -> None:
    images, labels = some()
    for change, says in BAD_LABELS.values():
        if attack.cost() or "speak of" not in says:  # without a forward nobody knows the classes
            refused(attack, linear(), images, change(labels), says)


@every
def test_answers_that_are_no_logits_are_refused(attack) -> None:
    (images, labels), network = some(), linear()
    for change, says in BAD_ANSWERS.values() if attack.cost() else ():
        refused(attack, lambda points, change=change: change(network(points)), images, labels, says)


@every
def test_rounding_is_not_refused(attack) -> None:
    images, labels = some()
    beyond = torch.where(images == 1, 1 + 1e-6, images)
    assert torch.equal(attack(linear(), beyond, labels, KEY), attack(linear(), images, labels, KEY))


class InPlace(nn.Module):
    """Scales its input where it lies, or a copy."""

    def __init__(self, copies: bool = False) -> None:
        super().__init__()
        self.inner, self.copies = linear(), copies

    def forward(self, images: Tensor) -> Tensor:
        images = images.clone() if self.copies else images
        return self.inner(images.sub_(0.25).mul_(2))


@every
def test_a_network_that_works_in_place_harms_nobody(attack) -> None:
    images, _ = some()
    labels, kept = InPlace(copies=True)(images).argmax(1), images.clone()
    found = attack(InPlace(), images, labels, KEY)
    assert torch.equal(images, kept)
    assert torch.equal(found, attack(InPlace(copies=True), images, labels, KEY))


class Named(nn.Module):
    """Its attributes are called as words of our own are."""

    def __init__(self) -> None:
        super().__init__()
        self.module = linear()
        self.drops, self.noise, self.attacked, self.judged, self.plain = (nn.Dropout(0.0) for _ in range(5))
        self.mode, self.noisy, self.classes, self.each, self.now = "RGB", ["yes"], ["cat", "dog"], [nn.ReLU()], None
        self.given, self.by_chance, self.precision, self.settle = None, True, "bf16", None

    def forward(self, images: Tensor) -> Tensor:
        return self.drops(self.module(images))


@every
def test_what_a_module_s_attributes_are_called_means_nothing(attack) -> None:
    images, labels = some()
    assert torch.equal(attack(Named().eval(), images, labels, KEY), attack(linear(), images, labels, KEY))


AROUND = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
}


@every
def test_what_the_caller_is_inside_of_changes_nothing(attack) -> None:
    (images, labels), network = some(), linear()
    found = attack(network, images, labels, KEY)
    for around in AROUND.values():
        with around():
            assert torch.equal(attack(network, images.clone(), labels.clone(), KEY), found)


def test_weights_made_within_inference_mode_are_refused() -> None:
    images, labels = some()
    with torch.inference_mode():
        network = linear()
    refused(next(iter(ATTACKS.values())), network, images, labels, "made within inference_mode")


@every
def test_what_comes_back_has_no_graph_and_is_no_image_of_the_caller_s(attack) -> None:
    images, labels = some()
    found = attack(linear(), images.requires_grad_(), labels, KEY)
    assert not found.requires_grad
    assert found.data_ptr() != images.data_ptr()
    assert images.grad is None


class Root(nn.Module):
    """A root of each pixel: at black its slope is infinite, and where the next weight is 0 it is no number."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor, self.inner = floor, linear()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images.clamp(min=self.floor).sqrt())


@every
def test_a_slope_that_is_not_finite_makes_no_point_that_is_no_number(attack) -> None:
    """The attack is about as strong as on the same function with a finite slope there."""
    images, _ = some()
    labels = Root(0.0)(images).argmax(1)
    found, control = (attack(Root(floor), images, labels, KEY) for floor in (0.0, 1e-12))
    assert found.isfinite().all()
    rights = [int((Root(0.0)(points).argmax(1) == labels).sum()) for points in (found, control)]
    assert abs(rights[0] - rights[1]) <= 1


def test_int32_labels_are_labels() -> None:
    images, labels = some()
    attack = next(iter(ATTACKS.values()))
    assert_close(attack(linear(), images, labels.int(), KEY), attack(linear(), images, labels, KEY))


def test_a_point_that_is_not_finite_is_its_image_again_and_is_told() -> None:
    images = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0)) / 2 + 0.25
    points = images + 0.05
    points[1, 0, 0, 0] = float("nan")
    kept, broken = counted("mine", [Linf(0.1)], images, points)
    assert broken.tolist() == [False, True, False]
    assert torch.equal(kept[1], images[1])
    assert torch.equal(kept[::2], points[::2])
