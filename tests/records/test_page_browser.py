"""The page in a real browser: all of it is drawn, on a phone too, and nothing is asked of the network."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from judged_network import exhibits, tree
from PIL import Image
from trained_folders import folder

from robust_train.records.page import comparison, page, training
from robust_train.records.training import described

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("background-networking", "component-update", "sync", "quic", "gpu", "dev-shm-usage")
FLAGS = ("--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", *(f"--disable-{name}" for name in QUIET))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]
FRAME = """<!doctype html><body style="margin: 0">
<iframe src="page.html" style="border: 0; width: {width}px; height: {height}px"></iframe><script>
addEventListener("load", () => {{
  const frame = document.querySelector("iframe"), inside = frame.contentDocument, root = inside.documentElement
  const all = [...inside.querySelectorAll("body *")]
  const out = document.createElement("pre")
  out.id = "found"
  out.textContent = JSON.stringify({{
    width: root.clientWidth,
    scrolls: root.scrollWidth,
    over: all.filter(one => one.getBoundingClientRect().right > root.clientWidth + 1
      && !one.closest(".wide") && !one.closest("svg")).map(one => one.outerHTML.slice(0, 80)),
    images: [...inside.images].map(one => [one.complete, one.naturalWidth, one.getBoundingClientRect().width]),
    charts: [...inside.querySelectorAll("svg")].map(one => one.getBoundingClientRect().width),
    bars: [...inside.querySelectorAll(".bar i")].map(one =>
      one.getBoundingClientRect().width / one.parentNode.getBoundingClientRect().width),
    text: inside.body.innerText,
    asked: frame.contentWindow.performance.getEntriesByType("resource").map(one => one.name),
  }})
  document.body.append(out)
}})
</script>"""


def browse(folder: Path, *words: str) -> str:
    """What Chromium says, with a profile of its own."""
    assert BROWSER is not None
    words = (BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *words)
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a folder, and what was asked for there."""
    asked: list[str] = []

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given, **named):
            super().__init__(*given, directory=str(tmp_path), **named)

        def log_message(self, *given):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def found(text: str, width: int, folder: Path, served: tuple[str, list[str]]) -> dict:
    """What a page looks like in a window of a width: a frame, as Chromium's own windows are 500 pixels at least."""
    (folder / "page.html").write_text(text, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width, height=3000), encoding="utf-8")
    dom = browse(
        folder, "--window-size=1300,3000", "--virtual-time-budget=5000", "--dump-dom", f"{served[0]}/frame.html"
    )
    return json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))


@pytest.mark.parametrize("width", [400, 1200])
def test_figures_flags_charts_and_images_are_drawn_and_nothing_is_wider_than_the_window(tmp_path, served, width):
    seen = found(page(tree(), exhibits()), width, tmp_path, served)
    assert seen["width"] == width
    assert seen["scrolls"] <= width
    assert seen["over"] == []
    assert len(seen["images"]) == 3 * 4
    assert all(complete and natural == 8 and drawn > 40 for complete, natural, drawn in seen["images"])
    assert len(seen["charts"]) == 2
    assert min(seen["charts"]) > 300
    assert seen["bars"] == pytest.approx([0.9, 0.5, 0.45, 0.45, 0.75, 0.4, 0.3, 0.5], abs=0.01)
    said = seen["text"].replace("\u00a0", " ")
    for words in ("90.00 %", "45.00 %", "randomised", "0.4 <between> passes", "not looked for", "a note", "tools.eval"):
        assert words in said
    assert seen["asked"] == []
    assert {path for path in served[1] if "favicon" not in path} == {"/frame.html", "/page.html"}


@pytest.mark.parametrize("width", [400, 1200])
def test_a_comparison_is_drawn_on_a_phone_too(tmp_path, served, width):
    cell = {"accuracy": 0.5, "interval95": [0.4, 0.6], "right": 20, "pair": None}
    other = {**cell, "difference": -0.1, "pair": {"lost": 9, "gained": 5, "p": 0.42}}
    row = {"threat": "linf", "name": "pgd20", "eps": 0.1, "images": 40, "part": False, "differs": "eps 0.1"}
    heads = [{"name": f"run-{place}", "report": "r", "model": "m", "weights": "w"} for place in range(6)]
    compared = {"reports": heads, "rows": [{**row, "cells": [cell, other, None, None, None, None]}]}
    seen = found(comparison(compared, []), width, tmp_path, served)
    assert seen["scrolls"] <= width
    assert seen["over"] == []
    assert "−9 +5 images, p = 0.42" in seen["text"]
    assert "differs: eps 0.1" in seen["text"]


@pytest.mark.parametrize("width", [400, 1200])
def test_a_training_is_drawn_with_its_curves_and_pictures(tmp_path, served, width):
    run = folder(tmp_path / "run")
    seen = found(training(described([str(run)])), width, tmp_path, served)
    assert seen["scrolls"] <= width
    assert seen["over"] == []
    assert len(seen["charts"]) == 6
    assert min(seen["charts"]) > 300
    assert [image[:2] for image in seen["images"]] == [[True, 64]]
    said = seen["text"].replace("\u00a0", " ")
    for words in ("90.00 %", "Images a second", "Begun from its own first update", "40 of 40 updates"):
        assert words in said
    assert seen["asked"] == []


def test_light_and_dark_are_drawn_as_the_reader_likes_it(tmp_path):
    (tmp_path / "page.html").write_text(page(tree(), exhibits()), encoding="utf-8")
    shades = []
    for scheme in ("--blink-settings=preferredColorScheme=1", "--blink-settings=preferredColorScheme=0"):
        picture = tmp_path / "shot.png"
        where = (tmp_path / "page.html").as_uri()
        browse(tmp_path, scheme, "--window-size=1000,3600", f"--screenshot={picture}", where)
        pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
        shades.append(pixels[5, 5].mean())
        for grey in (100, 116):  # the clean image and the point
            assert ((pixels == grey).all(-1)).sum() > 4 * 40 * 40
        assert ((pixels.max(-1) - pixels.min(-1)) > 60).sum() > 5000  # bars, lines, the flag
    light, dark = min(shades), max(shades)
    assert light < 60
    assert dark > 230
