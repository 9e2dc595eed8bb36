"""Which Ray cluster is meant, and whether anything answers there.

nothing, an empty RAY_ADDRESS, "local"    none: a local one that ends with the run
auto                                      the one that runs on this machine
HOST:PORT                                 the head's own port, 6379 unless it was started with another
http://HOST:8265, ray://HOST:10001        refused: the first takes jobs (launch.submit), the second is Ray Client's,
                                          which has no place for processes that find each other
"""

from __future__ import annotations

import os
import re
import socket

from robust_train.read.errors import ConfigError

PATIENCE = 5.0  # seconds in which a head must take a connection; Ray itself waits for minutes and ends the process
FORM = re.compile(r"(?:([\w.-]+)|\[([0-9A-Fa-f:.%]+)\]):([0-9]{1,5})")
HEAD = "the head's address is HOST:6379 (ray start --head prints it)"


def address_of(said: str | None, field: str = "cluster.address") -> str | None:
    """The cluster to join: `said`, else RAY_ADDRESS; None: a local one. ConfigError where no head answers there.

    field: what `said` is called where it is refused.
    """
    name, address = field, (said or "").strip()
    if not address:
        name, address = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        os.environ.pop("RAY_ADDRESS", None)  # Ray reads it too, and takes an empty one for a cluster's
        return None
    if address == "auto":
        return address
    refuse(name, address)
    return address


def refuse(name: str, address: str) -> None:
    """Raise ConfigError for what is no head's address, or where nothing answers."""
    scheme, host, port = address.partition("://")[0], *_parts(address)
    if scheme in ("http", "https") and "://" in address:
        raise ConfigError(
            f"{name}={address} is a dashboard's, which takes jobs: python -m launch.submit --address {address} "
            f"RUN.yaml. To join the cluster from here, name its head: {HEAD}."
        )
    if scheme == "ray" and "://" in address:
        raise ConfigError(
            f"{name}={address} is Ray Client's, through which no processes that train together can be started. Name "
            f"the head from a machine of the cluster ({HEAD}), or submit the run: python -m launch.submit --address "
            "http://HOST:8265 RUN.yaml."
        )
    if not host or not 0 < int(port) < 2**16:
        raise ConfigError(f"{name}={address} is no address of a Ray cluster: say auto, or HOST:PORT; {HEAD}.")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except OSError as error:
        raise ConfigError(
            f"{name}={address}: no Ray cluster answers there ({str(error) or type(error).__name__}). Start one (ray "
            "start --head), name another address, or leave cluster.address and RAY_ADDRESS out: then one is started on "
            "this machine."
        ) from None


def _parts(address: str) -> tuple[str, str]:
    found = FORM.fullmatch(address)
    return ("", "0") if found is None else (found[1] or found[2], found[3])
