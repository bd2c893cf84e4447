"""The children of a prefork pool: their deaths are watched, and their ends are orderly.

A child that is killed, by the kernel, an operator, a time limit or a revocation, releases nothing, and Celery's own
signals tell of some deaths 5 s late (measured with 5.7). So the children that use a GPU announce themselves to a
`death_watch`, through a pipe that is made before they are forked.
"""

from __future__ import annotations

import logging
import os
import subprocess
from typing import Any

from celery import signals
from celery.concurrency.prefork import TaskPool

from aiogpulock import death_watch, sync

logger = logging.getLogger(__name__)


class Announcements:
    """The pipe of this worker."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)  # a watch that has ended reads nothing: no task may wait for it
        self._announced = os.getpid()
        self._watch: subprocess.Popen[bytes] | None = None

    def start_watch(self) -> None:
        """In the worker's main process, once its pool runs."""
        self._watch = death_watch.start(self._read)

    def announce(self) -> None:
        """Called in a process that is about to hold a GPU; only a child of the pool has something to say, and once."""
        if self._announced != os.getpid():
            self._announced = os.getpid()
            try:
                os.write(self._write, death_watch.encode(self._announced))
            except BlockingIOError:
                logger.error("the death watch of this worker has ended: restart the worker, or deaths are noticed late")


_announcements: Announcements | None = None


def announce() -> None:
    """Called by a task before it acquires."""
    if _announcements is not None:
        _announcements.announce()


def _before_the_pool(**_: Any) -> None:
    global _announcements
    if _announcements is None and hasattr(os, "pidfd_open"):
        _announcements = Announcements()


def _with_the_pool(sender: Any, **_: Any) -> None:
    if _announcements is not None and isinstance(sender.pool, TaskPool):
        _announcements.start_watch()


def _at_the_end_of_a_child(**_: Any) -> None:
    """It leaves by `os._exit`: what the background thread still has to do would be lost."""
    sync.close()


def connect() -> None:
    """Listen to the worker's signals."""
    signals.worker_init.connect(_before_the_pool, weak=False)
    signals.worker_ready.connect(_with_the_pool, weak=False)
    signals.worker_process_shutdown.connect(_at_the_end_of_a_child, weak=False)
