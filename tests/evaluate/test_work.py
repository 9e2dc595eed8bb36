"""An evaluation's pieces: the same wherever they are made, and not made twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robust_train import sealed
from robust_train.attacks.apgd import APGD
from robust_train.attacks.combine import Restarts, WorstOf
from robust_train.attacks.pgd import PGD
from robust_train.attacks.universal import UAP
from robust_train.evaluate.columns import Columns
from robust_train.evaluate.given import Given
from robust_train.evaluate.robustness import Robustness, Tried
from robust_train.evaluate.store import Store
from robust_train.evaluate.trial import CLEAN, Trial, tried
from robust_train.evaluate.verdicts import pictured
from robust_train.evaluate.work import Task, evaluate, work
from robust_train.keyed import Key
from robust_train.nouns import Batch, Evaluator, Piece, Place
from robust_train.sealed import Lots
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
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


@dataclass(frozen=True)
class Trials(Robustness):
    """Robustness by trials that are told."""

    trials: tuple[Trial, ...] = TRIALS

    harmless = (*Robustness.harmless, "trials")

    def pieces(self, networks, data, found) -> tuple[Piece, ...]:
        return tuple(Piece(one.name, Tried(one, 1), one.after, images=one.images) for one in self.trials)


PLAN = Trials((BALL,), chunk=40)
NETWORKS = {"linear": Linear()}
PRINTS = {"linear": "a"}
PIECES = 3 * 6 + 2  # three on all chunks of 40 of 203 images, and one on the first 50 images


class Counted:
    """Whose pieces were judged, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        judge = Robustness.judge

        def counted(evaluator, networks, batch, piece, before, key):
            self.names.append(piece.name)
            return judge(evaluator, networks, batch, piece, before, key)

        monkeypatch.setattr(Robustness, "judge", counted)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return Counted(monkeypatch).names


def found(plan: Robustness = PLAN, seed: int = 5, store: Store | None = None, **given) -> Columns:
    return evaluate(plan, NETWORKS, Middling(), seed, store=store, **given)


def same(one: Columns, other: Columns) -> bool:
    return list(one) == list(other) and all(
        torch.equal(one[name][key].nan_to_num(-9), other[name][key].nan_to_num(-9)) for name in one for key in one[name]
    )


def test_any_number_of_devices_finds_the_same_to_the_bit() -> None:
    whole = found()
    assert len(list(whole.chunks(CLEAN))) == 6
    for world in (2, 3, 8):

        def deal(task: Task, jobs, world=world) -> Iterator:
            for rank in reversed(range(world)):
                yield from work(NETWORKS, Middling(), task, jobs[rank::world], "cpu")

        assert same(whole, found(deal=deal))


def test_a_later_attack_sees_only_what_stands_and_a_check_only_the_first_images() -> None:
    columns = found()
    radius = Linear().radius(Middling().images, Middling().targets)
    clean, weak, strong, check = (columns[trial.name] for trial in TRIALS)
    assert torch.equal(clean["right"], (radius > 0).float())
    assert torch.equal(strong["right"], (radius > 0.1).float())
    assert not bool(((weak["right"] > clean["right"]) | (strong["right"] > weak["right"])).any())
    assert torch.equal(strong["margin"].isnan(), weak["right"] == 0)
    assert torch.equal(strong["steps"] >= 0, weak["right"] == 1)
    assert len(check["right"]) == 50
    assert float(strong["distance"].nan_to_num(0).max()) <= 0.1 * (1 + 1e-5)
    sample, labels = columns.rows()
    assert sample.tolist() == list(range(203))
    assert torch.equal(labels, Middling().targets)


class Killed(Exception):
    pass


def test_killed_anywhere_it_goes_on_to_the_same_columns(tmp_path: Path, judged: list[str]) -> None:
    """Chunks are files, whole or absent: what a kill left is read, the rest is made, to the bits of one go."""
    whole = found()
    assert len(judged) == PIECES
    for cut in (1, 7, PIECES - 1):
        told: list[float] = []

        def tell(now: str, share: float, so_far: str, told=told, cut=cut) -> None:
            told.append(share)
            if len(told) == cut:
                raise Killed

        with pytest.raises(Killed):
            found(store=Store(tmp_path / str(cut), PRINTS), tell=tell)
        assert told == sorted(told)
        judged.clear()
        again = Store(tmp_path / str(cut), PRINTS)
        assert same(whole, found(store=again))
        assert again.resumed == cut
        assert len(judged) == PIECES - cut
        assert again.share == 1


