"""What a started manager is made of: its connections, and the parts that live as long as they do."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from aiogpulock.caretaker import Caretaker
from aiogpulock.config import Settings
from aiogpulock.errands import Errands
from aiogpulock.gpu.aliases import Aliases
from aiogpulock.gpu.finder import Finder
from aiogpulock.gpu.nvml import shared
from aiogpulock.guard import Guard
from aiogpulock.health import Health, Survey
from aiogpulock.heartbeat import Heartbeat
from aiogpulock.incoming import Incoming
from aiogpulock.index import Index
from aiogpulock.keys import LockKeys, inbox_channel
from aiogpulock.lease import Hold
from aiogpulock.liveness import ProcessWatch, boot_id
from aiogpulock.redis_client import RedisClient
from aiogpulock.scripts import Scripts
from aiogpulock.server_check import restart_grace_left
from aiogpulock.server_link import ServerLink
from aiogpulock.sight import Observer
from aiogpulock.verdicts import Verdicts
from aiogpulock.waiting import WaitingRoom
from aiogpulock.wakeups import Inbox

if TYPE_CHECKING:
    from aiogpulock.manager import GpuLockManager


class Overview:
    """Looks at all locks on a connection of its own: a thousand waiting acquires delay no health check."""

    def __init__(self, link: ServerLink, namespace: str) -> None:
        self.client = link.client(connections=1)
        self.scripts = Scripts(self.client, link.clean_run)
        self.observer = Observer(self.client, self.scripts, namespace)
        self._namespace = namespace
        self._health: Health | None = None

    async def survey(self, settings: Settings, limit: float) -> Survey:
        """`limit`: the seconds that the caller waits. Raises `RedisUnavailableError`, `AuthenticationError`."""
        if self._health is None:
            self._health = Health(self.client, self.scripts, self._namespace, settings.gpu_lock_alerts.window)
        return await self._health.look(settings, limit)

    async def close(self) -> None:
        await self.client.close()


class Parts:
    """What a started manager is made of."""

    def __init__(self, manager: GpuLockManager, client: RedisClient, urgent: RedisClient) -> None:
        self.client = client
        self.scripts = Scripts(client, manager.link.clean_run)
        self.urgent = Scripts(urgent, manager.link.clean_run)
        self.rooms: dict[tuple[str, bool], WaitingRoom] = {}
        self.watch = ProcessWatch()
        self.errands = Errands()
        self.index = Index(client, manager.namespace)
        incoming = Incoming(manager, self)
        self.inbox = Inbox(
            client,
            inbox_channel(manager.namespace, client.database, secrets.token_hex(8)),
            on_message=incoming.message,
            on_release=incoming.release,
            on_health=incoming.health,
            on_unreachable=manager.unreachable,
        )
        self.overview = Overview(manager.link, manager.namespace)
        self.heartbeat = Heartbeat(
            manager.holds, self.urgent, cap=self._beat_cap, unreachable=manager.unreachable, restored=self._restored
        )
        self.finder = Finder(
            shared(),
            Aliases(client.execute_many, manager.namespace, boot_id(), self._grace_left),
            connect_timeout=manager.connect_timeout,
            connected=lambda: self.inbox.healthy,
            later=self.errands.add,
        )
        verdicts = Verdicts(shared(), self.scripts, self.errands)  # behind the hand-off: no release waits for them
        self.caretaker = Caretaker(shared(), self.urgent, verdicts, manager.incidents, manager.companions)
        self._manager = manager
        self._urgent_client = urgent
        self._guard: Guard | None = None

    def room(self, keys: LockKeys, *, event_driven: bool) -> WaitingRoom:
        room = self.rooms.get((keys.lock, event_driven))
        if room is None:
            events: Callable[[], bool] = (lambda: self.inbox.healthy) if event_driven else (lambda: False)
            on_empty = partial(self.rooms.pop, (keys.lock, event_driven), None)
            room = self.rooms[keys.lock, event_driven] = WaitingRoom(events, self.watch, on_empty)
        return room

    def guard(self) -> Guard:
        if self._guard is None:
            manager = self._manager
            self._guard = Guard(
                manager.link.url,
                manager.holds,
                manager.running_loop,
                timeout=min(2.0, manager.connect_timeout),
                ticked_at=lambda: self.heartbeat.ticked_at,
                clean_run=manager.link.clean_run,
                on_stall=_report_stall(manager),
                restored=self._restored,
            )
        return self._guard

    def _restored(self, hold: Hold) -> None:
        """Redis had forgotten a lock, so it may not know which there are either."""
        self._manager.later(f"index of {hold.keys.lock}", partial(self.index.add, hold.keys.gpu_id))

    async def _grace_left(self) -> float:
        manager = self._manager
        return await restart_grace_left(self.client, manager.settings.gpu_lock.restart_grace, manager.link.clean_run())

    def _beat_cap(self) -> float:
        """A holder without an inbox learns of a restart only by its beats: they must come within the grace."""
        if self.inbox.healthy:
            return float("inf")
        return self._manager.settings.gpu_lock.restart_grace / 2 or float("inf")

    async def end_waiting(self) -> None:
        """Waiters find the manager closed, and leave the queue while there are connections."""
        deadline = time.monotonic() + self._manager.connect_timeout
        while any(len(room) for room in self.rooms.values()) and time.monotonic() < deadline:
            for room in self.rooms.values():
                room.wake_all()
            await asyncio.sleep(0.002)

    async def close(self) -> None:
        for room in self.rooms.values():
            room.close()
        await self.caretaker.close()
        await self.errands.close()
        await self.heartbeat.close()
        await self.inbox.close()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()
        self.watch.close()
        await self.overview.close()
        await self.client.close()
        await self._urgent_client.close()


def _report_stall(manager: GpuLockManager) -> Callable[[Hold, float], None]:
    def report(hold: Hold, late: float) -> None:
        text = (
            f"the event loop has been blocked for {late:.1f} s; the guard thread beats for it "
            f"for at most {hold.terms.max_stall:g} s. Move blocking work to a thread"
        )
        manager.incidents.alert("loop_stalled", "warning", hold.keys, text, holder=hold.id, task_name=hold.task_name)

    return report
