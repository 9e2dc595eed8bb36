"""Distillation in closed form, and by the cards' numbers. [Hinton et al. 2015; ARD; RSLAD]"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from robust_train.keyed import Key
from robust_train.models.ensemble import Ensemble
from robust_train.models.network import Network
from robust_train.nouns import Attack, Batch, State
from robust_train.objectives import distill
from robust_train.objectives.distill import Distill
from robust_train.read.errors import CheckpointError, ConfigError
from robust_train.threats.linf import Linf
from tests.teachers import teacher


class Says(nn.Module):
    """The same logits of every image."""

    def __init__(self, logits: tuple[float, ...]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.logits.expand(len(images), -1)


@dataclass(frozen=True)
class Shift(Attack):
    """Adds a constant, and keeps the goal it was asked to raise."""

    by: float = 0.1
    asked: list[Any] = field(default_factory=list, compare=False)
    threat: Linf = field(default_factory=lambda: Linf(0.1))

    def __call__(self, network, images, targets, key, goal=None):
        self.asked.append(goal)
        return images + self.by

    def cost(self) -> float:
        return 4


def student(classes: int = 3) -> Network:
    torch.manual_seed(0)
    return Network(nn.Sequential(nn.Flatten(), nn.Linear(16, classes), nn.Tanh()), classes).double()


def linear_teachers(count: int = 2, classes: int = 3) -> Ensemble:
    torch.manual_seed(5)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(16, classes)) for _ in range(count)]
    return Ensemble([Network(model, classes) for model in models]).double().requires_grad_(False)


def some_batch(size: int = 6) -> tuple[Batch, Key]:
    torch.manual_seed(3)
    position = torch.arange(size)
    return Batch(torch.rand(size, 1, 4, 4).double(), position % 3, position, position), Key(11).rows(position)


def taught_by(monkeypatch: pytest.MonkeyPatch, ensemble: Ensemble) -> None:
    monkeypatch.setattr(distill, "teachers_of", lambda *_: ensemble)


def plain_kl(said: Tensor, logits: Tensor, heat: float) -> Tensor:
    """KL(softmax(said / T) || softmax(logits / T)), the mean over images, by PyTorch's own loss."""
    log_q, p = F.log_softmax(logits / heat, 1), F.softmax(said / heat, 1)
    return F.kl_div(log_q, p, reduction="batchmean")


def test_the_loss_of_two_teachers_is_that_of_the_card(monkeypatch):
    taught_by(monkeypatch, Ensemble([Network(Says(logits), 3) for logits in ((2.0, 0, -1), (0.0, 1, 0))]).double())
    batch = Batch(torch.zeros(2, 1, 1, 1).double(), torch.tensor([0, 0]), torch.arange(2), torch.arange(2))
    loss = Distill(("t",))(Network(Says((1.0, 1, 0)), 3).double(), batch, Key(0).rows(batch.position), State())
    assert_close(loss.metrics["loss/distill"], torch.tensor(0.0294231).double(), rtol=0, atol=1e-7)
    assert_close(loss.metrics["loss/clean"], torch.tensor(0.861995).double(), rtol=0, atol=1e-6)
    assert_close(loss.total, torch.tensor(0.112680).double(), rtol=0, atol=1e-6)


def test_a_student_that_says_the_mean_has_no_distance_from_it(monkeypatch):
    taught_by(monkeypatch, Ensemble([Network(Says(logits), 3) for logits in ((2.0, 0, -1), (0.0, 1, 0))]).double())
    batch = Batch(torch.zeros(1, 1, 1, 1).double(), torch.tensor([0]), torch.arange(1), torch.arange(1))
    loss = Distill(("t",), alpha=1.0)(Network(Says((1.0, 0.5, -0.5)), 3).double(), batch, Key(0), State())
    assert abs(loss.total.item()) < 1e-12


