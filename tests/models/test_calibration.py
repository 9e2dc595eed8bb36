"""An initialisation that looks at data: once, at the beginning, on the same images wherever and on how many ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train import checkpoint, job
from robust_train.engines.plain import PlainEngine
from robust_train.judging import Judge
from robust_train.models.blueprint import Blueprint
from robust_train.nouns import Edit, Model, Place, Shape
from robust_train.objectives.plain import Plain
from robust_train.settings.average import Average
from robust_train.settings.keep import Keep
from tests.ranks import on_ranks
from tests.toys import Kept, pictures, toy_run, trained, weights

COUNT = 40  # more than two batches of 16


class Whitened(nn.Module):
    """(x - shift) / scale, one number each."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.shift) / self.scale


@dataclass(frozen=True)
class Calibrated(Model):
    """Its first layer has the mean and the standard deviation of what it was calibrated on."""

    use = "calibrated"

    def build(self, classes: int, shape: Shape) -> nn.Module:
        return nn.Sequential(Whitened(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(shape[-1] ** 2, classes))

    def stages(self, model: nn.Module) -> Iterator[str]:
        yield "0"

    def calibrated_on(self) -> int:
        return COUNT

    def calibrate(self, model: nn.Module, images: Tensor) -> None:
        assert not torch.is_grad_enabled()
        assert not model.training
        assert model(images).shape == (COUNT, 5)  # no key is asked for
        model.get_parameter("0.shift").copy_(images.mean())
        model.get_parameter("0.scale").copy_(images.std())


@dataclass(frozen=True)
class Halved(Edit):
    """Only to see that calibration comes after edits, on pixels as the edit wants them."""

    @property
    def mean(self) -> tuple[float, ...]:
        return (0.25,)

    @property
    def std(self) -> tuple[float, ...]:
        return (2.0,)

    def __call__(self, model: nn.Module, shape: Shape, classes: int) -> None:
        pass


def run_of(folder: str | Path, **changes: Any) -> Any:
    return toy_run(
        Plain(),
        folder,
        network=Blueprint(Calibrated(), (Halved(),), group=4),
        updates=2,
        average=Average(0.9),
        checkpoint=Keep(every=1),
        **changes,
    )


def expected() -> tuple[Tensor, Tensor]:
    """The closed form: mean and deviation of the first images of the training order, as the model sees them."""
    images, _ = pictures(64)
    drawn = []
    for update in range(3):
        generator = torch.Generator().manual_seed(update)
        drawn.append(torch.randint(64, (16,), generator=generator))
    seen = (images[torch.cat(drawn)[:COUNT]].double() / 255 - 0.25) / 2
    return seen.mean(), seen.std()


def began(place: Place, folder: str = "run", **changes: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights with which a run begins, and the average's."""
    run = run_of(folder, **changes)
    engine = PlainEngine(run, place, torch.float64)
    job.begin(run, engine, Judge(run, engine), Kept(), checkpoint.newest(run.path))  # type: ignore[arg-type]
    now = weights(engine)
    with engine.whole():
        return now, weights(engine)


def test_a_calibrated_model_begins_with_the_closed_form_of_the_first_images(tmp_path: Path) -> None:
    now, average = began(Place(), str(tmp_path))
    mean, deviation = expected()
    for found in (now, average):
        assert_close(found["0.shift"], mean)
        assert_close(found["0.scale"], deviation)


@pytest.mark.slow
@pytest.mark.cluster
def test_it_is_the_same_network_on_every_rank_at_every_world_size(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    alone, _ = began(Place())
    for found, average in on_ranks(2, began):
        for name, value in alone.items():
            assert torch.equal(found[name], value), name
            assert_close(average[name], value, rtol=1e-6, atol=1e-7, msg=name)  # kept in float32


def test_it_is_not_called_where_a_run_goes_on_or_has_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "one")
    engine = PlainEngine(run, dtype=torch.float64)
    job.begin(run, engine, Judge(run, engine), Kept(), checkpoint.newest(run.path))  # type: ignore[arg-type]
    trained(engine)

    def never(*_: Any) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr(Calibrated, "calibrate", never)
    assert began(Place(), str(tmp_path / "one"))[0]["0.shift"] != 0  # goes on from its checkpoint
    began(Place(), str(tmp_path / "two"), start=str(tmp_path / "one"))
    with pytest.raises(AssertionError, match="calibrated again"):
        began(Place(), str(tmp_path / "three"))
