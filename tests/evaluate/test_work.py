"""An evaluation's pieces: the same wherever they are made, and not made twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robust_train.attacks.apgd import APGD
from robust_train.attacks.pgd import PGD
from robust_train.evaluate.trial import CLEAN, Trial, tried
from robust_train.evaluate.work import Found, Piece, Plan, Store, work
from robust_train.keyed import Key
from robust_train.nouns import Place
from robust_train.threats.linf import Linf
from tests.evaluate.linear import Linear, Middling

BALL = Linf(0.1)
CLEANLY = Trial(CLEAN, None, (), role="clean")
TRIALS = (
    CLEANLY,
    Trial("linf/pgd3", PGD(BALL, 3, 0.02), (CLEAN,), "linf"),
    Trial("linf/apgd-ce", APGD(BALL, 10), (CLEAN, "linf/pgd3"), "linf"),
    Trial("linf/check/first", PGD(BALL, 1, 0.1), (CLEAN,), "linf", "check", images=50),
)
PLAN = Plan(TRIALS, classes=2, chunk=40, seed=5)


class Dealt(Middling):
    """Chunk i goes to rank i mod world, as shards deal them."""

    def validation_batches(self, place, chunk, limit=None):
        yield from (
            b for n, b in enumerate(super().validation_batches(place, chunk, limit)) if n % place.world == place.rank
        )


def pieces(place: Place = Place(), done: dict[Piece, Found] | None = None, plan: Plan = PLAN) -> dict[Piece, Found]:
    return dict(work(Linear(), Dealt(), plan, place, done or {}))


def same(one: dict[Piece, Found], other: dict[Piece, Found]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(a.nan_to_num(-9), b.nan_to_num(-9))
        for at in one
        for a, b in zip(one[at].tensors().values(), other[at].tensors().values(), strict=True)
    )


def test_any_number_of_devices_finds_the_same_to_the_bit() -> None:
    whole = pieces()
    assert {number for number, _ in whole} == set(range(6))
    for world in (2, 3, 8):
        parts: dict[Piece, Found] = {}
        for rank in range(world):
            parts |= pieces(Place(rank, world))
        assert same(whole, parts)


def test_a_later_attack_sees_only_what_stands_and_a_check_only_the_first_images() -> None:
    store = Store(None, {}, PLAN)
    for at, found in pieces().items():
        store.put(at, found)
    verdicts = store.verdicts()
    radius = Linear().radius(Middling().images, Middling().targets)
    clean, weak, strong, check = (verdicts.columns[trial.name] for trial in TRIALS)
    assert torch.equal(clean.right, (radius > 0).float())
    assert torch.equal(strong.right, (radius > 0.1).float())
    assert not bool((weak.stands & ~clean.stands).any() or (strong.stands & ~weak.stands).any())
    assert torch.equal(strong.margin.isnan(), ~weak.stands)
    assert torch.equal(strong.steps >= 0, weak.stands)
    assert len(check.right) == 50
    assert float(strong.distance.nan_to_num(0).max()) <= 0.1 * (1 + 1e-5)
    assert verdicts.sample.tolist() == list(range(203))
    table = verdicts.per_class([clean.right, strong.right], 2)
    assert [row[0] for row in table] == torch.bincount(verdicts.labels).tolist()
    assert sum(row[2] for row in table) == float(strong.right.sum())


def test_killed_anywhere_it_goes_on_to_the_same_report(tmp_path: Path) -> None:
    """Pieces are files, whole or absent: what a kill left is read, the rest is made, to the bits of one go."""
    whole = pieces()
    for cut in (0, 1, 7, len(whole) - 1):
        folder = tmp_path / str(cut)
        store = Store(folder, {"weights": "a"}, PLAN)
        for number, (at, found) in enumerate(work(Linear(), Dealt(), PLAN, Place(), store.done)):
            if number == cut:
                break
            store.put(at, found)
        again = Store(folder, {"weights": "a"}, PLAN)
        assert again.resume() == cut
        made = pieces(done=again.done)
        assert len(made) == len(whole) - cut
        assert same(whole, {**again.done, **made})


def test_another_network_plan_or_version_starts_anew(tmp_path: Path) -> None:
    store = Store(tmp_path, {"weights": "a"}, PLAN)
    store.put((0, CLEAN), pieces()[0, CLEAN])
    assert Store(tmp_path, {"weights": "a"}, PLAN).resume() == 1
    assert Store(tmp_path, {"weights": "b"}, PLAN).resume() == 0


def test_another_plan_takes_what_it_has_in_common(tmp_path: Path) -> None:
    """An attack more, or more images: pieces whose attack, chain and images are the same are not made again."""
    store = Store(tmp_path, {}, replace(PLAN, trials=TRIALS[:2], images=100))
    for at, found in pieces(plan=store.plan).items():
        store.put(at, found)
    assert len(store.done) == 6
    assert Store(tmp_path, {}, replace(PLAN, images=100)).resume() == 6, "an attack more"
    assert Store(tmp_path, {}, PLAN).resume() == 4, "all images: the third chunk was cut, and is made again"
    stronger = replace(TRIALS[1], attack=PGD(BALL, 4, 0.02))
    assert Store(tmp_path, {}, replace(PLAN, trials=(CLEANLY, stronger))).resume() == 2, "another attack: clean pieces"
    assert Store(tmp_path, {}, replace(PLAN, seed=6)).resume() == 0


def test_a_damaged_piece_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path, {}, PLAN)
    for at in ((0, CLEAN), (1, CLEAN)):
        store.put(at, pieces()[at])
    assert store.folder is not None
    broken = next(store.folder.glob("00001-*.safetensors"))
    broken.write_bytes(broken.read_bytes()[:50])
    again = Store(tmp_path, {}, PLAN)
    assert again.resume() == 1
    assert not broken.exists()


def test_chunks_change_no_verdict() -> None:
    """Rows are keyed by their sample: what an image meets does not depend on its neighbours."""
    columns = []
    for chunk in (203, 40, 7):
        store = Store(None, {}, PLAN)
        for at, found in pieces(plan=replace(PLAN, chunk=chunk)).items():
            store.put(at, found)
        columns.append(store.verdicts().columns["linf/apgd-ce"].right)
    assert torch.equal(columns[0], columns[1])
    assert torch.equal(columns[0], columns[2])


def test_pictures_show_the_most_confidently_wrong_and_the_nearest_to_fall() -> None:
    (found,) = (f for (number, name), f in pieces(plan=replace(PLAN, chunk=203)).items() if name == "linf/pgd3")
    margin, stands = found.column.margin, found.column.stands
    fallen = (~stands & ~margin.isnan()).nonzero().flatten()
    assert found.shown[:2].tolist() == fallen[margin[fallen].argsort()][:2].tolist()
    held = stands.nonzero().flatten()
    assert found.shown[2:].tolist() == held[margin[held].argsort()][:2].tolist()
    clean, attacked = found.pixels.float() / 255
    assert float((clean - attacked).abs().max()) <= 0.1 + 1 / 255


@pytest.mark.parametrize("key", [Key(5), Key(6)])
def test_the_seed_decides_the_draws(key: Key) -> None:
    one = pieces(plan=replace(PLAN, seed=key.seed))
    assert same(one, pieces(plan=replace(PLAN, seed=key.seed)))
    assert same(one, pieces()) == (key.seed == 5)


def test_draws_follow_the_sample_and_not_its_place() -> None:
    """The same image of a data set meets the same start wherever a list or a rank puts it."""
    (batch,) = Middling(6).validation_batches(Place(), 6)
    elsewhere = replace(batch, position=batch.position + 40)
    other = replace(batch, sample=batch.sample + 40)
    trial = Trial("linf/pgd1", PGD(BALL, 1, 0.01), (), "linf")
    points = [tried(Linear(), one, trial, [], Key(5))[1] for one in (batch, elsewhere, other)]
    assert torch.equal(points[0], points[1])
    assert not torch.equal(points[0], points[2])
