"""How often a process looks without being told, and who of its waiters does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiogpulock.liveness import ProcessWatch
from aiogpulock.replies import Waiting
from aiogpulock.waiting import Pace, Waiter, WaitingRoom
from aiogpulock.wakeups import Grant, Watch
from tests.unit.support import eventually

PACE = Pace(fallback=30, poll=2, max_poll=10, exponential=True)
QUICK = Pace(fallback=0.05, poll=0.05, max_poll=0.05, exponential=True)


def reply(position: int = 1, **changes: Any) -> Waiting:
    fields: dict[str, Any] = {
        "position": position, "arrival_us": position, "enqueued": True, "recheck_in": None, "value": "locked_by_a:b",
        "holder_id": "b", "holder_phase": "held", "holder_process": b"", "inbox_has_receiver": True, "more": False,
        "waiters": position,
    }  # fmt: skip
    return Waiting(**{**fields, **changes})


class Room(WaitingRoom):
    """A room whose inbox is as healthy as the test says."""

    def __init__(self, *, healthy: bool = True) -> None:
        self.healthy = healthy
        super().__init__(lambda: self.healthy, ProcessWatch(), lambda: None)

    def enter(self, name: str, position: int, pace: Pace = PACE, priority: int = 0, **changes: Any) -> Waiter:
        waiter = Waiter(name, pace, priority, claim_window=2)
        self.add(waiter)
        self.seated(waiter, reply(position, **changes))
        return waiter


def due(waiter: Waiter) -> float | None:
    """Seconds until the waiter wakes by itself."""
    return waiter._timer.when() - asyncio.get_running_loop().time() if waiter._timer else None


def wakes(waiter: Waiter) -> bool:
    """Whether it was woken since the last call."""
    woken = waiter._woken.is_set()
    waiter._woken.clear()
    return woken


def test_the_backoff_doubles_up_to_its_bound() -> None:
    assert [PACE.polling(checks, first_in_line=False) for checks in range(5)] == [2, 4, 8, 10, 10]
    assert PACE.polling(10_000, first_in_line=False) == 10


def test_the_first_in_line_does_not_slow_down_and_no_one_does_without_backoff() -> None:
    assert PACE.polling(5, first_in_line=True) == 2
    assert PACE._replace(exponential=False).polling(5, first_in_line=False) == 2
    assert PACE._replace(poll=20).polling(0, first_in_line=True) == 10, "never slower than the bound"


async def test_a_healthy_room_looks_once_per_fallback_and_a_deaf_one_polls() -> None:
    room = Room()
    room.enter("a", 2)
    assert room.mode() == "push"
    assert 26 < room.next_check_in() <= 33
    room.healthy = False
    room.health_changed()
    assert room.mode() == "poll"
    assert 1.7 < room.next_check_in() <= 2.2
    room._checks = 2
    room._schedule()
    assert 7 < room.next_check_in() <= 8.8
    room.close()


async def test_the_most_impatient_waiter_sets_the_pace_while_it_waits() -> None:
    room = Room()
    room.enter("a", 2)
    hasty = room.enter("b", 3, pace=PACE._replace(fallback=5))
    assert room.next_check_in() <= 5.5
    assert room.expires_in() == 90
    room.discard(hasty)
    room._schedule()
    assert room.next_check_in() > 26
    room.close()


async def test_an_empty_room_has_no_timer() -> None:
    room = Room()
    waiter = room.enter("a", 1, recheck_in=60)
    assert room.next_check_in() > 0
    room.discard(waiter)
    room.discard(waiter)
    assert len(room) == 0
    assert room._timer is None
    assert due(waiter) is None
    assert room.expires_in() == 30


async def test_a_check_wakes_the_first_in_line_and_the_others_in_turn() -> None:
    room = Room()
    waiters = [room.enter(name, position, pace=QUICK) for position, name in enumerate("abcd", 1)]
    seen: set[str] = set()

    def all_but_none() -> bool:
        for waiter in waiters:
            if waiter._woken.is_set():
                waiter._woken.clear()
                seen.add(waiter.id)
        return seen == set("abcd")

    await eventually(all_but_none, description="every waiter to have looked once")
    room.close()


async def test_behind_a_grant_that_is_not_claimed_the_next_one_looks_when_its_window_ends() -> None:
    room = Room()
    waiters = [room.enter(str(position), position, recheck_in=1.5, holder_phase="granted") for position in (2, 3)]
    assert [round(due(waiter) or 0, 1) for waiter in waiters] == [1.5, 3.5]
    room.close()


async def test_the_first_three_look_at_the_holder_s_deadline_one_claim_window_apart() -> None:
    room = Room()
    waiters = [room.enter(str(position), position, recheck_in=10.0) for position in range(1, 5)]
    assert [round(due(waiter) or 0) for waiter in waiters] == [10, 12, 14, 0]
    room.close()


async def test_the_first_in_line_behind_a_foreign_value_polls() -> None:
    room = Room()
    first = room.enter("a", 1, value="old program", holder_id="", recheck_in=None)
    assert 1.9 < (due(first) or 0) < 2.1
    sooner = room.enter("b", 1, value="old program", holder_id="", recheck_in=0.5)
    assert 0.4 < (due(sooner) or 0) < 0.6
    room.close()


async def test_a_grant_wakes_its_waiter_alone_and_carries_its_token_once() -> None:
    room = Room()
    first, second = room.enter("a", 1), room.enter("b", 2)
    assert room.granted(Grant(lock="gpu_lock:0", id="b", token=7))
    assert (wakes(first), wakes(second)) == (False, True)
    assert (second.take_hint(), second.take_hint()) == (7, 0)
    assert not room.granted(Grant(lock="gpu_lock:0", id="unknown", token=8))
    room.found("a")
    room.found("unknown")
    assert wakes(first)
    room.close()


async def test_the_next_in_line_watches_until_the_deadline() -> None:
    room = Room()
    message = Watch(lock="gpu_lock:0", holder="h", deadline_in=5000, process=None)
    room.next_in_line(message)  # nobody waits here
    later, high = room.enter("a", 2), room.enter("b", 3, priority=1)
    room.next_in_line(message)
    assert due(later) is None
    assert 4.9 < (due(high) or 0) < 5.1, "a priority comes first here as in the scripts"
    room.close()


async def test_a_forgotten_seat_makes_the_others_look() -> None:
    room = Room()
    first, second, third = (room.enter(name, position) for position, name in enumerate("abc", 1))
    room.seated(first, reply(1, enqueued=False))
    assert not wakes(second)
    room.seated(first, reply(1, enqueued=True))
    assert (wakes(second), wakes(third), wakes(first)) == (True, True, False)
    room.close()


@pytest.mark.parametrize("healthy", [True, False])
async def test_a_change_of_health_looks_at_once_only_when_messages_can_arrive(healthy: bool) -> None:
    room = Room(healthy=healthy)
    room.health_changed()  # an empty room has nothing to do
    waiter = room.enter("a", 1)
    room.health_changed()
    assert wakes(waiter) is healthy
    room.close()
