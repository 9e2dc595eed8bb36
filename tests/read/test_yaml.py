"""YAML as a run is written: 1.2's scalars (yaml.org/spec/1.2.2, section 10.3), fractions, no guessing."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from robust_train.read.errors import ConfigError
from robust_train.read.yaml import brief, read, write, write_float


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-19", -19),
        ("+3", 3),
        ("0o17", 15),
        ("0x3A", 58),
        ("0.", 0.0),
        ("-0.0", -0.0),
        (".5", 0.5),
        ("12e03", 12000.0),
        ("-2E+05", -200000.0),
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("4/255", 4 / 255),
        ("0.5/255", 0.5 / 255),
        (".5/255", 0.5 / 255),
        ("-1/3", -1 / 3),
        ("3./2", 1.5),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_plain_scalars_are_what_the_core_schema_and_fractions_say(text, value):
    found = read(f"key: {text}")["key"]
    assert type(found) is type(value)
    assert found == value
    assert math.copysign(1, found or 0) == math.copysign(1, value or 0)


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "on",
        "yes",
        "off",
        "No",
        "Y",
        "n",
        "2024-01-01",
        "1:30",
        "0b11",
        "1/2/3",
        "1e3/2",
        "1/x",
        "1/010",
        "e3",
        ".",
    ],
)
def test_what_other_readers_convert_is_text_here(text):
    assert read(f"key: {text}") == {"key": text}


@pytest.mark.parametrize("quoted", ["'010'", '"4/255"', "'1_000'", "'true'", "'null'", "'1e-3'"])
def test_quotes_make_text_of_anything(quoted):
    assert read(f"key: {quoted}") == {"key": quoted[1:-1]}


@pytest.mark.parametrize(
    ("text", "remedy"),
    [("010", "10"), ("-007", "-7"), ("00", "0"), ("08", "8"), ("1_000", "1000"), ("0_1", "1"), ("1_0.5", "10.5")],
)
def test_numbers_on_which_readers_disagree_are_refused_with_the_remedy(text, remedy):
    with pytest.raises(ConfigError, match=rf"x\.yaml:2:8: {text}: .*write {remedy}, or quote it"):
        read(f"a: 1\nsteps: {text}\n", "x.yaml")


@pytest.mark.parametrize("tagged", ["!!int '010'", "!!int 1.5", "!!float x", "!!python/object:os.system {}", "!mine 3"])
def test_tags_open_no_back_door(tagged):
    with pytest.raises(ConfigError, match=r"x\.yaml:1:6"):
        read(f"key: {tagged}", "x.yaml")


def test_a_fraction_is_rounded_once():
    """Dividing the two rounded floats errs: 0.1/0.3 is 1/3, but float(0.1) / float(0.3) is the float below it."""
    assert read("[0.1/0.3]") == [float(Fraction(1, 3))] != [0.1 / 0.3]


def test_dividing_by_zero_and_overflow_are_refused():
    for text, words in (("1/0", "divides by zero"), ("1/0.0", "divides by zero"), ("1e400", "too large")):
        with pytest.raises(ConfigError, match=words):
            read(f"a: {text}")


def test_a_key_that_stands_twice_is_refused_with_both_lines():
    with pytest.raises(ConfigError, match=r"x\.yaml:4:3: 'eps' stands twice, on line 2 and on line 4; keep one"):
        read("threat:\n  eps: 1/255\n  use: linf\n  eps: 2/255\n", "x.yaml")


def test_merge_keys_are_no_way_around_base():
    for text in ("a: &a {b: 1}\nc: {<<: *a}", "<<: {b: 1}"):
        with pytest.raises(ConfigError, match=r"<< is no merge here.*base:"):
            read(text)
    assert read("'<<': 1") == {"<<": 1}


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("a:\n\tb: 1", "spaces in its place"),
        ("a: {b: 1\t, c: 2}", "spaces in its place"),
        ("a: 1\n---\nb: 2", "one document"),
        ("a: @x", "in quotes"),
        ("a: b: c", "in quotes"),
        ("a: !!set {b}", "without a tag"),
        ("a: !!timestamp 2024-01-01", "without a tag"),
        ("a: !mine 1", "without a tag"),
        ("a: &a {b: *a}", "inside the node"),
        ("a: &a [*a]", "inside the node"),
        ("a: 1\na: 2", "line 1 and on line 2"),
        ("a: *b", "undefined alias"),
    ],
)
def test_what_is_refused_says_what_to_do(text, remedy):
    with pytest.raises(ConfigError, match=remedy):
        read(text)


def test_an_anchor_is_written_out_wherever_its_alias_stands():
    assert read("a: &a {b: 1}\nc: *a\nd: [*a]") == {"a": {"b": 1}, "c": {"b": 1}, "d": [{"b": 1}]}


@pytest.mark.parametrize(
    ("text", "place", "line"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", ":3:2", "c: 3"),
        ("a: 1\n\tb: 2\n", ":2:1", "\tb: 2"),
        ("a: {b: 1\n", ":2:1", ""),
        ("a: *b\n", ":1:4", "a: *b"),
        ("a: b: c\n", ":1:5", "a: b: c"),
        ("--- 1\n--- 2\n", ":2:1", "--- 2"),
    ],
)
def test_a_slip_is_told_with_file_line_column_and_the_line(text, place, line):
    with pytest.raises(ConfigError) as seen:
        read(text, "configs/x.yaml")
    assert str(seen.value).startswith(f"configs/x.yaml{place}: ")
    assert line in str(seen.value)


def test_what_is_no_text_is_refused():
    with pytest.raises(ConfigError, match="character 4"):
        read("a: '\x00'")


@pytest.mark.parametrize("level", [*range(1, 255), 0.5, 1.5, -8])
def test_grey_levels_are_written_as_fractions_where_that_is_shorter_and_exact(level):
    value = level / 255
    text = write_float(value)
    assert read(f"[{text}]") == [value]
    assert text in (f"{level:g}/255", repr(value))
    assert len(text) == min(len(f"{level:g}/255"), len(repr(value)))


@pytest.mark.parametrize("value", [math.nextafter(8 / 255, 1), 0.2, 0.0, 1.0, 1e-7, 0.1, 1e22, 1e16])
def test_other_floats_are_written_as_python_has_them(value):
    assert write_float(value) == repr(value)


@given(st.floats(allow_nan=False))
def test_every_float_survives_to_the_bit(value):
    found = read(write([value]))[0]
    assert found == value
    assert type(found) is float
    assert math.copysign(1, found) == math.copysign(1, value)


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(trees)
def test_what_is_written_is_read_back(tree):
    assert read(write(tree)) == tree
    assert read(f"- {brief(tree)}") == [tree]
    assert "\n" not in brief(tree)


@pytest.mark.parametrize(
    "text",
    ["no", "010", "1e-3", "4/255", "null", "", "1_000", "~", ".inf", "0x1", " a", "a: b", "- a", "#", "é\n", "𝄞"],
)
def test_text_that_looks_like_something_else_stays_text(text):
    assert read(write({"a": text, text: [text, "b"]})) == {"a": text, text: [text, "b"]}


@pytest.mark.parametrize("text", ["no", "On", "y", "2024-01-01", "1:30", "0b11", "4/255", "010", "=", "1_000", "plain"])
def test_text_is_text_to_other_readers_too(text):
    assert yaml.safe_load(write([text])) == [text]


def test_keys_keep_their_order_and_letters_stay_readable():
    assert write({"use": "pgd", "eps": 8 / 255, "a": "naïve"}) == "{use: pgd, eps: 8/255, a: naïve}\n"
