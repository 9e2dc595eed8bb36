"""Bad input gets one clear message that names the remedy, and exit code 2; nothing that was there is lost."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from robust_train import checkpoint, command
from robust_train.__main__ import main
from robust_train.read.errors import main_guard
from robust_train.run import Run
from robust_train.tools.eval import main as evaluate

ROOT = Path(__file__).parent.parent


def refused(call, capsys) -> str:
    """What a command says on stderr when it ends with exit code 2: a message without a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        call()
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.strip()
    assert "Traceback" not in said
    return said


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(small_run: Path, tmp_path: Path, capsys):
    """run(key=value, ...) -> what the command says on stderr, given a folder of its own."""

    def words(*changes: str) -> str:
        return refused(lambda: main([str(small_run), f"folder={tmp_path}/new", *changes]), capsys)

    return words


@pytest.fixture
def begun(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's folder that has its last two updates yet to do."""
    folder = tmp_path / "begun"
    shutil.copytree(small_run.parent / "run", folder)
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "00000004")
    (folder / "run.yaml").write_text(Run.load(small_run, [f"folder={folder}"]).dump(), encoding="utf-8")
    return folder


def shards_of(folder: Path, extra: str = "", **more: object) -> str:
    """The data section for the digits as ordinary shards."""
    fields = {"use": "shards", "train": f"{folder}/digits-train-*.tar", "classes": 10, "size": 32, "channels": 1}
    return f"data={json.dumps(fields | {'cache': f'{folder}/cache'} | more)}"


