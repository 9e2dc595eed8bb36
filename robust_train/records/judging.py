"""The progress of an evaluation: a bar with time left and the accuracies so far; lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robust_train.evaluate.work import Tell

LINES = 10.0  # seconds between two lines


@contextmanager
def telling() -> Iterator[Tell]:
    """Who shows how far an evaluation is.

    The bar counts forward passes at most, an image that has fallen as done: it is late to move at first, never too
    hopeful by more than what falls later.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    left = (TimeRemainingColumn(), TextColumn("{task.fields[so_far]}"))
    with Progress(*columns, *left, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("judging", total=1.0, so_far="")
        began = spoke = time.monotonic()
        found: float | None = None  # what was done before the first word: another run's, which took this one no time

        def tell(now: str, share: float, so_far: str) -> None:
            nonlocal spoke, found
            found = share if found is None else found
            progress.update(task, completed=share, description=now, so_far=so_far)
            if not console.is_terminal and time.monotonic() - spoke >= LINES:
                spoke = time.monotonic()
                rest = f"about {(spoke - began) * (1 - share) / (share - found):.0f} s left; " if share > found else ""
                print(f"{now}: {share:.0%}, {rest}{so_far}", file=sys.stderr, flush=True)

        yield tell
