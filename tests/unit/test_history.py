"""The history of a lock: its event stream read back, and the wait that the past lets expect."""

from __future__ import annotations

import pytest
import redis

from aiogpulock import GpuLockManager, InvalidGpuError, LeaseLostError
from aiogpulock.history import expected_wait, typical_hold
from aiogpulock.models import HistoryEvent


async def test_each_hold_is_one_event_newest_first(manager: GpuLockManager) -> None:
    async with manager.lock(0, task_name="first"):
        pass
    with pytest.raises(KeyError):
        async with manager.lock(0, task_name="second") as lease:
            raise KeyError

    second, first = await manager.history(0)

    assert (first.task_name, first.event, first.reason) == ("first", "released", "normal")
    assert (second.task_name, second.reason, second.fencing_token) == ("second", "exception", lease.fencing_token)
    assert second.holder_id == lease.holder_id
    assert first.at <= second.at
    assert [event.task_name for event in await manager.history(0, limit=1)] == ["second"]


async def test_a_forced_release_names_its_actor(manager: GpuLockManager) -> None:
    lease = await manager.lock(0).acquire()
    await manager.force_release(0, reason="maintenance", actor="alice")

    (event,) = await manager.history(0)
    with pytest.raises(LeaseLostError):
        await lease.release()

    assert (event.event, event.reason, event.actor) == ("forced", "forced", "alice (maintenance)")
    assert event.fencing_token == lease.fencing_token


async def test_an_unknown_lock_has_no_history_and_a_bad_id_is_refused(manager: GpuLockManager) -> None:
    assert await manager.history("never-used") == []
    with pytest.raises(InvalidGpuError):
        await manager.history("no such id")


async def test_strange_entries_harm_nobody(manager: GpuLockManager, redis_cleanup: redis.Redis) -> None:
    redis_cleanup.xadd(
        "{gpu_lock:0}:events", {"event": "odd", "token": "1e99", "wait_ms": "\xff", "hold_ms": "9" * 5000, "more": "x"}
    )
    redis_cleanup.expire("{gpu_lock:0}:events", 60)

    (event,) = await manager.history(0)

    assert (event.event, event.fencing_token, event.wait, event.details) == ("odd", 0, 0, {"more": "x"})


def _held(seconds: float, event: str = "released") -> HistoryEvent:
    return HistoryEvent(
        gpu_id="0", at=0, event=event, task_name="", fencing_token=1, holder_id="", reason="", actor="", wait=0,
        hold=seconds, details={},
    )  # fmt: skip


def test_the_expected_wait_counts_the_rest_of_this_hold_and_those_ahead() -> None:
    typical = typical_hold([_held(900, "reaped"), _held(10), _held(20), _held(30)])

    assert typical == 20
    assert expected_wait(typical, 1, held_for=5) == 15
    assert expected_wait(typical, 3, held_for=5) == 55
    assert expected_wait(typical, 1, held_for=60) == 0  # longer than usual: it may end at any moment
    assert expected_wait(typical, 2, held_for=None) == 20
    assert expected_wait(typical_hold([]), 1, held_for=5) is None