def test_of_probabilities_the_softened_answers_are_averaged(monkeypatch):
    logits = torch.tensor([[2.0, 0, -1], [0.0, 1, 0]]).double()
    taught_by(
        monkeypatch, Ensemble([Network(Says(tuple(row.tolist())), 3) for row in logits], "probabilities").double()
    )
    batch = Batch(torch.zeros(1, 1, 1, 1).double(), torch.tensor([0]), torch.arange(1), torch.arange(1))
    said = torch.tensor([[1.0, 1, 0]]).double()
    loss = Distill(("t",), 2.0, 1.0)(Network(Says((1.0, 1, 0)), 3).double(), batch, Key(0), State())
    p = (logits / 2).softmax(1).mean(0, keepdim=True)
    assert_close(loss.total, 4 * F.kl_div((said / 2).log_softmax(1), p, reduction="batchmean"))


def test_the_gradient_is_the_formulas(monkeypatch):
    """alpha T (q - p) + (1 - alpha) (softmax s - onehot), an image; none reaches a teacher."""
    ensemble, network, (batch, key) = linear_teachers(), student(), some_batch()
    taught_by(monkeypatch, ensemble)
    heat, alpha = 3.0, 0.7
    seen: list[Tensor] = []
    network.model.register_forward_hook(lambda module, inputs, output: (output.retain_grad(), seen.append(output))[1])
    Distill(("t",), heat, alpha)(network, batch, key, State()).total.backward()
    logits = seen[0]
    p, q = (ensemble(batch.images) / heat).softmax(1), (logits / heat).softmax(1)
    hard = logits.softmax(1) - F.one_hot(batch.targets, 3)
    assert_close(logits.grad, (alpha * heat * (q - p) + (1 - alpha) * hard).detach() / len(batch))
    assert all(parameter.grad is None for parameter in ensemble.parameters())


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_ard_learns_the_soft_answers_on_attacked_images_and_labels_on_clean_ones(monkeypatch, alpha):
    ensemble, network, (batch, key), attack = linear_teachers(), student(), some_batch(), Shift()
    taught_by(monkeypatch, ensemble)
    objective = Distill(("t",), 5.0, alpha, attack=attack)
    found = objective(network, batch, key, State()).total
    soft = 25 * plain_kl(ensemble(batch.images), network(batch.images + 0.1), 5.0)
    assert_close(found, alpha * soft + (1 - alpha) * F.cross_entropy(network(batch.images), batch.targets))
    assert attack.asked == [None], "the attack raises the label's loss, as attacks do"
    assert objective.cost() == 1 + 4 + (6 if alpha < 1 else 3)


def test_rslad_learns_soft_answers_of_both_and_attacks_the_distance_from_them(monkeypatch):
    ensemble, network, (batch, key), attack = linear_teachers(), student(), some_batch(), Shift()
    taught_by(monkeypatch, ensemble)
    found = Distill(("t",), 1.0, 1.0, attack=attack, beta=5 / 6, raises="teacher")(network, batch, key, State()).total
    said, clean, attacked = ensemble(batch.images), network(batch.images), network(batch.images + 0.1)
    assert_close(found, plain_kl(said, attacked, 1.0) * 5 / 6 + plain_kl(said, clean, 1.0) / 6)
    rows = torch.arange(len(batch)).flip(0)
    score = attack.asked[0].of(network, batch.images, batch.targets, key)
    raised, logits = score(batch.images.flip(0) + 0.1, rows)
    assert raised.shape == (len(batch),)
    assert_close(raised.mean(), plain_kl(said, attacked, 1.0))
    assert_close(logits, attacked.flip(0))


def test_teachers_that_see_attacked_images_say_what_they_are(monkeypatch):
    ensemble, network, (batch, key) = linear_teachers(), student(), some_batch()
    taught_by(monkeypatch, ensemble)
    found = Distill(("t",), 2.0, 1.0, attack=Shift(), teacher_sees="attacked")(network, batch, key, State()).total
    assert_close(found, 4 * plain_kl(ensemble(batch.images + 0.1), network(batch.images + 0.1), 2.0))


@pytest.mark.parametrize("attack", [None, Shift()])
@pytest.mark.parametrize("draws", [1, 3])
def test_each_teacher_runs_as_often_as_the_cost_says(monkeypatch, draws, attack):
    models = [Says((2.0, 0, -1)), Says((0.0, 1, 0))]
    taught_by(monkeypatch, Ensemble([Network(model, 3) for model in models]).double())
    batch, key = some_batch()
    objective = Distill(("a", "b"), draws=draws, attack=attack, beta=0.5 if attack else 1.0)
    objective(student(), batch, key, State())
    assert [model.calls for model in models] == [draws, draws]
    assert objective.cost() == 2 * draws + (3 if attack is None else 4 + 6)


