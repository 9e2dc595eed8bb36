"""robust_train.evaluate: any module, any attack, from Python."""

from __future__ import annotations

import json

import numpy
import pytest
import torch
from torch import nn

import robust_train
from robust_train.attacks.fgsm import FGSM, NFGSM
from robust_train.attacks.pgd import PGD
from robust_train.door.named import attack_of, threats_of
from robust_train.read.errors import ConfigError
from robust_train.read.registry import attacks
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.threats.pixels import L0
from tests.evaluate.linear import Linear, Middling

NET, DATA = Linear(), Middling()
ROBUST = float((NET.radius(DATA.images, DATA.targets) >= 0.1).float().mean())  # the closed form
QUICK = {"threats": {"linf": 0.1}, "checks": 0}


def judged(**asked):
    return robust_train.evaluate(NET, DATA.images, DATA.targets, **{**QUICK, **asked})


def sign(module, images, labels, size=0.1):
    """A user's attack: the worst point of a linear network."""
    images = images.requires_grad_()
    nn.functional.cross_entropy(module(images), labels, reduction="sum").backward()
    return (images + size * images.grad.sign()).clamp(0, 1)


def test_accuracies_are_those_of_the_closed_form_whoever_attacks():
    clean = float((NET.radius(DATA.images, DATA.targets) >= 0).float().mean())
    report = judged(attack=["fgsm", sign, {"use": "apgd", "steps": 5}, FGSM(Linf(0.1))], steps=4)
    names = ["linf/fgsm", "linf/sign", "linf/apgd-ce-5", "linf/fgsm", "linf/worst"]
    assert [figure.title for figure in report.figures] == ["clean", *names]
    assert report.clean_accuracy == pytest.approx(clean)
    assert all(figure.accuracy == pytest.approx(ROBUST) for figure in report.figures[1:])
    assert report.robust_accuracy == pytest.approx(ROBUST)
    assert not [flag for flag in report.raised if "refused" in flag.name]
    stands = NET.radius(DATA.images, DATA.targets) >= 0.1
    assert torch.equal(report.right["linf/sign"] == 1, stands)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in NET.parameters())
    for label, (name, row) in enumerate(report.per_class.items()):
        own = DATA.targets == label
        assert name == str(label)
        assert row["images"] == int(own.sum())
        assert row["linf/worst"] == pytest.approx(float(stands[own].float().mean()))


def test_attacks_of_a_list_attack_by_themselves_and_the_worst_counts():
    """One fools the even images alone, the other the odd ones: each figure is its own, and nothing stands."""

    def half(parity):
        def only(module, images, labels):
            return torch.where(
                (labels % 2 == parity).view(-1, 1, 1, 1), sign(module, images.clone(), labels, 0.2), images
            )

        return only

    report = judged(threats={"linf": 0.2}, attack=[half(0), half(1)])
    right = NET.radius(DATA.images, DATA.targets) >= 0
    first, second = (float((right & (DATA.targets % 2 == other)).float().mean()) for other in (1, 0))
    assert report.accuracies["linf/only"] in (pytest.approx(first), pytest.approx(second))
    assert [figure.accuracy for figure in report.figures[1:]] == [pytest.approx(first), pytest.approx(second), 0]


def test_several_threat_models_have_a_union_of_all_that_attacks():
    report = judged(threats={"linf": 0.1, "l2": 0.2}, attack=["fgsm", sign])
    assert report.figures[-1].title == "union"
    rights = [report.right[name] for name in ("linf/worst", "l2/worst")]
    assert torch.equal(report.right["union"], torch.minimum(*rights))
    assert report.robust_accuracy == float(report.right["union"].double().mean())
    assert "l2/sign: points refused" in {flag.name for flag in report.raised}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda points: points + 0.001, "outside linf of eps 0.1, the farthest at 0.101"),
        (lambda points: points * torch.nan, "not finite"),
        (lambda points: points.flatten(1).index_fill(1, torch.tensor([3]), torch.inf).view_as(points), "not finite"),
    ],
)
def test_what_is_no_point_counts_for_nothing_and_is_said(spoil, said):
    report = judged(attack=lambda module, images, labels: spoil(sign(module, images, labels)))
    assert report.robust_accuracy == report.clean_accuracy
    (flag,) = [flag for flag in report.raised if "refused" in flag.name]
    assert said in flag.says
    assert flag.value == report.clean_accuracy * len(DATA.images)
    assert flag.name in str(report)


def test_pixels_outside_the_box_are_refused_and_a_single_bad_point_alone():
    def beyond(module, images, labels):
        images[0] = images[0] * 0 - 0.05
        return images

    dark = DATA.images * 0 + 0.001
    report = robust_train.evaluate(NET, dark, NET(dark).argmax(1), attack=beyond, **QUICK)
    (flag,) = [flag for flag in report.raised if "refused" in flag.name]
    assert (flag.value, "1 with pixels outside [0, 1]" in flag.says) == (1, True)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            lambda module, images, labels: images[:, :1],
            r"returned a tensor \[182, 1, 6, 6\] for images \[182, 3, 6, 6\]",
        ),
        (lambda module, images, labels: (images, labels), "returned tuple"),
    ],
)
def test_an_answer_of_another_shape_is_refused(answer, said):
    with pytest.raises(ConfigError, match=said):
        judged(attack=answer)


