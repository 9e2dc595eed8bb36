"""Put a run on a Ray cluster: one process a device, each doing what `python -m robust_train` does in one.

cluster     run.cluster.address, else the one this process runs inside (a submitted job, or RAY_ADDRESS), else a
            local one that ends with the run
folder      relative paths of a run are relative to the working folder. A submitted job works in a copy that
            vanishes with it: there they are relative to $ROBUST_TRAIN_HOME, else to ~/robust_train
faults      a process that dies is started again with all others, cluster.restarts times, and they go on from the
            last whole checkpoint; bad input ends the run at once with its one message
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import robust_train
from robust_train.launch.address import address_of
from robust_train.launch.wire import Said, Terminal, incurable, listening, obeying, passing_on, speaking
from robust_train.read import uses
from robust_train.read.errors import ConfigError, RunError

if TYPE_CHECKING:
    from robust_train.run import Run
    from robust_train.settings.cluster import Cluster

ROOT = Path(robust_train.__file__).resolve().parent.parent  # the tree; where installed, site-packages
HOME = "ROBUST_TRAIN_HOME"
INSIDE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the program of a submitted job
STORE = 128 * 2**20  # bytes of a local cluster's object store: text and errors pass through it, never images


def launch(run: Run) -> dict[str, Any]:
    """Do a run with Ray; its summary. Raises RunError: what the processes found wrong, or what the cluster lacks."""
    from robust_train import ownership

    home = enter_home()
    if INSIDE in os.environ:
        print(
            f"{run.name}: everything is written to {home / run.path}; the same command again goes on there", flush=True
        )
    (run.path / "ray").mkdir(parents=True, exist_ok=True)
    address = address_of(run.cluster.address)
    if address is None:  # here is where the work will be done: bad input is found before Ray is started for it
        from robust_train.nouns import Place

        ownership.prepare(run, Place())
        if done := ownership.finished(run):
            return done
    ownership.same(run)
    with joined(address):
        room(run.cluster, nodes())
        fit(run, home)
    return ownership.finished(run)


def enter_home() -> Path:
    """The folder that relative paths of a run are relative to, made the working folder: see the head of this file."""
    if INSIDE in os.environ:
        home = Path(os.environ.get(HOME) or Path.home() / "robust_train").expanduser().absolute()
        home.mkdir(parents=True, exist_ok=True)
        os.chdir(home)
    return Path.cwd()


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Connected to the cluster at `address`; None: to a new one on this machine, ended afterwards."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"  # else what a worker prints becomes Ray's log, with Ray's words
    if address is None:
        # Read when Ray is imported. Left to itself, a local cluster writes a token that later ones then demand.
        os.environ["RAY_AUTH_MODE"] = "disabled"
        os.environ["PYTHONPATH"] = search_path()
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # between two looks at the workers
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")  # slow disks; there is room for all
        os.environ.update(RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0", RAY_TRAIN_METRICS_ENABLED="0")  # a process less each
    import ray

    if ray.is_initialized():  # the caller's own cluster: it stays the caller's
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    try:
        if address is None:
            ray.init(
                address="local",  # without it Ray joins whatever cluster this machine has seen last
                include_dashboard=False,
                object_store_memory=STORE,
                **quiet,
            )
        else:
            ray.init(address=address, runtime_env=shipped(), **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        if address is None:
            raise
        raise ConfigError(
            f"cluster.address={address}: no Ray cluster answers there ({str(error).splitlines()[0]}). Start one "
            "(ray start --head), name another address, or leave cluster.address and RAY_ADDRESS out: then one is "
            "started on this machine."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def search_path() -> str:
    """Where processes on this machine find this project, installed or not, and the modules that runs brought."""
    there = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT), *([there] if there else []), *uses.roots()])


def shipped() -> dict[str, Any]:
    """What other machines get of this project: the working tree, unless a job has brought it already."""
    if INSIDE in os.environ or not (ROOT / "pyproject.toml").exists():
        return {}
    return {"working_dir": str(ROOT)}  # without what .gitignore and .rayignore name


def nodes() -> list[Mapping[str, float]]:
    """The resources of each node of the cluster that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(cluster: Cluster, there: list[Mapping[str, float]]) -> None:
    """Whether the cluster can ever hold the run: Ray would wait for ever for what it lacks. Raises ConfigError."""
    cpus, gpus = (sum(node.get(kind, 0) for node in there) for kind in ("CPU", "GPU"))
    if cluster.gpu and gpus < cluster.devices:
        raise ConfigError(
            f"the cluster has {gpus:g} GPUs, the run wants {cluster.devices} (cluster.devices). "
            + (f"Say cluster.devices={gpus:g}" if gpus else "Say cluster.gpu=false")
            + ", or join a cluster that has them (cluster.address)."
        )
    fits = int(sum(held(node, cluster) for node in there))
    if fits < cluster.devices:
        wanted = cluster.devices * cluster.cpus
        remedy = f"Say cluster.devices={fits}" if fits else f"Say cluster.cpus={max(1, cpus // cluster.devices):g}"
        raise ConfigError(
            f"the cluster has {cpus:g} CPUs (nodes: {len(there)}), the run wants {wanted:g}: {cluster.devices} "
            f"processes (cluster.devices) of {cluster.cpus:g} each (cluster.cpus), and {fits} find room. {remedy}, or "
            "join a larger cluster (cluster.address)."
        )


