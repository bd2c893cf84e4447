"""Connections: each failure has a typed error that says what to do, and none is left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import redis
import redis.exceptions as rx

from aiogpulock import AuthenticationError, GpuLockManager, ProtocolError, RedisUnavailableError
from aiogpulock.config import redact_url
from aiogpulock.redis_client import RedisClient, ScriptMissingError, typed_error
from tests.servers import RealServer
from tests.unit.support import eventually


def connect(url: str, connections: int = 2, timeout: float = 5) -> RedisClient:
    return RedisClient(url, where=redact_url(url), connections=connections, timeout=timeout, name="aiogpulock-test")


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[RedisClient]:
    client = connect(redis_url)
    yield client
    await client.close()


def idle(client: RedisClient) -> tuple[int, bool]:
    return len(client._busy), client._free.locked()


async def test_a_command_is_answered(client: RedisClient) -> None:
    assert await client.execute("PING") == b"PONG"
    assert await client.execute_many([("ECHO", str(number)) for number in range(3)]) == [b"0", b"1", b"2"]
    assert client.open_connections == 1


async def test_a_thousand_commands_share_the_connections(client: RedisClient) -> None:
    replies = await asyncio.gather(*(client.execute("ECHO", number) for number in range(1000)))
    assert replies == [str(number).encode() for number in range(1000)]
    assert client.open_connections == 2


async def test_one_command_s_error_is_not_another_s(client: RedisClient) -> None:
    good, bad, again = await client.execute_many([("PING",), ("NOSUCHCOMMAND",), ("PING",)])
    assert (good, again) == (b"PONG", b"PONG")
    assert isinstance(bad, ProtocolError)
    with pytest.raises(ProtocolError, match="unknown command"):
        await client.execute("NOSUCHCOMMAND")
    assert isinstance((await client.execute_many([("EVALSHA", "0" * 40, 0)]))[0], ScriptMissingError)


async def test_a_cancelled_command_closes_its_connection_so_that_no_late_reply_answers_another(
    client: RedisClient,
) -> None:
    for _ in range(20):
        task = asyncio.create_task(client.execute("BLPOP", "nothing", 5))
        await eventually(lambda: client._busy, description="the command to be under way")
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert idle(client) == (0, False)
        assert await client.execute("PING") == b"PONG"


async def test_connections_that_the_server_closed_while_idle_are_replaced(
    client: RedisClient, redis_cleanup: redis.Redis
) -> None:
    await asyncio.gather(client.execute("PING"), client.execute("PING"))
    assert redis_cleanup.client_kill_filter(_type="normal", skipme=True) >= 2
    assert await client.execute("PING") == b"PONG"
    assert client.open_connections == 1


async def test_after_close_nothing_stays_open(client: RedisClient, redis_cleanup: redis.Redis) -> None:
    await client.execute("PING")
    straggler = asyncio.create_task(client.execute("BLPOP", "nothing", 0.2))
    await eventually(lambda: client._busy, description="the command to be under way")
    await client.close()
    await asyncio.wait([straggler])  # it may be answered, or fail
    assert straggler.exception() is None or isinstance(straggler.exception(), RedisUnavailableError)
    assert await client.execute("PING") == b"PONG", "a late release still gets through"
    assert client.open_connections == 0

    def gone() -> bool:
        return not [one for one in redis_cleanup.client_list() if one["name"] == "aiogpulock-test"]

    await eventually(gone, description="the connections to be closed")


async def test_a_frozen_server_is_given_up_within_the_timeout(own_server: RealServer) -> None:
    client = connect(own_server.url, timeout=0.3)
    await client.execute("PING")
    own_server.pause()
    started = time.monotonic()
    with pytest.raises(RedisUnavailableError, match="is not available"):
        await client.execute("PING")
    assert time.monotonic() - started < 3
    assert idle(client) == (0, False)
    own_server.resume()
    assert await client.execute("PING") == b"PONG"
    await client.close()


async def test_each_command_has_a_deadline_of_its_own_and_is_not_sent_again(own_server: RealServer) -> None:
    client = connect(own_server.url, timeout=2)
    await asyncio.gather(client.execute("PING"), client.execute("PING"))

    async def given_up() -> float:
        started = time.monotonic()
        with pytest.raises(RedisUnavailableError):
            await client.execute("PING")
        return time.monotonic() - started

    own_server.pause()
    first = asyncio.create_task(given_up())
    await asyncio.sleep(0.5)
    second = asyncio.create_task(given_up())
    assert 1.8 < await first < 3.7, "another attempt would take as long again"
    assert not second.done(), "its deadline comes half a second later"
    assert 1.8 < await second < 3.7
    own_server.resume()
    await client.close()


async def test_a_command_after_the_close_has_a_deadline_too(own_server: RealServer) -> None:
    """A release may outlive its manager."""
    client = connect(own_server.url, timeout=0.3)
    await client.execute("PING")
    await client.close()
    async with asyncio.timeout(5):
        with pytest.raises(RedisUnavailableError):
            await client.execute("BLPOP", "nothing", 0)


async def test_those_in_line_wait_while_others_are_answered(own_server: RealServer) -> None:
    client = connect(own_server.url, connections=1, timeout=0.5)
    slow = [client.execute("BLPOP", f"nothing {number}", 0.2) for number in range(5)]
    assert await asyncio.gather(*slow) == [None] * 5, "one second in line is no failure of the server"
    await client.close()


# what users see


async def test_no_server_is_told_within_the_connect_timeout(own_server: RealServer) -> None:
    own_server.stop()
    for url in (own_server.url, own_server.tcp_url):
        manager = GpuLockManager(url, redis={"connect_timeout": 0.5})
        started = time.monotonic()
        with pytest.raises(RedisUnavailableError, match="named by"):
            await manager.lock(0).acquire()
        assert time.monotonic() - started < 5
        await manager.close()


async def test_a_wrong_password_is_told_without_the_password(own_server: RealServer) -> None:
    with own_server.client() as admin:
        admin.config_set("requirepass", "right-secret")
    url = own_server.tcp_url.replace("//", "//:wrong-secret@")
    manager = GpuLockManager(url)
    with pytest.raises(AuthenticationError, match="Check the password") as caught:
        await manager.lock(0).acquire()
    error: BaseException | None = caught.value
    while error is not None:
        assert "secret" not in str(error)
        error = error.__cause__ or error.__context__
    assert "secret" not in repr(manager.settings)
    await manager.close()
    manager = GpuLockManager(own_server.tcp_url)
    with pytest.raises(AuthenticationError):
        await manager.lock(0).acquire()
    await manager.close()


async def test_a_missing_permission_is_named(own_server: RealServer) -> None:
    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "u", "on", ">pw", "~*", "&*", "+@all", "-hset")
    async with GpuLockManager(own_server.tcp_url.replace("//", "//u:pw@"), restart_grace=0) as manager:
        with pytest.raises(AuthenticationError, match="ACL"):
            await manager.lock(0).acquire()


async def test_a_server_out_of_memory_gives_no_lock_but_takes_one_back(own_server: RealServer) -> None:
    async with GpuLockManager(own_server.url, restart_grace=0) as manager:
        with own_server.client() as admin:
            async with manager.lock(0):
                admin.config_set("maxmemory", "1")
            assert admin.get("gpu_lock:0") is None, "a release needs no memory"
            assert manager.exception_stats.normal_release_failures == 0
            with pytest.raises(RedisUnavailableError, match=r"memory"):
                await manager.lock(0).acquire()
            admin.config_set("maxmemory", "0")
        async with manager.lock(0):
            pass


async def test_a_replica_gives_no_lock(own_server: RealServer) -> None:
    with RealServer() as primary, own_server.client() as admin:
        async with GpuLockManager(own_server.url, restart_grace=0, redis={"connect_timeout": 0.5}) as manager:
            admin.replicaof("127.0.0.1", primary.port)
            with pytest.raises(RedisUnavailableError, match=r"read only|READONLY"):
                await manager.lock(0).acquire()
            admin.replicaof("NO", "ONE")
            async with manager.lock(0):
                pass


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (rx.ConnectionError("reset"), RedisUnavailableError),
        (rx.BusyLoadingError("LOADING"), RedisUnavailableError),
        (rx.ResponseError("BUSY Redis is busy running a script"), RedisUnavailableError),
        (rx.ResponseError("MISCONF cannot persist"), RedisUnavailableError),
        (rx.ResponseError("MASTERDOWN Link with MASTER is down"), RedisUnavailableError),
        (rx.ResponseError("NOREPLICAS Not enough good replicas"), RedisUnavailableError),
        (rx.ReadOnlyError("READONLY"), RedisUnavailableError),
        (rx.OutOfMemoryError("OOM command not allowed"), RedisUnavailableError),
        (rx.MaxConnectionsError("too many"), RedisUnavailableError),
        (rx.ClusterDownError("CLUSTERDOWN"), RedisUnavailableError),
        (OSError("gone"), RedisUnavailableError),
        (TimeoutError(), RedisUnavailableError),
        (rx.AuthenticationError("WRONGPASS"), AuthenticationError),
        (rx.AuthenticationError("NOAUTH"), AuthenticationError),
        (rx.NoPermissionError("NOPERM"), AuthenticationError),
        (rx.ResponseError("ACL failure in script: no permission"), AuthenticationError),
        (rx.NoScriptError("NOSCRIPT"), ScriptMissingError),
        (rx.ResponseError("WRONGTYPE Operation"), ProtocolError),
        (rx.DataError("odd"), ProtocolError),
    ],
    ids=str,
)
def test_every_error_of_the_server_has_its_type(error: Exception, kind: type[Exception]) -> None:
    assert type(typed_error(error, "here")) is kind
