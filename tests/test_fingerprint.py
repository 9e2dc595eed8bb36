"""What was kept is taken only where nothing that it rests on has changed: every field, file, label and size counts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from robust_train import fingerprint
from robust_train.attacks.apgd import APGD
from robust_train.attacks.combine import Restarts
from robust_train.attacks.pgd import PGD
from robust_train.attacks.square import Square
from robust_train.data.digits import Digits
from robust_train.data.shards import Shards
from robust_train.data.shifts import ImageNetA
from robust_train.data.stored_corruptions import StoredArrays
from robust_train.data.write import sample, write_shard
from robust_train.evaluate.corruption_work import Sight, Verdict
from robust_train.evaluate.lipschitz import Lipschitz
from robust_train.evaluate.robustness import Tried
from robust_train.evaluate.store import Store
from robust_train.evaluate.transferability import Transferability
from robust_train.evaluate.trial import Trial
from robust_train.nouns import Piece
from robust_train.read.registry import attacks
from robust_train.subject import Subject
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from tests.evaluate.zoo import middling
from tests.registered import examples


def changed(value: Any, kind: Any) -> list[Any]:
    """Another value, and for a field of fields one for each of these."""
    if dataclasses.is_dataclass(value):
        return [replace(value, **{name: other}) for name, other in others(value)]
    if get_origin(kind) is Literal:
        return [next(one for one in get_args(kind) if one != value)]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1] if isinstance(value, int) else [value / 2 if value else 0.3]
    if isinstance(value, str):
        return [f"{value}x"]
    if isinstance(value, tuple):
        return [(*value, value[0])] if value else [("x",)]
    return [0.3]  # in the place of None


def others(value: Any) -> list[tuple[str, Any]]:
    """(field, another value) of every field that is not named as harmless."""
    kinds = get_type_hints(type(value))
    harmless = getattr(type(value), "harmless", ())
    names = [field.name for field in dataclasses.fields(value) if field.name not in harmless]
    return [(name, other) for name in names for other in changed(getattr(value, name), kinds[name])]


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields are changed one by one, whatever a class would say of it."""
    for kind in (PGD, APGD, Square, Restarts, Linf, L2, Shards, ImageNetA, Subject, Trial, Transferability, Lipschitz):
        monkeypatch.setattr(kind, "__post_init__", lambda self: None, raising=False)


TRIED = Tried(Trial("linf/pgd", Restarts(PGD(Linf(0.1), 7, 0.02), 2), ("clean",), "linf"), 1)


