"""A blocked event loop: the guard thread beats for it, up to a bound; without it the lease is lost."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from aiogpulock import GpuLockManager
from tests.helpers import wait_until
from tests.raw_scripts import RawLock
from tests.register import RegisterProcess
from tests.servers import RealServer
from tests.workers import Crew, Worker

pytestmark = pytest.mark.integration

TIMEOUT = 1.5


def beats(max_stall: float) -> dict[str, Any]:
    """The holder gives up a third of a lease this short before the server does: after 1 s."""
    return {"heartbeat": {"interval": 0.3, "timeout": TIMEOUT, "max_stall": max_stall}}


def held_and_awaited(
    server: RealServer, crew: Crew, lock: RawLock, register: RegisterProcess, max_stall: float
) -> tuple[Worker, Worker]:
    holder = crew.start(server.url, register=register.path, **beats(max_stall))
    waiter = crew.start(server.url, register=register.path, **beats(max_stall))
    holder.tell("acquire", name="a")
    holder.expect("held")
    waiter.tell("acquire", name="b")
    wait_until(lambda: lock.queue, description="a waiter in the queue")
    return holder, waiter


def test_a_loop_blocked_for_three_timeouts_keeps_its_lease(
    server: RealServer, crew: Crew, lock: RawLock, register: RegisterProcess
) -> None:
    holder, waiter = held_and_awaited(server, crew, lock, register, max_stall=60)
    holder.tell("block", seconds=3 * TIMEOUT)
    unblocked = holder.expect("unblocked")["at"]
    holder.tell("release", name="a")
    holder.expect("left", name="a")
    assert waiter.expect("held")["at"] > unblocked
    assert waiter.expect("held")["token"] > holder.expect("held")["token"]
    assert register.overlaps == []
    assert "loop_stalled" in holder.errors, "the stall is reported"


def test_with_the_guard_off_a_blocked_loop_loses_the_lease_and_its_body_is_cancelled(
    server: RealServer, crew: Crew, lock: RawLock, register: RegisterProcess
) -> None:
    holder, waiter = held_and_awaited(server, crew, lock, register, max_stall=0)
    token = holder.expect("held")["token"]
    holder.tell("block", seconds=3 * TIMEOUT)
    held = waiter.expect("held")
    failed = holder.expect("failed", name="a")
    unblocked = holder.expect("unblocked")
    assert held["at"] < unblocked["at"], "the next one did not wait for the blocked loop"
    assert failed["error"] == "LeaseLostError"
    assert failed["at"] - unblocked["at"] < 1, "the body is cancelled as soon as the loop runs"
    assert held["token"] > token
    holder.tell("write", name="late", holder="a", token=token)
    assert not holder.expect("wrote", name="late")["accepted"], "the register rejects the old token"
    assert register.report()["stale"] == 1


def test_the_guard_stops_at_max_stall(server: RealServer, crew: Crew, lock: RawLock, register: RegisterProcess) -> None:
    holder, waiter = held_and_awaited(server, crew, lock, register, max_stall=2)
    holder.tell("block", seconds=6)
    blocking = holder.expect("blocking")["at"]
    held = waiter.expect("held")["at"]
    assert held - blocking > 2, "the guard carried the lease for a while"
    holder.expect("unblocked")
    failed = holder.expect("failed", name="a")
    assert held < holder.expect("unblocked")["at"]
    assert (failed["error"], failed["reason"]) == ("LeaseLostError", "stalled")


def test_a_second_stall_is_carried_like_the_first(
    server: RealServer, crew: Crew, lock: RawLock, register: RegisterProcess
) -> None:
    holder, _ = held_and_awaited(server, crew, lock, register, max_stall=4)
    for number in (1, 2):
        holder.tell("block", seconds=2.4)
        holder.expect("unblocked", number=number)
        time.sleep(1)  # the loop beats: without a beat between them two stalls are one
    assert holder.find("failed", timeout=0.5) is None
    assert lock.holder.get("task") == "a"


def test_a_guard_outlives_any_number_of_reconnects(server: RealServer, crew: Crew, lock: RawLock) -> None:
    holder = crew.start(server.url, heartbeat={"interval": 0.3, "timeout": TIMEOUT})
    crew.may_complain.add(holder.pid)  # of the connections that it lost
    holder.tell("acquire", name="a")
    holder.expect("held")

    def guards() -> list[str]:
        return [info["id"] for info in lock.client.client_list() if info["name"] == "aiogpulock-guard"]

    for number in range(120):
        (guard,) = wait_until(guards, description=f"the guard's connection, after {number} were cut", interval=0.001)
        lock.client.client_kill_filter(_id=guard)
    holder.tell("block", seconds=2 * TIMEOUT)
    holder.expect("unblocked")
    assert holder.find("failed", timeout=0.3) is None


def test_a_server_that_hangs_is_no_blocked_loop(own_server: RealServer, lone_crew: Crew) -> None:
    settings = {"heartbeat": {"interval": 0.3, "timeout": 10}}
    holder = lone_crew.start(own_server.url, **settings)
    holder.tell("acquire", name="a")
    holder.expect("held")
    own_server.pause()
    time.sleep(2)
    own_server.resume()
    holder.tell("release", name="a")
    holder.expect("left", name="a")
    assert "event_loop_blocked" not in holder.errors
    holder.tell("acquire", name="b")
    holder.expect("held", name="b")
    holder.tell("block", seconds=1.5)
    holder.expect("unblocked")
    assert "loop_stalled" in holder.errors, "a real stall is reported after all"


def test_a_lease_of_a_closed_loop_is_released_though_its_process_lives(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    settings = {"heartbeat": {"interval": 1, "timeout": 30}}
    abandoned = crew.start(server.url, program="closed_loop", ready=False, **settings)
    crew.may_complain.add(abandoned.pid)
    token = abandoned.expect("held")["token"]
    abandoned.tell("close")
    abandoned.expect("closed")
    waiter = crew.start(server.url, **settings)
    waiter.tell("acquire", name="b")
    held = waiter.expect("held", timeout=15)
    assert held["token"] > token
    assert lock.holder["dirty"] == "1", "what its body started may still compute"
    abandoned.expect("ended")


def test_the_guard_of_a_closed_loop_ends_where_nothing_is_held(server: RealServer, crew: Crew) -> None:
    idle = crew.start(server.url, program="closed_loop", ready=False, heartbeat={"interval": 1, "timeout": 30})
    crew.may_complain.add(idle.pid)
    idle.expect("held")
    idle.tell("release")
    idle.expect("ended", timeout=15)


def test_the_guard_of_a_closed_loop_ends_with_its_lease_where_redis_stays_away(
    own_server: RealServer, lone_crew: Crew
) -> None:
    settings = {"heartbeat": {"interval": 0.3, "timeout": TIMEOUT}}
    abandoned = lone_crew.start(own_server.url, program="closed_loop", ready=False, **settings)
    lone_crew.may_complain.add(abandoned.pid)
    abandoned.expect("held")
    own_server.stop()
    abandoned.tell("close")
    abandoned.expect("ended", timeout=15)


async def test_a_guard_thread_that_ends_before_it_is_woken_breaks_no_close(
    redis_url: str, lock: RawLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def late(descriptor: int, data: bytes) -> int:
        time.sleep(0.5)  # the thread looks every 50 ms
        return write(descriptor, data)

    async with GpuLockManager(redis_url, restart_grace=0, heartbeat={"interval": 0.2, "timeout": 5}) as manager:
        async with manager.lock(0):
            pass
        monkeypatch.setattr(os, "write", late)
