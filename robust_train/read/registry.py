"""Registries: `use:` names to classes, one registry for each noun.

    @attacks.register("pgd")
    @dataclass(frozen=True)
    class PGD(Attack): ...

From then on a field of type `Attack` reads `{use: pgd, steps: 10, ...}`, or `pgd` alone where nothing else need be
said. A registry knows its noun's folder and imports the modules in it, and in folders of it, when it is first asked for
a name: a new one is a new file, and nothing else.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from robust_train.nouns import (
    Attack,
    Augmentation,
    Dataset,
    Divergence,
    Edit,
    Evaluator,
    Mixing,
    Model,
    Noun,
    Objective,
    Schedule,
    Threat,
    Transform,
    Weighting,
)
from robust_train.read.errors import ConfigError, nearest

Root = TypeVar("Root", bound=Noun)
Registered = TypeVar("Registered", bound=type)

Number = float | Schedule
"""A number of a run that may change over it: `0.03`, `8/255`, or a schedule, `{use: ramp, ...}`."""


class Registry(Mapping[str, type[Root]], Generic[Root]):
    """The classes of one noun by their `use:` names, sorted.

    homes: the packages, or single modules, whose classes these are; imported when a name is first asked for. An error
    in a module of them is raised as it is, at each look-up until it is mended.
    """

    def __init__(self, root: type, *homes: str) -> None:
        self.root, self.homes = root, homes
        self._known: dict[str, type[Root]] = {}
        self._filled = not homes
        root.registry = self  # type: ignore[attr-defined]  # its subclasses find it there

    @property
    def noun(self) -> str:
        """What one of them is called: "attack", "edit"."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.root.__name__).lower()

    @property
    def known(self) -> Mapping[str, type[Root]]:
        """The classes by name, after the modules at home have been imported, in the order of their names."""
        if not self._filled:
            self._filled = True  # a module at home may ask too, while it is imported
            try:
                for home in self.homes:
                    package = import_module(home)
                    inside = pkgutil.walk_packages(getattr(package, "__path__", ()), f"{home}.", _raised)
                    for name in sorted(found.name for found in inside):
                        import_module(name)
            except BaseException:
                self._filled = False
                raise
        return self._known

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """A decorator, above `@dataclass(frozen=True)`. Raises ValueError for a name that is taken."""

        def add(cls: Registered) -> Registered:
            ours = f"{cls.__module__}.".startswith(tuple(f"{home}." for home in self.homes))
            known = self._known if ours else self.known
            if name in known and _place(known[name]) != _place(cls):  # the same class: its module is imported anew
                raise ValueError(f"{self.noun} {name!r} is {known[name].__qualname__} already; take another name")
            if not issubclass(cls, self.root):
                raise ValueError(
                    f"{cls.__qualname__} is registered as {self.noun}: derive it from {self.root.__name__}"
                )
            if not (is_dataclass(cls) and cls.__dataclass_params__.frozen):  # type: ignore[attr-defined]
                raise ValueError(f"{cls.__qualname__} must be a frozen dataclass, decorated before it is registered")
            cls.use = name  # type: ignore[attr-defined]
            self._known[name] = cast(type[Root], cls)
            return cls

        return add

    def __getitem__(self, name: str) -> type[Root]:
        """The class called `name`. Raises ConfigError, with the nearest name, where there is none."""
        if name not in self:
            raise ConfigError(self.refusal(name))
        return self.known[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.known

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.known))

    def __len__(self) -> int:
        return len(self.known)

    def get(self, name: str, default: Any = None) -> Any:
        """The class called `name`, or `default`."""
        return self.known.get(name, default)

    def among(self, wanted: type) -> list[str]:
        """The names of those classes that are `wanted`."""
        return [name for name, cls in self.items() if issubclass(cls, wanted)]

    def refusal(self, name: object, among: type = object) -> str:
        """What to say of a name that is not registered, or whose class is not `among` those wanted."""
        names = self.among(among)
        return f"{name!r} is no {self.noun}{nearest(name, names)} (known: {', '.join(names) or 'none'})"


def _raised(name: str) -> None:
    """What a folder's own error is: itself. It is raised again where the folder is imported."""


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


threats: Registry[Threat] = Registry(Threat, "robust_train.threats")
attacks: Registry[Attack] = Registry(Attack, "robust_train.attacks")
objectives: Registry[Objective] = Registry(Objective, "robust_train.objectives")
models: Registry[Model] = Registry(Model, "robust_train.models")
edits: Registry[Edit] = Registry(Edit, "robust_train.models", "robust_train.compress")
datasets: Registry[Dataset] = Registry(Dataset, "robust_train.data")
augmentations: Registry[Augmentation] = Registry(Augmentation, "robust_train.data")
mixings: Registry[Mixing] = Registry(Mixing, "robust_train.data")
schedules: Registry[Schedule] = Registry(Schedule, "robust_train.engines.schedule")
evaluators: Registry[Evaluator] = Registry(Evaluator, "robust_train.evaluate")
transforms: Registry[Transform] = Registry(Transform, "robust_train.compress")
weightings: Registry[Weighting] = Registry(Weighting, "robust_train.objectives")
divergences: Registry[Divergence] = Registry(Divergence, "robust_train.objectives")

registries: dict[str, Registry[Any]] = {
    "threats": threats,
    "attacks": attacks,
    "objectives": objectives,
    "models": models,
    "edits": edits,
    "datasets": datasets,
    "augmentations": augmentations,
    "mixings": mixings,
    "schedules": schedules,
    "evaluators": evaluators,
    "transforms": transforms,
    "weightings": weightings,
    "divergences": divergences,
}
"""Every registry by the name that `--list` takes."""
