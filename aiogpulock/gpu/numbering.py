"""Whether NVML's indices in this process are the host's: a container that was given some of the GPUs numbers them anew.

The minor number of a device does not tell: it is another order than the index on many hosts. sysfs tells how many GPUs
the driver has on this machine, and looks the same from within a container.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from aiogpulock.gpu.records import GpuDevice

BOUND = Path("/sys/bus/pci/drivers/nvidia")
"""Has an entry for each GPU, by its address, beside files of the driver."""

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def numbered_as_the_host(devices: Sequence[GpuDevice], bound: Path | None = None) -> bool:
    """No GPU of the host is hidden from this process. Where sysfs does not tell (WSL, Jetson), none is taken to be."""
    return sum(device.index is not None for device in devices) >= _bound(bound or BOUND)


def _bound(folder: Path) -> int:
    try:
        return sum(_ADDRESS.fullmatch(entry.name) is not None for entry in folder.iterdir())
    except OSError:
        return 0