def test_nothing_is_decoded_again_when_all_is_there_and_of_what_lacks_only_its_chunk(
    tmp_path: Path, monkeypatch
) -> None:
    read: list[int] = []
    batches = Middling.validation_batches

    def counted(self, place, chunk, limit=None):
        for batch in batches(self, place, chunk, limit):
            read.append(int(batch.position[0]) // chunk)
            yield batch

    monkeypatch.setattr(Middling, "validation_batches", counted)
    store = Store(tmp_path, PRINTS)
    found(store=store)
    assert read == list(range(6))
    read.clear()
    found(store=Store(tmp_path, PRINTS))
    assert read == []
    for number in (1, 4):
        (store.home() / f"40-{number:05d}.pieces").unlink()
    found(store=Store(tmp_path, PRINTS))
    assert read == [1, 4]


def test_another_network_starts_anew(tmp_path: Path) -> None:
    found(store=Store(tmp_path, PRINTS))
    for prints, there in ((PRINTS, PIECES), ({"linear": "b"}, 0), ({"renamed": "a"}, PIECES)):
        store = Store(tmp_path, prints)
        evaluate(PLAN, {name: Linear() for name in prints}, Middling(), 5, store=store)
        assert store.resumed == there


def test_another_plan_takes_what_it_has_in_common(tmp_path: Path) -> None:
    """An attack more, or more images: pieces whose attack, chain and images are the same are not made again."""

    def resumed(plan: Trials, seed: int = 5) -> int:
        store = Store(tmp_path, PRINTS)
        found(plan, seed, store)
        return store.resumed

    assert resumed(replace(PLAN, trials=TRIALS[:2], images=100)) == 0
    assert resumed(replace(PLAN, images=100)) == 6, "an attack more"
    assert resumed(PLAN) == 2 * 3 + 2, "all images: the third chunk was cut, and is made again; the check is there"
    stronger = replace(TRIALS[1], attack=PGD(BALL, 4, 0.02))
    assert resumed(replace(PLAN, trials=(CLEANLY, stronger))) == 6, "another attack: clean pieces"
    after = (CLEANLY, stronger, TRIALS[2])
    assert resumed(replace(PLAN, trials=after)) == 12, "and what comes after another attack is made again"
    assert resumed(PLAN, seed=6) == 0
    assert resumed(replace(PLAN, chunk=39)) == 0
    assert resumed(PLAN) == PIECES, "nothing took another's place"


@pytest.mark.parametrize(
    ("at", "lost"),
    [(None, 3), (17, 0), (-20, 1)],
    ids=["cut", "a byte of the first piece, which says the images", "a byte of the last"],
)
def test_what_was_damaged_in_a_file_is_made_again_and_said(at: int | None, lost: int, tmp_path: Path) -> None:
    store = Store(tmp_path, PRINTS)
    whole = found(store=store)
    broken = store.home() / "40-00002.pieces"
    content = bytearray(broken.read_bytes())
    if at is None:
        content = content[:50]
    else:
        content[at] ^= 0x40
    broken.write_bytes(content)
    again = Store(tmp_path, PRINTS)
    assert same(whole, found(store=again))
    assert again.resumed == PIECES - lost
    assert again.healed == [broken]
    third = Store(tmp_path, PRINTS)
    assert same(whole, found(store=third))
    assert (third.resumed, third.healed) == (PIECES, [])


def test_to_keep_a_piece_costs_what_that_piece_has_however_many_there_are(tmp_path: Path, monkeypatch) -> None:
    """Bytes that are written and read, counted: the hundredth costs no more than the second."""
    written, read = [0], [0]
    lots = Lots(tmp_path / "40-00000.pieces")
    opened = open

    class Writer:
        def __init__(self, path, mode):
            self.file = opened(path, mode)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            written[0] += len(data)
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(sealed, "open", Writer, raising=False)
    content = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.__setitem__(0, read[0] + 1) or content(path))
    costs = []
    for number in range(100):
        before = written[0]
        lots.add(f"piece {number:03d}@a.40", {"right": torch.ones(40)})
        costs.append(written[0] - before)
    assert len(set(costs)) == 1
    assert read[0] == 0
    assert len(Lots(lots.path).held) == 100


