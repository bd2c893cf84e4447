"""The monitor frees what is dead, nothing else, and exactly once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from aiogpulock import (
    ConfigError,
    GpuLockManager,
    GpuLockMonitor,
    LeaseLostError,
    LockTimeoutError,
    ManagerClosedError,
)
from aiogpulock.alerts import Alerts
from aiogpulock.config import AlertSettings
from aiogpulock.liveness import start_time, this_process
from aiogpulock.models import Alert, ProcessInfo
from aiogpulock.monitor import Repair, Round
from aiogpulock.monitor.repairs import Retries
from aiogpulock.raw_text import bytes_of
from aiogpulock.zombies import find_zombies
from tests.acl import LEAST_PRIVILEGES
from tests.raw_scripts import RawLock
from tests.servers import RealServer
from tests.unit.support import FOREVER, eventually, held_elsewhere, waiters

INTERVAL = 0.5
SHORT: dict[str, Any] = {"warning": 0.1, "soft_timeout": 0.2, "hard_timeout": 0.3}
Prepare = Callable[[redis.Redis], None]


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit" / "log.jsonl"


@pytest.fixture
def monitor(manager: GpuLockManager, audit: Path) -> GpuLockMonitor:
    """A monitor that goes round when it is told to."""
    return GpuLockMonitor(manager, timeout_levels=SHORT, monitor_interval=INTERVAL, audit_log=str(audit))


def entries(audit: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in audit.read_text().splitlines()] if audit.exists() else []


def dead_process() -> ProcessInfo:
    """A process of this host that has ended, as a holder's record would name it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = start_time(process.pid) or 0
        process.kill()
    return msgspec.structs.replace(this_process(), processes=((process.pid, started),))


def stale(client: redis.Redis) -> None:
    RawLock(client).hold("stale", lease=1, process="{}")


def process_gone(client: redis.Redis) -> None:
    RawLock(client).hold("gone", process=msgspec.json.encode(dead_process()).decode())


def record_without_lock(client: redis.Redis) -> None:
    RawLock(client).hold("left", lease=1)
    client.delete("gpu_lock:0")


def without_deadline(client: redis.Redis) -> None:
    client.set("gpu_lock:0", "locked_by_task:odd")
    client.hset("{gpu_lock:0}:holder", mapping={"id": "odd", "task": "task"})


def set_by_hand(client: redis.Redis) -> None:
    client.set("gpu_lock:0", "locked_by_x")


def dead_head(client: redis.Redis) -> None:
    lock = RawLock(client)
    lock.hold("alive")
    lock.acquire("dead", expires=1)


def head_whose_process_is_gone(client: redis.Redis) -> None:
    lock = RawLock(client)
    lock.hold("alive")
    lock.acquire("dead", process=msgspec.json.encode(dead_process()).decode())


def waiters_without_a_queue(client: redis.Redis) -> None:
    client.hset("{gpu_lock:0}:waiters", "somebody", "inbox 1 1 1 task")


KINDS: list[tuple[Prepare, str, str, str]] = [
    (stale, "reap", "lease_expired", "locked_by_stale:stale"),
    (process_gone, "reap", "process_gone", "locked_by_gone:gone"),
    (record_without_lock, "reap", "lease_expired", "locked_by_left:left"),
    (without_deadline, "reap", "lease_expired", "locked_by_task:odd"),
    (set_by_hand, "end_foreign", "forced_by_monitor", "locked_by_x"),
    (dead_head, "sweep", "dead_waiters", "locked_by_alive:alive"),
    (head_whose_process_is_gone, "sweep", "dead_waiters", "locked_by_alive:alive"),
    (waiters_without_a_queue, "sweep", "dead_waiters", ""),
]


async def decided_by(monitor: GpuLockMonitor, manager: GpuLockManager, lock: RawLock) -> list[Repair]:
    """What the monitor would do now."""
    seen = await manager.parts.scripts.snapshot(lock.keys)
    return monitor.decide(seen, find_zombies(seen))


@asynccontextmanager
async def lag() -> AsyncIterator[Callable[[], float]]:
    """Yields the longest time by which this busy machine was late for a timer."""
    worst = 0.0

    async def measure() -> None:
        nonlocal worst
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            worst = max(worst, time.monotonic() - before - 0.01)

    task = asyncio.create_task(measure())
    yield lambda: worst
    task.cancel()


@pytest.mark.parametrize(
    ("prepare", "action", "reason", "value"), KINDS, ids=lambda part: getattr(part, "__name__", "")
)
async def test_each_kind_of_zombie_is_freed_within_an_interval_and_a_second_and_audited(
    manager: GpuLockManager, monitor: GpuLockMonitor, redis_cleanup: redis.Redis, audit: Path,
    prepare: Prepare, action: str, reason: str, value: str,
) -> None:  # fmt: skip
    redis_cleanup.zadd("{gpu_lock}:index", {"0": 1})
    redis_cleanup.expire("{gpu_lock}:index", 60)
    async with lag() as late, monitor:
        await asyncio.sleep(0)
        prepare(redis_cleanup)
        redis_cleanup.expire("{gpu_lock:0}:waiters", 60)
        redis_cleanup.expire("{gpu_lock:0}:holder", 60)
        began = time.monotonic()
        await eventually(lambda: entries(audit), description="the repair in the audit log")
        took = time.monotonic() - began
    stood = SHORT["hard_timeout"] + INTERVAL if action == "end_foreign" else 0  # from when it was first seen
    assert took < stood + INTERVAL + 1 + 3 * late()

    [entry] = entries(audit)
    assert (entry["action"], entry["reason"], entry["lock_key"]) == (action, reason, "gpu_lock:0")
    assert (entry["lock_value"] or "") == value
    assert entry["actor"].startswith("monitor ")
    [event] = [event for event in await manager.history(0) if event.event != "granted"]
    assert (event.reason, event.actor) == (reason, entry["actor"])
    assert (await manager.health_check()).zombie_count == 0
    if action == "sweep":
        assert redis_cleanup.zcard("{gpu_lock:0}:queue") == 0
        redis_cleanup.delete("gpu_lock:0", "{gpu_lock:0}:holder", "{gpu_lock:0}:heartbeat")
    else:
        assert redis_cleanup.exists("gpu_lock:0", "{gpu_lock:0}:holder") == 0


