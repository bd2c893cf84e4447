"""The scene of the demo: several processes contend for GPU 0, and the one that holds it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

import aiogpulock
from aiogpulock.cli.demo_referee import Referee, Stay
from aiogpulock.cli.demo_view import Event, Frame, Row, State, Tone, View
from aiogpulock.cli.demo_worker import GPU, HOLD_LONG, START, Orders, Report, make_manager
from aiogpulock.errors import GpuLockError
from aiogpulock.gpu.aliases import alias_key
from aiogpulock.keys import check_gpu_id, lock_keys
from aiogpulock.liveness import boot_id
from aiogpulock.manager import GpuLockManager
from aiogpulock.models import LockSnapshot

T = TypeVar("T")

FRAME_EVERY = 0.1
KILL_AT = 0.4
"""The part of the time after which a holder is picked."""
SHOW_HOLDER = 0.1
"""The part of the time for which the victim is seen to hold, at most 1 s."""
START_WITHIN, GRANT_WITHIN, END_WITHIN = 60.0, 20.0, 5.0
"""Seconds."""


class DemoError(Exception):
    """The demo could not go on."""


@dataclass(eq=False)
class Worker:
    """A worker as its employer sees it."""

    name: str
    process: Process
    acquisitions: int = 0
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    holds_long: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """The fencing token of its long hold."""
    dismissed: bool = False
    killed_at: float | None = None
    last_sign: float = 0.0

    @property
    def title(self) -> str:
        return f"{self.name} (pid {self.process.pid})"

    def order(self, line: bytes) -> None:
        if self.process.stdin is not None:
            self.process.stdin.write(line)

    def dismiss(self) -> None:
        """Its orders end, and so does it."""
        self.dismissed = True
        if self.process.stdin is not None:
            self.process.stdin.close()

    def kill(self) -> float:
        self.dismissed = True
        self.killed_at = time.monotonic()
        self.process.kill()
        return self.killed_at


@dataclass(frozen=True)
class Recovery:
    """Who came after the kill, and how many seconds after it."""

    successor: Stay
    seconds: float


class Scene:
    def __init__(self, view: View, workers: int, seconds: float, redis_url: str | None, namespace: str) -> None:
        self.referee = Referee()
        self.recovery: Recovery | None = None
        self.workers: list[Worker] = []
        self.took = 0.0
        self._view = view
        self._count = workers
        self._seconds = seconds
        self._redis_url = redis_url
        self._namespace = namespace
        self._keys = lock_keys(check_gpu_id(GPU), namespace)
        self._began = 0.0
        self._title = f"aiogpulock demo: {workers} processes contend for GPU {GPU}"
        self._story: list[Event] = []
        self._entered = asyncio.Event()

    async def play(self) -> Scene:
        """Raises `DemoError`, `GpuLockError`; nothing that was started is left behind."""
        asked = time.monotonic()
        async with make_manager(self._namespace, self._redis_url) as manager:
            kind = "embedded server" if self._redis_url is None else "Redis"
            self._tell(f"{kind} at {manager.server}, ready after {(time.monotonic() - asked) * 1000:.0f} ms")
            try:
                await self._contention(manager)
            finally:
                await self._remove_keys(manager)
            self._view.show(self._frame(None))
        return self

    async def _contention(self, manager: GpuLockManager) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                screen = group.create_task(self._keep_showing(manager), name="screen")
                try:
                    await self._timeline(group)
                finally:
                    await self._dismiss_all()
                    screen.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _timeline(self, group: asyncio.TaskGroup) -> None:
        for _ in range(self._count):
            await self._hire(group)
        await self._start(self.workers)
        self._began = time.monotonic()
        await self._until(KILL_AT)
        victim, killed_at = await self._kill_the_holder()
        await self._see_recovery(killed_at)
        await asyncio.sleep(min(1.0, SHOW_HOLDER * self._seconds))
        substitute = await self._hire(group)
        await self._start([substitute])
        self._tell(f"{substitute.title} comes for {victim.name}")
        await self._until(1.0)
        self.took = time.monotonic() - self._began

    async def _kill_the_holder(self) -> tuple[Worker, float]:
        victim = random.choice(self.workers)  # noqa: S311 - anyone will do
        victim.order(HOLD_LONG)
        token = await _in_time(victim.holds_long, GRANT_WITHIN, f"{victim.title} did not get the lock")
        self._tell(f"{victim.title} holds GPU {GPU}, and will be killed")
        await asyncio.sleep(min(1.0, SHOW_HOLDER * self._seconds))
        killed_at = victim.kill()
        self._tell(f"kill -9: {victim.title} dies holding token {token}", "bad")
        return victim, killed_at

    async def _see_recovery(self, killed_at: float) -> None:
        async def somebody_enters() -> None:
            while not self.referee.entries_after(killed_at):
                self._entered.clear()
                await self._entered.wait()

        await _in_time(somebody_enters(), GRANT_WITHIN, "nobody got the lock after the kill")
        await asyncio.sleep(0.05)  # the reports come through several pipes, in any order
        successor = self.referee.entries_after(killed_at)[0]
        self.recovery = Recovery(successor, successor.entered_at - killed_at)
        self._tell(
            f"recovered: {successor.worker} entered {self.recovery.seconds * 1000:.1f} ms after the kill, "
            f"with token {successor.token}",
            "good",
        )

    async def _until(self, part: float) -> None:
        await asyncio.sleep(self._began + part * self._seconds - time.monotonic())

    # workers

    async def _hire(self, group: asyncio.TaskGroup) -> Worker:
        name = f"worker-{len(self.workers) + 1}"
        # The package may lie in a directory that only this process was told of. In a process group of its own, a
        # worker gets no Ctrl-C: its orders end instead.
        home = str(Path(aiogpulock.__file__).parents[1])
        path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-P", "-m", "aiogpulock.cli.demo_worker"]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, process_group=0, env={**os.environ, "PYTHONPATH": path}
        )
        worker = Worker(name, process)
        self.workers.append(worker)
        worker.order(msgspec.json.encode(Orders(name, self._namespace, self._redis_url)) + b"\n")
        group.create_task(self._listen(worker), name=name)
        return worker

    async def _start(self, workers: list[Worker]) -> None:
        for worker in workers:
            await _in_time(worker.ready.wait(), START_WITHIN, f"{worker.title} did not start")
        for worker in workers:
            worker.order(START)

    async def _listen(self, worker: Worker) -> None:
        async for report in _reports(worker.process):
            self._note(worker, report)
        if worker.killed_at is not None:
            self.referee.died(worker.name, killed_at=worker.killed_at, last_sign=worker.last_sign)
        elif not worker.dismissed:
            raise DemoError(f"{worker.title} ended by itself: {await _last_words(worker.process)}")

    def _note(self, worker: Worker, report: Report) -> None:
        match report.event:
            case "ready":
                worker.ready.set()
            case "entered":
                worker.acquisitions += 1
                self.referee.entered(worker.name, report.token, asked_at=report.asked_at, at=report.at)
                self._entered.set()
                if report.long and not worker.holds_long.done():
                    worker.holds_long.set_result(report.token)
            case "alive":
                worker.last_sign = report.at
            case "left":
                self.referee.left(worker.name, report.at)
            case "failed":
                raise DemoError(f"{worker.title}: {report.text}")

    async def _dismiss_all(self) -> None:
        """Each ends within `END_WITHIN` seconds or is killed."""
        for worker in self.workers:
            worker.dismiss()
        for worker in self.workers:
            try:
                await asyncio.wait_for(worker.process.wait(), END_WITHIN)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    worker.process.kill()
                await worker.process.wait()

    async def _remove_keys(self, manager: GpuLockManager) -> None:
        """The namespace was the demo's own. What cannot be removed now expires."""
        with contextlib.suppress(GpuLockError):
            await manager.parts.client.execute("DEL", *self._keys.script_keys)
            await manager.parts.client.execute("DEL", self._keys.index)
            await manager.parts.client.execute("DEL", alias_key(manager.namespace, boot_id()))

    # what is seen

    def _tell(self, text: str, tone: Tone = "plain") -> None:
        event = Event(text, tone)
        self._story.append(event)
        self._view.tell(event)

    async def _keep_showing(self, manager: GpuLockManager) -> None:
        while True:
            self._view.show(self._frame(await manager.scripts.snapshot(self._keys)))
            await asyncio.sleep(FRAME_EVERY)

    def _frame(self, seen: LockSnapshot | None) -> Frame:
        line = [] if seen is None else [waiter.pid for waiter in seen.queue if waiter.pid != seen.pid]
        rows = tuple(self._row(worker, seen.pid if seen else None, line) for worker in self.workers)
        names = {row.pid: row.name for row in rows}
        return Frame(
            title=self._title,
            rows=rows,
            holder=next((row for row in rows if seen and row.pid == seen.pid), None),
            token=seen.fencing_token if seen else None,
            queue=tuple(names[pid] for pid in line if pid in names),
            elapsed=time.monotonic() - self._began if self._began else 0.0,
            seconds=self._seconds,
            story=tuple(self._story),
        )

    def _row(self, worker: Worker, holder: int | None, line: list[int]) -> Row:
        pid = worker.process.pid
        position = line.index(pid) + 1 if pid in line else 0
        state: State = "pauses"
        if worker.killed_at is not None:
            state = "killed"
        elif worker.dismissed:
            state = "done"
        elif not worker.ready.is_set():
            state = "starts"
        elif pid == holder:
            state = "holds"
        elif position:
            state = "waits"
        return Row(worker.name, pid, state, position, worker.acquisitions)


async def _in_time(waiting: Awaitable[T], seconds: float, otherwise: str) -> T:
    try:
        return await asyncio.wait_for(waiting, seconds)
    except TimeoutError:
        raise DemoError(f"{otherwise} within {seconds:g} s") from None


async def _reports(process: Process) -> AsyncIterator[Report]:
    """What a worker says, until it ends."""
    if process.stdout is not None:
        async for line in process.stdout:
            yield msgspec.json.decode(line, type=Report)


async def _last_words(process: Process) -> str:
    said = (await process.stderr.read()).decode("utf-8", "replace").split("\n") if process.stderr else []
    return next((line for line in reversed(said) if line.strip()), f"exit status {await process.wait()}")
