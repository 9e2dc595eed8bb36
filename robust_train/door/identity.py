"""Fingerprints of what Python hands over: a module by its weights and its code, a function by its code.

Everything that may decide an answer counts: parameters and buffers (those that a state_dict leaves out too), plain
attributes, hooks, the classes' source, and of functions their code, defaults, what they close over and the globals they
name. So a kept verdict is never that of another network or attack. What has no fingerprint is refused by its place.
"""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import types
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from robust_train import fingerprint
from robust_train.read.errors import ConfigError

INSTALLED = (
    "torch",
    "timm",
    "torchvision",
    "numpy",
    "robust_train",
    "builtins",
)  # versions and sources stand elsewhere
PRIVATE = frozenset(("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"))
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def of_network(network: Any) -> str:
    """Of a module, or of any callable, in its present state. Raises ConfigError for what has no fingerprint."""
    return fingerprint.digest(_Reader().of(network, "module"))


def of_function(call: Any) -> str:
    """Of a function: its code and all that it reads. Raises ConfigError for what has no fingerprint."""
    return fingerprint.digest(_Reader().of(call, getattr(call, "__name__", "attack")))


class _Reader:
    """One look at a value; what it meets again is named by when it was met."""

    def __init__(self) -> None:
        self.met: dict[int, int] = {}
        self.held: list[Any] = []  # alive until the end: an id must not be given to another meanwhile

    def of(self, value: Any, where: str) -> Any:
        """A value as JSON can hold it."""
        if isinstance(value, PLAIN):
            return value if isinstance(value, (bool, int, str, type(None))) else repr(value)
        if isinstance(value, (torch.dtype, torch.device, torch.Size, slice, range, Path, enum.Enum)):
            return f"{type(value).__name__} {value}"
        if isinstance(value, numpy.generic):
            return repr(value)
        if isinstance(value, types.ModuleType):
            return self._file(value.__name__)
        if id(value) in self.met:
            return {"again": self.met[id(value)]}
        self.met[id(value)] = len(self.met)
        self.held.append(value)
        if isinstance(value, Tensor):
            return fingerprint.tree(value)
        if isinstance(value, numpy.ndarray):
            return fingerprint.tree(torch.from_numpy(numpy.ascontiguousarray(value)))
        if isinstance(value, Mapping):
            return [[self.of(key, where), self.of(entry, f"{where}[{key!r}]")] for key, entry in value.items()]
        if isinstance(value, (tuple, list)):
            return [self.of(entry, f"{where}[{place}]") for place, entry in enumerate(value)]
        if isinstance(value, Set):
            return sorted((self.of(entry, where) for entry in value), key=str)
        if isinstance(value, functools.partial):
            return {"partial": [self.of(part, where) for part in (value.func, value.args, value.keywords)]}
        if isinstance(value, types.MethodType):
            return [self.of(value.__func__, where), self.of(value.__self__, where)]
        if isinstance(value, types.FunctionType):
            return self._function(value, where)
        if isinstance(value, type):
            return self._class(value, where)
        if isinstance(value, nn.Module):
            return self._module(value, where)
        if inspect.isroutine(value):  # written in C: its module's version stands for it
            return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
        if hasattr(value, "__dict__") or hasattr(type(value), "__slots__"):
            return {"is": self._class(type(value), where), "has": self._attributes(value, where)}
        raise ConfigError(
            f"folder: {where} is a {type(value).__name__}, which has no fingerprint, so that verdicts could not be "
            "told from those of another: leave folder out, or keep it in a plain number, text or tensor"
        )

    def _module(self, module: nn.Module, where: str) -> Any:
        tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        return {
            "is": self._class(type(module), where),
            "tensors": {name: fingerprint.tree(tensor.detach()) for name, tensor in tensors.items()},
            "has": self._attributes(module, where, PRIVATE),
            "children": {name: self.of(child, f"{where}.{name}") for name, child in module.named_children()},
        }

    def _attributes(self, value: Any, where: str, but: Set[str] = frozenset()) -> Any:
        own = dict(getattr(value, "__dict__", {}))
        slots = getattr(type(value), "__slots__", ())
        own |= {n: getattr(value, n) for n in ([slots] if isinstance(slots, str) else slots) if hasattr(value, n)}
        kept = {name: entry for name, entry in sorted(own.items()) if name not in but and name != "__weakref__"}
        for name, entry in kept.items():
            if "hooks" in name and isinstance(entry, Mapping):  # their numbers are a process' own
                kept[name] = list(entry.values())
        return {name: self.of(entry, f"{where}.{name}") for name, entry in kept.items()}

    def _class(self, kind: type, where: str) -> Any:
        """A class by its name, and by its own code and its parents' where these are not installed with a version."""
        name = f"{kind.__module__}.{kind.__qualname__}"
        if _installed(kind.__module__):
            return name
        if id(kind) in self.met and kind in self.held:
            return {"again": name}
        self.met.setdefault(id(kind), len(self.met))
        self.held.append(kind)
        code = {}
        for own, value in sorted(vars(kind).items()):
            if own in ("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__firstlineno__"):
                continue
            value = getattr(value, "__func__", value)  # a class method's, a static method's
            if isinstance(value, property):
                value = [value.fget, value.fset, value.fdel]
            if inspect.isfunction(value) or isinstance(value, (*PLAIN, list, tuple, Mapping, Tensor)):
                code[own] = self.of(value, f"{where} ({kind.__qualname__}.{own})")
        return {"class": name, "code": code, "of": [self._class(one, where) for one in kind.__bases__]}

    def _function(self, call: types.FunctionType, where: str) -> Any:
        if _installed(call.__module__ or ""):
            return f"{call.__module__}.{call.__qualname__}"
        names = _names(call.__code__)
        read = {name: call.__globals__[name] for name in names if name in call.__globals__}
        return {
            "code": _code(call.__code__),
            "defaults": self.of((call.__defaults__, call.__kwdefaults__), where),
            "cells": [self.of(cell.cell_contents, where) for cell in call.__closure__ or () if _filled(cell)],
            "reads": {name: self.of(value, f"{where} ({name})") for name, value in sorted(read.items())},
        }

    def _file(self, name: str) -> str:
        """A Python module: one that is not installed with a version by its source."""
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if (
            _installed(name)
            or file is None
            or "site-packages" in file
            or name.partition(".")[0] in sys.stdlib_module_names
        ):
            return f"{name} {getattr(module, '__version__', '')}"
        return f"{name} {fingerprint.checksum(Path(file))}"


def _installed(module: str) -> bool:
    top = module.partition(".")[0]
    return top in INSTALLED or top in sys.stdlib_module_names


def _names(code: types.CodeType) -> set[str]:
    """All names of globals and attributes that a function reads, and those in it."""
    inside = [_names(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return set(code.co_names).union(*inside)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # not assigned yet
        return False


def _code(code: types.CodeType) -> Any:
    """Of a function's code all but where it stands."""
    consts = [_code(one) if isinstance(one, types.CodeType) else repr(one) for one in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), consts]
