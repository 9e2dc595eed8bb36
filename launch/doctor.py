"""Look a cluster over before a run is put on it: each line says ok, or what is wrong and what to do.

versions        Python, PyTorch, Ray, DeepSpeed, timm and this project, the same on every node
devices         GPUs, their driver, CUDA and NCCL of each node; shared memory for batches; room on disk
folder          whether every node sees the same run folder (a file is written there and looked for everywhere)
data            whether every node sees the run's shards, where a run is named
clocks          how far each node's clock is from this one's
all-reduce      two processes, on two nodes where there are two, add 64 MiB together: how fast

Without --address: the cluster this process runs inside, RAY_ADDRESS, or this machine alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_train.launch.address import address_of
from robust_train.launch.cluster import enter_home, joined
from robust_train.read import paths
from robust_train.read.errors import REFUSED, ConfigError, main_guard

LIBRARIES = ("python", "torch", "ray", "deepspeed", "timm", "robust_train")
GIB = 2**30
SHM = 2 * GIB  # bytes of shared memory that loaders' batches want on a node
ROOM = 20 * GIB  # bytes of disk below which a few checkpoints of a large network do not fit
SKEW = 1.0  # seconds between clocks that confuse logs, and caches that compare ages
BYTES = 64 * 2**20  # of the all-reduce
PATIENCE = 90.0  # seconds that two processes may take to meet
REMEDIES = {
    "nodes": "start Ray on each: ray start --address HEAD:6379",
    "versions": "install the same everywhere: one image, or `make .venv/installed` in one tree on each node",
    "devices": "nodes of one kind keep one pace; those of other CUDA or NCCL versions may not meet at all",
    "folder": "name one that all nodes share: folder=/shared/runs/NAME, or ROBUST_TRAIN_HOME=/shared",
    "data": "copy or mount the shards there, or name them by an address that every node reaches",
    "disk": f"checkpoints want room: free some, to {ROOM // GIB} GiB, or name another folder",
    "shm": "loaders pass batches through it: docker run --shm-size=16g; for pods see launch/clusters/kuberay-job.yaml",
    "clocks": "set them by NTP (timedatectl set-ntp true): logs and ages of files of several nodes are compared",
    "all-reduce": "nodes must reach each other on all ports: the firewall; the card is GLOO_ or NCCL_SOCKET_IFNAME",
}


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    what: str
    good: bool
    seen: str

    def __str__(self) -> str:
        mark = "ok   " if self.good else "WRONG"
        return f"{mark}  {self.what:<11} {self.seen}" + f"\n       {'':<11} {REMEDIES[self.what]}" * (not self.good)


@main_guard()
def main(words: list[str]) -> None:
    parser = paths.Parser(
        "python -m launch.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", help="a run: its folder and data are looked for on every node")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the run")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="the cluster's head (else RAY_ADDRESS, else this machine)"
    )
    parser.add_argument(
        "--folder", metavar="FOLDER", help="a folder that all nodes should see (else the run's, else .)"
    )
    parser.add_argument("--count", action="store_true", help="print how many nodes are alive, and nothing else")
    asked = parser.parse_intermixed_args(words)
    run = None
    if asked.run is not None:
        from robust_train.run import Run

        run = Run.load(asked.run, asked.settings)
    home = enter_home()
    folder = home / (asked.folder or (run.path if run is not None else "."))
    with joined(address_of(asked.address, "--address")):
        if asked.count:
            print(len(alive()))
            return
        lines = examined(folder, data_of(run))
    print("\n".join(map(str, lines)))
    if not all(line.good for line in lines):
        sys.exit(REFUSED)


def examined(folder: Path, data: Sequence[str]) -> list[Line]:
    """All that is looked at, on every node of the cluster that is joined."""
    token = folder / f".doctor-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        token.write_text("here")
        found = facts_of_nodes(str(token), data)
    finally:
        token.unlink(missing_ok=True)
    return [*judged(found), reduced()]


def data_of(run: Any) -> list[str]:
    """Local files of the run's data, a first and a last of each list: remote ones are each node's own affair."""
    from robust_train.data.manifest import locate, remote

    shards: list[str] = []
    for name in ("train", "validation"):
        pattern = getattr(getattr(run, "data", None), name, None)
        found = [url for url in locate(pattern) if not remote(url)] if isinstance(pattern, (str, tuple)) else []
        shards += [str(Path(url).absolute()) for url in {*found[:1], *found[-1:]}]
    return sorted(shards)


def alive() -> list[Mapping[str, Any]]:
    """The nodes of the cluster that answer."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def facts_of_nodes(token: str, data: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each node says of itself, by name. A node that has no room for a task of no CPU does not exist."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    found = {}
    for node in alive():
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options: Any = {"num_cpus": 0, "scheduling_strategy": where}
        asked: Any = ray.remote(**options)(facts)
        ray.get(asked.remote(token, data))  # the first task of a node waits for its process, which clocks must not
        before = time.time()
        said = ray.get(asked.remote(token, data))
        after = time.time()
        said["skew"] = said.pop("time") - (before + after) / 2
        said["doubt"] = (after - before) / 2
        found[f"{node['NodeManagerHostname']} ({node['NodeID'][:6]})"] = said
    return found


