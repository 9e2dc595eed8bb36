"""tools.eval shift: accuracies on other images of the same classes, beside those on ImageNet's own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from robust_train.evaluate.report import wilson
from robust_train.subject import Subject
from robust_train.tools.eval_shifts import main
from tests.data.miniature import SYNSETS, A, Oracle, R, ranking, write_images, write_labels


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A network that says class 1 to greys 0 to 3, 5 or else 7 to 4 to 6, 7 to 7; A and R, ImageNet beside them."""
    network = Oracle([ranking(1)] * 4 + [ranking(5, 7)] * 3 + [ranking(7)] + [ranking(0)] * 4)
    monkeypatch.chdir(tmp_path)  # pieces are kept below runs/
    monkeypatch.setattr(Subject, "network", lambda self, device="cpu": network)
    labels = write_labels(tmp_path / "labels")
    a = write_images(tmp_path / "a", {f"{SYNSETS[1]}/{level}.png": level for level in range(6)})
    r = write_images(tmp_path / "r", {f"{SYNSETS[1]}/0.png": 0, f"{SYNSETS[5]}/5.png": 5, f"{SYNSETS[5]}/9.png": 9})
    clean = write_images(tmp_path / "clean", {f"{synset}/x.png": label for label, synset in enumerate(SYNSETS)})
    (tmp_path / "weights.pth").write_bytes(b"of the oracle")
    model = ["--model", "oracle", "--weights", str(tmp_path / "weights.pth"), "--classes", "12", "--size", "4"]
    shifts = ["--sets", f"imagenet-a={a}", f"imagenet-r={r}", "--labels", labels, "--imagenet", clean]
    return [*model, *shifts, "--json", str(tmp_path / "deep" / "shifts.json"), "--device", "cpu"]


def test_accuracies_stand_beside_those_on_the_same_classes(words, tmp_path, capsys):
    """A: greys 0 to 3 of 6. R: 0 and 5 of three. Clean: labels 1 and 7 of A's three classes; both of R's."""
    main(words)
    tree = json.loads((tmp_path / "deep" / "shifts.json").read_text(encoding="utf-8"))
    a, r = tree["shifts"]
    assert (a["name"], a["right"], a["images"], a["compared"]) == ("imagenet-a", 4, 6, len(A))
    assert a["interval95"] == list(wilson(4 / 6, 6))
    assert (a["clean"]["name"], a["clean"]["right"], a["clean"]["images"]) == ("imagenet/200-a", 2, 3)
    assert a["gap"] == 0
    assert (r["right"], r["images"], r["compared"]) == (2, 3, len(R))
    assert (r["clean"]["right"], r["clean"]["images"]) == (2, 2)
    assert r["gap"] == pytest.approx(1 / 3)
    assert (tree["prepared"]["size"], tree["images"], tree["model"]) == (4, None, "oracle")
    assert list(tree["identity"]["data"]) == ["imagenet-a", "imagenet-r", "imagenet/200-a", "imagenet/200-r"]
    said = capsys.readouterr().out
    assert re.search(r"imagenet-a +66\.67% +30\.0% to 90\.3% +6 +3 +66\.67% +\+0\.00%", said)
    assert re.search(r"imagenet-r .* 3 +2 +100\.00% +\+33\.33%", said)


def test_without_imagenet_there_is_no_gap_and_the_command_says_so(words, tmp_path, capsys):
    at = words.index("--imagenet")
    main(words[:at] + words[at + 2 :] + ["--images", "2"])
    (a, r) = json.loads((tmp_path / "deep" / "shifts.json").read_text(encoding="utf-8"))["shifts"]
    assert (a["images"], r["images"], a["clean"], a["gap"]) == (2, 2, None, None)
    assert "without --imagenet" in capsys.readouterr().out


def test_progress_counts_the_images_of_every_set_once(words, monkeypatch, capsys):
    """A's 6, R's 3, ImageNet's 3 and 2 of their classes: 14; what is there is not judged again."""
    from robust_train.records import judging

    monkeypatch.setattr(judging, "LINES", 0.0)
    main([*words, "--chunk", "4"])
    told = re.findall(r"^(\S+), chunk (\d): (\d+)%.* (\S+% of \d)$", capsys.readouterr().err, re.M)
    names = ["imagenet-a", "imagenet-a", "imagenet-r", "imagenet/200-a", "imagenet/200-r"]
    assert [name for name, *_ in told] == names
    assert [int(share) for *_, share, _ in told] == [round(100 * n / 14) for n in (4, 6, 9, 12, 14)]
    assert told[0][3] == "100.0% of 4"
    main([*words, "--chunk", "4"])
    said = capsys.readouterr()
    assert "going on: 5 pieces were found in runs/oracle/eval" in said.err
    assert not re.search("chunk", said.err)
    assert "66.67%" in said.out


@pytest.mark.slow
@pytest.mark.cluster
def test_two_devices_of_a_ray_cluster_give_one_devices_report(tmp_path, monkeypatch):
    """A small timm model with weights of its own; folders are named from where the command is given."""
    import timm
    import torch
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=12).state_dict(), "weights.safetensors")
    write_labels(tmp_path / "labels")
    shown = {f"{SYNSETS[label]}/{level}.png": 20 * level + label for label in A for level in range(7)}
    write_images(tmp_path / "a", shown)
    model = ["--model", "test_resnet", "--weights", "weights.safetensors", "--classes", "12", "--size", "32"]
    shifts = ["--sets", "imagenet-a=a", "--labels", "labels", "--imagenet", "a", "--chunk", "4", "--device", "cpu"]
    found = {}
    for devices in ("1", "2"):
        main([*model, *shifts, "--devices", devices, "--json", f"{devices}.json"])
        found[devices] = json.loads(Path(f"{devices}.json").read_text(encoding="utf-8"))
        shutil.rmtree("runs")
    assert found["1"]["shifts"] == found["2"]["shifts"]
    assert 0 < found["1"]["shifts"][0]["right"] < 21


def test_a_runs_images_are_prepared_as_it_trained_on_them(small_run):
    from robust_train.tools.eval_shifts import prepared

    subject = Subject(str(small_run.parent / "run"))
    seen = prepared(subject, None)
    assert seen["size"] == 32
    assert "labels" not in seen


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--sets", "imagenet-a"], "'imagenet-a' is no NAME=PATH: write imagenet-a=/data/imagenet-a"),
        (["--sets", "imagenet-sketh=/x"], "'imagenet-sketh' is no shift; did you mean 'imagenet-sketch'"),
        (["--sets", "imagenet-a=/x", "--eps", "0.1"], "unrecognized arguments: --eps 0.1"),
        (["--labels", "/x"], "the following arguments are required: --sets"),
        (["--sets", "imagenet-a=/x", "--devices", "0"], "--devices 0: at least one process"),
        (["--sets", "imagenet-a=/x", "--images", "0"], "images=0 must be at least 1"),
        (["--sets", "imagenet-a=/x", "imagenet-a=/y"], "imagenet-a is given twice"),
        (["--sets", "imagenet-a=/x", "--ground-truth", "/x"], "name it by --imagenet FOLDER"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused_with_what_it_needs(small_run, more, said, capsys):
    with pytest.raises(SystemExit) as error:
        main([str(small_run.parent / "run"), *more])
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_a_network_for_grey_images_is_refused(small_run, words, monkeypatch, capsys):
    monkeypatch.undo()  # the run's own network
    at = words.index("--sets")
    with pytest.raises(SystemExit):
        main([str(small_run.parent / "run"), *words[at:]])
    assert "00000004 takes grey ones: give another network" in capsys.readouterr().err
