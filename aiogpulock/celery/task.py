"""A task's body under the lock of its GPU."""

from __future__ import annotations

import functools
import inspect
import logging
import secrets
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, ParamSpec, Self, TypeVar

from celery import Task, current_task
from celery.exceptions import Retry, TaskPredicate

from aiogpulock import sync
from aiogpulock.celery.pool import announce, declared_failed
from aiogpulock.celery.refusal import refused_in_one_line
from aiogpulock.errors import ConfigError, GpuLockError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_held: dict[str, sync.Lease] = {}
"""The leases of this process, by task id."""
_thread = threading.local()


def gpu_lock(gpu_id: int | str = 0, **options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Run the body of a task under the lock of its GPU; goes below ``@app.task``.

    Args:
        gpu_id: the GPU of a call that names none by its own ``gpu_id`` argument.
        options: as for `aiogpulock.gpu_lock`, but ``task_name`` and ``manager``: task name and id are the holder.

    Raises:
        InvalidGpuError, ConfigError, TypeError: at once.
    """
    caller = sys._getframe(1)
    place = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    with refused_in_one_line(place):
        under_lock = _under_lock(gpu_id, **options)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        with refused_in_one_line(place):
            return under_lock(function)

    return decorate


def _under_lock(gpu_id: int | str = 0, **options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    if "task_name" in options:
        raise TypeError("a Celery task is shown as the holder by its own name and id: leave task_name out")
    lock = sync.gpu_lock(gpu_id, **options)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        lock(function)  # refuses what is no plain function
        signature = inspect.signature(function)
        _check_default(gpu_id, signature)

        @functools.wraps(function)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            named = _named_gpu(signature.bind(*args, **kwargs))
            return _run(gpu_id if named is None else named, options, lambda: function(*args, **kwargs))

        return locked

    return decorate


class GpuTask(Task):  # type: ignore[misc]
    """The base class of tasks that run under the lock of their GPU.

    ``@app.task(base=GpuTask, gpu_lock={"max_wait_time": 60})``: `gpu_lock` takes the arguments of the decorator. The
    lock is around ``run``, wherever the class has that from, so ``autoretry_for=(LockTimeoutError,)`` covers the wait.
    """

    abstract = True
    gpu_lock: ClassVar[Mapping[str, Any]] = {}
    throws = (GpuLockError,)
    """Their text says what to do: Celery logs them without a traceback, and `on_failure` as an error."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls._locking(lambda: None)  # refuses bad options where the class is defined

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        task: Self = super().__new__(cls)
        # Of the task, not of its class: `super().run()` must not wait for itself, and an inherited `run` is covered.
        task.run = cls._locking(task.run)
        return task

    @classmethod
    def _locking(cls, run: Callable[..., Any]) -> Callable[..., Any]:
        with refused_in_one_line(f"task {cls.name or cls.__qualname__}"):
            return _under_lock(**cls.gpu_lock)(run)

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Celery calls this after a failure. Whatever the task still holds in this process is released."""
        if isinstance(exc, GpuLockError):
            logger.error("%s[%s]: %s", self.name, task_id, exc)
        lease = _held.pop(task_id, None)
        if lease is not None:
            lease.leave("task_failure", exc)


def current_lease() -> sync.Lease:
    """The lease of the task that runs in this thread: its fencing token, `check()`, … Raises `LookupError`."""
    lease: sync.Lease | None = getattr(_thread, "lease", None)
    if lease is None:
        raise LookupError("no task that holds a GPU runs in this thread")
    return lease


def _check_default(gpu_id: int | str, signature: inspect.Signature) -> None:
    """The body is told its own default, so that GPU is locked; another one in the options would never be."""
    parameter = signature.parameters.get("gpu_id")
    default = parameter.default if parameter else None
    if default not in (None, inspect.Parameter.empty) and gpu_id not in (0, default):
        raise ConfigError(
            f"gpu_lock says gpu_id {gpu_id!r}, and the task's own default is gpu_id={default!r}, which its body gets: "
            "leave one of them out"
        )


def _named_gpu(call: inspect.BoundArguments) -> Any:
    """The ``gpu_id`` of a call; None if it has none."""
    call.apply_defaults()
    for name, value in call.arguments.items():
        if name == "gpu_id":
            return value
        if call.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD and "gpu_id" in value:
            return value["gpu_id"]
    return None


def _run(gpu_id: Any, options: Mapping[str, Any], body: Callable[[], R]) -> R:
    """A body under its lock, which is free again wherever the exception of a time limit comes out."""
    request = current_task.request if current_task else None
    task_id = (request and request.id) or secrets.token_hex(8)  # called directly, a task has no id
    name = f"{current_task.name if current_task else 'task'}[{task_id}]"  # as in Celery's own log
    lock = sync.gpu_lock(gpu_id, task_name=name, **options)
    lock.reason_for = lambda error: _reason_for(error, task_id)
    outer: sync.Lease | None = getattr(_thread, "lease", None)
    lease: sync.Lease | None = None
    announce()
    try:
        with lock as lease:
            _thread.lease = _held[task_id] = lease
            return body()
    finally:
        if lease is not None:
            lease.insist()
            _held.pop(task_id, None)
        _thread.lease = outer


def _reason_for(error: BaseException | None, task_id: str) -> str:
    if error is None:
        return "normal"
    if isinstance(error, Retry):
        return "exception"
    if isinstance(error, TaskPredicate):  # Ignore, Reject: said by the task itself
        return "normal"
    # SIGTERM ends a task that was revoked, one whose hard time limit is over, and all of them at a cold shutdown.
    return "task_failure" if isinstance(error, Exception) or declared_failed(task_id) else "cancelled"
