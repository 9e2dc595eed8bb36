"""tools.peers: what a comparison counts, on attacks and a network whose verdicts are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from robust_train.attacks.pgd import PGD
from robust_train.nouns import Place
from robust_train.read.errors import ConfigError
from robust_train.threats.linf import Linf
from robust_train.tools.peer_attacks import peer
from robust_train.tools.peers import Budget, Pair, choose, compare, main, pairs
from tests.evaluate.linear import Linear, Middling

THREAT = Linf(0.1)
EXACT = PGD(THREAT, 1, 1.0, start="zero")  # on a linear network one long step is the worst case


def toward(share: float):
    """The attack that spends `share` of the radius: on a linear network it fools radii up to share * eps."""

    def attack(network, images, targets):
        side = (1 - 2 * targets).view(-1, 1, 1, 1) * network.weight.sign().view(1, 3, 6, 6)
        return images + share * THREAT.eps * side

    return attack


def compared(theirs, rounds: int = 2):
    """The row, with the images that are right when clean and their radii."""
    network, data = Linear(), Middling()
    batches = list(data.validation_batches(Place(), 64, None))
    radii = network.radius(data.images, data.targets)
    return compare(network, batches, THREAT, Pair("pgd", "theirs", EXACT, theirs), rounds, 0), radii


def test_an_image_counts_for_the_side_that_alone_fools_it():
    """An attack of half the radius fools images up to eps / 2; ours, exact, those up to eps."""
    row, radii = compared(toward(0.5))
    assert row.images == len(radii) == 203
    assert row.clean == int((radii > 0).sum())
    assert (row.ours, row.theirs) == (int((radii > 0.1).sum()), int((radii > 0.05).sum()))
    assert (row.only_ours, row.only_theirs) == (row.theirs - row.ours, 0)
    assert row.only_ours > 0
    assert row.distance_theirs == pytest.approx(0.05, rel=1e-4)


def test_a_point_outside_the_ball_fools_nobody():
    row, radii = compared(toward(1.5))
    assert row.outside_theirs == 203
    assert row.outside_ours == 0
    assert row.theirs == row.clean
    assert row.only_ours == int(((radii > 0) & (radii <= 0.1)).sum())


def test_a_point_outside_the_box_fools_nobody():
    """A pixel of 1.05 lies in the ball around 1, and is no pixel."""
    network, images = Linear(), torch.ones(4, 3, 6, 6)
    targets = network(images).argmax(1)

    class White(Middling):
        def __init__(self) -> None:
            self.images, self.targets, self.broken = images, targets, torch.zeros(4)

    batches = list(White().validation_batches(Place(), 4, None))
    row = compare(network, batches, THREAT, Pair("pgd", "theirs", EXACT, lambda *_: images + 0.05), 1, 0)
    assert (row.outside_theirs, row.outside_ours) == (4, 0)
    assert row.theirs == row.clean


def test_weights_are_frozen_for_both_sides_and_gradients_are_on():
    seen = []

    def attack(network, images, targets):
        seen.append((network.weight.requires_grad, torch.is_grad_enabled(), network.training))
        return images

    compared(attack)
    assert set(seen) == {(False, True, False)}


def test_the_ratio_is_ours_over_theirs(monkeypatch):
    """A clock that runs one second a reading for one side and four for the other."""
    import time

    now = [0.0]

    def slow(network, images, targets):
        now[0] += 4.0 / 4  # a batch: four of them
        return images

    class Ours(PGD):
        def __call__(self, network, images, targets, key, goal=None):
            now[0] += 1.0 / 4
            return images

    network, data = Linear(), Middling()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    batches = list(data.validation_batches(Place(), 64, None))
    assert len(batches) == 4
    row = compare(network, batches, THREAT, Pair("pgd", "theirs", Ours(THREAT, 1, 0.1), slow), 3, 0)
    assert (row.seconds_ours, row.seconds_theirs, row.ratio) == (1.0, 4.0, 0.25)


def test_sides_take_turns_batch_by_batch_and_the_share_done_is_told():
    """Two rounds of four batches: the first of a batch changes with batch and round."""
    calls, shares = [], []

    class Ours(PGD):
        def __call__(self, network, images, targets, key, goal=None):
            calls.append("ours")
            return images

    def theirs(network, images, targets):
        calls.append("theirs")
        return images

    network = Linear()
    batches = list(Middling().validation_batches(Place(), 64, None))
    compare(network, batches, THREAT, Pair("pgd", "theirs", Ours(THREAT, 1, 0.1), theirs), 2, 0, shares.append)
    one, other = ["ours", "theirs"], ["theirs", "ours"]
    assert calls[2:] == (one + other) * 2 + (other + one) * 2  # after a call of each that is no part of a round
    assert shares == [n / 8 for n in range(1, 9)]


def test_rows_are_named_by_attack_or_package_or_both():
    every = pairs(Budget(THREAT, 10, 0.02, classes=10, seed=0))
    assert [pair.row for pair in choose(every, ["pgd"])] == ["pgd/torchattacks", "pgd/foolbox"]
    assert {pair.row for pair in choose(every, ["torchattacks"])} == {"fgsm/torchattacks", "pgd/torchattacks"}
    assert [pair.row for pair in choose(every, ["pgd/foolbox"])] == ["pgd/foolbox"]
    assert [pair.row for pair in choose(every, None)] == ["fgsm/torchattacks", "pgd/torchattacks", "pgd/foolbox"]
    assert choose(every, ["all"]) == every
    with pytest.raises(ConfigError, match=r"--rows fog: there is no such row here \(there are fgsm/torchattacks"):
        choose(every, ["fog"])


def test_targeted_attacks_try_nine_classes_or_all_others():
    assert [Budget(THREAT, 1, 0.1, classes, 0).goals for classes in (2, 5, 10, 11, 1000)] == [1, 4, 9, 9, 9]


def test_a_package_that_is_missing_is_named_with_its_remedy():
    with pytest.raises(ConfigError, match="no_such_package is not installed here: `make peers` installs it"):
        peer("no_such_package.inside")


@pytest.mark.parametrize(("words", "said"), [(["--images", "0"], "--images 0 must be at least 1")])
def test_a_command_line_that_cannot_be_is_refused(small_run, words, said, capsys):
    with pytest.raises(SystemExit) as error:
        main([str(small_run.parent / "run"), *words])
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_a_run_is_compared_by_one_command(small_run: Path, tmp_path: Path, capsys):
    pytest.importorskip("torchattacks")
    target = tmp_path / "peers.json"
    words = ["--rows", "torchattacks", "--images", "40", "--steps", "2", "--rounds", "1", "--json", str(target)]
    main([str(small_run.parent / "run"), *words])
    said = capsys.readouterr().out
    found = json.loads(target.read_text(encoding="utf-8"))
    assert [f"{row['name']}/{row['package']}" for row in found["rows"]] == ["fgsm/torchattacks", "pgd/torchattacks"]
    for row in found["rows"]:
        assert row["images"] == 40
        assert (row["only_ours"], row["only_theirs"]) == (0, 0)  # the same steps from the same start
        assert f"{row['name']}/{row['package']}" in said
    assert found["threat"] == {"use": "linf", "eps": 0.1}
    assert found["packages"] == {"torchattacks": "3.5.1"}
