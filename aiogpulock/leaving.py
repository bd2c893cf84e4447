"""Leaving a lock, in three isolated layers: clean-up, release, emergency release.

Nothing here masks the body's exception, and nothing deletes somebody else's lock: all is by id and token.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio

from aiogpulock import clock
from aiogpulock.errors import GpuLockError, ProtocolError
from aiogpulock.lease import Hold
from aiogpulock.models import quarantine_of
from aiogpulock.replies import Released
from aiogpulock.scripts import Scripts

if TYPE_CHECKING:
    from aiogpulock.manager import GpuLockManager

logger = logging.getLogger(__name__)

CleanUp: TypeAlias = Callable[[], Awaitable[None] | None]
T = TypeVar("T")

_cleaned_up: ContextVar[Hold | None] = ContextVar("cleaned_up", default=None)
"""Whose clean-up hook runs here: also in the tasks that it starts."""

_ORDERED = ("forced", "forced_by_monitor")
"""Ends that somebody wanted: whoever finds one at its release has violated nothing."""

SHIELD_SECONDS = 15.0
"""Bound on what goes on against a cancellation."""


async def finish(step: Callable[[], Awaitable[T]]) -> T:
    """Run an idempotent step to its end, whatever cancels meanwhile; then let the cancellation through.

    It is run again after each cancellation, in the same task and not in a helper: `asyncio.run` cancels helpers too.
    An anyio scope cancels at every await until it is left, so it is shielded off.
    """
    try:
        return await step()
    except asyncio.CancelledError as error:
        cancelled = error
    deadline = clock.now() + SHIELD_SECONDS
    with anyio.CancelScope(shield=True):
        while clock.now() < deadline:
            try:
                await step()
                break
            except asyncio.CancelledError as error:
                cancelled = error
    raise cancelled


async def leave(manager: GpuLockManager, hold: Hold, reason: str, clean_up: CleanUp | None = None) -> Released | None:
    """End a hold. Answers what Redis said; None if it could not be reached: the lease then ends by its deadline.

    Who ends it a second time meanwhile waits for the first: while that waits for the GPU's memory, nobody hands on.
    """
    if hold.state == "released" or manager.forked:
        return None
    if hold.leaving is not None:
        if _cleaned_up.get() is hold:  # by its clean-up hook, which is a part of the first
            return None
        return await asyncio.shield(hold.leaving)
    hold.leaving = left = asyncio.get_running_loop().create_future()
    released: Released | None = None
    try:
        released = await _leave(manager, hold, reason, clean_up)
    finally:
        hold.leaving = None
        left.set_result(released)
    return released


async def leave_all(manager: GpuLockManager, reason: str) -> None:
    """End every hold of a manager, side by side: when Redis hangs, all together take as long as one."""
    async with asyncio.TaskGroup() as group:
        for hold in manager.holds.all():
            group.create_task(leave(manager, hold, reason))


async def _leave(manager: GpuLockManager, hold: Hold, reason: str, clean_up: CleanUp | None) -> Released | None:
    if reason == "leaked":
        hold.dirty = True  # nobody waits for the body: it may still compute
    try:
        if clean_up is not None:
            await _clean_up(manager, hold, clean_up)
        if reason != "leaked":  # for that nobody waits: the next holder looks
            await manager.caretaker.before_release(hold)
    except asyncio.CancelledError:
        await finish(lambda: manager.caretaker.cut_short(hold))
        raise
    finally:
        hold.begin_release()
        released: Released | None = None
        try:
            released = await finish(lambda: _release(manager, hold, reason))
        finally:
            hold.end_release()
            manager.forget(hold)
            in_order = hold.lost_reason is None and (released is None or released.ok)
            manager.caretaker.end(hold, in_order=in_order)
    return released


async def _clean_up(manager: GpuLockManager, hold: Hold, clean_up: CleanUp) -> None:
    token = _cleaned_up.set(hold)
    try:
        result = clean_up()
        if inspect.isawaitable(result):
            await result
    except Exception:
        logger.exception(
            "the clean-up hook of %s on %s failed; the lock is released all the same", hold.task_name, hold.keys.lock
        )
        manager.incidents.keep("cleanup_failures", hold.keys)
    finally:
        _cleaned_up.reset(token)


async def _release(manager: GpuLockManager, hold: Hold, reason: str) -> Released | None:
    try:
        released = await _end(manager.urgent, hold, reason)
    except GpuLockError as error:
        return await _emergency(manager, hold, error)
    await _after(manager, hold, released)
    return released


async def _end(scripts: Scripts, hold: Hold, reason: str) -> Released:
    return await scripts.release(
        hold.keys, hold.terms.script, hold.id, hold.token, reason, hold.quarantine, dirty=hold.dirty
    )


async def _after(manager: GpuLockManager, hold: Hold, released: Released) -> None:
    if not released.ok and hold.lost_reason is None and released.detail not in _ORDERED:
        manager.incidents.count("ownership_violations", hold.keys)
    if released.ok and (told := quarantine_of(hold.quarantine)):
        manager.incidents.alert("gpu_quarantined", "critical", hold.keys, f"{hold.keys.lock}: {told.reason}")
    if released.more:
        manager.resume_later(hold.keys, hold.terms.script)


async def _emergency(manager: GpuLockManager, hold: Hold, error: GpuLockError) -> Released | None:
    """The normal release failed: bounded retries, each on a fresh connection, still by id."""
    incidents = manager.incidents
    incidents.count("normal_release_failures", hold.keys)
    if isinstance(error, ProtocolError):
        incidents.count("release_script_errors", hold.keys)
    released = await _retry(manager, hold)
    failure = incidents.record(hold.keys, hold.task_name, error, released=released is not None)
    whose: dict[str, Any] = {"holder": hold.id, "task_name": hold.task_name, "record": failure}
    if released is not None:
        incidents.count("emergency_releases", hold.keys)
        text = f"{hold.keys.lock} was released by a retry: {error}"
        incidents.alert("gpu_lock_emergency_release", "warning", hold.keys, text, **whose)
        await _after(manager, hold, released)
    else:
        text = f"{hold.keys.lock} could not be released and stays held until its lease ends: {error}"
        incidents.alert("gpu_lock_critical_failure", "P0", hold.keys, text, **whose)
    return released


async def _retry(manager: GpuLockManager, hold: Hold) -> Released | None:
    pause, deadline = 0.05, clock.now() + manager.emergency_seconds
    while True:
        try:
            return await manager.emergency_scripts(lambda scripts: _end(scripts, hold, "emergency"))
        except GpuLockError as error:
            logger.warning("emergency release of %s failed: %s", hold.keys.lock, error)
        if clock.now() + pause >= deadline:
            return None
        await asyncio.sleep(pause)
        pause *= 2


def reason_for(error: BaseException | None) -> str:
    """The release reason of a body that ended by `error`."""
    if error is None:
        return "normal"
    if isinstance(error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt):
        return "cancelled"
    return "timeout" if isinstance(error, TimeoutError) else "exception"
