"""One process of a contest. It runs in its peer's own environment: nothing but the standard library and the peer.

``python -m benchmarks.contender MODULE SETUP`` prints "ready", then reads one order per line from stdin, runs it and
prints one answer, JSON lines all of them. Times are seconds of CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import sys
import threading
import time
from types import ModuleType
from typing import Any, NamedTuple

now = time.monotonic
ERRORS = 3
"""How many errors are told in words; all are counted."""
ASIDE = 0.05
"""Seconds that a process keeps still after it has abandoned a lock: its answer shall not compete with the release."""


class Setup(NamedTuple):
    """What a peer is opened with."""

    url: str
    lock: str
    waiters: int = 1
    """Most tasks or threads of this process that use the lock at a time: connections are provided for."""
    lease: float = 60.0
    """Seconds after which a lock that nobody renews is free."""
    party: int = 0
    parties: int = 1
    """The number of this process, from 0, and how many there are."""
    options: dict[str, Any] = {}  # noqa: RUF012 - read only
    """For this library: settings of its manager."""


class Order(NamedTuple):
    """`tasks` tasks (or threads) acquire the lock `rounds` times each, and keep it for `hold` seconds each time."""

    tasks: int = 1
    rounds: int = 1
    hold: float = 0.0
    """0: release at once, without a turn of the event loop. Below 0: until another line comes on stdin."""
    seconds: float = 60.0
    """After this many nothing new is begun, and the answer is given. Who still waits then waits on, since a thread
    cannot be called off: it may yet hold the lock once, during the next order, and no answer counts that."""
    tell: bool = False
    """Print a line at each entry."""
    end: str = "normal"
    """How the body ends: normal, exception, cancelled, or abandoned (never released, then forgotten)."""
    watch_loop: bool = False
    """Measure how late the event loop is, all the while."""


class Hold(NamedTuple):
    """One hold: four times."""

    asked: float
    entered: float
    leaving: float
    left: float


def say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


class Planned(Exception):
    """The end of a body that was ordered to end so."""


class Run:
    """What is common to tasks and threads: the holds so far, and when to stop."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.holds: list[Hold] = []
        self.errors: list[str] = []
        self.lags: list[float] = []
        """Seconds by which the event loop was late, every 5 ms."""
        self.waiting: dict[int, float] = {}
        """Since when each task waits that is not in yet."""
        self._cpu = time.process_time()
        self._began = now()
        self._until = self._began + order.seconds

    def goes_on(self, done: int) -> bool:
        return done < self.order.rounds and now() < self._until

    def asks(self, task: int) -> float:
        asked = self.waiting[task] = now()
        return asked

    def entered(self, task: int) -> float:
        entered = now()
        del self.waiting[task]
        if self.order.tell:
            say(entered=entered)
        return entered

    def failed(self, task: int, error: BaseException) -> None:
        self.waiting.pop(task, None)
        self.errors.append(f"{type(error).__name__}: {error}")

    def answer(self) -> None:
        cpu = time.process_time() - self._cpu
        say(
            holds=list(self.holds), cpu=cpu, lags=self.lags, errors=self.errors[:ERRORS], failures=len(self.errors),
            began=self._began, ended=now(), waiting=list(self.waiting.values()),
        )  # fmt: skip


# tasks


async def _rounds(make: Any, run: Run, task: int) -> None:
    done = 0
    while run.goes_on(done):
        done += 1
        asked = run.asks(task)
        try:
            async with make():
                entered = run.entered(task)
                if run.order.hold > 0:
                    await asyncio.sleep(run.order.hold)
                elif run.order.hold < 0:
                    await asyncio.to_thread(sys.stdin.readline)
                leaving = now()
                if run.order.end == "exception":
                    raise Planned
                if run.order.end == "cancelled":
                    asyncio.current_task().cancel()  # type: ignore[union-attr]
                    await asyncio.sleep(1)
        except (Planned, asyncio.CancelledError):
            if run.order.end == "normal":
                raise
        except Exception as error:
            run.failed(task, error)
            continue
        run.holds.append(Hold(asked, entered, leaving, now()))


async def _abandon(make: Any, run: Run, task: int) -> None:
    """A task that dies between acquire and release."""
    asked, lock = run.asks(task), make()
    lease = await (lock.acquire() if hasattr(lock, "acquire") else lock.__aenter__())
    entered = run.entered(task)
    await asyncio.sleep(run.order.hold)
    run.holds.append(Hold(asked, entered, now(), now()))
    del lease, lock
    await asyncio.sleep(ASIDE)


async def _watch_loop(run: Run) -> None:
    while True:
        due = now() + 0.005
        await asyncio.sleep(0.005)
        run.lags.append(now() - due)


async def _obey(peer: ModuleType, setup: Setup) -> None:
    async with peer.opened(setup) as make:
        say(ready=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            run = Run(Order(**json.loads(line)))
            one = _abandon if run.order.end == "abandoned" else _rounds
            tasks = [asyncio.create_task(one(make, run, number)) for number in range(run.order.tasks)]
            watcher = asyncio.create_task(_watch_loop(run)) if run.order.watch_loop else None
            ended, _ = await asyncio.wait(tasks, timeout=run.order.seconds)
            for number, task in enumerate(tasks):
                if task in ended and (task.cancelled() or task.exception()):
                    run.failed(number, asyncio.CancelledError() if task.cancelled() else task.exception())  # type: ignore[arg-type]
            if watcher is not None:
                watcher.cancel()
            run.answer()


# threads


def _thread_rounds(make: Any, run: Run, task: int) -> None:
    done = 0
    while run.goes_on(done):
        done += 1
        asked = run.asks(task)
        try:
            with make():
                entered = run.entered(task)
                if run.order.hold > 0:
                    time.sleep(run.order.hold)
                elif run.order.hold < 0:
                    sys.stdin.readline()
                leaving = now()
                if run.order.end == "exception":
                    raise Planned
        except Planned:
            pass
        except Exception as error:
            run.failed(task, error)
            continue
        run.holds.append(Hold(asked, entered, leaving, now()))


def _thread_abandons(make: Any, run: Run, task: int) -> None:
    """A thread that ends between acquire and release."""
    asked, lock = run.asks(task), make()
    lock.acquire()
    entered = run.entered(task)
    time.sleep(run.order.hold)
    run.holds.append(Hold(asked, entered, now(), now()))
    del lock


def _thread(make: Any, run: Run, task: int) -> None:
    one = _thread_abandons if run.order.end == "abandoned" else _thread_rounds
    try:
        one(make, run, task)
    except Exception as error:
        run.failed(task, error)


def _obey_in_threads(peer: ModuleType, setup: Setup) -> None:
    threading.stack_size(256 * 1024)
    with peer.opened(setup) as make:
        say(ready=True)
        while line := sys.stdin.readline():
            run = Run(Order(**json.loads(line)))
            threads = [
                threading.Thread(target=_thread, args=(make, run, number), daemon=True)
                for number in range(run.order.tasks)
            ]
            for thread in threads:
                thread.start()
            until = now() + run.order.seconds
            for thread in threads:
                thread.join(max(0.0, until - now()))
            run.answer()


def main() -> None:
    peer, setup = importlib.import_module(sys.argv[1]), Setup(**json.loads(sys.argv[2]))
    with contextlib.suppress(KeyboardInterrupt):
        if getattr(peer, "THREADS", False):
            _obey_in_threads(peer, setup)
        else:
            asyncio.run(_obey(peer, setup))


if __name__ == "__main__":
    main()
