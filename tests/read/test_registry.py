"""Names to classes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

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
    assert list(instruments) == sorted(instruments)
    assert {"duo", "flute"} <= set(instruments)
    assert instruments.get("oboe") is None
    assert dict(instruments.items())["duo"] is Duo
    assert instruments.root is Instrument
    assert instruments.noun == "instrument"


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'flut' is no instrument; did you mean 'flute'\? \(known: .*duo.*\)"):
        instruments["flut"]


def test_nouns_are_called_as_people_call_them():
    assert registered.edits.noun == "edit"
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


def home(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> str:
    """A package of some modules, the home of a registry."""
    name = f"home_{folder.name}"
    (folder / name).mkdir()
    for module, text in {"__init__": "", **modules}.items():
        (folder / name / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    return name


ROOT = """
from robust_train.nouns import Noun
class Plant(Noun): pass
"""
PLANT = """
from dataclasses import dataclass
from {home}.a_root import Plant
@Plant.registry.register("{use}")
@dataclass(frozen=True)
class {use}(Plant): pass
"""


def test_a_file_at_home_is_all_that_a_new_class_needs(tmp_path, monkeypatch):
    name = home(tmp_path, monkeypatch, a_root=ROOT)
    for use in ("Oak", "Ash"):
        (tmp_path / name / f"{use.lower()}.py").write_text(PLANT.format(home=name, use=use))
    plants = Registry(import_module(f"{name}.a_root").Plant, name)
    assert f"{name}.oak" not in sys.modules
    assert list(plants) == ["Ash", "Oak"]
    assert f"{name}.oak" in sys.modules


def test_an_error_at_home_shows_as_it_is_until_it_is_mended(tmp_path, monkeypatch):
    name = home(tmp_path, monkeypatch, a_root=ROOT)
    (tmp_path / name / "ash.py").write_text(PLANT.format(home=name, use="Ash") + "\nimport not_there\n")
    plants = Registry(import_module(f"{name}.a_root").Plant, name)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="No module named 'not_there'"):
            plants.get("Ash")
    (tmp_path / name / "ash.py").write_text(PLANT.format(home=name, use="Ash"))
    assert list(plants) == ["Ash"]


def test_a_name_that_stands_at_home_is_taken_before_anybody_asked(tmp_path, monkeypatch):
    name = home(tmp_path, monkeypatch, a_root=ROOT)
    (tmp_path / name / "ash.py").write_text(PLANT.format(home=name, use="Ash"))
    plants = Registry(import_module(f"{name}.a_root").Plant, name)
    other = dataclass(frozen=True)(type("Other", (plants.root,), {}))
    with pytest.raises(ValueError, match="plant 'Ash' is Ash already"):
        plants.register("Ash")(other)


def test_nothing_is_imported_until_a_name_is_asked_for():
    """In a process of its own: `import robust_train` and the registries are cheap."""
    code = (
        "import sys, robust_train\n"
        "from robust_train.read.registry import registries\n"
        "loaded = {name.split('.')[1] for name in sys.modules if name.startswith('robust_train.')}\n"
        "assert loaded <= {'read', 'nouns', 'vision', 'disk'}, loaded\n"
        "for noun, registry in registries.items():\n"
        "    for name, cls in registry.items():\n"
        "        ours = f'{cls.__module__}.'.startswith(tuple(f'{home}.' for home in registry.homes))\n"
        "        assert cls.use == name and ours, (noun, name)\n"
        "assert not {'ray', 'deepspeed', 'wandb', 'onnx', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_noun_has_one_registry():
    assert {registry.root for registry in registered.registries.values()} == {
        *(registry.root for registry in vars(registered).values() if isinstance(registry, Registry))
    }
    for plural, registry in registered.registries.items():
        assert getattr(registered, plural) is registry
        assert registry.root.registry is registry
