"""``python -m tests.workers.lock_storm with|task SECONDS``: a lock is taken and left while SIGALRM raises at any line.

The exception is kept meanwhile, as a debugger or a result would: whatever it refers to is not freed. Prints how many
locks were interrupted, and where those were that stayed held.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable

import redis

from aiogpulock import sync
from aiogpulock.celery import gpu_lock
from tests.helpers import wait_until
from tests.workers.interrupt_storm import Interrupt, interrupt

SOON = 5.0


def alarm(draws: random.Random) -> None:
    """Within the next moment: of a lock and a release, which take some 600 µs, or of what comes after this call."""
    signal.setitimer(signal.ITIMER_REAL, draws.uniform(0.00001, draws.choice((0.00006, 0.001))))


def main(kind: str, seconds: float) -> None:
    client = redis.Redis.from_url(os.environ["REDIS_URL"])
    draws, interrupted, stuck = random.Random(20261130), 0, []
    lock = sync.gpu_lock(0)

    def with_statement() -> None:
        with lock:
            alarm(draws)

    @gpu_lock(0)
    def task() -> None:
        alarm(draws)

    work: Callable[[], None] = {"with": with_statement, "task": task}[kind]
    work_once_undisturbed(work)
    signal.signal(signal.SIGALRM, interrupt)
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stuck:
        try:
            alarm(draws)
            try:
                work()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupt as error:
            interrupted += 1
            frame, line = list(traceback.walk_tb(error.__traceback__))[-2]
            if frame.f_code is sync.GpuLock.__exit__.__code__ and line == frame.f_code.co_firstlineno:
                frame.f_locals["self"]._leases.current.release()  # before its first instruction: nothing can be done
            try:
                wait_until(lambda: not client.exists("gpu_lock:0"), description="the lock to be free", timeout=SOON)
            except AssertionError:
                stuck = [f"{frame.f_code.co_name}:{line}" for frame, line in traceback.walk_tb(error.__traceback__)]
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    sync.close()
    print(json.dumps({"interrupted": interrupted, "stuck": stuck}))


def work_once_undisturbed(work: Callable[[], None]) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    work()
    signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