def shard(path: Path, samples: list[tuple[bytes, bytes]]) -> Path:
    """A tar of (PNG, label) samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (image, label) in enumerate(samples):
            for suffix, content in (("png", image), ("cls", label)):
                info = tarfile.TarInfo(f"s{number:03d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def png() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (32, 32), 90).save(file, "png")
    return file.getvalue()


# -- what is written in the run -------------------------------------------------------------------


def test_a_misspelt_key(run, tmp_path):
    said = run("objective.attack.stpes=3", "updtes=9")
    assert "run.objective.attack.stpes" in said
    assert "did you mean 'steps'?" in said
    assert "did you mean 'updates'?" in said  # all mistakes at once
    assert not (tmp_path / "new").exists()


def test_eps_in_grey_levels(run):
    assert "8 grey levels are eps=8/255, not 8" in run("objective.attack.threat.eps=8")


def test_an_unknown_model(run):
    said = run("network.model={use: timm, name: resnet81}")
    assert "resnet81" in said
    assert "resnet18" in said


def test_a_file_that_is_not_there(capsys):
    assert "nowhere.yaml" in refused(lambda: main(["nowhere.yaml"]), capsys)


def test_no_run_at_all(capsys):
    assert "name a run: python -m robust_train configs/demo.yaml" in refused(lambda: main([]), capsys)


def test_another_run_in_the_folder(small_run, capsys):
    before = contents(small_run.parent / "run")
    said = refused(lambda: main([str(small_run), "optimiser.lr=0.2"]), capsys)
    assert "holds another run" in said
    assert "optimiser.lr: was 0.05, is now 0.2" in said
    assert "folder=runs/NAME" in said
    assert contents(small_run.parent / "run") == before


# -- data -----------------------------------------------------------------------------------------


def test_missing_data(run):
    said = run('data={use: shards, train: "/nowhere/train-*.tar", classes: 10, size: 32}')
    assert "'/nowhere/train-*.tar' matches no file" in said
    assert "python -m tools.make_shards" in said


def test_a_label_out_of_range(run, small_run):
    said = run(shards_of(small_run.parent / "digits", classes=5))
    assert "labels run from 0 to 4" in said
    assert "Correct data.classes" in said


@pytest.mark.parametrize(
    ("cut", "words"),
    [(lambda tar: tar[: len(tar) // 2], "is truncated or damaged"), (lambda tar: b"", "shard part.tar")],
)
def test_a_shard_that_is_truncated_or_empty(run, tmp_path, cut, words):
    path = shard(tmp_path / "data" / "part.tar", [(png(), b"1")] * 40)
    path.write_bytes(cut(path.read_bytes()))
    said = run(shards_of(tmp_path / "data", train=str(path)))
    assert "part.tar" in said
    assert words in said


def test_a_tar_without_samples(run, tmp_path):
    path = shard(tmp_path / "data" / "part.tar", [])
    assert "holds no samples" in run(shards_of(tmp_path / "data", train=str(path)))


def test_an_undecodable_image(run, tmp_path):
    path = shard(tmp_path / "data" / "part.tar", [(png(), b"1")] * 31 + [(b"no picture", b"1")])
    good = shard(tmp_path / "data" / "good.tar", [(png(), b"1")] * 32)
    said = run(shards_of(tmp_path / "data", train=str(path), validation=str(good)))
    assert "sample s031 cannot be decoded" in said
    assert "data.missing=1" in said


# -- division -------------------------------------------------------------------------------------


def test_a_batch_that_is_not_whole_groups(run):
    said = run("batch=40")
    assert "batch=40" in said
    assert "whole groups of 16" in said


def test_a_batch_that_does_not_divide_over_the_devices(small_run, tmp_path, capsys):
    @main_guard()
    def check():
        command.here(Run.load(small_run, [f"folder={tmp_path}/new"]), check_only=True, devices=3)

    assert "batch=32 does not divide over 3 ranks. Use 1, 2, 4" in refused(check, capsys)


def test_a_world_size_that_does_not_divide_the_streams(small_run, tmp_path, capsys):
    digits = small_run.parent / "digits"
    data = shards_of(digits, reader="streams", streams=4, validation=f"{digits}/digits-validation-*.tar")

    @main_guard()
    def check():
        run = Run.load(small_run, [f"folder={tmp_path}/new", data, "batch=48"])
        command.here(run, check_only=True, devices=3)

    said = refused(check, capsys)
    assert "streams=4 cannot be dealt to 3 ranks. Use 1, 2, 4 ranks" in said


# -- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_of_another_model(run, small_run):
    said = run(f"start={small_run.parent}/run", "network.model={use: small-cnn, widths: [4, 9], strides: [2, 2]}")
    assert "does not fit Chain: " in said
    assert "of another shape" in said


def test_a_weights_file_of_another_model_for_a_timm_name(tmp_path, small_run, capsys):
    weights = next((small_run.parent / "run" / "checkpoints").glob("*/weights.safetensors"))
    copied = shutil.copy(weights, tmp_path / "weights.safetensors")
    words = ["--model", "test_resnet", "--weights", str(copied), "--data", "x.tar", "--eps", "0.1"]
    assert str(copied) in refused(lambda: evaluate(words), capsys)


@pytest.mark.parametrize("damage", ["cut short", "altered", "missing", "manifest cut short"])
def test_a_damaged_checkpoint(begun, capsys, damage):
    folder = begun / "checkpoints" / "00000002"
    path = folder / ("manifest.json" if damage.startswith("manifest") else "weights.safetensors")
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:-20] if "cut" in damage else whole[:-1] + bytes([whole[-1] ^ 1]))
    (begun / "timing.jsonl").unlink(missing_ok=True)  # a start that gets so far adds a line to it
    before = contents(begun)
    for command_line in (lambda: main([str(begun / "run.yaml")]), lambda: evaluate([str(begun)])):
        said = refused(command_line, capsys)
        assert "no whole checkpoint" in said
        assert "older checkpoint" in said
    (begun / "timing.jsonl").unlink(missing_ok=True)
    assert contents(begun) == before
    said = refused(lambda: evaluate([str(folder)]), capsys)
    assert "00000002" in said


def test_a_damaged_newest_checkpoint_costs_time_and_no_results(small_run, tmp_path):
    """The run goes on from the older one, and writes the lines and the weights that it would have written anyway."""
    folder, done = tmp_path / "copy", small_run.parent / "run"
    shutil.copytree(done, folder)
    (folder / "summary.json").unlink()
    (folder / "checkpoints" / "00000004" / "weights.safetensors").write_bytes(b"half")
    (folder / "run.yaml").unlink()
    main([str(small_run), f"folder={folder}"])
    assert (folder / "metrics.jsonl").read_bytes() == (done / "metrics.jsonl").read_bytes()
    newest = checkpoint.newest(folder)
    assert newest.name == "00000004"
    mine, theirs = (checkpoint.read(path, "weights") for path in (newest, checkpoint.newest(done)))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_what_is_no_checkpoint(tmp_path, capsys):
    assert "does not exist" in refused(lambda: evaluate([str(tmp_path / "nowhere")]), capsys)
    assert "is no checkpoint" in refused(lambda: evaluate([str(tmp_path)]), capsys)


# -- disk and folder ------------------------------------------------------------------------------


def test_a_disk_without_room_for_the_checkpoints(run, monkeypatch, tmp_path):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30 - 1000, 1000))
    said = run()
    assert "4 checkpoints of" in said
    assert "Free some room" in said
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(begun, small_run, monkeypatch, capsys):
    """The library's own words of a full disk (tried on one). The same command goes on once there is room."""
    import safetensors.torch

    def full(tensors, path):
        Path(path).write_bytes(b"half of it")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", full)
        said = refused(lambda: main([str(begun / "run.yaml")]), capsys)
    assert "the disk is full; free some room or name another folder, then give the same command again" in said
    assert checkpoint.newest(begun).name == "00000002"
    main([str(begun / "run.yaml")])
    assert (begun / "metrics.jsonl").read_bytes() == (small_run.parent / "run" / "metrics.jsonl").read_bytes()


