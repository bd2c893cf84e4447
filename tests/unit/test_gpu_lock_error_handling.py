"""When leaving goes wrong: three layers, each isolated from the others and from the body's exception."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from aiogpulock import GpuLockManager, LeaseLostError
from aiogpulock.incidents import Alert
from tests.servers import RealServer
from tests.unit.support import current, eventually

TIMES: dict[str, Any] = {"restart_grace": 0, "heartbeat": {"interval": 30, "timeout": 60, "max_stall": 0}}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "critical" / "failures.log"


@pytest.fixture
def alerts() -> list[Alert]:
    return []


@pytest.fixture
async def fragile(own_server: RealServer, alerts: list[Alert], log: Path) -> AsyncIterator[GpuLockManager]:
    """A manager that soon gives up on a server that the test pauses."""
    options = {**TIMES, "redis": {"connect_timeout": 0.4}, "critical_failure_log": str(log)}
    async with GpuLockManager(own_server.url, alert_hook=alerts.append, **options) as manager:
        yield manager
        own_server.resume()


async def test_finally_block_exception_isolation(own_server: RealServer, log: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a hook that fails")

    log.parent.write_text("a file where the log's directory should be")
    options = {**TIMES, "redis": {"connect_timeout": 0.3}, "critical_failure_log": str(log)}
    async with GpuLockManager(own_server.url, alert_hook=fail, **options) as manager:
        with pytest.raises(ZeroDivisionError, match="of the body") as caught:
            async with manager.lock(0, cleanup=fail):
                own_server.pause()
                raise ZeroDivisionError("of the body")
        assert not hasattr(caught.value, "__notes__")
        assert caught.value.__context__ is None
        own_server.resume()
        assert manager.exception_stats.normal_release_failures == 1

        async with manager.lock(1, cleanup=fail):
            own_server.pause()  # and a body that ends well stays so
        own_server.resume()
        assert manager.exception_stats.normal_release_failures == 2
        await manager.force_release(0)
        await manager.force_release(1)


async def test_emergency_release_on_normal_failure(
    fragile: GpuLockManager, own_server: RealServer, alerts: list[Alert]
) -> None:
    async def resume_after_the_first_failure() -> None:
        await eventually(lambda: fragile.exception_stats.normal_release_failures, description="the release to fail")
        own_server.resume()

    fragile.emergency_seconds = 20
    resuming = asyncio.create_task(resume_after_the_first_failure())
    async with fragile.lock(0):
        own_server.pause()
    await resuming
    assert await current(fragile) is None, "the lock is free"
    stats = fragile.exception_stats
    assert (stats.normal_release_failures, stats.emergency_releases) == (1, 1)
    assert (stats.release_script_errors, stats.ownership_violations) == (0, 0)
    [alert] = alerts
    assert (alert.type, alert.level, alert.lock_key) == ("gpu_lock_emergency_release", "warning", "gpu_lock:0")


async def test_an_emergency_release_never_frees_the_successor(fragile: GpuLockManager, own_server: RealServer) -> None:
    with own_server.client() as client:

        async def hand_on_after_the_first_failure() -> None:
            await eventually(lambda: fragile.exception_stats.normal_release_failures, description="the release to fail")
            own_server.resume()
            client.set("gpu_lock:0", "the successor", px=60_000)

        fragile.emergency_seconds = 20
        handing_on = asyncio.create_task(hand_on_after_the_first_failure())
        lease = await fragile.lock(0).acquire()
        own_server.pause()
        with suppress(LeaseLostError):  # unless the frozen server had the release in its buffer
            await lease.release()
        await handing_on
        assert client.get("gpu_lock:0") == "the successor"


async def test_closing_with_a_hung_redis_takes_as_long_with_ten_locks_as_with_one(
    fragile: GpuLockManager, own_server: RealServer, alerts: list[Alert]
) -> None:
    leases = [await fragile.lock(gpu).acquire() for gpu in range(10)]
    own_server.pause()
    began = time.monotonic()
    await fragile.close()
    assert time.monotonic() - began < 4, "ten one after the other would take 8 s"
    assert {lease.lost_reason for lease in leases} == {"manager_closed"}
    assert len(alerts) == 10, "of each it is told that it could not be released"


async def test_critical_failure_recording(
    fragile: GpuLockManager, own_server: RealServer, alerts: list[Alert], log: Path
) -> None:
    for task_name in ("first", "second"):
        async with fragile.lock(task_name, task_name=task_name):
            own_server.pause()
        own_server.resume()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["task_name"] for line in lines] == ["first", "second"]
    for line, name in zip(lines, ("first", "second"), strict=True):
        assert line["lock_key"] == f"gpu_lock:{name}"
        assert line["error"].startswith("RedisUnavailableError: ")
        assert line["traceback"].startswith("Traceback (most recent call last):")
        assert "RedisUnavailableError" in line["traceback"]
        assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(line["timestamp"]) < timedelta(minutes=5)
        assert line["hostname"] == socket.gethostname()
        assert line["released"] is False
    assert {(alert.type, alert.level) for alert in alerts} == {("gpu_lock_critical_failure", "P0")}


async def test_the_log_is_in_the_state_directory_by_default(
    own_server: RealServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    async with GpuLockManager(own_server.url, **TIMES, redis={"connect_timeout": 0.3}) as manager:
        async with manager.lock(0):
            own_server.pause()
        own_server.resume()
    [line] = (tmp_path / "mine" / "aiogpulock" / "critical_failures.log").read_text().splitlines()
    assert json.loads(line)["lock_key"] == "gpu_lock:0"


async def test_a_log_that_cannot_be_written_is_reported_once(
    own_server: RealServer, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log.parent.write_text("a file where the log's directory should be")
    options = {**TIMES, "redis": {"connect_timeout": 0.3}, "critical_failure_log": str(log)}
    async with GpuLockManager(own_server.url, **options) as manager:
        for gpu in range(2):
            async with manager.lock(gpu):
                own_server.pause()
            own_server.resume()
    reports = [record for record in caplog.records if "cannot write the critical-failure log" in record.message]
    assert [record.levelno for record in reports] == [logging.ERROR]


async def test_the_default_alert_is_a_line_in_the_log(own_server: RealServer, caplog: pytest.LogCaptureFixture) -> None:
    async with GpuLockManager(own_server.url, **TIMES, redis={"connect_timeout": 0.3}) as manager:
        async with manager.lock(0):
            own_server.pause()
        own_server.resume()
    [record] = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert record.message.startswith("gpu_lock_critical_failure: gpu_lock:0 could not be released")
    assert record.lock_key == "gpu_lock:0"  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_clean_up_hook_runs_before_the_release_and_its_failure_is_counted(
    manager: GpuLockManager, redis_cleanup: redis.Redis, kind: str
) -> None:
    held: list[bool] = []

    def plain() -> None:
        held.append(redis_cleanup.exists("gpu_lock:0") == 1)
        raise RuntimeError("a hook that fails")

    async def slow() -> None:
        await asyncio.sleep(0)
        plain()

    async with manager.lock(0, cleanup=plain if kind == "plain" else slow):
        pass
    assert held == [True]
    assert await current(manager) is None

    def counted() -> bool:
        return redis_cleanup.hget("{gpu_lock:0}:stats", "cleanup_failures") == "1"

    await eventually(counted, description="the failure to be counted")


# counters for all processes


async def test_counters_of_two_managers_add_up_in_redis(redis_url: str, redis_cleanup: redis.Redis) -> None:
    async def violate(manager: GpuLockManager) -> None:
        lease = await manager.lock(0).acquire()
        redis_cleanup.set("gpu_lock:0", "locked_by_another")
        with pytest.raises(Exception, match="is lost"):
            await lease.release()
        redis_cleanup.delete("gpu_lock:0")

    quiet = {**TIMES, "use_event_driven": False}
    async with GpuLockManager(redis_url, **quiet) as one, GpuLockManager(redis_url, **quiet) as two:
        await violate(one)
        await violate(two)
        await violate(two)
        assert (one.exception_stats.ownership_violations, two.exception_stats.ownership_violations) == (1, 2)

        def counted() -> dict[str, str]:
            return redis_cleanup.hgetall("{gpu_lock:0}:stats")

        await eventually(lambda: counted().get("ownership_violations") == "3", description="the counters to add up")
        assert counted()["attempts"] == counted()["acquisitions"] == "3"


async def test_counters_are_kept_while_redis_is_away_and_sent_once(
    fragile: GpuLockManager, own_server: RealServer
) -> None:
    async with fragile.lock(0):
        own_server.pause()
    # The count was tried at least once: what was sent to the frozen server may be executed when it wakes up.
    await asyncio.sleep(1.2)
    own_server.resume()
    with own_server.client() as client:

        def counted() -> str | None:
            return client.hget("{gpu_lock:0}:stats", "normal_release_failures")

        await eventually(counted, description="the counter to be sent")
        await eventually(lambda: not fragile.parts.errands._errands, description="nothing to be left to send")
        assert counted() == "1"
    assert fragile.exception_stats.normal_release_failures == 1


async def test_a_batch_of_counters_that_is_sent_twice_counts_once(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    async with manager.lock(0) as lease:
        for batch in ("one", "one", "two", "one"):
            await manager.urgent.count(lease._hold.keys, batch, {"cleanup_failures": 2, "timeouts": 1})
    stats = redis_cleanup.hgetall("{gpu_lock:0}:stats")
    assert (stats["cleanup_failures"], stats["timeouts"]) == ("4", "2")
