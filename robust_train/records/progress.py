"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TextIO

from robust_train.settings.tracking import Shown


class Expected(Protocol):
    """What Progress asks of a forecast; its text is said once, its figures are kept current."""

    @property
    def batch(self) -> int:
        """Images an update."""

    @property
    def devices(self) -> int:
        """Devices that work at once."""

    @property
    def rate(self) -> float | None:
        """Cost or energy of a device-hour."""

    @property
    def unit(self) -> str:
        """The unit of `rate`."""


LINE_SECONDS = 10.0  # between two plain lines
WINDOW = 200  # updates whose mean time is the pace


class Pace:
    """The time an update takes: the mean over the last `WINDOW` of this start, validation and checkpoints included."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[int, float]] = deque(maxlen=WINDOW + 1)

    def add(self, update: int) -> None:
        """An update was done. The first is not timed: it starts workers and compiles. A rollback starts anew."""
        if self._seen and update < self._seen[-1][0]:
            self._seen.clear()
        if not self._seen or update > self._seen[-1][0]:
            self._seen.append((update, self._clock()))

    def seconds(self) -> float | None:
        """Seconds an update; None until two were done."""
        if len(self._seen) < 2:
            return None
        (first, began), (last, ended) = self._seen[0], self._seen[-1]
        return (ended - began) / (last - first)


class Progress:
    """What a run shows of itself while it runs: updates, ETA, loss, accuracies, images/s, forecast.

    Everything goes to `stream` (stderr), so that a command's results on stdout stay clean.
    """

    def __init__(
        self,
        name: str,
        updates: int,
        mode: Shown = "auto",
        forecast: Expected | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.updates, self.forecast = name, updates, forecast
        self.stream = stream if stream is not None else sys.stderr
        self.mode = mode if mode != "auto" else ("bar" if self.stream.isatty() else "lines")
        self.pace = Pace(clock)
        self._clock = clock
        self._done = 0
        self._told = False  # whether the last update has had its line
        self._spoke: float | None = None
        self._figures: dict[str, str] = {}
        self._bar: Any = None
        self._task: Any = None

    def start(self) -> None:
        """Draw the bar, where there is one."""
        if self.mode != "bar":
            return
        from rich.console import Console, RenderableType
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.text import Text

        class Both(Bar):
            """The bar, and below it the figures, which wrap where a terminal is narrow."""

            def get_renderables(self) -> Iterable[RenderableType]:
                yield self.make_tasks_table(self.tasks)
                for task in self.tasks:
                    yield Text(task.fields["figures"])

        self._bar = Both(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=40),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            console=Console(file=self.stream),
            refresh_per_second=2,
        )
        self._bar.start()
        self._task = self._bar.add_task(self.name, total=self.updates, figures="")

    def add(self, update: int, metrics: Mapping[str, Any]) -> None:
        """The metrics of an update: its loss and every accuracy are shown."""
        if update < self.updates:  # the evaluation at the end counts as no update
            self.pace.add(update)
        if self.mode == "off":
            return
        self._done = min(update + 1, self.updates)
        losses = sorted((key for key in metrics if key.split("/")[0] == "loss"), key=lambda key: (len(key), key))
        accuracies = sorted(key for key in metrics if key.startswith("accuracy/"))
        for key in (*losses[:1], *accuracies):
            self._figures[key] = f"{key} {metrics[key]:.4g}"
        if self._told and update + 1 >= self.updates and self.mode == "lines":
            if accuracies:  # of its validation, of the evaluation at the end: the update itself is not said again
                news = ", ".join(self._figures[key] for key in accuracies)
                print(f"after the last update: {news}", file=self.stream, flush=True)
            return
        self._told = update + 1 >= self.updates
        self._show(last=self._told)

    def time(self, timing: Mapping[str, float]) -> None:
        """The rate of an update, `images/s`, is shown."""
        if "images/s" in timing:
            self._figures["images/s"] = f"{float(timing['images/s']):,.0f} images/s"

    def say(self, text: str) -> None:
        """One line of text."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:  # also where progress is off: what is said is said once
            print(text, file=self.stream, flush=True)

    def stop(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def words(self) -> str:
        """Figures, time left and forecast, after one another."""
        words = list(self._figures.values())
        if (seconds := self.pace.seconds()) is not None:
            left = seconds * (self.updates - self._done)
            if self.forecast is not None and "images/s" not in self._figures:
                words.append(f"{self.forecast.batch / seconds:,.0f} images/s")
            if left > 0:
                words.append(f"{duration(left)} left")
            if left > 0 and self.forecast is not None:
                hours = left * self.forecast.devices / 3600
                words.append(f"{hours:.2g} device-hours")
                if self.forecast.rate is not None:
                    words.append(f"{hours * self.forecast.rate:.3g} {self.forecast.unit}")
        return ", ".join(words)

    def _show(self, last: bool) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, figures=self.words())
        elif self.mode == "lines":
            now = self._clock()
            if last or self._spoke is None or now - self._spoke >= LINE_SECONDS:
                self._spoke = now
                share = 100 * self._done // max(self.updates, 1)
                print(f"update {self._done}/{self.updates} ({share} %), {self.words()}", file=self.stream, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 10 s, 5 h 02 min, 3 d 04 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