def test_nothing_of_the_callers_is_written_on_and_nothing_is_kept_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = DATA.images.clone(), DATA.targets.clone()

    def rude(module, images, labels):
        labels.zero_()
        return images.clamp_(0.4, 0.5)

    robust_train.evaluate(NET, images, labels, threats={"linf": 0.2}, attack=rude, checks=0)
    assert torch.equal(images, DATA.images)
    assert torch.equal(labels, DATA.targets)
    assert not list(tmp_path.iterdir())


def test_adversarial_images_come_on_request_and_the_report_is_json(tmp_path):
    report = judged(attack=sign, points=True)
    assert report.adversarial.shape == DATA.images.shape
    with torch.no_grad():
        again = NET(report.adversarial).argmax(1) == DATA.targets
    assert float(again.float().mean()) == pytest.approx(report.robust_accuracy)
    assert not report.adversarial.requires_grad
    tree = json.loads(report.to_json(tmp_path / "report.json"))
    assert tree == json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    assert tree["robust_accuracy"] == report.robust_accuracy
    with pytest.raises(ConfigError, match="points=True"):
        _ = judged(attack=sign).adversarial


def test_arrays_and_data_sets_are_judged_alike(small_run):
    arrays = robust_train.evaluate(
        NET, DATA.images.numpy(), DATA.targets.numpy().astype(numpy.int32), attack="fgsm", **QUICK
    )
    assert arrays.accuracies == judged(attack="fgsm").accuracies
    network = robust_train.load(small_run.parent / "run")
    data = {"use": "digits", "folder": str(small_run.parent / "digits")}
    by_name = robust_train.evaluate(network, data=data, limit=32, attack="fgsm", **QUICK)
    assert by_name.images == 32
    assert sum(row["images"] for row in by_name.per_class.values()) == 32


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": DATA.images * 255}, "divide them by 255"),
        ({"images": (DATA.images - 0.5) * 4}, "They look normalised"),
        ({"images": (DATA.images * 255).to(torch.uint8)}, "uint8: give pixels in"),
        ({"images": DATA.images * torch.nan}, "not finite"),
        ({"labels": DATA.targets[:, None]}, r"\[203, 1\]: give \[B\], labels.squeeze\(1\)"),
        ({"labels": DATA.targets.float()}, "float32"),
        ({"labels": DATA.targets + 1}, "labels run from 1 to 2: labels are classes, from 0 to 1"),
        ({"labels": DATA.targets[:9]}, "beside 203 images"),
        ({"labels": None}, "give images and labels, or data"),
        ({"module": lambda images: (NET(images),)}, "gives a tuple of 1 where logits are wanted"),
        ({"module": lambda images: NET(images)[:, :1]}, r"gives a tensor \[2, 1\]"),
        ({"threats": None}, "needs a threat model: say threats="),
        ({"threats": "linf"}, "says no radius"),
        ({"threats": {"linf": "eight"}}, "write a number, such as 8/255"),
        ({"threats": {"linv": 0.1}}, "did you mean 'linf'"),
        ({"attack": "pgdd"}, "is no attack; did you mean 'pgd'"),
        ({"attack": {"use": "apgd", "stepz": 3}}, "no such field"),
        ({"attack": 7}, "attack=7 is no attack"),
        ({"attack": []}, "empty list"),
        ({"attack": "n-fgsm"}, "nfgsm finds points in linf of eps 0.3, and what is asked is linf of eps 0.1"),
        ({"attack": "autoattack", "steps": 5}, "has its own steps"),
        ({"attack": FGSM(L2(0.1))}, "finds points in l2 of eps 0.1, and what is asked is linf"),
        ({"batch": 0}, "chunk=0 must be at least 1"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_a_word_with_the_remedy(changed, said):
    asked = {"module": NET, "images": DATA.images, "labels": DATA.targets, **QUICK, **changed}
    with pytest.raises(ConfigError, match=said):
        robust_train.evaluate(asked.pop("module"), asked.pop("images"), asked.pop("labels"), **asked)


@pytest.mark.parametrize("name", sorted(set(attacks) - {"restarts", "worst-of", "n-fgsm"}))
def test_every_registered_attack_can_be_had_by_its_name(name):
    """In some threat model, with its usual settings."""
    made, reasons = None, []
    for threat in (Linf(0.1), L2(0.5), L1(2.0), L0(1)):
        try:
            made = attack_of(name, threat)
            break
        except ConfigError as error:
            reasons.append(str(error))
    assert made is not None, reasons
    assert made.use == name
    assert made.reach() == (threat,)


def test_steps_and_fields_take_the_place_of_the_usual():
    (threat,) = threats_of({"linf": "8/255"})
    assert attack_of("pgd", threat, steps=10) == PGD(threat, 10, 2.5 * 8 / 255 / 10)
    assert attack_of({"use": "pgd", "step_size": 0.01, "start": "zero"}, threat) == PGD(threat, 50, 0.01, "zero")
    one = attack_of({"use": "restarts", "attack": "fgsm", "restarts": 3}, threat)
    assert one.attack == FGSM(threat)
    assert attack_of(NFGSM(threat), L2(1.0)).threat == threat, "an Attack stays as it is"
