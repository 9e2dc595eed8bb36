"""What is seen of many runs at once: a bar for each at work and one for all; lines where there is no terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from robust_train.records import jsonl
from robust_train.records.progress import Pace, duration

if TYPE_CHECKING:
    from robust_train.run import Run

TAIL = 8192  # bytes: more than a line of metrics.jsonl has


class Board:
    """How far runs are, as their metrics.jsonl say it. A context manager; everything goes to `stream` (stderr)."""

    def __init__(
        self,
        runs: Mapping[str, Run],
        done: Mapping[str, Any],
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._runs, self._clock = runs, clock
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._left = [name for name in runs if name not in done]
        self._lost = 0
        self._updates = {name: run.updates if name in done else updates(run) for name, run in runs.items()}
        self._begun = dict(self._updates)  # what was there before this start, which took it no time
        self._began: dict[str, float] = {}
        self._paces: dict[str, Pace] = {}
        self._bars: dict[str, Any] = {}
        self._at = clock()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f}"))
        self._progress = Progress(
            *columns,
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            refresh_per_second=2,
            redirect_stdout=False,
        )
        self._all = self._progress.add_task("all", total=sum(run.updates for run in runs.values()), left="")
        for name in done:
            self.say(f"{name}: done before")

    def __enter__(self) -> Board:
        self._progress.start()
        self.show()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line, above the bars where there are some."""
        self._progress.console.print(text, markup=False, soft_wrap=True)

    def started(self, name: str) -> None:
        """A run is at work from now on."""
        run = self._runs[name]
        self._began.setdefault(name, self._clock())
        self._updates[name] = updates(run)
        self._paces[name] = Pace(self._clock)
        if name in self._bars:
            self._progress.remove_task(self._bars[name])
        self._bars[name] = self._progress.add_task(name, total=run.updates, completed=self._updates[name], left="")
        self.say(f"{name}: started{f' from update {self._updates[name]:,}' if self._updates[name] else ''}")

    def ended(self, name: str, summary: Mapping[str, Any]) -> None:
        """A run is done."""
        self._gone(name)
        self._updates[name] = self._runs[name].updates
        found = [
            f"{key.removeprefix('accuracy/')} {100 * value:.1f} %"
            for key, value in summary.items()
            if key.startswith("accuracy/")
        ]
        took = duration(self._clock() - self._began[name])
        self.say(f"{name}: {', '.join(['done', *found])}, {took}; {self._state()}")

    def failed(self, name: str, reason: str, tried: int, tries: int, again: bool) -> None:
        """A run has failed, for good or to be started `again`."""
        self.say(
            f"{name}: failed at update {updates(self._runs[name]):,} (try {tried} of {tries}): {reason}; "
            + ("it is started again" if again else "it is given up")
        )
        if not again:
            self._gone(name)
            self._lost += 1
            self._updates[name] = self._begun[name] = self._runs[name].updates  # nothing of it is left to do
            self.say(self._state())

    def show(self) -> None:
        """Look how far each run is, and move the bars."""
        for name in self._paces:
            run = self._runs[name]
            now = self._updates[name] = updates(run)
            if now:
                self._paces[name].add(now - 1)
            left = self._rest(name)
            words = "evaluation" if now == run.updates else "" if left is None else f"{duration(left)} left"
            self._progress.update(self._bars[name], completed=now, left=words)
        self._progress.update(self._all, completed=sum(self._updates.values()), left=self._state())

    def left(self) -> float | None:
        """Seconds until all is done, at the pace since this start; None where nothing was done yet, 0 at the end."""
        made = sum(self._updates.values()) - sum(self._begun.values())
        if made <= 0:
            return None
        rest = sum(run.updates for run in self._runs.values()) - sum(self._updates.values())
        longest = max((self._rest(name) or 0.0 for name in self._paces), default=0.0)
        return max((self._clock() - self._at) * rest / made, longest)

    def _rest(self, name: str) -> float | None:
        """Seconds that a run at work still takes, by its own pace."""
        each = self._paces[name].seconds()
        return None if each is None else each * (self._runs[name].updates - self._updates[name])

    def _state(self) -> str:
        left = self.left()
        done = len(self._runs) - len(self._left) - self._lost
        words = [f"{done} of {len(self._runs)} done", *([f"{self._lost} failed"] if self._lost else [])]
        return ", ".join([*words, *([f"about {duration(left)} left"] if left else [])])

    def _gone(self, name: str) -> None:
        """A run is no longer at work, and will not be again."""
        self._left.remove(name)
        self._paces.pop(name, None)
        if name in self._bars:
            self._progress.remove_task(self._bars.pop(name))


def updates(run: Run) -> int:
    """Updates that the run's metrics.jsonl tells of, by the last of its whole lines; the evaluation counts as none."""
    try:
        with (run.path / "metrics.jsonl").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            whole = [line for line in file.readlines() if line.endswith(b"\n")]
        return min(int(jsonl.parse(whole[-1])["update"]) + 1, run.updates) if whole else 0
    except (OSError, ValueError, KeyError):  # not there yet, or being cut just now
        return 0
