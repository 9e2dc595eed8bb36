"""Adversarial images kept from an evaluation, and judged again: tools.eval --save-adversarial, --adversarial."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robust_train.evaluate.columns import Columns
    from robust_train.evaluate.robustness import Robustness
    from robust_train.nouns import Dataset
    from robust_train.subject import Subject

ATTACKED = ("attack", "steps", "step_size", "restarts", "curve", "checks")  # what says how an attack is made, by flag


def flags(group: argparse._ArgumentGroup) -> None:
    """What is asked of saved sets."""
    group.add_argument(
        "--adversarial",
        metavar="FILE",
        help="judge the adversarial images of a file in AutoAttack's form, checked again, in place of an attack",
    )
    group.add_argument(
        "--save-adversarial",
        metavar="FILE",
        help="write the adversarial images so, and what is known of them to FILE.json",
    )


def check(parser: argparse.ArgumentParser, found: argparse.Namespace) -> None:
    """Refuse what says nothing beside what else is asked for."""
    asked = [f"--{name}" for name in ("adversarial", "save-adversarial") if getattr(found, name.replace("-", "_"))]
    if len(asked) > 1:
        parser.error("--adversarial judges a set that is saved already: --save-adversarial would only write it again")
    if not asked:
        return
    if beside := next((name for name in ("shift", "corruptions", "evaluator") if getattr(found, name)), None):
        parser.error(f"{asked[0]} says nothing beside --{beside}")
    if found.threat and len(found.threat) > 1:
        parser.error(f"{asked[0]}: a set is of one threat model, and {len(found.threat)} are asked for")
    given = [name for name in ATTACKED if getattr(found, name) != parser.get_default(name)]
    if found.adversarial and given:
        parser.error(f"{' and '.join(_flag(name) for name in given)} says nothing beside --adversarial")


def evaluated(asked: argparse.Namespace, evaluation: Robustness, data: Dataset) -> Robustness:
    """The evaluation as it is, or with a saved set for its attack, or keeping its points for one."""
    from dataclasses import replace

    from robust_train.check import writable
    from robust_train.evaluate.adversarial_sets import replayed

    if asked.adversarial:
        return replayed(evaluation, asked.adversarial, data)
    if asked.save_adversarial:
        writable(Path(asked.save_adversarial).parent, "--save-adversarial FILE")
        return replace(evaluation, points=True)
    return evaluation


def written(asked: argparse.Namespace, subject: Subject, evaluation: Robustness, found: Columns) -> None:
    """Write the set that was asked for."""
    if not asked.save_adversarial:
        return
    from robust_train.evaluate.adversarial_sets import parts, save
    from robust_train.read.parse import tree_of

    (_, plan, _), ((tag, threat),) = evaluation.read(found), evaluation.tagged
    about = {
        "attacks": [tree_of(trial.attack) for trial in plan.of("attack", tag)],
        "seed": asked.seed,
        "model": subject.title,
        "weights": subject.source,
    }
    save(asked.save_adversarial, parts(evaluation, found, tag), *found.rows(), threat, about)
    print(f"adversarial images: {asked.save_adversarial}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