def test_a_report_that_the_disk_does_not_take(small_run, tmp_path, capsys):
    words = [str(small_run.parent / "run"), "--images", "8", "--steps", "1", "--curve", "0", "--restarts", "1"]
    said = refused(lambda: evaluate([*words, "--json", "/dev/full", "--pictures", str(tmp_path)]), capsys)
    assert "the disk is full" in said
    assert Path("/dev/full").is_char_device()  # a device is neither read nor replaced


def test_a_folder_that_cannot_be_written(small_run, tmp_path, capsys):
    """Below a regular file nobody can make a folder, not even root, who passes over permissions."""
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    said = refused(lambda: main([str(small_run), f"folder={tmp_path}/file/run"]), capsys)
    assert "cannot be written" in said
    assert "Name a folder that you may write to" in said
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"
    words = [str(small_run.parent / "run"), "--images", "8", "--steps", "1", "--curve", "0", "--restarts", "1"]
    said = refused(lambda: evaluate([*words, "--json", f"{tmp_path}/file/eval.json"]), capsys)
    assert f"{tmp_path}/file" in said


# -- devices --------------------------------------------------------------------------------------


def test_no_gpu_where_one_was_asked_for(run, small_run, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "Say cluster.gpu=false" in run("cluster.gpu=true")
    folder = str(small_run.parent / "run")
    assert "Say --device cpu" in refused(lambda: evaluate([folder, "--device", "cuda:1"]), capsys)


def test_an_evaluation_that_cannot_be(small_run, capsys):
    folder = str(small_run.parent / "run")
    assert "eps=8/255, not 8" in refused(lambda: evaluate([folder, "--eps", "8"]), capsys)
    assert "restarts=0 must be at least 1" in refused(lambda: evaluate([folder, "--restarts", "0"]), capsys)
    assert "matches no file" in refused(lambda: evaluate([folder, "--data", "/nowhere/*.tar"]), capsys)


# -- as a user sees it ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["robust_train", "configs/demo.yaml", "batchs=3"], "did you mean 'batch'?"),
        (["tools.eval", "configs"], "Name a run's folder"),
    ],
)
def test_the_shell_sees_one_message_and_exit_code_2(words, remedy):
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
