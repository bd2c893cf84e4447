"""Alerts of other processes, and what other monitors repaired: the history of the lock has it, and here it is found."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import cast, get_args

import msgspec

from aiogpulock.errors import AuthenticationError, ProtocolError
from aiogpulock.history import read_since
from aiogpulock.keys import LockKeys, lock_keys
from aiogpulock.models import Alert, AlertLevel, CriticalFailure, HistoryEvent, LockSnapshot, lock_value
from aiogpulock.monitor.plan import Repair
from aiogpulock.monitor.speaker import Turn
from aiogpulock.redis_client import RedisClient

logger = logging.getLogger(__name__)

REPAIRS = {"reap": "reaped", "force_release": "forced", "end_foreign": "forced", "sweep": "swept"}
"""Actions, and the events that they leave."""
COUNTERS = (
    "alerts",
    "memory_not_freed",
    "ended_lease_expired",
    "ended_process_gone",
    "ended_forced_by_monitor",
    "sweeps",
)


class Elsewhere:
    """Finds the alerts that came since people were last told. Who does not speak looks for none.

    The shared counters of a lock tell whether there are any, so a quiet lock costs no command.
    """

    def __init__(self, actor: str) -> None:
        """`actor`: the monitor that asks, in the history. Another one may have the same."""
        self._actor = actor
        self._told: Counter[tuple[str, str, str]] = Counter()
        """Its own repairs that people know of, and the history has not shown yet."""
        self._counts: dict[str, int] = {}
        """Alerts of each lock, all of which have been found by `_until`."""
        self._until = 0.0
        self._refused = False

    def has_told(self, repair: Repair) -> None:
        """People know of this repair: in the history it is no news."""
        self._told[repair.key, REPAIRS[repair.action], "" if repair.action == "sweep" else repair.value or ""] += 1

    async def alerts(
        self, client: RedisClient, namespace: str, locks: Iterable[LockSnapshot], turn: Turn
    ) -> list[Alert]:
        """Of snapshots that were made in this turn; what comes after its beginning is the next one's.

        Raises `RedisUnavailableError`.
        """
        if not turn.speaks:
            self._told.clear()
            return []
        since = turn.told_until or turn.began  # what came before the first monitor is old news
        known = self._counts if since == self._until else {}  # another one spoke meanwhile, or the last round failed
        self._counts, self._until = {}, turn.began
        found: list[Alert] = []
        for lock in locks:
            count = sum(lock.stats.get(counter, 0) for counter in COUNTERS)
            if count != known.get(lock.key, 0):
                events = await self._read(client, lock_keys(lock.gpu_id, namespace), since)
                due = (event for event in events if event.at < turn.began and not self._knows(lock, event))
                found += [alert for event in due if (alert := _alert(lock, event))]
                if any(event.at >= turn.began for event in events):
                    continue  # the count may have one that is not due yet: look again
            self._counts[lock.key] = count
        return found

    def _knows(self, lock: LockSnapshot, event: HistoryEvent) -> bool:
        value = lock_value(event.task_name, event.holder_id) if event.holder_id else event.task_name
        deed = lock.key, event.event, value
        if event.actor != self._actor or not self._told[deed]:
            return False
        self._told[deed] -= 1
        return True

    async def _read(self, client: RedisClient, keys: LockKeys, since: float) -> list[HistoryEvent]:
        try:
            return await read_since(client, keys, since)
        except (AuthenticationError, ProtocolError) as error:  # a right is missing, or something else has the key
            if not self._refused:
                self._refused = True
                text = (
                    "alerts of other processes cannot be read: add +xrange to the user's ACL, or see what is in %s (%s)"
                )
                logger.warning(text, keys.events, error)
            return []


def _alert(lock: LockSnapshot, event: HistoryEvent) -> Alert | None:
    """Anybody may add to a stream: what is strange comes out as a warning with its text."""
    details = event.details
    if event.event == "alert":
        level = details.get("level", "")
        known = cast(AlertLevel, level) if level in get_args(AlertLevel) else "warning"
        message = f"{details.get('message', '')} (told by {event.actor})"
        return Alert(event.reason, known, lock.key, message, event.holder_id, event.task_name, _record(details))
    if event.event == "memory" and details.get("status") == "not_freed":
        text = f"{event.task_name} has released {lock.key}, and its GPU memory did not come back: {event.reason}"
        return Alert("memory_not_freed", "warning", lock.key, text, event.holder_id, event.task_name)
    if event.event in REPAIRS.values() and event.actor.startswith("monitor "):
        text = f"{lock.key}: {event.event}, {event.reason} (by {event.actor})"
        whose = event.holder_id or event.task_name or f"{event.at:.3f}"  # a sweep is nobody's: each is told
        return Alert("zombie_lock_cleaned", "warning", lock.key, text, whose, event.task_name)
    return None


def _record(details: dict[str, str]) -> CriticalFailure | None:
    try:
        return msgspec.json.decode(details.get("record", ""), type=CriticalFailure)
    except (msgspec.DecodeError, UnicodeError):
        return None
