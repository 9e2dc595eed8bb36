"""Where a run goes when Ray starts it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """Where a run goes when Ray starts it: one process a device. None of it changes the numbers."""

    devices: int = 1  # processes, one a device (GPU, or a group of CPU cores)
    gpu: bool = False  # whether each process has a GPU of its own
    cpus: float = 1.0  # CPU cores reserved for each process
    address: str | None = None  # cluster to join (auto, HOST:PORT); null: the one it runs inside, or a local one
    restarts: int = 3  # times Ray starts the processes again after a fault
    rate: float | None = None  # cost or energy of one device-hour, for the forecast; null: none is given
    unit: str = "kWh"  # the unit of `rate`

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"devices={self.devices} must be at least 1: it counts processes, one a device")
