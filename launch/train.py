"""Put a run on a Ray cluster, one process a device; without a run, the demo."""

from __future__ import annotations

import sys
from pathlib import Path

from robust_train import command
from robust_train.read.errors import ConfigError, main_guard

DEMO = Path(__file__).parent.parent / "configs" / "demo.yaml"


@main_guard()
def main(words: list[str]) -> None:
    parser = command.parser("python -m launch.train", __doc__)
    parser.add_argument("--debug", action="store_true", help="in this process: no Ray, no DeepSpeed, the same numbers")
    arguments = parser.parse_intermixed_args(words)
    if command.inform(arguments, parser):
        return
    if not words:
        from robust_train.launch.demo import demo

        demo(DEMO)
        return
    run = command.read(arguments, str(DEMO))
    if arguments.dry_run:
        print(run.dump(), end="")
        return
    if command.torchrun() and not arguments.check:
        raise ConfigError(
            "these processes were started together (WORLD_SIZE is above 1), and launch.train starts processes by Ray. "
            "Say torchrun ... -m robust_train RUN.yaml, or start launch.train alone."
        )
    if arguments.debug or arguments.check:
        summary = command.here(run, arguments.check, devices=1 if arguments.debug else run.cluster.devices)
    else:
        from robust_train.launch.cluster import launch

        summary = launch(run)
    if summary:
        command.table({run.name: summary}, f"{run.folder}: images of training, seconds and images/s of this start")


if __name__ == "__main__":
    main(sys.argv[1:])
