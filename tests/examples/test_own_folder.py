"""examples/train_on_my_own_folder.py does what it says, and a run on a folder is one on its shards, to the byte."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from robust_train.__main__ import main as train
from robust_train.tools import make_shards

ROOT = Path(__file__).parents[2]
SMALL = (
    "data.size=8",
    "network={model: {use: small-cnn, widths: [4], strides: [2]}, group: 8}",
    "objective.attack.steps=1",
    "objective.attack.step_size=8/255",
    "updates=6",
    "batch=8",
    "validate={every: 3, images: 8}",
    "records={wandb: 'off', progress: 'off'}",
)


def pictures(folder: Path) -> None:
    """Ten dark cats and ten bright dogs, and what a Mac leaves beside them."""
    for name, level in (("cat", 30), ("dog", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (12, 10), (level, level + i, level)).save(folder / name / f"{i}.jpg")
    (folder / "__MACOSX").mkdir()
    (folder / ".DS_Store").write_bytes(b"x")


@pytest.mark.slow
def test_a_run_on_a_folder_is_one_on_its_shards_and_is_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import train_on_my_own_folder as example

    few = ["--steps", "2", "--restarts", "1", "--curve", "0", "--checks", "0", "--device", "cpu"]
    evaluate = example.evaluate
    monkeypatch.setattr(example, "evaluate", lambda words: evaluate([*words, *few]))
    pictures(tmp_path / "train")
    pictures(tmp_path / "val")
    cache = f"data.cache={tmp_path / 'cache'}"
    example.main(["train", "val", "runs/mine", cache, *SMALL])
    assert "2 classes, in the order of their labels: cat, dog" in capsys.readouterr().out
    report = json.loads((tmp_path / "runs" / "mine" / "eval.json").read_text())
    assert report["images"] == 20
    for split in ("train", "val"):
        make_shards.main([split, "shards", "--split", split, "--processes", "1"])
    same = ["data.train=shards/train-*.tar", "data.validation=shards/val-*.tar", "folder=runs/shards"]
    train(["runs/mine.yaml", cache, *SMALL, *same])
    mine, shards = ((tmp_path / "runs" / name / "metrics.jsonl").read_bytes() for name in ("mine", "shards"))
    assert mine == shards
    sys.modules.pop("train_on_my_own_folder")