def test_the_noise_of_teachers_is_on_drawn_by_key_and_averaged_over_draws(tmp_path: Path):
    paths = (teacher(tmp_path, 0, noisy=True), teacher(tmp_path, 1, noisy=True))
    ensemble = distill.teachers_of(paths, "logits", "cpu", torch.float64)
    assert not ensemble.training
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    images, rows = torch.rand(4, 1, 8, 8).double(), torch.arange(4)

    def said(draws: int, key: Key) -> Tensor:
        objective = Distill(paths, draws=draws, teacher_precision="fp32")
        return objective._said(ensemble, images, key.rows(rows), 1.0)

    assert not torch.equal(said(1, Key(0)), said(1, Key(1)))
    assert torch.equal(said(1, Key(0)), said(1, Key(0)))
    single = []
    for draw in range(3):
        with ensemble.noise(Key(0).rows(rows).of("teachers").at(draw)):
            single.append(ensemble(images))
    assert_close(said(3, Key(0)), torch.stack(single).mean(0))
    half = Distill(paths, teacher_precision="fp32")._said(ensemble, images[2:], Key(0).rows(rows[2:]), 1.0)
    assert_close(half, said(1, Key(0))[2:], msg="what a teacher says of an image depends on its row alone")


def test_teachers_are_read_once_and_run_in_the_precision_asked_for(tmp_path: Path):
    paths = (teacher(tmp_path, 0),)
    first = distill.teachers_of(paths, "logits", "cpu", torch.float32)
    assert distill.teachers_of(paths, "logits", "cpu", torch.float32) is first
    rows = torch.arange(2)
    batch = Batch(torch.rand(2, 1, 8, 8), rows, rows, rows)
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 5)
    seen: list[str] = []
    first.each[0].register_forward_pre_hook(lambda member, inputs: seen.append(member.precision))
    for precision in ("bf16", "fp32"):
        Distill(paths, teacher_precision=precision)(network, batch, Key(0).rows(rows), State())
        assert seen.pop() == precision
        assert first.precision == "fp32"  # as it was


def test_what_cannot_teach_is_refused_with_the_remedy(tmp_path: Path):
    with pytest.raises(CheckpointError, match="does not exist"):
        distill.teachers_of((str(tmp_path / "none"),), "logits", "cpu", torch.float32)
    mixed = (teacher(tmp_path, 0), teacher(tmp_path, 1, classes=4))
    with pytest.raises(ConfigError, match=r"teachers.*classes"):
        distill.teachers_of(mixed, "logits", "cpu", torch.float32)
    rows = torch.arange(2)
    narrow = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), 3)
    with pytest.raises(ConfigError, match="5 classes, the student with 3"):
        Distill(mixed[:1])(narrow, Batch(torch.rand(2, 1, 8, 8), rows, rows, rows), Key(0), State())
    for wrong, said in (
        ({"teachers": ()}, "teachers is empty"),
        ({"draws": 0}, "at least 1"),
        ({"alpha": 1.5}, "a share"),
        ({"temperature": 0.0}, "positive"),
        ({"raises": "teacher"}, "name an attack"),
        ({"attack": Shift(), "teacher_sees": "attacked", "beta": 0.5}, "beta=1"),
    ):
        with pytest.raises(ValueError, match=said):
            Distill(**{"teachers": ("a",), **wrong})


def test_an_ensembles_file_is_its_members_with_their_weights(tmp_path: Path):
    paths = (teacher(tmp_path, 0), teacher(tmp_path, 1))
    file = tmp_path / "both.yaml"
    file.write_text(f"members: [{Path(paths[0]).name}, {Path(paths[1]).name}]\nweights: [0.75, 0.25]\n")
    ensemble = distill.teachers_of((str(file),), "logits", "cpu", torch.float32)
    assert ensemble.weights.tolist() == [0.75, 0.25]
    assert Distill((str(file),)).cost() == 5
    with pytest.raises(ConfigError, match="stands alone"):
        distill.teachers_of((str(file), paths[0]), "logits", "cpu", torch.float32)
