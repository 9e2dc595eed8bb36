"""Evaluators: a network and data to a report. Called, it judges any module: `robust_train.evaluate(module, ...)`."""

import sys
from types import ModuleType
from typing import Any


class _Door(ModuleType):
    """The package itself, which may be called: its name is that of what it is for."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        """As robust_train.door.call.evaluate, which is imported when it is first needed."""
        from robust_train.door.call import evaluate

        return evaluate(*given, **named)


sys.modules[__name__].__class__ = _Door
