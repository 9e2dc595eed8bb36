"""Each flag is raised by a network built to raise it, and an honest network raises none."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from robust_train.attacks.pgd import PGD
from robust_train.attacks.square import Square
from robust_train.evaluate import flags
from robust_train.evaluate.report import Report
from robust_train.evaluate.robustness import Robustness
from robust_train.evaluate.signs import (
    above_clean,
    classes_in_order,
    curve_rises,
    margin_rises,
    more_steps_help,
    numbers,
    signs,
    square_helps,
)
from robust_train.evaluate.trial import CLEAN, Column, Trial, tried
from robust_train.evaluate.verdicts import Plan, Verdicts
from robust_train.keyed import Key
from robust_train.nouns import Attack, Place
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from tests.attacks.many_classes import CLASSES, ManyClasses
from tests.evaluate import zoo
from tests.evaluate.zoo import Around, Labelled, middling

QUICK = Robustness((Linf(0.01),), steps=6, restarts=1, checks=30)


def raised(report: Report) -> set[str]:
    """The names of the flags that are up, less the threat model's."""
    return {flag.name.removeprefix("linf: ") for flag in report.raised}


def judged(network, data: Labelled | None = None, evaluation: Robustness = QUICK) -> Report:
    return evaluation(network, data or middling(), Key(0))


def test_an_honest_network_raises_none_and_every_flag_is_looked_for():
    """Linear, so that every gradient is right everywhere; in three threat models."""
    threats = (Linf(0.01), L2(0.08), L1(0.5))
    report = judged(ManyClasses(), evaluation=replace(QUICK, threats=threats, steps=12, curve=2))
    assert raised(report) == set()
    assert all(flag.raised is False for flag in report.flags)
    assert len({flag.name for flag in report.flags}) == len(report.flags) == 6 + 3 * 3 + 3 * 9 + 2


@pytest.mark.parametrize(
    ("flag", "network"),
    {
        "probabilities instead of logits": Around(after=lambda z: z.softmax(1)),
        "dynamic": zoo.Purified(),
        "train mode": Around(after=zoo.of_the_batch),
        "single precision": Around(after=lambda z: z + 3e6),
    }.items(),
)
def test_a_network_with_one_fault_raises_its_flag_alone(flag, network):
    assert raised(judged(network)) == {flag}


@pytest.mark.parametrize("faulty", [lambda z: 1e-8 * z, lambda z: z + 3e6], ids=["tiny", "far from 0"])
def test_logits_that_float32_cannot_tell_apart_raise_single_precision(faulty):
    """Their spread is some steps of float32 beside ln 12, or beside the logits themselves."""
    (batch,) = middling().validation_batches(Place(), 60)
    flag = flags.precision(Around(after=faulty), batch, False)
    assert flag.raised
    assert "too close on 100%" in flag.says


def test_a_network_unlike_itself_in_float64_raises_single_precision():
    """Pixels that pass through numbers of two million keep eight levels in float32."""
    flag = next(flag for flag in judged(Around(before=zoo.absorbed)).flags if flag.name == "single precision")
    assert flag.raised
    assert flag.says.startswith("logits are saturated on 0%, too close on 0%, unlike float64's on 9")


def test_saturation_counts_from_the_gap_at_which_the_labels_term_cancels():
    """1 - p_y is exp(-gap) beside one other class: below half a step of float32 under 1 from a gap of 17 on."""
    (batch,) = middling(4).validation_batches(Place(), 4)
    for gap, share in ((14.0, 0.0), (18.0, 1.0), (2e3, 1.0)):
        logits = torch.full((4, CLASSES), -4e3).scatter(1, batch.targets[:, None], gap)
        logits[torch.arange(4), (batch.targets + 1) % CLASSES] = 0.0
        flag = flags.precision(lambda images, logits=logits: logits, batch, False)
        assert flag.value == share
        assert "no copy in float64" in flag.says


