"""Waiting: in order, by events, with few connections and few commands."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.helpers import wait_until
from tests.raw_scripts import RawLock
from tests.register import RegisterProcess
from tests.servers import RealServer
from tests.workers import Crew

pytestmark = pytest.mark.integration

NO_TIMERS: dict[str, Any] = {
    "poll_interval": 60,
    "max_poll_interval": 60,
    "fallback_timeout": 60,
    "max_wait_time": None,
    "heartbeat": {"interval": 20, "timeout": 60},
}
"""Whatever is quick with these is quick by events."""


def commands_so_far(lock: RawLock) -> int:
    """Commands that the server has run, those within scripts included."""
    stats: dict[str, dict[str, int]] = lock.client.info("commandstats")
    return sum(entry["calls"] for entry in stats.values())


def test_two_processes_of_500_waiters_are_served_in_order_over_few_connections(
    server: RealServer, crew: Crew, lock: RawLock, register: RegisterProcess
) -> None:
    holder, *workers = (crew.start(server.url, register=register.path, **NO_TIMERS) for _ in range(3))
    holder.tell("acquire", name="a")
    holder.expect("held")
    for worker in workers:
        worker.tell("crowd", count=500)
    wait_until(lambda: len(lock.queue) == 1000, description="1000 waiters in the queue", interval=0.1)
    by_arrival = lock.queue
    ours = [client for client in lock.client.client_list() if client["name"].startswith("aiogpulock")]
    assert len(ours) <= 20
    holder.tell("release", name="a")
    served = [worker.expect("served", timeout=60)["served"] for worker in workers]
    assert [len(part) for part in served] == [500, 500]
    by_token = [waiter for _, waiter in sorted(entry for part in served for entry in part)]
    assert by_token == by_arrival
    connections = [client for client in lock.client.client_list() if client["name"].startswith("aiogpulock")]
    assert len(connections) <= 20
    assert register.overlaps == []


def test_a_hand_off_between_processes_is_quick_without_any_timer(server: RealServer, crew: Crew, lock: RawLock) -> None:
    first, second = (crew.start(server.url, **NO_TIMERS) for _ in range(2))
    first.tell("acquire", name="0")
    first.expect("held", name="0")
    for number in range(1, 11):
        holder, waiter = (first, second) if number % 2 else (second, first)
        waiter.tell("acquire", name=str(number))
        wait_until(lambda: lock.queue, description="a waiter in the queue")
        holder.tell("release", name=str(number - 1))
        left = holder.expect("left", name=str(number - 1))["at"]
        assert waiter.expect("held", name=str(number))["at"] - left < 1


def test_a_thousand_idle_waiters_cause_few_commands(server: RealServer, crew: Crew, lock: RawLock) -> None:
    holder, worker = crew.start(server.url), crew.start(server.url, fallback_timeout=3)
    holder.tell("acquire", name="a")
    holder.expect("held")
    worker.tell("crowd", count=1000)
    wait_until(lambda: len(lock.queue) == 1000, description="1000 waiters in the queue", interval=0.1)
    seconds = 4.5  # with a check of the fallback among them
    before = commands_so_far(lock)
    time.sleep(seconds)
    assert (commands_so_far(lock) - before) / seconds < 20
    worker.kill()


def test_a_frozen_first_waiter_costs_one_claim_window_in_all_and_keeps_its_place(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    window = 2.0
    settings = NO_TIMERS | {"claim_window": window}
    holder, frozen, others = (crew.start(server.url, **settings) for _ in range(3))
    holder.tell("acquire", name="holder")
    holder.expect("held")
    frozen.tell("acquire", name="frozen")
    wait_until(lambda: len(lock.queue) == 1, description="the first waiter")
    for number in range(19):
        hold = None if number == 18 else 0.0
        others.tell("acquire", name=str(number), hold=hold)
        wait_until(lambda number=number: len(lock.queue) == number + 2, description=f"{number + 2} waiters")
    frozen.stop()
    holder.tell("release", name="holder")
    left = holder.expect("left")["at"]
    last = others.expect("held", name="18")["at"]
    assert 0.8 * window < last - left < 1.8 * window, "one window, not two"
    assert [others.expect("held", name=str(number))["token"] for number in range(19)] == sorted(
        others.expect("held", name=str(number))["token"] for number in range(19)
    )
    others.tell("acquire", name="late comer")
    wait_until(lambda: lock.queued_tasks() == ["frozen", "late comer"], description="the late comer behind it")
    frozen.cont()
    wait_until(lambda: lock.inbox_of("frozen").split()[3] == "0", description="the thawed waiter to call")
    others.tell("release", name="18")
    frozen.expect("held")
    frozen.tell("release", name="frozen")
    late = others.expect("held", name="late comer")
    assert late["token"] > frozen.expect("held")["token"]


def test_a_higher_priority_overtakes_those_who_arrived_shortly_before(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    worker = crew.start(server.url, **NO_TIMERS)
    worker.tell("acquire", name="holder")
    worker.expect("held")
    arrivals = [("low", -1), ("normal", 0), ("high", 2), ("normal too", 0), ("high too", 2)]
    for number, (name, priority) in enumerate(arrivals, 1):
        worker.tell("acquire", name=name, priority=priority, hold=0)
        wait_until(lambda number=number: len(lock.queue) == number, description=f"{number} waiters")
    assert lock.queued_tasks() == ["high", "high too", "normal", "normal too", "low"]
    worker.tell("release", name="holder")
    for name, _ in arrivals:
        worker.expect("left", name=name)
    held = [event["name"] for event in worker.events if event["event"] == "held"]
    assert held == ["holder", "high", "high too", "normal", "normal too", "low"]


def test_a_waiter_that_gives_up_leaves_its_place_to_the_next(server: RealServer, crew: Crew, lock: RawLock) -> None:
    holder, first, second = (crew.start(server.url, **NO_TIMERS) for _ in range(3))
    holder.tell("acquire", name="holder")
    holder.expect("held")
    first.tell("acquire", name="impatient", max_wait_time=1)
    wait_until(lambda: len(lock.queue) == 1, description="the first waiter")
    second.tell("acquire", name="patient")
    wait_until(lambda: len(lock.queue) == 2, description="the second waiter")
    failed = first.expect("failed")
    assert failed["text"].startswith("GPU_LOCK_TIMEOUT:")
    assert "position 1 of" in failed["text"]
    assert lock.queued_tasks() == ["patient"]
    holder.tell("release", name="holder")
    second.expect("held")


def test_waiters_of_an_ended_process_are_passed_over_and_their_seats_expire(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    worker, dying = crew.start(server.url, **NO_TIMERS), crew.start(server.url, **NO_TIMERS)
    worker.tell("acquire", name="holder")
    worker.expect("held")
    dying.tell("crowd", count=200)
    wait_until(lambda: len(lock.queue) == 200, description="200 waiters")
    worker.tell("acquire", name="behind", hold=0)
    wait_until(lambda: len(lock.queue) == 201, description="one behind them")
    dying.kill()
    dying.wait()
    worker.tell("release", name="holder")
    left = worker.expect("left", name="holder")["at"]
    assert worker.expect("held", name="behind")["at"] - left < 1.5
    assert lock.client.pttl(lock.key("queue")) > 0
    assert lock.client.pttl(lock.key("waiters")) > 0
