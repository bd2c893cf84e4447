"""Which tasks the worker has declared failed, as its children see it.

At the hard time limit Celery's main process declares a task failed, then sends its child SIGTERM, and 0.1 s later
SIGKILL. SIGTERM alone tells the child nothing: it also ends what was revoked. So the verdict is there before the signal
is, in memory that all children share.
"""

from __future__ import annotations

import hashlib
import mmap
import os

ENTRIES = 256
"""More than there are children; the oldest is overwritten."""
_BYTES = 16


class Failures:
    """To be made before the children are forked. Only the process that made it adds, so nothing is torn."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._shared = mmap.mmap(-1, ENTRIES * _BYTES)
        self._next = 0

    def add(self, task_id: str) -> None:
        """In a child it does nothing: what fails there is known there."""
        if os.getpid() == self._pid:
            self._shared[self._next : self._next + _BYTES] = _digest(task_id)
            self._next = (self._next + _BYTES) % len(self._shared)

    def __contains__(self, task_id: str) -> bool:
        digest = _digest(task_id)
        return any(self._shared[start : start + _BYTES] == digest for start in range(0, len(self._shared), _BYTES))


def _digest(task_id: str) -> bytes:
    return hashlib.blake2b(task_id.encode(), digest_size=_BYTES).digest()
