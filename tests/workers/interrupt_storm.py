"""``python -m tests.workers.interrupt_storm SEED SECONDS``: background calls while SIGALRM raises at any line.

A program of its own, and without coverage: a tracer's lock would be left locked by such an exception just as well.
Prints how many calls were interrupted, and the steps that began and ended. Hangs, if it does, for half a minute only.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import random
import signal
import sys
from types import FrameType

from aiogpulock import background, clock

HANGS_AFTER = 30.0


class Interrupt(BaseException):
    """What Ctrl-C raises, under a name of its own."""


def interrupt(signum: int, frame: FrameType | None) -> None:
    raise Interrupt


def main(seed: int, seconds: float) -> None:
    draws = random.Random(seed)
    said = {"interrupted": 0, "begun": 0, "ended": 0}

    async def step() -> None:
        said["begun"] += 1
        try:
            await asyncio.sleep(0)
        finally:
            said["ended"] += 1

    faulthandler.dump_traceback_later(seconds + HANGS_AFTER, exit=True)
    background.call(step)  # the thread runs; its start, once in a process, is not what this is about
    signal.signal(signal.SIGALRM, interrupt)
    deadline = clock.now() + seconds
    while clock.now() < deadline:
        try:
            signal.setitimer(signal.ITIMER_REAL, draws.uniform(0.00001, 0.0003))
            try:
                background.call(step)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupt:
            said["interrupted"] += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    background.call(step)  # the loop still answers
    print(json.dumps(said))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
