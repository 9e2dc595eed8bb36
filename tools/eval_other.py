"""Any registered evaluator by its name, and its fields: how the network is judged is the evaluator's own."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import Any, cast

from robust_train.read.errors import main_guard
from robust_train.tools import shared

EPILOG = f"""examples
  python -m tools.eval evaluator lipschitz runs/demo threat.eps=0.1 steps=20
  python -m tools.eval evaluator lipschitz --model resnet50 --weights r50.pth --data 'val-*.tar' threat.eps=4/255
  python -m tools.eval evaluator mine runs/demo --uses my_lab.judging
      one of your own: my_lab.judging registers it
  python -m robust_train --list evaluators
      which there are, and their fields

fields are written NAME=VALUE, dotted, in YAML. A field `threat` is the run's own where nothing is said.

{shared.GOES_ON}"""


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = shared.parser("eval evaluator", __doc__, EPILOG)
    how = parser.add_argument_group("judged how")
    how.add_argument("evaluator", metavar="NAME", help="of the evaluator")
    shared.of_network(parser.add_argument_group("what is judged"))
    shared.of_images(parser.add_argument_group("on which images"))
    how.add_argument("settings", nargs="*", metavar="FIELD=VALUE", help="its fields: threat.eps=8/255 steps=20")
    how.add_argument("--seed", type=int, default=0, help="of everything drawn (%(default)s)")
    out = parser.add_argument_group("where and whither")
    shared.of_devices(out)
    shared.of_report(out, "eval-NAME.json")
    found, more = parser.parse_known_args(words)
    strange = [word for word in more if word.startswith("-") or "=" not in word]
    if strange:
        parser.error(f"{strange[0]} is no flag and no FIELD=VALUE of the evaluator")
    found.settings += more
    if found.model is not None and found.checkpoint is not None:  # FIELD=VALUE alone
        found.settings, found.checkpoint = [found.checkpoint, *found.settings], None
    shared.check(parser, found, "data")
    return found


@main_guard()
def main(words: list[str]) -> None:
    """Judge, show, and write the report."""
    from dataclasses import fields

    from robust_train.check import writable
    from robust_train.evaluate.report import circumstances, put
    from robust_train.evaluate.store import Store
    from robust_train.evaluate.work import evaluate
    from robust_train.nouns import Evaluator
    from robust_train.read import overrides
    from robust_train.read.parse import parse, tree_of
    from robust_train.read.registry import evaluators
    from robust_train.records.judging import telling
    from robust_train.records.tables import show_tables

    asked, began = arguments(words), time.monotonic()
    device, subject, name = shared.device_of(asked), shared.subject_of(asked), asked.evaluator
    threat = subject.threat  # reads the run, whose own modules may bring evaluators
    known = {field.name for field in fields(cast(Any, evaluators[name]))}
    tree: dict[str, Any] = {"use": name, "chunk": asked.chunk, "images": asked.images}
    if "threat" in known and threat is not None:
        tree["threat"] = tree_of(threat)  # the run's own, where it has one
    evaluator = parse(Evaluator, overrides.apply(tree, asked.settings), "evaluator", "the command line")  # type: ignore[type-abstract]
    target = Path(asked.json) if asked.json else subject.home / f"eval-{name}.json"
    writable(target.parent, "--json FILE")
    networks, data = subject.networks(device), subject.images()
    store = Store(subject.home / "eval", subject.fingerprints)
    dealt = shared.deal(asked, subject, device)
    with telling() as tell:
        found = evaluate(evaluator, networks, data, asked.seed, device, store, dealt, tell, asked.workers)
    notes = shared.pixels_of(data) + shared.resumed(store)
    report = evaluator.report(found)
    show_tables(subject.title, report)
    for note in notes:
        print(f"note: {note}")
    tree = {
        "command": shlex.join(["python", "-m", "tools.eval", "evaluator", *words]),
        "model": subject.title,
        "weights": subject.source,
        "identity": subject.identity(data),
        "images": len(found.rows()[0]),
        "evaluation": tree_of(evaluator),
        "seed": asked.seed,
        **report.tree(data.names()),
        "notes": notes,
        **circumstances(device, began),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    replaced = put(tree, target)
    print(f"report: {target}", *replaced, sep="\n")