def test_huge_logits_have_no_gradient_in_cross_entropy_and_one_in_dlr():
    """As after defensive distillation: the softmax is exactly one-hot."""
    report = judged(Around(after=lambda z: 1e4 * z))
    names = {"single precision", "zero gradients", "square beats gradients", "unbounded attack fails"}
    assert raised(report) >= names
    says = next(flag.says for flag in report.flags if flag.name == "linf: zero gradients")
    assert says.startswith("the cross-entropy has no gradient on 100.0% and the DLR has no gradient on 0.0%")


def test_quantised_images_have_no_gradient_and_the_identitys_gradient_closes_the_gap():
    masked, honest = (judged(Around(before=zoo.quantised(12, bpda))) for bpda in (False, True))
    assert raised(masked) >= {"zero gradients", "square beats gradients", "noise beats gradients"}
    assert raised(masked) >= {"unbounded attack fails"}
    assert masked.figures[0].right == honest.figures[0].right
    assert masked.figures[1].accuracy > honest.figures[1].accuracy + 0.3
    assert raised(honest) == set()


def test_shattered_gradients_lead_astray():
    report = judged(Around(before=zoo.shattered))
    assert raised(report) >= {"loss falls with eps", "square beats gradients", "margin rises with eps"}
    assert "zero gradients" not in raised(report)


def test_a_reversed_gradient_makes_attacked_images_better_than_clean_ones():
    data = zoo.runners_up(middling())
    report = judged(Around(before=zoo.reversed_gradient), data)
    assert raised(report) >= {"robust above clean", "loss falls with eps", "square beats gradients"}
    assert "robust above clean" not in raised(judged(ManyClasses(), data))


def test_a_network_that_noise_makes_better_is_seen_though_the_attack_makes_it_worse():
    report = judged(zoo.Memorised(), zoo.on_tenths(middling()), replace(QUICK, threats=(Linf(0.04),)))
    flag = next(flag for flag in report.flags if flag.name == "linf: robust above clean")
    assert flag.raised
    assert report.figures[1].accuracy <= report.figures[0].accuracy < 0.2
    assert flag.value > 0.5


def test_a_gradient_that_is_right_at_the_images_alone_loses_to_one_step():
    report = judged(Around(before=zoo.blind_off_tenths), zoo.on_tenths(middling()))
    assert raised(report) >= {"accuracy rises with steps", "noise beats gradients"}
    assert not raised(report) & {"zero gradients", "loss falls with eps"}


def test_a_denoiser_that_sets_back_larger_perturbations_holds_more_in_larger_balls():
    report = judged(Around(before=zoo.snapped), zoo.on_tenths(middling()))
    assert raised(report) >= {"accuracy rises with eps", "margin rises with eps", "noise beats gradients"}
    assert raised(judged(ManyClasses(), zoo.on_tenths(middling()))) == set()


def test_a_network_that_no_image_can_change_raises_only_that_nothing_reaches_zero():
    data = middling()
    report = judged(zoo.Stubborn(), replace(data, targets=torch.zeros_like(data.targets)))
    assert raised(report) == {"unbounded attack fails"}


def test_too_weak_an_attack_is_told_that_more_steps_help():
    data, network = middling(), ManyClasses()
    weak = judged(network, evaluation=replace(QUICK, steps=2, step_size=1e-4, checks=60, curve=0))
    assert raised(weak) >= {"more steps help", "more restarts help", "accuracy rises with steps"}
    count = next(flag for flag in weak.flags if flag.name == "linf: more steps help")
    strong = PGD(Linf(0.01), 20, 0.005)(network, data.images, data.targets, Key(1))
    with torch.no_grad():
        held = float((network(strong).argmax(1) == data.targets).float().mean())
    assert count.value == pytest.approx(weak.figures[1].accuracy - held, abs=1.5 / 60)


