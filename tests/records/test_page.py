"""The page of an evaluation says what the report says, needs nothing else, and is a function of it."""

from __future__ import annotations

import base64
import io
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from judged_network import NAMES, exhibit, exhibits, report, tree
from PIL import Image
from torch.testing import assert_close

from robust_train.attacks.pgd import PGD
from robust_train.evaluate.trial import CLEAN, Column, Trial
from robust_train.evaluate.verdicts import Plan, Verdicts
from robust_train.records import pictures
from robust_train.records.exhibits import draw
from robust_train.records.exhibits import exhibits as chosen
from robust_train.records.page import page, radius
from robust_train.threats.linf import Linf

ROOT = Path(__file__).parents[2]
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Read(HTMLParser):
    """A page's texts in order, and the tags with what they say."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        if not self.open or self.open[-1] != "style":
            self.texts.append(text)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.texts).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def text() -> str:
    return page(tree(), exhibits())


@pytest.fixture(scope="module")
def read(text) -> Read:
    return Read(text)


def test_every_figure_stands_on_the_page_with_its_interval(read):
    for figure in report().figures:
        low, high = figure.interval
        assert f"{100 * figure.accuracy:.2f} %" in read.said
        assert f"{100 * low:.1f} % to {100 * high:.1f} %" in read.said
        assert f"{figure.right:.0f} / 40" in read.said
    assert "linf 0.1" in read.said
    assert "l2 1" in read.said


def test_what_was_judged_and_how_to_do_it_again_is_said(read):
    for said in ("runs/<i>demo</i>", "a" * 12, "val-0.tar", "b" * 12, "torch 2.13", "cpu: x86_64, 2 threads", "8 s"):
        assert said in read.said
    assert "python -m tools.eval runs/demo --eps '0.1'" in read.said
    assert "a note" in read.said


def test_flags_that_are_up_come_first_then_those_not_seen_then_those_not_looked_for(read):
    places = [
        read.said.index(words) for words in ("Flags that are up", "Figures Acc", "not seen ·", "not looked for ·")
    ]
    assert places == sorted(places)
    assert read.said.index("randomised") < read.said.index("Figures Acc") < read.said.index("dynamic")
    assert read.said.index("dynamic") < read.said.index("more steps help")
    assert "1 up, of 2 looked for" in read.said
    calm = tree()
    calm["flags"] = [flag for flag in calm["flags"] if not flag["raised"]]
    assert "Flags that are up" not in page(calm)
    assert "No flag is up." in page(calm)


def test_every_text_is_escaped(text):
    assert "<i>demo" not in text
    assert "<b>dog" not in text
    assert "&lt;b&gt;dog&lt;/b&gt; &amp; co" in text
    assert "&lt;between&gt;" in text


def test_the_page_asks_for_nothing_outside_itself_and_runs_no_script(read, text):
    assert "default-src 'none'" in text
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in read.tags}
    asked = [said[name] for _, said in read.tags for name in ("src", "href", "xlink:href", "data") if said.get(name)]
    assert asked
    assert all(target.startswith(("data:image/png;base64,", "#")) for target in asked)
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    assert not any(name.startswith("on") for _, said in read.tags for name in said)


def test_the_same_report_is_the_same_page(text):
    assert page(tree(), exhibits()) == text


def test_headings_images_and_tables_can_be_told_by_those_who_do_not_see_them(read):
    tags = [tag for tag, _ in read.tags]
    assert tags.count("h1") == 1
    assert tags.index("h1") < tags.index("h2") < tags.index("h3")
    assert all(said.get("alt") for tag, said in read.tags if tag == "img")
    assert all(said.get("scope") in ("col", "row") for tag, said in read.tags if tag == "th")
    assert ("html", {"lang": "en"}) in read.tags
    drawn = [said for _, said in read.tags if said.get("role") == "img"]
    assert len(drawn) == 2
    assert all(said["aria-label"] for said in drawn)
    named = [said["id"] for _, said in read.tags if "id" in said]
    assert {said["aria-labelledby"] for _, said in read.tags if "aria-labelledby" in said} <= set(named)


def test_a_bar_is_as_long_as_its_figure(read):
    widths = [said["style"] for tag, said in read.tags if tag == "i" and "style" in said]
    expected = [100 * figure.accuracy for figure in report().figures] + [30.0, 50.0]  # and the classes, weakest first
    assert [float(re.fullmatch(r"width: ([0-9.]+)%", style)[1]) for style in widths] == pytest.approx(expected)
    shaded = [said["style"] for tag, said in read.tags if tag == "u"]
    for style, figure in zip(shaded, report().figures, strict=True):
        left, width = map(float, re.findall(r"[0-9.]+", style))
        low, high = figure.interval
        assert (left, left + width) == pytest.approx((100 * low, 100 * high), abs=0.002)


def test_classes_without_images_are_left_out(read):
    classes = read.said[read.said.index("Classes, the weakest") : read.said.index("Images, linf")]
    assert "ox" not in classes
    assert classes.index("co") < classes.index("cat")


def test_more_classes_than_are_seen_at_once_unfold():
    rows = [{"class": f"class-{index}", "images": 4.0, "right/clean": float(index % 5)} for index in range(50)]
    read = Read(page(tree(classes=rows)))
    assert "the other 30 classes" in read.said
    assert all(f"class-{index} " in read.said for index in range(50))


def test_the_images_shown_are_the_pixels_and_their_difference(text):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page(tree(), [exhibit(change=16)]))
    clean, point, change = (np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in found)
    assert (clean == 100).all()
    assert (point == 116).all()
    assert (change == round(127.5 + 8 * 16 / 2)).all()  # 8 is the largest power of two that 16/255 allows
    read = Read(page(tree(), [exhibit()]))
    assert "difference ×8" in read.said
    assert f"label cat, sample 7 pgd20: margin -1.25, distance {16 / 255:.3g}" in read.said
    assert "Most confidently wrong" in read.said
    assert "nearest to fall" not in read.said


def test_what_an_image_is_seen_as_is_green_where_it_is_the_label(text):
    assert re.search(r'<span class="good">cat · 100\s%', text)
    assert re.search(r'<span class="bad">&lt;b&gt;dog&lt;/b&gt; &amp; co · 100\s%', text)


@pytest.mark.parametrize(
    ("eps", "said"),
    [(8 / 255, "8/255"), (0.1, "0.1"), (0.5, "0.5"), (1.0, "1"), (12.0, "12"), (0.0, ""), (None, "")],
)
def test_a_radius_is_written_as_people_write_it(eps, said):
    assert radius(eps) == said


def markers(svg: bytes, count: int) -> list[tuple[float, float]]:
    """Where the first `count` markers of a chart's first line stand, from its left and its top."""
    line = r'<use xlink:href="#\w+" x="([0-9.]+)" y="([0-9.]+)" style="fill: var\(--line-0, #\w+\); stroke:'
    return [(float(x), float(y)) for x, y in re.findall(line, svg.decode())][:count]


