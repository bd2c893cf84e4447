"""One look feeds everybody who watches, and nobody looks for nobody."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import httpx
import pytest
import redis

from aiogpulock import GpuLockManager
from aiogpulock.models import HistoryEvent
from aiogpulock.web import create_app, feed
from aiogpulock.web.feed import Feed
from aiogpulock.web.view import EVENTS, HOLDS, LEAST_HOLDS, hold_points, recent_events
from tests.acl import LEAST_PRIVILEGES
from tests.edges.browser import served
from tests.servers import RealServer
from tests.unit.support import eventually, held_elsewhere


def feed_of(manager: GpuLockManager) -> Feed:
    async def find_manager() -> GpuLockManager:
        return manager

    return Feed(find_manager, can_release=False)


async def test_many_watchers_cost_no_more_looks_than_one(
    manager: GpuLockManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "EVERY", 600.0)
    watched = feed_of(manager)
    seen: list[list[str]] = [[] for _ in range(50)]

    async def watch(tasks: list[str]) -> None:
        async with aclosing(watched.watch()) as views:
            async for view in views:
                gpus = json.loads(view)["gpus"]
                tasks += [gpu["holder"]["task"] for gpu in gpus if gpu["holder"]]

    async with held_elsewhere(manager, task_name="first"):
        watchers = [asyncio.create_task(watch(tasks)) for tasks in seen]
        await eventually(lambda: all("first" in tasks for tasks in seen), description="all see the holder")
        waiting = asyncio.create_task(manager.lock(0, task_name="second").acquire_for("second"))
        await asyncio.sleep(0.1)
    await eventually(lambda: all("second" in tasks for tasks in seen), description="all see the hand-off")
    assert watched.looks < 10
    for watcher in watchers:
        watcher.cancel()
    await (await waiting).release()
    await watched.close()


async def test_nobody_watches_nobody_looks(manager: GpuLockManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "EVERY", 0.001)
    watched = feed_of(manager)
    async with aclosing(watched.watch()) as views:
        await anext(views)
        await eventually(lambda: watched.looks > 2, description="it looks")
    await asyncio.sleep(0)
    looks = watched.looks
    await asyncio.sleep(0.3)
    assert watched.looks == looks
    async with aclosing(watched.watch()) as views:
        assert json.loads(await anext(views))["error"] == ""
    await watched.close()


async def test_a_state_that_stays_is_sent_once(manager: GpuLockManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "EVERY", 0.001)
    watched = feed_of(manager)
    async with held_elsewhere(manager, heartbeat={"enabled": False}), aclosing(watched.watch()) as views:
        await anext(views)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await anext(views)
        assert watched.looks > 2
    await watched.close()


async def test_what_is_gone_is_neither_remembered_nor_listened_for(
    manager: GpuLockManager, redis_cleanup: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "EVERY", 0.05)
    watched = feed_of(manager)
    for gpu in range(20):
        redis_cleanup.set(f"gpu_lock:{gpu}", "locked_by_x", px=60_000)

    async def shown(count: int) -> None:
        async for view in views:
            if len(json.loads(view)["gpus"]) == count:
                return

    def channels() -> int:
        return sum(":inbox:" not in channel for channel in redis_cleanup.pubsub_channels("gpu_lock:*"))

    async with aclosing(watched.watch()) as views:
        await shown(20)
        await eventually(lambda: channels() == 20, description="it listens to each")
        redis_cleanup.delete(*(f"gpu_lock:{gpu}" for gpu in range(1, 20)))
        await shown(1)
        await eventually(lambda: channels() == 1, description="it listens to what there is")
        assert list(watched._histories) == ["0"]
    await watched.close()
    redis_cleanup.delete("gpu_lock:0")


async def test_a_history_that_cannot_be_read_hides_no_lock(manager: GpuLockManager, redis_cleanup: redis.Redis) -> None:
    async with manager.lock(1):
        pass
    async with held_elsewhere(manager, task_name="asr"):
        redis_cleanup.set("{gpu_lock:0}:events", "oops", px=60_000)
        watched = feed_of(manager)
        async with aclosing(watched.watch()) as views:
            view = json.loads(await anext(views))
        await watched.close()
        assert (view["error"], [gpu["state"] for gpu in view["gpus"]]) == ("", ["held", "free"])
        assert "WRONGTYPE" in view["unread"]
        assert [event["gpu_id"] for event in view["events"]] == ["1"]
        redis_cleanup.delete("{gpu_lock:0}:events")


async def test_without_the_right_to_read_histories_the_locks_are_shown(own_server: RealServer) -> None:
    with own_server.client() as client:
        client.execute_command("ACL", "SETUSER", "gpu", "on", ">pw", *LEAST_PRIVILEGES.split())
    async with GpuLockManager(own_server.tcp_url.replace("//", "//gpu:pw@"), restart_grace=0) as manager:
        watched = feed_of(manager)
        async with held_elsewhere(manager), aclosing(watched.watch()) as views:
            view = json.loads(await anext(views))
        await watched.close()
    assert (view["error"], [gpu["state"] for gpu in view["gpus"]]) == ("", ["held"])
    assert "xrevrange" in view["unread"]


def _event(gpu_id: str, at: float, what: str = "released") -> HistoryEvent:
    texts = {"task_name": "", "holder_id": "x", "reason": "", "actor": ""}
    return HistoryEvent(gpu_id=gpu_id, at=at, event=what, fencing_token=1, wait=0.0, hold=1.0, details={}, **texts)


def test_a_busy_lock_pushes_neither_a_quiet_one_s_holds_nor_what_is_notable_out() -> None:
    busy = [_event("0", 10_000 - step) for step in range(500)] + [_event("0", 1.0, "reaped")]
    histories = {"0": busy, "1": [_event("1", 2.0)]}
    assert {point.gpu for point in hold_points(histories)} == {"0", "1"}
    assert len(hold_points(histories)) == HOLDS // 2 + 1
    events = recent_events(histories)
    assert len(events) == EVENTS
    assert [event.event for event in events[-2:]] == ["released", "reaped"]
    many = {str(gpu): [_event(str(gpu), step) for step in range(500)] for gpu in range(100)}
    assert len(hold_points(many)) == 100 * LEAST_HOLDS


async def test_it_starts_without_redis_and_finds_it_later(own_server: RealServer) -> None:
    own_server.stop()
    manager = GpuLockManager(own_server.url, redis={"connect_timeout": 0.2})
    watched = feed_of(manager)
    async with aclosing(watched.watch()) as views:
        assert "not available" in json.loads(await anext(views))["error"]
        own_server.start()
        assert json.loads(await anext(views))["error"] == ""
    await watched.close()
    await manager.close()


async def test_a_stream_ends_in_order_when_the_feed_closes(manager: GpuLockManager) -> None:
    app = create_app(manager)
    async with served(app) as url, httpx.AsyncClient() as client, client.stream("GET", f"{url}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.aiter_lines()
        while await anext(lines) != "event: view":
            pass
        await app.state.feed.close()
        async for _ in lines:
            pass  # the body ends, complete