async def test_heartbeat_detection(
    manager: GpuLockManager, monitor: GpuLockMonitor, redis_cleanup: redis.Redis
) -> None:
    """A lease that beats is never a zombie, however old; one that stopped is, at the end of its lease."""
    lock = RawLock(redis_cleanup)
    token = lock.hold("beating", lease=600)
    redis_cleanup.hset(lock.key("holder"), "since", 1)
    for _ in range(10):
        lock.beat("beating", token, lease=600)
        seen = await monitor.round()
        assert (seen.zombies, seen.repaired) == ((), ())
        assert seen.locks[0].silent_for is not None
        assert seen.locks[0].silent_for < 0.6
        await asyncio.sleep(0.1)

    async def freed() -> Round | None:
        seen = await monitor.round()
        return seen if seen.repaired else None

    seen = await eventually(freed, description="the silent holder to be replaced")
    assert [(repair.cause, repair.value) for repair in seen.repaired] == [
        ("heartbeat_stale", "locked_by_beating:beating")
    ]
    assert lock.beat("beating", token) == ["done", "reaped"]


async def test_monitor_force_release_atomicity(manager: GpuLockManager, redis_cleanup: redis.Redis) -> None:
    """The monitor decides, the holder releases, the next one acquires, the monitor acts: 1,000 rounds, never harmed."""
    monitor = GpuLockMonitor(manager, timeout_levels=SHORT, hard_timeout_action="release")
    lock = RawLock(redis_cleanup)
    decided = 0
    for number in range(1000):
        old, new = f"old{number}", f"new{number}"
        token = lock.hold(old, task="same task")
        redis_cleanup.hset(lock.key("holder"), "deadline" if number % 2 else "since", 1)
        [repair] = await decided_by(monitor, manager, lock)
        decided += repair.cause == ("heartbeat_stale" if number % 2 else "hard_timeout")
        lock.release(old, token)
        token = lock.hold(new, task="same task")
        assert await monitor.act(repair) == "not_now"
        assert (lock.value, lock.holder_id) == (f"locked_by_same task:{new}", new)
        lock.release(new, token)
    assert decided == 1000


async def test_a_holder_that_beats_between_the_decision_and_the_deed_is_kept(
    manager: GpuLockManager, monitor: GpuLockMonitor, redis_cleanup: redis.Redis
) -> None:
    lock = RawLock(redis_cleanup)
    token = lock.hold("late", lease=1)
    await asyncio.sleep(0.005)
    [repair] = await decided_by(monitor, manager, lock)
    assert repair.cause == "heartbeat_stale"
    assert lock.beat("late", token) == ["renewed"]

    assert await monitor.act(repair) == "not_now"

    assert lock.holder_id == "late"
    lock.release("late", token)


async def test_after_a_restart_the_holders_have_the_grace_to_come_back(
    manager: GpuLockManager, monitor: GpuLockMonitor, redis_cleanup: redis.Redis
) -> None:
    """The server came back with an old deadline; the manager's grace is 1 s."""
    lock = RawLock(redis_cleanup)
    lock.hold("held", lease=1)
    redis_cleanup.hset(lock.key("fence"), mapping={"run": "another", "since": 0})
    await asyncio.sleep(0.005)

    assert (await monitor.round()).repaired == ()
    await asyncio.sleep(1.1)
    assert len((await monitor.round()).repaired) == 1


async def test_two_monitors_free_a_zombie_exactly_once(redis_url: str, redis_cleanup: redis.Redis, audit: Path) -> None:
    rounds: list[Round] = []
    async with GpuLockManager(redis_url, restart_grace=0) as one, GpuLockManager(redis_url, restart_grace=0) as other:
        monitors = [
            GpuLockMonitor(manager, timeout_levels=SHORT, audit_log=str(audit), on_round=rounds.append)
            for manager in (one, other)
        ]
        for number in range(50):
            lock = RawLock(redis_cleanup, str(number))
            if number % 3 == 0:
                redis_cleanup.set(lock.keys.lock, "locked_by_x")
            elif number % 3 == 1:
                lock.hold(f"dead{number}", lease=1)
            else:
                lock.hold("alive")
                lock.acquire(f"dead{number}", expires=1)
        while len(entries(audit)) < 50:
            await asyncio.gather(*(monitor.round() for monitor in monitors))
        await asyncio.gather(*(monitor.round() for monitor in monitors))

    keys = [repair.key for seen in rounds for repair in seen.repaired]
    assert len(keys) == len(set(keys)) == 50
    assert len(entries(audit)) == 50
    redis_cleanup.flushall()


async def test_a_live_holder_over_the_hard_timeout_is_left_alone_by_default(
    manager: GpuLockManager, monitor: GpuLockMonitor
) -> None:
    async with manager.lock(0) as lease:
        await asyncio.sleep(3 * SHORT["hard_timeout"])
        seen = await monitor.round()
        lease.check()
    assert (seen.zombies, seen.repaired) == ((), ())