def test_a_charts_points_stand_at_their_accuracies():
    svg = pictures.curve([0, 0.1, 0.2, 0.3], {"pgd20": [1.0, 0.75, 0.5, 0.0]}, 100, form="svg")
    (left, top), (second, quarter), (_, middle), (right, bottom) = markers(svg, 4)
    assert (quarter - top) / (bottom - top) == pytest.approx(0.25, abs=1e-4)
    assert (middle - top) / (bottom - top) == pytest.approx(0.5, abs=1e-4)
    assert (second - left) / (right - left) == pytest.approx(1 / 3, abs=1e-4)


def test_steps_stand_on_a_logarithmic_axis_that_holds_0():
    svg = pictures.budget({"pgd100": ((0, 1, 10, 100), (0.9, 0.7, 0.5, 0.5))}, form="svg")
    (none, top), (one, _), (ten, middle), (hundred, last) = markers(svg, 4)
    assert none < one
    assert hundred - ten == pytest.approx(ten - one, rel=0.01)
    assert top < middle == last
    with pytest.raises(ValueError, match="1 accuracies for 2 steps"):
        pictures.budget({"pgd": ((0, 1), (0.9,))})


def test_a_chart_is_the_same_bytes_twice_and_has_the_pages_colours():
    first, second = (pictures.curve([0, 1], {"a<b": [1.0, 0.0]}, 10, form="svg").decode() for _ in range(2))
    assert first == second
    assert "a&lt;b" in first
    assert "var(--line-0, #0b6bcb)" in first
    assert not re.search(r"<metadata|<style|font-family|<\?xml|width=\"\d+pt", first)


