"""The HTTP endpoints, asked in-process: what they answer, and whom they refuse."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import redis
from starlette.types import Receive, Scope, Send

from aiogpulock import ConfigError, GpuLockManager, LeaseLostError, LockTimeoutError
from aiogpulock.liveness import boot_id
from aiogpulock.metrics import CONTENT_TYPE
from aiogpulock.web import create_app
from tests.servers import RealServer
from tests.unit.support import eventually, held_elsewhere, waiters

TOKEN = "a secret"
COUNTERS = ("normal_release_failures", "emergency_releases", "release_script_errors", "ownership_violations")
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def client(manager: GpuLockManager, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(manager, **options), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8470")


@pytest.fixture
async def http(manager: GpuLockManager) -> AsyncIterator[httpx.AsyncClient]:
    async with client(manager, token=TOKEN) as http:
        yield http


def problem(response: httpx.Response) -> tuple[int, str]:
    """The status and the detail, of an answer that is a problem and says so."""
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (body["status"], body["type"]) == (response.status_code, "about:blank")
    return response.status_code, body["detail"]


async def test_status_shows_each_lock_with_holder_and_queue(manager: GpuLockManager, http: httpx.AsyncClient) -> None:
    async with held_elsewhere(manager, task_name="asr") as lease:
        waiting = asyncio.create_task(manager.lock(0, task_name="<b>next</b>").acquire_for("next"))
        await waiters(manager, 1)
        answer = await http.get("/gpu-lock/status")
        (lock,) = answer.json()["locks"]
        assert (lock["gpu_id"], lock["task_name"], lock["holder_id"]) == ("0", "asr", lease.holder_id)
        assert lock["pid"] == lock["queue"][0]["pid"] == os.getpid()
        assert boot_id() not in answer.text
        assert lock["age"] >= 0
        assert [waiter["task_name"] for waiter in lock["queue"]] == ["<b>next</b>"]
    await (await waiting).release()


async def test_health_is_answered_whatever_it_says(manager: GpuLockManager, http: httpx.AsyncClient) -> None:
    async with held_elsewhere(manager):
        answer = await http.get("/gpu-lock/health")
    report = answer.json()
    assert (answer.status_code, report["status"], report["redis_connected"]) == (200, "healthy", True)
    assert (report["zombie_locks"], report["zombie_count"], report["long_held_count"]) == ([], 0, 0)


async def test_a_value_set_by_hand_is_a_zombie_in_health_and_status(
    manager: GpuLockManager, http: httpx.AsyncClient, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.set("gpu_lock:7", "locked_by_x")
    report = (await http.get("/gpu-lock/health")).json()
    assert report["status"] == "unhealthy"
    (zombie,) = report["zombie_locks"]
    assert (zombie["key"], zombie["value"], zombie["ttl"]) == ("gpu_lock:7", "locked_by_x", -1)
    (lock,) = (await http.get("/gpu-lock/status")).json()["locks"]
    assert (lock["gpu_id"], lock["foreign"]) == ("7", True)
    redis_cleanup.delete("gpu_lock:7")


async def test_metrics_are_prometheus_text(manager: GpuLockManager, http: httpx.AsyncClient) -> None:
    async with held_elsewhere(manager):
        answer = await http.get("/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE
    assert 'aiogpulock_held{gpu="0",uuid=""} 1.0' in answer.text


async def test_the_app_s_lifespan_runs_the_monitor(manager: GpuLockManager, redis_cleanup: redis.Redis) -> None:
    hold = manager.lock(0, lock_timeout=0.2, heartbeat={"enabled": False})
    lease = await hold.acquire_for("silent")
    await lease.lost.wait()

    async def reaped() -> bool:
        return [event.event for event in await manager.history(0)] == ["reaped"]

    app = create_app(manager, monitor=False)
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0.3)
        assert not await reaped(), "it was told not to"
    app = create_app(manager)
    async with app.router.lifespan_context(app):
        await eventually(reaped, description="the monitor has ended the silent holder")
    with pytest.raises(LeaseLostError):
        await lease.release()


async def test_exception_stats_count_over_all_processes(manager: GpuLockManager, http: httpx.AsyncClient) -> None:
    async with held_elsewhere(manager):
        with pytest.raises(LockTimeoutError):
            await manager.lock(0, max_wait_time=0.05).acquire_for("hasty")
    stats = (await http.get("/gpu-lock/exception-stats")).json()
    assert [stats[name] for name in COUNTERS] == [0, 0, 0, 0]
    assert (stats["total_locks"], stats["timeout_rate"]) == (1, 0.5)
    assert {"exception_rate", "emergency_release_rate", "timestamp"} <= stats.keys()


async def test_a_lock_of_a_newer_version_hides_no_other(
    manager: GpuLockManager, http: httpx.AsyncClient, redis_cleanup: redis.Redis
) -> None:
    redis_cleanup.hset("{gpu_lock:1}:holder", mapping={"id": "x", "v": 99})
    redis_cleanup.set("gpu_lock:1", "locked_by_:x", px=60_000)
    async with held_elsewhere(manager):
        status = (await http.get("/gpu-lock/status")).json()
    assert [lock["gpu_id"] for lock in status["locks"]] == ["0"]
    assert "newer aiogpulock" in status["unreadable"]["1"]
    redis_cleanup.delete("gpu_lock:1", "{gpu_lock:1}:holder")


async def test_history_is_newest_first_of_one_lock_or_of_all(
    manager: GpuLockManager, http: httpx.AsyncClient, redis_cleanup: redis.Redis
) -> None:
    for gpu_id, task in ((0, "first"), (1, "second"), (0, "third")):
        async with manager.lock(gpu_id, task_name=task):
            await asyncio.sleep(0.002)  # events are a millisecond apart at least

    async def tasks(**query: Any) -> list[str]:
        answer = await http.get("/gpu-lock/history", params=query)
        return [event["task_name"] for event in answer.json()["events"]]

    assert await tasks() == ["third", "second", "first"]
    assert await tasks(gpu_id=0) == ["third", "first"]
    assert await tasks(limit=2) == ["third", "second"]
    redis_cleanup.set("{gpu_lock:1}:events", "oops", px=60_000)
    assert await tasks() == ["third", "first"]
    assert list((await http.get("/gpu-lock/history")).json()["unreadable"]) == ["1"]
    assert (await http.get("/gpu-lock/history?gpu_id=1")).status_code == 502


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=-1", "limit=x", f"limit={'9' * 5000}", "gpu_id=a%20b"]
)
async def test_a_wrong_query_is_a_problem_that_names_it(http: httpx.AsyncClient, query: str) -> None:
    status, detail = problem(await http.get(f"/gpu-lock/history?{query}"))
    assert status == 400
    assert query.partition("=")[0] in detail


async def test_release_ends_the_holder_that_is_named(manager: GpuLockManager, http: httpx.AsyncClient) -> None:
    lease = await manager.lock(0, task_name="stuck").acquire_for("stuck")
    body = {"gpu_id": 0, "holder_id": lease.holder_id, "reason": "stuck since noon"}
    answer = await http.post("/gpu-lock/release", json=body, headers=BEARER)
    assert answer.json() == {"released": True, "gpu_id": "0", "holder_id": lease.holder_id}
    await lease.lost.wait()
    (event,) = await manager.history(0)
    assert (event.event, event.task_name) == ("forced", "stuck")
    assert "stuck since noon" in event.actor


async def test_release_of_a_holder_that_is_gone_leaves_its_successor_alone(
    manager: GpuLockManager, http: httpx.AsyncClient
) -> None:
    async with held_elsewhere(manager) as old:
        pass
    async with held_elsewhere(manager) as lease:
        body = {"gpu_id": "0", "holder_id": old.holder_id}
        status, detail = problem(await http.post("/gpu-lock/release", json=body, headers=BEARER))
        assert status == 409
        assert old.holder_id in detail
        lease.check()
        (lock,) = await manager.status()
        assert lock.holder_id == lease.holder_id


@pytest.mark.parametrize("value", [b"locked_by_x", b"locked_by_\xff"])
async def test_release_of_a_foreign_value_names_the_value(
    manager: GpuLockManager, http: httpx.AsyncClient, redis_cleanup: redis.Redis, value: bytes
) -> None:
    redis_cleanup.set("gpu_lock:0", value)
    body = {"gpu_id": 0, "holder_id": "locked_by_y"}
    assert problem(await http.post("/gpu-lock/release", json=body, headers=BEARER))[0] == 409
    assert redis_cleanup.exists("gpu_lock:0")
    [lock] = (await http.get("/gpu-lock/status")).json()["locks"]
    body["holder_id"] = lock["value"]
    assert (await http.post("/gpu-lock/release", json=body, headers=BEARER)).status_code == 200
    assert redis_cleanup.get("gpu_lock:0") is None


@pytest.mark.parametrize(
    ("header", "status"),
    [({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": f"Basic {TOKEN}"}, 401)],
)
async def test_release_needs_the_token(http: httpx.AsyncClient, header: dict[str, str], status: int) -> None:
    answer = await http.post("/gpu-lock/release", json={"gpu_id": 0, "holder_id": "x"}, headers=header)
    assert problem(answer)[0] == status
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_without_a_token_nobody_may_release(manager: GpuLockManager) -> None:
    async with client(manager) as http:
        answer = await http.post("/gpu-lock/release", json={"gpu_id": 0, "holder_id": "x"}, headers=BEARER)
    assert problem(answer) == (403, "this server is read-only: start it with a token")


async def test_the_last_newline_of_a_file_is_no_part_of_the_token(manager: GpuLockManager) -> None:
    async with client(manager, token=f"{TOKEN}\n") as http:
        answer = await http.post("/gpu-lock/release", json={"gpu_id": 0, "holder_id": "x"}, headers=BEARER)
    assert problem(answer)[0] == 409


async def test_a_token_of_any_letters_is_known(manager: GpuLockManager) -> None:
    token = "Schlüssel-à"  # its last byte alone would be a blank
    async with client(manager, token=token) as http:
        for given, status in ((token, 409), ("Schlüssel-é", 401)):
            header = {"Authorization": f"Bearer {given}".encode()}
            answer = await http.post("/gpu-lock/release", json={"gpu_id": 0, "holder_id": "x"}, headers=header)
            assert problem(answer)[0] == status


def test_an_empty_token_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="token"):
        create_app(token=" ")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"gpu_id": 0}', b'{"gpu_id":0,"holder_id":"x","all":true}', b"\xff", b"[" * 5000]
)
async def test_a_body_that_cannot_be_read_is_a_problem(http: httpx.AsyncClient, body: bytes) -> None:
    assert problem(await http.post("/gpu-lock/release", content=body, headers=BEARER))[0] == 400


async def test_a_body_without_end_is_refused(http: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 4096

    assert problem(await http.post("/gpu-lock/release", content=endless(), headers=BEARER))[0] == 413


@pytest.mark.parametrize(
    ("host", "allowed", "status"),
    [
        ("localhost:8470", (), 200),
        ("192.0.2.7", (), 200),
        ("[::1]:8470", (), 200),
        ("gpu.example.com", (), 421),
        ("127.0.0.1.example.com", (), 421),
        ("localhost.example.com:8470", (), 421),
        ("GPU.example.com:443", ("gpu.example.com",), 200),
        ("anything.example", ("*",), 200),
    ],
)
async def test_only_known_names_are_answered(
    manager: GpuLockManager, host: str, allowed: tuple[str, ...], status: int
) -> None:
    async with client(manager, allowed_hosts=allowed) as http:
        assert (await http.get("/livez", headers={"Host": host})).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8470", 200),
        ("http://127.0.0.1:9999", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
        ("https://gpu.example.com", 200),  # its proxy asks under another name
    ],
)
async def test_only_its_own_page_may_ask(manager: GpuLockManager, origin: str, status: int) -> None:
    async with client(manager, allowed_hosts=["gpu.example.com"]) as http:
        assert (await http.get("/gpu-lock/status", headers={"Origin": origin})).status_code == status


async def test_every_answer_carries_the_policy_of_the_page(http: httpx.AsyncClient) -> None:
    for path in ("/livez", "/nowhere"):
        headers = (await http.get(path)).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


async def test_unknown_paths_and_methods_are_problems(http: httpx.AsyncClient) -> None:
    assert problem(await http.get("/nowhere"))[0] == 404
    refused = await http.get("/gpu-lock/release")
    assert problem(refused)[0] == 405
    assert refused.headers["allow"] == "POST"


async def test_it_works_where_a_mount_hands_on_paths_with_a_slash(manager: GpuLockManager) -> None:
    app = create_app(manager)

    async def mount(scope: Scope, receive: Receive, send: Send) -> None:  # as Litestar does
        rest = scope["path"].removeprefix("/gpu").strip("/")
        await app({**scope, "path": f"/{rest}/" if rest else "/"}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(mount), base_url="http://127.0.0.1") as http:
        assert (await http.get("/gpu/gpu-lock/status")).status_code == 200
        assert (await http.get("/gpu/static/page.js")).status_code == 200
        assert (await http.get("/gpu")).headers["location"] == "gpu/"
        assert "GPU locks" in (await http.get("/gpu", follow_redirects=True)).text


async def test_alive_without_redis_ready_only_with_it(own_server: RealServer) -> None:
    async with GpuLockManager(own_server.url, redis={"connect_timeout": 1}) as manager, client(manager) as http:
        assert (await http.get("/readyz")).json() == {"status": "ready"}
        own_server.stop()
        assert (await http.get("/livez")).json() == {"status": "alive"}
        answer = await http.get("/readyz")
        assert problem(answer)[0] == 503
        assert int(answer.headers["retry-after"]) > 0
        assert problem(await http.get("/gpu-lock/status"))[0] == 503
        assert problem(await http.get("/gpu-lock/exception-stats"))[0] == 503
        health = await http.get("/gpu-lock/health")
        assert (health.status_code, health.json()["redis_connected"]) == (200, False)
        own_server.start()
        assert (await http.get("/readyz")).status_code == 200


async def test_a_hung_redis_is_not_ready_in_bounded_time(own_server: RealServer) -> None:
    async with GpuLockManager(own_server.url, redis={"connect_timeout": 60}) as manager, client(manager) as http:
        own_server.pause()
        try:
            async with asyncio.timeout(20):
                assert problem(await http.get("/readyz"))[0] == 503
        finally:
            own_server.resume()
