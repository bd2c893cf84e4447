"""Reclaimers run for modules that the program imported, in a thread, and harm nothing."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from unittest.mock import Mock

import pytest

from aiogpulock.config.values import RECLAIMER_NAMES, check_reclaimers
from aiogpulock.errors import ConfigError
from aiogpulock.gpu import contexts
from aiogpulock.gpu import reclaim as gpu_reclaim
from aiogpulock.gpu.reclaim import RECLAIMERS, reclaim
from tests.gpu.conftest import no_new_threads
from tests.nvml_sim import Simulation, build_cuda
from tests.unit.support import eventually


class Cuda(threading.local):
    """As the runtime of CUDA 12: what is asked of it makes a context on the thread's current device, at first 0."""

    contexts: ClassVar[set[int]]
    current = 0

    def use(self, device: int) -> None:
        self.current = device
        self.contexts.add(device)


class Cache:
    """What a library keeps of the memory of each device."""

    def __init__(self, cuda: Cuda, devices: Sequence[int]) -> None:
        self._cuda = cuda
        self.kept = set(devices)
        self.threads = set[str]()
        cuda.contexts.update(devices)

    def empty(self, *, everywhere: bool = False) -> None:
        self._cuda.use(self._cuda.current)
        self.kept -= self.kept if everywhere else {self._cuda.current}
        self.threads.add(threading.current_thread().name)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    Cuda.contexts = set()
    monkeypatch.setattr(gpu_reclaim, "with_a_context", lambda: tuple(sorted(Cuda.contexts)))
    return Cuda()


Import = Callable[..., Cache]


@pytest.fixture
def import_torch(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> Import:
    def do_import(*devices: int) -> Cache:
        """`empty_cache` empties those of all devices, in the context of the current one."""
        cache = Cache(cuda, devices)
        module = SimpleNamespace(
            is_initialized=lambda: bool(devices),
            set_device=cuda.use,
            empty_cache=lambda: cache.empty(everywhere=True),
        )
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=module))
        return cache

    return do_import


@pytest.fixture
def import_cupy(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> Import:
    def do_import(*devices: int) -> Cache:
        """`free_all_blocks` frees those of the current device; pinned memory is the host's."""
        cache = Cache(cuda, devices)
        module = SimpleNamespace(
            cuda=SimpleNamespace(Device=lambda device: SimpleNamespace(use=lambda: cuda.use(device))),
            get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=cache.empty),
            get_default_pinned_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: cuda.use(cuda.current)),
        )
        monkeypatch.setitem(sys.modules, "cupy", module)
        return cache

    return do_import


async def test_caches_of_imported_modules_are_emptied_in_a_thread(import_torch: Import, import_cupy: Import) -> None:
    torch, cupy = import_torch(0), import_cupy(0)
    done = await reclaim(["gc", "torch", "cupy"])
    assert [(one.name, one.outcome) for one in done] == [("gc", "done"), ("torch", "done"), ("cupy", "done")]
    assert torch.kept == cupy.kept == set()
    assert torch.threads == cupy.threads == {"aiogpulock-reclaim"}


async def test_those_of_every_device_are_emptied_and_no_other_device_is_touched(
    cuda: Cuda, import_torch: Import, import_cupy: Import
) -> None:
    torch, cupy = import_torch(1), import_cupy(1, 3)
    await reclaim(["torch", "cupy"])
    assert torch.kept == cupy.kept == set()
    assert cuda.contexts == {1, 3}, "GPU 0 may be locked by somebody else"


async def test_a_module_that_the_program_did_not_import_is_left_alone() -> None:
    assert [one.outcome for one in await reclaim(["torch", "cupy"])] == ["not_imported", "not_imported"]
    assert "torch" not in sys.modules


async def test_a_program_that_never_used_cuda_gets_no_context(
    cuda: Cuda, import_torch: Import, import_cupy: Import
) -> None:
    import_torch(), import_cupy()
    await reclaim(["torch", "cupy"])
    assert cuda.contexts == set()


def test_the_driver_tells_where_this_process_has_a_context(driver_folder: Path, sim: Simulation) -> None:
    build_cuda(driver_folder)
    program = (
        "from aiogpulock.gpu.contexts import with_a_context\nfrom tests.gpu.cuda import Cuda\n"
        "print(with_a_context()); Cuda(1); print(with_a_context()); Cuda(0); print(with_a_context())"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver_folder)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["()", "(1,)", "(0, 1)"]


def test_without_a_driver_there_is_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Mock(side_effect=OSError))
    assert contexts.with_a_context() == ()


async def test_one_that_fails_is_told_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> bool:
        raise RuntimeError("CUDA error")

    monkeypatch.setitem(RECLAIMERS, "torch", fails)
    first, second = await reclaim(["torch", "gc"])
    assert (first.outcome, first.error) == ("failed", "RuntimeError: CUDA error")
    assert second.outcome == "done"


async def test_one_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    monkeypatch.setitem(RECLAIMERS, "torch", lambda: hang.wait(10))
    outcomes = [one.outcome for one in await reclaim(["gc", "torch", "cupy"], timeout=0.1)]
    assert outcomes == ["done", "late", "late"]
    threads = threading.active_count()
    again = [one.outcome for one in await reclaim(["gc", "torch"])]
    assert (again, threading.active_count()) == (["late", "late"], threads), "one hung thread, not one a release"
    hang.set()
    await eventually(
        lambda: not any(one.name == "aiogpulock-reclaim" for one in threading.enumerate()), description="its end"
    )
    assert [one.outcome for one in await reclaim(["gc", "torch"])] == ["done", "done"]


async def test_an_event_loop_that_comes_late_finds_what_was_done() -> None:
    release = asyncio.create_task(reclaim(["gc"], timeout=0.05))
    await asyncio.sleep(0)
    time.sleep(0.2)  # noqa: ASYNC251 - the reclaimer ends meanwhile, and so does its time
    assert [one.outcome for one in await release] == ["done"]
    assert [one.outcome for one in await reclaim(["gc"])] == ["done"]


async def test_a_process_that_can_start_no_thread_is_told_so() -> None:
    with no_new_threads():
        (done,) = await reclaim(["gc"])
    assert (done.outcome, done.error) == ("failed", "can't start new thread")


def test_an_unknown_reclaimer_is_refused() -> None:
    with pytest.raises(ConfigError, match="'jax' is no reclaimer; known are gc, torch, cupy"):
        check_reclaimers(["gc", "jax"], "gpu_lock.gpu_memory.cleanup")
    assert tuple(RECLAIMERS) == RECLAIMER_NAMES
