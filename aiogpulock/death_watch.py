"""A process of its own that frees what killed processes held: ``python -m aiogpulock.death_watch``.

It reads pids from stdin, eight bytes each, and watches each by pidfd. When one dies, its holds are ended, by exactly
the values that were seen. It ends when stdin does and all that it watched are dead: so it outlives the program that
started it just long enough.

Whoever waits for a GPU on this host sees a holder's death without it. It is there so that the lock is free also where
nobody waits. It is no thread of the program that it serves: that one may fork, and a child that is forked while
another thread works can inherit a lock that nobody will ever release.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import subprocess
import sys

from aiogpulock.keys import lock_keys
from aiogpulock.liveness import certainly_dead
from aiogpulock.manager import GpuLockManager
from aiogpulock.models import LockSnapshot

logger = logging.getLogger(__name__)

_PID_BYTES = 8


def start(pids: int) -> subprocess.Popen[bytes]:
    """Start one that reads from the descriptor `pids`, the reading end of a pipe."""
    # A session of its own: Ctrl-C and a signal to the group are for those that it watches.
    command = [sys.executable, "-m", __name__]
    return subprocess.Popen(command, stdin=pids, stdout=subprocess.DEVNULL, start_new_session=True)  # noqa: S603 - ours


def encode(pid: int) -> bytes:
    """`pid` as it is written to the pipe; so few bytes are never torn apart."""
    return pid.to_bytes(_PID_BYTES, "big")


class DeathWatch:
    """Sleeps in poll(2) until somebody is announced, or dies."""

    def __init__(self, pids: int) -> None:
        self._pids = pids
        self._watched: dict[int, int] = {}
        """The pid behind each pidfd."""
        self._poll = select.poll()
        self._poll.register(pids, select.POLLIN)
        self._ended = False

    def run(self) -> None:
        """Until nobody is left who could announce, and nobody who could die."""
        while not self._ended or self._watched:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._pids:
                    self._hear()
                else:
                    self._died(descriptor)

    def _hear(self) -> None:
        message = os.read(self._pids, _PID_BYTES)
        if message:
            self._watch(int.from_bytes(message, "big"))
        else:
            self._poll.unregister(self._pids)
            self._ended = True

    def _watch(self, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            free(pid)  # it was quick
        except OSError as error:
            logger.warning("the death of process %s will not be noticed at once: %s", pid, error)
        else:
            self._watched[pidfd] = pid
            self._poll.register(pidfd, select.POLLIN)

    def _died(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        os.close(pidfd)
        free(self._watched.pop(pidfd))


def free(pid: int) -> None:
    """End the holds of a process that is dead. Never raises: the watch goes on."""
    try:
        asyncio.run(_free(pid))
    except Exception as error:
        logger.warning("could not free what the dead process %s held, its lease will end: %s", pid, error)


async def _free(pid: int) -> None:
    async with GpuLockManager() as manager:
        for seen in await manager.status():
            if seen.pid == pid and seen.process is not None and certainly_dead(seen.process):
                await _reap(manager, seen)


async def _reap(manager: GpuLockManager, seen: LockSnapshot) -> None:
    keys, terms = lock_keys(seen.gpu_id, manager.namespace), manager.script_terms()
    ended, more = await manager.scripts.reap(keys, terms, seen.ownership or "", "reaped", "task_failure", manager.actor)
    if ended:
        logger.warning("%s was held by %s, whose process %s is dead: it is free", seen.key, seen.task_name, seen.pid)
    if more:
        await manager.resume(keys, terms)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s aiogpulock: %(message)s")
    DeathWatch(sys.stdin.fileno()).run()
