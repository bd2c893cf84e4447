"""Waiting for a lock to be free without standing in its queue: told by what happens to it, and by a look now and then.

A release is announced on the lock's public channel, the death of a holder on this host by the kernel, the end of a
lease by its deadline. Whatever gets lost, a look finds it: each `fallback_timeout`, or each `poll_interval` where no
message arrives, or another program has the lock, which may go without a word.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiogpulock.cli.lock_words import is_free, state_of
from aiogpulock.keys import LockKeys, inbox_channel
from aiogpulock.manager import GpuLockManager
from aiogpulock.models import LockSnapshot
from aiogpulock.wakeups import Inbox

SOON = 0.5
"""Seconds until the next look at a lock that is on its way from one to the next: nothing announces a grant."""
AFTER_DEADLINE = 0.002
"""Seconds after which Redis has seen a deadline pass: it counts in whole ms."""


async def until_free(manager: GpuLockManager, gpu: str, timeout: float | None) -> LockSnapshot:
    """Wait for at most `timeout` seconds until nobody holds the GPU or waits for it; answers the last look at it.

    Raises `InvalidGpuError` for an id that means no GPU here and no lock that is held, `RedisUnavailableError`.
    """
    keys = await manager.keys_of(gpu)
    lock = await manager.scripts.snapshot(keys)
    if is_free(lock):
        await manager.device(gpu)
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout), _heard(manager, keys) as (inbox, stirred):
            while not is_free(lock):
                gone = not lock.foreign and lock.process and manager.parts.watch.watch(lock.process, stirred.set)
                with suppress(TimeoutError):
                    async with asyncio.timeout(SOON if gone else _next_look(manager, lock, events=inbox.healthy)):
                        await stirred.wait()
                stirred.clear()  # before the look: what happens during it is heard after it
                lock = await manager.scripts.snapshot(keys)
    return lock


def _next_look(manager: GpuLockManager, lock: LockSnapshot, *, events: bool) -> float:
    """Seconds until something can have changed that nobody tells of."""
    settings = manager.settings.gpu_lock
    looks = [settings.fallback_timeout if events and not lock.foreign else settings.poll_interval]
    end = lock.expires_in if lock.foreign else lock.deadline_in
    if end is not None and end > 0:
        looks.append(end + AFTER_DEADLINE)
    if state_of(lock) not in ("held", "foreign"):
        looks.append(SOON)
    return min(looks)


@asynccontextmanager
async def _heard(manager: GpuLockManager, keys: LockKeys) -> AsyncIterator[tuple[Inbox, asyncio.Event]]:
    """An event that is set at each release of one lock, and when messages can arrive again, or cannot."""
    stirred = asyncio.Event()
    client = manager.parts.client
    inbox = Inbox(
        client,
        inbox_channel(manager.namespace, client.database, secrets.token_hex(8)),
        on_message=lambda _: None,
        on_release=lambda _: stirred.set(),
        on_health=lambda _: stirred.set(),
        on_unreachable=manager.unreachable,
    )
    try:
        await inbox.follow_releases(keys.release_channel, keys.lock)
        await inbox.ready()
        yield inbox, stirred
    finally:
        manager.parts.watch.discard(stirred.set)
        await inbox.close()
