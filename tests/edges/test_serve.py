"""`serve` as a program of its own: it finds its settings, speaks on loopback, and ends in order."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.helpers import wait_until
from tests.servers import RealServer

PROGRAM = "from aiogpulock.web import serve; serve(port=0)"


@contextmanager
def serving(**environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its URL. It is killed if it still runs at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"running on (http://\S+)", line):
                yield process, found[1]
                break
        else:
            pytest.fail("it ended before it listened")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order_while_a_page_is_open(server: RealServer, signum: signal.Signals) -> None:
    with server.client() as client:
        before = {each["id"] for each in client.client_list()}  # a test before may still be closing its own
    with serving(AIOGPULOCK_REDIS_URL=server.url) as (process, url):
        assert url.startswith("http://127.0.0.1:")
        with httpx.stream("GET", f"{url}/events") as stream:
            lines = stream.iter_lines()
            while next(lines) != "event: view":
                pass
            process.send_signal(signum)
            for _ in lines:
                pass
        _, log = process.communicate(timeout=30)
    assert process.returncode == {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 0}[signum]
    assert "ERROR" not in log
    assert "Traceback" not in log
    with server.client() as client:
        own = {str(client.client_id())}
        wait_until(
            lambda: {each["id"] for each in client.client_list()} <= before | own,
            description="it has closed its connections",
        )


def test_the_token_comes_from_the_environment(server: RealServer) -> None:
    with serving(AIOGPULOCK_REDIS_URL=server.url, AIOGPULOCK_SERVER_TOKEN="secret") as (_, url):
        body = {"gpu_id": 0, "holder_id": "nobody"}
        assert httpx.post(f"{url}/gpu-lock/release", json=body).status_code == 401
        answer = httpx.post(f"{url}/gpu-lock/release", json=body, headers={"Authorization": "Bearer secret"})
        assert answer.status_code == 409


def test_without_redis_it_serves_and_says_so() -> None:
    with serving(AIOGPULOCK_REDIS_URL="redis://127.0.0.1:1/0", AIOGPULOCK_REDIS_CONNECT_TIMEOUT="0.2") as (_, url):
        assert httpx.get(f"{url}/livez").status_code == 200
        assert httpx.get(f"{url}/readyz").status_code == 503
        assert "GPU locks" in httpx.get(url).text


@pytest.mark.parametrize(
    ("missing", "name"), [("starlette", "GpuGate"), ("sse_starlette", "create_app"), ("uvicorn", "serve")]
)
def test_without_the_extra_it_says_what_to_install(missing: str, name: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from aiogpulock.web import {name}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"ModuleNotFoundError: aiogpulock.web needs {missing}")
    assert last.endswith("pip install 'aiogpulock[server]'")
