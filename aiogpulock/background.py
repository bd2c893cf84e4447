"""An event loop in a thread of its own, and calls into it from threads that Ctrl-C may reach at any line.

Such a call shares one raw lock with the loop and nothing else. A `Future`, an `Event` or a `Condition` would not do:
a KeyboardInterrupt between the acquire inside it and the `with` that releases leaves it locked for ever, and the loop
would stop on it, with every heartbeat.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from aiogpulock import signals
from aiogpulock.errors import GpuLockError, ManagerClosedError

R = TypeVar("R")

SLICE = 1.0
"""Seconds of waiting until Python looks for signals again."""

_mutex = threading.Lock()
_background: Background | None = None
_exiting = False


class Background:
    """The loop's thread. One per process: after a fork the child starts its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="aiogpulock-sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.run(self._serve())
        except RuntimeError:
            # Python 3.12 starts no thread any more at exit, and the loop's very end wants one: all is closed by then.
            if not _exiting:
                raise

    async def _serve(self) -> None:
        await self._stop.wait()

    @property
    def runs_here(self) -> bool:
        """This is the loop's thread."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """What runs is cancelled and cleans up."""
        with suppress(RuntimeError):  # it has ended
            self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


def call(step: Callable[[], Awaitable[R]]) -> R:
    """Run `step` on the background loop. Ctrl-C in this thread cancels it there, and waits for its clean-up.

    Raises what `step` raises, `ManagerClosedError` if `close` ended it, and `GpuLockError` on the loop's own thread.
    """
    if _background is not None and _background.runs_here:
        raise GpuLockError(
            "aiogpulock.sync cannot be called from its own background thread, where on_lost and clean-up hooks run: it "
            "would wait for itself. Call it from a thread of the program, or use the async lease there"
        )
    return _Call(step).result()


def close() -> None:
    """End the background thread: what is held is released, who waits is cancelled. The next use starts a new one."""
    global _background
    with _mutex:
        background, _background = _background, None
        if background is not None:
            background.close()


class _Call(Generic[R]):
    """One step, and the thread that waits for it."""

    def __init__(self, step: Callable[[], Awaitable[R]]) -> None:
        self._step = step
        self._task: asyncio.Task[None] | None = None
        self._results: list[R] = []
        self._error: BaseException | None = None
        self._over = False
        self._ended = threading.Lock()
        self._ended.acquire()

    def result(self) -> R:
        try:
            _hand_over(self._start)
            self._wait()
        except BaseException:
            signals.wait_for_the_end()
            if not self._over:  # else nobody will release `_ended` any more
                _hand_over(self._cancel)
                self._wait()
            raise
        if isinstance(self._error, asyncio.CancelledError):
            signals.wait_for_the_end()
            raise ManagerClosedError("aiogpulock.sync was closed meanwhile")
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _wait(self) -> None:
        """In slices: a signal that comes just before a wait begins is heard only when it is over."""
        while not self._ended.acquire(timeout=SLICE):
            pass

    # on the loop, one after the other

    def _start(self) -> None:
        if self._task is None and not self._over:
            self._task = asyncio.ensure_future(self._run())
            self._task.add_done_callback(self._end)

    async def _run(self) -> None:
        try:
            self._results.append(await self._step())
        except BaseException as error:
            self._error = error

    def _cancel(self) -> None:
        """It begins in any case, also when Ctrl-C came before it was handed over: a release is never left out."""
        self._start()
        if self._task is not None:
            asyncio.get_running_loop().call_soon(self._task.cancel)  # behind its first step

    def _end(self, task: asyncio.Task[None]) -> None:
        # The task dies in this thread: in the other one a Ctrl-C during its weakrefs' callbacks would be swallowed.
        self._task = None
        self._over = True
        self._ended.release()


def _hand_over(step: Callable[[], None]) -> None:
    """Let the loop run it. Under the mutex, so that nothing is handed over behind the end of the loop."""
    global _background
    with _mutex:
        if _background is None:
            _background = Background()
        _background.loop.call_soon_threadsafe(step)


@atexit.register
def _at_exit() -> None:
    global _exiting
    _exiting = True
    close()


def _after_fork() -> None:
    """The child has neither the thread nor, if another thread was in there, anybody to release the mutex."""
    global _background, _mutex
    _background, _mutex = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
