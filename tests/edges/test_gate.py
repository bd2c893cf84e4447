"""The lock in web servers: FastAPI and Starlette on a real uvicorn, clients that leave, streams, overload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
import redis
from fastapi import BackgroundTasks, Depends, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from aiogpulock import ConfigError, GpuLockManager, InvalidGpuError, Lease, acquisition
from aiogpulock.web import GpuGate
from tests.edges.browser import served, waiting_elsewhere
from tests.edges.shell import Shell
from tests.gpu.conftest import driver_folder as driver_folder
from tests.gpu.conftest import gpu_manager as gpu_manager
from tests.gpu.conftest import sim as sim
from tests.nvml_sim import GiB, Simulation
from tests.servers import RealServer
from tests.unit.support import FOREVER, eventually, force, held_elsewhere, waiters


class Work:
    """What the handlers of a test do, step by step."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()
        self.finished = 0

    async def once(self) -> None:
        self.began.set()
        await self.go_on.wait()
        self.finished += 1

    async def tokens(self) -> AsyncIterator[bytes]:
        yield b"first "
        await self.once()
        yield b"last"


def fastapi_app(gpu: GpuGate, work: Work) -> FastAPI:
    app = FastAPI()

    @app.post("/work")
    async def do_work(lease: Lease = Depends(gpu)) -> dict[str, Any]:  # noqa: B008
        await work.once()
        return {"token": lease.fencing_token}

    @app.post("/stream")
    async def stream(lease: Lease = Depends(gpu)) -> StreamingResponse:  # noqa: B008
        return StreamingResponse(work.tokens())

    return app


def with_background(gpu: GpuGate, work: Work) -> FastAPI:
    """Both ways that keep the GPU beyond the handler."""
    app = FastAPI()

    @app.post("/dependency")
    async def dependency(tasks: BackgroundTasks, lease: Lease = Depends(gpu)) -> dict[str, Any]:  # noqa: B008
        tasks.add_task(work.once)
        return {}

    @app.post("/stream")
    async def stream(request: Request) -> Response:
        return await gpu.stream(request, lambda lease: JSONResponse({}, background=BackgroundTask(work.once)))

    return app


def starlette_app(gpu: GpuGate, work: Work) -> Starlette:
    async def do_work(request: Request) -> Response:
        async with gpu.lease(request) as lease:
            await work.once()
            return JSONResponse({"token": lease.fencing_token})

    async def stream(request: Request) -> Response:
        return await gpu.stream(request, lambda lease: StreamingResponse(work.tokens()))

    routes = [Route("/work", do_work, methods=["POST"]), Route("/stream", stream, methods=["POST"])]
    return Starlette(routes=routes)


@pytest.fixture(params=[fastapi_app, starlette_app])
def make_app(request: pytest.FixtureRequest) -> Callable[[GpuGate, Work], Starlette]:
    """The same server in two frameworks."""
    make: Callable[[GpuGate, Work], Starlette] = request.param
    return make


async def free(manager: GpuLockManager) -> None:
    """Return when nobody holds GPU 0 or waits for it."""

    async def idle() -> bool:
        return all(lock.value is None and lock.waiters == 0 for lock in await manager.status())

    await eventually(idle, description="GPU 0 is free and nobody waits")


async def holder(manager: GpuLockManager) -> str | None:
    return next((lock.task_name for lock in await manager.status()), None)


