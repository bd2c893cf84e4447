"""A dead holder or waiter is replaced: at once on its own host, at its own deadline elsewhere."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.helpers import wait_until
from tests.raw_scripts import RawLock
from tests.servers import RealServer
from tests.workers import Crew, Worker

pytestmark = pytest.mark.integration

LONG: dict[str, Any] = {"heartbeat": {"interval": 10, "timeout": 30}}
SHORT: dict[str, Any] = {"heartbeat": {"interval": 0.5, "timeout": 2}}


def test_the_next_waiter_is_in_at_once_after_the_holder_is_killed(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    holder, waiter = crew.start(server.url, **LONG), crew.start(server.url, **LONG)
    holder.tell("acquire", name="a")
    token = holder.expect("held")["token"]
    waiter.tell("acquire", name="b")
    wait_until(lambda: lock.queue, description="a waiter in the queue")
    killed_at = holder.kill()
    held = waiter.expect("held")
    assert held["at"] - killed_at < 2
    assert held["token"] > token
    assert lock.holder["dirty"] == "1", "what the dead one started may still compute"
    [reaped] = [event for _, event in lock.client.xrange(lock.key("events")) if event["event"] == "reaped"]
    assert (reaped["reason"], reaped["task"]) == ("process_gone", "a")


def test_after_a_crash_each_grant_is_dirty_until_somebody_could_look(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    holder, worker = crew.start(server.url, **LONG), crew.start(server.url, **LONG)
    holder.tell("acquire", name="a")
    holder.expect("held")
    holder.kill()
    holder.wait()
    for name in ("b", "c"):  # here no NVML is there to look with
        worker.tell("acquire", name=name)
        worker.expect("held", name=name)
        assert lock.holder["dirty"] == "1"
        worker.tell("release", name=name)
        worker.expect("left", name=name)


@pytest.mark.parametrize("requests", [2, 41])
def test_a_crash_is_noticed_at_once_although_the_next_in_line_died_with_the_holder(
    server: RealServer, crew: Crew, lock: RawLock, requests: int
) -> None:
    """A program with several waiters is given the lock and killed: another program behind them watches it."""
    first, several, other = (crew.start(server.url, **LONG) for _ in range(3))
    first.tell("acquire", name="a")
    first.expect("held")
    for place, (worker, name) in enumerate([*((several, f"b{n}") for n in range(requests)), (other, "c")], 1):
        worker.tell("acquire", name=name)
        wait_until(lambda place=place: len(lock.queue) == place, description="a waiter in the queue")
    first.tell("release", name="a")
    several.expect("held", name="b0")
    killed_at = several.kill()
    assert other.expect("held")["at"] - killed_at < 2


def test_a_crash_is_noticed_at_once_although_the_next_in_line_is_elsewhere(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    """Only on its own host a process is seen to end: somebody there is told to watch it, wherever the next one is."""
    first, dying, here = (crew.start(server.url, **LONG) for _ in range(3))
    there = crew.start(server.url, boot="other", **LONG)
    first.tell("acquire", name="a")
    first.expect("held")
    for place, (worker, name) in enumerate([(dying, "b"), (there, "c"), (here, "d")], 1):
        worker.tell("acquire", name=name)
        wait_until(lambda place=place: len(lock.queue) == place, description="a waiter in the queue")
    first.tell("release", name="a")
    dying.expect("held")
    killed_at = dying.kill()
    assert there.expect("held")["at"] - killed_at < 2


def test_twenty_killed_holders_in_a_row_are_each_replaced_at_once(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    """Each waiter is killed as soon as it holds; the last one leaves in order."""
    workers = [crew.start(server.url, **LONG) for _ in range(6)]
    workers[0].tell("acquire", name="0")
    workers[0].expect("held")
    for number, worker in enumerate(workers[1:], 1):
        worker.tell("acquire", name=str(number))
        wait_until(lambda number=number: len(lock.queue) == number, description=f"{number} waiters in the queue")
    delays = []
    for dying, following in itertools.pairwise(workers):
        killed_at = dying.kill()
        delays.append(following.expect("held")["at"] - killed_at)
    assert max(delays) < 2, delays


def test_a_holder_that_died_elsewhere_is_replaced_at_its_deadline_and_not_before(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    holder, waiter = crew.start(server.url, boot="other", **SHORT), crew.start(server.url, **LONG)
    holder.tell("acquire", name="a")
    holder.expect("held")
    waiter.tell("acquire", name="b")
    wait_until(lambda: lock.queue, description="a waiter in the queue")
    holder.kill()
    holder.wait()
    deadline = int(lock.holder["deadline"])
    waiter.expect("held")
    assert deadline <= int(lock.holder["since"]) < deadline + 1500
    assert lock.holder["dirty"] == "1"


def test_the_expiry_is_noticed_although_the_first_in_line_died_too(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    """Holder and first waiter elsewhere, both killed: the second in line watches as well."""
    holder, first = (crew.start(server.url, boot="other", **SHORT) for _ in range(2))
    second = crew.start(server.url, **LONG)
    holder.tell("acquire", name="a")
    holder.expect("held")
    for number, worker in enumerate((first, second), 1):
        worker.tell("acquire", name=f"w{number}")
        wait_until(lambda number=number: len(lock.queue) == number, description=f"{number} waiters")
    first.kill()
    holder.kill()
    holder.wait()
    deadline = int(lock.holder["deadline"])
    second.expect("held")
    assert deadline <= int(lock.holder["since"]) < deadline + 2000 + 1500  # one claim window later at most


@pytest.mark.parametrize("boot", ["", "other"], ids=["same host", "elsewhere"])
def test_a_crash_is_noticed_although_the_seats_of_many_dead_come_first(
    server: RealServer, crew: Crew, lock: RawLock, boot: str
) -> None:
    holder = crew.start(server.url, boot=boot, **(SHORT if boot else LONG))
    waiter = crew.start(server.url, **LONG, claim_window=0.5)
    holder.tell("acquire", name="a")
    holder.expect("held")
    for number in range(5):
        lock.acquire(f"gone {number}")
    waiter.tell("acquire", name="b")
    wait_until(lambda: len(lock.queue) == 6, description="the waiter in the queue")
    killed_at = holder.kill()
    deadline = int(lock.holder["deadline"])
    held = waiter.expect("held")
    if boot:
        assert int(lock.holder["since"]) < deadline + 3 * 500 + 3000  # three claim windows later at most
    else:
        assert held["at"] - killed_at < 5


def test_a_waiter_that_was_killed_at_the_head_holds_nobody_up(server: RealServer, crew: Crew, lock: RawLock) -> None:
    holder, first, second = (crew.start(server.url, **LONG) for _ in range(3))
    holder.tell("acquire", name="a")
    holder.expect("held")
    first.tell("acquire", name="first")
    wait_until(lambda: len(lock.queue) == 1, description="the first waiter")
    second.tell("acquire", name="second")
    wait_until(lambda: len(lock.queue) == 2, description="the second waiter")
    first.kill()
    first.wait()
    holder.tell("release", name="a")
    left = holder.expect("left")["at"]
    assert second.expect("held")["at"] - left < 1.5, "less than a claim window: nobody was granted in between"


def grant_to_a_stopped_waiter(lock: RawLock, holder: Worker, first: Worker, second: Worker) -> None:
    """`first` is stopped, and granted the lock that `holder` has released; `second` waits behind it."""
    holder.tell("acquire", name="a")
    holder.expect("held")
    first.tell("acquire", name="first")
    wait_until(lambda: len(lock.queue) == 1, description="the first waiter")
    second.tell("acquire", name="second")
    wait_until(lambda: len(lock.queue) == 2, description="the second waiter")
    first.stop()
    holder.tell("release", name="a")
    wait_until(lambda: lock.holder.get("task") == "first", description="the grant to the stopped waiter")


def test_a_waiter_that_dies_as_it_is_granted_costs_at_most_a_claim_window(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    """Stopped, its socket still takes the message; killed, it never claims."""
    settings = LONG | {"claim_window": 3}
    holder, second = crew.start(server.url, **settings), crew.start(server.url, **settings)
    first = crew.start(server.url, boot="other", **settings)
    grant_to_a_stopped_waiter(lock, holder, first, second)
    assert lock.holder["phase"] == "granted"
    granted_until = int(lock.holder["deadline"])
    first.kill()
    second.expect("held")
    assert granted_until <= int(lock.holder["since"]) < granted_until + 2000
    assert lock.holder["dirty"] == "", "the dead one never had the lock"


def test_a_granted_waiter_that_dies_on_this_host_is_replaced_at_once(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    settings = LONG | {"claim_window": 20}
    holder, first, second = (crew.start(server.url, **settings) for _ in range(3))
    grant_to_a_stopped_waiter(lock, holder, first, second)
    killed_at = first.kill()
    assert second.expect("held")["at"] - killed_at < 5


def test_a_waiter_with_a_shorter_heartbeat_timeout_never_reaps_the_holder(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    holder = crew.start(server.url, boot="other", **LONG)
    holder.tell("acquire", name="a")
    holder_id = holder.expect("held")["id"]
    holder.stop()  # no beat comes, and none is due yet
    hasty = crew.start(server.url, heartbeat={"interval": 0.1, "timeout": 0.5}, fallback_timeout=0.3)
    hasty.tell("acquire", name="b", max_wait_time=3)
    failed = hasty.expect("failed")
    assert failed["error"] == "LockTimeoutError"
    assert "'a' on" in failed["text"]
    assert lock.holder_id == holder_id
    holder.cont()
    holder.tell("release", name="a")
    holder.expect("left")


def test_the_seats_of_a_killed_program_fill_no_queue_while_another_holds_the_lock(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    holder, killed, late = (crew.start(server.url, **LONG) for _ in range(3))
    holder.tell("acquire", name="batch")
    holder.expect("held")
    for number in range(3):
        killed.tell("acquire", name=f"request {number}", max_waiters=3)
    wait_until(lambda: len(lock.queue) == 3, description="a full queue")
    late.tell("acquire", name="refused", max_waiters=3)
    assert late.expect("failed")["error"] == "QueueFullError"
    killed.kill()
    killed.wait()

    attempts = itertools.count()

    def seated() -> bool:
        name = f"attempt {next(attempts)}"
        late.tell("acquire", name=name, max_waiters=3)
        wait_until(lambda: name in lock.queued_tasks() or late.find("failed", name=name), description="an answer")
        return name in lock.queued_tasks()

    wait_until(seated, description="a seat in the queue", timeout=20)
    holder.tell("release", name="batch")
    late.expect("held")
