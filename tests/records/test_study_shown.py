"""A study is shown as it is: every figure with its standard error, every network in its place."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from robust_train.data.corruptions import BENCHMARK, CATEGORIES, SEVERITIES
from robust_train.evaluate.corruptions import Robustness
from robust_train.evaluate.study import Roles, Study
from robust_train.records import corruption_pictures as c
from robust_train.records.pictures import INK
from robust_train.records.tables import show_study

ROLES = Roles(("low", "high"), "ensemble", "plain", ("same",), "student", "low", "plain student")
ACCURACY = {"plain": 0.3, "low": 0.4, "high": 0.5, "ensemble": 0.8, "same": 0.6, "student": 0.7}


def study(seeds: int = 2, **changed: float) -> Study:
    """Seed s is 2 s points above the first in every cell; clean images are 10 points easier."""
    found = {}
    for seed in range(seeds):
        for name, accuracy in {**ACCURACY, **changed}.items():
            right = round(1000 * accuracy) + 20 * seed
            counts = {(one, s): (right, 1000) for one in BENCHMARK for s in SEVERITIES}
            found[seed, name] = Robustness(counts, (right + 100, 1000), 32)
    return Study(found, ROLES)


def test_a_table_has_a_row_a_network_with_mean_and_standard_error(capsys):
    """Two seeds 2 points apart: 41.0 +/- 1.0."""
    show_study("variants", study(helper=0.2))
    out = capsys.readouterr().out
    rows = {line.split("  ")[0].strip(): line for line in reversed(out.splitlines()) if line.strip()}
    assert "variants: accuracy under corruptions, %, over 2 seeds" in out
    assert rows["low"].split()[:2] == ["low", "variant"]
    assert rows["low"].count("41.0 +/- 1.0") == 5
    assert rows["low"].count("51.0 +/- 1.0") == 1
    assert rows["helper"].count("21.0 +/- 1.0") == 5
    assert rows["ensemble - best member"].count("+30.0 +/- 0.0") == 6
    assert "relative gain over plain, %" in out
    assert "2 seeds: of no difference at all, 30% are" in out  # Student's t of 1 degree: 1 - 2 atan(2) / pi
    said = [line for line in out.splitlines() if "keeps a part of what ensemble gains over" in line]
    assert ["yes" in line for line in said] == [True, True]
    assert max(len(line) for line in out.splitlines() if not line.startswith("note")) <= 140
    (open_claim,) = (line for line in out.splitlines() if "plain student" in line)
    assert open_claim.split()[-3:] == ["open", "not", "judged"]


def test_one_seed_has_no_errors_and_decides_nothing(capsys):
    show_study("variants", study(1))
    out = capsys.readouterr().out
    assert "over 1 seed\n" in out
    assert "+/-" not in out
    assert "yes" not in out
    assert " open " in out


def opened(png: bytes) -> np.ndarray:
    """[H, W, 3] of a PNG."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def rows_of(png: bytes, colour: str, left: float = 0.05, right: float = 0.2) -> np.ndarray:
    """Where, from the top, pixels of a colour lie in a vertical strip of the picture."""
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    image = opened(png)
    strip = image[:, int(left * image.shape[1]) : int(right * image.shape[1])]
    return np.flatnonzero((strip == wanted).all(-1).any(1))


def test_a_point_stands_where_its_accuracy_is():
    """Of three accuracies at equal distances the points are at equal distances; bars are two standard errors long."""
    found = study(2, low=0.4, high=0.5)
    png = c.study(found, "variants")
    low, high = (rows_of(png, colour).mean() for colour in c.COLOURS[:2])
    shifted = study(2, low=0.5, high=0.4)
    png_shifted = c.study(shifted, "variants")
    low_shifted, high_shifted = (rows_of(png_shifted, colour).mean() for colour in c.COLOURS[:2])
    assert low - high == pytest.approx(high_shifted - low_shifted, abs=1.5)
    assert low > high
    single = rows_of(c.study(study(1)), c.COLOURS[0])
    assert np.ptp(rows_of(png, c.COLOURS[0])) > np.ptp(single), "one seed has no bar"
    assert opened(png).shape[1] == pytest.approx(9.4 * 130, abs=2)


def test_more_variants_than_colours_have_marks_of_their_own():
    names = tuple(f"v{index}" for index in range(14))
    found = study(2, **{name: 0.4 + index / 100 for index, name in enumerate(names)})
    found = replace(found, roles=replace(ROLES, members=names, standard=None))
    styles = c._styles(found, list(found.roles.names))
    looks = [tuple(sorted((key, str(value)) for key, value in style.items())) for style in styles]
    assert len(set(looks)) == len(looks)
    assert opened(c.study(found)).shape[0] > 400


def test_variants_are_coloured_and_controls_are_not():
    found = study()
    styles = dict(zip(found.names, c._styles(found, list(found.names)), strict=True))
    assert {styles[name]["color"] for name in ("low", "high")} == set(c.COLOURS[:2])
    assert styles["ensemble"]["color"] == styles["student"]["color"] == INK
    assert styles["ensemble"]["marker"] != styles["student"]["marker"] != styles["same"]["marker"]


def test_a_picture_of_nothing_is_refused():
    with pytest.raises(ValueError, match="there is nothing to draw"):
        c.study(Study({}, ROLES))
    only = Study({(0, "low"): Robustness({("fog", 1): (1, 2)})}, ROLES)
    with pytest.raises(ValueError, match="there is nothing to draw"):
        c.study(only)
    noise = {(name, s): (1, 2) for name in CATEGORIES["noise"] for s in SEVERITIES}
    assert c.study(Study({(0, "low"): Robustness(noise)}, ROLES)).startswith(b"\x89PNG")


def test_the_same_study_is_the_same_picture():
    assert c.study(study()) == c.study(study())
