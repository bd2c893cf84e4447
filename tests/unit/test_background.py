"""Calls from a thread into the background loop, and what a signal's exception in that thread must not do to it."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from aiogpulock import ManagerClosedError, background, clock

STORM_SECONDS = 3.0


class Interrupt(BaseException):
    """What Ctrl-C raises, under a name of its own."""


def interrupt(signum: int, frame: FrameType | None) -> None:
    raise Interrupt


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    background.close()


@pytest.fixture
def alarm() -> Iterator[random.Random]:
    """SIGALRM raises here; the draws are seeded."""
    before = signal.signal(signal.SIGALRM, interrupt)
    yield random.Random(20261124)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def watchdog() -> threading.Timer:
    """A thread that hangs for ever gets one more signal, which ends its wait with the test."""
    timer = threading.Timer(30, signal.pthread_kill, (threading.main_thread().ident, signal.SIGALRM))
    timer.daemon = True
    timer.start()
    return timer


def test_a_storm_of_interrupts_never_stops_the_loop(alarm: random.Random) -> None:
    begun = ended = interrupted = 0

    async def step() -> None:
        nonlocal begun, ended
        begun += 1
        try:
            await asyncio.sleep(0)
        finally:
            ended += 1

    background.call(step)  # the thread runs; its start, once in a process, is not what this is about
    deadline, timer = clock.now() + STORM_SECONDS, watchdog()
    try:
        while clock.now() < deadline:
            try:
                signal.setitimer(signal.ITIMER_REAL, alarm.uniform(0.00001, 0.0003))
                try:
                    background.call(step)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                interrupted += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        background.call(step)  # the loop still answers
    finally:
        timer.cancel()
    assert interrupted > 100
    assert begun == ended


def test_an_interrupted_step_is_cancelled_and_has_ended_when_the_interrupt_comes_out(alarm: random.Random) -> None:
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