def test_pieces_that_two_processes_add_to_one_file_are_all_there(tmp_path: Path) -> None:
    one, other = Lots(tmp_path / "f.pieces"), Lots(tmp_path / "f.pieces")
    for number in range(3):
        one.add(f"one {number}@a.1", {"x": torch.tensor([number])})
        other.add(f"other {number}@a.1", {"x": torch.tensor([10 + number])})
    one.add("one 2@a.1", {"x": torch.tensor([7])})
    there = Lots(tmp_path / "f.pieces")
    assert {tag: int(lot["x"]) for tag, lot in there.held.items()} == {
        **{f"one {n}@a.1": n for n in (0, 1)},
        "one 2@a.1": 7,
        **{f"other {n}@a.1": 10 + n for n in range(3)},
    }
    assert there.whole


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch) -> None:
    lots = Lots(tmp_path / "f.pieces")
    lots.add("a@a.1", {"x": torch.ones(3)})
    size, opened = lots.path.stat().st_size, open

    class Full:
        def __init__(self, path, mode):
            self.file = opened(path, mode)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(sealed, "open", Full, raising=False)
    with pytest.raises(OSError, match="No space"):
        lots.add("b@a.1", {"x": torch.ones(3)})
    monkeypatch.undo()
    assert lots.path.stat().st_size == size
    lots.add("c@a.1", {"x": torch.ones(3)})
    assert list(Lots(lots.path).held) == ["a@a.1", "c@a.1"]


def test_fifty_thousand_images_under_autoattack_and_three_threats_take_less_than_50_mb_and_no_pictures(
    tmp_path: Path, monkeypatch
) -> None:
    """Two chunks of unlike sizes give the bytes of an image and of a chunk; 196 chunks of 256 follow.

    Verdicts are made by attacks that find nothing: what they are kept as is the same.
    """
    monkeypatch.setattr(
        "robust_train.evaluate.trial.attempted",
        lambda network, attack, images, targets, key: (images, torch.zeros(len(images), dtype=torch.int64)),
    )
    balls, sizes = (Linf(0.03), L2(0.2), L1(1.0)), []
    for count in (8, 24):
        store, plan = Store(tmp_path / str(count), PRINTS), Robustness(balls, "autoattack", checks=0, chunk=count)
        columns = evaluate(plan, NETWORKS, Middling(count), 5, store=store)
        assert len(plan.read(columns)[1].of("attack", "linf")) == 3, "of two classes targeted DLR says nothing"
        sizes.append((store.home() / f"{count}-00000.pieces").stat().st_size)
        assert not [name for name in columns if "picture" in str(list(columns[name]))]
    an_image = (sizes[1] - sizes[0]) / 16 * 4 / 3  # as if each had the fourth
    a_chunk = sizes[0] * 4 / 3 - 8 * an_image
    assert an_image * 50_000 + a_chunk * 196 < 50e6
    held = sum(t.nbytes for name in columns for t in columns[name].values()) / 24 * 4 / 3
    assert held * 50_000 < 50e6, "in memory"
    print(f"{an_image:.1f} bytes an image, {a_chunk:,.0f} a chunk; {held:.1f} an image in memory")


def near(one: Columns, other: Columns) -> bool:
    """The same but for the rounding of margins and distances, and for whose passes those of equal images are."""
    return list(one) == list(other) and all(
        torch.allclose(one[name][key].nan_to_num(-9).double(), other[name][key].nan_to_num(-9).double(), 0, 1e-6)
        for name in one
        for key in one[name]
        if key not in ("forwards", "backwards")
    )