@pytest.mark.parametrize(
    "value",
    [
        TRIED,
        Tried(Trial("l2/apgd", APGD(L2(0.5), 10), ("clean",), "l2"), 10),
        Tried(Trial("linf/square", Square(Linf(0.1), 10)), 1),
        Piece("fog/1", Sight(("fog", 1), (("frost1.png", "a" * 64),)), ("clean",), ("net",)),
        Verdict("logits", (0.5, 0.5)),
        Transferability(PGD(L2(0.5), 1, 0.1), 0.1),
        Lipschitz(Linf(0.1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_field_of_a_plan_counts_however_deep(value) -> None:
    before = fingerprint.digest(value)
    assert fingerprint.digest(replace(value)) == before
    each = others(value)
    assert each
    for name, other in each:
        assert fingerprint.digest(replace(value, **{name: other})) != before, name


@pytest.mark.parametrize("name", sorted(examples(attacks)))
def test_every_field_of_every_attack_and_threat_model_counts(monkeypatch, name) -> None:
    """One that is added later too: what is not named as harmless is in."""
    value = examples(attacks)[name]
    for kind in {type(one) for one in within(value)}:
        monkeypatch.setattr(kind, "__post_init__", lambda self: None, raising=False)
    before = fingerprint.digest(value)
    for field, other in others(value):
        assert fingerprint.digest(replace(value, **{field: other})) != before, field


def within(value: Any) -> list[Any]:
    """A dataclass and those in its fields."""
    each = value if isinstance(value, tuple) else [value] if dataclasses.is_dataclass(value) else []
    inner = [
        getattr(one, field.name) for one in each if dataclasses.is_dataclass(one) for field in dataclasses.fields(one)
    ]
    return [one for one in each if dataclasses.is_dataclass(one)] + [deep for one in inner for deep in within(one)]


@pytest.mark.parametrize(
    "value",
    [
        Shards("t.tar", 10, 32),
        ImageNetA("folder"),
        StoredArrays("folder", 10, 32),
        Subject(model="resnet50", weights="w.pth"),
        Digits(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_field_of_subject_and_data_counts_but_paths_and_what_only_decides_the_time(monkeypatch, value) -> None:
    monkeypatch.setattr(type(value), "contents", lambda self: {})
    before = fingerprint.digest(value)
    for name, other in others(value):
        assert fingerprint.digest(replace(value, **{name: other})) != before, name
    for name in {field.name for field in dataclasses.fields(value)}.intersection(type(value).harmless):
        assert fingerprint.digest(replace(value, **{name: "elsewhere"})) == before, name


def test_every_source_file_counts_but_those_on_which_no_verdict_rests(tmp_path: Path) -> None:
    package = tmp_path / "robust_train"
    shutil.copytree(fingerprint.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    before = fingerprint.source_of(package)
    assert before == fingerprint.source()
    counted = 0
    for path in package.rglob("*.py"):
        name, text = path.relative_to(package).as_posix(), path.read_bytes()
        path.write_bytes(text + b"\n")
        assert (fingerprint.source_of(package) == before) == name.startswith(fingerprint.HARMLESS), name
        counted += fingerprint.source_of(package) != before
        path.write_bytes(text)
    assert counted > 80
    for rests in (
        "attacks/apgd.py",
        "threats/l1.py",
        "losses.py",
        "models/v1.py",
        "keyed/draws.py",
        "evaluate/trial.py",
    ):
        assert not rests.startswith(fingerprint.HARMLESS)
    for name in fingerprint.HARMLESS:
        assert (package / name).exists(), f"{name} is named as harmless and is not there"
    (package / "attacks" / "new.py").write_text("")
    assert fingerprint.source_of(package) != before, "a file more"


def test_corrected_labels_and_names_in_a_shard_of_equal_size_count_though_its_manifest_stayed(tmp_path) -> None:
    from PIL import Image

    def contents(labels: list[int], key: str = "a") -> str:
        home = tmp_path / f"{key}{labels[0]}"
        home.mkdir()
        images = []
        for number, label in enumerate(labels):
            Image.new("RGB", (4, 4), (9, 0, 0)).save(home / "one.png")
            images.append(sample(f"{key}{number}", "png", (home / "one.png").read_bytes(), label))
        entry = write_shard(home / "v.tar", iter(images))
        manifest = {
            "splits": {"v": {"samples": len(labels), "shards": [{**dataclasses.asdict(entry), "sha256": "0" * 64}]}}
        }
        (home / "manifest.json").write_text(json.dumps(manifest))
        data = Shards(str(home / "v.tar"), 10, 4, str(home / "v.tar"), cache=str(home / "index"))
        return fingerprint.digest(data)

    first = contents([1, 2])
    assert contents([2, 1]) != first
    assert contents([1, 2], key="b") != first


def test_a_class_from_elsewhere_counts_with_its_file(tmp_path: Path, monkeypatch) -> None:
    """An attack of the user's own: changed, it is another."""
    import importlib
    import sys

    monkeypatch.syspath_prepend(str(tmp_path))
    seen = set()
    for body in ("1", "2"):
        (tmp_path / "my_half.py").write_text(
            f"from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Half:\n    a: int = 0\n    b = {body}\n"
        )
        sys.modules.pop("my_half", None)
        importlib.invalidate_caches()
        seen.add(fingerprint.digest(importlib.import_module("my_half").Half()))
    sys.modules.pop("my_half", None)
    assert len(seen) == 2


HALF = """
from dataclasses import dataclass
{imports}
@dataclass(frozen=True)
class Half:
    a: int = 0
    def run(self):
        {inside}
        return 1
"""


@pytest.mark.parametrize(
    ("imports", "inside", "file"),
    [
        ("import my_helper", "", "my_helper.py"),
        ("from my_helper import SIZE", "", "my_helper.py"),
        ("", "from my_helper import SIZE", "my_helper.py"),
        ("import my_middle", "", "my_helper.py"),
        ("from my_parts.deep import thing", "", "my_parts/deep.py"),
        ("from my_parts import deep", "", "my_parts/__init__.py"),
        ("import my_parts.user", "", "my_parts/deep.py"),
    ],
    ids=["a module", "a constant of it", "inside a function", "through another", "a package's", "its own", "relative"],
)
def test_what_a_users_own_class_imports_counts(tmp_path: Path, monkeypatch, imports, inside, file) -> None:
    """Only what is not installed: of what is, the version stands elsewhere."""
    import importlib
    import sys

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_parts").mkdir()
    texts = {
        "my_helper.py": "SIZE = 1\n",
        "my_middle.py": "import json, torch\nfrom my_helper import SIZE\n",
        "my_parts/__init__.py": "",
        "my_parts/deep.py": "thing = 1\n",
        "my_parts/user.py": "from . import deep\nfrom .deep import thing\n",
        "my_half.py": HALF.format(imports=imports, inside=inside or "pass"),
        "my_bystander.py": "thing = 1\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)

    def seen() -> str:
        for name in [name for name in sys.modules if name.startswith("my_")]:
            sys.modules.pop(name)
        importlib.invalidate_caches()
        return fingerprint.digest(importlib.import_module("my_half").Half())

    before = seen()
    (tmp_path / "my_bystander.py").write_text("thing = 22\n")
    assert seen() == before
    (tmp_path / file).write_text("SIZE = thing = 22\n")
    assert seen() != before
    for name in [name for name in sys.modules if name.startswith("my_")]:
        sys.modules.pop(name)


def test_what_a_function_or_a_class_closes_over_counts() -> None:
    """A factory makes many of one source."""
    from functools import partial, wraps

    def scaled(factor: object):
        def loss(logits):
            return factor

        return loss

    def attack(factor: float):
        @dataclass(frozen=True)
        class Half:
            a: int = 0

            def __repr__(self) -> str:
                return super().__repr__() + str(factor)

        return Half

    def around(call):
        @wraps(call)
        def outer(logits):
            return call(logits)

        return outer

    digest = fingerprint.digest
    assert digest(scaled(1)) == digest(scaled(1)) != digest(scaled(2))
    assert digest(scaled(torch.ones(2))) != digest(scaled(torch.zeros(2)))
    assert digest(attack(0.5)()) == digest(attack(0.5)()) != digest(attack(0.25)())
    assert digest(around(scaled(1))) != digest(around(scaled(2)))
    assert digest(scaled(scaled(1))) != digest(scaled(scaled(2)))
    assert digest(partial(scaled, 1)) != digest(partial(scaled, 2))
    with pytest.raises(TypeError, match="has no fingerprint"):
        digest(scaled(object()))


def test_what_has_no_fingerprint_is_refused() -> None:
    @dataclass(frozen=True)
    class Odd:
        what: object

    assert fingerprint.digest(Odd(torch.arange(3))) != fingerprint.digest(Odd(torch.arange(3) + 1))
    assert fingerprint.digest(Odd({1: (2, {3, 4})})) == fingerprint.digest(Odd({1: [2, {4, 3}]}))
    with pytest.raises(TypeError, match="has no fingerprint: name it as harmless"):
        fingerprint.digest(Odd(object()))


def test_passes_of_a_verdict_averaged_weights_and_the_model_count(tmp_path: Path) -> None:
    """By name, whatever a class would call harmless: of a piece, and of what a report says it is of."""
    trial = Trial("linf/pgd", PGD(Linf(0.1), 7, 0.02), ("clean",), "linf")
    assert fingerprint.digest(Tried(trial, 1)) != fingerprint.digest(Tried(trial, 100))
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"weights")
    one = Subject(model="resnet50", weights=str(weights))
    for other in (replace(one, averaged=False), replace(one, model="resnet18")):
        assert fingerprint.digest(other) != fingerprint.digest(one)
        assert other.identity(None) != one.identity(None)


def test_the_store_is_another_for_another_seed_or_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = Lipschitz(Linf(0.1))

    def home(seed: int = 0, source: str = "a") -> Path:
        monkeypatch.setattr(fingerprint, "source", lambda: source)
        store = Store(tmp_path, {})
        store.begin(evaluator, middling(4), seed)  # type: ignore[arg-type]
        return store.home()

    assert home() == home()
    assert len({home(), home(seed=1), home(source="b")}) == 3
