"""tools.compare: figures stand side by side where they were obtained alike, and nowhere else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import binomtest

from robust_train.evaluate.report import wilson
from robust_train.records.pairs import Pair, pair
from robust_train.tools.compare import main
from robust_train.tools.eval import main as judge

SAMPLES = 40


def pgd(eps: float = 0.1, steps: int = 20) -> dict[str, Any]:
    return {"use": "pgd", "threat": {"use": "linf", "eps": eps}, "steps": steps}


def report(folder: Path, name: str, robust: int = 20, **changed: Any) -> Path:
    """A run's folder with a report in it: its first `robust` of 40 images hold. eps, steps, images, data may differ."""
    eps, images = changed.get("eps", 0.1), changed.get("images", SAMPLES)
    attack = pgd(eps, changed.get("steps", 20))

    def figure(kind: str, right: float, **said: Any) -> dict[str, Any]:
        interval = list(wilson(right / images, images))
        head = {"name": kind, "threat": "", "part": False, "eps": 0.0, "attack": {}, **said}
        return {**head, "accuracy": right / images, "interval95": interval, "right": right, "images": images}

    clean = figure("clean", images)
    held = figure("pgd", robust, threat="linf", eps=eps, attack=attack)
    tree = {
        "model": name,
        "weights": f"{name}/weights",
        "identity": {
            "weights": name,
            "data": {"val.tar": changed.get("data", "d" * 64)},
            "prepared": {"crop": changed.get("crop", 0.875)},
            **({"listed": changed["listed"]} if "listed" in changed else {}),
        },
        "noise": changed.get("noise"),
        "seed": changed.get("seed", 0),
        "evaluation": {"chunk": changed.get("chunk", 256)},
        "images": images,
        "figures": [clean, held],
        "curves": [[clean, {**held, "attack": pgd(eps)}]],
        "verdicts": "eval.verdicts.safetensors",
    }
    target = folder / name
    target.mkdir()
    (target / "eval.json").write_text(json.dumps(tree))
    if changed.get("kept", True):
        right = (torch.arange(images) < robust).float().roll(changed.get("shift", 0))
        verdicts = {"sample": torch.arange(images), "clean": torch.ones(images), "linf/pgd": right}
        save_file(verdicts, target / "eval.verdicts.safetensors")
    return target


def compared(*folders: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """The rows of a comparison under attack, as its JSON has them."""
    main([*map(str, folders), "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    return [row for row in found["rows"] if row["threat"]]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 6), (6, 0), (3, 3), (2, 9), (40, 61)])
def test_mcnemars_p_is_that_of_a_fair_coin(first, second):
    expected = binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert Pair(100, first, second).chance == pytest.approx(expected)


def test_pairs_count_the_images_that_one_network_alone_has_right():
    sample = torch.arange(4)
    one, other = torch.tensor([1, 1, 0, 0.4]), torch.tensor([1, 0, 1, 0.6])  # shares of passes
    found = pair((sample, one), (sample, other))
    assert found == Pair(4, 1, 2)
    assert found.difference == 0.25
    assert pair((sample, one), (sample + 1, other)) is None


def test_figures_obtained_alike_stand_in_one_row_with_their_paired_difference(tmp_path):
    a, b = report(tmp_path, "a", 20), report(tmp_path, "b", 26)
    (row,) = compared(a, b, tmp_path=tmp_path)
    first, second = row["cells"]
    assert row["differs"] == ""
    assert (first["accuracy"], second["accuracy"]) == (0.5, 0.65)
    assert second["difference"] == pytest.approx(0.15)
    assert second["pair"] == {"lost": 0, "gained": 6, "p": 2 / 2**6}
    assert first["interval95"] == list(wilson(0.5, 40))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"eps": 0.2}, ["eps 0.1", "eps 0.2"]),
        ({"steps": 50}, ["attack.steps 20", "attack.steps 50"]),
        ({"images": 50}, ["images 40", "images 50"]),
        ({"data": "e" * 64}, ["data val.tar dddddddd", "data val.tar eeeeeeee"]),
    ],
)
def test_figures_obtained_otherwise_are_not_put_side_by_side_and_say_what_differs(tmp_path, changed, said):
    folders = report(tmp_path, "a"), report(tmp_path, "b", **changed), report(tmp_path, "c", 30)
    first, second = compared(*folders, tmp_path=tmp_path)
    assert [cell is not None for cell in first["cells"]] == [True, False, True]
    assert [cell is not None for cell in second["cells"]] == [False, True, False]
    assert first["differs"].startswith(said[0])
    assert second["differs"].startswith(said[1])
    assert "difference" not in second["cells"][1]


def test_differences_are_named_as_high_up_as_says_them():
    from robust_train.records.comparing import differences

    both = {"attack": {"linf/a": pgd(), "l2/a": pgd()}}
    other = {"attack": {"linf/b": pgd()}}
    assert differences([both, other]) == ["attack.linf/a, attack.l2/a", "attack.linf/b"]
    assert differences([both, {"attack": {"linf/a": pgd()}}]) == ["attack.l2/a", "no attack.l2/a"]
    assert differences([{"attack": pgd()}, {"attack": {"use": "apgd", "restarts": 3}}]) == ["attack pgd", "attack apgd"]
    many = [{f"part-{name}": kind for name in range(9)} for kind in (1, 2)]
    assert differences(many)[0].endswith("part-5 1 and 3 more")
    assert differences([both]) == [""]


def test_without_kept_verdicts_there_is_a_difference_but_no_pair(tmp_path):
    (row,) = compared(report(tmp_path, "a"), report(tmp_path, "b", 26, kept=False), tmp_path=tmp_path)
    assert row["cells"][1]["difference"] == pytest.approx(0.15)
    assert row["cells"][1]["pair"] is None