def column(right: list[float], margins: list[float]) -> Column:
    count = len(right)
    return Column(torch.tensor(right), torch.tensor(margins), torch.full((count,), 0.1), torch.full((count,), 5))


def test_those_shown_are_the_most_wrong_and_of_the_standing_those_that_any_attack_brought_nearest():
    """Two attacks in a row on five images: 0 falls to the first, 1 to the second, 3 was wrong from the start."""
    nan = float("nan")
    attack = PGD(Linf(0.1), 1, 0.1)
    trials = (
        Trial(CLEAN, None, (), role="clean"),
        Trial("linf/a", attack, (CLEAN,), "linf"),
        Trial("linf/b", attack, (CLEAN, "linf/a"), "linf"),
    )
    first = column([0, 1, 1, 0, 1], [-2.0, 0.1, 0.3, nan, 0.9])
    second = column([0, 0, 1, 0, 1], [nan, -1.0, 0.6, nan, 0.2])
    columns = {CLEAN: column([1, 1, 1, 0, 1], [3, 3, 3, -3, 3]), "linf/a": first, "linf/b": second}
    sample, labels = torch.arange(10, 15), torch.tensor([0, 1, 2, 0, 1])

    def pictures(one: Column, rows: list[int], grey: int) -> dict[str, torch.Tensor]:
        kept = torch.tensor(rows)
        images = torch.full((len(rows), 2, 1, 4, 4), grey, dtype=torch.uint8)
        kind = torch.where(one.stands[kept], 1, 0)
        told = {"pixels": images, "order": one.margin[kept], "kind": kind, "distance": one.distance[kept]}
        return {**told, "sample": sample[kept], "label": labels[kept]}

    shown_of = {"linf/a": pictures(first, [0, 1, 2, 4], 1), "linf/b": pictures(second, [1, 2, 4], 2)}
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    shown = chosen(network, Verdicts(sample, labels, columns, shown_of), Plan(trials, 3))
    seen = [(one.sample, one.fallen, round(one.margin, 3), int(one.pixels[1, 0, 0, 0])) for one in shown]
    assert seen == [(10, True, -2.0, 1), (11, True, -1.0, 2), (14, False, 0.2, 2), (12, False, 0.3, 1)]
    assert [one.label for one in shown] == [0, 1, 1, 2]
    expected = network(torch.full((2, 1, 4, 4), 1 / 255)).detach()
    # 16 products and a bias of at most 1/4 each, added in whatever order: 17 roundings of at most eps/2 of their sum
    assert_close(shown[0].logits, expected, rtol=0, atol=17 * torch.finfo().eps * (1 / 4 + 16 / 4 / 255))
    fewer = chosen(network, Verdicts(sample, labels, columns, shown_of), Plan(trials, 3), each=1)
    assert [one.sample for one in fewer] == [10, 14]
    # where the point that felled 11 was not kept, the one before is none that did
    shown_of["linf/b"] = pictures(second, [2, 4], 2)
    shown = chosen(network, Verdicts(sample, labels, columns, shown_of), Plan(trials, 3))
    assert [one.sample for one in shown] == [10, 14, 12]


def test_pictures_are_drawn_for_each_threat_model():
    made = draw(report(), exhibits(), NAMES, "demo")
    assert list(made) == ["eval-linf.png", "eval-l2.png", "eval-curve-linf.png", "eval-budget-linf.png"]
    assert all(png.startswith(b"\x89PNG") for png in made.values())


def test_the_templates_are_installed_with_the_package():
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    templates = set((ROOT / "robust_train").rglob("*.j2"))
    assert templates
    assert all(any(path.match(glob) for glob in said["*"]) for path in templates)
