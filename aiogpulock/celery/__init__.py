"""Celery tasks that have their GPU to themselves: ``@app.task(base=GpuTask)``, or ``@app.task @gpu_lock()``.

The body runs under the lock of the GPU that the task's ``gpu_id`` argument names, by keyword or position. The lock is
given back however the task ends: by its end, an exception, a retry, a time limit, a revocation, the death of its
process, the shutdown of the worker. For the pools prefork, threads and solo; with eventlet and gevent nothing of this
works.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("celery") is None:
    raise ModuleNotFoundError("aiogpulock.celery needs Celery: pip install 'aiogpulock[celery]'", name="celery")

from aiogpulock.celery.pool import connect
from aiogpulock.celery.task import GpuTask, current_lease, gpu_lock

__all__ = ["GpuTask", "current_lease", "gpu_lock"]

connect()
