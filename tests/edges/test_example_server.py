"""The example server as a process of its own: under load, with clients that give up, and told to end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

import tests
from aiogpulock import GpuLockManager
from tests.helpers import wait_until
from tests.servers import RealServer
from tests.unit.support import waiters

EXAMPLES = Path(tests.__file__).parents[1] / "examples"


@contextmanager
def example_server(server: RealServer, **settings: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its URL; it is killed if it still runs at the end."""
    command = [sys.executable, "-m", "uvicorn", "inference_server:app", "--app-dir", str(EXAMPLES), "--port", "0"]
    environment = {**os.environ, "AIOGPULOCK_REDIS_URL": server.url, **settings}
    log = Path("server.log")
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--timeout-graceful-shutdown", "60", "--no-access-log"], stderr=file, env=environment, text=True
        )
    try:
        url = wait_until(
            lambda: re.search(r"running on (http://\S+)", log.read_text()), description="the example server listens"
        )[1]
        yield process, url
    finally:
        process.kill()
        process.wait()


def test_200_clients_with_random_disconnects_leave_it_serving_and_idle(server: RealServer) -> None:
    with example_server(server, SECONDS_PER_TOKEN="0.001") as (process, url):
        load = subprocess.run(
            [sys.executable, str(EXAMPLES / "load.py"), "--url", url, "--clients", "200", "--seconds", "5"],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert load.returncode == 0, load.stdout + load.stderr
        met = {line.split()[0] for line in load.stdout.splitlines()}
        assert {"served", "turned", "gave"} <= met, "it served, turned away, and saw clients leave"
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert "Traceback" not in Path("server.log").read_text()
    with server.client() as client:
        assert not [key for key in client.keys("*") if key.endswith((":queue", ":waiters", ":holder", "gpu_lock:0"))]


async def test_told_to_end_it_turns_the_waiting_away_and_serves_who_has_the_gpu(
    server: RealServer, manager: GpuLockManager
) -> None:
    with example_server(server, SECONDS_PER_TOKEN="0.4") as (process, url):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            requests = []
            for place in range(5):
                requests.append(asyncio.create_task(client.post("/generate", json={"prompt": "x"})))
                await waiters(manager, place)
            process.send_signal(signal.SIGTERM)
            first, *others = [answer.status_code for answer in await asyncio.gather(*requests)]
        assert (first, others) == (200, [503] * 4)
        assert await asyncio.to_thread(process.wait, 60) == -signal.SIGTERM
    (lock,) = await manager.status()
    assert (lock.value, lock.waiters) == (None, 0)
    assert [event.event for event in await manager.history(0)] == ["released"], "nobody else had the GPU"


def test_told_to_end_it_does_not_wait_for_those_who_watch_the_page(server: RealServer) -> None:
    with example_server(server) as (process, url), httpx.stream("GET", f"{url}/gpu/events") as stream:
        lines = stream.iter_lines()
        while next(lines) != "event: view":
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM  # its own patience is 60 s
