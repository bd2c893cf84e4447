"""One look at all locks for everybody who watches.

It looks when a lock is released, since each release is announced, and once per `EVERY` beside that, since nothing
announces that a free lock was taken. Nobody watches: nobody looks.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import msgspec

from aiogpulock.default import FindManager
from aiogpulock.errors import AuthenticationError, GpuLockError, ProtocolError
from aiogpulock.gpu.nvml import Nvml, shared
from aiogpulock.gpu.records import NvmlError
from aiogpulock.keys import inbox_channel, lock_keys
from aiogpulock.manager import GpuLockManager
from aiogpulock.models import HistoryEvent, LockSnapshot
from aiogpulock.wakeups import Inbox
from aiogpulock.web.view import HOLDS, Device, View, gpus_of, hold_points, recent_events

logger = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between looks while nothing is heard."""
SHARE = 0.1
"""Looking takes at most this part of the time, however many locks there are."""
GAP, SETTLE = 0.1, 0.2
"""Seconds between looks while much is heard, and until the second look after a release: the next holder claims."""

SCAN_PAGES = 1
"""Per look: a look may come ten times a second, and a large keyspace must cost none of them much."""


class Feed:
    """The views of one manager's locks, as JSON. `watch` may be called by any number of clients."""

    def __init__(self, find_manager: FindManager, *, can_release: bool, nvml: Nvml | None = None) -> None:
        self._find_manager = find_manager
        self._nvml = nvml or shared()
        self._view = View(version=_version(), can_release=can_release)
        self._encoded = b""
        self._ahead = 0.0
        """Seconds by which the server's clock is ahead of ours."""
        self._histories: dict[str, tuple[object, Sequence[HistoryEvent]]] = {}
        self._watchers: set[asyncio.Event] = set()
        self._stirred = asyncio.Event()
        self._closed = False
        self._looking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.looks = 0

    def now(self) -> float:
        """The Redis server's clock, as far as it is known."""
        return time.time() + self._ahead

    async def watch(self) -> AsyncGenerator[bytes, None]:
        """The view as it is, then each change, until `close`. Who is slow gets the newest only."""
        news = asyncio.Event()
        self._watchers.add(news)
        if self._looking is None:
            self._encoded = b""  # what was seen last may be hours old
            self._looking = asyncio.create_task(self._run(), name="aiogpulock-feed")
            self._tasks.add(self._looking)
            self._looking.add_done_callback(self._tasks.discard)
        sent = b""
        try:
            while not self._closed:
                if self._encoded is not sent and self._encoded:
                    sent = self._encoded
                    yield sent
                await news.wait()
                news.clear()
        finally:
            self._watchers.discard(news)
            if not self._watchers:
                self._rest()

    async def close(self) -> None:
        """End every `watch`, and the looking."""
        self._closed = True
        for news in self._watchers:
            news.set()
        self._rest()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _rest(self) -> None:
        """Without an await: a watcher may leave by cancellation. The task is awaited by `close`."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()

    async def _run(self) -> None:
        async with _releases(self._stirred.set) as follow:
            heard = False
            while True:
                began = time.monotonic()
                self._show(await self._look(follow))
                took = time.monotonic() - began
                heard = await self._pause(SETTLE if heard else max(EVERY, took / SHARE), max(GAP, took / SHARE))

    async def _pause(self, limit: float, least: float) -> bool:
        """Until something is heard; answers whether it was."""
        await asyncio.sleep(min(least, limit))
        try:
            async with asyncio.timeout(max(0.0, limit - least)):
                await self._stirred.wait()
        except TimeoutError:
            return False
        finally:
            self._stirred.clear()
        return True

    def _show(self, view: View) -> None:
        if view == self._view and self._encoded:
            return
        self._view, self._encoded = view, msgspec.json.encode(view)
        for news in self._watchers:
            news.set()

    async def _look(self, follow: Follow) -> View:
        """The view now; if Redis cannot be asked, the last one with the reason."""
        self.looks += 1
        try:
            return await self._see(follow)
        except GpuLockError as error:
            return msgspec.structs.replace(self._view, error=str(error))
        except Exception:  # the page must not stop at what nobody thought of
            logger.exception("the page's feed failed to look")
            return msgspec.structs.replace(self._view, error="the server failed to look at the locks: see its log")

    async def _see(self, follow: Follow) -> View:
        manager = await self._find_manager()
        sight = await (await manager.started()).overview.observer.look(SCAN_PAGES)
        locks = sight.locks
        await follow(manager, locks)
        if locks:
            self._ahead = locks[-1].at - time.time()
        histories, unread = await self._read_histories(manager, locks)
        devices, missing = await self._devices(manager.settings.gpu_lock.gpu_memory.nvml == "off")
        return msgspec.structs.replace(
            self._view,
            server=manager.server or "",
            namespace=manager.namespace,
            nvml=missing,
            error="",
            unread=unread,
            gpus=gpus_of(sight, histories, devices),
            events=recent_events(histories),
            holds=hold_points(histories),
        )

    async def _read_histories(self, manager: GpuLockManager, locks: Sequence[LockSnapshot]) -> tuple[Histories, str]:
        """Those that can be read, and why another cannot: a right may be missing, or its key be something else."""
        read, unread = {}, ""
        for lock in locks:
            try:
                read[lock.gpu_id] = await self._history(manager, lock)
            except (AuthenticationError, ProtocolError) as error:
                unread = str(error)
        self._histories = read
        return {gpu_id: events for gpu_id, (_, events) in read.items()}, unread

    async def _history(self, manager: GpuLockManager, lock: LockSnapshot) -> tuple[object, Sequence[HistoryEvent]]:
        """Read only where something happened: every event leaves a trace in the counters or in the holder."""
        trace = (lock.holder_id, lock.value, lock.stats)
        known = self._histories.get(lock.gpu_id)
        if known is not None and known[0] == trace:
            return known
        return trace, await manager.history(lock, limit=HOLDS)

    async def _devices(self, off: bool) -> tuple[list[Device], str]:
        if off:
            return [], "gpu_lock.gpu_memory.nvml is 'off'"
        try:
            found = await self._nvml.devices()
        except NvmlError as error:
            return [], str(error)
        devices = []
        for gpu in found:
            if gpu.mig_enabled:
                continue  # its parts are locked, never the whole
            device = Device(gpu.uuid, gpu.index, gpu.name, fault=gpu.fault)
            if not gpu.fault:
                try:
                    memory = await self._nvml.read(gpu.uuid, processes=False)
                    device = msgspec.structs.replace(device, used=memory.used, total=memory.total)
                except NvmlError as error:
                    device = msgspec.structs.replace(device, fault=str(error))
            devices.append(device)
        return devices, ""


def _version() -> str:
    try:
        return version("aiogpulock")
    except PackageNotFoundError:  # run from its sources
        return ""


Histories = dict[str, Sequence[HistoryEvent]]
"""By lock, newest first."""
Follow = Callable[[GpuLockManager, Sequence[LockSnapshot]], Awaitable[None]]


@asynccontextmanager
async def _releases(heard: Callable[[], None]) -> AsyncIterator[Follow]:
    """Call `heard` at each release of the locks that the caller follows; also when a connection comes or goes."""
    inbox: Inbox | None = None
    followed: set[str] = set()

    async def follow(manager: GpuLockManager, locks: Sequence[LockSnapshot]) -> None:
        nonlocal inbox
        if inbox is None:
            parts = await manager.started()
            inbox = Inbox(
                parts.client,
                inbox_channel(manager.namespace, parts.client.database, secrets.token_hex(8)),
                on_message=lambda _: None,
                on_release=lambda _: heard(),
                on_health=lambda _: heard(),
                on_unreachable=manager.unreachable,
            )
            await inbox.ready()
        there = {
            keys.release_channel: keys.lock for lock in locks if (keys := lock_keys(lock.gpu_id, manager.namespace))
        }
        for channel in followed - there.keys():
            await inbox.unfollow_releases(channel)
        for channel, key in there.items():
            await inbox.follow_releases(channel, key)
        followed.clear()
        followed.update(there)

    try:
        yield follow
    finally:
        if inbox is not None:
            await inbox.close()