async def test_where_hard_timeout_releases_the_body_is_cancelled_and_the_next_one_granted(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    monitor = GpuLockMonitor(manager, timeout_levels=SHORT, hard_timeout_action="release")
    successor_in = asyncio.Event()

    async def succeed() -> None:
        async with manager.lock(0, task_name="successor"):
            successor_in.set()

    with pytest.raises(LeaseLostError) as lost:
        async with manager.lock(0, task_name="long"):
            successor = asyncio.create_task(succeed())
            redis_cleanup.hset("{gpu_lock:0}:holder", "since", 1)
            await monitor.round()
            await asyncio.sleep(FOREVER)
    await successor

    assert lost.value.reason == "forced_by_monitor"
    assert successor_in.is_set()
    assert [event.reason for event in await manager.history(0)] == ["normal", "forced_by_monitor"]


async def test_a_foreign_value_is_freed_only_when_it_has_stood_for_the_hard_timeout(
    manager: GpuLockManager, monitor: GpuLockMonitor, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    first = await monitor.round()
    assert [zombie.kind for zombie in first.zombies] == ["no_expiry"]
    assert first.repaired == ()

    # The note is in Redis: a monitor that starts later goes on from it.
    await asyncio.sleep(SHORT["hard_timeout"])
    later = await GpuLockMonitor(manager, timeout_levels=SHORT).round()

    assert [(repair.action, repair.value) for repair in later.repaired] == [("end_foreign", "locked_by_x")]
    assert redis_cleanup.exists("gpu_lock:7") == 0
    [event] = await manager.history(7)
    assert (event.event, event.task_name, event.reason) == ("forced", "locked_by_x", "forced_by_monitor")


async def test_how_old_a_beat_may_be_is_the_monitors_own_setting(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    redis_cleanup.set("gpu_lock:7:heartbeat", time.time() - 5)
    monitor = GpuLockMonitor(manager, timeout_levels=SHORT, heartbeat={"interval": 1, "timeout": 2})

    async def freed() -> bool:
        return bool((await monitor.round()).repaired)

    await eventually(freed, description="the silent value to be freed")
    await monitor.close()
    redis_cleanup.delete("gpu_lock:7:heartbeat")


async def test_a_value_set_by_hand_and_taken_away_again_is_looked_at_no_more(
    manager: GpuLockManager, monitor: GpuLockMonitor, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    seen = [await monitor.round()]
    redis_cleanup.delete("gpu_lock:7")
    seen += [await monitor.round() for _ in range(2)]

    assert [lock.key for lock in seen[0].locks] == ["gpu_lock:7"]
    assert seen[-1].locks == ()


@pytest.mark.parametrize("beat", ["not a time", "inf", time.time() * 1000], ids=["text", "inf", "milliseconds"])
async def test_an_older_program_that_beats_keeps_its_value(
    manager: GpuLockManager, monitor: GpuLockMonitor, redis_cleanup: redis.Redis, beat: str | float
) -> None:
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    for _ in range(4):
        redis_cleanup.set("gpu_lock:7:heartbeat", time.time())
        assert (await monitor.round()).repaired == ()
        await asyncio.sleep(SHORT["hard_timeout"] / 2)
    redis_cleanup.set("gpu_lock:7:heartbeat", beat)  # no sign of life any more: the time runs from the last one

    async def freed() -> bool:
        return bool((await monitor.round()).repaired)

    await eventually(freed, description="the silent value to be freed")
    redis_cleanup.delete("gpu_lock:7:heartbeat")


async def test_a_value_of_the_same_text_set_later_has_its_own_time(
    manager: GpuLockManager, monitor: GpuLockMonitor, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    await monitor.round()
    redis_cleanup.delete("gpu_lock:7")
    async with manager.lock(7):
        await asyncio.sleep(SHORT["hard_timeout"])
    redis_cleanup.set("gpu_lock:7", "locked_by_x")

    assert (await monitor.round()).repaired == ()
    redis_cleanup.delete("gpu_lock:7")


async def test_without_auto_recovery_it_only_reports(
    manager: GpuLockManager, redis_cleanup: redis.Redis, audit: Path
) -> None:
    monitor = GpuLockMonitor(
        manager, timeout_levels=SHORT, auto_recovery=False, hard_timeout_action="release", audit_log=str(audit)
    )
    redis_cleanup.set("gpu_lock:1", "locked_by_x")
    RawLock(redis_cleanup, "2").hold("stale", lease=1)
    async with manager.lock(3):
        for _ in range(3):
            seen = await monitor.round()
            await asyncio.sleep(SHORT["hard_timeout"])

    assert {zombie.kind for zombie in seen.zombies} == {"no_expiry", "heartbeat_stale"}
    assert seen.locks[0].foreign_for is not None
    assert redis_cleanup.exists("gpu_lock:1", "gpu_lock:2") == 2
    assert entries(audit) == []
    redis_cleanup.delete("gpu_lock:1", "gpu_lock:2", "{gpu_lock:2}:holder", "{gpu_lock:2}:heartbeat")


@pytest.mark.parametrize("between", ["gone", "expires"])
@pytest.mark.parametrize("looks", [0, 1])
async def test_a_foreign_value_that_no_round_saw_for_some_intervals_stands_anew(
    manager: GpuLockManager, redis_cleanup: redis.Redis, between: str, looks: int
) -> None:
    def fresh() -> GpuLockMonitor:  # as a restart, or cron
        return GpuLockMonitor(manager, timeout_levels=SHORT, monitor_interval=0.1)

    redis_cleanup.set("gpu_lock:7", "locked_by_asr")
    await fresh().round()
    if between == "gone":
        redis_cleanup.delete("gpu_lock:7")
    else:
        redis_cleanup.set("gpu_lock:7", "locked_by_asr", px=60_000)
    await asyncio.sleep(0.6)
    for _ in range(looks):
        await fresh().round()
    await asyncio.sleep(0.7)
    redis_cleanup.set("gpu_lock:7", "locked_by_asr")  # the next run of the same program
    seen = await fresh().round()
    assert (seen.repaired, seen.locks[0].foreign_for) == ((), None)
    await asyncio.sleep(SHORT["hard_timeout"])
    [repair] = (await fresh().round()).repaired
    assert (repair.action, repair.detail.endswith("seen for 0 s")) == ("end_foreign", True)


async def test_a_foreign_value_that_a_round_saw_gone_stands_anew(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    """Short jobs of one name, one after the other: none of them is ended for the time of all."""
    monitor = GpuLockMonitor(manager, timeout_levels=SHORT, monitor_interval=1)
    for _ in range(4):
        redis_cleanup.set("gpu_lock:7", "locked_by_asr")
        assert (await monitor.round()).repaired == ()
        redis_cleanup.delete("gpu_lock:7")
        await monitor.round()
        await asyncio.sleep(SHORT["hard_timeout"] / 2)


async def test_a_refused_repair_is_tried_again_so_often_and_so_late_as_the_settings_say(
    own_server: RealServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_server.client() as client:
        RawLock(client).hold("stale", lease=1)
        client.config_set("min-replicas-to-write", 1)  # reads are answered, writes are not
        async with GpuLockManager(own_server.url, restart_grace=0) as manager:
            monitor = GpuLockMonitor(manager, cleanup={"max_retry": 2, "retry_delay": 0.2})
            rounds = []
            began = time.monotonic()
            while time.monotonic() - began < 1.5:
                rounds.append(await monitor.round())
                await asyncio.sleep(0.02)
            failed = [failure for seen in rounds for failure in seen.failed]
            assert [(failure.failures, failure.given_up) for failure in failed] == [(1, False), (2, False), (3, True)]
            assert "NOREPLICAS" in failed[0].error

            client.config_set("min-replicas-to-write", 0)
            assert (await monitor.round()).repaired == ()  # given up, for a while
            monkeypatch.setattr(Retries, "GIVEN_UP", 0.1)
            assert len((await monitor.round()).repaired) == 1


async def test_a_server_that_goes_and_comes_back_ends_no_monitor(
    own_server: RealServer, caplog: pytest.LogCaptureFixture
) -> None:
    rounds: list[Round] = []
    manager = GpuLockManager(own_server.url, redis={"connect_timeout": 0.3}, restart_grace=0)
    async with manager, GpuLockMonitor(manager, monitor_interval=0.05, on_round=rounds.append):
        await eventually(lambda: rounds and not rounds[-1].error, description="a round")
        own_server.stop()
        await eventually(lambda: rounds[-1].error, description="a round without Redis")
        own_server.start()
        await eventually(lambda: not rounds[-1].error, description="a round after the restart")
    told = [record.message.split(":")[0] for record in caplog.records if "redis_disconnected" in record.message]
    levels = [record.levelno for record in caplog.records if "redis_disconnected" in record.message]
    assert (told, levels) == (["redis_disconnected"] * 2, [logging.CRITICAL, logging.WARNING])


async def test_odd_keys_are_reported_and_end_no_round(redis_url: str, redis_cleanup: redis.Redis) -> None:
    redis_cleanup.zadd("{gpu_lock}:index", {"1": 1, "bad id": 1})
    redis_cleanup.rpush("gpu_lock:1", "a list")
    redis_cleanup.hset("{gpu_lock:2}:holder", mapping={"nothing": "known", "deadline": "\x00soon"})
    redis_cleanup.set("gpu_lock:2", "locked_by_x", ex=60)
    redis_cleanup.set("gpu_lock:3", b"\xff\xfe")
    redis_cleanup.set("gpu_lock:5", "locked_by_t:h", ex=60)
    redis_cleanup.hset("{gpu_lock:5}:holder", mapping={"id": "h", "task": "t", "deadline": "inf"})
    redis_cleanup.zadd("{gpu_lock:4}:queue", {"seat without a record": 1})
    redis_cleanup.zadd("{gpu_lock}:index", {"4": 1})

    async with GpuLockManager(redis_url, restart_grace=0) as manager:
        seen = await GpuLockMonitor(manager).round()
    redis_cleanup.flushall()

    assert [*seen.unreadable] == ["gpu_lock:1"]
    assert "gpu_lock:1" in seen.unreadable["gpu_lock:1"]
    assert [zombie.key for zombie in seen.zombies] == ["gpu_lock:3", "gpu_lock:4", "gpu_lock:5"]
    assert [repair.key for repair in seen.repaired] == ["gpu_lock:4", "gpu_lock:5"]


async def test_keys_of_the_namespace_that_are_something_else_end_no_round(
    redis_url: str, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.flushall()
    for key in ("{gpu_lock}:index", "{gpu_lock}:told", "{gpu_lock}:people:told", "{gpu_lock}:people:monitor"):
        redis_cleanup.rpush(key, "a list")
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    async with GpuLockManager(redis_url) as manager:
        monitor = GpuLockMonitor(manager, alerts=for_people(lambda _: None))
        seen = await monitor.round()
        report = await manager.health_check()
        await monitor.close()
    redis_cleanup.flushall()
    assert (seen.error, seen.speaks, [*seen.unreadable]) == ("", True, ["{gpu_lock}:index"])
    assert [zombie.key for zombie in seen.zombies] == ["gpu_lock:7"]
    assert (report.redis_connected, "index" in {finding.check for finding in report.findings}) == (True, True)


async def test_an_audit_log_that_cannot_be_written_is_reported_once_and_hinders_no_repair(
    redis_url: str, redis_cleanup: redis.Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    async with GpuLockManager(redis_url, restart_grace=0) as manager:
        monitor = GpuLockMonitor(manager, audit_log=str(tmp_path / "file" / "audit"))
        assert "gpu_lock_monitor.audit_log" in (await monitor.round()).audit_error  # before there is anything to write
        for number in range(2):
            RawLock(redis_cleanup, str(number)).hold("stale", lease=1)
        await asyncio.sleep(0.005)
        seen = await monitor.round()
        (tmp_path / "file").unlink()
        assert (await monitor.round()).audit_error == ""

    assert len(seen.repaired) == 2
    assert "gpu_lock_monitor.audit_log" in seen.audit_error
    told = [record for record in caplog.records if "cannot write gpu_lock_monitor.audit_log" in record.message]
    assert [(record.name, record.levelno) for record in told] == [
        ("aiogpulock.json_lines", logging.ERROR),
        ("aiogpulock.incidents", logging.WARNING),
        ("aiogpulock.incidents", logging.WARNING),  # it has ended
    ]


async def test_what_a_full_disk_did_not_take_of_the_audit_is_told_and_written_later(
    redis_url: str, redis_cleanup: redis.Redis, audit: Path
) -> None:
    audit.parent.mkdir()
    audit.symlink_to("/dev/full")
    async with GpuLockManager(redis_url, restart_grace=0) as manager:
        monitor = GpuLockMonitor(manager, audit_log=str(audit))
        assert (await monitor.round()).audit_error == ""  # there was nothing to write
        RawLock(redis_cleanup).hold("stale", lease=1)
        redis_cleanup.zadd("{gpu_lock}:index", {"0": 1})
        redis_cleanup.expire("{gpu_lock}:index", 60)
        await asyncio.sleep(0.005)
        for _ in range(2):
            assert "No space left" in (await monitor.round()).audit_error
        audit.unlink()
        assert (await monitor.round()).audit_error == ""
    assert [(entry["action"], entry["lock_key"]) for entry in entries(audit)] == [("reap", "gpu_lock:0")]


async def test_a_pipe_that_nobody_reads_stops_no_round(redis_url: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    async with GpuLockManager(redis_url) as manager:
        monitor = GpuLockMonitor(manager, audit_log=str(tmp_path / "pipe"))
        assert "gpu_lock_monitor.audit_log" in (await monitor.round()).audit_error


async def test_an_operators_forced_release_is_audited_too(redis_url: str, audit: Path, redis_cleanup: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("AIOGPULOCK_MONITOR_AUDIT_LOG", str(audit))
    async with GpuLockManager(redis_url, restart_grace=0) as manager:
        lease = await manager.lock(0, task_name="busy").acquire()
        await manager.force_release(0, reason="maintenance", actor="alice")
        with pytest.raises(LeaseLostError):
            await lease.release()
    [entry] = entries(audit)
    assert (entry["action"], entry["holder"], entry["reason"], entry["actor"]) == (
        "force_release", "busy", "maintenance", "alice",
    )  # fmt: skip


async def test_a_listener_that_fails_ends_no_monitor(manager: GpuLockManager) -> None:
    def fail(seen: Round) -> None:
        raise ZeroDivisionError

    assert not (await GpuLockMonitor(manager, on_round=fail).round()).error


@pytest.mark.parametrize(
    ("keywords", "path"),
    [
        ({"timeout_levels": {"warning": 900, "soft_timeout": 600}}, "timeout_levels.warning"),
        ({"hard_timeout_action": "kill"}, "hard_timeout_action"),
        ({"interval": 3}, "gpu_lock_monitor.interval"),
    ],
)
async def test_wrong_settings_are_refused_before_any_connection(keywords: dict[str, object], path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        GpuLockMonitor(redis_url="redis://127.0.0.1:1", **keywords)
    with pytest.raises(ConfigError, match="the manager has a server"):
        GpuLockMonitor(GpuLockManager("redis://127.0.0.1:1"), redis_url="redis://127.0.0.1:1")


async def test_it_runs_until_it_is_cancelled_and_leaves_no_connection(
    redis_url: str, redis_cleanup: redis.Redis
) -> None:
    rounds: list[Round] = []
    before = len(redis_cleanup.client_list())
    running = asyncio.create_task(GpuLockMonitor(redis_url=redis_url, on_round=rounds.append).run())
    await eventually(lambda: rounds, description="a round")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: len(redis_cleanup.client_list()) == before, description="its connections to close")


async def test_the_commands_of_a_round_grow_with_the_locks_and_not_faster(
    manager: GpuLockManager, monitor: GpuLockMonitor, redis_cleanup: redis.Redis
) -> None:
    async def commands(locks: int) -> int:
        for number in range(locks):
            RawLock(redis_cleanup, str(number)).acquire(f"h{number}")
        await monitor.round()
        before = redis_cleanup.info("stats")["total_commands_processed"]
        await monitor.round()
        return int(redis_cleanup.info("stats")["total_commands_processed"]) - int(before)

    counts = [await commands(locks) for locks in (10, 20, 40, 80)]
    redis_cleanup.flushall()

    per_lock = [(more - less) / locks for less, more, locks in zip(counts, counts[1:], (10, 20, 40), strict=False)]
    assert max(per_lock) <= 1.2 * min(per_lock)
    assert max(per_lock) < 15


async def test_alerts_of_other_processes_are_told_once_and_old_ones_never(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    lock = RawLock(redis_cleanup)

    def note(identity: str, kind: str, level: str = "warning", record: str = "") -> None:
        lock.call("note", identity, kind, level, "asr", "h1", "gpu-box:7", "it happened", record)

    redis_cleanup.zadd("{gpu_lock}:index", {"0": 1})
    redis_cleanup.expire("{gpu_lock}:index", 60)
    note("1", "before_the_monitor_came")
    await asyncio.sleep(0.005)
    monitor = GpuLockMonitor(manager)
    assert (await monitor.round()).told == ()
    note("2", "loop_stalled")
    note("3", "from_a_stranger", level="no such level", record="{")
    redis_cleanup.hincrby(lock.key("stats"), "memory_not_freed", 1)
    redis_cleanup.xadd(lock.key("events"), {"event": "memory", "task": "asr", "status": "not_freed", "reason": "3 GiB"})
    await asyncio.sleep(0.005)

    told = (await monitor.round()).told

    assert [(alert.type, alert.level) for alert in told] == [
        ("loop_stalled", "warning"),
        ("from_a_stranger", "warning"),
        ("memory_not_freed", "warning"),
    ]
    assert told[0].message == "it happened (told by gpu-box:7)"
    assert (told[0].holder, told[0].task_name, told[1].record) == ("h1", "asr", None)
    assert (await monitor.round()).told == ()


async def test_a_history_that_is_something_else_mutes_no_other_lock(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.zadd("{gpu_lock}:index", {"0": 1, "1": 1})
    redis_cleanup.expire("{gpu_lock}:index", 60)
    monitor = GpuLockMonitor(manager)
    await monitor.round()
    for gpu_id in ("0", "1"):
        RawLock(redis_cleanup, gpu_id).call("note", "id", "loop_stalled", "warning", "asr", "h", "host:1", "it did", "")
    redis_cleanup.set("{gpu_lock:0}:events", "oops", px=60_000)
    await asyncio.sleep(0.005)
    seen = await monitor.round()
    assert (seen.error, [alert.lock_key for alert in seen.told]) == ("", ["gpu_lock:1"])


def for_people(hear: Callable[[Alert], None], urls: str = "people", **settings: float) -> Alerts:
    """Alerts of which those with the same `urls` tell the same people; they come to `hear`."""

    class ForPeople(Alerts):
        audience = urls  # type: ignore[assignment]

    return ForPeople(AlertSettings(**settings), log=hear)


async def test_of_several_monitors_one_speaks_and_another_takes_over(
    redis_url: str, redis_cleanup: redis.Redis
) -> None:
    heard: list[str] = []

    def monitor(name: str) -> GpuLockMonitor:
        told: list[Round] = []
        alerts = for_people(lambda alert: heard.append(f"{name}: {alert.message.split(':')[0]}"), repeat_after=0)
        return GpuLockMonitor(
            redis_url=redis_url, alerts=alerts, auto_recovery=False, monitor_interval=0.2, on_round=told.append
        )

    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    first, second = monitor("first"), monitor("second")
    for _ in range(2):
        await asyncio.gather(first.round(), second.round())
        await second.round()
        await first.round()
    assert len(heard) == 1
    spoke, silent = (first, second) if heard == ["first: gpu_lock:7"] else (second, first)

    await spoke.close()  # it resigns; one that dies is replaced after three rounds
    redis_cleanup.delete("gpu_lock:7")
    assert (await silent.round()).speaks
    assert heard[1].endswith(": resolved")
    redis_cleanup.set("{gpu_lock}:people:monitor", "somebody who died", px=300)

    async def speaks() -> bool:
        return (await silent.round()).speaks

    assert not await speaks()
    await eventually(speaks, description="the other one to take over")
    await silent.close()
    assert not redis_cleanup.exists("{gpu_lock}:people:monitor")


async def test_a_monitor_with_nobody_to_tell_silences_none_that_has(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    heard: list[str] = []
    silent = GpuLockMonitor(manager, timeout_levels=SHORT)
    heard_by_people = GpuLockMonitor(
        manager,
        auto_recovery=False,
        alerts=for_people(lambda alert: heard.append(f"{alert.type} {alert.lock_key}")),
    )
    await silent.round()
    await heard_by_people.round()
    note(redis_cleanup, "1", gpu="1")
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    await silent.round()
    await heard_by_people.round()
    assert sorted(heard) == ["kind_1 gpu_lock:1", "zombie_locks_detected gpu_lock:7"]
    heard.clear()
    silent._repairer.actor = "monitor another-host:7"  # as one of another process
    RawLock(redis_cleanup).hold("stale", lease=1)
    redis_cleanup.zadd("{gpu_lock}:index", {"0": 1})
    await asyncio.sleep(1.2)
    repaired = (await silent.round()).repaired
    assert [repair.action for repair in repaired] == ["reap", "end_foreign"]
    await asyncio.sleep(0.005)
    await heard_by_people.round()
    assert sorted(heard) == [
        "zombie_lock_cleaned gpu_lock:0",
        "zombie_lock_cleaned gpu_lock:7",
        "zombie_locks_detected gpu_lock:7",
    ]


def note(client: redis.Redis, identity: str, gpu: str = "0") -> None:
    """Some process puts an alert into the history of a lock."""
    RawLock(client, gpu).call("note", identity, f"kind_{identity}", "warning", "asr", "h1", "box:7", "it happened", "")
    client.zadd("{gpu_lock}:index", {gpu: 1})
    client.expire("{gpu_lock}:index", 60)
    time.sleep(0.002)  # the ids of a stream count milliseconds


async def test_when_another_monitor_takes_over_no_alert_is_lost_and_none_told_twice(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    def fresh() -> GpuLockMonitor:
        return GpuLockMonitor(manager, alerts=for_people(lambda _: None))

    one, other = fresh(), fresh()

    async def told(monitor: GpuLockMonitor) -> list[str]:
        return [alert.type for alert in (await monitor.round()).told]

    assert await told(one) == await told(other) == []
    note(redis_cleanup, "1")
    assert (await told(other), await told(one), await told(other)) == ([], ["kind_1"], [])
    note(redis_cleanup, "2")
    note(redis_cleanup, "3", gpu="new")
    assert await told(other) == []
    redis_cleanup.delete("{gpu_lock}:people:monitor")  # the one that spoke has died without a word
    assert await told(other) == ["kind_2", "kind_3"]
    assert await told(one) == []
    note(redis_cleanup, "4")
    assert await told(one) == []
    await other.close()  # in order this time
    assert await told(one) == ["kind_4"]
    await one.close()
    note(redis_cleanup, "5")
    later = fresh()  # after a pause without any monitor
    assert await told(later) == ["kind_5"]
    await later.close()


async def test_other_urls_lose_no_alert(manager: GpuLockManager, redis_cleanup: redis.Redis) -> None:
    """Those of the settings changed, as the monitor runs or between two runs."""
    monitor = GpuLockMonitor(manager, alerts=for_people(lambda _: None))
    log = GpuLockMonitor(manager)
    await monitor.round()
    note(redis_cleanup, "1")
    await log.round()  # nobody reads it
    later = GpuLockMonitor(manager, alerts=for_people(lambda _: None, "others"))
    assert [alert.type for alert in (await later.round()).told] == ["kind_1"]
    for one in (monitor, log, later):
        await one.close()


async def test_logs_and_hooks_hear_whatever_another_monitor_tells_its_own(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    heard: list[tuple[str, str]] = []
    one, other = (
        GpuLockMonitor(
            manager,
            auto_recovery=False,
            alert_log=lambda alert, name=name: heard.append((name, alert.type)),  # type: ignore[misc]
        )
        for name in ("one", "other")
    )
    await one.round()
    await other.round()
    note(redis_cleanup, "1", gpu="1")
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    await one.round()
    await other.round()
    assert heard == [(name, kind) for name in ("one", "other") for kind in ("kind_1", "zombie_locks_detected")]
    await other.close()
    await one.close()
    redis_cleanup.delete("gpu_lock:7")


async def test_a_repair_that_nobody_told_is_told_by_whoever_takes_over(
    redis_url: str, redis_cleanup: redis.Redis
) -> None:
    """Also its own, and that of a monitor with the same name: of the same program, or also process 1 of this host."""
    heard: list[str] = []
    manager = GpuLockManager(redis_url, restart_grace=0)
    redis_cleanup.flushall()  # no history

    def fresh(name: str) -> GpuLockMonitor:
        alerts = for_people(lambda alert: heard.append(f"{name}: {alert.type} {alert.lock_key}"))
        return GpuLockMonitor(manager, alerts=alerts)

    def leave_the_dead(gpu: str) -> None:
        RawLock(redis_cleanup, gpu).hold("stale", lease=1)
        redis_cleanup.zadd("{gpu_lock}:index", {gpu: 1})
        redis_cleanup.expire("{gpu_lock}:index", 60)
        time.sleep(0.005)

    one, other = fresh("one"), fresh("other")
    await one.round()
    await other.round()
    leave_the_dead("0")
    assert [repair.action for repair in (await other.round()).repaired] == ["reap"]
    assert heard == []
    redis_cleanup.delete("{gpu_lock}:people:monitor")  # the one that spoke has died without a word
    await asyncio.sleep(0.005)
    await other.round()
    assert heard == ["other: zombie_lock_cleaned gpu_lock:0"]
    leave_the_dead("1")
    for _ in range(2):
        await other.round()
        await asyncio.sleep(0.005)
    assert heard[1:] == ["other: zombie_lock_cleaned gpu_lock:1"]
    leave_the_dead("2")
    await one.round()
    await asyncio.sleep(0.005)  # what happens in the millisecond in which a turn begins is the next one's
    await other.round()
    assert heard[2:] == ["other: zombie_lock_cleaned gpu_lock:2"]
    await other.close()
    await one.close()
    await manager.close()


async def test_a_way_to_redis_that_only_one_host_lost_has_its_end_told_there(own_server: RealServer) -> None:
    heard: list[str] = []
    async with GpuLockManager(own_server.url, redis={"connect_timeout": 0.5}) as manager:
        speaks = GpuLockMonitor(manager, alerts=for_people(lambda _: None))
        silent = GpuLockMonitor(manager, alerts=for_people(lambda alert: heard.append(alert.message)))
        await speaks.round()
        await silent.round()
        own_server.pause()
        assert (await silent.round()).error
        own_server.resume()
        assert not (await silent.round()).speaks
        assert (len(heard), heard[-1].startswith("resolved: ")) == (2, True)
        await silent.close()
        await speaks.close()


async def test_each_repair_of_another_monitor_is_told(manager: GpuLockManager, redis_cleanup: redis.Redis) -> None:
    silent = GpuLockMonitor(manager, alerts=for_people(lambda _: None), timeout_levels=SHORT)
    silent._repairer.actor = "monitor another-host:7"
    redis_cleanup.flushall()  # no history
    heard: list[str] = []
    speaks = GpuLockMonitor(manager, alerts=for_people(lambda alert: heard.append(alert.message)), auto_recovery=False)
    await speaks.round()
    for number in range(2):
        redis_cleanup.set("gpu_lock:0", f"locked_by_{number}")
        for _ in range(2):
            await silent.round()
            await asyncio.sleep(SHORT["hard_timeout"])
    lock = RawLock(redis_cleanup)
    for holder in ("a", "b"):
        token = lock.hold(holder)
        lock.acquire("dead", mode="poll", expires=1)
        await asyncio.sleep(0.005)
        await silent.round()
        lock.release(holder, token)
    redis_cleanup.zadd("{gpu_lock}:index", {"0": 1})
    redis_cleanup.expire("{gpu_lock}:index", 60)
    await asyncio.sleep(0.005)
    await speaks.round()
    told = [message.split(",")[0] for message in heard]
    assert told == ["gpu_lock:0: forced"] * 2 + ["gpu_lock:0: swept"] * 2
    await speaks.close()
    await silent.close()


async def test_a_condition_that_began_after_the_last_words_of_a_dead_monitor_is_told(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    heard: list[str] = []
    one, other = (
        GpuLockMonitor(
            manager,
            auto_recovery=False,
            alerts=for_people(lambda alert, name=name: heard.append(f"{name} {alert.lock_key}")),  # type: ignore[misc]
        )
        for name in ("one", "other")
    )
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    for monitor in (one, other, one, other):
        await monitor.round()
        await asyncio.sleep(0.005)  # turns are told apart by milliseconds; in doubt it tells twice
    redis_cleanup.set("gpu_lock:8", "locked_by_x")
    await other.round()
    assert heard == ["one gpu_lock:7"]
    redis_cleanup.delete("{gpu_lock}:people:monitor")
    await other.round()
    assert heard == ["one gpu_lock:7", "other gpu_lock:8"]
    await other.close()
    await one.close()
    redis_cleanup.delete("gpu_lock:7", "gpu_lock:8")


async def test_a_host_whose_clock_is_off_misses_no_alert(
    manager: GpuLockManager, redis_cleanup: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    monitor = GpuLockMonitor(manager)
    await monitor.round()
    note(redis_cleanup, "1", gpu="new")
    assert [alert.type for alert in (await monitor.round()).told] == ["kind_1"]
    await monitor.close()


class _At(logging.Handler):
    """Calls somebody at the first log line that contains some text."""

    def __init__(self, text: str, call: Callable[[], None]) -> None:
        super().__init__()
        self._text, self._call, self._done = text, call, False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._done and self._text in record.getMessage():
            self._done = True
            self._call()


async def test_the_repairs_of_a_round_that_then_hangs_are_told(own_server: RealServer) -> None:
    heard: list[Alert] = []
    rounds: list[Round] = []
    with own_server.client() as client:
        for gpu in ("0", "1"):
            RawLock(client, gpu).hold("stale", lease=1)
            client.zadd("{gpu_lock}:index", {gpu: 1})
    log = logging.getLogger("aiogpulock.monitor.repairs")
    hang = _At("gpu_lock:0: reap", own_server.pause)
    log.setLevel(logging.INFO)
    log.addHandler(hang)
    async with GpuLockManager(own_server.url, redis={"connect_timeout": 1.1}, restart_grace=0) as manager:
        monitor = GpuLockMonitor(manager, alert_log=heard.append, on_round=rounds.append)
        seen = await monitor.round()
        own_server.resume()
        await monitor.close()
    log.removeHandler(hang)

    assert seen.error
    assert [repair.key for repair in rounds[0].repaired] == ["gpu_lock:0"]
    assert [(alert.type, alert.lock_key) for alert in heard] == [
        ("zombie_lock_cleaned", "gpu_lock:0"),
        ("redis_disconnected", ""),
    ]


async def test_a_user_with_the_least_privileges_may_watch_and_repair(
    own_server: RealServer, caplog: pytest.LogCaptureFixture
) -> None:
    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "gpu", "on", ">pw-secret", *LEAST_PRIVILEGES.split())
        lock = RawLock(admin)
        admin.zadd("{gpu_lock}:index", {"0": 1, "1": 1})
        manager = GpuLockManager(own_server.tcp_url.replace("//", "//gpu:pw-secret@"), restart_grace=0)
        monitor = GpuLockMonitor(manager, timeout_levels=SHORT)
        await monitor.round()
        lock.call("note", "id", "loop_stalled", "warning", "asr", "h", "host:1", "it happened", "")
        lock.hold("stale", lease=1)
        admin.set("gpu_lock:1", "locked_by_x")
        repaired: list[str] = []

        async def both() -> bool:
            seen = await monitor.round()
            assert not seen.error
            repaired.extend(repair.key for repair in seen.repaired)
            return len(repaired) == 2

        await eventually(both, description="both to be repaired")
        await monitor.close()
        await manager.close()
    assert sorted(repaired) == ["gpu_lock:0", "gpu_lock:1"]
    assert caplog.text.count("add +xrange") == 1
    assert "pw-secret" not in caplog.text


async def test_waiters_before_a_lock_that_somebody_deleted_are_let_in(
    manager: GpuLockManager, monitor: GpuLockMonitor, redis_cleanup: redis.Redis
) -> None:
    lock = RawLock(redis_cleanup)
    lock.hold("deleted by hand")
    waiting = asyncio.create_task(manager.lock(0, fallback_timeout=60, max_wait_time=FOREVER).acquire())
    await waiters(manager, 1)
    await asyncio.sleep(1.1)  # the restart grace
    redis_cleanup.delete(lock.keys.lock, lock.key("holder"))

    seen = await monitor.round()

    assert [repair.cause for repair in monitor.decide(seen.locks[0], seen.zombies)] == ["free_lock"]
    assert seen.repaired == ()  # a grant is no repair, and nobody is told of one
    async with asyncio.timeout(20):
        lease = await waiting
    await lease.release()


async def test_a_holder_that_no_message_reaches_learns_the_reason_from_its_release(
    manager: GpuLockManager, redis_cleanup: redis.Redis
) -> None:
    """The body ends in the same moment: its release finds what the message would have said."""
    monitor = GpuLockMonitor(manager, hard_timeout_action="release")
    lease = await manager.lock(0).acquire()
    redis_cleanup.hset("{gpu_lock:0}:holder", mapping={"since": 1, "inbox": "nobody"})
    await monitor.round()
    with pytest.raises(LeaseLostError) as lost:
        await lease.release()
    assert lost.value.reason == "forced_by_monitor"


async def test_escapes_that_somebody_wrote_into_redis_reach_no_terminal(
    manager: GpuLockManager, redis_cleanup: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    lock = RawLock(redis_cleanup)
    lock.hold("h", task="\x1b[31mred\n")
    redis_cleanup.hset(lock.key("holder"), "since", 1)
    redis_cleanup.zadd("{gpu_lock}:index", {"0": 1})
    redis_cleanup.expire("{gpu_lock}:index", 60)
    monitor = GpuLockMonitor(manager)
    await monitor.round()
    await monitor.close()
    redis_cleanup.delete(lock.keys.lock, lock.key("holder"), lock.key("heartbeat"))
    [told] = [record.getMessage() for record in caplog.records if "lock_hard_timeout" in record.getMessage()]
    assert "red" in told
    assert told.isprintable()


async def test_a_round_on_a_hung_server_ends_and_so_does_the_monitor(own_server: RealServer) -> None:
    manager = GpuLockManager(own_server.url, redis={"connect_timeout": 0.3}, restart_grace=0)
    async with manager:
        monitor = GpuLockMonitor(manager)
        assert not (await monitor.round()).error
        own_server.pause()
        began = time.monotonic()
        seen = await monitor.round()
        await monitor.close()
        took = time.monotonic() - began
        own_server.resume()
    assert "is not available" in seen.error
    assert took < 10


async def test_a_monitor_whose_manager_is_closed_says_so_at_its_end(redis_url: str) -> None:
    manager = GpuLockManager(redis_url)
    monitor = GpuLockMonitor(manager, monitor_interval=0.01)
    with pytest.raises(ManagerClosedError):
        async with monitor:
            await manager.close()
            await asyncio.sleep(0.1)
    await monitor.close()


@pytest.mark.parametrize("value", [b"locked_by_\xff\xfe", b"\\xff", "ключ".encode(), b""])
async def test_a_foreign_value_is_freed_whatever_its_bytes(
    manager: GpuLockManager, monitor: GpuLockMonitor, redis_cleanup: redis.Redis, audit: Path, value: bytes
) -> None:
    redis_cleanup.set("gpu_lock:7", value)
    [zombie] = (await manager.health_check()).zombie_locks
    assert bytes_of(zombie.value or "") == value
    msgspec.json.encode(await manager.health_check())

    async def freed() -> bool:
        seen = await monitor.round()
        msgspec.json.encode(seen.locks)
        return bool(seen.repaired)

    await eventually(freed, description="the value to be freed")

    assert redis_cleanup.exists("gpu_lock:7") == 0
    assert [entry["lock_value"] for entry in entries(audit)] == [zombie.value]
    [event] = await manager.history(7)
    assert (event.event, event.reason) == ("forced", "forced_by_monitor")


async def test_a_foreign_value_that_is_no_text_is_waited_for_and_released_by_what_is_shown(
    redis_url: str, redis_cleanup: redis.Redis
) -> None:
    async with GpuLockManager(redis_url, restart_grace=0) as manager:
        redis_cleanup.set("gpu_lock:7", b"\xff\xfe")
        with pytest.raises(LockTimeoutError, match=r"\\xff"):
            await manager.lock(7, max_wait_time=0).acquire()
        assert not await manager.force_release(7, holder_id="\\xff")
        assert await manager.force_release(7, holder_id="\\xff\\xfe")
        lease = await manager.lock(7, max_wait_time=0).acquire()
        redis_cleanup.set("gpu_lock:7", b"\xff")
        with pytest.raises(LeaseLostError):
            await lease.release()
        redis_cleanup.delete("gpu_lock:7")


async def test_a_reason_without_end_is_cut(manager: GpuLockManager) -> None:
    with pytest.raises(LeaseLostError):
        async with held_elsewhere(manager):
            await manager.force_release(0, reason="x" * 9000)
    [event] = await manager.history(0)
    assert 500 <= len(event.actor) < 600