def test_verdicts_of_another_report_are_not_taken_for_this_ones(tmp_path):
    a, b = report(tmp_path, "a", 20), report(tmp_path, "b", 26)
    (b / "eval.verdicts.safetensors").write_bytes(
        (report(tmp_path, "c", 30) / "eval.verdicts.safetensors").read_bytes()
    )
    (row,) = compared(a, b, tmp_path=tmp_path)
    assert row["cells"][1]["pair"] is None


def test_a_row_of_attacks_and_a_union_are_alike_where_all_they_are_made_of_is():
    from robust_train.records.comparing import terms

    def tree(steps: int) -> dict[str, Any]:
        part = {"name": "pgd", "threat": "linf", "part": True, "eps": 0.1, "images": 9, "attack": pgd(steps=steps)}
        whole = {**part, "name": "both", "part": False, "attack": {"use": "both", "attacks": ["linf/pgd"]}}
        union = {**whole, "name": "union", "threat": "union", "attack": {"use": "union", "of": ["linf/both"]}}
        return {"figures": [part, whole, union], "identity": {"data": {}}}

    for place in (1, 2):
        one, same, other = (terms(found, found["figures"][place]) for found in (tree(20), tree(20), tree(50)))
        assert one == same != other


def test_the_table_page_and_pictures_show_all(tmp_path, capsys):
    folders = report(tmp_path, "a"), report(tmp_path, "b", 26), report(tmp_path, "c", eps=0.2)
    out = tmp_path / "deep"
    main([*map(str, folders), "--html", str(out / "c.html"), "--pictures", str(out)])
    said = capsys.readouterr().out
    for words in ("50.00%", "35.2% to 64.8%", "+15.00 points", "-0 +6, p = 0.031", "differs: eps 0.2"):
        assert words in said
    text = (out / "c.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    for words in ("50.0 %", "+15.0 points", "−0 +6 images, p = 0.031", "differs: eps 0.2"):
        assert words in text
    assert text.count("<svg") == 2  # a and b share a chart; c has other radii
    assert len(re.findall(r"<th scope=\"col\">[abc]</th>", text)) == 3
    assert [path.name for path in sorted(out.glob("*.png"))] == ["compare-1.png", "compare-2.png"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no such report: `python -m tools.eval"),
        ("{", "is no report"),
        ("[]", "says nothing of figures, curves, identity, images: make it anew by tools.eval"),
    ],
)
def test_what_is_no_report_is_refused_with_the_remedy(tmp_path, capsys, text, said):
    (tmp_path / "bad").mkdir()
    if text is not None:
        (tmp_path / "bad" / "eval.json").write_text(text)
    with pytest.raises(SystemExit) as error:
        main([str(report(tmp_path, "a")), str(tmp_path / "bad")])
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_help_teaches_what_may_be_compared(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    assert error.value.code == 0
    said = capsys.readouterr().out
    for word in ("McNemar", "python -m tools.compare", "what differs", "--html"):
        assert word in said


@pytest.mark.slow
def test_two_evaluations_of_one_network_are_alike_in_every_image(small_run, tmp_path):
    """End to end: tools.eval writes what tools.compare reads, and its page beside it; in chunks too that differ."""
    for name, chunk in (("a", "16"), ("b", "16"), ("c", "7")):
        run = shutil.copytree(small_run.parent / "run", tmp_path / f"run-{name}")  # each finds it for itself
        words = [str(run), "--images", "40", "--steps", "2", "--curve", "2", "--checks", "0"]
        judge([*words, "--chunk", chunk, "--json", str(tmp_path / name / "eval.json")])
        text = (tmp_path / name / "eval.html").read_text(encoding="utf-8")
        tree = json.loads((tmp_path / name / "eval.json").read_text(encoding="utf-8"))
        assert tree["command"].startswith("python -m tools.eval")
        for figure in tree["figures"]:
            assert f"{100 * figure['accuracy']:.2f}\u00a0%" in text
        assert "data:image/png;base64," in text
        assert "<svg" in text
    names = [str(tmp_path / name) for name in "abc"]
    main([*names, "--json", str(tmp_path / "all.json")])
    rows = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 2 * len(tree["figures"])
    for row in rows:
        if "chunk 7" in row["differs"]:
            assert row["cells"][:2] == [None, None]
        else:
            assert row["cells"][1]["pair"] == {"lost": 0, "gained": 0, "p": 1.0}
            assert row["cells"][2] is None
    by_chunk = {chunk: [row["cells"] for row in rows if f"chunk {chunk}" in row["differs"]] for chunk in (16, 7)}
    for one, other in zip(by_chunk[16], by_chunk[7], strict=True):
        assert one[0]["right"] == other[2]["right"], "no verdict depends on the chunk"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"crop": 0.95}, ("prepared.crop 0.875", "prepared.crop 0.95")),
        ({"listed": "e" * 64}, ("no list", f"list {'e' * 64}")),
        ({"noise": "off"}, ("noise drawn", "noise off")),
        ({"chunk": 100}, ("chunk 256", "chunk 100")),
        ({"seed": 1}, ("seed 0", "seed 1")),
    ],
)
def test_figures_of_another_crop_list_noise_seed_or_chunk_stand_in_rows_that_say_so(tmp_path, other, said):
    rows = compared(report(tmp_path, "a"), report(tmp_path, "b", **other), tmp_path=tmp_path)
    assert tuple(row["differs"] for row in rows) == said


def test_a_network_without_noise_stands_beside_one_whose_noise_was_drawn(tmp_path):
    (row,) = compared(report(tmp_path, "a"), report(tmp_path, "b", noise="drawn"), tmp_path=tmp_path)
    assert row["differs"] == ""
