"""The ends of a task that its own process does not live to see: the worker's main process frees the GPU.

A child that is killed, by the kernel, an operator, a time limit or a revocation, releases nothing. Whoever waits on
this host sees its death. So that the lock is free also where nobody waits, the main process watches the children that
use a GPU, by pidfd: Celery's own signals tell of a killed child up to 5 s late (measured with 5.7). The holds of a dead
child are ended by exactly the value that was seen.

The watch is one thread that sleeps in poll(2), since Celery's event loop forgets foreign descriptors at a reconnect.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import threading
from typing import Any

from celery import signals
from celery.concurrency.prefork import TaskPool

from aiogpulock import sync
from aiogpulock.keys import lock_keys
from aiogpulock.liveness import certainly_dead
from aiogpulock.manager import GpuLockManager
from aiogpulock.models import LockSnapshot

logger = logging.getLogger(__name__)

_PID_BYTES = 8


class ChildWatch:
    """Made before the children are forked, which inherit the pipe that they announce themselves by."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._main = self._announced = os.getpid()
        self._poll = select.poll()
        self._children: dict[int, int] = {}
        """The pid behind each pidfd."""

    def announce(self) -> None:
        """Called in a process that is about to hold a GPU."""
        if self._announced != os.getpid():
            self._announced = os.getpid()
            os.write(self._write, self._announced.to_bytes(_PID_BYTES, "big"))

    def start(self) -> None:
        """Begin to watch, in the main process."""
        threading.Thread(target=self._run, name="aiogpulock-child-watch", daemon=True).start()

    def _run(self) -> None:
        self._poll.register(self._read, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._read:
                    self._watch(int.from_bytes(os.read(self._read, _PID_BYTES), "big"))
                else:
                    self._poll.unregister(fd)
                    os.close(fd)
                    free(self._children.pop(fd))

    def _watch(self, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            free(pid)  # it was quick
        except OSError as error:
            logger.warning("the death of pool process %s will not be noticed at once: %s", pid, error)
        else:
            self._children[pidfd] = pid
            self._poll.register(pidfd, select.POLLIN)


def free(pid: int) -> None:
    """End the holds of a child that is dead. Never raises: the watch goes on."""
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
    ended, more = await manager.scripts.reap(keys, terms, seen.value or "", "reaped", "task_failure", manager.actor)
    if ended:
        logger.warning("%s was held by %s, whose process %s is dead: it is free", seen.key, seen.task_name, seen.pid)
    if more:
        await manager.resume(keys, terms)


_watch: ChildWatch | None = None


def announce() -> None:
    """Called by a task before it acquires: if this is a child of a pool, its death is worth knowing."""
    if _watch is not None:
        _watch.announce()


def _before_the_pool(**_: Any) -> None:
    global _watch
    if _watch is None and hasattr(os, "pidfd_open"):
        _watch = ChildWatch()


def _with_the_pool(sender: Any, **_: Any) -> None:
    if _watch is not None and isinstance(sender.pool, TaskPool):
        _watch.start()


def _at_the_end_of_a_child(**_: Any) -> None:
    """It leaves by `os._exit`: what the background thread still has to do would be lost."""
    sync.close()


def connect() -> None:
    """Listen to the worker's signals."""
    signals.worker_init.connect(_before_the_pool, weak=False)
    signals.worker_ready.connect(_with_the_pool, weak=False)
    signals.worker_process_shutdown.connect(_at_the_end_of_a_child, weak=False)
