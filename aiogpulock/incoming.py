"""What the inbox hears, and whom it concerns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiogpulock.errors import InvalidGpuError
from aiogpulock.keys import LockKeys, check_gpu_id, lock_keys
from aiogpulock.wakeups import Grant, Lost, Message

if TYPE_CHECKING:
    from aiogpulock.manager import GpuLockManager
    from aiogpulock.parts import Parts


class Incoming:
    """The ears of one manager."""

    def __init__(self, manager: GpuLockManager, parts: Parts) -> None:
        self._manager = manager
        self._parts = parts

    def message(self, message: Message) -> None:
        """One of ours, to this process alone."""
        room = self._parts.rooms.get((message.lock, True))
        match message:
            case Grant():
                if not (room and room.granted(message)) and message.id not in self._manager.holds:
                    self._hand_on(message)
            case Lost():
                hold = self._manager.holds.get(message.id)
                if hold is not None:
                    hold.revocation = message.reason
                    self._parts.heartbeat.beat_now()
            case _:
                if room:
                    room.next_in_line(message)

    def release(self, lock: str) -> None:
        """An older program released: the first in line looks."""
        for (key, _), room in self._parts.rooms.items():
            if key == lock:
                room.wake_first()

    def health(self, healthy: bool) -> None:
        """The inbox hears again, or no more."""
        if healthy:  # the server may have restarted without its data
            self._parts.heartbeat.beat_now()
            self._parts.index.forget()
            self._manager.later("aliases", self._parts.finder.restore)
        for room in self._parts.rooms.values():
            room.health_changed()

    def _hand_on(self, grant: Grant) -> None:
        """Nobody here waits for it any more."""
        manager, keys = self._manager, self._keys_of(grant.lock)
        if keys is not None:
            manager.withdraw_later(keys, manager.script_terms(), grant.id, "cancelled", self._parts.inbox.channel)

    def _keys_of(self, lock: str) -> LockKeys | None:
        """None for a name that no lock can have: messages can be forged."""
        namespace = self._manager.namespace
        try:
            return lock_keys(check_gpu_id(lock.removeprefix(f"{namespace}:")), namespace)
        except InvalidGpuError:
            return None
