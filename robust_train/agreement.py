"""What all ranks of a run must see alike before its first update, found by one gather and named.

Without it a rank that sees another checkpoint, folder, data set or version hangs in a collective that the others are
not in, or trains on. The newest checkpoint is the leading rank's; the others wait LAG seconds until they see it too,
since shared file systems show what is new late.
"""

from __future__ import annotations

import hashlib
import platform
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import distributed

from robust_train import checkpoint, disk
from robust_train.engines.place import join
from robust_train.nouns import Place
from robust_train.ownership import unlike
from robust_train.read import yaml
from robust_train.read.errors import ConfigError, RunError
from robust_train.read.parse import difference
from robust_train.run import Run

LAG = 30.0  # seconds that a shared file system may lag behind
LIBRARIES = ("torch", "timm", "numpy", "deepspeed", "pillow")
NONCE = "meeting"  # a file by which ranks know that they see one folder


@dataclass(frozen=True)
class Seen:
    """What one rank sees. done: the summary, where the run is done. nonce: what the leading rank wrote for all."""

    node: str
    refused: RunError | None
    run: str
    versions: dict[str, str]
    data: dict[str, str]
    newest: str | None
    done: dict[str, Any]
    nonce: str


def agreed(run: Run, place: Place, prepared: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], Path | None]:
    """(the summary of a run that is done, else {}; the checkpoint to go on from), the same on all ranks.

    prepared: makes a rank ready and gives the summary where there is one. Raises ConfigError that names the nodes, or
    what a rank was refused with.
    """
    if place.world == 1:
        return prepared(), checkpoint.newest(run.path)
    join(place)
    seen = gathered(look(run, place, prepared), place)
    first = seen[0]
    if (refusal := refused(seen)) is not None:
        raise refusal
    if lines := disagreements(seen):
        raise ConfigError("the ranks of this run do not see the same:\n  " + "\n  ".join(lines))
    if first.done:
        return first.done, None
    newest = None if first.newest is None else run.path / "checkpoints" / first.newest
    unseen = [line for line in gathered(waited(run, place, first.nonce, newest), place) if line]
    if place.leads:
        (run.path / NONCE).unlink(missing_ok=True)
    if unseen:
        raise ConfigError("not every node sees the run's folder:\n  " + "\n  ".join(unseen))
    return {}, newest


def look(run: Run, place: Place, prepared: Callable[[], dict[str, Any]]) -> Seen:
    """What this rank sees; a refusal is seen too."""
    nonce, done, data, newest, trouble = "", dict[str, Any](), dict[str, str](), None, None
    try:
        done = prepared()
        if not done:
            data = run.data.known()
        if place.leads and not done:
            nonce = f"{time.time_ns()}"
            disk.write_text(run.path / NONCE, nonce)
            found = checkpoint.newest(run.path)
            newest = None if found is None else found.name
    except RunError as error:
        trouble = error
    return Seen(socket.gethostname(), trouble, run.dump(), versions(), data, newest, done, nonce)


def refused(seen: list[Seen]) -> RunError | None:
    """What the first rank that was refused says; where not all were, by its node."""
    found = [(rank, one) for rank, one in enumerate(seen) if one.refused is not None]
    if not found:
        return None
    rank, one = found[0]
    assert one.refused is not None
    if len(found) == len(seen):
        return one.refused
    return type(one.refused)(f"rank {rank} on node {one.node}: {one.refused}")


def disagreements(seen: list[Seen]) -> list[str]:
    """A line for each thing that a rank sees otherwise than the leading one."""
    first, lines = seen[0], []
    for rank, one in enumerate(seen[1:], 1):
        who = f"rank {rank} on node {one.node}, against rank 0 on node {first.node}"
        if one.run != first.run:
            changed = difference(yaml.read(first.run), yaml.read(one.run))
            lines += [f"{who}: run.{line}" for line in changed]
        for name in sorted({*first.versions, *one.versions}):
            mine, theirs = (told.versions.get(name, "not there") for told in (first, one))
            if mine != theirs:
                lines.append(f"{who}: {name} is {theirs}, not {mine}")
        if bool(one.done) == bool(first.done):
            lines += [f"{who}: data: {line}" for line in unlike(first.data, one.data)]
    return lines


def waited(run: Run, place: Place, nonce: str, newest: Path | None) -> str:
    """What this rank still does not see of the leading one's folder after LAG seconds; nothing where it sees all."""
    deadline = time.monotonic() + LAG
    while True:
        missing = _missing(run.path / NONCE, nonce, newest)
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    where = f"rank {place.rank} on node {socket.gethostname()} does not see"
    return f"{where} {missing}: name one that every node shares (folder=/shared/runs/NAME)" if missing else ""


def _missing(path: Path, nonce: str, newest: Path | None) -> str:
    try:
        if path.read_text(encoding="utf-8") != nonce:
            return f"what rank 0 writes into {path.parent}"
    except OSError:
        return f"what rank 0 writes into {path.parent}"
    return "" if newest is None or (newest / "manifest.json").is_file() else f"the checkpoint {newest} that rank 0 sees"


def versions() -> dict[str, str]:
    """Of Python, of the libraries that decide numbers, and of this project's own source."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    code, own = hashlib.sha256(), Path(__file__).parent
    beside = {own / "launch", own / "tools"}  # links in a tree, folders where installed: alike for both
    for path in sorted(path for path in own.rglob("*.py") if not beside.intersection(path.parents)):
        code.update(path.relative_to(own).as_posix().encode() + path.read_bytes())
    return {**found, "robust_train's source": code.hexdigest()[:12]}


def gathered(value: Any, place: Place) -> list[Any]:
    """One value a rank to the list of all ranks', on every rank."""
    values: list[Any] = [None] * place.world
    distributed.all_gather_object(values, value)
    return values
