"""Submit a run or a sweep to a Ray cluster as a job: this working tree, the run, what it needs of the environment.

What .gitignore and .rayignore name (data, runs, environments) is left out, so data paths must be absolute, or relative
to the folder that the cluster works in: $ROBUST_TRAIN_HOME, else ~/robust_train there. The logs are followed; the exit
code is the run's. Ctrl-C stops following, not the job.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train import command
from robust_train.launch.cluster import HOME, ROOT
from robust_train.read.errors import ConfigError, main_guard
from robust_train.read.paths import run_file
from robust_train.read.uses import roots

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PATIENCE = 30.0  # seconds that a cluster just started may take until it accepts jobs


@main_guard()
def main(words: list[str]) -> None:
    parser = command.parser("python -m launch.submit", __doc__)
    parser.add_argument(
        "--address", metavar="URL", help="the cluster's dashboard: http://HOST:8265 (else $RAY_ADDRESS)"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="a variable to hand on")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the logs")
    parser.add_argument("--sweep", action="store_true", help="the file is a sweep: many runs, done by launch.sweep")
    arguments = parser.parse_intermixed_args(words)
    if command.inform(arguments, parser):
        return
    said = whole(arguments)  # every mistake is found before anything is sent
    sent_too(roots())
    if arguments.dry_run:
        print(said, end="")
        return
    client = reach((arguments.address or os.environ.get("RAY_ADDRESS", "")).strip())
    sent = {"working_dir": str(sent_root()), "env_vars": variables(arguments.env)}
    job = submit(client, entrypoint(arguments, "launch.sweep" if arguments.sweep else "launch.train"), sent)
    print(f"{job}: ray job logs {job} --follow, and ray job stop {job}; submitted again, the run goes on", flush=True)
    if not arguments.no_wait:
        sys.exit(follow(client, job))


def whole(arguments: argparse.Namespace) -> str:
    """The run as YAML, or the runs of a sweep in lines. Raises ConfigError for every mistake in them."""
    if not arguments.sweep:
        return command.read(arguments, None).dump()
    from robust_train.launch.sweep import Sweep, listed

    if arguments.run is None:
        raise ConfigError("name a sweep: python -m launch.submit --sweep configs/debug/v1-sweep.yaml")
    return "\n".join([*listed(Sweep.load(arguments.run, arguments.settings)), ""])


def entrypoint(arguments: argparse.Namespace, program: str = "launch.train") -> str:
    """The command that the job runs, in the root of the tree. Raises ConfigError where the run's file is not in it."""
    root, named = sent_root(), Path(arguments.run)
    path = root / named if run_file(named) != named else named.resolve()  # one of the package's is found there too
    if not path.is_relative_to(root):
        raise ConfigError(
            f"{path} is outside of {root}, which is what the cluster gets. Put the run's file into the tree, for "
            "instance into configs/."
        )
    checked = ["--check"] if arguments.check else []
    name = path.relative_to(root).as_posix()
    return shlex.join(["python", "-m", f"robust_train.{program}", name, *arguments.settings, *checked])


def sent_root() -> Path:
    """What the cluster gets: this tree; where the package is installed (there too), the working folder."""
    return ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()


def sent_too(folders: list[str]) -> None:
    """Refuse a run's own modules (`uses:`) that the job would not find. Raises ConfigError."""
    root = sent_root()
    for folder in folders:
        if Path(folder) != root and "site-packages" not in folder:
            raise ConfigError(
                f"uses: a module of the run lies in {folder}; the cluster gets {root}, and looks for modules there. "
                "Put it into the root of the tree."
            )


def variables(named: list[str]) -> dict[str, str]:
    """The environment of the job: NAME=VALUE as said, NAME as it is here, and the folder that it is to work in."""
    found = {HOME: os.environ[HOME]} if HOME in os.environ else {}
    for entry in named:
        name, given, value = entry.partition("=")
        if not given and name not in os.environ:
            raise ConfigError(f"--env {name}: there is no such variable here. Give its value: --env {name}=...")
        found[name] = value if given else os.environ[name]
    return found


def reach(address: str) -> JobSubmissionClient:
    """The cluster's door for jobs. Raises ConfigError where none is found."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.job_submission import JobSubmissionClient

    if not address:
        raise ConfigError("name the cluster: --address http://HOST:8265, the address of its dashboard")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address} is no dashboard's address: jobs are taken at http://HOST:8265 (--address, or RAY_ADDRESS)"
        )
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise ConfigError(
            f"--address {address}: no Ray dashboard answers there ({str(error).splitlines()[0]}). It is printed by "
            "ray start --head, and needs ray[default] there."
        ) from error


def submit(client: JobSubmissionClient, words: str, sent: dict[str, Any]) -> str:
    """Send the job; a cluster that has just started is given time until it accepts jobs."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return client.submit_job(entrypoint=words, runtime_env=sent)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise ConfigError(f"the cluster does not accept the job: {error}") from error
            time.sleep(1.0)


def follow(client: JobSubmissionClient, job: str) -> int:
    """Show the job's output until it ends; its exit code."""

    async def show() -> None:
        async for text in client.tail_job_logs(job):
            print(text, end="", flush=True)

    asyncio.run(show())
    ended = client.get_job_info(job)
    if ended.status.value == "SUCCEEDED":
        return 0
    print(f"{job}: {ended.status.value.lower()} {ended.message or ''}".rstrip(), file=sys.stderr)
    return ended.driver_exit_code or 1


if __name__ == "__main__":
    main(sys.argv[1:])
