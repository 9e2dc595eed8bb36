"""tools.eval corruptions: accuracies under corruptions that no kill, chunk or device changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import robust_train
from robust_train.data.corruptions import SEVERITIES
from robust_train.evaluate import corruption_work
from robust_train.evaluate.corruptions import Robustness, corrupted
from robust_train.evaluate.report import wilson
from robust_train.evaluate.store import Store
from robust_train.evaluate.work import evaluate, work
from robust_train.keyed import Key
from robust_train.nouns import Place
from robust_train.subject import Subject
from robust_train.tools.eval_corruptions import main

QUICK = ["--images", "40", "--chunk", "16", "--device", "cpu"]
NAMES = "brightness,contrast,saturate"


def judged(folder: Path, *words: str, names: str = NAMES, target: str = "c.json") -> dict:
    main([str(folder), "--kinds", names, *QUICK, "--json", str(folder.parent / target), *words])
    return json.loads((folder.parent / target).read_text(encoding="utf-8"))


@pytest.fixture
def folder(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, without what was kept of other evaluations."""
    return shutil.copytree(small_run.parent / "run", tmp_path / "run", ignore=shutil.ignore_patterns("eval*"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of each piece that is made from now on."""
    made: list[str] = []
    one = corruption_work.Course.judge

    def judge(self, networks, batch, piece, before, key):
        made.extend([piece.name] if piece.kept else [])
        return one(self, networks, batch, piece, before, key)

    monkeypatch.setattr(corruption_work.Course, "judge", judge)
    return made


def test_accuracies_are_those_of_the_network_on_the_corrupted_images(folder, capsys):
    """The definition: corrupt, forward, compare, count; all images at once."""
    tree = judged(folder)
    network, data = robust_train.load(folder), Subject(str(folder)).images()
    batch = next(iter(data.validation_batches(Place(), 40, 40)))
    for cell in tree["cells"]:
        images = corrupted(batch, cell["corruption"], cell["severity"], Key(0)).images
        with torch.no_grad():
            right = int((network(images).argmax(1) == batch.targets).sum())
        assert (cell["right"], cell["images"]) == (right, 40)
        assert cell["interval95"] == list(wilson(right / 40, 40))
    assert [(cell["corruption"], cell["severity"]) for cell in tree["cells"]] == [
        (name, severity) for name in NAMES.split(",") for severity in SEVERITIES
    ]
    assert tree["clean"]["images"] == 40
    assert tree["size"] == 32
    assert (tree["mce"], tree["relative_mce"], tree["mean"], tree["gain"]) == (None, None, None, None)
    assert Robustness.of(tree).tree() == {name: tree[name] for name in Robustness.of(tree).tree()}
    said = capsys.readouterr().out
    assert "accuracy, %, at severity" in said
    assert "at 32 there is none" in said
    assert Path(tree["pictures"][0]).read_bytes().startswith(b"\x89PNG")
    assert Path(tree["pictures"][0]) == folder.parent / "eval-corruptions.png"


def test_killed_anywhere_it_goes_on_to_the_same_report(folder, counted, monkeypatch, capsys):
    """3 chunks, clean and 2 corruptions at 5 severities: 33 pieces; cut in the middle, the rest is made."""
    names = "brightness,contrast"
    whole = judged(shutil.copytree(folder, folder.parent / "other" / "run"), names=names)
    assert len(counted) == 33
    put, kept = Store.put, []

    def killed(self, number, name, tensors):
        kept.extend([] if name.startswith("rows") else [name])
        if len(kept) == 18:
            raise RuntimeError("killed")
        put(self, number, name, tensors)

    monkeypatch.setattr(Store, "put", killed)
    with pytest.raises(RuntimeError, match="killed"):
        judged(folder, names=names)
    monkeypatch.setattr(Store, "put", put)
    counted.clear()
    again = judged(folder, names=names)
    assert len(counted) == 33 - 17
    assert "going on: 17 pieces" in capsys.readouterr().err
    assert {name: again[name] for name in ("cells", "clean")} == {name: whole[name] for name in ("cells", "clean")}


def test_what_is_there_is_taken_and_a_damaged_piece_is_made_again(folder, counted):
    first = judged(folder, names="contrast")
    assert len(counted) == 3 * 6
    broken = next((folder / "eval").rglob("*-00001.pieces"))
    broken.write_bytes(broken.read_bytes()[:20])
    counted.clear()
    second = judged(folder, names="contrast,brightness")
    again = ["clean", *(f"contrast/{s}" for s in SEVERITIES)]
    assert sorted(counted) == sorted([*again, *(f"brightness/{s}" for s in SEVERITIES for _ in range(3))])
    assert [cell for cell in second["cells"] if cell["corruption"] == "contrast"] == first["cells"]
    counted.clear()
    judged(folder, "--images", "48", names="contrast")
    assert len(counted) == 6, "the third chunk had 8 images; the others are there"
    counted.clear()
    judged(folder, "--seed", "1", names="contrast")
    assert len(counted) == 18, "other draws"


def test_neither_chunk_nor_rank_changes_a_verdict(folder):
    network, data = robust_train.load(folder), Subject(str(folder)).images()
    names = ("shot_noise", "brightness")

    def of(chunk: int, world: int) -> dict[str, torch.Tensor]:
        def deal(task, jobs):
            for rank in reversed(range(world)):
                yield from work({"": network}, data, task, jobs[rank::world], "cpu")

        course = corruption_work.Course(names, chunk, images=40)
        found = evaluate(course, {"": network}, data, seed=3, deal=deal)
        return {name: found[name]["right"] for name in ("clean", *course.cells)}

    whole = of(40, 1)
    for chunk, world in ((16, 1), (7, 3)):
        assert all(torch.equal(found, whole[name]) for name, found in of(chunk, world).items())


def test_the_gain_is_over_a_base_on_the_same_images(folder, capsys):
    tree = judged(folder, names="contrast")
    counts = {(cell["corruption"], cell["severity"]): (cell["right"] // 2, 40) for cell in tree["cells"]}
    base = {**tree, **Robustness(counts, (1, 40), 32).tree()}
    (folder.parent / "base.json").write_text(json.dumps(base), encoding="utf-8")
    found = judged(folder, "--base", str(folder.parent / "base.json"), names="contrast")
    expected = found["corruptions"]["contrast"] / base["corruptions"]["contrast"] - 1
    assert found["gain"]["corruptions"]["contrast"] == pytest.approx(expected)
    assert "gain" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        judged(folder, "--base", str(folder.parent / "base.json"), "--seed", "1", names="contrast")
    assert "was judged on other images (seed: 0, here 1)" in capsys.readouterr().err


def test_stored_images_are_judged_as_they_are(folder, monkeypatch):
    """CIFAR-10-C's form: severity s of image i is all 10 s + i; the network says 1 where it is brighter than 40."""

    class Bright(torch.nn.Module):
        classes = 10

        def forward(self, images):
            return torch.nn.functional.one_hot((images[:, 0, 0, 0] * 255 > 40).long(), 10).float()

    colour = Subject(str(folder)).images()
    object.__setattr__(colour, "channels", 3)
    monkeypatch.setattr(Subject, "network", lambda self, device="cpu": Bright())
    monkeypatch.setattr(Subject, "images", lambda self: colour)
    home = folder.parent / "stored"
    home.mkdir()
    levels = np.array([10 * severity + i for severity in SEVERITIES for i in range(5)], dtype=np.uint8)
    np.save(home / "fog.npy", np.broadcast_to(levels[:, None, None, None], (25, 32, 32, 3)))
    np.save(home / "labels.npy", np.array([1, 1, 0, 0, 0] * 5))
    tree = judged(folder, "--stored", str(home), "--chunk", "2", names="all")
    rights = [sum((10 * s + i > 40) == (i < 2) for i in range(5)) for s in SEVERITIES]
    assert [(cell["corruption"], cell["right"], cell["images"]) for cell in tree["cells"]] == [
        ("fog", right, 5) for right in rights
    ]
    assert set(tree["on"]["stored"]) == {"fog.npy", "labels.npy"}
    again = judged(folder, "--stored", str(home), "--chunk", "2", names="all")
    assert again["cells"] == tree["cells"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "frost needs textures: --frost FOLDER"),
        (["--kinds", "frog"], "'frog' is no corruption; did you mean 'fog'"),
        (["--kinds", "fog", "--eps", "0.1"], "unrecognized arguments: --eps 0.1"),
        (["--kinds", "fog", "--stored", "/x"], "--stored /x holds colour images"),
        (["--kinds", "fog", "--order", "/x"], "name it by --stored FOLDER"),
        (["--kinds", "fog", "--base", "/x.json"], "--base /x.json is no report of corruptions"),
        (["--kinds", "fog", "--images", "0"], "--images 0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(folder, more, said, counted, capsys):
    with pytest.raises(SystemExit) as error:
        main([str(folder), *more])
    assert error.value.code == 2
    assert said in capsys.readouterr().err
    assert counted == []


def test_progress_is_the_share_of_images_and_time_left_leaves_out_what_was_there(monkeypatch, capsys):
    from robust_train.records import judging

    monkeypatch.setattr(judging, "LINES", 0.0)
    clock = iter([0.0, 10.0, 10.0, 20.0, 20.0, 30.0, 30.0])
    monkeypatch.setattr(judging.time, "monotonic", lambda: next(clock))
    with judging.telling() as tell:
        tell("fog/1", 0.5, "clean 90.0% of 10")
        tell("fog/2", 0.75, "clean 90.0% of 10")
    said = capsys.readouterr().err.splitlines()
    assert said == ["fog/1: 50%, clean 90.0% of 10", "fog/2: 75%, about 20 s left; clean 90.0% of 10"]


@pytest.mark.slow
@pytest.mark.cluster
def test_two_devices_of_a_ray_cluster_give_one_devices_report(folder):
    other = shutil.copytree(folder, folder.parent / "other" / "run")
    one, two = judged(folder), judged(other, "--devices", "2", "--workers", "1")
    assert {name: one[name] for name in ("cells", "clean")} == {name: two[name] for name in ("cells", "clean")}
