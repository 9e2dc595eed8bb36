"""Square beside its authors' code: given the same draws, the same points."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.square import BLOCK, Square, _drawn
from robust_train.keyed import Key, bits
from robust_train.losses import margin
from robust_train.threats.ball import Ball
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.tools.peer_attacks import STANDARD, _autoattack

pytest.importorskip("pyautoattack")

CHANNELS, SIDE, QUERIES = 3, 15, 300


def network() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(4)
        layers = nn.Conv2d(CHANNELS, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 7)
        return nn.Sequential(*layers).eval().requires_grad_(False)


def sign(words: Tensor) -> Tensor:
    return (words >> 31) * 2.0 - 1


def draws(threat: Ball, image: Tensor, key: Key) -> Iterator[tuple[str, Tensor]]:
    """What Square draws for one image, in the order in which the authors' code asks for it."""
    start = key.of("start")
    if threat.use == "linf":
        yield "signs", sign(bits(start, (1, CHANNELS, 1, SIDE), image.device))
    else:
        cells = SIDE // (SIDE // 5)  # and one more a side, for what is left where five do not fit
        words = bits(start, (1, 1 + CHANNELS, cells + 1, cells + 1), image.device)
        for row in range(cells):
            for column in range(cells):
                yield "lying", words[0, 0, row, column] >> 31
                yield "signs", sign(words[:, 1:, row, column])[..., None, None]
    for block in range(-(-QUERIES // BLOCK)):
        places, signs = _drawn(SimpleNamespace(images=image, key=key), block)
        for turn in range(BLOCK):
            for window in places[0, turn, : 1 if threat.use == "linf" else 2]:
                yield "place", window[0]
                yield "place", window[1]
            if threat.use != "linf":
                yield "lying", (signs[0, turn, 0] > 0).long()
            yield "signs", signs[0, turn, 1:][:, None, None]


@pytest.mark.parametrize("threat", [Linf(0.02), L2(0.3), L1(1.0)], ids=lambda threat: threat.use)
def test_given_its_draws_the_authors_code_makes_every_move_of_ours(threat, monkeypatch):
    """Image by image, as theirs share the draws of a batch; nothing falls, so that every query is made."""
    images = torch.rand(4, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    judged = network()
    labels, same = judged(images).argmax(1), 0
    for row in range(len(images)):
        image, label, key = images[row : row + 1], labels[row : row + 1], Key(0).rows(torch.tensor([row]))
        script = draws(threat, image, key)

        def asked(kind: str, script: Iterator[tuple[str, Tensor]] = script) -> Tensor:
            drawn, value = next(script)
            assert drawn == kind
            return value

        theirs = _autoattack(judged, image.device, threat, STANDARD, 10, 1, QUERIES, 0).square
        theirs.init_hyperparam(image)
        shaped = theirs.eta
        monkeypatch.setattr(
            theirs, "random_int", lambda low, high, asked=asked: int(asked("place")) * max(high, 1) >> 16
        )
        monkeypatch.setattr(theirs, "random_choice", lambda shape, asked=asked: asked("signs").view(shape))

        def eta(side: int, shaped=shaped, asked=asked) -> Tensor:
            """Its coin is tossed by torch.rand alone: above a half the pattern lies."""
            with monkeypatch.context() as patch:
                patch.setattr(torch, "rand", lambda shape: asked("lying").float().view(shape))
                return shaped(side)

        monkeypatch.setattr(theirs, "eta", eta)
        queries, expected = theirs.attack_single_run(image, label)
        assert int(queries) == QUERIES + 1
        standing = Square(threat, QUERIES).search(judged, image, label, key)
        assert not standing.fallen.any()
        assert float(threat.distance(image, expected)) > 0.5 * threat.eps
        assert_close(margin(judged(standing.found), label), margin(judged(expected), label), atol=1e-3, rtol=0)
        same += bool((standing.found - expected).abs().max() < 1e-5)
    assert same >= 3  # a rounded tie may part two ways: in L1 theirs projects on a ball smaller by a millionth