@pytest.mark.parametrize("broken", [(), (3, 41, 42, 130)])
def test_another_chunk_goes_on_from_what_was_found_in_chunks_of_another_size(tmp_path: Path, judged, broken) -> None:
    """After an out-of-memory: rows that are each a function of one image are taken, whatever their chunk."""
    plan = Robustness((BALL,), steps=3, restarts=1, curve=1, checks=20, chunk=50)
    data = Middling(203, broken)

    def judged_in(chunk: int, folder: str, images: int | None = None):
        store = Store(tmp_path / folder, PRINTS)
        own = replace(plan, chunk=chunk, images=images)
        judged.clear()
        columns = evaluate(own, NETWORKS, data, 5, store=store)
        return columns, store, [name for name in judged if name != "looked"]

    judged_in(50, "a", images=100)  # as if memory had run out in the third
    columns, store, made = judged_in(20, "a")
    fresh, _, every = judged_in(20, "b")
    names = [name for name in fresh if name not in ("looked", "rows")]
    assert near(columns, fresh)
    curve = next(name for name in names if "/curve/" in name)
    assert [made.count(curve), every.count(curve)] == [6, 11], "of 11 chunks of 20 the first 5 were there"
    assert store.moved == len(every) - len(made)
    _, third, made = judged_in(70, "a")
    assert made.count(curve) == 1, "0 to 69 there is in fifties, 140 to 202 in twenties; 70 to 139 in neither"
    judged_in(20, "a")
    back, fourth, made = judged_in(50, "a")
    assert made == []
    assert near(back, judged_in(50, "c")[0])
    assert third.resumed >= 0
    assert fourth.moved > 0


def test_what_depends_on_its_chunk_is_not_taken_into_another(tmp_path: Path, judged) -> None:
    """A network with draws of its own is seeded by its chunk; a function sees some images at a time."""
    assert not replace(TRIALS[1], attack=UAP(BALL)).by_row
    assert not replace(TRIALS[1], attack=WorstOf((PGD(BALL, 1, 0.1), UAP(BALL)))).by_row
    assert not replace(TRIALS[1], attack=Given(BALL, "f")).by_row
    assert replace(TRIALS[1], attack=Restarts(PGD(BALL, 1, 0.1), 2)).by_row
    plan = Robustness((BALL,), steps=1, restarts=1, curve=0, checks=0, chunk=50)
    trial = plan.plan(2).trials[1]
    assert plan._piece(trial, plan.plan(2), ()).by_row
    assert not plan._piece(trial, plan.plan(2, stochastic=True), ()).by_row
    store = Store(tmp_path, PRINTS)
    found(store=store)
    again = Store(tmp_path, PRINTS)
    found(replace(PLAN, chunk=20), store=again)
    assert again.resumed == 0, "pieces that say nothing of their rows"


def test_chunks_of_one_number_and_as_many_images_are_told_apart(tmp_path: Path) -> None:
    """Of 43 images chunk 1 of forty has three, and so has chunk 1 of threes: others."""
    few = Middling(43)
    evaluate(replace(PLAN, chunk=40), NETWORKS, few, 5, store=Store(tmp_path, PRINTS))
    kept = evaluate(replace(PLAN, chunk=3), NETWORKS, few, 5, store=Store(tmp_path, PRINTS))
    assert same(kept, evaluate(replace(PLAN, chunk=3), NETWORKS, few, 5))


def test_chunks_change_no_verdict() -> None:
    """Rows are keyed by their sample: what an image meets does not depend on its neighbours."""
    columns = [found(replace(PLAN, chunk=chunk))["linf/apgd-ce"]["right"] for chunk in (203, 40, 7)]
    assert torch.equal(columns[0], columns[1])
    assert torch.equal(columns[0], columns[2])


def test_pictures_show_the_most_confidently_wrong_and_the_nearest_to_fall() -> None:
    (batch,) = Middling().validation_batches(Place(), 203)
    column, points = tried(Linear(), batch, TRIALS[1], [], Key(5))
    shown = pictured(column, batch.images, points, batch.sample, batch.targets)
    fallen = (~column.stands & ~column.margin.isnan()).nonzero().flatten()
    assert shown["sample"][:2].tolist() == fallen[column.margin[fallen].argsort()][:2].tolist()
    held = column.stands.nonzero().flatten()
    assert shown["sample"][2:].tolist() == held[column.margin[held].argsort()][:2].tolist()
    assert shown["kind"].tolist() == [0, 0, 1, 1]
    clean, attacked = shown["pixels"].float().unbind(1)
    assert float((clean - attacked).abs().max()) / 255 <= 0.1 + 1 / 255


