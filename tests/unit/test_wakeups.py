"""The inbox: what arrives is a hint, whatever it says; what does not arrive is noticed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import msgspec
import pytest
import redis

from aiogpulock import GpuLockManager
from aiogpulock.config import redact_url
from aiogpulock.redis_client import RedisClient
from aiogpulock.wakeups import MAX_MESSAGE_BYTES, Grant, Inbox, Lost, Message, Watch, parse_message
from tests.servers import RealServer
from tests.unit.support import current, eventually, held_elsewhere, waiters

GRANT = {"type": "grant", "lock": "gpu_lock:0", "id": "a", "token": 1}


@pytest.mark.parametrize(
    "message",
    [
        Grant("gpu_lock:0", "a", 1795460337541712),
        Watch("gpu_lock:0", "a", 1000, None),
        Lost("gpu_lock:0", "a", 2, "forced"),
    ],
)
def test_what_the_scripts_send_is_understood(message: Message) -> None:
    assert parse_message(msgspec.json.encode(message)) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[" * 10_000,
        b"{}",
        b"null",
        json.dumps({**GRANT, "type": "order"}).encode(),
        json.dumps({**GRANT, "token": "1"}).encode(),
        json.dumps({**GRANT, "token": None}).encode(),
        json.dumps({**GRANT, "more": 1}).encode(),
        json.dumps({"type": "grant", "lock": "gpu_lock:0"}).encode(),
        json.dumps({**GRANT, "id": "a" * MAX_MESSAGE_BYTES}).encode(),
    ],
    ids=range(11),
)
def test_what_no_script_sends_is_ignored(data: bytes) -> None:
    assert parse_message(data) is None


class Heard:
    """An inbox and what it told."""

    def __init__(self, url: str, timeout: float = 5) -> None:
        self.messages: list[Message] = []
        self.releases: list[str] = []
        self.health: list[bool] = []
        self.unreachable = 0
        self.client = RedisClient(url, where=redact_url(url), connections=1, timeout=timeout, name="aiogpulock-test")
        self.inbox = Inbox(
            self.client,
            "gpu_lock:inbox:0:test",
            on_message=self.messages.append,
            on_release=self.releases.append,
            on_health=self.health.append,
            on_unreachable=self.count,
        )

    async def count(self) -> None:
        self.unreachable += 1

    async def close(self) -> None:
        await self.inbox.close()
        await self.client.close()


@pytest.fixture
async def heard(redis_url: str) -> AsyncIterator[Heard]:
    heard = Heard(redis_url)
    assert await heard.inbox.ready()
    yield heard
    await heard.close()


async def test_a_message_among_forged_ones_arrives(heard: Heard, redis_cleanup: redis.Redis) -> None:
    for data in (b"", b"\xff", b"x" * 100_000, json.dumps(GRANT), b"{}"):
        assert redis_cleanup.publish(heard.inbox.channel, data) == 1
    await eventually(lambda: heard.messages, description="the message")
    assert heard.messages == [Grant("gpu_lock:0", "a", 1)]
    assert heard.health == [True]


async def test_a_dropped_connection_is_replaced_and_both_are_told(heard: Heard, redis_cleanup: redis.Redis) -> None:
    await heard.inbox.follow_releases("gpu_lock:gpu_lock:0", "gpu_lock:0")
    redis_cleanup.client_kill_filter(_type="pubsub")
    await eventually(lambda: heard.health == [True, False, True], description="the inbox to be back")
    assert heard.unreachable == 1
    assert redis_cleanup.publish("gpu_lock:gpu_lock:0", "released") == 1, "what was followed is followed again"
    await eventually(lambda: heard.releases == ["gpu_lock:0"], description="the release")


async def test_a_half_open_connection_is_replaced_on_demand(heard: Heard) -> None:
    heard.inbox.reconnect()
    await eventually(lambda: heard.health == [True, False, True], description="the inbox to be back")


async def test_releases_are_heard_while_they_are_followed(heard: Heard, redis_cleanup: redis.Redis) -> None:
    channel = "gpu_lock:gpu_lock:0"
    for _ in range(2):
        await heard.inbox.follow_releases(channel, "gpu_lock:0")
    await eventually(lambda: redis_cleanup.publish(channel, "x"), description="a subscription")
    await eventually(lambda: heard.releases, description="the release")
    for _ in range(2):
        await heard.inbox.unfollow_releases(channel)
    await eventually(lambda: not redis_cleanup.publish(channel, "x"), description="no subscription")
    assert heard.inbox.healthy


async def test_a_server_that_does_not_answer_a_ping_is_noticed(own_server: RealServer) -> None:
    heard = Heard(own_server.url, timeout=0.3)
    heard.inbox.PING_EVERY = 0.2  # type: ignore[misc]
    assert await heard.inbox.ready()
    await asyncio.sleep(0.7)
    assert heard.health == [True], "silence that answers pings is health"
    own_server.pause()
    await eventually(lambda: heard.health == [True, False], description="the frozen server to be noticed")
    await eventually(lambda: heard.unreachable >= 2, description="another attempt")
    own_server.resume()
    await eventually(lambda: heard.health == [True, False, True], description="the inbox to be back")
    await heard.close()


async def test_without_permission_to_subscribe_the_inbox_is_ready_and_not_healthy(
    own_server: RealServer, caplog: pytest.LogCaptureFixture
) -> None:
    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "u", "on", ">pw", "~*", "&*", "+@all", "-subscribe")
    heard = Heard(own_server.tcp_url.replace("//", "//u:pw@"))
    assert not await heard.inbox.ready()
    assert heard.health == []
    assert heard.unreachable == 0
    assert "polling instead of waiting for messages" in caplog.text
    await heard.close()


# a manager that hears forged messages


async def forge(manager: GpuLockManager, client: redis.Redis, message: Message) -> None:
    assert client.publish(manager.inbox.channel, msgspec.json.encode(message)) == 1


async def test_a_forged_grant_lets_nobody_in(manager: GpuLockManager, redis_cleanup: redis.Redis) -> None:
    async with held_elsewhere(manager) as lease:
        task = asyncio.create_task(manager.lock(0).acquire())
        await waiters(manager, 1)
        [waiter] = manager.parts.rooms["gpu_lock:0", True]._waiters.values()
        for token in (1, lease.fencing_token, 2**62):
            before = waiter.reply
            await forge(manager, redis_cleanup, Grant("gpu_lock:0", waiter.id, token))
            await eventually(lambda before=before: waiter.reply is not before, description="the waiter to ask")
        assert not task.done()
        lease.check()
    await (await task).release()


async def test_a_forged_loss_ends_no_lease(manager: GpuLockManager, redis_cleanup: redis.Redis) -> None:
    async with manager.lock(0) as lease:
        beat_at = lease._hold.beat_at
        await forge(manager, redis_cleanup, Lost("gpu_lock:0", lease.holder_id, lease.fencing_token, "forced"))
        await eventually(lambda: lease._hold.beat_at > beat_at, description="a beat, to see whether it is true")
        lease.check()


async def test_messages_for_unknown_locks_and_ids_are_harmless(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    async with manager.lock(0) as lease:
        for lock in ("gpu_lock:0", "gpu_lock:7", "gpu_lock:bad name", "elsewhere", ""):
            await forge(manager, redis_cleanup, Grant(lock, "unknown", 1))
            await forge(manager, redis_cleanup, Watch(lock, "unknown", -1, None))
            await forge(manager, redis_cleanup, Lost(lock, "unknown", 1, "forced"))

        def withdrawn() -> bool:
            task = manager.parts.errands._task
            return task is not None and task.done()

        await eventually(withdrawn, description="the unknown ids to be withdrawn")
        assert not redis_cleanup.keys("*:waiters")
        lease.check()
        assert await current(manager) == f"locked_by_{lease.task_name}:{lease.holder_id}"
