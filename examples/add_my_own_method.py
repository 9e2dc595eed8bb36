"""Train by a method of my own, examples/my_lab/half.py, and attack what comes of it.

    python examples/add_my_own_method.py runs/half [key=value ...]     # digits, a minute

The file is the whole method. Laws hold for it as they stand: its update costs what `cost` says, its numbers do not
depend on how many processes computed them, and a killed run goes on to the same bytes. A run says

    uses: [my_lab.half]      # a module that Python finds from the working folder, or from PYTHONPATH
    objective: {use: half, attack: {use: pgd, threat: {use: linf, eps: 8/255}, steps: 10, step_size: 2/255}}

and the module goes with it: to every rank, into submitted jobs, and into its checkpoints. Put into
robust_train/objectives/, contract and law tests try its `examples` as they try everybody's.
"""

from __future__ import annotations

import sys
from pathlib import Path

RUN = """
name: half
folder: {folder}
uses: [my_lab.half]
data: {{use: digits}}
network: {{model: small-cnn, group: 32}}
objective: {{use: half, attack: {{use: pgd, threat: {{use: linf, eps: 0.15}}, steps: 5, step_size: 0.075}}}}
updates: 220
batch: 64
optimiser: {{name: sgd, lr: {{use: cosine, peak: 0.05, warmup: 10%}}, weight_decay: 0.01}}
"""


def main(words: list[str]) -> None:
    """Train it, then attack its best checkpoint by PGD-50 on the validation images."""
    from robust_train.__main__ import main as train
    from robust_train.tools.eval import main as evaluate

    folder, *changes = words
    run = Path(folder).with_suffix(".yaml")
    run.parent.mkdir(parents=True, exist_ok=True)
    run.write_text(RUN.format(folder=folder), encoding="utf-8")
    train([str(run), *changes])
    evaluate([folder])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # where `uses` finds my_lab
    main(sys.argv[1:])