def test_of_all_chunks_those_are_kept_that_are_shown_first(tmp_path: Path) -> None:
    """In whatever order the chunks come; and what an earlier start left competes."""
    whole = found().pictures("linf/pgd3")
    for kind in (0, 1):
        order = whole["order"][whole["kind"] == kind]
        assert len(order) == 4
        assert order.tolist() == sorted(order.tolist())

    def backwards(task: Task, jobs) -> Iterator:
        for job in reversed(jobs):
            yield from work(NETWORKS, Middling(), task, [job], "cpu")

    found(replace(PLAN, images=120), store=Store(tmp_path, PRINTS), deal=backwards)
    again = found(store=Store(tmp_path, PRINTS), deal=backwards).pictures("linf/pgd3")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("seed", [5, 6])
def test_the_seed_decides_the_draws(seed: int) -> None:
    one = found(seed=seed)
    assert same(one, found(seed=seed))
    assert same(one, found()) == (seed == 5)


def test_draws_follow_the_sample_and_not_its_place() -> None:
    """The same image of a data set meets the same start wherever a list or a rank puts it."""
    (batch,) = Middling(6).validation_batches(Place(), 6)
    elsewhere = replace(batch, position=batch.position + 40)
    other = replace(batch, sample=batch.sample + 40)
    trial = Trial("linf/pgd1", PGD(BALL, 1, 0.01), (), "linf")
    points = [tried(Linear(), one, trial, [], Key(5))[1] for one in (batch, elsewhere, other)]
    assert torch.equal(points[0], points[1])
    assert not torch.equal(points[0], points[2])


# -- pieces that need others ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted(Evaluator):
    """Least squares of the labels on the pixels over all chunks, then its residual on each: sums of squares."""

    chunk: int = 40
    images: int | None = None
    made: tuple[list[str], ...] = ()

    harmless = ("made", "images")

    def pieces(self, networks, data, found) -> list[Piece]:
        return [
            Piece("pixels", kept=False, networks=()),
            Piece("moments", needs=("pixels",), networks=()),
            Piece("fit", needs=("moments",), whole=True, networks=()),
            Piece("residual", needs=("pixels", "fit"), networks=()),
        ]

    def judge(self, networks, batch: Batch, piece: Piece, before, key) -> dict[str, Tensor]:
        for names in self.made:
            names.append(piece.name)
        if piece.name == "pixels":
            return {"x": batch.images.flatten(1).double()[:, :10], "y": batch.targets.double()}
        if piece.name == "moments":
            x, y = before["pixels"]["x"], before["pixels"]["y"]
            return {"xx": (x.T @ x)[None], "xy": (x.T @ y)[None]}
        if piece.name == "fit":
            return {"w": torch.linalg.solve(before["moments"]["xx"].sum(0), before["moments"]["xy"].sum(0))}
        return {"r": before["pixels"]["y"] - before["pixels"]["x"] @ before["fit"]["w"]}

    def report(self, found: Columns) -> Tensor:
        return found["residual"]["r"]


@pytest.mark.parametrize("broken", [(), tuple(range(80, 120))])
def test_a_fit_over_all_chunks_is_needed_by_what_comes_after_it_and_made_once(tmp_path: Path, broken) -> None:
    """A chunk without a sound image is part of nothing."""
    data = Middling(203, broken)
    whole = torch.tensor([n for n in range(203) if n not in broken])
    x, y = data.images.flatten(1).double()[whole, :10], data.targets.double()[whole]
    expected = y - x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    names: list[str] = []
    fitted = Fitted(made=(names,))
    sound = 6 if not broken else 5
    for count in ({"pixels": 2 * sound, "moments": sound, "fit": 1, "residual": sound}, {}):
        names.clear()
        found = evaluate(fitted, {}, data, store=Store(tmp_path))
        assert torch.allclose(fitted.report(found), expected)
        assert {name: names.count(name) for name in set(names)} == count


