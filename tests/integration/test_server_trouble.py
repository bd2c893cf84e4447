"""A server that refuses, forgets its scripts, or lets others write: OOM, READONLY, NOSCRIPT, ACL, forged messages."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
import redis

from aiogpulock import GpuLockManager, LeaseLostError, ProtocolError
from aiogpulock.keys import lock_keys
from tests.acl import LEAST_PRIVILEGES
from tests.faults.proxy import Proxy
from tests.helpers import wait_until
from tests.raw_scripts import RawLock
from tests.servers import RealServer
from tests.unit.support import eventually
from tests.workers import Crew

pytestmark = pytest.mark.integration

SLOW: dict[str, Any] = {"poll_interval": 60, "max_poll_interval": 60, "fallback_timeout": 60}


class Heard:
    """What arrives on a channel."""

    def __init__(self, lock: RawLock, channel: str) -> None:
        self._messages = lock.client.pubsub(ignore_subscribe_messages=True)
        self._messages.subscribe(channel)
        wait_until(lambda: lock.client.pubsub_numsub(channel)[0][1] >= 1, description="the subscription")

    def next(self, timeout: float = 5.0) -> dict[str, Any] | None:
        """The next message, or None; the confirmation of the subscription is none."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            message = self._messages.get_message(timeout=left)
            if message is not None:
                data: dict[str, Any] = json.loads(message["data"])
                return data
        return None

    def close(self) -> None:
        self._messages.close()


# refused writes


@pytest.mark.parametrize("trouble", ["OOM", "READONLY"])
def test_a_refused_grant_is_told_to_nobody(own_server: RealServer, trouble: str) -> None:
    """All writes come before any PUBLISH: a message after a refused write would be a grant that nobody holds."""
    lock = RawLock(own_server.client())
    lock.hold("holder")
    lock.acquire("next", inbox="inbox-next")
    lock.client.delete(lock.keys.lock, lock.key("holder"), lock.key("heartbeat"))
    heard = Heard(lock, "inbox-next")
    if trouble == "OOM":
        lock.client.config_set("maxmemory", 1)
    else:
        lock.client.replicaof("127.0.0.1", 1)
    with pytest.raises((redis.exceptions.OutOfMemoryError, redis.ReadOnlyError)):
        lock.call("resume")
    assert heard.next(0.5) is None
    assert lock.holder_id is None
    if trouble == "OOM":
        lock.client.config_set("maxmemory", 0)
        lock.call("resume")
        told = heard.next()
        assert told is not None
        assert (told["type"], told["token"]) == ("grant", int(lock.holder["token"])), "told once it was written"
    heard.close()


def test_without_memory_beats_and_releases_pass_and_a_claim_too(own_server: RealServer) -> None:
    lock = RawLock(own_server.client())
    token = lock.hold("holder")
    lock.acquire("poller", mode="poll")
    lock.client.config_set("maxmemory", 1)
    assert lock.beat("holder", token) == ["renewed"]
    assert lock.release("holder", token)[0] == "released"
    assert lock.holder_id == "poller"
    assert lock.acquire("poller", mode="poll")[0] == "held"
    other = RawLock(lock.client, "1")
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        other.acquire("new")
    assert other.value is None


@pytest.mark.parametrize("trouble", ["OOM", "NOREPLICAS"])
def test_a_lease_outlives_a_server_that_refuses_writes_for_a_while(
    own_server: RealServer, lone_crew: Crew, trouble: str
) -> None:
    settings = {"heartbeat": {"interval": 0.5, "timeout": 10}}
    holder, waiter = (lone_crew.start(own_server.url, **settings, **SLOW) for _ in range(2))
    lock = RawLock(own_server.client())
    holder.tell("acquire", name="holder")
    holder.expect("held")
    waiter.tell("acquire", name="waiter")
    wait_until(lambda: lock.queue, description="a waiter in the queue")
    if trouble == "OOM":
        lock.client.config_set("maxmemory", 1)
        time.sleep(1.5)
        lock.client.config_set("maxmemory", 0)
    else:
        lock.client.config_set("min-replicas-to-write", 1)
        time.sleep(1.5)
        lock.client.config_set("min-replicas-to-write", 0)
    deadline = int(lock.holder["deadline"])
    wait_until(lambda: int(lock.holder["deadline"]) > deadline, description="a beat afterwards")
    assert holder.find("failed") is None
    holder.tell("release", name="holder")
    waiter.expect("held")


async def test_forgotten_scripts_are_sent_again(manager: GpuLockManager, lock: RawLock) -> None:
    async with manager.lock(0) as lease:
        lock.client.script_flush()
        before = int(lock.holder["deadline"])
        async with manager.lock(1):
            lock.client.script_flush()
        for _ in range(100):
            if int(lock.holder["deadline"]) > before:
                break
            lease.check()
            await asyncio.sleep(0.05)
        assert int(lock.holder["deadline"]) > before, "the beat came through as well"
        lock.client.script_flush()
    assert lock.value is None