@asynccontextmanager
async def open_stream(url: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """A client whose stream has begun: what is still to come of it."""
    async with httpx.AsyncClient(base_url=url) as client, client.stream("POST", "/stream") as response:
        chunks = response.aiter_bytes()
        assert await anext(chunks) == b"first "
        yield chunks


MakeApp = Callable[[GpuGate, Work], Starlette]


@pytest.mark.parametrize("way", ["dependency", "stream"])
async def test_background_tasks_of_a_response_have_the_gpu_too(manager: GpuLockManager, way: str) -> None:
    work = Work()
    async with served(with_background(GpuGate(0, manager=manager), work)) as url, httpx.AsyncClient() as client:
        answer = asyncio.create_task(client.post(f"{url}/{way}"))
        await work.began.wait()
        assert await holder(manager) == f"POST /{way}"
        work.go_on.set()
        assert (await answer).status_code == 200
        await free(manager)
    assert work.finished == 1


async def test_a_request_holds_the_gpu_while_it_works(manager: GpuLockManager, make_app: MakeApp) -> None:
    work = Work()
    async with served(make_app(GpuGate(0, manager=manager), work)) as url, httpx.AsyncClient(base_url=url) as client:
        first, second = (asyncio.create_task(client.post("/work")) for _ in range(2))
        await work.began.wait()
        await waiters(manager, 1)
        assert await holder(manager) == "POST /work"
        work.go_on.set()
        tokens = {(await answer).json()["token"] for answer in (first, second)}
        assert len(tokens) == 2
        await free(manager)


async def test_a_full_queue_is_answered_with_503_and_when_to_come_back(
    manager: GpuLockManager, make_app: MakeApp, redis_cleanup: redis.Redis
) -> None:
    gpu = GpuGate(0, manager=manager, max_waiters=2)
    async with served(make_app(gpu, Work())) as url, httpx.AsyncClient(base_url=url) as client:
        async with held_elsewhere(manager), waiting_elsewhere(manager, "a", "b"):
            for _ in range(3):  # the lock's past: holds of 10 s
                redis_cleanup.xadd("{gpu_lock:0}:events", {"event": "released", "hold_ms": 10_000})
            redis_cleanup.expire("{gpu_lock:0}:events", 60)
            answer = await client.post("/work")
            assert answer.status_code == 503
            assert 15 <= int(answer.headers["retry-after"]) <= 30, "the holder's rest, and two holds of 10 s"
            assert "somebody else" not in answer.text, "clients are not told of others"
            await waiters(manager, 2)
        await free(manager)


async def test_the_dead_in_the_queue_do_not_count_in_retry_after(
    manager: GpuLockManager, shell: Shell, redis_cleanup: redis.Redis
) -> None:
    gpu = GpuGate(0, manager=manager, max_wait_time=0.05)
    async with (
        served(starlette_app(gpu, Work())) as url,
        httpx.AsyncClient(base_url=url) as client,
        held_elsewhere(manager),
    ):
        dead = [shell.start("run", "--", "true") for _ in range(3)]
        await waiters(manager, 3)
        for process in dead:
            process.kill()
            await asyncio.to_thread(process.wait)
        for _ in range(3):  # the lock's past: holds of 10 s
            redis_cleanup.xadd("{gpu_lock:0}:events", {"event": "released", "hold_ms": 10_000})
        redis_cleanup.expire("{gpu_lock:0}:events", 60)
        answer = await client.post("/work")
        assert (answer.status_code, int(answer.headers["retry-after"]) <= 10) == (503, True)
    redis_cleanup.delete("{gpu_lock:0}:queue", "{gpu_lock:0}:waiters")  # else the seats expire after 90 s


async def test_a_wait_that_takes_too_long_is_answered_with_503(manager: GpuLockManager, make_app: MakeApp) -> None:
    gpu = GpuGate(0, manager=manager, max_wait_time=0.05)
    async with (
        served(make_app(gpu, Work())) as url,
        httpx.AsyncClient(base_url=url) as client,
        held_elsewhere(manager),
    ):
        answer = await client.post("/work")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        await waiters(manager, 0)


async def test_without_redis_it_is_503_too(own_server: RealServer, make_app: MakeApp) -> None:
    manager = GpuLockManager(own_server.url, redis={"connect_timeout": 0.2})
    gpu = GpuGate(0, manager=manager)
    own_server.stop()
    async with served(make_app(gpu, Work())) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/work")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    await manager.close()


async def test_a_gpu_without_enough_free_memory_is_503_too(
    gpu_manager: GpuLockManager, sim: Simulation, make_app: MakeApp
) -> None:
    sim.device(0).unattributed = 70 * GiB
    gpu = GpuGate(0, manager=gpu_manager, gpu_memory={"require_free": "20GiB", "settle_time": 0.1})
    async with served(make_app(gpu, Work())) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/work")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    await free(gpu_manager)


async def test_a_server_under_its_own_lock_is_500_and_one_line_in_the_log(
    manager: GpuLockManager, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with held_elsewhere(manager) as around:
        monkeypatch.setattr(acquisition, "AROUND", (around.holder_id,))  # as under `aiogpulock run -- uvicorn`
        async with (
            served(make_app(GpuGate(0, manager=manager), Work())) as url,
            httpx.AsyncClient(base_url=url) as client,
        ):
            assert (await client.post("/work")).status_code == 500
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "Traceback" not in caplog.text


async def test_a_gpu_that_does_not_exist_is_500_and_one_line_in_the_log(
    gpu_manager: GpuLockManager, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        served(make_app(GpuGate(97, manager=gpu_manager), Work())) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        answer = await client.post("/work")
    assert answer.status_code == 500
    assert "97" not in answer.text, "clients are not told of the inside"
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "97" in errors[0]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", ["/work", "/stream"])
async def test_a_client_that_leaves_leaves_the_queue(manager: GpuLockManager, make_app: MakeApp, path: str) -> None:
    work = Work()
    async with served(make_app(GpuGate(0, manager=manager), work)) as url, held_elsewhere(manager):
        async with httpx.AsyncClient(base_url=url) as client:
            request = asyncio.create_task(client.post(path))
            await waiters(manager, 1)
            request.cancel()
            with suppress(asyncio.CancelledError):
                await request
        await waiters(manager, 0)
    assert not work.began.is_set()


async def test_a_handler_whose_client_left_keeps_the_gpu_to_its_end(manager: GpuLockManager, make_app: MakeApp) -> None:
    work = Work()
    async with served(make_app(GpuGate(0, manager=manager), work)) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            request = asyncio.create_task(client.post("/work"))
            await work.began.wait()
            request.cancel()
            with suppress(asyncio.CancelledError):
                await request
        await asyncio.sleep(0.1)
        assert await holder(manager) == "POST /work"
        work.go_on.set()
        await free(manager)
    assert work.finished == 1


async def test_a_stream_holds_the_gpu_until_its_last_byte(manager: GpuLockManager, make_app: MakeApp) -> None:
    work = Work()
    async with served(make_app(GpuGate(0, manager=manager), work)) as url, open_stream(url) as chunks:
        assert await holder(manager) == "POST /stream"
        work.go_on.set()
        assert b"".join([chunk async for chunk in chunks]) == b"last"
        await free(manager)


async def test_a_stream_whose_client_leaves_frees_the_gpu(manager: GpuLockManager, make_app: MakeApp) -> None:
    work = Work()
    async with served(make_app(GpuGate(0, manager=manager), work)) as url:
        async with open_stream(url):
            assert await holder(manager) == "POST /stream"
        await free(manager)
    assert work.finished == 0


async def test_a_slow_upload_holds_nothing(manager: GpuLockManager) -> None:
    work, sent = Work(), asyncio.Event()
    work.go_on.set()

    async def body() -> AsyncIterator[bytes]:
        yield b"some"
        await sent.wait()
        yield b" more"

    app = starlette_app(GpuGate(0, manager=manager), work)
    async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
        slow = asyncio.create_task(client.post("/work", content=body()))
        await asyncio.sleep(0.2)
        assert (await client.post("/work")).status_code == 200
        assert work.finished == 1
        sent.set()
        assert (await slow).status_code == 200


async def test_a_lease_lost_in_a_stream_cuts_it_off(manager: GpuLockManager, make_app: MakeApp) -> None:
    work = Work()
    async with served(make_app(GpuGate(0, manager=manager), work)) as url, open_stream(url) as chunks:
        await force(manager)
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(chunks)
    assert work.finished == 0


async def test_a_lost_lease_ends_the_handler_with_503(manager: GpuLockManager, make_app: MakeApp) -> None:
    work = Work()
    async with served(make_app(GpuGate(0, manager=manager), work)) as url, httpx.AsyncClient(base_url=url) as client:
        request = asyncio.create_task(client.post("/work"))
        await work.began.wait()
        await force(manager)
        answer = await request
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert work.finished == 0


@pytest.mark.parametrize("moment", ["making", "beginning"])
async def test_a_lease_lost_before_the_first_byte_of_a_stream_is_503_too(manager: GpuLockManager, moment: str) -> None:
    """The response is still being made, or is made and has sent nothing yet."""
    gpu = GpuGate(0, manager=manager)

    class Late(StreamingResponse):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await lose("beginning")
            await super().__call__(scope, receive, send)

    async def lose(now: str) -> None:
        if now == moment:
            await force(manager)
            await asyncio.sleep(FOREVER)

    async def respond(_: Lease) -> Response:
        await lose("making")
        return Late(Work().tokens())

    async def stream(request: Request) -> Response:
        return await gpu.stream(request, respond)

    async with served(Starlette(routes=[Route("/", stream)])) as url, httpx.AsyncClient() as client:
        answer = await client.get(url)
        assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1")
        await free(manager)


async def test_the_body_can_still_be_read_by_the_handler(manager: GpuLockManager) -> None:
    gpu = GpuGate(0, manager=manager)

    async def echo(request: Request) -> Response:
        async with gpu.lease(request):
            return JSONResponse(await request.json())

    async with served(Starlette(routes=[Route("/", echo, methods=["POST"])])) as url, httpx.AsyncClient() as client:
        assert (await client.post(url, json={"prompt": "hi"})).json() == {"prompt": "hi"}


async def test_a_form_that_was_read_before_is_no_trouble(manager: GpuLockManager) -> None:
    gpu = GpuGate(0, manager=manager)

    async def consume(request: Request) -> Response:
        async for _ in request.stream():
            pass
        async with gpu.lease(request):
            return JSONResponse("done")

    async with served(Starlette(routes=[Route("/", consume, methods=["POST"])])) as url, httpx.AsyncClient() as client:
        assert (await client.post(url, json={})).json() == "done"


def test_wrong_options_are_refused_when_the_gate_is_made() -> None:
    with pytest.raises(ConfigError, match="max_waiters"):
        GpuGate(0, max_waiters=-1)
    with pytest.raises(InvalidGpuError):
        GpuGate(-1)