def test_a_piece_that_needs_what_is_not_before_it_is_refused() -> None:
    @dataclass(frozen=True)
    class Astray(Fitted):
        def pieces(self, networks, data, found) -> list[Piece]:
            return [Piece("a", needs=("b",)), Piece("b")]

    @dataclass(frozen=True)
    class Unkept(Fitted):
        def pieces(self, networks, data, found) -> list[Piece]:
            return [Piece("a", kept=False), Piece("b", needs=("a",), whole=True)]

    with pytest.raises(ValueError, match="piece a needs b, which is no piece before it"):
        evaluate(Astray(), {}, Middling())
    with pytest.raises(ValueError, match="piece b is whole: all that it needs is kept"):
        evaluate(Unkept(), {}, Middling())


@dataclass(frozen=True)
class Told(Evaluator):
    """Pieces that are told; each is the sum of its images' numbers, or of what it needs."""

    told: tuple[Piece, ...] = ()
    chunk: int = 40
    images: int | None = None

    harmless = ("told", "images")

    def pieces(self, networks, data, found) -> tuple[Piece, ...]:
        return self.told

    def judge(self, networks, batch: Batch, piece: Piece, before, key) -> dict[str, Tensor]:
        if piece.needs:
            return {"sum": sum(found["sum"].sum() for found in before.values())[None]}
        return {"sum": batch.sample.sum()[None]}

    def report(self, found: Columns) -> dict[str, int]:
        return {name: int(found[name]["sum"].sum()) for name in found.judged}


def test_two_pieces_of_one_name_are_refused_where_they_differ() -> None:
    def total(*told: Piece) -> dict[str, int]:
        plan = Told(told)
        return plan.report(evaluate(plan, {}, Middling(10)))

    first = Piece("a", torch.arange(3))
    assert total(first, Piece("a", torch.arange(3))) == {"a": 45}
    b = Piece("b")
    for other in (Piece("a", torch.arange(4)), Piece("a"), replace(first, needs=("b",)), replace(first, networks=())):
        with pytest.raises(ValueError, match="two pieces are called a, and are not the same"):
            total(b, first, other)


def test_pieces_on_one_set_have_its_images() -> None:
    few, more = Middling(10), Middling(20)
    same = Told((Piece("a", data=few, on="few"), Piece("b", data=Middling(10), on="few")))
    assert same.report(evaluate(same, {}, Middling())) == {"a": 45, "b": 45}
    for on in ("few", ""):
        astray = Told((Piece("a", data=few, on="few"), Piece("b", data=more, on=on)))
        with pytest.raises(ValueError, match="piece b has other images on"):
            evaluate(astray, {}, Middling())
    with pytest.raises(ValueError, match="piece a is on 'none', whose images no piece has"):
        evaluate(Told((Piece("a", on="none"),)), {}, Middling())


def test_what_rests_on_other_images_is_made_again(tmp_path: Path) -> None:
    """A whole piece over more images, what needs it, and a piece whose need is limited: none is taken as it was."""

    def totals(plan: Told, kept: bool) -> dict[str, int]:
        return plan.report(evaluate(plan, {}, Middling(), store=Store(tmp_path if kept else None)))

    def plan(limit: int | None, images: int | None) -> Told:
        first, fit = Piece("first", images=limit), Piece("fit", needs=("first",), whole=True)
        return Told(
            (first, fit, Piece("after", needs=("fit",)), Piece("beside", needs=("first",), images=20)), 40, images
        )

    seen = []
    for limit, images in ((None, 60), (None, 100), (50, 100), (10, 100), (10, 15)):
        fresh = totals(plan(limit, images), False)
        seen.append(tuple(fresh.values()))
        assert totals(plan(limit, images), True) == fresh
    assert len(set(seen)) == 5
    again = Store(tmp_path)
    evaluate(plan(None, 60), {}, Middling(), store=again)
    assert again.resumed == 2 + 1 + 2 + 1, "nothing took another's place"


def test_a_file_that_the_system_cannot_read_now_is_not_deleted(tmp_path: Path, monkeypatch) -> None:
    """Too many open files, a broken disk: no reason to throw hours of work away."""
    store = Store(tmp_path, PRINTS)
    found(store=store)
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.name == "40-00002.pieces":
            raise OSError(24, "Too many open files", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(OSError, match="Too many open files"):
        found(store=Store(tmp_path, PRINTS))
    monkeypatch.undo()
    again = Store(tmp_path, PRINTS)
    found(store=again)
    assert again.resumed == PIECES
