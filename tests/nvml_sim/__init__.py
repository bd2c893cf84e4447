"""A simulated NVIDIA driver: a C library that the real nvidia-ml-py loads, its state shared between processes."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from ctypes import c_char, c_uint32, c_uint64
from pathlib import Path
from typing import Any, Literal

GiB, MiB = 1 << 30, 1 << 20
GPUS, MIGS, PROCESSES = 8, 4, 32
DEVICES = GPUS + GPUS * MIGS

CALLS = (
    "init", "shutdown", "count", "by_index", "by_uuid", "uuid", "name", "index", "memory_v1", "memory_v2", "compute",
    "graphics", "mig_mode", "mig_max", "mig_by_index", "mig_parent", "driver", "utilization",
)  # fmt: skip
LISTINGS = ("all", "nothing", "no_bytes", "zero_bytes")
"""What a process list shows: containers show nothing or zero bytes, WDDM no bytes."""


class _Call(ctypes.Structure):
    _fields_ = (("error", c_uint32), ("delay_ms", c_uint32), ("hang", c_uint32), ("count", c_uint32))


class _Process(ctypes.Structure):
    _fields_ = (("pid", c_uint32), ("watched", c_uint32), ("bytes", c_uint64))


class _Device(ctypes.Structure):
    _fields_ = (
        ("uuid", c_char * 96), ("name", c_char * 96),
        ("total", c_uint64), ("reserved", c_uint64), ("unattributed", c_uint64),
        ("present", c_uint32), ("mig", c_uint32), ("listing", c_uint32), ("error", c_uint32),
        ("utilization", c_uint32), ("unused", c_uint32),
        ("processes", _Process * PROCESSES),
    )  # fmt: skip


class _State(ctypes.Structure):
    _fields_ = (
        ("gpus", c_uint32),
        ("inits", c_uint32),
        ("calls", _Call * len(CALLS)),
        ("devices", _Device * DEVICES),
    )


def build(folder: Path) -> Path:
    """Compile the library into `folder`; a folder on LD_LIBRARY_PATH then is a host with a driver."""
    library = _compile("nvml_sim.c", folder / "libnvidia-ml.so.1")
    loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # nvidia-ml-py then gets this one by its soname
    loaded.sim_state_size.restype = c_uint64
    assert loaded.sim_state_size() == ctypes.sizeof(_State), "state.h and its Python mirror differ"
    return library


def build_cuda(folder: Path) -> Path:
    """Compile a CUDA driver that accounts for what it allocates in the same state."""
    return _compile("cuda_sim.c", folder / "libcuda.so.1")


def _compile(source: str, library: Path) -> Path:
    compiler = os.environ.get("CC", "cc")
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-Wl,-soname,{library.name}"]
    subprocess.run([compiler, *flags, "-o", str(library), str(Path(__file__).with_name(source))], check=True)
    return library


def uuid(index: int, kind: str = "GPU") -> str:
    """The UUID of a simulated device; the first 8 digits tell them apart."""
    return f"{kind}-{0xA0000000 + index:08x}-0000-4000-8000-000000000000"


class Simulation:
    """Sets and plays the state of the driver. Any process may open one over the same file."""

    def __init__(self, path: Path, *, gpus: int | None = None, total: int = 80 * GiB) -> None:
        """`gpus`: make a fresh state with so many; without it, join the state that is there."""
        self.path = path
        if gpus is not None:
            path.write_bytes(bytes(ctypes.sizeof(_State)))
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._state = _State.from_buffer(self._map)
        self._ended = threading.Event()
        self._reaper: threading.Thread | None = None
        for index in range(gpus or 0):
            self._make(index, uuid(index), "Simulated GPU", total)
        if gpus is not None:
            self._state.gpus = gpus

    def _make(self, slot: int, name: str, model: str, total: int) -> None:
        device = self._state.devices[slot]
        device.uuid, device.name, device.total, device.present = name.encode(), model.encode(), total, 1
        device.reserved = 512 * MiB

    def device(self, index: int, mig: int | None = None) -> Any:
        """The raw record of a GPU, or of a MIG device of it: its fields may be set."""
        return self._state.devices[index if mig is None else GPUS + index * MIGS + mig]

    def add_mig(self, index: int, mig: int) -> str:
        """Switch MIG on and make one device; returns its UUID."""
        self.device(index).mig = 1
        name = uuid(16 * (index + 1) + mig, "MIG")
        self._make(GPUS + index * MIGS + mig, name, "Simulated GPU MIG 1g.10gb", 10 * GiB)
        return name

    # calls

    def call(self, name: str) -> Any:
        """The raw record of one entry point: error, delay_ms, hang, count."""
        return self._state.calls[CALLS.index(name)]

    @property
    def open_handles(self) -> int:
        """nvmlInit less nvmlShutdown, over all processes."""
        return int(self._state.inits)

    @contextlib.contextmanager
    def hung(self, name: str) -> Iterator[None]:
        """While inside, calls of that entry point do not return."""
        self.call(name).hang = 1
        try:
            yield
        finally:
            self.call(name).hang = 0

    def list_processes(self, index: int, how: Literal["all", "nothing", "no_bytes", "zero_bytes"]) -> None:
        self.device(index).listing = LISTINGS.index(how)

    # memory

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def use(self, index: int, size: int, *, pid: int | None = None, watched: bool | None = None) -> None:
        """A process now uses `size` bytes in all; 0 takes it off the list. By default this process.

        `watched`: the reaper frees the bytes some time after the pid has died. A pid given by hand is not watched.
        """
        who = os.getpid() if pid is None else pid
        with self._locked():
            entries = self.device(index).processes
            entry = next((e for e in entries if e.pid == who), None) or next(e for e in entries if not e.pid)
            entry.bytes, entry.watched = size, pid is None if watched is None else watched
            entry.pid = who if size else 0

    def reap(self, *, after_ms: int) -> None:
        """From now on free what dead processes used, `after_ms` after their death; they leave the list at once."""
        self._reaper = threading.Thread(target=self._reap, args=(after_ms / 1000,), daemon=True)
        self._reaper.start()

    def _reap(self, delay: float) -> None:
        due: list[tuple[float, Any, int]] = []
        while not self._ended.wait(0.002):
            with self._locked():
                now = time.monotonic()
                for device in self._state.devices[: self._state.gpus]:
                    for entry in device.processes:
                        if entry.pid and entry.watched and _is_dead(entry.pid):
                            device.unattributed += entry.bytes
                            due.append((now + delay, device, entry.bytes))
                            entry.pid = 0
                for item in [item for item in due if item[0] <= now]:
                    item[1].unattributed -= item[2]
                    due.remove(item)

    def close(self) -> None:
        """End the reaper and every hang."""
        for call in self._state.calls:
            call.hang = 0
        self._ended.set()
        if self._reaper is not None:
            self._reaper.join()
        self._file.close()


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
