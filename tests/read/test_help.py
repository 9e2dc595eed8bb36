"""What --help and --list say is what the classes say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from robust_train.nouns import Attack, Noun
from robust_train.read.help import catalogue, describe, field_docs, summary, undocumented
from robust_train.read.registry import Number, Registry

How = Literal["zero", "no"]


class Shape(Noun):
    """A root."""


shapes: Registry[Shape] = Registry(Shape)


@shapes.register("disc")
@dataclass(frozen=True)
class Disc(Shape):
    """All points within a radius.

    A second paragraph.
    """

    radius: Number  # metres: from the middle # to the rim  # type: ignore[assignment]
    filled: bool = True
    """Whether the inside
    counts."""
    bare: int = 0
    ignored: int = 1  # type: ignore[assignment]


@shapes.register("ring")
@dataclass(frozen=True)
class Ring(Disc):
    width: float = field(
        default=4 / 255,
    )  # metres, of the band


@dataclass(frozen=True)
class Drawn:
    """A drawing."""

    drawn: How  # how it is drawn


@dataclass(frozen=True)
class Inner:
    """What is inside."""

    count: int = 3  # how many
    shape: Shape | None = None  # what it looks like


@dataclass(frozen=True)
class Outer:
    """The whole."""

    name: str  # what it is called
    inner: Inner = Inner()  # its inside
    more: tuple[Inner, ...] = ()  # further insides
    other: Outer | None = None  # another whole
    text: str = (
        "no"  # said aloud, at such length that it does not fit beside the field on one line of the terminal at all
    )


def test_a_field_is_documented_beside_it_or_under_it():
    assert field_docs(Disc) == {
        "radius": "metres: from the middle # to the rim",
        "filled": "Whether the inside counts.",
        "bare": "",
        "ignored": "",
    }


def test_inherited_fields_bring_their_documentation():
    assert field_docs(Ring)["radius"] == "metres: from the middle # to the rim"
    assert field_docs(Ring)["width"] == "metres, of the band"


def test_the_catalogue_has_a_line_for_each_name():
    assert catalogue(shapes) == "  disc  All points within a radius.\n  ring"
    with_fields = catalogue(shapes, with_fields=True).splitlines()
    assert "    radius: Number       metres: from the middle # to the rim" in with_fields
    assert "    width: float = 4/255" in [line[:24] for line in with_fields]


def test_an_undocumented_class_says_nothing_rather_than_its_signature():
    assert Ring.__doc__.startswith("Ring(")
    assert summary(Ring) == ""
    assert summary(Disc) == "All points within a radius."


def test_a_field_that_takes_a_noun_says_how_to_list_what_there_is():
    @dataclass(frozen=True)
    class Holder:
        """Holds one."""

        attack: Attack  # what is held
        size: Number = 1.0  # metres

    assert describe(Holder) == (
        "run: Holds one.\n  attack: Attack      what is held (--list attacks)\n  size: Number = 1.0  metres"
    )


def test_a_choice_shows_its_values_by_whatever_alias_it_goes():
    assert "  drawn: zero | 'no'  how it is drawn" in describe(Drawn)


def test_undocumented_fields_are_found_through_everything_that_a_run_may_hold():
    assert undocumented(Outer) == ["Disc.bare", "Disc.ignored", "Ring.bare", "Ring.ignored"]
    assert undocumented(Shape) == ["Disc.bare", "Disc.ignored", "Ring.bare", "Ring.ignored"]
    assert undocumented(Inner)[:1] == ["Disc.bare"]


def test_help_has_a_section_for_each_dataclass_with_types_defaults_and_documentation():
    text = describe(Outer)
    sections = [section.splitlines() for section in text.split("\n\n")]
    assert [section[0] for section in sections] == [
        "run: The whole.",
        "run.inner: What is inside.",
        "run.more: What is inside.",
    ]
    lines = [" ".join(line.split()) for line in sections[0]]
    assert lines[1:4] == [
        "name: str what it is called",
        "inner: Inner = as below its inside",
        "more: tuple[Inner, ...] = [] further insides",
    ]
    assert "  count: int = 3" in text
    assert max(map(len, text.splitlines())) <= 120
    assert " ".join(sections[0][-2].split()).startswith("text: str = 'no' said aloud")
