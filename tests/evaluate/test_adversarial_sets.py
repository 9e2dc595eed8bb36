"""A saved adversarial set gives the figures that it was saved with, and one that was tampered with gives none."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from robust_train.attacks.pgd import PGD
from robust_train.evaluate.adversarial_sets import checksum, chosen, judged, load, parts, replayed, save
from robust_train.evaluate.robustness import Robustness
from robust_train.evaluate.work import evaluate
from robust_train.keyed import Key
from robust_train.read.errors import ConfigError, DataError
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from tests.evaluate.linear import Linear, Middling

EPS, COUNT = 0.1, 60
BALL = Linf(EPS)
ASKED = Robustness((BALL,), steps=2, step_size=EPS, restarts=1, curve=2, checks=0, chunk=25, points=True)


def worst(data: Middling) -> torch.Tensor:
    """The worst points of the ball for the linear network: x - (2 y - 1) eps sign w."""
    along = Linear().weight.detach().sign().view(data.images[0].shape)
    return data.images - (2 * data.targets - 1).view(-1, 1, 1, 1) * EPS * along


def survivors(data: Middling) -> int:
    """Images with a robust radius above eps, in closed form."""
    return int((Linear().radius(data.images, data.targets) > EPS).sum())


def saved(folder: Path, data: Middling) -> Path:
    """The set of an evaluation, as written."""
    found = evaluate(ASKED, {"": Linear()}, data)
    save(folder / "set.pth", parts(ASKED, found, "linf"), *found.rows(), BALL, {"model": "linear"})
    return folder / "set.pth"


def test_the_worst_points_of_a_linear_network_leave_those_with_a_larger_radius_standing():
    data = Middling(COUNT)
    figure = judged(Linear(), data, worst(data), BALL, chunk=25)
    assert 0 < figure.right == survivors(data) < COUNT
    assert (figure.images, figure.eps, figure.threat) == (COUNT, EPS, "linf")
    assert figure.name.startswith("saved set")


def test_the_file_is_in_autoattacks_form_and_says_beside_it_what_it_is_of(tmp_path):
    data = Middling(COUNT)
    path = saved(tmp_path, data)
    held = torch.load(path, weights_only=True)
    assert list(held) == ["adv_complete"]
    points = held["adv_complete"]
    assert (points.dtype, points.shape) == (torch.float32, data.images.shape)
    assert torch.equal(load(path), points)
    beside = json.loads((tmp_path / "set.pth.json").read_text())
    assert beside["labels"] == data.targets.tolist()
    assert beside["sample"] == list(range(COUNT))
    assert beside["threat"] == {"use": "linf", "eps": EPS}
    assert beside["model"] == "linear"


def test_a_set_is_written_chunk_after_chunk_and_read_where_it_is_looked_at(tmp_path, monkeypatch):
    """Of 64 chunks of 1 MB no more than a few are alive at once, and the whole is never one tensor."""
    alive, most = [0], [0]

    class Part:
        def __init__(self, number: int) -> None:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            self.points = torch.full((1, 4, 256, 256), float(number))

        def __del__(self) -> None:
            alive[0] -= 1

        def detach(self):
            return self.points

    path, count = tmp_path / "set.pth", 64
    labels = torch.zeros(count, dtype=torch.int64)
    monkeypatch.setattr(torch, "cat", None)
    save(path, (Part(number) for number in range(count)), torch.arange(count), labels, BALL, {})  # type: ignore[misc]
    assert most[0] <= 2
    points = load(path)
    assert points[:, 0, 0, 0].tolist() == list(range(count))
    assert checksum(points) == json.loads((tmp_path / "set.pth.json").read_text())["sha256"]
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert any(str(path) in line for line in maps), "mapped, not read"
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_set_judged_again_gives_the_verdicts_that_it_was_saved_with(tmp_path):
    data = Middling(COUNT)
    path = saved(tmp_path, data)
    evaluation = replayed(replace(ASKED, chunk=17), path, data)
    report = evaluation(Linear(), data, Key(3))
    clean, figure = report.figures
    assert figure.right == survivors(data) == judged(Linear(), data, load(path), BALL).right
    assert figure.name == "saved set set.pth"
    assert figure.attack["file"] == str(path)
    assert clean.right == float((Linear().radius(data.images, data.targets) > 0).sum())
    assert report.curves == ()


def test_broken_images_have_no_point_and_shift_none_of_the_others(tmp_path):
    data = Middling(COUNT, broken=(3, 4, 20))
    path = saved(tmp_path, data)
    whole = data.broken == 0
    assert len(load(path)) == COUNT - 3
    evaluation = replayed(ASKED, path, data)
    assert evaluation.saved.gaps == (3, 4, 20)
    verdicts, _, _ = evaluation.read(evaluate(evaluation, {"": Linear()}, data))
    column = verdicts.columns["linf/saved set set.pth"]
    assert torch.equal(column.stands, (Linear().radius(data.images, data.targets) > EPS)[whole])


@dataclass(frozen=True)
class NearThenFar(Robustness):
    """Half the ball first, then all of it."""

    def cascade(self, threat, classes, stochastic):
        return PGD(Linf(EPS / 2), 1, EPS), PGD(threat, 2, EPS)


def test_an_image_keeps_the_point_where_it_fell_first():
    """One that is wrong when clean is its own point; one that stands has that of the last attack."""
    data = Middling(COUNT)
    evaluation = NearThenFar((BALL,), curve=0, checks=0, chunk=25, points=True)
    found = evaluate(evaluation, {"": Linear()}, data)
    verdicts, plan, _ = evaluation.read(found)
    points, radius = chosen(evaluation, found, "linf"), Linear().radius(data.images, data.targets)
    moved = (points - data.images).flatten(1).abs().amax(1)
    assert torch.equal(moved == 0, radius < 0)
    names = [trial.name for trial in plan.of("attack", "linf")]
    fell = verdicts.columns["clean"].stands & ~verdicts.columns[names[0]].stands
    first = torch.cat([piece["apart/points"] for piece in found.chunks(names[0])])
    last = torch.cat([piece["apart/points"] for piece in found.chunks(names[-1])])
    stands = verdicts.columns[names[-1]].stands
    assert int(fell.sum()) > 5
    assert int(stands.sum()) > 5
    assert torch.equal(points[fell], first[fell])
    assert torch.equal(points[stands], last[stands])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda points: points[:-1], r"holds 59 points, and 60 images are judged.*--images 59"),
        (lambda points: torch.cat([points, points[:1]]), "holds 61 points, and 60 images are judged"),
        (lambda points: points[..., :-1], r"the points are \[3, 6, 5\], the images \[3, 6, 6\]"),
        (lambda points: points.index_fill(0, torch.tensor([7, 9]), torch.nan), r"2 of 60 points are not finite.*7, 9"),
        (lambda points: points.index_fill(0, torch.tensor([5]), 1.01), r"1 of 60 points have pixels outside.*5"),
        (lambda points: points.flip(0), r"\d+ of 60 points lie outside linf of eps 0.1, the farthest at"),
    ],
)
def test_points_that_are_not_of_the_images_or_not_in_the_ball_are_refused_and_counted(spoil, said):
    data = Middling(COUNT)
    with pytest.raises(DataError, match=f"(?s){said}"):
        judged(Linear(), data, spoil(worst(data)), BALL)


def test_a_point_may_lie_beyond_the_ball_by_what_rounding_explains_and_no_more():
    data = Middling(COUNT)
    points = data.images.clone()
    points[8, 0, 0, 0] = data.images[8, 0, 0, 0] + EPS * (1 + 5e-6)
    judged(Linear(), data, points, BALL)
    points[8, 0, 0, 0] = data.images[8, 0, 0, 0] + EPS * (1 + 1e-4)
    with pytest.raises(DataError, match=r"1 of 60 points lie outside linf.*samples 8\)"):
        judged(Linear(), data, points, BALL)
    judged(Linear(), data, points, L2(0.2))


def test_a_set_of_other_images_and_a_set_that_was_changed_are_refused(tmp_path):
    data = Middling(COUNT)
    path = saved(tmp_path, data)
    data.targets = data.targets.index_copy(0, torch.tensor([1, 2]), 1 - data.targets[1:3])
    with pytest.raises(DataError, match="of other images: 2 of 60 have another sample or label"):
        replayed(ASKED, path, data)
    held = load(path)
    torch.save({"adv_complete": held * 0.999}, path)
    with pytest.raises(DataError, match=r"not those that .*set\.pth\.json was written with"):
        replayed(ASKED, path, Middling(COUNT))


def test_a_set_is_of_one_threat_model(tmp_path):
    with pytest.raises(ConfigError, match="one threat model, and 2 are asked for"):
        replayed(Robustness((BALL, L2(1.0))), tmp_path / "set.pth", Middling(COUNT))


class Bait:
    """An object whose reading would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_that_a_file_holds_is_run(tmp_path):
    torch.save({"adv_complete": Bait(tmp_path / "run")}, tmp_path / "set.pth")
    with pytest.raises(DataError, match="no file of tensors alone"):
        load(tmp_path / "set.pth")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"apgd-ce": torch.zeros(1, 3, 2, 2), "square": torch.zeros(1, 3, 2, 2)}, "holds apgd-ce, square, and no"),
        ({"adv_complete": torch.zeros(2, 12)}, r"float32 \[2, 12\]; give floats"),
        ({"adv_complete": torch.zeros(2, 3, 2, 2, dtype=torch.uint8)}, "uint8"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_form_that_is_read(tmp_path, held, said):
    torch.save(held, tmp_path / "set.pth")
    with pytest.raises(DataError, match=said):
        load(tmp_path / "set.pth")


def test_a_file_that_is_absent_or_no_torch_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "set.pth")
    (tmp_path / "set.pth").write_bytes(b"points")
    with pytest.raises(DataError, match="no file of tensors alone"):
        load(tmp_path / "set.pth")


def test_a_bare_tensor_is_a_set_too(tmp_path):
    torch.save(worst(Middling(4)), tmp_path / "set.pt")
    assert torch.equal(load(tmp_path / "set.pt"), worst(Middling(4)))
