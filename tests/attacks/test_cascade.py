"""One cascade: AutoAttack called as an attack and an evaluation's row of the same attacks are the same rule."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_train.attacks.autoattack import AutoAttack
from robust_train.attacks.fgsm import FGSM
from robust_train.attacks.pgd import PGD
from robust_train.attacks.standing import Cascade, Verdict
from robust_train.evaluate import trial
from robust_train.evaluate.trial import CLEAN, Trial, tried
from robust_train.keyed import Key
from robust_train.losses import correct
from robust_train.nouns import Batch
from robust_train.threats.linf import Linf
from tests.attacks.many_classes import ManyClasses, images_of


def test_each_attack_sees_what_some_pass_is_right_at_and_the_worst_point_stays() -> None:
    """Shares by hand: 0 is out for ever, of those alike the later point stays, a better one is thrown away."""
    images, told = torch.zeros(4, 1), torch.tensor([0.0, 0.5, 0.5, 1.0])
    cascade, asked = Cascade(images, told, right=told + 0.01), []

    def turn(value: float, shares: list[float]) -> bool:
        def points(rows: Tensor) -> Tensor:
            asked.append(rows.tolist())
            return torch.full((len(rows), 1), value)

        return cascade.turn(points, lambda found, rows: Verdict(torch.tensor(shares), torch.tensor(shares) + 0.02))

    assert turn(1.0, [0.5, 0.6, 0.0])
    assert cascade.points.flatten().tolist() == [0, 1, 0, 1]
    assert turn(2.0, [0.0, 0.0])
    assert not turn(3.0, [])
    assert asked == [[1, 2, 3], [1, 2]]
    assert cascade.points.flatten().tolist() == [0, 2, 2, 1]
    assert cascade.told.tolist() == [0, 0, 0, 0]
    assert torch.allclose(cascade.right, torch.tensor([0.01, 0.02, 0.02, 0.02]))  # that of the pass that chose no point


def test_autoattack_and_an_evaluation_s_row_attack_the_same_images_and_agree(monkeypatch) -> None:
    """Both go through Cascade: their members are made on the same images, and the same images stand in the end."""
    images, labels = images_of(40)
    network = ManyClasses()
    eps = float(network.radius(images, labels, "linf").sort().values[28:30].mean())
    members = FGSM(Linf(eps / 2)), FGSM(Linf(eps)), PGD(Linf(eps), 3, eps / 2)
    turns: list[list[int]] = []
    turn = Cascade.turn

    def watched(self: Cascade, *given) -> bool:
        turns.append(self.rows.tolist())
        return turn(self, *given)

    monkeypatch.setattr(Cascade, "turn", watched)
    points = AutoAttack(Linf(eps), "custom", members)(network, images, labels, Key(4))
    one, turns[:] = turns[:], []
    batch, columns = Batch(images, labels, torch.arange(40), torch.arange(40)), []
    for number, attack in enumerate((None, *members)):
        columns.append(tried(network, batch, Trial(str(number), attack, (CLEAN,)), columns, Key(4))[0])
    assert [len(rows) for rows in one] == sorted((len(rows) for rows in one), reverse=True)
    assert turns[1:] == one
    assert torch.equal(trial.worst(columns)[0], correct(network(points), labels))
    assert 0 < float(columns[-1].right.sum()) < float(columns[0].right.sum())
