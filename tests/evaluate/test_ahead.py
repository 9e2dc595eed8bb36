"""Decoding and corrupting in processes of their own: the same verdicts, and a device that waits for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robust_train.evaluate import ahead
from robust_train.evaluate.ahead import Ahead, Lean, asked, beforehand
from robust_train.evaluate.corruption_work import Course, Voice
from robust_train.evaluate.store import Job, Store
from robust_train.evaluate.work import Task, evaluate
from robust_train.launch.deal import Left
from robust_train.nouns import Batch, Evaluator, Piece
from tests.evaluate.linear import Middling


@dataclass(frozen=True)
class Seen(Evaluator):
    """Images made of the images, looked at by two, and what needs no images."""

    chunk: int = 10
    images: int | None = None

    def pieces(self, networks, data, found) -> Sequence[Piece]:
        return (
            Piece("half", 0.5, networks=(), kept=False),
            Piece("noisy", networks=(), kept=False, images=25),
            Piece("sum", needs=("half",)),
            Piece("rest", needs=("half", "noisy"), images=25),
        )

    def judge(self, networks, batch: Batch, piece: Piece, before, key) -> dict[str, Tensor]:
        if piece.name == "half":
            return {"x": batch.images / 2}
        if piece.name == "noisy":
            rows = key.of("noise").rows(batch.sample)
            from robust_train.keyed import uniform

            return {"x": uniform(rows, batch.images.shape)}
        return {"s": sum(one["x"].flatten(1).sum(1)[: len(batch)] for one in before.values())}

    def report(self, found) -> Tensor:
        return found["rest"]["s"]


JOB = Job("", 1, ("sum", "rest"), {})


def test_what_asks_no_network_and_is_kept_by_nobody_is_made_beforehand() -> None:
    pieces = {piece.name: piece for piece in Seen().pieces({}, Middling(), {})}
    assert asked(pieces, JOB) == ["half", "noisy", "sum", "rest"]
    assert beforehand(pieces, JOB) == ["half", "noisy"]
    assert beforehand(pieces, replace(JOB, lacking=("sum",))) == ["half"]
    assert beforehand({"half": replace(pieces["half"], networks=None)}, replace(JOB, lacking=("half",))) == []
    assert beforehand({"half": replace(pieces["half"], kept=True)}, replace(JOB, lacking=("half",))) == []


@pytest.mark.parametrize("low", [0.0, -0.5], ids=["grey levels", "any floats"])
def test_a_tensor_arrives_to_the_bit_grey_levels_as_bytes(low: float) -> None:
    levels = torch.arange(256).float() / 255 + low
    lean = Lean(levels)
    assert lean.tensor.dtype == (torch.float32 if low else torch.uint8)
    assert torch.equal(lean.to("cpu"), levels)
    assert lean.to("cpu").dtype == torch.float32
    assert Lean(torch.arange(3)).to("cpu").dtype == torch.int64


class Here:
    """A pool that does all at once, in this process, and counts what is not taken yet."""

    def __init__(self, *given) -> None:
        given[2](*given[3])
        self.submitted: list[tuple] = []

    def submit(self, what, *step):
        from concurrent.futures import Future

        self.submitted.append(step)
        future: Future = Future()
        future.set_result(what(*step))
        return future

    def shutdown(self, cancel_futures: bool) -> None:
        ahead._read.cache_clear()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Here]:
    made: list[Here] = []
    monkeypatch.setattr(ahead, "ProcessPoolExecutor", lambda *given: made.append(Here(*given)) or made[-1])
    return made


def test_no_more_is_made_ready_than_is_held_and_it_comes_in_the_order_of_the_jobs(here) -> None:
    evaluator, data = Seen(), Middling(30)
    pieces = {piece.name: piece for piece in evaluator.pieces({}, data, {})}
    task = Task(evaluator, pieces, 0, {"": 30})
    with Ahead(data, task, 2) as reading:
        for number in range(3):
            reading.want(replace(JOB, number=number))
        (pool,) = here
        assert pool.submitted == [("", 0, None), ("", 0, "half"), ("", 0, "noisy"), ("", 1, None)], "2 x 2 held"
        for number in range(3):
            assert reading.take("", number).sample.tolist() == list(range(10 * number, 10 * number + 10))
            assert len(reading.take("", number, "half")["x"].to("cpu")) == 10
            assert len(reading.take("", number, "noisy")["x"].to("cpu")) == (10 if number < 2 else 5)
            assert len(reading._running) <= 4
        assert len(pool.submitted) == 9
        assert reading.take("", 1).sample.tolist() == list(range(10, 20)), "what nobody had announced is read too"


def test_each_chunk_is_decoded_once_for_all_that_is_made_of_it(here, monkeypatch) -> None:
    read: list[int] = []
    batches = Middling.validation_batches

    def counted(self, place, chunk, limit=None):
        for batch in batches(self, place, chunk, limit):
            read.append(int(batch.position[0]) // chunk)
            yield batch

    monkeypatch.setattr(Middling, "validation_batches", counted)
    with_workers = Seen().report(evaluate(Seen(), {}, Middling(30), workers=3))
    assert read == [0, 1, 2]
    assert torch.equal(with_workers, Seen().report(evaluate(Seen(), {}, Middling(30))))


def test_a_device_never_idles_while_a_chunk_is_left() -> None:
    """What one was promised is another's where that is free first; every job is done once."""
    jobs = [Job("", number, ("a",), {}) for number in range(5)]
    left = Left(jobs)
    assert [left.next("fast"), left.next("slow")] == jobs[:2]
    assert [left.promise("fast"), left.promise("slow")] == jobs[2:4]
    assert left.next("fast") == jobs[2]
    assert left.promise("fast") == jobs[4]
    assert left.next("fast") == jobs[4]
    assert left.promise("fast") is None
    assert left.next("fast") == jobs[3], "the slow one's promise"
    assert left.next("slow") is left.next("fast") is None


@pytest.mark.slow
@pytest.mark.cluster  # starts processes
def test_corruptions_made_by_processes_give_the_verdicts_of_this_one(tmp_path: Path) -> None:
    from robust_train.data.shards import Shards
    from robust_train.data.write import sample, write_shard

    generator, images = torch.Generator().manual_seed(0), []
    import io

    from PIL import Image

    for number in range(24):
        pixels = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "png")
        images.append(sample(f"k{number:02d}", "png", stream.getvalue(), number % 10))
    write_shard(tmp_path / "v.tar", iter(images))
    data = Shards(str(tmp_path / "v.tar"), 10, 32, str(tmp_path / "v.tar"), cache=str(tmp_path / "cache"), workers=1)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)).eval()
    course = Course(("gaussian_noise", "fog"), chunk=10, voices=(Voice("v", ("net",)),))
    found = []
    for workers in (0, 2):
        store = Store(tmp_path / str(workers), {"net": "a"})
        found.append(evaluate(course, {"net": network}, data, 3, store=store, workers=workers))
    assert list(found[0]) == list(found[1])
    assert all(torch.equal(found[0][name]["right"], found[1][name]["right"]) for name in found[0] if "/" in name)
    assert len([name for name in found[0] if "/" in name]) == 11
