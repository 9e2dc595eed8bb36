"""python -m robust_train RUN.yaml [key=value ...]: a run in this process, without Ray or DeepSpeed."""

from __future__ import annotations

import sys

from robust_train import command
from robust_train.read.errors import main_guard


@main_guard()
def main(words: list[str]) -> None:
    parser = command.parser("python -m robust_train", __doc__)
    arguments = parser.parse_intermixed_args(words)
    if command.inform(arguments, parser):
        return
    run = command.read(arguments, None)
    if arguments.dry_run:
        print(run.dump(), end="")
        return
    summary = command.here(run, arguments.check)
    if summary:
        command.table({run.name: summary}, f"{run.folder}: images of training, seconds and images/s of this start")


if __name__ == "__main__":
    main(sys.argv[1:])
