"""Names to classes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from robust_train.nouns import Noun
from robust_train.read import registry as registered
from robust_train.read.errors import ConfigError
from robust_train.read.parse import dump, load_tree, parse
from robust_train.read.registry import Registry


class Instrument(Noun):
    """A root."""


class Wind(Instrument):
    """A root below the root."""


instruments: Registry[Instrument] = Registry(Instrument)


@instruments.register("flute")
@dataclass(frozen=True)
class Flute(Wind):
    """Air over an edge."""

    keys: int = 16


@instruments.register("duo")
@dataclass(frozen=True)
class Duo(Instrument):
    """Holds two of its own noun."""

    first: Instrument
    second: Instrument | None = None


@dataclass(frozen=True)
class Stand:
    """Asks for the root, a root below it, and one class."""

    any: Instrument
    wind: Wind = Flute()
    flute: Flute = Flute()


def test_a_registry_is_a_mapping_from_names_to_classes():
    assert instruments["flute"] is Flute
    assert Flute.use == "flute"
    assert "flute" in instruments
    assert "oboe" not in instruments
    assert list(instruments)[:2] == ["flute", "duo"]
    assert instruments.names[:2] == ("duo", "flute")
    assert instruments.get("oboe") is None
    assert dict(instruments.items())["duo"] is Duo
    assert instruments.root is Instrument
    assert instruments.noun == "instrument"


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'flut' is no instrument; did you mean 'flute'\? \(known: .*duo.*\)"):
        instruments["flut"]


def test_nouns_are_called_as_people_call_them():
    assert registered.parts.noun == "network part"
    assert registered.threats.noun == "threat"


@pytest.mark.parametrize(
    ("cls", "name", "words"),
    [
        (dataclass(frozen=True)(type("Other", (Instrument,), {})), "flute", "is Flute already"),
        (dataclass(frozen=True)(type("Stray", (), {})), "stray", "derive it from Instrument"),
        (dataclass(type("Soft", (Instrument,), {})), "soft", "frozen dataclass"),
        (type("Bare", (Instrument,), {}), "bare", "frozen dataclass"),
    ],
)
def test_what_cannot_be_registered_is_refused(cls, name, words):
    with pytest.raises(ValueError, match=words):
        instruments.register(name)(cls)
    assert instruments.get(name) is not cls


def test_a_node_is_a_mapping_a_bare_name_or_an_instance():
    for written in ({"use": "flute", "keys": 16}, {"use": "flute"}, "flute", Flute(16)):
        assert parse(Instrument, written) == Flute(16)


def test_nouns_hold_nouns_to_any_depth():
    tree = load_tree("{use: duo, first: {use: duo, first: flute, second: {use: flute, keys: 17}}, second: null}")
    duo = parse(Instrument, tree)
    assert duo == Duo(Duo(Flute(), Flute(17)))
    assert parse(Instrument, load_tree(dump(duo))) == duo


def test_a_field_may_ask_for_one_class_or_for_some():
    stand = parse(Stand, {"any": "flute", "wind": {"use": "flute", "keys": 3}, "flute": {"keys": 4}})
    assert (stand.wind, stand.flute) == (Flute(3), Flute(4))
    assert parse(Stand, load_tree(dump(stand))) == stand
    with pytest.raises(ConfigError) as seen:
        parse(Stand, {"any": "flute", "wind": "duo", "flute": {"use": "duo"}})
    assert "run.wind.use: 'duo' is no instrument (known: flute" in str(seen.value)
    assert "run.flute.use: 'duo' is no instrument (known: flute" in str(seen.value)


def test_what_is_registered_later_is_read_too():
    """The schema of Duo and Stand was built above, without it."""
    assert parse(Duo, {"first": "flute"}) == Duo(Flute())
    with pytest.raises(ConfigError, match="'oboe' is no instrument"):
        parse(Stand, {"any": {"use": "duo", "first": "oboe"}})

    @instruments.register("oboe")
    @dataclass(frozen=True)
    class Oboe(Wind):
        reeds: int = 2

    assert parse(Stand, {"any": {"use": "duo", "first": "oboe"}, "wind": "oboe"}) == Stand(Duo(Oboe()), Oboe())


def test_a_child_that_is_not_registered_does_not_pass_for_its_parent():
    @dataclass(frozen=True)
    class Piccolo(Flute):
        """Not registered."""

    assert "use" not in dump(Piccolo())


def test_every_noun_has_one_registry():
    assert {registry.root for registry in registered.registries.values()} == {
        *(registry.root for registry in vars(registered).values() if isinstance(registry, Registry))
    }
    for plural, registry in registered.registries.items():
        assert getattr(registered, plural) is registry
        assert registry.root.registry is registry
