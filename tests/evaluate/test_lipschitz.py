"""The empirical Lipschitz constant of a linear network is known: |f(x) - f(x')|_1 <= s |w|_q d(x, x'), and met."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from robust_train.evaluate.lipschitz import Lipschitz
from robust_train.evaluate.store import Store
from robust_train.evaluate.work import evaluate
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from tests.evaluate.linear import Linear, Middling


def from_a_right_angle(steps: int) -> float:
    """Of the closed form what L2 ascent reaches at least: the cosine it ends at from a start across the gradient.

    A step of s = 2.5 / steps radii along the gradient, brought back to the sphere: tan a' = sin a / (cos a + s). A
    start beyond the right angle climbs the other way, since the change is a length.
    """
    angle = math.pi / 2
    for _ in range(steps):
        angle = math.atan2(math.sin(angle), math.cos(angle) + 2.5 / steps)
    return math.cos(angle)


@pytest.mark.parametrize(("threat", "dual"), [(Linf(0.1), 1), (L2(0.5), 2)])
def test_of_a_linear_network_it_is_the_dual_norm_of_its_weights(threat, dual) -> None:
    """L-infinity: one step is the whole way. L2: as near as the ascent comes from the worst start."""
    networks = {"one": Linear(0.1), "three": Linear(0.3)}
    evaluator = Lipschitz(threat, steps=10, chunk=20, images=40)
    (table,) = evaluator.report(evaluate(evaluator, networks, Middling())).tables
    for (name, *numbers), scale in zip(table.rows, (0.1, 0.3), strict=True):
        assert name == {0.1: "one", 0.3: "three"}[scale]
        expected = scale * float(networks[name].weight.detach().norm(dual))
        least = 1 - 1e-4 if threat.use == "linf" else from_a_right_angle(10)
        assert all(least * expected < number < (1 + 1e-4) * expected for number in numbers)


def test_another_network_costs_its_own_pieces_alone(tmp_path) -> None:
    evaluator, prints = Lipschitz(Linf(0.1), 1, 20, 40), {"one": "a", "three": "b"}
    evaluate(evaluator, {"one": Linear()}, Middling(), store=Store(tmp_path, {"one": "a"}))
    store = Store(tmp_path, prints)
    evaluate(evaluator, {"one": Linear(), "three": Linear(0.3)}, Middling(), store=store)
    assert store.resumed == 2


def test_it_is_reached_by_its_name(small_run, tmp_path, capsys) -> None:
    from robust_train.tools.eval import main

    run = shutil.copytree(small_run.parent / "run", tmp_path / "run", ignore=shutil.ignore_patterns("eval*"))
    words = [str(run), "--images", "24", "--chunk", "16", "--device", "cpu"]
    for _ in range(2):
        main(["evaluator", "lipschitz", *words, "steps=2", "threat.eps=0.05"])
    told = capsys.readouterr()
    assert "empirical local Lipschitz constant" in told.out
    assert "going on: 2 pieces" in told.err
    tree = json.loads((run / "eval-lipschitz.json").read_text(encoding="utf-8"))
    assert tree["evaluation"]["threat"] == {"use": "linf", "eps": 0.05}
    assert (tree["images"], tree["evaluation"]["chunk"]) == (24, 16)
    assert tree["tables"][0]["rows"][0]["mean"] > 0
    with pytest.raises(SystemExit):
        main(["evaluator", "lipshitz", *words])
    assert "did you mean 'lipschitz'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluator", "lipschitz", *words, "stepz=2"])
    assert "no such field" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluator", "lipschitz", *words, "--steps", "7"])
    assert "--steps is no flag" in capsys.readouterr().err
