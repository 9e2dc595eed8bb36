"""Make one W&B run of a run's folder, however often the run was killed and started.

    python -m tools.wandb_replay runs/demo [--project P] [--entity E] [--online]

Reads run.yaml, metrics.jsonl, timing.jsonl, pictures/ and summary.json, in the order of updates. Of an update that was
timed by several starts, the last counts. Each call makes a new W&B run; without --online it is written to
RUN_FOLDER/wandb, and `wandb sync` sends it.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import secrets
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robust_train.read import yaml
from robust_train.read.errors import ConfigError, DataError, main_guard
from robust_train.read.paths import Parser
from robust_train.records import jsonl
from robust_train.records.wandb import INSTALL, Session, identity
from robust_train.settings.tracking import Tracking

PICTURE = re.compile(r"(?P<name>.+)-(?P<update>\d+)\.png")


def replay(folder: Path, project: str | None = None, entity: str | None = None, online: bool = False) -> str:
    """Write the W&B run and return its id. Raises DataError where the folder holds no run."""
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(f"wandb is not installed: {INSTALL}")
    for needed in ("run.yaml", "metrics.jsonl"):
        if not (folder / needed).is_file():
            raise DataError(f"{folder} holds no {needed}: name the folder of a run that was started")
    run = yaml.read((folder / "run.yaml").read_text(), str(folder / "run.yaml"))
    said = run.get("records") or {}
    tracking = Tracking(
        project=project or said.get("project") or Tracking.project,
        entity=entity or said.get("entity"),
        tags=(*(said.get("tags") or ()), "replay"),
    )
    name = str(run.get("name", folder.name))
    new = f"{identity(folder, name)}-{secrets.token_hex(3)}"
    session = Session(folder, name, new, run, tracking, "online" if online else "offline")

    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in jsonl.read(folder / "metrics.jsonl"):
        rows[record["update"]].append(record)
    timed: dict[int, dict[str, Any]] = defaultdict(dict)
    for row in jsonl.read(folder / "timing.jsonl"):
        if "update" in row:
            timed[row["update"]] |= row
    pictures = defaultdict(list)
    for path in sorted((folder / "pictures").glob("*.png")):
        if found := PICTURE.fullmatch(path.name):
            pictures[int(found["update"])].append((found["name"], path))

    for update in sorted({*rows, *timed, *pictures}):
        for row in (*rows[update], *([timed[update]] if update in timed else [])):
            session.log(row)
        for picture, path in pictures[update]:
            session.picture(update, picture, path)
    if (folder / "summary.json").exists():
        session.summary(jsonl.parse((folder / "summary.json").read_bytes()))
    session.finish(failed=False)
    return new


@main_guard()
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    first, _, rest = (__doc__ or "").partition("\n")
    parser = Parser(
        prog="python -m tools.wandb_replay",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="the run's folder, with run.yaml in it")
    parser.add_argument("--project", help="W&B project (the run's own unless said)")
    parser.add_argument("--entity", help="W&B team or user (the run's own unless said)")
    parser.add_argument("--online", action="store_true", help="send it at once; needs a key")
    given = parser.parse_args(arguments)
    made = replay(given.folder, given.project, given.entity, given.online)
    where = "sent" if given.online else f"written to {given.folder / 'wandb'}; send it with `wandb sync`"
    print(f"W&B run {made}: {where}")


if __name__ == "__main__":
    main()
