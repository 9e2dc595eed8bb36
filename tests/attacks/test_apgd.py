"""Auto-PGD: on linear networks it finds every image that can fall, and its steps are the published algorithm's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks import apgd
from robust_train.attacks.apgd import APGD, _checked, _seen, _start, _Walk, checkpoints
from robust_train.attacks.standing import Standing, rung
from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy, dlr, margin, targeted_dlr
from robust_train.models.network import Moded, Network
from robust_train.nouns import Raising
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from tests.attacks.many_classes import ManyClasses, images_of
from tests.laws.counted import counting

KEY = Key(3)
BALLS = {"linf": Linf(0.01), "l2": L2(0.1), "l1": L1(0.9)}


def small() -> Network:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, 2), nn.Softplus(), nn.Flatten(), nn.Linear(24, 5)
    return Network(nn.Sequential(*layers), 5, mean=(0.5,), std=(0.2,)).double().eval()


@pytest.mark.parametrize(
    ("label", "loss", "targeted"),
    [(0, -0.8, {1: -0.6153846, 3: -1.2307693}), (1, 0.8, {})],
)
def test_the_losses_have_the_published_values(label: int, loss: float, targeted: dict[int, float]) -> None:
    logits, labels = torch.tensor([[3.0, 1.0, 0.5, -1.0]]), torch.tensor([label])
    assert float(dlr(logits, labels)) == pytest.approx(loss)
    for goal, value in targeted.items():
        assert float(targeted_dlr(logits, labels, torch.tensor([goal]))) == pytest.approx(value)


@pytest.mark.parametrize(
    ("steps", "marks"),
    [
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),
        (50, [11, 21, 30, 38, 45]),
        (20, [4, 7, 9, *range(10, 21)]),
        (10, list(range(2, 11))),
    ],
)
def test_checkpoints_are_the_published_ones(steps: int, marks: list[int]) -> None:
    assert list(checkpoints(steps)) == marks


@pytest.mark.parametrize("norm", ["linf", "l2", pytest.param("l1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [{"loss": "ce"}, {"loss": "dlr"}, {"targets": 11}], ids=str)
def test_on_a_linear_network_exactly_the_images_within_their_radius_fall(norm: str, kind: dict) -> None:
    """The radii are closed forms: min_j (z_y - z_j) / ||w_y - w_j|| in the dual norm.

    Towards every class all that can fall does; away from the label most of it, and never more.
    """
    images, labels = images_of()
    network = ManyClasses()
    radius = network.radius(images, labels, norm)
    eps = float(radius.sort().values[30:32].mean())  # half of them fall
    ball = type(BALLS[norm])(eps)
    adversarial = APGD(ball, 100 if norm == "l1" else 40, **kind)(network, images, labels, KEY)
    clear = (radius / eps - 1).abs() > (0.02 if norm == "l1" else 0.005)
    stands = correct(network(adversarial), labels).bool()
    assert int(clear.sum()) > 50
    assert bool(stands[clear & (radius > eps)].all())
    fell = (~stands[clear & (radius <= eps)]).float().mean()
    assert fell == 1 if "targets" in kind else fell > 0.7
    assert float(ball.distance(images, adversarial).max()) <= eps * (1 + 1e-5)


def test_scaled_logits_blind_the_cross_entropy_and_not_the_dlr() -> None:
    """Multiplied by 1e5 the network is the same; its softmax is 1 in float32, and the cross-entropy has no gradient."""
    images, labels = images_of()
    radius = ManyClasses().radius(images, labels, "linf")
    eps = float(radius.sort().values[30:32].mean())

    def standing(loss: str, scale: float) -> int:
        network = ManyClasses(scale)
        points = APGD(Linf(eps), 20, loss)(network, images, labels, KEY)
        return int(correct(network(points), labels).sum())

    blind = [standing("ce", scale) for scale in (1.0, 1e3, 1e5)]
    assert blind[0] < blind[1] <= blind[2]
    assert len({standing("dlr", scale) for scale in (1.0, 1e3, 1e5)}) == 1


def plain(network: Network, image: Tensor, label: int, start: Tensor, eps: float, steps: int, norm: str) -> Tensor:
    """The algorithm for one image as the paper writes it, with a history of losses; the point of the largest loss."""

    def project(point: Tensor) -> Tensor:
        move = point - image
        if norm == "linf":
            return (image + move.clamp(-eps, eps)).clamp(0, 1)
        return (image + move * min(1.0, eps / float(move.norm()))).clamp(0, 1)

    def look(point: Tensor) -> tuple[float, Tensor]:
        point = point.clone().requires_grad_()
        value = cross_entropy(network(point[None]), torch.tensor([label]))
        return value.item(), torch.autograd.grad(value.sum(), point)[0]

    point = before = project(start)
    loss, slope = look(point)
    best, best_loss, best_slope = point, loss, slope
    size, history, marks, reduced, then = 2 * eps, [0.0], checkpoints(steps), True, loss
    last = 0
    for step in range(steps):
        direction = slope.sign() if norm == "linf" else slope / slope.norm()
        ahead, share = project(point + size * direction), 1.0 if step == 0 else 0.75
        point, before = project(point + share * (ahead - point) + (1 - share) * (point - before)), point
        loss, slope = look(point)
        history.append(loss)
        if loss > best_loss:
            best, best_loss, best_slope = point, loss, slope
        if step + 1 in marks:
            wait = step + 1 - last
            rises = sum(history[i] > history[i - 1] for i in range(last + 1, step + 2))
            reduced_now = rises <= 0.75 * wait or (not reduced and then >= best_loss)
            if reduced_now:
                size, point, slope = size / 2, best, best_slope
            reduced, then, last = reduced_now, best_loss, step + 1
    return best


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_step_is_the_published_algorithms(norm: str) -> None:
    """Against a plain reference, image by image, from the same starts, to 1e-9 in float64."""
    network = small()
    images = torch.rand(3, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels, eps, steps = network(images).argmax(1), {"linf": 0.05, "l2": 0.4}[norm], 40
    ball = Linf(eps) if norm == "linf" else L2(eps)
    points = APGD(ball, steps, keep="best")(network, images, labels, KEY)
    begun = _start(ball, images, KEY.rows(torch.arange(3)).of("run").at(0).of("start"))
    for row in range(3):
        expected = plain(network, images[row], int(labels[row]), begun[row], eps, steps, norm)
        assert_close(points[row], expected, rtol=0, atol=1e-9)


def plain_l1(network: Network, image: Tensor, label: int, start: Tensor, eps: float, steps: int) -> Tensor:
    """L1's ascent for one image as its paper and code have it: three radii, each from the last one's best point."""
    total, point = image.numel(), start
    first = math.ceil(0.3 * steps)
    for factor, count in ((3, first), (2, first), (1, steps - 2 * first)):
        ball, size = L1(factor * eps), factor * eps
        point = image + ball.project(image[None], (point - image)[None])[0]
        moved = int((point != image).sum())
        share, sparsity = (0.2, total) if factor == 3 else (moved / total / 1.5, moved)
        best, best_loss, best_slope = point, -torch.inf, point
        for step in range(count + 1):
            seen = point.clone().requires_grad_()
            value = cross_entropy(network(seen[None]), torch.tensor([label]))
            slope, loss = torch.autograd.grad(value.sum(), seen)[0], value.item()
            if loss > best_loss:
                best, best_loss, best_slope = point, loss, slope
            if step and step % max(int(0.04 * count), 1) == 0:
                moved = int((best != image).sum())
                share, again, sparsity = moved / total / 1.5, moved < 0.95 * sparsity, moved
                size = factor * eps if again else max(size / 1.5, factor * eps / 10)
                if again:
                    point, slope = best, best_slope
            least = slope.abs().flatten().sort().values[min(int((1 - share) * total), total - 1)]
            sign = slope.sign() * (slope.abs() >= least)
            point = (
                image + ball.project(image[None], (point - image + size * sign / (sign.abs().sum() + 1e-10))[None])[0]
            )
        point = best
    return point


@pytest.mark.parametrize("steps", [7, 10, 15])
def test_in_l1_the_radius_shrinks_and_moves_are_as_sparse_as_the_best_point(steps: int) -> None:
    """Against a plain reference, image by image, from the same starts, to 1e-9 in float64; nothing falls."""
    network = small()
    images = torch.rand(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels, eps = network(images).argmax(1), 0.2
    standing = APGD(L1(eps), steps).search(network, images, labels, KEY)
    assert not standing.fallen.any()
    begun = _start(L1(3 * eps), images, KEY.rows(torch.arange(4)).of("run").at(0).of("start"))
    for row in range(4):
        expected = plain_l1(network, images[row], int(labels[row]), begun[row], eps, steps)
        assert_close(standing.found[row], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("steps", "lengths"), [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (10, [3, 3, 4]), (25, [8, 8, 9]), (100, [30, 30, 40])]
)
def test_the_three_radii_have_the_published_steps(steps: int, lengths: list[int]) -> None:
    """0.3, 0.3 and 0.4 of them, the first two rounded up, where a step is left for the last."""
    assert [length for _, length in APGD(L1(0.2), steps)._phases(True)] == lengths
    assert APGD(L1(0.2), steps)._phases(True)[-1][0] == 1.0
    for alone in (APGD(L1(0.2), steps, widened=False)._phases(True), APGD(L1(0.2), steps)._phases(False)):
        assert alone == [(1.0, steps)]


def test_packing_changes_no_verdict_and_no_point_of_what_stands() -> None:
    network = small()
    images = torch.rand(40, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = network(images).argmax(1)
    often, never = (
        APGD(Linf(0.04), 20, targets=3, compact=every).search(network, images, labels, KEY) for every in (1, 1000)
    )
    assert 0 < int(often.fallen.sum()) < 40
    assert torch.equal(often.fallen, never.fallen)
    assert_close(often.found, never.found, rtol=0, atol=1e-9)
    assert torch.equal(often.steps[~often.fallen], torch.full_like(often.steps[~often.fallen], 3 * 21))
    alone = APGD(Linf(0.04), 20, targets=3).search(network, images[7:8], labels[7:8], KEY.rows(torch.tensor([7])))
    assert_close(alone.found[0], often.found[7], rtol=0, atol=1e-9)


def test_a_run_costs_two_forwards_a_step_and_an_image_that_falls_costs_no_more() -> None:
    images, labels = images_of(40)
    for attack in (APGD(Linf(1e-4), 30), APGD(Linf(1e-4), 30, targets=2, restarts=2), APGD(L1(1e-3), 30, "dlr")):
        network = ManyClasses()
        right = int(correct(network(images), labels).sum())
        network.seen = 0
        attack(network, images, labels, KEY)
        runs = attack.restarts * max(1, attack.targets)
        phases = 3 if isinstance(attack.threat, L1) else 1
        # forwards alone: backwards see no images; 36 right images are packed as 36
        assert network.seen == 40 + runs * right * (attack.steps + phases + 1)
        assert network.seen <= 40 * attack.cost()
    network = ManyClasses()
    APGD(Linf(0.5), 100)(network, images, labels, KEY)
    assert network.seen < 40 * 15, "all fall at once and are set aside at the first packing"


def test_every_step_looks_as_often_as_eot_says() -> None:
    """Judging, towards classes and in training: (steps + 1) eot forwards of what stands."""
    images, labels = images_of(40)
    for attack in (APGD(Linf(1e-4), 5, eot=3), APGD(Linf(1e-4), 5, targets=2, eot=3)):
        network = ManyClasses()
        right = int(correct(network(images), labels).sum())
        network.seen = 0
        attack(network, images, labels, KEY)
        assert network.seen == 40 + max(1, attack.targets) * right * ((5 + 1) * 3 + 1)
    network.seen = 0
    APGD(Linf(1e-4), 5, eot=3, keep="best")(network, images, labels, KEY)
    assert network.seen == 40 * (5 + 1) * 3


def test_in_training_it_reads_nothing_from_the_device_and_keeps_its_size() -> None:
    """keep "best": 2 steps + 1 forward passes of all images, whatever falls."""
    network, attack = small().float(), APGD(Linf(0.1), 2, keep="best")
    images, labels = torch.rand(4, 3, 6, 6), torch.tensor([0, 1, 2, 3])
    with counting(torch.Size([6, 3, 3, 3]), [images, labels, *network.parameters()]) as counts:
        attack(network, images, labels, KEY)
    assert counts["forward"] == 4 * 3
    assert counts["input"] == 4 * 2
    assert counts["weight"] == counts["reads"] == 0
    assert attack.cost() == 5


def test_a_loss_of_the_callers_is_raised_in_place_of_its_own() -> None:
    images, labels = images_of(20)
    network = ManyClasses()
    points = APGD(Linf(0.02), 10, keep="best")(network, images, labels, KEY, Raising(lambda z, y: -cross_entropy(z, y)))
    assert bool((margin(network(points), labels) > margin(network(images), labels)).all())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"steps": 5, "targets": 2, "keep": "best"}, "one untargeted run"),
        ({"steps": 5, "eot": 0}, "eot=0 must be at least 1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(fields: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        APGD(Linf(0.1), **fields)


def test_too_few_classes_are_named() -> None:
    images, labels = images_of(4)
    with pytest.raises(ValueError, match="targeted DLR needs four classes, and the network has 3"):
        APGD(Linf(0.1), 2, targets=2)(ManyClasses(classes=3), images, labels % 3, KEY)
    with pytest.raises(ValueError, match="DLR needs three classes, and the network has 2"):
        APGD(Linf(0.1), 2, "dlr")(ManyClasses(classes=2), images, labels % 2, KEY)


def test_what_reduced_precision_takes_for_fooled_does_not_count_and_is_attacked_on() -> None:
    """A network that in bfloat16 is wrong everywhere: only fresh float32 forwards set images aside."""

    class Rough(ManyClasses, Moded):
        precision = "bf16"

        @contextmanager
        def mode(self, training=None, **changes) -> Iterator[None]:
            before, self.precision = self.precision, changes.get("precision", self.precision)
            yield
            self.precision = before

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * (1 if self.precision == "fp32" else -1)

    images, labels = images_of(20)
    network = Rough()
    standing = APGD(Linf(1e-6), 12, compact=3).search(network, images, labels, KEY)
    assert network.precision == "bf16"
    assert standing.fallen.nonzero().flatten().tolist() == [0, 10], "those that are wrong when clean"
    assert set(standing.steps[~standing.fallen].tolist()) == {13}, "the start and 12 steps, each claim refused"
    assert network.seen > 18 * 12


def test_from_the_image_itself_it_starts_there() -> None:
    images, labels = images_of(10)
    begun = []

    class Seen(ManyClasses):
        def forward(self, points: Tensor) -> Tensor:
            begun.append(points.detach().clone())
            return super().forward(points)

    APGD(Linf(0.1), 2, start="zero", keep="best")(Seen(), images, labels, KEY)
    assert_close(begun[0], images)


def test_where_the_device_is_waited_for_sizes_are_rungs_and_reads_come_every_n_steps(monkeypatch) -> None:
    """As on a GPU: the same verdicts, few sizes, and no read of the device but at packings."""
    network = small()
    images = torch.rand(40, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels, attack = network(images).argmax(1), APGD(Linf(0.04), 20, targets=3, compact=5)
    eager = attack.search(network, images, labels, KEY)
    sizes = set()
    network.model[0].register_forward_pre_hook(lambda module, given: sizes.add(len(given[0])))
    monkeypatch.setattr(apgd, "Standing", partial(Standing, waits=True))
    with counting(torch.Size([6, 3, 3, 3]), [images, labels, *network.parameters()]) as counts:
        waited = attack.search(network, images, labels, KEY)
    assert torch.equal(waited.fallen, eager.fallen)
    assert torch.equal(waited.steps, eager.steps)
    assert_close(waited.found, eager.found, rtol=0, atol=1e-9)
    assert sizes <= {rung(size) for size in range(1, 41)}
    # at the start one; a packing or a run's end two and what it needs to index
    assert counts["reads"] <= 1 + 3 * (3 + 1) * 3


@pytest.mark.parametrize(("count", "size"), [(1, 1), (7, 7), (16, 16), (17, 18), (33, 36), (250, 256), (129, 144)])
def test_a_rung_is_at_most_an_eighth_more(count: int, size: int) -> None:
    assert rung(count) == size
    assert count <= rung(count) <= 1.125 * count + 1e-9


def test_eta_is_halved_where_the_loss_stands_still_and_a_first_loss_is_compared_with_zero() -> None:
    """A checkpoint's two conditions apart: too few rises; or neither eta nor the best loss changed since the last."""
    images = torch.zeros(4, 1, 2, 2)
    walk = _Walk(Linf(0.1), 100, 0.2, images, torch.arange(4))
    began = walk._begin(images, torch.full((4,), 3.0), images)
    assert _seen(began, torch.full((4,), 2.0), images).rises.tolist() == [1.0] * 4, "2 is below the start's 3, above 0"
    climb = replace(
        began,
        rises=torch.tensor([15.0, 16.0, 20.0, 20.0]),  # of 20; 15 is the share 0.75
        reduced=torch.tensor([True, True, False, True]),
        then=torch.full((4,), 3.0),
        best_loss=torch.full((4,), 3.0),
    )
    checked = _checked(climb, 20)
    assert checked.reduced.tolist() == [True, False, True, False]
    assert_close(checked.size.flatten(), torch.tensor([0.1, 0.2, 0.1, 0.2]))
    better = _checked(replace(climb, best_loss=torch.full((4,), 3.5)), 20)
    assert better.reduced.tolist() == [True, False, False, False]
