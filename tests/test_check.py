"""What would stop a run later stops it before its first update, with the remedy."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robust_train import check, job, ownership
from robust_train.attacks.pgd import PGD
from robust_train.check import Held, activation_bytes, available, check_room, checkpoint_bytes, writable
from robust_train.engines.plain import PlainEngine
from robust_train.models.blueprint import Blueprint
from robust_train.nouns import Place
from robust_train.objectives.madry import Madry
from robust_train.objectives.plain import Plain
from robust_train.objectives.trades import Trades
from robust_train.read.errors import ConfigError, RunError
from robust_train.run import Run
from robust_train.settings.average import Average
from robust_train.settings.execution import Execution
from robust_train.settings.keep import Keep
from robust_train.settings.optimiser import Optimiser
from robust_train.threats.linf import Linf
from tests.toys import ToyNetwork, toy_run, trained

MADRY = Madry(PGD(Linf(0.1), 2, 0.05))
Usage = namedtuple("Usage", "total used free")


def test_the_batch_must_divide_over_the_devices():
    assert check.check(toy_run(Plain(), batch=16), 2) == "batch: 16 images, in 1 micro-batch of 8 on each of 2 devices"
    assert (
        check.check(toy_run(Plain(), batch=16, engine=Execution(micro_batch=8)), 1)
        == "batch: 16 images, in 2 micro-batches of 8"
    )
    with pytest.raises(ConfigError, match=r"batch=16 does not divide over 3 ranks. Use 1, 2, 4"):
        check.check(toy_run(Plain(), batch=16), 3)


@pytest.mark.parametrize("average", [None, Average(0.9)])
@pytest.mark.parametrize(("name", "tensors"), [("momentum", 1), ("adamw", 2)])
def test_a_checkpoint_is_as_large_as_it_was_estimated(tmp_path, name, tensors, average):
    """To some kilobytes: names, text and counters beside the tensors."""
    wide = Blueprint(ToyNetwork(width=64), group=4)
    run = toy_run(Plain(), tmp_path, updates=1, network=wide, optimiser=Optimiser(name, 0.01), average=average)
    engine = PlainEngine(run)
    trained(engine)
    written = sum(path.stat().st_size for path in (tmp_path / "checkpoints" / "00000001").glob("*.safetensors"))
    assert checkpoint_bytes(run, engine) == pytest.approx(written, abs=8_000)
    assert written > 350_000


def test_a_disk_without_room_for_the_checkpoints_is_named_with_what_is_missing(tmp_path, monkeypatch):
    run = toy_run(Plain(), tmp_path / "a" / "b", checkpoint=Keep(1, keep=3))
    engine = PlainEngine(run)
    needed = 5 * checkpoint_bytes(run, engine)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * needed, needed, needed))
    check_room(run, engine)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * needed, needed + 1, needed - 1))
    with pytest.raises(ConfigError, match=r"are free, and 5 checkpoints of .* need .*keep fewer \(checkpoint.keep=1\)"):
        check_room(run, engine)
    engine.place = Place(rank=1, world=2)
    check_room(run, engine)  # the leading rank alone writes, and asks


def test_checkpoints_that_are_there_need_no_further_room(tmp_path, monkeypatch):
    run = toy_run(Plain(), tmp_path, updates=2, checkpoint=Keep(1))
    engine = PlainEngine(run)
    trained(engine)
    each = checkpoint_bytes(run, engine)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9 * each, 6 * each, 2 * each))
    check_room(run, engine)


def test_a_part_that_the_memory_does_not_hold_is_refused_with_one_that_it_does(monkeypatch):
    run = toy_run(MADRY, batch=64)
    engine = PlainEngine(run)
    trained_bytes = 4 * sum(parameter.numel() for parameter in engine.module.parameters())
    each = activation_bytes(run, engine)
    have = 2 * trained_bytes + int(18.5 * each)  # gradients, momentum, and a part of 16: a group is 4
    monkeypatch.setattr(check, "available", lambda place: have)
    with pytest.raises(ConfigError, match=r"micro-batches of 64 images .* Set engine.micro_batch=16 or less"):
        check_room(run, engine)
    monkeypatch.setattr(check, "available", lambda place: 10)
    with pytest.raises(ConfigError, match="Use a device with more memory"):
        check_room(run, engine)


def test_what_a_graph_holds_is_counted_once_and_no_longer_than_it_is_held():
    """exp saves its output of 400 bytes; its square saves it again; the weights are there anyway."""
    weight = nn.Parameter(torch.ones(100))
    held = Held({weight.untyped_storage().data_ptr()})
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.tensor):
        once = weight.exp()
        assert held.now == 400
        twice = once * once
        assert held.now == 400
        product = weight * weight
        assert held.now == 400
        (twice.sum() + product.sum()).backward()
    del once, twice, product
    assert (held.now, held.most) == (0, 400)


def test_activations_are_those_of_the_update_and_not_of_all_attack_steps():
    """An attack lets go of each step's graph, so more steps hold no more; TRADES keeps two forwards and holds more."""
    few, many = (toy_run(Madry(PGD(Linf(0.1), steps, 0.05))) for steps in (1, 6))
    trades = toy_run(Trades(PGD(Linf(0.1), 1, 0.05, start="noise"), beta=6.0))
    one, six, two = (activation_bytes(run, PlainEngine(run)) for run in (few, many, trades))
    assert one == six
    assert 1.5 * one < two < 3 * one
    assert 2 * 4 * 6 * 16 < one < 100 * 4 * 6 * 16  # bytes: two to a hundred maps of 6 channels of 4x4


