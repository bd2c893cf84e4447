"""Ctrl-C and SIGTERM in a holder or in a waiter: the lock is free at once, and the program ends as it would without us.

The programs run under another boot id, so that nobody can find their death by a pidfd.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from tests.helpers import wait_until
from tests.raw_scripts import RawLock
from tests.servers import RealServer
from tests.workers import Crew

pytestmark = pytest.mark.integration

SETTINGS: dict[str, Any] = {"heartbeat": {"interval": 20, "timeout": 60}, "max_wait_time": None}
ENDINGS = [
    pytest.param(signal.SIGTERM, -signal.SIGTERM, id="SIGTERM"),
    pytest.param(signal.SIGINT, -signal.SIGINT, id="Ctrl-C"),
]


@pytest.mark.parametrize("program", ["one_hold", "thread_hold"])
@pytest.mark.parametrize(("signum", "status"), ENDINGS)
def test_a_signal_to_the_holder_frees_the_lock_at_once(
    server: RealServer, crew: Crew, lock: RawLock, signum: signal.Signals, status: int, program: str
) -> None:
    holder = crew.start(server.url, program=program, boot="other", **SETTINGS)
    crew.may_complain.add(holder.pid)
    waiter = crew.start(server.url, **SETTINGS)
    holder.expect("held")
    waiter.tell("acquire", name="waiter")
    wait_until(lambda: lock.queue, description="a waiter in the queue")
    holder.signal(signum)
    waiter.expect("held", timeout=10)
    cut_off = (
        program == "thread_hold" and signum == signal.SIGTERM
    )  # a thread cannot be cancelled: its body has not ended
    assert lock.holder["dirty"] == ("1" if cut_off else "")
    assert holder.wait(10) == status
    check_stderr(holder.errors, signum)


@pytest.mark.parametrize("program", ["one_hold", "thread_hold"])
@pytest.mark.parametrize(("signum", "status"), ENDINGS)
def test_a_signal_to_a_waiter_takes_it_out_of_the_queue_at_once(
    server: RealServer, crew: Crew, lock: RawLock, signum: signal.Signals, status: int, program: str
) -> None:
    lock.hold("by hand")
    waiter = crew.start(server.url, program=program, boot="other", **SETTINGS)
    crew.may_complain.add(waiter.pid)
    wait_until(lambda: lock.queue, description="a waiter in the queue")
    waiter.signal(signum)
    assert waiter.wait(10) == status
    assert lock.queue == []
    check_stderr(waiter.errors, signum)


def check_stderr(errors: str, signum: signal.Signals) -> None:
    """SIGTERM says nothing. Ctrl-C shows Python's own KeyboardInterrupt, as without us, and no second traceback."""
    if signum == signal.SIGTERM:
        assert errors == ""
        return
    lines = errors.splitlines()
    assert lines[-1] == "KeyboardInterrupt"
    assert "never retrieved" not in errors
    assert "Exception ignored" not in errors
    assert "Task was destroyed" not in errors


def test_a_driven_worker_with_many_waiters_leaves_in_order_on_sigterm(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    worker = crew.start(server.url, boot="other", **SETTINGS)
    worker.tell("acquire", name="holder")
    worker.expect("held")
    worker.tell("crowd", count=50)
    wait_until(lambda: len(lock.queue) == 50, description="50 waiters")
    worker.signal(signal.SIGTERM)
    assert worker.wait(10) == -signal.SIGTERM
    assert worker.find("cancelled", name="holder") is not None, "the body was cancelled, and its clean-up ran"
    assert lock.value is None
    assert lock.queue == []


def test_with_a_hung_redis_sigterm_takes_as_long_with_ten_locks_as_with_one(
    own_server: RealServer, lone_crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOGPULOCK_REDIS_CONNECT_TIMEOUT", "1")
    program = lone_crew.start(own_server.url, program="thread_holds_many", **SETTINGS)
    lone_crew.may_complain.add(program.pid)
    program.expect("held")
    own_server.pause()
    began = time.monotonic()
    program.signal(signal.SIGTERM)
    assert program.wait(60) == -signal.SIGTERM
    assert time.monotonic() - began < 10, "ten one after the other would take 20 s"


def test_a_program_with_its_own_sigterm_handler_ends_in_its_own_way(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    program = crew.start(server.url, program="own_sigterm", **SETTINGS)
    program.expect("held")
    program.signal(signal.SIGTERM)
    program.expect("own handler")
    program.expect("body goes on")
    assert lock.value is not None
    program.expect("body ended")
    assert program.wait(10) == 0
    assert lock.value is None


FIRST_PROCESS = """
import asyncio
from aiogpulock import gpu_lock

async def job():
    async with gpu_lock(0):
        print("held", flush=True)
        await asyncio.sleep(100)

async def main():
    await asyncio.gather(job(), asyncio.sleep(100), return_exceptions=True)

asyncio.run(main())
"""


def test_the_first_process_of_a_container_ends_too(server: RealServer, lock: RawLock) -> None:
    """The kernel spares it a SIGTERM that nobody handles: it would live on without its job."""
    in_a_namespace = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*in_a_namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no pid namespace can be made here")
    command = [*in_a_namespace, sys.executable, "-c", FIRST_PROCESS]
    environment = {**os.environ, "REDIS_URL": server.url}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as outer:
        try:
            assert outer.stdout is not None
            assert outer.stdout.readline() == "held\n"
            psutil.Process(outer.pid).children()[0].terminate()
            assert outer.wait(30) == 128 + signal.SIGTERM
            assert lock.holder == {}
        finally:
            outer.kill()


def test_an_idle_manager_does_not_keep_sigterm_from_ending_the_process(server: RealServer, crew: Crew) -> None:
    worker = crew.start(server.url)
    worker.signal(signal.SIGTERM)
    assert worker.wait(10) == -signal.SIGTERM
