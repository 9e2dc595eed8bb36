"""tools.eval --shift: accuracies on other images of the same classes, beside those on ImageNet's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from robust_train.evaluate.report import wilson
from robust_train.subject import Subject
from tests.data.miniature import SYNSETS, A, Oracle, R, ranking, write_images, write_labels
from tools.eval import main


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A network that says class 1 to greys 0 to 3, 5 or else 7 to 4 to 6, 7 to 7; A and R, ImageNet beside them."""
    network = Oracle([ranking(1)] * 4 + [ranking(5, 7)] * 3 + [ranking(7)] + [ranking(0)] * 4)
    monkeypatch.setattr(Subject, "network", lambda self, device="cpu": network)
    labels = write_labels(tmp_path / "labels")
    a = write_images(tmp_path / "a", {f"{SYNSETS[1]}/{level}.png": level for level in range(6)})
    r = write_images(tmp_path / "r", {f"{SYNSETS[1]}/0.png": 0, f"{SYNSETS[5]}/5.png": 5, f"{SYNSETS[5]}/9.png": 9})
    clean = write_images(tmp_path / "clean", {f"{synset}/x.png": label for label, synset in enumerate(SYNSETS)})
    (tmp_path / "weights.pth").write_bytes(b"of the oracle")
    model = ["--model", "oracle", "--weights", str(tmp_path / "weights.pth"), "--classes", "12", "--size", "4"]
    shifts = ["--shift", f"imagenet-a={a}", f"imagenet-r={r}", "--labels", labels, "--imagenet", clean]
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
    assert list(tree["identity"]["data"]) == ["imagenet-a", "imagenet-r", "imagenet"]
    said = capsys.readouterr().out
    assert re.search(r"imagenet-a +66\.67% +30\.0% to 90\.3% +6 +3 +66\.67% +\+0\.00%", said)
    assert re.search(r"imagenet-r .* 3 +2 +100\.00% +\+33\.33%", said)


def test_without_imagenet_there_is_no_gap_and_the_command_says_so(words, tmp_path, capsys):
    at = words.index("--imagenet")
    main(words[:at] + words[at + 2 :] + ["--images", "2"])
    (a, r) = json.loads((tmp_path / "deep" / "shifts.json").read_text(encoding="utf-8"))["shifts"]
    assert (a["images"], r["images"], a["clean"], a["gap"]) == (2, 2, None, None)
    assert "without --imagenet" in capsys.readouterr().out


def test_progress_counts_the_images_of_every_set_once(words):
    """A's 6, R's 3, ImageNet's 3 and 2 of their classes: 14."""
    from robust_train.data.shifts import ImageNet, shifts
    from robust_train.evaluate.shifts import compare
    from tools.eval_shifts import place, watched

    labels, clean = words[words.index("--labels") + 1], words[words.index("--imagenet") + 1]
    at = words.index("--shift")
    fields = {"labels": labels, "size": 4}
    wanted = [one for word in words[at + 1 : at + 3] for one in shifts(*place(word), **fields)]
    imagenet = ImageNet(clean, labels, 4)
    told: list[tuple[str, float, str]] = []
    watch = watched(lambda *said: told.append(said), wanted, imagenet, None)
    compare(Oracle([ranking(1)] * 12), wanted, imagenet, watch=watch, chunk=4)
    assert [14 * share for _, share, _ in told] == pytest.approx([4, 6, 9, 12, 14])
    assert (told[0][0], told[0][2]) == ("imagenet-a", "100.0% of 4")


def test_a_runs_images_are_prepared_as_it_trained_on_them(small_run):
    from tools.eval_shifts import prepared

    subject = Subject(str(small_run.parent / "run"))
    seen = prepared(subject, None)
    assert seen["size"] == 32
    assert "labels" not in seen


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--shift", "imagenet-a"], "'imagenet-a' is no NAME=PATH: write imagenet-a=/data/imagenet-a"),
        (["--shift", "imagenet-sketh=/x"], "'imagenet-sketh' is no shift; did you mean 'imagenet-sketch'"),
        (["--shift", "imagenet-a=/x", "--eps", "0.1"], "--eps says nothing beside --shift"),
        (["--shift", "imagenet-a=/x", "--frost", "/x"], "--frost says nothing beside --shift"),
        (["--shift", "imagenet-a=/x", "--corruptions"], "ask for one at a time"),
        (["--shift", "imagenet-a=/x", "--devices", "2"], "--shift runs in one process"),
        (["--shift", "imagenet-a=/x", "--ground-truth", "/x"], "name it by --imagenet FOLDER"),
        (["--labels", "/x"], "--labels says nothing without --shift or --corruptions"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused_with_what_it_needs(small_run, more, said, capsys):
    with pytest.raises(SystemExit) as error:
        main([str(small_run.parent / "run"), *more])
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_a_network_for_grey_images_is_refused(small_run, words, monkeypatch, capsys):
    monkeypatch.undo()  # the run's own network
    at = words.index("--shift")
    with pytest.raises(SystemExit):
        main([str(small_run.parent / "run"), *words[at:]])
    assert "00000004 takes grey ones: give another network" in capsys.readouterr().err