def test_train_mode_is_seen_before_it_is_set_aside():
    data = middling()
    network = zoo.Normed(data.images)
    assert raised(judged(network.eval(), data)) == set()
    report = judged(network.train(), data)
    assert raised(report) == {"train mode"}
    assert network.norm.training
    assert "BatchNorm1d" in next(flag.says for flag in report.raised)


def test_dropout_that_eval_mode_does_not_end_is_randomness():
    network = Around(before=lambda images: nn.functional.dropout(images, 0.02, training=True))
    data = Labelled(*(tensor[:20] for tensor in (middling().images, middling().targets)))
    report = judged(network, data, replace(QUICK, steps=2, checks=10, curve=0))
    assert raised(report) == {"randomised"}
    assert report.figures[1].attack["eot"] == 20


def test_randomness_counts_from_the_limit_of_autoattacks_code_on():
    """Unit logits 1e-4 apart, whatever the logits' scale."""
    (batch,) = middling().validation_batches(Place(), 60)

    def moved(apart: float):
        calls = 0

        def network(images: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            angle = torch.tensor(apart * (calls % 2))
            logits = torch.zeros(len(images), CLASSES)
            logits[:, 0], logits[:, 1] = 50 * angle.cos(), 50 * angle.sin()
            return logits

        return network

    assert not flags.random_forward(moved(0.5e-4), batch).raised
    assert flags.random_forward(moved(2e-4), batch).raised


def test_gradients_taken_inside_a_forward_are_seen_and_a_profiler_stays_in_place():
    (batch,) = middling(3).validation_batches(Place(), 3)
    told = []

    def profiler(frame, event, argument):
        told.append(event)

    class Backward(Around):
        def forward(self, images):
            with torch.enable_grad():
                points = images.detach().clone().requires_grad_()
                self.linear(points).sum().backward(inputs=[points])
            return self.linear(images)

    def grad(images):
        return images

    sys.setprofile(profiler)
    try:
        seen = [flags.autograd_inside(network, batch) for network in (zoo.Purified(), Backward(), Around(before=grad))]
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert [(flag.raised, flag.value) for flag in seen] == [(True, 1), (True, 1), (False, 0)]


def test_fewer_classes_than_targets_are_named():
    """Nine targets need ten classes (FAB-T has nine in L1 too), the DLR three."""

    def few(classes: int, attack: str = "autoattack", threat=None, chance: bool = False) -> bool | None:
        return flags.too_few_classes(classes, attack, [("tag", threat or Linf(0.1))], chance).raised

    assert [few(classes) for classes in (2, 3, 9, 10, 100)] == [True, True, True, False, False]
    assert [few(classes, threat=L1(1.0)) for classes in (6, 9, 10)] == [True, True, False]
    assert [few(classes, "autoattack-rand") for classes in (2, 3)] == [True, False]
    assert [few(classes, chance=True) for classes in (2, 3)] == [True, False]
    assert [few(2, attack) for attack in ("pgd", "cr", "apgd-ce")] == [False] * 3
    assert [few(classes, "apgd-t") for classes in (9, 10)] == [True, False]
    network = ManyClasses(classes=5)
    network.classes = 5
    data = Labelled(middling().images, middling().targets % 5, 5)
    assert raised(judged(network, data, Robustness((Linf(0.01),), "apgd-t", curve=0, checks=0))) == {"too few classes"}


def test_flags_whose_attacks_were_not_made_say_so():
    report = judged(ManyClasses(), evaluation=replace(QUICK, checks=0, curve=0))
    unseen = {flag.name: flag.says for flag in report.flags if flag.raised is None}
    assert len(unseen) == 9
    assert unseen["unbounded attack fails"].endswith("say --checks 100")
    assert unseen["linf: accuracy rises with eps"].endswith("say --curve 4")


@dataclass
class Told:
    """Verdicts that say what a test wants: by trial how many of the images stand, the first so many."""

    images: int = 1000
    draws: int = 1

    def verdicts(self, trials: list[Trial], standing: list[float], shift: float = 0.0) -> tuple[Verdicts, Plan]:
        columns = {}
        for trial, count in zip(trials, standing, strict=True):
            right = (torch.arange(trial.images or self.images) < count).float()
            nothing = torch.full_like(right, torch.nan)
            columns[trial.name] = Column(right, right + shift, nothing, nothing.int())
        rows = torch.arange(self.images)
        return Verdicts(rows, rows * 0, columns, {}), Plan(tuple(trials), CLASSES, self.draws)


CLEANLY = Trial(CLEAN, None, (), role="clean")
FIGURE = Trial("linf/pgd6", PGD(Linf(0.1), 6, 0.1), (CLEAN,), "linf")


@pytest.mark.parametrize(("fell", "expected"), [(2, False), (3, True)])
def test_square_counts_from_two_in_a_thousand_on_as_in_autoattacks_code(fell, expected):
    square = Trial("linf/square", Square(Linf(0.1), 9), (CLEAN, FIGURE.name), "linf")
    later = Trial("linf/fab", PGD(Linf(0.1), 7, 0.1), (*square.after, square.name), "linf")
    verdicts, plan = Told().verdicts([CLEANLY, FIGURE, square, later], [900, 500, 500 - fell, 400])
    assert square_helps(verdicts, plan, "linf").raised is expected


@pytest.mark.parametrize(
    ("images", "fell", "expected"), [(1000, 5, False), (1000, 6, True), (100, 2, False), (100, 3, True)]
)
def test_more_steps_count_from_half_a_percent_on_and_more_than_two_images(images, fell, expected):
    check = Trial("linf/check/more-steps", FIGURE.attack, (CLEAN, FIGURE.name), "linf", "check", images)
    verdicts, plan = Told(2000).verdicts([CLEANLY, FIGURE, check], [2000, 50, 50 - fell])
    flag = more_steps_help(verdicts, plan, "linf")
    assert flag.raised is expected
    assert flag.value == pytest.approx(fell / images)


def test_the_smaller_of_two_means_of_passes_is_no_find():
    """Judged again, images that are right in half of ten passes lose 0.09 of these on average; that is allowed for."""
    check = Trial("linf/check/more-steps", FIGURE.attack, (CLEAN, FIGURE.name), "linf", "check", 400)
    verdicts, plan = Told(400, draws=10).verdicts([CLEANLY, FIGURE, check], [400, 400, 400])
    passes = torch.rand(2, 10, 400, generator=torch.Generator().manual_seed(0)).gt(0.5).float().mean(1)
    columns = dict(verdicts.columns)
    columns[FIGURE.name] = replace(columns[FIGURE.name], right=passes[0])
    columns[check.name] = replace(columns[check.name], right=torch.minimum(passes[0], passes[1]))
    flag = more_steps_help(replace(verdicts, columns=columns), plan, "linf")
    assert flag.value == pytest.approx((0.25 / (torch.pi * 10)) ** 0.5, rel=0.2)
    assert not flag.raised
    assert more_steps_help(replace(verdicts, columns=columns), replace(plan, draws=1000), "linf").raised


def test_attacked_accuracy_above_clean_is_counted_over_all_images():
    alone = Trial("linf/check/attack-on-all", FIGURE.attack, (), "linf", "check", 100)
    for standing, expected in ((52, False), (53, True)):
        verdicts, plan = Told(100).verdicts([CLEANLY, FIGURE, alone], [50, 50, standing])
        assert above_clean(verdicts, plan, "linf").raised is expected


def test_accuracy_that_rises_with_eps_is_counted_from_one_percent_on():
    curve = [Trial(f"linf/curve/{n}", FIGURE.attack, (CLEAN,), "linf", "curve") for n in range(2)]
    for last, expected in ((510, False), (511, True)):
        verdicts, plan = Told().verdicts([CLEANLY, FIGURE, *curve], [900, 400, 500, last])
        flag = curve_rises(verdicts, plan, "linf")
        assert flag.raised is expected
        assert flag.value == pytest.approx((last - 500) / 1000)


def test_margins_are_compared_on_the_images_that_were_attacked():
    """Medians 4, 1, 1.1 or 1.2: a rise of 1/30 of the fall is let pass, one of 1/15 is not."""
    curve = [Trial(f"linf/curve/{n}", FIGURE.attack, (CLEAN,), "linf", "curve") for n in range(2)]
    for last, expected in ((1.1, False), (1.2, True)):
        verdicts, plan = Told(9).verdicts([CLEANLY, FIGURE, *curve], [9, 9, 9, 9])
        columns = dict(verdicts.columns)
        for name, median in ((CLEAN, 4.0), (curve[0].name, 1.0), (curve[1].name, last)):
            columns[name] = replace(columns[name], margin=median + torch.arange(-4, 5) / 10.0)
            columns[name].margin[0] = torch.nan if name != CLEAN else 100.0
            columns[name].margin[8] = torch.nan if name != CLEAN else 100.0
        flag = margin_rises(replace(verdicts, columns=columns), plan, "linf")
        assert flag.value == pytest.approx((last - 1) / 3, abs=1e-5)
        assert flag.raised is expected


def test_an_evaluation_of_wrong_images_alone_raises_nothing():
    data = middling(20)
    with torch.no_grad():
        wrong = (ManyClasses()(data.images).argmax(1) + 6) % CLASSES
    report = judged(ManyClasses(), replace(data, targets=wrong))
    assert report.figures[0].right == 0
    assert raised(report) == set()
    verdicts, plan = Told(10).verdicts([CLEANLY, FIGURE], [0, 0])
    assert not any(flag.raised for flag in signs(verdicts, plan))


class Rooted(nn.Module):
    """A root of each pixel: at black its slope is infinite, or no number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ManyClasses()

    def forward(self, images):
        return self.inner(images.clamp(min=0).sqrt())


def test_slopes_that_are_not_finite_are_flagged_and_fool_nobody():
    data = middling()
    data.images[:, :, :2] = 0
    network = Rooted()
    data.targets = network(data.images).argmax(1)
    attack = PGD(Linf(0.01), 6, 0.0042, start="zero")
    report = judged(network, data, Robustness((Linf(0.01),), attacks=(attack,), checks=0))
    assert {"gradients not finite", "attacks met what is not finite"} <= raised(report)
    assert "answers not finite" not in raised(report)


@dataclass(frozen=True)
class Lost(Attack):
    """Its points are no numbers."""

    threat: Linf
    use = "lost"

    def __call__(self, network, images, targets, key, goal=None):
        return images * torch.nan

    def cost(self) -> float:
        return 0.0


def test_points_that_are_no_numbers_fool_nobody_and_are_flagged():
    (batch,) = middling(6).validation_batches(Place(), 6)
    network = ManyClasses()
    labels = network(batch.images).argmax(1)
    column, points = tried(network, replace(batch, targets=labels), Trial("a", Lost(Linf(0.1)), ()), [], Key(0))
    assert torch.equal(points, batch.images)
    assert column.right.all()
    assert column.broken.all()
    verdicts = Verdicts(batch.sample, labels, {"a": column})
    flag = numbers(verdicts, Plan((Trial("a", Lost(Linf(0.1)), (), "linf"),), CLASSES), "linf")
    assert flag.raised
    assert "6 of their points" in flag.says


def test_the_first_images_of_a_set_that_lies_class_by_class_are_said():
    sorted_, mixed = torch.zeros(60).long(), torch.arange(60) % 12
    plan = Plan((), 12)
    ordered, spread = (classes_in_order(Verdicts(torch.arange(60), labels, {}), plan) for labels in (sorted_, mixed))
    assert ordered.raised
    assert "the first 60 images hold 1 of 12 classes" in ordered.says
    assert not spread.raised
