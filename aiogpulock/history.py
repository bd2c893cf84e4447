"""What happened to a lock: its event stream read back, and what it tells of waits to come."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from aiogpulock.keys import LockKeys
from aiogpulock.models import HistoryEvent
from aiogpulock.redis_client import RedisClient

MOST_EVENTS = 2000
"""More than a stream of ours keeps."""
MOST_DIGITS = 18
"""Of a number in an event; Python refuses to read one of some thousands."""
ETA_HOLDS = 20
"""How many of the last holds an estimate is made of."""


async def read_history(client: RedisClient, keys: LockKeys, limit: int) -> list[HistoryEvent]:
    """The last `limit` events of one lock, newest first. Raises `RedisUnavailableError`."""
    entries = await client.execute("XREVRANGE", keys.events, "+", "-", "COUNT", limit)
    return [_event(keys.gpu_id, entry) for entry in entries]


async def read_since(client: RedisClient, keys: LockKeys, since: float) -> list[HistoryEvent]:
    """The events of one lock from `since` (epoch seconds, the server's clock) on, oldest first."""
    entries = await client.execute("XRANGE", keys.events, round(since * 1000), "+", "COUNT", MOST_EVENTS)
    return [_event(keys.gpu_id, entry) for entry in entries]


def typical_hold(events: Sequence[HistoryEvent]) -> float | None:
    """Seconds of the median of the last holds, `events` newest first; None without any."""
    holds = [event.hold for event in events if event.event == "released"][:ETA_HOLDS]
    return statistics.median(holds) if holds else None


def expected_wait(typical: float | None, position: int, held_for: float | None) -> float | None:
    """Seconds until the waiter at `position` (from 1) gets the lock, as far as the past tells.

    `held_for`: how long the holder has had it by now; None: nobody has.
    """
    if typical is None:
        return None
    rest = max(0.0, typical - held_for) if held_for is not None else 0.0
    return rest + (position - 1) * typical


def _event(gpu_id: str, entry: tuple[bytes, list[bytes]]) -> HistoryEvent:
    stream_id, flat = entry
    texts = [part.decode("utf-8", "backslashreplace") for part in flat]
    fields = dict(zip(texts[::2], texts[1::2], strict=False))
    return HistoryEvent(
        gpu_id=gpu_id,
        at=int(stream_id.partition(b"-")[0]) / 1000,
        event=fields.pop("event", ""),
        task_name=fields.pop("task", ""),
        fencing_token=_whole(fields.pop("token", "")),
        holder_id=fields.pop("holder", ""),
        reason=fields.pop("reason", ""),
        actor=fields.pop("actor", ""),
        wait=_whole(fields.pop("wait_ms", "")) / 1000,
        hold=_whole(fields.pop("hold_ms", "")) / 1000,
        details=fields,
    )


def _whole(text: str) -> int:
    """0 for what no script of ours writes: anybody may add to a stream."""
    return int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else 0
