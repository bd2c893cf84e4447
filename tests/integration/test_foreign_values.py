"""Older programs on the same keys: a value that they set is respected, and they hear of our releases."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.helpers import wait_until
from tests.raw_scripts import RawLock
from tests.servers import RealServer
from tests.workers import Crew, Worker

pytestmark = pytest.mark.integration

FOREIGN = "locked_by_old program"
SLOW: dict[str, Any] = {"fallback_timeout": 60, "poll_interval": 60, "max_poll_interval": 60}


def waiting_worker(server: RealServer, crew: Crew, lock: RawLock, **settings: Any) -> Worker:
    worker = crew.start(server.url, **settings)
    worker.tell("acquire", name="w", max_wait_time=None)
    wait_until(lambda: lock.queue, description="a waiter in the queue")
    return worker


def test_a_foreign_value_with_a_ttl_is_waited_for_to_its_end(server: RealServer, crew: Crew, lock: RawLock) -> None:
    lock.client.set(lock.keys.lock, FOREIGN, px=1500)
    worker = waiting_worker(server, crew, lock, **SLOW)
    ends_at = lock.now + lock.client.pttl(lock.keys.lock)
    worker.expect("held", timeout=10)
    assert ends_at - 20 <= int(lock.holder["since"]) < ends_at + 2000


def test_a_foreign_value_without_a_ttl_holds_until_it_is_deleted(server: RealServer, crew: Crew, lock: RawLock) -> None:
    lock.client.set(lock.keys.lock, FOREIGN)
    worker = waiting_worker(server, crew, lock, poll_interval=0.3, max_poll_interval=1, fallback_timeout=60)
    time.sleep(1.5)
    assert worker.find("held") is None
    assert lock.value == FOREIGN
    lock.client.delete(lock.keys.lock)
    worker.expect("held", timeout=10)


def test_behind_a_foreign_value_somebody_polls_when_the_first_in_line_have_left(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    lock.client.set(lock.keys.lock, FOREIGN)
    worker = crew.start(server.url, poll_interval=0.3, max_poll_interval=1, fallback_timeout=60)
    for place, limit in enumerate((2, 2, 2, None), 1):
        worker.tell("acquire", name=f"w{place}", max_wait_time=limit)
        wait_until(lambda place=place: len(lock.queue) == place, description="a waiter in the queue")
    for place in (1, 2, 3):
        worker.expect("failed", name=f"w{place}")
    lock.client.delete(lock.keys.lock)
    worker.expect("held", name="w4", timeout=15)


def test_the_public_release_message_of_an_older_program_wakes_the_waiter(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    lock.client.set(lock.keys.lock, FOREIGN)
    worker = waiting_worker(server, crew, lock, **SLOW)
    channel = lock.keys.release_channel
    wait_until(lambda: lock.client.pubsub_numsub(channel)[0][1] == 1, description="the waiter to listen")
    time.sleep(0.5)
    assert worker.find("held") is None
    lock.client.delete(lock.keys.lock)
    lock.client.publish(channel, json.dumps({"event_type": "lock_released", "lock_key": lock.keys.lock}))
    worker.expect("held", timeout=10)


def test_the_release_is_announced_on_the_public_channel(server: RealServer, crew: Crew, lock: RawLock) -> None:
    worker = crew.start(server.url)
    with lock.client.pubsub(ignore_subscribe_messages=True) as messages:
        messages.subscribe("gpu_lock:gpu_lock:0")
        wait_until(lambda: lock.client.pubsub_numsub("gpu_lock:gpu_lock:0")[0][1] == 1, description="the subscription")
        worker.tell("acquire", name='task "one"\n', hold=0)
        message = wait_until(lambda: messages.get_message(timeout=0.1), description="the release message")
    told = json.loads(message["data"])
    assert abs(told.pop("timestamp") - time.time()) < 60
    assert told == {
        "event_type": "lock_released",
        "lock_key": "gpu_lock:0",
        "task_name": 'task "one"\N{REPLACEMENT CHARACTER}',
        "release_reason": "normal",
    }


def test_a_foreign_value_is_never_taken_for_ours_nor_ended_by_our_calls(lock: RawLock) -> None:
    token = lock.hold("a")
    lock.client.set(lock.keys.lock, FOREIGN)
    assert lock.beat("a", token) == ["other", FOREIGN]
    assert lock.reassert("a", token) == ["other", FOREIGN]
    assert lock.release("a", token) == ["other", FOREIGN]
    lock.client.hset(lock.key("holder"), "deadline", 1)
    reply = lock.acquire("b", mode="poll")
    assert (reply[0], reply[5], reply[6]) == ("waiting", FOREIGN, "")
    lock.withdraw("b")
    assert lock.value == FOREIGN


def test_a_foreign_value_over_a_grant_leaves_no_record_of_a_waiter_that_withdrew(lock: RawLock) -> None:
    token = lock.hold("a")
    lock.acquire("b", mode="poll")
    lock.release("a", token)
    assert (lock.holder_id, lock.holder["phase"]) == ("b", "granted")
    lock.client.set(lock.keys.lock, FOREIGN)
    assert lock.withdraw("b")[0] == "withdrawn"
    lock.client.delete(lock.keys.lock)
    assert lock.holder == {}, "it would hold the lock for the rest of its window"


def test_an_operator_ends_exactly_the_foreign_value_that_was_seen(lock: RawLock) -> None:
    lock.client.set(lock.keys.lock, FOREIGN)
    lock.acquire("next", mode="poll")
    assert lock.reap("locked_by_somebody else") == ["changed", FOREIGN]
    assert lock.reap(FOREIGN)[0] == "ended"
    assert lock.holder_id == "next"
