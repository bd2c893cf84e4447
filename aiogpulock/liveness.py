"""Who this process is, and whether another one on this host is dead. The kernel is asked; a guess is never made."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from aiogpulock.models import ProcessInfo

_PROC = Path("/proc")
_START_TIME_FIELD = 22  # of /proc/<pid>/stat, counted from 1: proc_pid_stat(5)


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which `pid` started, or None if it cannot be read."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
        # The command name in parentheses may itself contain spaces and parentheses.
        return int(stat.rpartition(")")[2].split()[_START_TIME_FIELD - 3])
    except (OSError, ValueError, IndexError):
        return None


@cache
def boot_id() -> str:
    """The kernel's id of this boot, or '' where there is none: then no process counts as being on this host.

    ``AIOGPULOCK_BOOT_ID`` replaces it: two programs with different ones treat each other as on different hosts.
    """
    try:
        return os.environ.get("AIOGPULOCK_BOOT_ID") or (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _namespace(name: str) -> int:
    try:
        return (_PROC / "self/ns" / name).stat().st_ino
    except OSError:
        return 0


@cache
def _this_process(pid: int) -> ProcessInfo:
    return ProcessInfo(
        host=socket.gethostname(),
        boot=boot_id(),
        pidns=_namespace("pid"),
        timens=_namespace("time"),
        processes=((pid, start_time(pid) or 0),),
        user=_user(),
    )


def _user() -> str:
    """The real user's name; a container often has no name for its user's number."""
    import pwd  # not everywhere

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def this_process() -> ProcessInfo:
    """How this process is named in Redis."""
    return _this_process(os.getpid())


def with_companions(info: ProcessInfo, pids: Iterable[int]) -> ProcessInfo:
    """`info`, with further processes of this host that must be gone too before it counts as dead."""
    companions = tuple((pid, start_time(pid) or 0) for pid in pids)
    return msgspec.structs.replace(info, processes=info.processes + companions)


def same_host(info: ProcessInfo) -> bool:
    """Whether pids and start times of `info` can be compared with ours."""
    here = this_process()
    return bool(here.boot and here.pidns) and (info.boot, info.pidns, info.timens) == (
        here.boot,
        here.pidns,
        here.timens,
    )


@dataclass(frozen=True, slots=True)
class Sighting:
    """What the kernel said of one process. Only an alive one has a `pidfd`, which the caller closes."""

    state: Literal["alive", "dead", "unknown"]
    pidfd: int = -1


def _is_readable(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def sight(pid: int, started: int) -> Sighting:
    """Look at one process of this host: (pid, start time) as registered."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return Sighting("dead")
    except (OSError, AttributeError):  # EPERM, ENOSYS, too many files; not Linux
        return Sighting("unknown")
    # The pidfd came first: it pins the process whose start time is read now.
    now_started = start_time(pid)
    readable = _is_readable(pidfd)
    if not readable and now_started == started:
        return Sighting("alive", pidfd)
    os.close(pidfd)
    if not started or (now_started is None and not readable):
        return Sighting("unknown")
    return Sighting("dead")


def certainly_dead(info: ProcessInfo) -> bool:
    """Whether every process of `info` has ended on this host; elsewhere, or where the kernel does not tell: False."""
    return bool(info.processes) and same_host(info) and all(_is_dead(*process) for process in info.processes)


def _is_dead(pid: int, started: int) -> bool:
    sighting = sight(pid, started)
    if sighting.state == "alive":
        os.close(sighting.pidfd)
    return sighting.state == "dead"


class ProcessWatch:
    """Tells when a process of this host dies: 0.3 ms after the fact, through a pidfd on the event loop.

    Watches are shared and kept, since the same few processes hold the lock again and again.
    """

    MOST = 64

    def __init__(self) -> None:
        self._pidfds: dict[tuple[int, int], int] = {}
        self._listeners: dict[tuple[int, int], set[Callable[[], None]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def watch(self, info: ProcessInfo, listener: Callable[[], None]) -> bool:
        """Answer whether every process of `info` is certainly dead; else call `listener` when one of them dies.

        A process on another host, or one that the kernel does not let us see, is never certainly dead.
        """
        if not info.processes or not same_host(info):
            return False
        states = [self._watch_one(process, listener) for process in info.processes]  # every one gets its watch
        return all(states)

    def _watch_one(self, process: tuple[int, int], listener: Callable[[], None]) -> bool:
        if process[0] == os.getpid():
            return False
        if process in self._pidfds:
            self._listeners[process].add(listener)
            return _is_readable(self._pidfds[process])
        sighting = sight(*process)
        if sighting.state == "alive":
            self._keep(process, sighting.pidfd, listener)
        return sighting.state == "dead"

    def _keep(self, process: tuple[int, int], pidfd: int, listener: Callable[[], None]) -> None:
        if len(self._pidfds) >= self.MOST:
            self._forget(next(iter(self._pidfds)))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._died, process)
        self._pidfds[process] = pidfd
        self._listeners[process] = {listener}

    def discard(self, listener: Callable[[], None]) -> None:
        """Forget `listener` wherever it watches."""
        for listeners in self._listeners.values():
            listeners.discard(listener)

    def _died(self, process: tuple[int, int]) -> None:
        for listener in self._forget(process):
            listener()

    def _forget(self, process: tuple[int, int]) -> set[Callable[[], None]]:
        pidfd = self._pidfds.pop(process)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(pidfd)
        os.close(pidfd)
        return self._listeners.pop(process)

    def close(self) -> None:
        """Close every pidfd."""
        for process in list(self._pidfds):
            self._forget(process)
