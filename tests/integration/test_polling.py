"""Without messages: polling at the configured pace, fair beside those who get messages; lost messages are made good."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.acl import LEAST_PRIVILEGES, PUB_SUB
from tests.helpers import wait_until
from tests.raw_scripts import RawLock
from tests.register import RegisterProcess
from tests.servers import RealServer
from tests.workers import Crew

pytestmark = pytest.mark.integration

SLOW_FALLBACK: dict[str, Any] = {"fallback_timeout": 60, "poll_interval": 60, "max_poll_interval": 60}
BACKOFF: dict[str, Any] = {"poll_interval": 0.2, "max_poll_interval": 1.6, "fallback_timeout": 60}


class Calls:
    """The script calls that the server sees, by the clock of the server, each with the name of its task."""

    def __init__(self, server: RealServer) -> None:
        self._client = server.client(socket_timeout=None)
        self._monitor = self._client.monitor()
        self._monitor.__enter__()
        self.seen: list[tuple[float, str]] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            for command in self._monitor.listen():
                if command["command"].upper().startswith("EVALSHA"):
                    self.seen.append((command["time"], command["command"]))
        except (redis.RedisError, OSError, ValueError, AttributeError):
            pass

    def times_of(self, task: str) -> list[float]:
        """When acquire.lua was called for a task."""
        return [at for at, command in list(self.seen) if f" {task} " in command]

    def close(self) -> None:
        self._monitor.connection._sock.shutdown(2)
        self._thread.join(10)
        self._monitor.__exit__(None, None, None)
        self._client.close()


@pytest.fixture
def calls(server: RealServer) -> Iterator[Calls]:
    calls = Calls(server)
    yield calls
    calls.close()


@pytest.fixture
def url_without_pub_sub(server: RealServer) -> Iterator[str]:
    """A user that may neither subscribe nor publish."""
    rules = " ".join(rule for rule in LEAST_PRIVILEGES.split() if rule.removeprefix("+") not in PUB_SUB)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "mute", "reset", "on", ">pw", *rules.split())
        yield server.url.replace("unix://", "unix://mute:pw@")
        client.execute_command("ACL", "DELUSER", "mute")


def check_backoff(server: RealServer, crew: Crew, lock: RawLock, calls: Calls, url: str, **settings: Any) -> None:
    holder, first, second = crew.start(server.url), crew.start(url, **settings), crew.start(url, **settings)
    holder.tell("acquire", name="holder")
    holder.expect("held")
    first.tell("acquire", name="first")
    wait_until(lambda: len(lock.queue) == 1, description="the first waiter")
    second.tell("acquire", name="second")
    wait_until(lambda: len(calls.times_of("second")) >= 6, description="six polls of the second")
    times = calls.times_of("second")
    gaps = [after - before for before, after in itertools.pairwise(times)][:5]
    for gap, expected in zip(gaps, (0.2, 0.4, 0.8, 1.6, 1.6), strict=True):
        assert 0.85 * expected < gap < 1.15 * expected + 0.5, gaps
    times = calls.times_of("first")
    assert len(times) >= 2 * len(calls.times_of("second")), "the first in line does not slow down"
    holder.tell("release", name="holder")
    left = holder.expect("left")["at"]
    assert first.expect("held")["at"] - left < 2
    first.tell("release", name="first")
    second.expect("held")


def test_poll_times_follow_the_backoff_where_polling_was_chosen(
    server: RealServer, crew: Crew, lock: RawLock, calls: Calls
) -> None:
    check_backoff(server, crew, lock, calls, server.url, use_event_driven=False, **BACKOFF)


def test_poll_times_follow_the_backoff_for_a_user_without_pub_sub(
    server: RealServer, url_without_pub_sub: str, crew: Crew, lock: RawLock, calls: Calls
) -> None:
    check_backoff(server, crew, lock, calls, url_without_pub_sub, **BACKOFF)


def test_without_exponential_backoff_the_pace_stays(
    server: RealServer, crew: Crew, lock: RawLock, calls: Calls
) -> None:
    holder = crew.start(server.url)
    worker = crew.start(server.url, use_event_driven=False, exponential_backoff=False, **BACKOFF)
    holder.tell("acquire", name="holder")
    holder.expect("held")
    holder.tell("acquire", name="event driven")
    wait_until(lambda: len(lock.queue) == 1, description="somebody in front")
    worker.tell("acquire", name="second")
    wait_until(lambda: len(calls.times_of("second")) >= 8, description="eight polls")
    times = calls.times_of("second")
    gaps = sorted(after - before for before, after in itertools.pairwise(times))
    assert 0.15 < gaps[len(gaps) // 2] < 0.35


@pytest.mark.parametrize("mute", [False, True], ids=["by choice", "without permission"])
def test_a_polling_waiter_gets_its_turn_among_event_driven_ones(
    server: RealServer, url_without_pub_sub: str, crew: Crew, lock: RawLock, register: RegisterProcess, mute: bool
) -> None:
    """Eight tasks acquire in a loop; whoever polls is not passed over for ever, nor served out of turn."""
    # A release by who may not publish reaches nobody: then the fallback finds it.
    loops = crew.start(server.url, register=register.path, fallback_timeout=2)
    loops.tell("loop", tasks=8, hold=0.005)
    url, settings = (url_without_pub_sub, {}) if mute else (server.url, {"use_event_driven": False})
    poller = crew.start(url, register=register.path, poll_interval=0.5, max_poll_interval=1, **settings)
    wait_until(lambda: len(lock.queue) >= 6, description="the loops to queue")
    for number in range(3):
        poller.tell("acquire", name=f"poller {number}")
        held = poller.expect("held", name=f"poller {number}")
        arrival = int(lock.holder["arrival"])
        holds = [
            int(event["token"]) for _, event in lock.client.xrange(lock.key("events")) if event["event"] == "released"
        ]
        assert len([token for token in holds if arrival < token < held["token"]]) <= 9, "those in front, nobody else"
        poller.tell("release", name=f"poller {number}")
        poller.expect("left", name=f"poller {number}")
    loops.tell("stop_looping")
    assert all(loops.expect("looped", number=number)["holds"] for number in range(8))
    assert register.overlaps == []


def test_a_grant_whose_message_was_lost_is_found_at_the_reconnect(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    """Every inbox connection is cut in the same transaction that releases the lock."""
    waiter = crew.start(server.url, **SLOW_FALLBACK)
    token = lock.hold("by hand", inbox="nobody")
    waiter.tell("acquire", name="waiter")
    wait_until(lambda: lock.queue, description="a waiter in the queue")
    lock.client.client_kill_filter(_type="pubsub")
    lock.release("by hand", token)
    assert waiter.expect("held", timeout=10)["token"] > token
    assert "inbox connection lost" in waiter.errors


def test_an_inbox_that_never_comes_back_leaves_polling(own_server: RealServer, lone_crew: Crew) -> None:
    lock = RawLock(own_server.client())
    lock.client.execute_command("ACL", "SETUSER", "gpu", "reset", "on", ">pw", *LEAST_PRIVILEGES.split())
    url = own_server.url.replace("unix://", "unix://gpu:pw@")
    settings = {"poll_interval": 0.3, "max_poll_interval": 1, "fallback_timeout": 60}
    waiters = [lone_crew.start(url, **settings) for _ in range(2)]
    token = lock.hold("by hand", inbox="nobody")
    for number, waiter in enumerate(waiters, 1):
        waiter.tell("acquire", name=str(number), hold=0)
        wait_until(lambda number=number: len(lock.queue) == number, description=f"{number} waiters")
    assert lock.inbox_of("1").startswith("push")
    lock.client.execute_command("ACL", "SETUSER", "gpu", "-subscribe")
    lock.client.client_kill_filter(_type="pubsub")
    wait_until(lambda: lock.inbox_of("1").startswith("poll"), description="the waiter to poll")
    lock.release("by hand", token)
    for number, waiter in enumerate(waiters, 1):
        waiter.expect("left", name=str(number), timeout=10)
        assert "polling instead of waiting for messages" in waiter.errors


@pytest.mark.parametrize("ghost", ["waiter", "holder"])
def test_a_request_of_ours_that_came_back_with_old_data_holds_nobody_up(
    server: RealServer, crew: Crew, lock: RawLock, ghost: str
) -> None:
    """It ended long ago, but Redis restarted with an older copy of its data, and its process lives."""
    worker = crew.start(server.url, poll_interval=0.2, max_poll_interval=0.2, use_event_driven=False)
    token = lock.hold("by hand", inbox="nobody")
    worker.tell("acquire", name="alive")
    wait_until(lambda: lock.queue, description="a waiter in the queue")
    inbox = lock.client.hget(lock.key("waiters"), lock.queue[0]).split(" ", 1)[0]
    process = lock.inbox_of("alive").split(" ", 4)[4]
    if ghost == "waiter":
        lock.acquire("ghost", inbox=inbox, process=process, mode="poll", next_check=200, arrival=1)
        lock.release("by hand", token)
    else:
        lock.client.hset(lock.key("holder"), mapping={"id": "ghost", "task": "x", "inbox": inbox, "process": process})
        lock.client.set(lock.keys.lock, "locked_by_x:ghost", px=60_000)
    worker.expect("held", name="alive", timeout=10)
    assert lock.queue == []


def test_a_seat_that_was_lost_is_taken_again_at_the_same_place(server: RealServer, crew: Crew, lock: RawLock) -> None:
    worker = crew.start(server.url, fallback_timeout=1)
    token = lock.hold("by hand", inbox="nobody")
    for number in range(1, 4):
        worker.tell("acquire", name=str(number), hold=0)
        wait_until(lambda number=number: len(lock.queue) == number, description=f"{number} waiters")
    queue = lock.queue
    lock.client.delete(lock.key("queue"), lock.key("waiters"))
    wait_until(lambda: len(lock.queue) == 3, description="all seats again", timeout=10)
    assert lock.queue == queue
    lock.release("by hand", token)
    for number in range(1, 4):
        worker.expect("left", name=str(number))
