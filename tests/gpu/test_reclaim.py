"""Reclaimers run for modules that the program imported, in a thread, and harm nothing."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest

from aiogpulock.config.values import RECLAIMER_NAMES, check_reclaimers
from aiogpulock.errors import ConfigError
from aiogpulock.gpu.reclaim import RECLAIMERS, reclaim
from tests.gpu.conftest import no_new_threads
from tests.unit.support import eventually


class Calls(list[str]):
    def note(self, name: str) -> object:
        return lambda: self.append(f"{name} in {threading.current_thread().name}")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A program that imported torch and CuPy."""
    calls = Calls()
    cuda = SimpleNamespace(is_initialized=lambda: True, empty_cache=calls.note("torch"))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    cupy = SimpleNamespace(
        get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=calls.note("cupy")),
        get_default_pinned_memory_pool=lambda: SimpleNamespace(free_all_blocks=calls.note("pinned")),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return calls


async def test_caches_of_imported_modules_are_emptied_in_a_thread(calls: Calls) -> None:
    done = await reclaim(["gc", "torch", "cupy"])
    assert [(one.name, one.outcome) for one in done] == [("gc", "done"), ("torch", "done"), ("cupy", "done")]
    assert calls == [f"{name} in aiogpulock-reclaim" for name in ("torch", "cupy", "pinned")]


async def test_a_module_that_the_program_did_not_import_is_left_alone() -> None:
    assert [one.outcome for one in await reclaim(["torch", "cupy"])] == ["not_imported", "not_imported"]
    assert "torch" not in sys.modules


async def test_a_program_that_never_used_cuda_gets_no_context(calls: Calls) -> None:
    sys.modules["torch"].cuda.is_initialized = lambda: False
    await reclaim(["torch"])
    assert calls == []


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


async def test_a_process_that_can_start_no_thread_is_told_so() -> None:
    with no_new_threads():
        (done,) = await reclaim(["gc"])
    assert (done.outcome, done.error) == ("failed", "can't start new thread")


def test_an_unknown_reclaimer_is_refused() -> None:
    with pytest.raises(ConfigError, match="'jax' is no reclaimer; known are gc, torch, cupy"):
        check_reclaimers(["gc", "jax"], "gpu_lock.gpu_memory.cleanup")
    assert tuple(RECLAIMERS) == RECLAIMER_NAMES
