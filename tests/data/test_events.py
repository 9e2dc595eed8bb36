"""Event frames [T, 2, H, W]: what they are, and through the loop by laws 2 and 3, on one rank and two."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust_train.attacks.pgd import PGD
from robust_train.data.events import DARK, DigitEvents, events, moved, path
from robust_train.engines.plain import PlainEngine
from robust_train.judging import Judge
from robust_train.models.blueprint import Blueprint
from robust_train.nouns import Model, Place, Shape
from robust_train.objectives.madry import Madry
from robust_train.read.errors import ConfigError
from robust_train.settings.execution import Execution
from robust_train.settings.optimiser import Optimiser
from robust_train.settings.validate import Validate
from robust_train.threats.linf import Linf
from tests.ranks import on_ranks
from tests.toys import gone_back, toy_run, trained, weights

SMALL = DigitEvents(frames=3, stride=4)


class Over(nn.Module):
    """Frames one after another through a leaky sum of convolutions, then a linear layer."""

    def __init__(self, frames: int, classes: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * side * side, classes)

    def forward(self, images: Tensor) -> Tensor:
        held = torch.zeros(())
        for frame in images.unbind(1):
            held = 0.5 * held + torch.tanh(self.norm(self.conv(frame)))
        return self.head(held.flatten(1))


@dataclass(frozen=True)
class Recurrent(Model):
    """The smallest network of events [T, 2, H, W]."""

    use = "recurrent"

    def build(self, classes: int, shape: Shape) -> nn.Module:
        frames, polarities, height, width = shape
        assert (polarities, height) == (2, width)
        return Over(frames, classes, height)

    def stages(self, model: nn.Module) -> Iterator[str]:
        yield "norm"


def run_of(folder: Path | None, part: int | None = None, updates: int = 6):
    attack = PGD(Linf(0.3), 1, 0.2, norm="group")
    run = toy_run(
        Madry(attack),
        folder,
        network=Blueprint(Recurrent(), group=4),
        optimiser=Optimiser(name="momentum", lr=0.05),
        engine=Execution(micro_batch=part),
        updates=updates,
        validate=Validate(attack=attack, chunk=32, images=64),
    )
    return replace(run, data=SMALL)


# -- what they are ---------------------------------------------------------------------------------


def test_a_brightening_pixel_gives_as_many_rises_as_contrasts_and_a_still_one_none():
    """One bright column moves right onto dark pixels: closed form, without interpolation."""
    said = DigitEvents(frames=1, stride=1, travel=1.0, contrast=0.25, substeps=1, binary=False)
    assert path(3).tolist() == [[0, 0], [0.5, 1], [1, 0], [0, 0]]
    still = torch.full((1, 8, 8), 0.4)
    still[0] = 0.0
    assert int(events(still, said).sum()) == 0
    picture = torch.zeros(1, 8, 8)
    picture[0, :, 3] = 0.8
    said = replace(said, frames=3)
    found = events(picture, said)[0].float()
    many = math.floor((math.log(0.8 + DARK) - math.log(DARK)) / 0.25)
    rises, falls = found[0]  # the first frame ends a pixel to the right, half a pixel down: columns are alike
    assert rises[4:, 4].tolist() == [many] * 4
    assert falls[4:, 3].tolist() == [many] * 4
    assert rises[:, :3].sum() == rises[:, 5:].sum() == 0


def test_moving_is_a_shift_and_between_pixels_their_mean():
    picture = torch.rand(2, 6, 6)
    assert torch.equal(moved(picture, 2, 1)[:, 2:, 1:], picture[:, :-2, :-1])
    assert moved(picture, 2, 1)[:, :2].abs().sum() == 0
    middle = (moved(picture, 1, 0) + moved(picture, 2, 0)) / 2
    torch.testing.assert_close(moved(picture, 1.5, 0), middle)


@pytest.mark.slow
def test_events_are_sparse_binary_and_of_both_signs():
    images = torch.cat([batch.images for batch in SMALL.validation_batches(Place(), 100)])
    assert images.shape == (360, *SMALL.shape)
    assert images.shape[1:] == (3, 2, 8, 8)
    assert set(images.unique().tolist()) == {0, 1}
    for polarity in range(2):
        assert 0.02 < images[:, :, polarity].float().mean() < 0.5
    assert SMALL.scale.boxed
    counts = replace(SMALL, binary=False)
    assert counts.scale.high > 1
    assert all(batch.images.max() <= counts.scale.high for batch in counts.validation_batches(Place(), 100))


def test_batches_are_the_same_at_any_world_size_and_start():
    one = [next(SMALL.batches(Place(), 16, 5, start)) for start in (0, 1, 200)]
    for start, whole in zip((0, 1, 200), one, strict=True):
        halves = [next(SMALL.batches(Place(rank, 2), 16, 5, start)) for rank in range(2)]
        for name in ("images", "targets", "position", "sample"):
            assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(whole, name))
    with pytest.raises(ConfigError, match="batch=15"):
        SMALL.batches(Place(0, 2), 15, 0)


# -- through the loop ------------------------------------------------------------------------------


def followed(place: Place, part: int | None) -> Any:
    with PlainEngine(run_of(None, part), place, torch.float64) as engine:
        return trained(engine), weights(engine), Judge(engine.run, engine).evaluate(engine.run.validate.attack, 64)


@pytest.mark.slow
@pytest.mark.cluster
def test_events_train_alike_on_one_rank_in_parts_and_on_two(tmp_path, monkeypatch):
    """Law 2, of an adversarial update: losses, weights, and the robust accuracy that is judged."""
    monkeypatch.chdir(tmp_path)
    lines, last, judged = followed(Place(), None)
    assert lines[-1]["update"] == 5
    for other in (followed(Place(), 4), *on_ranks(2, followed, None)):
        for one, its in zip(lines, other[0], strict=True):
            assert its == pytest.approx(one, rel=1e-9)
        for name, value in last.items():
            torch.testing.assert_close(other[1][name], value, rtol=1e-9, atol=1e-12)
        assert other[2] == judged


def test_events_resume_to_the_bit(tmp_path):
    """Law 3: 6 updates equal 3 and 3."""
    with PlainEngine(run_of(tmp_path / "whole")) as engine:
        trained(engine)
        whole = weights(engine)
    with PlainEngine(run_of(tmp_path / "cut", updates=3)) as engine:
        trained(engine)
    with PlainEngine(run_of(tmp_path / "cut")) as engine:
        gone_back(engine, tmp_path / "cut" / "checkpoints" / "00000003")
        trained(engine)
        assert all(torch.equal(value, whole[name]) for name, value in weights(engine).items())


@pytest.mark.slow
def test_a_network_of_events_learns_and_is_fooled(tmp_path):
    run = run_of(tmp_path, updates=60)
    run = replace(run, batch=64)
    with PlainEngine(run) as engine:
        before = Judge(run, engine).evaluate(None, None)["accuracy/clean"]
        trained(engine)
        after = Judge(run, engine).evaluate(run.validate.attack, None)
    assert after["accuracy/clean"] > max(0.5, before + 0.2)
    assert after["accuracy/pgd1"] < after["accuracy/clean"]
