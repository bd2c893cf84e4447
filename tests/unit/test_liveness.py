"""Whether a process of this host is dead: the kernel is asked, and what it does not say is unknown."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from aiogpulock.liveness import ProcessWatch, same_host, sight, start_time, this_process, with_companions
from aiogpulock.models import ProcessInfo
from tests.unit.support import eventually

Child = subprocess.Popen[bytes]


@pytest.fixture
def child() -> Iterator[Child]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


@pytest.fixture
def children() -> Iterator[list[Child]]:
    children = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(4)]
    yield children
    for child in children:
        child.kill()
        child.communicate()


def info(*processes: tuple[int, int]) -> ProcessInfo:
    return msgspec.structs.replace(this_process(), processes=processes)


def started(child: Child) -> int:
    ticks = start_time(child.pid)
    assert ticks
    return ticks


def look(pid: int, ticks: int) -> str:
    sighting = sight(pid, ticks)
    if sighting.pidfd >= 0:
        os.close(sighting.pidfd)
    return sighting.state


def test_companions_count_as_part_of_a_process(child: Child) -> None:
    together = with_companions(this_process(), [child.pid])
    assert together.processes == (*this_process().processes, (child.pid, started(child)))
    assert together.pid == os.getpid()


def test_a_process_names_itself() -> None:
    here = this_process()
    assert here.processes == ((os.getpid(), start_time(os.getpid())),)
    assert here.pid == os.getpid()
    assert same_host(here)


def test_a_running_process_is_alive_and_a_killed_one_is_dead(child: Child) -> None:
    ticks = started(child)
    assert look(child.pid, ticks) == "alive"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert look(child.pid, ticks) == "dead", "a zombie computes nothing"
    child.wait()
    assert look(child.pid, ticks) == "dead"


def test_a_reused_pid_is_another_process(child: Child) -> None:
    assert look(child.pid, started(child) - 1) == "dead"


def test_a_start_time_that_nobody_knew_is_unknown(child: Child) -> None:
    assert look(child.pid, 0) == "unknown"


def test_what_the_kernel_refuses_to_tell_is_unknown(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise PermissionError

    ticks = started(child)
    monkeypatch.setattr(os, "pidfd_open", refuse)  # this machine's kernel refuses nothing
    assert look(child.pid, ticks) == "unknown"
    monkeypatch.delattr(os, "pidfd_open")
    assert look(child.pid, ticks) == "unknown"


def test_a_command_name_with_parentheses_does_not_hide_the_start_time() -> None:
    program = "import ctypes; ctypes.CDLL(None).prctl(15, b') 1 2 (', 0, 0, 0); print(1, flush=True); input()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as odd:
        assert odd.stdout is not None
        odd.stdout.readline()
        ticks = started(odd)
        assert abs(ticks - (start_time(os.getpid()) or 0)) < 1_000_000
        assert look(odd.pid, ticks) == "alive"
        odd.kill()


@pytest.mark.parametrize("field", ["boot", "pidns", "timens"])
def test_another_boot_or_namespace_is_another_host(field: str) -> None:
    elsewhere = msgspec.structs.replace(this_process(), **{field: "x" if field == "boot" else 1})
    assert not same_host(elsewhere)


# watching


async def test_a_watch_tells_of_a_death_and_is_gone_then(child: Child) -> None:
    watch, told = ProcessWatch(), []
    assert not watch.watch(info((child.pid, started(child))), lambda: told.append(True))
    child.kill()
    await eventually(lambda: told, description="the death to be told")
    await asyncio.sleep(0)
    assert told == [True]
    assert watch._pidfds == {}
    watch.close()


async def test_watches_of_one_process_share_a_pidfd(child: Child) -> None:
    watch, told = ProcessWatch(), []
    who = info((child.pid, started(child)))
    for name in ("first", "second", "third"):
        assert not watch.watch(who, lambda name=name: told.append(name))
    assert len(watch._pidfds) == 1
    child.kill()
    await eventually(lambda: len(told) == 3, description="all to be told")
    watch.close()


async def test_a_listener_that_left_is_not_told(child: Child) -> None:
    watch, told = ProcessWatch(), []

    def listener() -> None:
        told.append("left")

    who = info((child.pid, started(child)))
    watch.watch(who, listener)
    watch.watch(who, lambda: told.append("stayed"))
    watch.discard(listener)
    child.kill()
    await eventually(lambda: told, description="the other to be told")
    assert told == ["stayed"]
    watch.close()


async def test_a_process_that_is_dead_already_is_answered_at_once(child: Child) -> None:
    ticks = started(child)
    child.kill()
    child.wait()
    watch = ProcessWatch()
    assert watch.watch(info((child.pid, ticks)), lambda: None)
    assert watch._pidfds == {}


async def test_a_holder_is_dead_only_when_all_its_processes_are(child: Child) -> None:
    watch, told = ProcessWatch(), []
    ticks = started(child)
    gone = (child.pid, ticks - 1)
    assert not watch.watch(info(gone, (child.pid, ticks)), lambda: told.append(True))
    child.kill()
    await eventually(lambda: told, description="the last death to be told")
    assert watch.watch(info(gone, (child.pid, ticks)), lambda: None)
    watch.close()


async def test_nobody_is_certainly_dead_elsewhere_or_without_a_name_or_here(child: Child) -> None:
    watch = ProcessWatch()
    elsewhere = msgspec.structs.replace(info((child.pid, started(child) - 1)), boot="another")
    assert not watch.watch(elsewhere, lambda: None)
    assert not watch.watch(info(), lambda: None)
    assert not watch.watch(info((os.getpid(), 1)), lambda: None), "this very process runs"
    assert watch._pidfds == {}


async def test_the_number_of_watches_is_bounded(children: list[Child]) -> None:
    watch = ProcessWatch()
    watch.MOST = 2  # type: ignore[misc]
    for child in children:
        watch.watch(info((child.pid, started(child))), lambda: None)
    assert [process[0] for process in watch._pidfds] == [child.pid for child in children[-2:]]
    watch.close()
    assert watch._pidfds == {}