def facts(token: str, data: Sequence[str]) -> dict[str, Any]:
    """Of the node that this runs on."""
    import platform
    import shutil
    from importlib import metadata

    import torch

    import robust_train

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "absent"

    folder = Path(token).parent
    shm = Path("/dev/shm")
    gpus = torch.cuda.device_count()
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES[1:-1]},
            "robust_train": robust_train.__version__,  # of the code that runs, whatever is installed
        },
        "gpus": gpus,
        "gpu": torch.cuda.get_device_name(0) if gpus else "",
        "cuda": torch.version.cuda or "",
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if gpus else "",
        "sees": Path(token).is_file(),
        "lacks": [path for path in data if not Path(path).exists()],
        "free": shutil.disk_usage(folder).free if folder.is_dir() else 0,
        "shm": shutil.disk_usage(shm).free if shm.is_dir() else 0,
        "time": time.time(),
    }


def judged(found: Mapping[str, Mapping[str, Any]]) -> list[Line]:
    """The lines on what the nodes said."""
    count = f"{len(found)} node" + "s" * (len(found) != 1)
    lines = [Line("nodes", True, f"{count}: {', '.join(found)}")]
    for name in LIBRARIES:
        there: dict[str, list[str]] = {}
        for node, said in found.items():
            there.setdefault(said["versions"][name], []).append(node)
        same = len(there) == 1 and "absent" not in there
        seen = "; ".join(version if same else f"{version} on {', '.join(nodes)}" for version, nodes in there.items())
        lines.append(Line("versions", same, f"{name} {seen}"))
    lines.append(_devices(found))
    blind = [node for node, said in found.items() if not said["sees"]]
    lines.append(Line("folder", not blind, f"not seen by {', '.join(blind)}" if blind else "every node sees it"))
    lacking = {node: said["lacks"] for node, said in found.items() if said["lacks"]}
    for node, missing in lacking.items():
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        lines.append(Line("data", False, f"{node} does not see {missing[0]}{more}"))
    if not lacking:
        lines.append(Line("data", True, "every node sees what was asked for"))
    for node, said in found.items():
        lines += [
            Line("disk", said["free"] >= ROOM, f"{node}: {said['free'] / GIB:.0f} GiB free in the folder"),
            Line("shm", said["shm"] >= SHM, f"{node}: {said['shm'] / GIB:.1f} GiB of shared memory free"),
            Line(
                "clocks",
                abs(said["skew"]) <= SKEW + said["doubt"],
                f"{node}: {said['skew']:+.2f} s from here, give or take {said['doubt']:.2f}",
            ),
        ]
    return lines


