"""Weights & Biases, kept at arm's length: what fails or hangs there costs a run one line of text, nothing else."""

from __future__ import annotations

import hashlib
import importlib.util
import netrc
import os
import queue
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from robust_train import disk
from robust_train.read import yaml
from robust_train.settings.tracking import Tracking

INIT_SECONDS = 60.0  # that wandb.init may take
FINISH_SECONDS = 60.0  # that the last uploads may take; what is left lies in the folder, for `wandb sync`
WAITING = 100_000  # calls that may wait for W&B before it counts as hung
TRUE = ("1", "true", "t", "yes", "y", "on")
MODES: dict[str, Literal["online", "offline", "off"]] = {  # what WANDB_MODE may say, and what it means here
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "off",
}
INSTALL = 'pip install -e ".[track]" -c constraints.txt'
ON_DISK = "metrics.jsonl holds everything; `python -m tools.wandb_replay` makes a W&B run of it"


class Session:
    """One W&B run, spoken to directly: every method raises what W&B raises. Offline, each start writes a segment.

    `update` is the axis of every chart. Online, the same id goes on in the same W&B run; updates that are redone
    after a kill are logged there again, with the same values.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        identity: str,
        config: Mapping[str, Any],
        tracking: Tracking,
        mode: Literal["online", "offline"],
        kind: str | None = None,
    ) -> None:
        import wandb

        wished: dict[str, Any] = {
            "init_timeout": INIT_SECONDS,
            "finish_timeout": FINISH_SECONDS,
            "silent": True,
            "console": "off",  # the bar and the log are ours
            "disable_git": True,
            "save_code": False,
            "use_dot_wandb": False,
        }
        known = {key: value for key, value in wished.items() if key in wandb.Settings.model_fields}
        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = wandb
        self._run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            name=name,
            id=identity,
            tags=list(tracking.tags),
            job_type=kind,
            dir=str(folder),
            mode=mode,
            resume="allow" if mode == "online" else None,
            config=dict(config),
            settings=wandb.Settings(**known),
        )
        self._run.define_metric("update")
        self._run.define_metric("*", step_metric="update")

    def log(self, record: Mapping[str, Any]) -> None:
        """One row of the history; `update` is among its keys."""
        self._run.log(dict(record))

    def picture(self, update: int, name: str, path: Path) -> None:
        """A PNG, under `pictures/NAME`."""
        self._run.log({"update": update, f"pictures/{name}": self._wandb.Image(str(path))})

    def line(self, name: str, across: str, points: Sequence[tuple[float, float]]) -> None:
        """A chart of (across, value) beside those of updates."""
        self._run.define_metric(across)
        self._run.define_metric(name, step_metric=across)
        for at, value in points:
            self._run.log({across: at, name: value})

    def page(self, name: str, path: Path) -> None:
        """An HTML page as it is: nothing is added to it that would be asked of the network."""
        self._run.log({name: self._wandb.Html(path.read_text(encoding="utf-8"), inject=False)})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Figures of the run's summary."""
        self._run.summary.update(dict(values))

    def finish(self, failed: bool) -> None:
        """Wait for the last writes and uploads."""
        self._run.finish(exit_code=1 if failed else 0)