def test_on_a_gpu_it_is_the_measured_peak_of_a_whole_micro_batch_and_what_no_tensor_holds_is_free(monkeypatch):
    """With a GPU of numbers: 1,000 bytes are free; PyTorch has 500, of which tensors hold 300 and, at most, 421."""
    sizes, peak = [], [900]  # of an earlier update: forgotten before it is measured
    engine = SimpleNamespace(device=torch.device("cuda:0"), micro_batch=8)

    def rehearsed(run, engine, size):
        sizes.append(size)
        peak[0] = max(peak[0], 421)

    monkeypatch.setattr(check, "rehearse", rehearsed)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.__setitem__(0, 300))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 80_000))
    assert activation_bytes(toy_run(Plain()), engine) == 16  # 121 / 8, rounded up
    assert sizes == [8]
    assert available(Place(device="cuda:0")) == 1200


def test_memory_is_shared_among_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr(check, "_free_memory", lambda: 1000)
    assert available(Place(world=8)) == 125
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert available(Place(world=8)) == 500


def test_the_free_memory_of_this_machine_is_a_sensible_number():
    assert 2**26 < available(Place()) < 2**46


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda logits: (logits, logits), "cannot be trained on samples.*AttributeError"),
        (lambda logits: logits[:, :-1], r"gives \[\d+, \d+\] in training"),
        (lambda logits: logits.view(3, 1, 4, 1, 5), "cannot be trained on samples.*RuntimeError"),
    ],
)
def test_a_network_that_answers_otherwise_in_training_is_refused(answer, said):
    engine = PlainEngine(toy_run(MADRY))
    engine.module.model.register_forward_hook(lambda model, _, logits: answer(logits) if model.training else logits)
    with pytest.raises(ConfigError, match=said):
        check_room(toy_run(MADRY), engine)


def test_a_folder_can_be_written_if_it_could_be_made(tmp_path):
    writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written \(.*file: not a directory\). Name a folder that"):
        writable(tmp_path / "file" / "run")


def test_checking_leaves_the_numbers_of_the_run_alone():
    run = toy_run(MADRY, updates=2)
    plain, looked_at = PlainEngine(run), PlainEngine(run)
    check_room(run, looked_at)
    assert trained(plain) == trained(looked_at)


def test_a_folder_is_held_against_a_second_job_until_the_first_has_ended(tmp_path, monkeypatch):
    """Held by another process, as a job that is at work; let go of at its end, even where it is killed."""
    import subprocess
    import sys

    monkeypatch.setattr(ownership, "PATIENCE", 0.5)
    run = toy_run(Plain(), tmp_path)
    code = (
        "import fcntl, sys, time\n"
        f"file = open({str(tmp_path / 'lock')!r}, 'a')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=r"written by another process.*folder="):
            job.do(run, PlainEngine, Place())
        assert not (tmp_path / "metrics.jsonl").exists()
        with ownership.alone(run, Place(1, 2), patience=0.0):
            pass  # only the rank that writes holds it
    finally:
        other.kill()
        other.wait()
        assert other.stdout is not None
        other.stdout.close()
    with ownership.alone(run, Place(), patience=1.0):
        pass


def test_weights_to_begin_with_are_looked_at_too(small_run, tmp_path):
    """A file that is not there, and one of another network; what fits is said."""
    where = [f"folder={tmp_path}/run", f"start={tmp_path}/w.safetensors"]
    run = Run.load(small_run, where)
    with pytest.raises(RunError, match=r"w\.safetensors does not exist"):
        job.look(run, PlainEngine, Place(), 1)
    save_file(PlainEngine(run).module.model.state_dict(), tmp_path / "w.safetensors")
    assert f"begins with {run.start}" in job.look(run, PlainEngine, Place(), 1)
    with pytest.raises(RunError, match="does not fit"):
        job.look(Run.load(small_run, [*where, "network.model.widths=[4, 9]"]), PlainEngine, Place(), 1)
    assert not (tmp_path / "run").exists()


def test_a_folder_belongs_to_a_run_from_its_first_update_on(small_run, tmp_path):
    """One that was refused before it has claimed nothing: the corrected run may take its folder."""
    refused = Run.load(small_run, [f"folder={tmp_path}/run", f"start={tmp_path}/absent", "updates=2"])
    with pytest.raises(RunError):
        job.do(refused, PlainEngine, Place())
    job.do(replace(refused, start=None), PlainEngine, Place())
    with pytest.raises(ConfigError, match="holds another run"):
        job.do(replace(refused, start=None, batch=16), PlainEngine, Place())


def test_the_folder_of_a_finished_run_is_left_as_it_is(small_run, tmp_path):
    run = Run.load(small_run, [f"folder={tmp_path}/run", "updates=2"])
    job.do(run, PlainEngine, Place())
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    assert before
    job.do(run, PlainEngine, Place())
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == before
