"""Redis restarts, with its data or without, and Redis away: leases go on, and nothing is granted without it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from aiogpulock import clock
from tests.helpers import wait_until
from tests.raw_scripts import RawLock
from tests.register import RegisterProcess
from tests.servers import RealServer
from tests.workers import Crew, Worker

pytestmark = pytest.mark.integration

GRACE = 2.0
SETTINGS: dict[str, Any] = {
    "heartbeat": {"interval": 4, "timeout": 15},  # the next beat would come after the grace
    "restart_grace": GRACE,
    "poll_interval": 0.3,
    "max_poll_interval": 1,
}


def held_and_awaited(
    server: RealServer, crew: Crew, register: RegisterProcess, **holder_settings: Any
) -> tuple[Worker, Worker, RawLock]:
    holder = crew.start(server.url, register=register.path, **(SETTINGS | holder_settings))
    waiter = crew.start(server.url, register=register.path, **SETTINGS)
    lock = RawLock(server.client())
    holder.tell("acquire", name="holder")
    holder.expect("held")
    waiter.tell("acquire", name="waiter", max_wait_time=None)
    wait_until(lambda: lock.queue, description="a waiter in the queue")
    return holder, waiter, lock


def hand_over(holder: Worker, waiter: Worker, register: RegisterProcess) -> None:
    """The holder still has its lease; after its release the waiter gets it, with a higher token."""
    assert holder.find("failed", name="holder") is None
    holder.tell("release", name="holder")
    holder.expect("left", name="holder")
    held = waiter.expect("held")
    assert held["token"] > holder.expect("held")["token"]
    report = register.report()
    assert (report["overlaps"], report["stale"]) == ([], 0)


@pytest.mark.parametrize("kind", ["event-driven", "polling", "blocked"])
def test_a_lease_goes_on_over_a_restart_without_data(
    own_server: RealServer, lone_crew: Crew, register: RegisterProcess, kind: str
) -> None:
    settings: dict[str, Any] = {"use_event_driven": kind != "polling"}
    if kind != "blocked":  # no guard thread: the loop itself must notice
        settings["heartbeat"] = SETTINGS["heartbeat"] | {"max_stall": 0}
    holder, waiter, _ = held_and_awaited(own_server, lone_crew, register, **settings)
    holder_id = holder.expect("held")["id"]
    if kind == "blocked":
        holder.tell("block", seconds=GRACE + 3)
        holder.expect("blocking")
    own_server.restart(keep_data=False)
    restarted = clock.now()
    lock = RawLock(own_server.client())
    wait_until(lambda: lock.holder_id == holder_id, description="the lease to be re-asserted", timeout=10)
    assert clock.now() - restarted < GRACE
    wait_until(lambda: lock.queued_tasks() == ["waiter"], description="the waiter to queue again")
    if kind == "event-driven":
        client = own_server.client()
        wait_until(lambda: client.zscore("{gpu_lock}:index", "0"), description="operators to see the lock again")
    if kind == "blocked":
        assert holder.find("unblocked") is None, "the guard thread restored it"
        holder.expect("unblocked")
    else:
        time.sleep(GRACE + 1)
    assert lock.holder_id == holder_id
    assert waiter.find("held") is None
    hand_over(holder, waiter, register)


def test_a_lease_goes_on_over_a_restart_with_data(
    own_server: RealServer, lone_crew: Crew, register: RegisterProcess
) -> None:
    holder, waiter, _ = held_and_awaited(own_server, lone_crew, register)
    own_server.restart(keep_data=True)
    lock = RawLock(own_server.client())
    deadline = int(lock.holder["deadline"])
    wait_until(lambda: int(lock.holder["deadline"]) > deadline, description="a beat after the restart")
    wait_until(lambda: lock.queued_tasks() == ["waiter"], description="the waiter in the queue")
    hand_over(holder, waiter, register)


def test_a_holder_that_is_slow_to_return_still_finds_its_lease_after_the_restart(
    own_server: RealServer, lone_crew: Crew, register: RegisterProcess
) -> None:
    """Without data and without re-assertion yet, only the grace keeps the waiter out."""
    holder, waiter, _ = held_and_awaited(own_server, lone_crew, register, restart_grace=GRACE)
    holder.stop()
    own_server.restart(keep_data=False)
    time.sleep(GRACE / 2)
    assert waiter.find("held") is None
    holder.cont()
    lock = RawLock(own_server.client())
    wait_until(lambda: lock.holder.get("task") == "holder", description="the lease to be re-asserted", timeout=10)
    hand_over(holder, waiter, register)


def test_without_re_assertion_the_grace_ends_and_the_next_one_gets_a_higher_token(
    own_server: RealServer, lone_crew: Crew, register: RegisterProcess
) -> None:
    holder, waiter, _ = held_and_awaited(own_server, lone_crew, register)
    token = holder.expect("held")["token"]
    holder.kill()
    holder.wait()
    waiter.expect("held")
    waiter.tell("acquire", name="second")
    lock = RawLock(own_server.client())
    wait_until(lambda: lock.queue, description="the second waiter")
    waiter.stop()
    own_server.restart(keep_data=False)
    restarted = clock.now()
    newcomer = lone_crew.start(own_server.url, **SETTINGS)
    newcomer.tell("acquire", name="newcomer")
    held = newcomer.expect("held")
    assert held["at"] - restarted > GRACE * 0.8
    assert held["token"] > waiter.expect("held")["token"] > token
    waiter.cont()
    assert waiter.expect("failed", name="waiter")["error"] == "LeaseLostError"


def test_a_waiter_stays_a_waiter_while_redis_is_away(
    own_server: RealServer, lone_crew: Crew, register: RegisterProcess
) -> None:
    holder, waiter, _ = held_and_awaited(own_server, lone_crew, register)
    own_server.kill()
    time.sleep(3)
    assert waiter.find("held") is None
    assert waiter.find("failed") is None
    own_server.start()
    lock = RawLock(own_server.client())
    wait_until(lambda: lock.holder.get("task") == "holder", description="the lease to be re-asserted", timeout=10)
    wait_until(lambda: lock.queued_tasks() == ["waiter"], description="the waiter to queue again", timeout=10)
    hand_over(holder, waiter, register)


@pytest.mark.parametrize("how", ["gone", "silent"])
def test_a_holder_is_told_of_its_loss_by_its_own_deadline_while_redis_is_away(
    own_server: RealServer, lone_crew: Crew, how: str
) -> None:
    """Whether its beats are refused or hang: it gives up while the server would still count the lease."""
    beats = {"interval": 0.5, "timeout": 3, "max_stall": 0}
    holder = lone_crew.start(own_server.url, heartbeat=beats, redis={"connect_timeout": 5})
    holder.tell("acquire", name="holder")
    holder.expect("held")
    gone_at = clock.now()
    if how == "gone":
        own_server.kill()
    else:
        own_server.pause()
    lost = holder.expect("lost", name="holder")
    assert lost["reason"] == "lease_expired"
    assert lost["at"] - gone_at < 3
    if how == "gone":
        own_server.start()
    else:
        own_server.resume()
    assert holder.expect("failed", name="holder")["error"] == "LeaseLostError"


def test_nothing_is_granted_without_redis(own_server: RealServer, lone_crew: Crew) -> None:
    worker = lone_crew.start(own_server.url, redis={"connect_timeout": 1})
    own_server.kill()
    asked = clock.now()
    worker.tell("acquire", name="first", max_wait_time=5)
    failed = worker.expect("failed", name="first")
    assert failed["error"] == "RedisUnavailableError"
    assert failed["at"] - asked < 1 + 2
    own_server.start()
    worker.tell("acquire", name="second")
    worker.expect("held", name="second")


def test_a_waiter_gives_up_in_time_although_redis_is_away(own_server: RealServer, lone_crew: Crew) -> None:
    worker = lone_crew.start(own_server.url, redis={"connect_timeout": 1})
    lock = RawLock(own_server.client())
    lock.hold("by hand")
    worker.tell("acquire", name="w", max_wait_time=3)
    wait_until(lambda: lock.queue, description="a waiter in the queue")
    time.sleep(0.3)  # it has read that it waits; else it cannot know that Redis was ever there
    waiting_since = clock.now()
    own_server.kill()
    failed = worker.expect("failed", name="w")
    assert failed["error"] == "LockTimeoutError"
    assert failed["text"].startswith("GPU_LOCK_TIMEOUT:")
    assert failed["at"] - waiting_since < 3 + 3
    own_server.start()


def test_redis_away_at_the_start_is_an_error_within_the_connect_timeout(
    own_server: RealServer, lone_crew: Crew
) -> None:
    own_server.kill()
    started = clock.now()
    worker = lone_crew.start(own_server.url, redis={"connect_timeout": 1}, ready=False)
    failed = worker.expect("failed")
    assert failed["error"] == "RedisUnavailableError"
    assert failed["at"] - started < 1 + 4, "the start of an interpreter included"
    assert worker.wait() == 0
