"""`run`, once its keeper is there: acquire, let the command go, pass signals on, and tell the keeper of the lease."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, NamedTuple

from aiogpulock.cli.app import complain
from aiogpulock.cli.exits import FAILED, LOST, SIGNALLED
from aiogpulock.cli.keeper import Kept
from aiogpulock.cli.notices import shorten_driver_notice
from aiogpulock.cli.options import Target
from aiogpulock.cli.process_tree import send, with_variable
from aiogpulock.cli.waiting_line import waiting_line
from aiogpulock.errors import (
    InvalidGpuError,
    LeaseLostError,
    LockTimeoutError,
    MemoryNotFreedError,
    QueueFullError,
)
from aiogpulock.lease import Lease

_NOT_HERE = (
    "{} is no GPU of this host, and the command runs here: nvidia-smi -L lists those that are (gpu_memory.nvml: 'off' "
    "takes any UUID)"
)
LAST_PART = 0.8
"""Of the margin between the holder's deadline and Redis's: for SIGTERM to work; the rest is for SIGKILL."""


class Wishes(NamedTuple):
    """What the command line asked for."""

    gpu: str
    task_name: str
    priority: int
    timeout: float | None
    """Seconds, infinity included; None: as the settings say, and for ever if they say nothing."""
    kill_after: float
    target: Target


class Received(NamedTuple):
    """A signal. One that the terminal sent has reached the command too, as it is in the same process group."""

    signum: int
    by_terminal: bool


class _SignalledError(Exception):
    """A signal ended the wait."""

    def __init__(self, received: Received) -> None:
        super().__init__(received)
        self.received = received


def run(wishes: Wishes, kept: Kept, heard: set[signal.Signals], conflict_status: int) -> int:
    """The exit status. Raises `GpuLockError` where the command never ran."""
    try:
        try:
            return asyncio.run(_Runner(wishes, kept, heard).run())
        finally:
            kept.socket.close()  # a keeper that is still there ends now, and the command with it
            with suppress(ChildProcessError):
                os.waitpid(kept.pid, 0)
    except (LockTimeoutError, QueueFullError) as error:
        complain(str(error))
        return conflict_status
    except _SignalledError as ended:
        return _end_by(ended.received)


def _end_by(received: Received) -> int:
    """Of Ctrl-C one dies, so that the shell's loop around it ends too; shells show that as 130 as well."""
    if received == (signal.SIGINT, True):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.kill(os.getpid(), signal.SIGINT)
    return SIGNALLED + received.signum


class _KeeperLink:
    """The socket to the keeper, which may be gone at any moment."""

    def __init__(self, kept: Kept) -> None:
        self._socket = kept.socket
        self._socket.setblocking(False)
        self._heard = b""
        self._over = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._socket, self._hear)

    def tell(self, **message: Any) -> None:
        with suppress(OSError):
            self._socket.send(json.dumps(message).encode() + b"\n")

    def _hear(self) -> None:
        data = b""
        with suppress(OSError):
            data = self._socket.recv(65536)
        self._heard += data
        if not data:
            self._over.set()
            self.close()

    async def last_words(self) -> dict[str, int] | None:
        """How the command ended, once the keeper has gone; None if it was killed."""
        await self._over.wait()
        said: dict[str, int] | None = json.loads(self._heard) if self._heard else None
        return said

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)


