"""How well a network holds: under attack, under corruptions, on other images, on what was made for other networks."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from robust_train.read.errors import ConfigError, main_guard, nearest

COMMANDS = {
    "attack": "accuracy under attacks: their worst, curves, classes, flags, pictures, a page",
    "saved": "the same on adversarial images that were saved, checked again",
    "corruptions": "accuracy under ImageNet-C's corruptions, made here or stored; mCE",
    "shift": "accuracy on ImageNet-A, -R, -Sketch, -V2, ObjectNet, ... and what was lost",
    "transfer": "several networks tried on what was made for each of them",
    "evaluator": "any other evaluator by its name",
}
MODULES = {"shift": "eval_shifts", "evaluator": "eval_other"}  # the others: eval_NAME

HELP = """usage: python -m tools.eval [COMMAND] CHECKPOINT ...

{what}

commands (attack where none is named)
{commands}
  python -m tools.eval COMMAND --help says all of one

examples
  python -m tools.eval runs/demo
      the run's best checkpoint (else its newest), on its own validation images, threat model and eps, by PGD-50
  python -m tools.eval attack runs/demo --attack autoattack
      the field's measure
  python -m tools.eval attack --model resnet50 --weights r50.safetensors --data 'val-{{0000..0049}}.tar' --eps 4/255
      a timm model with local weights
  python -m tools.eval attack runs/demo --save-adversarial set.pth
  python -m tools.eval saved runs/other --adversarial set.pth
      another network on the images that were made for the first
  python -m tools.eval corruptions runs/vit --frost /data/frost
  python -m tools.eval shift runs/vit --sets imagenet-a=/data/imagenet-a imagenet-r=/data/imagenet-r
  python -m tools.eval transfer runs/a runs/b runs/c
  python -m tools.eval evaluator lipschitz runs/demo threat.eps=0.1 steps=20

every command
  writes a table, a report as JSON, and what it found piece by piece, so that it goes on where it was killed. It takes a
  run's folder, a checkpoint, an ensemble's file, or --model and its --weights.

from Python (docs/python.md)
  report = robust_train.evaluate(module, images, labels, threats={{"linf": 8 / 255}}, attack="autoattack")
"""


def told() -> str:
    """What there is."""
    lines = [f"  {name:<12} {what}" for name, what in COMMANDS.items()]
    return HELP.format(what=__doc__, commands="\n".join(lines))


@main_guard()
def main(words: list[str]) -> None:
    """Do what the first word names; attack, where it names a checkpoint."""
    if words in (["-h"], ["--help"]):
        print(told())
        return
    first = words[0] if words else ""
    if not first.startswith("-") and first not in COMMANDS and not Path(first).exists() and nearest(first, COMMANDS):
        raise ConfigError(f"{first!r} is no command, and no checkpoint either{nearest(first, COMMANDS)}")
    name, rest = (first, words[1:]) if first in COMMANDS else ("attack", words)
    import_module(f"robust_train.tools.{MODULES.get(name, f'eval_{name}')}").main(rest)


if __name__ == "__main__":
    main(sys.argv[1:])