def held(node: Mapping[str, float], cluster: Cluster) -> float:
    """How many of the run's processes a node can hold."""
    by_cpu = node.get("CPU", 0) // cluster.cpus if cluster.cpus else float(cluster.devices)
    return min(by_cpu, node.get("GPU", 0)) if cluster.gpu else by_cpu


def fit(run: Run, home: Path) -> None:
    """Start the processes, show what they say, and wait for their end. Raises what ends the run."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer

    from robust_train.ownership import keep_sources

    keep_sources(run)
    said: Any = ray.remote(num_cpus=0)(Said).remote()

    class Refused(UserCallback):  # here, since its base is Ray's
        """Ends the run at once where another try must end in the same way. Works beside Ray's controller."""

        restarts = run.cluster.restarts

        def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
            refusal = ray.get(said.refusal.remote())
            if refusal is not None:
                raise refusal  # an error of the controller is final, an error of a worker is tried again
            if self.restarts > 0:
                said.say.remote(lost(worker_exceptions))
            self.restarts -= 1

    cluster = run.cluster
    callbacks: Any = [Refused()]
    trainer = TorchTrainer(
        work,
        train_loop_config={
            "run": run.dump(),
            "home": str(home),
            "uses": str(home / run.path / uses.FOLDER),
            "said": said,
            "terminal": Terminal.here(),
        },
        torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.devices, use_gpu=cluster.gpu, resources_per_worker=resources(cluster)
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(home / run.path / "ray"),
            failure_config=FailureConfig(max_failures=cluster.restarts),
            callbacks=callbacks,
        ),
    )
    try:
        with listening(said), passing_on(said):
            trainer.fit()
    except TrainingFailedError as error:
        refusal = ray.get(said.refusal.remote())
        if refusal is not None:
            raise refusal from None
        if ranks := killed(getattr(error, "worker_failures", {})):
            raise RunError(
                f"{run.name}: the processes of ranks {', '.join(map(str, ranks))} were killed, after "
                f"{cluster.restarts} restarts (cluster.restarts). Memory is the common reason: give each a smaller "
                "part (engine.micro_batch). The same command goes on from the last whole checkpoint."
            ) from None
        raise  # a bug keeps its traceback
    except SystemExit:  # Ray answers Ctrl-C by ending the program as if all were well
        raise KeyboardInterrupt from None


def resources(cluster: Cluster) -> dict[str, float]:
    """What Ray reserves for each process."""
    return {"CPU": cluster.cpus, **({"GPU": 1.0} if cluster.gpu else {})}


def lost(failures: Mapping[int, Exception]) -> str:
    """A line on processes that failed: each rank with the last line of what it said."""
    words = [f"rank {rank}: {str(failure).strip().splitlines()[-1].strip()}" for rank, failure in failures.items()]
    return f"\na process failed ({'; '.join(words)}); all are started again, from the last whole checkpoint\n"


def killed(failures: Mapping[int, Exception]) -> list[int]:
    """Ranks whose process was ended from outside, rather than by an error of its own."""
    from ray.exceptions import RayActorError

    return sorted(rank for rank, failure in failures.items() if isinstance(failure, RayActorError))


def work(config: Mapping[str, Any]) -> None:
    """One process of a run: what Ray calls on each device."""
    import ray

    from robust_train.run import Run

    said = config["said"]
    try:
        uses.search(Path(config["uses"]))
        run = Run.load(config["run"])
        enter(Path(config["home"]), run)
        do(run, said, config["terminal"])
    except Exception as error:
        if incurable(error):
            if not isinstance(error, (RunError, OSError)):  # a bug: the traceback is wanted too
                error.add_note("".join(traceback.format_exception(error)))
            ray.get(said.refuse.remote(error))
        raise


def enter(home: Path, run: Run) -> None:
    """Work in the folder that paths are relative to, on whatever node this is."""
    if not (home / run.path).is_dir():
        raise ConfigError(
            f"node {os.uname().nodename} does not see the run's folder {home / run.path}. Name one that every node "
            f"shares: folder=/shared/runs/{run.name}, or {HOME} for all relative paths of a submitted job."
        )
    os.chdir(home)


def do(run: Run, said: Any, terminal: Terminal) -> None:
    """The job of this rank; the leading one is heard where the run was started."""
    import torch

    from robust_train import job
    from robust_train.engines.deepspeed import DeepSpeedEngine
    from robust_train.engines.place import place_of_environment
    from robust_train.leaving import ask

    if not run.cluster.gpu:
        torch.set_num_threads(max(1, int(run.cluster.cpus)))  # the cores that are reserved, not all of the machine's
    place = place_of_environment(run.cluster.gpu)
    hears = place.leads
    with speaking(said, terminal) if hears else nullcontext(), obeying(said, ask) if hears else nullcontext():
        job.do(run, DeepSpeedEngine, place)