def _devices(found: Mapping[str, Mapping[str, Any]]) -> Line:
    if not any(said["gpus"] for said in found.values()):
        return Line("devices", True, "no GPUs: processes on CPUs, over gloo (cluster.gpu=false)")
    kinds = {(said["gpus"], said["gpu"], said["cuda"], said["nccl"]) for said in found.values()}
    each = "; ".join(
        f"{node}: {said['gpus']} x {said['gpu'] or 'none'}, CUDA {said['cuda']}, NCCL {said['nccl']}"
        for node, said in found.items()
    )
    return Line("devices", len(kinds) == 1, each)


def reduced() -> Line:
    """An all-reduce of two processes, as far apart as the cluster allows: nccl where both have a GPU, else gloo."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    gpu = sum(node["Resources"].get("GPU", 0) for node in alive()) >= 2
    cpus = sum(node["Resources"].get("CPU", 0) for node in alive())
    share = {"CPU": 1.0 if cpus >= 2 else 0.25, **({"GPU": 1.0} if gpu else {})}
    group = placement_group([share, share], strategy="SPREAD")
    try:
        if not group.wait(PATIENCE):
            return Line("all-reduce", False, "no room for two processes: other jobs hold the cores (ray status)")
        meeting = _meeting()
        said = []
        for rank in (0, 1):
            options: Any = {"num_cpus": share["CPU"], "num_gpus": share.get("GPU", 0)}
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, rank)
            process: Any = ray.remote(**options)(_reduce)
            said.append(process.remote(rank, meeting, gpu))
        found = ray.get(said, timeout=PATIENCE)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayTaskError) as error:
        why = str(error).strip().splitlines()[-1]
        return Line("all-reduce", False, f"two processes did not meet within {PATIENCE:g} s ({why})")
    finally:
        remove_placement_group(group)
    seconds, right = max(one[0] for one in found), all(one[1] for one in found)
    far = "two nodes" if len({one[2] for one in found}) == 2 else "one node"
    rate = BYTES / seconds / 2**30  # of two ranks each sends and gets as much as it has
    seen = f"{'nccl' if gpu else 'gloo'}, {far}, {BYTES // 2**20} MiB: {1e3 * seconds:.0f} ms, {rate:.2f} GiB/s"
    return Line("all-reduce", right, seen if right else f"{seen}, and the sum is wrong: a card or memory is broken")


def _meeting() -> Any:
    """An actor where the first process leaves its address for the second."""
    import ray

    class Meeting:
        def __init__(self) -> None:
            self.place = ""

        def say(self, place: str) -> None:
            self.place = place

        def where(self) -> str:
            return self.place

    return ray.remote(num_cpus=0)(Meeting).remote()


def _reduce(rank: int, meeting: Any, gpu: bool) -> tuple[float, bool, str]:
    """(seconds of an all-reduce, whether the sum is right, the node) of one of two processes."""
    import socket
    from datetime import timedelta

    import ray
    import torch
    from torch import distributed

    wait = timedelta(seconds=PATIENCE / 2)
    if rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        ray.get(meeting.say.remote(f"{ray.util.get_node_ip_address()}:{port}"))
    until = time.monotonic() + PATIENCE / 2
    while not (place := ray.get(meeting.where.remote())):
        if time.monotonic() > until:
            raise ConfigError("the other process did not start")
        time.sleep(0.1)
    device = "cuda" if gpu else "cpu"
    distributed.init_process_group(
        "nccl" if gpu else "gloo", init_method=f"tcp://{place}", rank=rank, world_size=2, timeout=wait
    )
    try:
        values = torch.full((BYTES // 4,), rank + 1.0, device=device)
        distributed.all_reduce(values)
        right = bool((values == 3).all())
        best = float("inf")
        for _ in range(3):
            distributed.barrier()
            began = time.perf_counter()
            distributed.all_reduce(values)
            if gpu:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
    finally:
        distributed.destroy_process_group()
    return best, right, ray.get_runtime_context().get_node_id()


if __name__ == "__main__":
    main(sys.argv[1:])