def test_the_least_privileges_suffice_for_everything(own_server: RealServer, lone_crew: Crew) -> None:
    lock = RawLock(own_server.client())
    lock.client.execute_command("ACL", "SETUSER", "gpu", "reset", "on", ">pw", *LEAST_PRIVILEGES.split())
    url = own_server.url.replace("unix://", "unix://gpu:pw@")
    lock.client.acl_log_reset()
    workers = [lone_crew.start(url, heartbeat={"interval": 0.2, "timeout": 5}, restart_grace=1) for _ in range(2)]
    for worker in workers:
        worker.tell("crowd", count=20)
    for worker in workers:
        worker.expect("served")
    workers[0].tell("acquire", name="a")
    workers[0].expect("held", name="a")
    workers[1].tell("acquire", name="b", max_wait_time=0.3)
    workers[1].expect("failed", name="b")
    workers[1].tell("acquire", name="c")
    wait_until(lambda: lock.queue, description="a waiter")
    workers[0].kill()
    workers[1].expect("held", name="c")
    workers[1].tell("status")
    assert workers[1].expect("status")["locks"] == ["gpu_lock:0"]
    lock.client.flushall()
    wait_until(lambda: lock.holder.get("task") == "c", description="the re-assertion")
    workers[1].tell("force", gpu=0)
    workers[1].expect("forced")
    workers[1].expect("failed", name="c", reason="forced")
    assert {entry["object"] for entry in lock.client.acl_log()} <= {"scan"}  # status shows what is in the index
    assert "cannot be checked" not in workers[1].errors


# messages are hints


def test_a_forged_grant_starts_no_body_and_takes_nobodys_place(server: RealServer, crew: Crew, lock: RawLock) -> None:
    token = lock.hold("by hand", inbox="nobody")
    worker = crew.start(server.url, **SLOW)
    worker.tell("acquire", name="w")
    wait_until(lambda: lock.queue, description="a waiter in the queue")
    [waiter] = lock.queue
    [inbox] = lock.client.pubsub_channels("gpu_lock:inbox:*")
    grant = {"type": "grant", "lock": "gpu_lock:0", "id": waiter, "token": token + 1}
    forged: list[bytes] = [
        json.dumps(grant).encode(),
        json.dumps(grant | {"id": "by hand"}).encode(),
        json.dumps(grant | {"token": "many"}).encode(),
        json.dumps(grant | {"more": 1}).encode(),
        json.dumps(grant | {"lock": "gpu_lock:../x"}).encode(),
        json.dumps({"type": "lost", "lock": "gpu_lock:0", "id": waiter, "token": 1, "reason": "x"}).encode(),
        json.dumps({"type": "watch", "lock": "gpu_lock:0", "holder": "x", "deadline_in": 0, "process": None}).encode(),
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'"' + b"x" * 20_000 + b'"',
    ]
    for message in forged:
        assert lock.client.publish(inbox, message) == 1
    worker.tell("acquire", name="other", gpu=1, hold=0)
    worker.expect("left", name="other")
    assert worker.find("held", name="w") is None
    assert lock.holder_id == "by hand"
    assert lock.queue == [waiter]
    lock.release("by hand", token)
    worker.expect("held", name="w")


async def test_a_forged_loss_is_no_loss_until_redis_confirms_it(manager: GpuLockManager, lock: RawLock) -> None:
    async with manager.lock(0) as lease:
        lost = {"type": "lost", "lock": lease.key, "id": lease.holder_id, "token": lease.fencing_token, "reason": "x"}
        deadline = int(lock.holder["deadline"])
        [inbox] = lock.client.pubsub_channels("gpu_lock:inbox:*")
        lock.client.publish(inbox, json.dumps(lost))
        async with manager.lock(1):
            pass
        lease.check()
        assert lock.holder_id == lease.holder_id
        assert int(lock.holder["deadline"]) >= deadline


async def test_a_forced_release_is_told_to_the_holder_at_once(manager: GpuLockManager, lock: RawLock) -> None:
    with pytest.raises(LeaseLostError) as caught:
        async with manager.lock(0):
            assert await manager.force_release(0, reason="maintenance")
            await asyncio.sleep(30)
    assert caught.value.reason == "forced"
    assert not await manager.force_release(0), "nobody is left to end"
    [event] = [event for _, event in lock.client.xrange(lock.key("events")) if event["event"] == "forced"]
    assert "maintenance" in event["actor"]


async def test_a_forced_release_whose_reply_was_lost_knows_that_it_was_the_one(
    server: RealServer, lock: RawLock
) -> None:
    proxy = Proxy(server.port)
    try:
        async with GpuLockManager(proxy.url) as manager:
            keys, terms = lock_keys("0", "gpu_lock"), manager.script_terms()
            lock.hold("a")
            how = ("forced", "forced", "operator")
            assert await manager.scripts.reap(keys, terms, "nobody", *how) == (False, False)
            proxy.drop_replies(True)
            reap = asyncio.create_task(manager.scripts.reap(keys, terms, lock.value or "", *how))
            await eventually(lambda: not lock.value, description="the script to have run")
            proxy.drop_replies(False)
            ended, _ = await reap
            assert ended
    finally:
        proxy.close()


async def test_a_newer_protocol_is_refused_with_a_clear_error(manager: GpuLockManager, lock: RawLock) -> None:
    lock.hold("from the future")
    lock.client.hset(lock.key("holder"), "v", 2)
    with pytest.raises(ProtocolError, match="Upgrade aiogpulock"):
        await manager.lock(0).acquire()
    lock.client.delete(lock.keys.lock, lock.key("holder"), lock.key("heartbeat"))
