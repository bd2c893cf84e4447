"""The health check: everything at one glance, in bounded time, whatever the server does."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
import redis

from aiogpulock import GpuLockManager, ManagerClosedError
from aiogpulock.health import CLOCK_TOLERANCE, clock_findings
from aiogpulock.rates import ExceptionRates, RateWindow, Totals
from tests.acl import LEAST_PRIVILEGES
from tests.faults.proxy import Proxy
from tests.servers import RealServer
from tests.unit.support import held_elsewhere, waiters


async def test_a_held_lock_is_healthy(manager: GpuLockManager) -> None:
    async with manager.lock(0):
        report = await manager.health_check()

    assert (report.status, report.redis_connected, report.error) == ("healthy", True, None)
    assert (report.zombie_count, report.long_held_count, report.queue_lengths) == (0, 0, {})
    assert report.eviction_policy == "noeviction"
    assert report.scan_complete
    assert abs(report.timestamp - time.time()) < 60
    assert msgspec.json.decode(msgspec.json.encode(report))["redis_connected"] is True


async def test_a_value_set_by_hand_is_a_zombie_though_no_index_knows_it(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.set("gpu_lock:7", "locked_by_x")

    report = await manager.health_check()
    redis_cleanup.delete("gpu_lock:7")

    (zombie,) = report.zombie_locks
    assert (zombie.key, zombie.value, zombie.ttl, zombie.kind) == ("gpu_lock:7", "locked_by_x", -1, "no_expiry")
    assert (report.status, report.zombie_count) == ("unhealthy", 1)


async def test_a_foreign_value_that_expires_and_an_older_programs_heartbeat_are_no_zombies(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.set("gpu_lock:7", "locked_by_x", ex=60)
    redis_cleanup.set("gpu_lock:7:heartbeat", int(time.time()))

    report = await manager.health_check()
    redis_cleanup.delete("gpu_lock:7", "gpu_lock:7:heartbeat")

    assert report.zombie_locks == ()


async def test_a_lock_held_for_long_is_named_with_its_age(redis_url: str, redis_cleanup: redis.Redis) -> None:
    async with GpuLockManager(redis_url, restart_grace=0) as manager, manager.lock(0, task_name="long"):
        redis_cleanup.hincrby("{gpu_lock:0}:holder", "since", -400_000)
        report = await manager.health_check()

    (lock,) = report.long_held_locks
    assert lock.key == "gpu_lock:0"
    assert lock.value.startswith("locked_by_long:")
    assert 400 <= lock.age < 460
    assert report.status == "warning"


async def test_queues_are_counted(manager: GpuLockManager) -> None:
    async with held_elsewhere(manager):
        waiter = manager.lock(0)

        async def wait() -> None:
            async with waiter:
                pass

        task = asyncio.create_task(wait())
        await waiters(manager, 1)
        report = await manager.health_check()
    await task

    assert report.queue_lengths == {"0": 1}


async def test_a_hung_server_is_told_of_in_bounded_time(own_server: RealServer) -> None:
    async with GpuLockManager(own_server.url, redis={"connect_timeout": 1}) as manager:
        assert (await manager.health_check()).redis_connected
        own_server.pause()
        started = time.monotonic()
        report = await manager.health_check(timeout=0.3)
        took = time.monotonic() - started
        own_server.resume()

    assert (report.status, report.redis_connected) == ("unhealthy", False)
    assert report.error is not None
    assert "not answer" in report.error
    assert took < 5


async def test_a_server_that_is_not_there_is_told_of(own_server: RealServer) -> None:
    own_server.stop()
    manager = GpuLockManager(own_server.url, redis={"connect_timeout": 0.3})
    report = await manager.health_check()
    await manager.close()

    assert (report.status, report.redis_connected) == ("unhealthy", False)
    assert "is not available" in (report.error or "")
    with pytest.raises(ManagerClosedError):
        await manager.health_check()


async def test_what_threatens_locks_on_the_server_is_found(own_server: RealServer) -> None:
    with own_server.client() as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
    async with GpuLockManager(own_server.url) as manager:
        report = await manager.health_check()

    assert report.eviction_policy == "allkeys-lru"
    assert [(finding.check, finding.level) for finding in report.findings if finding.level != "info"] == [
        ("eviction", "warning")
    ]
    assert report.status == "warning"
    assert report.persistence == "rdb or none"


async def test_odd_keys_are_reported_and_stop_nothing(manager: GpuLockManager, redis_cleanup: redis.Redis) -> None:
    redis_cleanup.zadd("{gpu_lock}:index", {"1": 1, "2": 1, "not an id": 1})
    redis_cleanup.expire("{gpu_lock}:index", 60)
    redis_cleanup.rpush("gpu_lock:1", "a list")
    redis_cleanup.set("gpu_lock:2", "locked_by_t:h", ex=60)
    redis_cleanup.hset("{gpu_lock:2}:holder", mapping={"id": "h", "task": "t"})
    redis_cleanup.hset("{gpu_lock:2}:stats", mapping={"attempts": "many", "acquisitions": 3, "timeouts": "inf"})

    report = await manager.health_check()
    redis_cleanup.flushall()

    (unreadable,) = [finding for finding in report.findings if finding.check == "lock"]
    assert "WRONGTYPE" in unreadable.message
    (zombie,) = report.zombie_locks
    assert (zombie.key, zombie.kind, zombie.holder) == ("gpu_lock:2", "heartbeat_stale", "t")
    assert report.exception_rates is not None
    assert report.exception_rates.total_locks == 3


async def test_a_user_who_may_not_scan_is_told_what_cannot_be_seen(own_server: RealServer) -> None:
    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "gpu", "on", ">pw-secret", *LEAST_PRIVILEGES.split())
    url = own_server.tcp_url.replace("//", "//gpu:pw-secret@")
    async with GpuLockManager(url, restart_grace=0) as manager:
        report = await manager.health_check()

    (finding,) = [finding for finding in report.findings if finding.check == "scan"]
    assert "add +scan" in finding.message
    assert not report.scan_complete
    assert (report.status, report.redis_connected) == ("healthy", True)
    assert "pw-secret" not in repr(report)


async def test_a_large_keyspace_is_looked_through_over_several_checks(
    manager: GpuLockManager, redis_cleanup: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiogpulock.health.SCAN_PAGES", 1)
    redis_cleanup.mset({f"other:{number}": "x" for number in range(5000)})
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    reports = [await manager.health_check() for _ in range(12)]
    redis_cleanup.flushall()

    assert not reports[0].scan_complete
    assert reports[-1].zombie_count == 1


async def test_over_a_slow_line_each_check_looks_through_a_part(
    manager: GpuLockManager, redis_cleanup: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiogpulock.health.SCAN_SECONDS", 0)
    redis_cleanup.mset({f"other:{number}": "x" for number in range(5000)})
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    reports = [await manager.health_check() for _ in range(12)]
    redis_cleanup.flushall()

    assert not reports[0].scan_complete
    assert reports[-1].zombie_count == 1


async def test_a_slow_line_and_a_short_time_are_no_reason_to_call_redis_away(own_server: RealServer) -> None:
    """Each command takes 20 ms, all keys 2 s, and the check may take 0.6 s."""
    with own_server.client() as client:
        client.mset({f"other:{number}": "x" for number in range(100_000)})
    line = Proxy(own_server.port)
    line.delay(0.01)
    async with GpuLockManager(line.url) as manager:
        await manager.look()
        reports = [await manager.health_check(timeout=0.6) for _ in range(2)]
    line.close()
    assert [(report.redis_connected, report.scan_complete) for report in reports] == [(True, False)] * 2


async def test_the_commands_of_a_check_grow_with_the_locks_and_not_faster(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    async def commands(locks: int) -> int:
        redis_cleanup.zadd("{gpu_lock}:index", {str(number): 1 for number in range(locks)})
        redis_cleanup.expire("{gpu_lock}:index", 60)
        await manager.health_check()
        before = redis_cleanup.info("commandstats")
        await manager.health_check()
        after = redis_cleanup.info("commandstats")
        return sum(
            after[name]["calls"] - before.get(name, {"calls": 0})["calls"]
            for name in ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_zrange", "cmdstat_scan")
            if name in after
        )

    ten, hundred = await commands(10), await commands(100)

    assert hundred - ten == pytest.approx(180, abs=20)  # one snapshot, and its one look at the queue, per lock


async def test_health_checks_at_once_see_all_of_a_large_keyspace(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.mset({f"other:{number}": "1" for number in range(5000)})
    by_hand = [f"gpu_lock:{number}" for number in range(8)]
    redis_cleanup.mset(dict.fromkeys(by_hand, "locked_by_x"))
    reports = await asyncio.gather(*(manager.health_check() for _ in range(3)))
    redis_cleanup.delete(*by_hand, *(f"other:{number}" for number in range(5000)))
    assert [report.zombie_count for report in reports] == [8, 8, 8]


def test_rates_cover_the_window_and_not_the_lifetime() -> None:
    window = RateWindow(300)

    def look(at: float, **counters: int) -> ExceptionRates:
        return window.rates(at, {"gpu_lock:0": Totals(**counters)})

    first = look(0, attempts=1000, acquisitions=1000, timeouts=500, emergency_releases=400)
    assert (first.window, first.timeout_rate, first.samples, first.total_locks) == (None, 0.5, 1000, 1000)

    second = look(100, attempts=1040, acquisitions=1030, timeouts=510, emergency_releases=403)
    assert (second.window, second.samples, second.attempts) == (100, 30, 40)
    assert second.timeout_rate == 0.25
    assert second.emergency_release_rate == second.exception_rate == 0.1

    third = look(401, attempts=1041, acquisitions=1031, timeouts=510, emergency_releases=403)
    assert (third.window, third.attempts, third.timeout_rate) == (301, 1, 0)


def test_counters_that_began_anew_are_no_negative_rates() -> None:
    window = RateWindow(300)
    window.rates(0, {"gpu_lock:0": Totals(attempts=1000, acquisitions=1000)})
    after = window.rates(10, {"gpu_lock:0": Totals(attempts=10, acquisitions=5)})
    assert (after.window, after.attempts, after.total_locks) == (10, 0, 5)
    later = window.rates(20, {"gpu_lock:0": Totals(attempts=20, acquisitions=10, timeouts=5)})
    assert (later.window, later.attempts, later.timeout_rate) == (20, 10, 0.5)


def test_a_clock_that_is_off_is_told_of_in_either_direction() -> None:
    assert clock_findings(CLOCK_TOLERANCE, "here") == []
    ahead, behind = clock_findings(90, "here"), clock_findings(-90, "here")
    assert "is 90.0 s ahead of this host's" in ahead[0].message
    assert "is 90.0 s behind this host's" in behind[0].message
