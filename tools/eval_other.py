"""Any registered evaluator by its name: tools.eval --evaluator NAME [key=value ...]."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from robust_train.subject import Subject


def flags(group: argparse._ArgumentGroup) -> None:
    """What is asked of other evaluators."""
    group.add_argument(
        "--evaluator",
        nargs="+",
        metavar="NAME",
        help="any other by its name, and its fields: lipschitz threat.eps=8/255 (python -m robust_train --list "
        "evaluators)",
    )


def judge(
    asked: argparse.Namespace,
    subject: Subject,
    device: str,
    words: list[str],
    deal: Callable[..., Any],
    resumed: Callable[..., list[str]],
) -> None:
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

    began = time.monotonic()
    name, *settings = asked.evaluator
    threat = subject.threat  # reads the run, whose own modules may bring evaluators
    known = {field.name for field in fields(cast(Any, evaluators[name]))}
    tree: dict[str, Any] = {"use": name, "chunk": asked.chunk, "images": asked.images}
    if "threat" in known and threat is not None:
        tree["threat"] = tree_of(threat)  # the run's own, where it has one
    evaluator = parse(Evaluator, overrides.apply(tree, settings), "evaluator", "the command line")  # type: ignore[type-abstract]
    target = Path(asked.json) if asked.json else subject.home / f"eval-{name}.json"
    writable(target.parent, "--json FILE")
    networks, data = subject.networks(device), subject.images()
    store = Store(subject.home / "eval", subject.fingerprints)
    dealt = deal(asked, subject, device)
    with telling() as tell:
        found = evaluate(evaluator, networks, data, asked.seed, device, store, dealt, tell, asked.workers)
    notes = resumed(store)
    report = evaluator.report(found)
    show_tables(subject.title, report)
    tree = {
        "command": shlex.join(["python", "-m", "tools.eval", *words]),
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