class Tracker:
    """A `Session` on a thread of its own, behind a queue: calls return at once and never raise.

    The first failure is said in one line and ends the tracking; so do `WAITING` calls that wait for a W&B that hangs.
    config: the run as YAML, asked for only where W&B is used. kind: what W&B calls the job's type. otherwise: what is
    said of where everything is, should W&B fail.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        config: Callable[[], str],
        tracking: Tracking,
        say: Callable[[str], None],
        kind: str | None = None,
        otherwise: str = ON_DISK,
    ) -> None:
        self.folder, self.name, self.config, self.tracking, self.say = folder, name, config, tracking, say
        self.kind, self.otherwise = kind, otherwise
        self._calls: queue.Queue[Callable[[Session], None] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._failed = False  # W&B has
        self._ending = False  # the run has
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin, in the background, and say so."""
        mode, why = chosen(self.tracking.wandb)
        if self.tracking.wandb != "off":
            self.say(f"W&B: {mode}" + (f" ({why})" if why else ""))
        if mode != "off":
            self._thread = threading.Thread(target=self._work, args=(mode,), name="wandb", daemon=True)
            self._thread.start()

    def log(self, record: Mapping[str, Any]) -> None:
        """A row of the history."""
        kept = dict(record)
        self._ask(lambda session: session.log(kept))

    def picture(self, update: int, name: str, path: Path) -> None:
        """A picture that lies at `path`."""
        self._ask(lambda session: session.picture(update, name, path))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Figures of the summary."""
        kept = dict(values)
        self._ask(lambda session: session.summary(kept))

    def line(self, name: str, across: str, points: Sequence[tuple[float, float]]) -> None:
        """A chart with an axis of its own."""
        self._ask(lambda session: session.line(name, across, points))

    def page(self, name: str, path: Path) -> None:
        """An HTML page that lies at `path`."""
        self._ask(lambda session: session.page(name, path))

    def close(self, failed: bool) -> None:
        """Hand over what waits, for at most as long as a start and a finish may take."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._ending = failed
        self._put(None)
        thread.join(INIT_SECONDS + FINISH_SECONDS)
        if thread.is_alive():
            self._trouble(f"no answer for {INIT_SECONDS + FINISH_SECONDS:.0f} s")

    def _ask(self, call: Callable[[Session], None]) -> None:
        if self._thread is not None:
            self._put(call)

    def _put(self, call: Callable[[Session], None] | None) -> None:
        if self._failed:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._trouble(f"{WAITING} calls wait for an answer")

    def _work(self, mode: Literal["online", "offline"]) -> None:
        try:
            config = yaml.read(self.config())
            own = identity(self.folder, self.name)
            session = Session(self.folder, self.name, own, config, self.tracking, mode, self.kind)
            while (call := self._calls.get()) is not None:
                call(session)
            session.finish(self._ending)
        except Exception as error:  # whatever W&B raises: a run does not depend on it
            self._trouble(f"{type(error).__name__}: {error}")

    def _trouble(self, what: str) -> None:
        with self._lock:
            first, self._failed = not self._failed, True
        if first:
            self.say(f"W&B: {' '.join(what.split())}. The run goes on without it; {self.otherwise}")


def chosen(wish: str) -> tuple[Literal["online", "offline", "off"], str]:
    """Where W&B writes, and why. "auto": off by WANDB_DISABLED; else what WANDB_MODE says, offline where that is none
    of W&B's words; else online with a key, offline without. Off unless wandb is installed."""
    if wish == "off":
        return "off", ""
    if importlib.util.find_spec("wandb") is None:
        return "off", f"wandb is not installed: {INSTALL}"
    if wish == "online":
        return "online", ""
    if wish == "offline":
        return "offline", "the run says so"
    if os.environ.get("WANDB_DISABLED", "").strip().lower() in TRUE:
        return "off", f"WANDB_DISABLED={os.environ['WANDB_DISABLED']}"
    said = os.environ.get("WANDB_MODE", "").strip().lower()
    if said in MODES:
        return MODES[said], f"WANDB_MODE={said}"
    if said:
        return "offline", f"WANDB_MODE={said} is none of {', '.join(MODES)}"
    return ("online", "") if has_key() else ("offline", "no key: neither WANDB_API_KEY nor a netrc entry")


def has_key() -> bool:
    """Whether WANDB_API_KEY or a netrc entry for W&B's host is there. The key itself is not kept."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    candidates = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for candidate in candidates:
        try:
            if netrc.netrc(os.path.expanduser(candidate)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def identity(folder: Path, name: str) -> str:
    """The job's W&B id, 16 hexadecimal digits, from folder/wandb-id; made at the first start and the same ever after.

    Made of folder, name, host and time: a run begun anew in an emptied folder, or in a folder of the same name on
    another machine, is another W&B run.
    """
    path = folder / "wandb-id"
    if not path.exists() or not path.read_text().strip():
        made_of = f"{folder.resolve()}\n{name}\n{socket.gethostname()}\n{time.time_ns()}"
        disk.write_text(path, hashlib.blake2b(made_of.encode(), digest_size=8).hexdigest() + "\n")
    return path.read_text().strip()