class _Runner:
    def __init__(self, wishes: Wishes, kept: Kept, heard: set[signal.Signals]) -> None:
        self._wishes = wishes
        self._kept = kept
        self._heard = heard
        self._signals: asyncio.Queue[Received] = asyncio.Queue()
        self._last: Received | None = None
        self._running = False

    async def run(self) -> int:
        """Everything. Raises `_SignalledError`."""
        threading.Thread(target=self._hear, args=(asyncio.get_running_loop(),), daemon=True).start()
        self._keeper = _KeeperLink(self._kept)
        work = asyncio.create_task(self._work())
        passing = asyncio.create_task(self._pass_on(work))
        try:
            return await work
        except asyncio.CancelledError:
            if self._last is None:
                raise
            raise _SignalledError(self._last) from None
        finally:
            passing.cancel()
            self._keeper.close()

    # signals

    def _hear(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own: only so is it known who sent a signal."""
        while True:
            received = _next_signal(self._heard)
            with suppress(RuntimeError):  # the loop is closed: it is over anyway
                loop.call_soon_threadsafe(self._signals.put_nowait, received)

    async def _pass_on(self, work: asyncio.Task[int]) -> None:
        while True:
            self._last = received = await self._signals.get()
            if not self._running:
                work.cancel()
            elif not received.by_terminal:
                self._keeper.tell(signal=received.signum)

    # the lock

    async def _work(self) -> int:
        wishes = self._wishes
        async with wishes.target.manager((self._kept.pid, self._kept.command_pid)) as manager:
            shorten_driver_notice(manager.settings.gpu_lock.gpu_memory)
            gpu = await manager.find(wishes.gpu, manager.settings.gpu_lock.override(**self._limit()))
            if gpu.remote:
                raise InvalidGpuError(_NOT_HERE.format(wishes.gpu))
            lock = manager.lock(
                wishes.gpu,
                task_name=wishes.task_name,
                priority=wishes.priority,
                on_lost=self._on_lost,
                **self._limit(),
            )
            with waiting_line(manager, wishes.gpu):
                lease = await lock.acquire()
            reason = "cancelled"
            try:
                await asyncio.sleep(0)  # a signal that came with the grant ends it here
                self._running = True
                status = await self._under(lease)
                reason = "normal" if status == 0 else "exception"
            finally:
                given_back = await _give_back(lease, reason)
        return self._exit_status(status, lost=lease.lost_reason is not None) or (0 if given_back else FAILED)

    def _limit(self) -> dict[str, Any]:
        """The built-in limit is for servers: a job waits for ever unless somebody said something else."""
        if self._wishes.timeout is not None:
            return {"max_wait_time": None if self._wishes.timeout == math.inf else self._wishes.timeout}
        return {} if "gpu_lock.max_wait_time" in self._wishes.target.source().origins else {"max_wait_time": None}

    async def _under(self, lease: Lease) -> int:
        """Let the command go; answers how it ended: its exit status, or less than 0 for a signal."""
        lease.check()
        kill_after = self._wishes.kill_after
        # After the deadline the command must be gone before Redis gives the GPU to another.
        last_grace = min(kill_after, LAST_PART * lease.margin)
        self._keeper.tell(go=lease.env(), deadline=lease.deadline, grace=kill_after, last_grace=last_grace)
        telling = asyncio.create_task(self._tell_deadlines(lease))
        try:
            end = await self._keeper.last_words()
        finally:
            telling.cancel()
        if end is None:
            complain("the keeper of the command was killed, and the command with it")
            await _end_orphans(lease.env()["AIOGPULOCK_TOKEN"])
            return -signal.SIGKILL
        if end["left"]:
            complain(f"{self._wishes.task_name} left {_processes(end['left'])} running: ended with it")
        return end["status"]

    async def _tell_deadlines(self, lease: Lease) -> None:
        told = lease.deadline
        while True:
            await asyncio.sleep(lease.margin / 2)
            if lease.deadline != told:
                told = lease.deadline
                self._keeper.tell(deadline=told)

    def _on_lost(self, reason: str) -> None:
        """The keeper has a shorter grace than this where the deadline has come."""
        grace = self._wishes.kill_after
        complain(f"the lease on GPU {self._wishes.gpu} is lost ({reason}): the command is ended")
        self._keeper.tell(end=grace)

    def _exit_status(self, status: int, *, lost: bool) -> int:
        if lost:
            return LOST
        if status == -signal.SIGINT and self._last is not None and self._last.by_terminal:
            raise _SignalledError(self._last)
        return status if status >= 0 else SIGNALLED - status


async def _give_back(lease: Lease, reason: str) -> bool:
    """Release. Answers whether the memory is back, where policy ``raise`` asks."""
    try:
        with suppress(LeaseLostError):  # which has been told
            await lease.release(reason)
    except MemoryNotFreedError:  # the log has said so
        return False
    return True


async def _end_orphans(token: str) -> None:
    """Who is left without a keeper is known by the fencing token in its environment."""
    while left := with_variable("AIOGPULOCK_TOKEN", token):
        send(left, signal.SIGKILL)
        await asyncio.sleep(0.02)


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _next_signal(heard: set[signal.Signals]) -> Received:
    if sys.platform == "linux":
        info = signal.sigwaitinfo(heard)
        return Received(info.si_signo, by_terminal=info.si_code > 0)
    return Received(signal.sigwait(heard), by_terminal=False)
