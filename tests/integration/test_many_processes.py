"""Forks: a child never touches its parent's sockets, and the parent's lease goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.raw_scripts import RawLock
from tests.register import RegisterProcess
from tests.servers import RealServer
from tests.workers import Crew

pytestmark = pytest.mark.integration

SETTINGS: dict[str, Any] = {"heartbeat": {"interval": 0.3, "timeout": 2}}


def test_a_fork_of_a_thread_lock_makes_its_own_connections(server: RealServer, crew: Crew, lock: RawLock) -> None:
    program = crew.start(server.url, program="fork_with_sync", ready=False, **SETTINGS)
    parent = program.expect("held")
    before = {client["id"] for client in lock.client.client_list() if client["name"].startswith("aiogpulock")}
    child = program.expect("child held")
    assert child["pid"] != parent["pid"]
    after = {client["id"] for client in lock.client.client_list() if client["name"].startswith("aiogpulock")}
    assert before < after, "new connections beside the old ones, which still live"
    program.tell("leave")
    program.expect("child left")
    program.expect("parent goes on")
    program.expect("left")
    assert program.wait() == 0
    assert lock.value is None
    assert RawLock(lock.client, "1").value is None


def test_a_manager_refuses_to_work_in_a_forked_child_and_its_close_there_harms_nothing(
    server: RealServer, crew: Crew, lock: RawLock
) -> None:
    program = crew.start(server.url, program="fork_with_manager", ready=False, **SETTINGS)
    program.expect("held")
    refused = program.expect("refused")
    assert refused["error"] == "ManagerClosedError"
    assert "fork" in refused["text"]
    program.expect("child held")
    program.expect("left")
    assert program.wait() == 0
    assert lock.value is None


def test_eight_processes_take_turns_in_a_loop_without_an_overlap(
    server: RealServer, crew: Crew, lock: RawLock, register: RegisterProcess
) -> None:
    workers = [crew.start(server.url, register=register.path, ready=False) for _ in range(8)]
    for worker in workers:
        worker.expect("ready")
        worker.tell("loop", tasks=2)
    for worker in workers:
        worker.tell("stop_looping")
    for worker in workers:
        worker.expect("looped", number=0)
        worker.expect("looped", number=1)
    report = register.report()
    assert (report["overlaps"], report["stale"]) == ([], 0)
    assert report["tokens"] == sorted(set(report["tokens"]))
    assert lock.value is None
    assert lock.queue == []
