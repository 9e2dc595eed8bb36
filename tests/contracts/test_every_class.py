"""What every registered class keeps to, whatever its noun: examples stand with it, and they are values."""

from __future__ import annotations

import pickle

import pytest

from robust_train.nouns import at
from robust_train.read.help import summary, undocumented
from robust_train.read.parse import dump, load_tree, parse
from robust_train.read.registry import registries
from tests.registered import examples, written

CLASSES = [(noun, use) for noun, registry in registries.items() for use in registry]
EXAMPLES = {(noun, name): one for noun, registry in registries.items() for name, one in examples(registry).items()}
every = pytest.mark.parametrize(("noun", "name"), EXAMPLES)


@pytest.mark.parametrize(("noun", "use"), CLASSES)
def test_a_class_has_examples_of_its_own_and_says_what_it_and_each_field_is(noun: str, use: str) -> None:
    cls = registries[noun][use]
    assert written(cls), f'{cls.__qualname__} has no examples: write examples = "- {{...}}" below its fields'
    assert summary(cls), f"{cls.__qualname__} has no docstring"
    assert undocumented(cls) == []


@every
def test_an_example_is_what_its_dump_says(noun: str, name: str) -> None:
    one = EXAMPLES[noun, name]
    assert parse(registries[noun].root, load_tree(dump(one))) == one
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize("name", examples(registries["schedules"]))
@pytest.mark.parametrize("updates", [10, 1000])
def test_a_schedule_is_a_number_at_every_update_and_nothing_else_changes_it(name: str, updates: int) -> None:
    schedule = EXAMPLES["schedules", name]
    values = [schedule(update, updates) for update in range(updates)]
    assert all(isinstance(value, float) and abs(value) < 1e6 for value in values)
    assert values == [at(schedule, update, updates) for update in range(updates)]
