"""The progress of an evaluation: a bar with time left and the accuracies so far; lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robust_train.evaluate.robustness import Watch
    from robust_train.evaluate.work import Found, Piece, Plan, Store

LINES = 10.0  # seconds between two lines
Tell = Callable[[str, float, str], None]
"""Told what is done just now, which share of all work is done (0 to 1), and the accuracies so far."""


@contextmanager
def telling() -> Iterator[Tell]:
    """Who shows how far an evaluation is."""
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


@contextmanager
def watching(images: int) -> Iterator[Watch]:
    """Who shows the pieces of an evaluation of so many images as they come.

    The bar counts the attacks' forward passes at most, an image that has fallen as done: it is late to move at first,
    never too hopeful by more than what falls later.
    """
    with telling() as tell:

        def watch(at: Piece, found: Found, plan: Plan, store: Store) -> None:
            tell(f"{at[1]}, chunk {at[0]}", done(plan, store, images), accuracies(plan, store))

        yield watch


def done(plan: Plan, store: Store, images: int) -> float:
    """The share of the work that is done, counted in forward passes at most."""
    whole = sum(trial.cost() * min(trial.images or images, images) for trial in plan.trials)
    costs = {trial.name: trial.cost() for trial in plan.trials}
    return sum(costs[name] * len(found.sample) for (_, name), found in store.done.items()) / max(whole, 1.0)


def accuracies(plan: Plan, store: Store) -> str:
    """What stands so far, of the images that each row of attacks is done with."""
    said = []
    for tag in dict.fromkeys(trial.threat for trial in plan.trials):
        row = plan.of("attack", tag) if tag else [plan.trials[0]]
        columns = [found.column for (_, name), found in store.done.items() if row and name == row[-1].name]
        count = sum(len(column.right) for column in columns)
        if count:
            share = sum(float(column.right.sum()) for column in columns) / count
            said.append(f"{tag or 'clean'} {share:.1%} of {count:,}")
    return ", ".join(said)
