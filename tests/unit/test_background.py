"""Calls from a thread into the background loop, and what a signal's exception in that thread must not do to it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from aiogpulock import GpuLockError, ManagerClosedError, background
from tests.helpers import untraced
from tests.workers import ROOT
from tests.workers.interrupt_storm import Interrupt, interrupt


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    background.close()


@pytest.fixture
def alarm() -> Iterator[None]:
    """SIGALRM raises here."""
    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_storm_of_interrupts_never_stops_the_loop() -> None:
    command = [sys.executable, "-m", "tests.workers.interrupt_storm", "20261124", "3"]
    done = subprocess.run(command, cwd=ROOT, env=untraced(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["interrupted"] > 100
    assert said["begun"] == said["ended"]


def test_an_interrupted_step_is_cancelled_and_has_ended_when_the_interrupt_comes_out(alarm: None) -> None:
    seen = []

    async def step() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            seen.append("cleaned up")
            raise

    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(Interrupt):
        background.call(step)
    assert seen == ["cleaned up"]


def test_a_call_from_the_loop_itself_is_refused_and_not_waited_for() -> None:
    async def inner() -> None: ...

    async def step() -> None:
        background.call(inner)

    with pytest.raises(GpuLockError, match="its own background thread"):
        background.call(step)


def test_a_step_that_ends_with_an_error_is_told_as_it_is() -> None:
    async def step() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        background.call(step)


def test_a_call_that_waits_at_the_close_is_told_so() -> None:
    begun, told = threading.Event(), []

    async def step() -> None:
        begun.set()
        await asyncio.sleep(60)

    def wait() -> None:
        with pytest.raises(ManagerClosedError) as error:
            background.call(step)
        told.append(str(error.value))

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert begun.wait(30)
    background.close()
    waiter.join(30)
    assert told == ["aiogpulock.sync was closed meanwhile"]
