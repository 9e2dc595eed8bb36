"""A run is a value: read strictly, every mistake at once, written and read back the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_train.nouns import Noun, Schedule
from robust_train.read.errors import ConfigError
from robust_train.read.parse import difference, dump, load_tree, merge, parse, tree_of
from robust_train.read.registry import Number, Registry


class Ball(Noun):
    """A toy threat."""


class Search(Noun):
    """A toy attack."""


balls: Registry[Ball] = Registry(Ball)
searches: Registry[Search] = Registry(Search)


@balls.register("linf")
@dataclass(frozen=True)
class Linf(Ball):
    eps: Number

    def __post_init__(self) -> None:
        if isinstance(self.eps, float) and not 0 <= self.eps <= 1:
            raise ValueError(f"eps={self.eps:g} is not in [0, 1]: {{pixels}} live in [0, 1]")


@searches.register("pgd")
@dataclass(frozen=True)
class PGD(Search):
    threat: Ball
    steps: int
    step_size: float
    start: Literal["zero", "random"] = "zero"


@searches.register("worst")
@dataclass(frozen=True)
class Worst(Search):
    attacks: tuple[Search, ...]
    weights: tuple[float, float] = (0.5, 0.5)


@dataclass(frozen=True)
class Every:
    updates: int = 0
    also: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    updates: int
    attack: Search
    name: str = ""
    rate: float = 0.1
    flag: bool = False
    limit: float | None = None
    start: str | None = None
    every: Every = Every()
    names: dict[str, float] = field(default_factory=dict)
    paths: str | tuple[str, ...] = ()
    width: int | Literal["auto"] = "auto"


GOOD = {"updates": 3, "attack": {"use": "pgd", "threat": {"use": "linf", "eps": 0.1}, "steps": 2, "step_size": 0.1}}


def mistakes(kind, tree, **said) -> list[str]:
    with pytest.raises(ConfigError) as seen:
        parse(kind, tree, **said)
    return str(seen.value).splitlines()


def with_(**changed):
    return merge(GOOD, changed)


def test_every_mistake_is_told_at_once():
    tree = load_tree("attack: {use: pgd, threat: {use: linf, eps: 8}, steps: 7.5, step_sise: 2/255}")
    first, *rest = mistakes(Run, tree, source="configs/x.yaml")
    assert first == "5 mistakes in configs/x.yaml:"
    assert sorted(rest) == [
        "  run.attack.step_sise: no such field of PGD; did you mean 'step_size'?",
        "  run.attack.step_size: missing; it has no default",
        "  run.attack.steps: expected int, got 7.5 (float)",
        "  run.attack.threat: eps=8 is not in [0, 1]: {pixels} live in [0, 1]",
        "  run.updates: missing; it has no default",
    ]


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"updates": 1.0}, "updates: expected int, got 1.0 (float)"),
        ({"updates": True}, "updates: expected int, got True (bool)"),
        ({"updates": "3"}, "updates: expected int, got '3' (str)"),
        ({"updates": None}, "updates: expected int, got null"),
        ({"rate": "0.1"}, "rate: expected float, got '0.1' (str)"),
        ({"rate": True}, "rate: expected float, got True (bool)"),
        ({"flag": "no"}, "flag: expected bool, got 'no' (str): write true or false"),
        ({"flag": 1}, "flag: expected bool, got 1 (int): write true or false"),
        ({"name": 0.5}, "name: expected str, got 0.5 (float): put it in quotes"),
        ({"limit": "x"}, "limit: expected float, got 'x' (str)"),
        ({"start": 3}, "start: expected str, got 3 (int): put it in quotes"),
        ({"every": None}, "every: expected the fields of Every, got null"),
        ({"every": 3}, "every: expected the fields of Every, got 3 (int)"),
        ({"every": {"also": 3}}, "every.also: expected a list, got 3 (int)"),
        ({"every": {"also": [1, 2.5]}}, "every.also[1]: expected int, got 2.5 (float)"),
        ({"every": {"upd": 3}}, "every.upd: no such field of Every; did you mean 'updates'?"),
        ({"names": {"a": "x"}}, "names.a: expected float, got 'x' (str)"),
        ({"names": [1]}, "names: expected a mapping, got [1] (list)"),
        ({"paths": 3}, "paths: expected str, got 3 (int): put it in quotes"),
        ({"paths": ["a", 3]}, "paths[1]: expected str, got 3 (int): put it in quotes"),
        ({"width": "autp"}, "width: expected int or 'auto', got 'autp' (str)"),
        ({"attack": {"start": "zeri"}}, "attack.start: expected 'zero' or 'random', got 'zeri' (str)"),
        ({"attack": {"use": "pgf"}}, "attack.use: 'pgf' is no search; did you mean 'pgd'? (known: pgd, worst)"),
        ({"attack": "pgf"}, "attack.use: 'pgf' is no search; did you mean 'pgd'? (known: pgd, worst)"),
        ({"attack": 3}, "attack: expected search {use: name, ...}, got 3 (int)"),
        ({"attack": {"threat": {"use": 3}}}, "attack.threat.use: 3 is no ball (known: linf)"),
        ({"attack": {"use": "worst", "attacks": [{}]}}, "attack.attacks[0].use: missing; name the search (known: pgd,"),
        (
            {"attack": {"use": "worst", "attacks": [], "weights": [1]}},
            "attack.weights[1]: missing: the list is too short",
        ),
        (
            {"attack": {"use": "worst", "attacks": [], "weights": [1, 2, 3]}},
            "attack.weights: expected 2 entries, got 3",
        ),
        ({"attack": {"threat": {"eps": {"use": "rmp"}}}}, "attack.threat.eps.use: 'rmp' is no schedule"),
        ({"attack": {"threat": {"eps": "ramp"}}}, "attack.threat.eps: expected float, got 'ramp' (str)"),
        ({"attack": {"threat": {"eps": None}}}, "attack.threat.eps: expected float, got null"),
    ],
)
def test_a_mistake_names_place_expectation_and_value(changed, line):
    first, told = mistakes(Run, with_(**changed))
    assert first == "1 mistake in the run:"
    assert told.startswith(f"  run.{line}")


def test_a_whole_number_may_stand_for_a_float():
    run = parse(Run, with_(rate=1, limit=2))
    assert (run.rate, run.limit) == (1.0, 2.0)
    assert type(run.rate) is float


def test_lists_become_the_tuples_that_fields_ask_for():
    run = parse(Run, with_(attack={"use": "worst", "attacks": [GOOD["attack"]], "weights": [1, 0.25]}, paths=["a"]))
    assert run.attack == Worst((PGD(Linf(0.1), 2, 0.1),), (1.0, 0.25))
    assert run.paths == ("a",)


def test_nothing_written_leaves_the_defaults_or_what_is_missing():
    assert parse(Every, load_tree("")) == Every()
    assert len(mistakes(Run, load_tree(""))) == 3


def test_what_a_class_says_of_its_values_is_told_at_any_depth():
    tree = with_(
        attack={"use": "worst", "attacks": [{**GOOD["attack"], "threat": {"use": "linf", "eps": -1}}], "weights": 3}
    )
    assert mistakes(Run, tree)[1:] == [
        "  run.attack.attacks[0].threat: eps=-1 is not in [0, 1]: {pixels} live in [0, 1]",
        "  run.attack.weights: expected a list, got 3 (int)",
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    height: int
    doubled: int = field(init=False)
    left: Tree | None = None
    more: tuple[Tree, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", 2 * self.height)


def test_a_class_may_hold_itself_and_fields_that_it_works_out():
    tree = parse(Tree, load_tree("{height: 1, left: {height: 2}, more: [{height: 3, left: null}]}"))
    assert tree == Tree(height=1, left=Tree(height=2), more=(Tree(height=3),))
    assert tree.left.doubled == 4
    assert parse(Tree, load_tree(dump(tree))) == tree
    assert mistakes(Tree, {"height": 1, "more": [{"height": 2, "left": {"heigt": 3}}]})[1:] == [
        "  run.more[0].left.height: missing; it has no default",
        "  run.more[0].left.heigt: no such field of Tree; did you mean 'height'?",
    ]
    assert "no such field of Tree" in mistakes(Tree, {"height": 1, "doubled": 2})[1]


def test_a_bug_in_a_class_is_not_taken_for_bad_input():
    @dataclass(frozen=True)
    class Broken:
        def __post_init__(self) -> None:
            raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        parse(Broken, {})


def test_what_cannot_be_written_is_refused():
    with pytest.raises(ConfigError, match=r"set\(\) \(set\) cannot be written as YAML"):
        dump(replace(parse(Run, GOOD), names={"a": set()}))


texts = st.text(max_size=5) | st.sampled_from(["no", "010", "1e-3", "4/255", "null", "", "1_000", "true", "{a: b}"])
numbers = (
    st.floats(allow_nan=False) | st.sampled_from([1e-7, math.inf, -0.0]) | st.integers(1, 254).map(lambda k: k / 255)
)
small = st.floats(0, 1) | st.integers(0, 255).map(lambda k: k / 255)
pgds = st.builds(
    PGD,
    threat=st.builds(Linf, eps=small),
    steps=st.integers(),
    step_size=numbers,
    start=st.sampled_from(["zero", "random"]),
)
attacks_ = st.recursive(
    pgds,
    lambda inner: st.builds(Worst, attacks=st.lists(inner, max_size=2).map(tuple), weights=st.tuples(numbers, numbers)),
    max_leaves=4,
)
runs = st.builds(
    Run,
    updates=st.integers(),
    attack=attacks_,
    name=texts,
    rate=numbers,
    flag=st.booleans(),
    limit=st.none() | numbers,
    start=st.none() | texts,
    every=st.builds(Every, updates=st.integers(), also=st.lists(st.integers(), max_size=2)),
    names=st.dictionaries(texts, numbers, max_size=2),
    paths=texts | st.lists(texts, max_size=2).map(tuple),
    width=st.integers() | st.just("auto"),
)


@given(runs)
def test_a_run_that_is_written_and_read_is_the_same_run(run):
    text = dump(run)
    assert parse(Run, load_tree(text)) == run
    assert dump(parse(Run, load_tree(text))) == text
    assert difference(run, parse(Run, load_tree(text))) == []


def test_a_schedule_stands_where_a_number_stands(toy_schedule):
    ball = parse(Ball, load_tree("use: linf\neps: {use: toy, to: 4/255}"))
    assert ball == Linf(toy_schedule(4 / 255))
    assert isinstance(ball.eps, Schedule)
    assert parse(Ball, load_tree(dump(ball))) == ball
    assert parse(Ball, {"use": "linf", "eps": toy_schedule(0.5)}) == Linf(toy_schedule(0.5))
    assert mistakes(Ball, {"use": "linf", "eps": {"use": "toy", "to": "x"}}, where="ball")[1:] == [
        "  ball.eps.to: expected float, got 'x' (str)"
    ]


def test_a_dump_has_use_first_and_every_field_in_order():
    assert dump(PGD(Linf(8 / 255), 10, 2 / 255)) == (
        "use: pgd\nthreat: {use: linf, eps: 8/255}\nsteps: 10\nstep_size: 2/255\nstart: zero\n"
    )
    assert "limit: null\n" in dump(parse(Run, GOOD))


def test_a_difference_names_field_old_and_new():
    run = parse(Run, GOOD)
    other = replace(run, updates=4, every=Every(1), attack=replace(run.attack, threat=Linf(8 / 255)), names={"a": 1.0})
    assert difference(run, other) == [
        "updates: was 3, is now 4",
        "attack.threat.eps: was 0.1, is now 8/255",
        "every.updates: was 0, is now 1",
        "names.a: was absent, is now 1.0",
    ]
    assert difference(other, run)[-1] == "names.a: was 1.0, is now absent"
    assert difference(run, replace(run, attack=Worst(()))) == [
        "attack: was {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.1, start: zero}, "
        "is now {use: worst, attacks: [], weights: [0.5, 0.5]}"
    ]
    assert difference(tree_of(run), run) == []


def write_files(folder, **files) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def test_a_base_is_read_first_then_the_file(tmp_path):
    (tmp_path / "sub").mkdir()
    write_files(tmp_path, low="a: 1\nattack: {use: pgd, steps: 1, threat: linf}\nlist: [1, 2]")
    write_files(tmp_path, middle="base: low.yaml\na: 2\nattack: {steps: 2, threat: {eps: 0.5}}")
    write_files(tmp_path / "sub", top="base: ../middle.yaml\nlist: [3]\nnew: {é: 1}")
    assert load_tree(tmp_path / "sub" / "top.yaml") == {
        "a": 2,
        "attack": {"use": "pgd", "steps": 2, "threat": {"use": "linf", "eps": 0.5}},
        "list": [3],
        "new": {"é": 1},
    }
    assert load_tree(str(tmp_path / "low.yaml"))["a"] == 1


def test_a_node_whose_use_changes_is_replaced_whole():
    below = {"o": {"use": "madry", "attack": {"use": "pgd", "steps": 7}, "x": 1}}
    assert merge(below, {"o": {"use": "trades", "beta": 6}}) == {"o": {"use": "trades", "beta": 6}}
    assert merge(below, {"o": {"use": "madry", "x": 2}})["o"]["attack"] == {"use": "pgd", "steps": 7}
    assert merge(below, {"o": {"attack": {"use": "fgsm"}}})["o"] == {"use": "madry", "attack": {"use": "fgsm"}, "x": 1}
    assert merge(below, {"o": None}) == {"o": None}
    assert below["o"]["attack"] == {"use": "pgd", "steps": 7}


def test_bases_go_two_deep_and_in_no_circle(tmp_path):
    write_files(tmp_path, a="base: b.yaml", b="base: c.yaml", c="base: d.yaml", d="x: 1")
    assert load_tree(tmp_path / "b.yaml") == {"x": 1}
    with pytest.raises(ConfigError, match=r"at most 2 files below a run \(a.yaml -> b.yaml -> c.yaml -> d.yaml\)"):
        load_tree(tmp_path / "a.yaml")
    write_files(tmp_path, d="base: c.yaml")
    with pytest.raises(ConfigError, match=r"goes in a circle \(c.yaml -> d.yaml -> c.yaml\)"):
        load_tree(tmp_path / "c.yaml")


def test_text_may_have_a_base_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, low="a: 1", lower="base: low.yaml", lowest="base: lower.yaml")
    assert load_tree("base: lower.yaml\nb: 2") == {"a": 1, "b": 2}
    with pytest.raises(ConfigError, match="at most 2"):
        load_tree("base: lowest.yaml\nb: 2")


def test_a_file_that_cannot_be_read_is_named_with_the_nearest(tmp_path):
    write_files(tmp_path, demo="a: 1", top="base: demp.yaml", listed="- 1", numbered="base: 3")
    (tmp_path / "latin.yaml").write_bytes("é: 1".encode("latin-1"))
    for name, words in (
        ("demp.yaml", "demp.yaml: no such file; did you mean 'demo.yaml'?"),
        ("top.yaml", "did you mean 'demo.yaml'?"),
        ("nowhere/x.yaml", "no such file"),
        ("", "is a folder"),
        ("listed.yaml", "expected fields (name: value), got list"),
        ("numbered.yaml", "base: expected the path of a YAML file, got 3"),
        ("latin.yaml", "byte 0 is not UTF-8"),
    ):
        with pytest.raises(ConfigError) as seen:
            load_tree(tmp_path / name)
        assert words in str(seen.value)


def even(written: object) -> int:
    """A reader of its own."""
    if not isinstance(written, int) or written % 2:
        raise ValueError(f"expected an even number, got {written!r}")
    return written


@dataclass(frozen=True)
class Pairs:
    count: Annotated[int, even] = 0
    each: tuple[Annotated[int, even], ...] = ()
    none: Annotated[int, even] | None = None


def test_a_type_may_have_a_reader_of_its_own():
    assert parse(Pairs, {"count": 2, "each": [4], "none": None}) == Pairs(2, (4,))
    assert mistakes(Pairs, {"count": 3, "each": [4, 5], "none": "x"})[1:] == [
        "  run.count: expected an even number, got 3",
        "  run.each[1]: expected an even number, got 5",
        "  run.none: expected an even number, got 'x'",
    ]


def test_a_number_beyond_floats_is_a_mistake():
    assert mistakes(Run, with_(rate=10**400))[1:] == ["  run.rate: is too large for a float"]
