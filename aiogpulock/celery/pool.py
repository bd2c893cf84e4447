"""The children of a prefork pool: their deaths are watched, and their ends are orderly.

A child that is killed, by the kernel, an operator, a time limit or a revocation, releases nothing, and Celery's own
signals tell of some deaths 5 s late (measured with 5.7). So the children that use a GPU announce themselves to a
`death_watch`, through a pipe that is made before they are forked.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, ClassVar

from celery import bootsteps, signals
from celery.concurrency.prefork import TaskPool

from aiogpulock import death_watch, sync
from aiogpulock.celery.failures import Failures

logger = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds between two looks at the death watch."""


class Announcements:
    """The pipe of this worker, and the death watch that reads from it."""

    PAUSES: ClassVar[tuple[float, float]] = (1.0, 60.0)
    """Seconds between two starts of the watch, first and most: one that cannot live is not started again and again."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)  # a watch that has ended reads nothing: no task may wait for it
        self._announced = os.getpid()
        self._watch: subprocess.Popen[bytes] | None = None
        self._children: set[int] = set()
        self._pause, self._not_before = self.PAUSES[0], 0.0

    def see_to_watch(self, children: Iterable[int]) -> None:
        """In the worker's main process: start the watch, and again when it has ended.

        A new one does not know who announced itself to the old one: it is told of all children, those of the last look
        included, which may have died meanwhile.
        """
        now = set(children)
        if self._watch is not None and self._watch.poll() is None:
            self._children = now
        elif time.monotonic() >= self._not_before:
            self._start_watch(now)

    def _start_watch(self, children: set[int]) -> None:
        again = self._watch is not None
        if self._watch is not None:
            logger.error("the death watch of this worker has ended (%s): it is started again", self._watch.returncode)
        self._watch = death_watch.start(self._read)
        self._not_before = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, self.PAUSES[1])
        for pid in self._children | children if again else ():
            self._tell(pid)
        self._children = children

    def announce(self) -> None:
        """Called in a process that is about to hold a GPU; only a child of the pool has something to say, and once."""
        if self._announced != os.getpid():
            self._announced = os.getpid()
            self._tell(self._announced)

    def _tell(self, pid: int) -> None:
        with suppress(BlockingIOError):  # thousands are unread: a watch that is started later is told of all children
            os.write(self._write, death_watch.encode(pid))


_announcements: Announcements | None = None
_failures: Failures | None = None


def announce() -> None:
    """Called by a task before it acquires."""
    if _announcements is not None:
        _announcements.announce()


def declared_failed(task_id: str) -> bool:
    """Whether this worker has declared the task failed while it ran."""
    return _failures is not None and task_id in _failures


class _SeeToWatch(bootsteps.StartStopStep):  # type: ignore[misc]
    """Started anew with each connection to the broker: at its loss Celery forgets what its timer had to do."""

    def start(self, consumer: Any) -> None:
        def look() -> None:
            if _announcements is not None:
                _announcements.see_to_watch(consumer.pool.info["processes"])

        if isinstance(consumer.pool, TaskPool):
            look()
            self._looking = consumer.timer.call_repeatedly(LOOK_EVERY, look)

    def stop(self, consumer: Any) -> None:
        if isinstance(consumer.pool, TaskPool):
            self._looking.cancel()


def _before_the_pool(sender: Any, **_: Any) -> None:
    global _announcements, _failures
    if _failures is None:
        _failures = Failures()
    if _announcements is None and hasattr(os, "pidfd_open"):
        _announcements = Announcements()
        sender.app.steps["consumer"].add(_SeeToWatch)


def _after_a_failure(task_id: str, **_: Any) -> None:
    if _failures is not None:
        _failures.add(task_id)


def _at_the_end_of_a_child(**_: Any) -> None:
    """It leaves by `os._exit`: what the background thread still has to do would be lost."""
    sync.close()


def connect() -> None:
    """Listen to the worker's signals."""
    signals.worker_init.connect(_before_the_pool, weak=False)
    signals.task_failure.connect(_after_a_failure, weak=False)
    signals.worker_process_shutdown.connect(_at_the_end_of_a_child, weak=False)
