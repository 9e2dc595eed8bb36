"""What a command line lays over a file."""

from __future__ import annotations

import pytest

from robust_train.read.errors import ConfigError
from robust_train.read.overrides import apply

TREE = {"objective": {"use": "madry", "beta": 1, "attack": {"use": "pgd", "steps": 10}}, "list": [{"a": 1}, 2]}


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("objective.attack.steps=7", ("objective", "attack"), {"use": "pgd", "steps": 7}),
        ("objective.attack.step_size=2/255", ("objective", "attack", "step_size"), 2 / 255),
        ("objective.attack.step_size=1e-3", ("objective", "attack", "step_size"), 1e-3),
        ("data.loader.workers=2", ("data",), {"loader": {"workers": 2}}),
        ("objective.attack=null", ("objective", "attack"), None),
        ("network.model={use: timm, name: resnet18}", ("network",), {"model": {"use": "timm", "name": "resnet18"}}),
        ("objective.attack={steps: 3}", ("objective", "attack"), {"use": "pgd", "steps": 3}),
        ("objective.use=trades", ("objective",), {"use": "trades"}),
        ("objective.use=madry", ("objective",), TREE["objective"]),
        ("list=[3, 4]", ("list",), [3, 4]),
        ("list.0.a=5", ("list",), [{"a": 5}, 2]),
        ("list.0={b: 2}", ("list",), [{"a": 1, "b": 2}, 2]),
        ("list.1=5", ("list",), [{"a": 1}, 5]),
        ("name=a=b", ("name",), "a=b"),
        ("name=''", ("name",), ""),
    ],
)
def test_an_override_is_yaml_laid_at_its_path(override, path, value):
    found = apply(TREE, [override])
    for name in path:
        found = found[name]
    assert found == value


def test_the_tree_that_is_overridden_stays_as_it_was():
    before = repr(TREE)
    apply(TREE, ["objective.attack.steps=7", "list.0.a=5"])
    apply(TREE, ["objective.use=trades"])
    assert repr(TREE) == before


def test_overrides_are_laid_from_left_to_right():
    assert apply({}, ["a.b=1", "a.b=2", "a={c: 3}"]) == {"a": {"b": 2, "c": 3}}
    assert apply(TREE, ["objective.use=trades", "objective.beta=6"])["objective"] == {"use": "trades", "beta": 6}


def test_a_name_alone_takes_fields():
    assert apply({"threat": "linf"}, ["threat.eps=0.5"]) == {"threat": {"use": "linf", "eps": 0.5}}


def test_no_override_is_lost_in_silence():
    with pytest.raises(
        ConfigError, match=r"objective\.use=trades comes after objective\.beta=\.\.\. and would undo it"
    ):
        apply(TREE, ["objective.beta=6", "objective.use=trades"])


@pytest.mark.parametrize("override", ["steps", "=7", ".a=7", "a..b=7", "a.=7", "a b=7", ""])
def test_what_is_no_override_is_refused_with_an_example(override):
    with pytest.raises(ConfigError, match=r"is no override: write it like objective\.attack\.steps=7"):
        apply({}, [override])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("a.b=", "write a.b=null"),
        ("list.2=1", "count from 0 to 1"),
        ("list.x=1", "no entry"),
        ("a=[1", "override a:1:"),
    ],
)
def test_a_value_or_place_that_cannot_be_is_refused(override, words):
    with pytest.raises(ConfigError) as seen:
        apply(TREE, [override])
    assert words in str(seen.value)
